//! Decides whether a domain's disks can be restored in place, and what stays as it is. Pure.

use super::domain::{Disk, Domain, DomainState};
use super::eligibility::{self, Allowed, Eligibility};
use super::finding::Finding;
use super::restore_point::RestorePoint;
use super::text::{bytes, shown};

/// The domain and the wishes of the user, as far as they decide whether a restore is possible.
#[derive(Clone, Copy)]
pub struct InPlaceFacts<'a> {
    /// The domain as it is now.
    pub domain: &'a Domain,
    /// The restore point.
    pub point: &'a RestorePoint,
    /// The targets of the disks to restore.
    pub targets: &'a [String],
    /// The target of the disk in the restore point, if a single disk gets the content of another
    /// disk, which may be that of another domain.
    pub from: Option<&'a str>,
    /// The size of each disk of the domain in bytes, as far as it is known.
    pub sizes: &'a dyn Fn(&str) -> Option<u64>,
    /// Whether libvirt has saved the domain's memory.
    pub has_saved_memory: bool,
    /// An earlier restore in place that has not ended.
    pub unfinished: Option<Unfinished<'a>>,
}

/// A restore in place that has not ended.
#[derive(Clone, Copy, Debug)]
pub enum Unfinished<'a> {
    /// Its mark can be read.
    Known {
        /// The UUID of its domain.
        uuid: &'a str,
        /// The id of its restore point.
        id: &'a str,
        /// The targets of its disks.
        disks: &'a [String],
    },
    /// Its mark cannot be read, so every disk may be only partly restored.
    Unknown,
}

/// The reason why a domain's disks cannot be restored in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InPlaceRefusal {
    /// The domain is not shut off.
    #[error("the domain is {}, and its disks can only be restored in place while it is shut off", .0.word())]
    Active(DomainState),
    /// The domain's memory is saved, and belongs to the present content of the disks.
    #[error(
        "the domain's memory is saved (managed save), and belongs to the present content of the disks: the domain would continue from it with changed disks"
    )]
    SavedMemory,
    /// The restore point belongs to another domain that had the same name.
    #[error("restore point {id} belongs to another domain with the same name (UUID {uuid})")]
    OtherDomain {
        /// The restore point.
        id: String,
        /// The UUID of its domain.
        uuid: String,
    },
    /// The domain does not have the disk.
    #[error("the domain has no disk {0}")]
    NoDisk(String),
    /// The disk must not be written to.
    #[error("disk {disk} cannot be restored in place: {why}")]
    Unsuitable {
        /// The disk's target.
        disk: String,
        /// The reason.
        why: String,
    },
    /// The disk has another size now.
    #[error(
        "disk {disk} has another size: {} ({now} bytes) now, {} ({then} bytes) in restore point {id}",
        bytes(*now), bytes(*then)
    )]
    OtherSize {
        /// The disk's target.
        disk: String,
        /// Its size now, in bytes.
        now: u64,
        /// Its size in the restore point, in bytes.
        then: u64,
        /// The restore point.
        id: String,
    },
    /// The disk is smaller than that of the restore point.
    #[error(
        "disk {disk} is too small: it has {} ({now} bytes), and the disk in restore point {id} has {} ({then} bytes)",
        bytes(*now), bytes(*then)
    )]
    TooSmall {
        /// The disk's target.
        disk: String,
        /// Its size, in bytes.
        now: u64,
        /// The size of the disk in the restore point, in bytes.
        then: u64,
        /// The restore point.
        id: String,
    },
    /// It is not known whether the restore point holds plain text or cipher text of a disk.
    #[error(
        "restore point {id} does not record whether it holds disk {disk} as plain text or as cipher text"
    )]
    PerhapsEncrypted {
        /// The disk's target in the restore point.
        disk: String,
        /// The restore point.
        id: String,
    },
    /// An earlier restore in place has left further disks only partly restored.
    #[error(
        "an earlier restore in place to {id} has not ended, and left disk {disk} only partly restored: restore that disk too"
    )]
    AlsoInBetween {
        /// A disk that is not to be restored.
        disk: String,
        /// The restore point of the earlier restore.
        id: String,
    },
    /// The mark of an earlier restore in place cannot be read.
    #[error(
        "an earlier restore in place has not ended, and its mark cannot be read, so disk {0} may be only partly restored: restore that disk too"
    )]
    PerhapsInBetween(String),
    /// The backup of the present state lacks a disk.
    #[error("the present state of disk {disk} could not be saved: restore point {id} lacks the disk")]
    NotSaved {
        /// The disk's target.
        disk: String,
        /// The restore point with the present state.
        id: String,
    },
    /// The unfinished restore belongs to another domain that had the same name.
    #[error(
        "an earlier restore in place has not ended, and belongs to another domain with the same name (UUID {uuid})"
    )]
    MarkOfAnother {
        /// The UUID of that domain.
        uuid: String,
    },
    /// The domain had another name when an unfinished restore in place of its disks began.
    #[error("{sentence}, when the domain was named '{}'", shown(former))]
    Renamed {
        /// The former name.
        former: String,
        /// A sentence about the restore.
        sentence: String,
    },
    /// A disk was written to after the present state was saved.
    #[error("disk {0} was written to after its present state was saved; nothing was changed")]
    ChangedSinceSaved(String),
    /// A disk may have been written to after the present state was saved.
    #[error(
        "disk {0} may have been written to after its present state was saved, because the bitmap that would show it is missing or broken; nothing was changed"
    )]
    UnknownSinceSaved(String),
}

impl InPlaceRefusal {
    /// A hint on what the user can do, if there is one.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        Some(match self {
            InPlaceRefusal::Active(_) => "shut the domain off first, or restore to another place with --to",
            InPlaceRefusal::SavedMemory => {
                "start the domain and shut it off, or discard its memory with `virsh managedsave-remove`"
            }
            InPlaceRefusal::OtherDomain { .. }
            | InPlaceRefusal::NoDisk(_)
            | InPlaceRefusal::Unsuitable { .. } => {
                "choose other disks with --disk, or restore to another place with --to"
            }
            InPlaceRefusal::OtherSize { .. } => {
                "restore the disk to another place with --to, or give it its old size first (`qemu-img resize`)"
            }
            InPlaceRefusal::TooSmall { .. } => {
                "choose a larger disk, or enlarge it first (`qemu-img resize`)"
            }
            InPlaceRefusal::PerhapsEncrypted { .. } => {
                "restore the disk to another place with --to: a note then explains how to find out"
            }
            InPlaceRefusal::AlsoInBetween { .. } | InPlaceRefusal::PerhapsInBetween(_) => {
                "leave out --disk, or name that disk too"
            }
            InPlaceRefusal::NotSaved { .. } => {
                "`vmsnap backup` shows why the disk is left out; --discard-current restores without saving the present state"
            }
            InPlaceRefusal::MarkOfAnother { .. } => {
                "if the disks of this domain are in order, remove the mark with --abandon, then run again"
            }
            InPlaceRefusal::Renamed { .. } => {
                "give the domain its former name again and finish the restore, or remove the mark with --abandon and the \
                 former name"
            }
            InPlaceRefusal::ChangedSinceSaved(_) | InPlaceRefusal::UnknownSinceSaved(_) => {
                "the domain was started in the meantime: run again while it is shut off"
            }
        })
    }
}

/// Checks whether the disks can be restored in place.
///
/// # Errors
/// The first reason why the disks cannot be restored in place.
pub(crate) fn check(facts: &InPlaceFacts<'_>) -> Result<(), InPlaceRefusal> {
    let (domain, point) = (facts.domain, facts.point);
    if domain.state.is_active() {
        return Err(InPlaceRefusal::Active(domain.state));
    }
    if facts.has_saved_memory {
        return Err(InPlaceRefusal::SavedMemory);
    }
    if facts.from.is_none() && point.uuid != domain.uuid {
        let (id, uuid) = (point.id.clone(), point.uuid.clone());
        return Err(InPlaceRefusal::OtherDomain { id, uuid });
    }
    for target in facts.targets {
        let disk = domain.disk(target);
        let disk = disk.ok_or_else(|| InPlaceRefusal::NoDisk(target.clone()))?;
        if let Some(why) = unsuitable(domain, disk) {
            let disk = target.clone();
            return Err(InPlaceRefusal::Unsuitable { disk, why });
        }
        let disk = point.disk(facts.from.unwrap_or(target));
        let then = disk.map_or(0, |disk| disk.virtual_size);
        check_size(target, point, (then, (facts.sizes)(target)), facts.from.is_some())?;
    }
    let is_left = |disk: &&String| !facts.targets.contains(disk);
    match facts.unfinished {
        None => Ok(()),
        Some(Unfinished::Known { uuid, .. }) if uuid != domain.uuid => Err(InPlaceRefusal::MarkOfAnother {
            uuid: uuid.to_owned(),
        }),
        Some(Unfinished::Known { id, disks, .. }) => match disks.iter().find(is_left) {
            None => Ok(()),
            Some(disk) => Err(InPlaceRefusal::AlsoInBetween {
                disk: disk.clone(),
                id: id.to_owned(),
            }),
        },
        Some(Unfinished::Unknown) => {
            let mut of_point = point.disks.iter().map(|disk| &disk.target);
            let mut of_domain = domain.disks.iter().map(|disk| &disk.target);
            let left = match facts.from {
                None => of_point.find(is_left),
                Some(_) => of_domain.find(is_left),
            };
            match left {
                None => Ok(()),
                Some(disk) => Err(InPlaceRefusal::PerhapsInBetween(disk.clone())),
            }
        }
    }
}

/// Refuses a disk that has another size now than in the restore point, or one that is smaller if it
/// `may_be_larger`.
pub(crate) fn check_size(
    target: &str,
    point: &RestorePoint,
    (then, now): (u64, Option<u64>),
    may_be_larger: bool,
) -> Result<(), InPlaceRefusal> {
    match now.filter(|now| *now != then) {
        None => Ok(()),
        Some(now) if may_be_larger && now > then => Ok(()),
        Some(now) if may_be_larger => Err(InPlaceRefusal::TooSmall {
            disk: target.to_owned(),
            now,
            then,
            id: point.id.clone(),
        }),
        Some(now) => Err(InPlaceRefusal::OtherSize {
            disk: target.to_owned(),
            now,
            then,
            id: point.id.clone(),
        }),
    }
}

fn unsuitable(domain: &Domain, disk: &Disk) -> Option<String> {
    if disk.readonly {
        return Some("it is read-only in the domain's definition".to_owned());
    }
    if disk.shareable {
        return Some("other domains may write to it (<shareable/>)".to_owned());
    }
    match eligibility::of(domain, disk, Allowed::ALL, &[]) {
        Eligibility::NoDisk(why) => Some(why.to_owned()),
        Eligibility::Skipped(left) => Some(shown(&left.reason)),
        Eligibility::FullOnly(_) | Eligibility::Incremental => None,
    }
}

/// Reports the disks that stay as they are, and other parts of the domain that are not restored.
pub(crate) fn findings(facts: &InPlaceFacts<'_>, has_firmware: bool) -> Vec<Finding> {
    let (domain, point) = (facts.domain, facts.point);
    let mut findings = Vec::new();
    if let Some(from) = facts.from {
        let then = point.disk(from).map_or(0, |disk| disk.virtual_size);
        let larger = |target: &String| {
            let now = (facts.sizes)(target).filter(|now| *now > then)?;
            let what = format!(
                "disk {target} ({}) is larger than disk {from} of the restore point ({}): the rest of disk {target} stays as it is",
                bytes(now),
                bytes(then)
            );
            Some(Finding::of_disk("disk-larger", target, what))
        };
        return facts.targets.iter().filter_map(larger).collect();
    }
    let is_disk = |disk: &&Disk| {
        let eligibility = eligibility::of(domain, disk, Allowed::ALL, &[]);
        !matches!(eligibility, Eligibility::NoDisk(_))
    };
    let chosen = |disk: &&Disk| facts.targets.contains(&disk.target);
    for disk in domain.disks.iter().filter(is_disk).filter(|disk| !chosen(disk)) {
        let why = match point.disk(&disk.target) {
            Some(_) => "it was not chosen".to_owned(),
            None => format!("restore point {} does not hold it", point.id),
        };
        let what = format!("disk {} stays as it is: {why}", disk.target);
        findings.push(Finding::of_disk("disk-not-restored", &disk.target, what));
    }
    if has_firmware {
        let what = "the UEFI variables and the state of the TPM stay as they are: a restore in place restores only disks";
        findings.push(Finding::new("firmware-not-restored", what));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::domain::{Agent, DiskFormat, Source};

    const UUID: &str = "00000000-0000-4000-8000-000000000001";
    const GIB: u64 = 1 << 30;

    fn disk(target: &str) -> Disk {
        let source = Source::File(format!("/images/{target}.qcow2").into());
        Disk::new(target, source, DiskFormat::Qcow2)
    }

    fn domain() -> Domain {
        Domain {
            name: "vm1".to_owned(),
            uuid: UUID.to_owned(),
            state: DomainState::ShutOff,
            persistent: true,
            id: None,
            disks: vec![disk("vda"), disk("vdb")],
            nvram: None,
            tpm: None,
            agent: Agent::None,
            excluded: Vec::new(),
            inactive_xml: String::new(),
        }
    }

    fn point() -> RestorePoint {
        let disk = |target: &str| {
            format!(
                r#"{{"target": "{target}", "source": "/images/{target}.qcow2", "sourceFormat": "qcow2",
                    "virtualSize": {GIB}, "level": "full", "reason": "first of the period",
                    "image": "{target}.qcow2", "dataBytes": 0, "zeroBytes": 0, "checkpointed": true}}"#
            )
        };
        let text = format!(
            r#"{{"id": "2026-11-01T02-00-03Z", "sequence": 1, "domain": "vm1", "uuid": "{UUID}",
                "time": "2026-11-01T02:00:03Z", "period": "vmsnap-backup-monthly-2026-11", "level": "full",
                "consistency": "offline", "disks": [{}, {}], "findings": []}}"#,
            disk("vda"),
            disk("vdb")
        );
        serde_json::from_str(&text).expect("a restore point")
    }

    fn checked(domain: &Domain, change: impl FnOnce(&mut InPlaceFacts<'_>)) -> Result<(), InPlaceRefusal> {
        checked_after(domain, &[], change)
    }

    /// The same after a restore of these disks that has not ended.
    fn checked_after(
        domain: &Domain,
        left: &[String],
        change: impl FnOnce(&mut InPlaceFacts<'_>),
    ) -> Result<(), InPlaceRefusal> {
        let (point, targets) = (point(), ["vda".to_owned(), "vdb".to_owned()]);
        let mut facts = InPlaceFacts {
            domain,
            point: &point,
            targets: &targets,
            from: None,
            sizes: &|_| Some(GIB),
            has_saved_memory: false,
            unfinished: Some(Unfinished::Known {
                uuid: UUID,
                id: "other",
                disks: left,
            }),
        };
        change(&mut facts);
        check(&facts)
    }

    fn changed(change: impl FnOnce(&mut Domain)) -> InPlaceRefusal {
        let mut domain = domain();
        change(&mut domain);
        checked(&domain, |_| {}).expect_err("refused")
    }

    #[test]
    fn a_shut_off_domain_with_the_same_disks_is_accepted() {
        assert_eq!(checked(&domain(), |_| {}), Ok(()));
        // A size that cannot be read now is compared later.
        assert_eq!(checked(&domain(), |facts| facts.sizes = &|_| None), Ok(()));
    }

    #[test]
    fn every_refusal_has_its_reason_and_a_hint() {
        let refused = [
            changed(|domain| domain.state = DomainState::Running),
            changed(|domain| domain.state = DomainState::Paused),
            changed(|domain| domain.uuid = "another".to_owned()),
            changed(|domain| drop(domain.disks.pop())),
            changed(|domain| domain.disks[1].readonly = true),
            changed(|domain| domain.disks[1].shareable = true),
            changed(|domain| domain.excluded.push("vdb".to_owned())),
            checked(&domain(), |facts| facts.has_saved_memory = true).expect_err("refused"),
            checked(&domain(), |facts| facts.sizes = &|_| Some(2 * GIB)).expect_err("refused"),
            checked_after(&domain(), &["vda".to_owned(), "vdc".to_owned()], |_| {}).expect_err("refused"),
            checked(&domain(), |facts| {
                facts.unfinished = Some(Unfinished::Unknown);
                facts.targets = &facts.targets[..1];
            })
            .expect_err("refused"),
            checked(&domain(), |facts| {
                facts.unfinished = Some(Unfinished::Known {
                    uuid: "another",
                    id: "other",
                    disks: &[],
                });
            })
            .expect_err("refused"),
        ];
        let words = [
            "the domain is running",
            "the domain is paused",
            "another domain with the same name",
            "no disk vdb",
            "disk vdb cannot be restored in place: it is read-only",
            "disk vdb cannot be restored in place: other domains may write to it",
            "disk vdb cannot be restored in place: the domain's metadata excludes it",
            "managed save",
            "disk vda has another size: 2.15 GB",
            "an earlier restore in place to other has not ended, and left disk vdc",
            "its mark cannot be read, so disk vdb may be only partly restored",
            "belongs to another domain with the same name (UUID another)",
        ];
        for (refused, words) in refused.iter().zip(words) {
            assert!(refused.to_string().contains(words), "{refused}");
            assert!(refused.hint().is_some());
        }
    }

    #[test]
    fn disks_that_stay_as_they_are_are_named() {
        let (mut domain, mut point) = (domain(), point());
        domain.disks.push(disk("vdc"));
        point.disks.remove(1);
        let facts = InPlaceFacts {
            domain: &domain,
            point: &point,
            targets: &[],
            from: None,
            sizes: &|_| None,
            has_saved_memory: false,
            unfinished: None,
        };
        let found = findings(&facts, true);
        let said: Vec<&str> = found.iter().map(|found| found.message.as_str()).collect();
        assert_eq!(said.len(), 4, "{said:#?}");
        assert!(said[0].contains("disk vda stays as it is: it was not chosen"));
        assert!(said[1].contains("disk vdb stays as it is: restore point"));
        assert!(said[3].contains("UEFI variables"));
    }
    #[test]
    fn a_disk_of_another_domain_may_be_larger_but_not_smaller() {
        let mut domain = domain();
        domain.uuid = "another".to_owned();
        let targets = ["vdb".to_owned()];
        let mapped = |size: u64, change: fn(&mut InPlaceFacts<'_>)| {
            checked(&domain, |facts| {
                facts.targets = &facts.targets[1..];
                facts.from = Some("vda");
                facts.unfinished = None;
                let sizes: &dyn Fn(&str) -> Option<u64> = match size {
                    0 => &|_| Some(GIB - 1),
                    _ => &|_| Some(2 * GIB),
                };
                facts.sizes = sizes;
                change(facts);
            })
        };
        assert_eq!(mapped(2 * GIB, |_| {}), Ok(()));
        let refused = mapped(0, |_| {}).expect_err("too small");
        assert!(matches!(&refused, InPlaceRefusal::TooSmall { disk, .. } if disk == "vdb"));
        assert!(refused.hint().is_some());
        let refused = mapped(2 * GIB, |facts| facts.unfinished = Some(Unfinished::Unknown));
        assert_eq!(refused, Err(InPlaceRefusal::PerhapsInBetween("vda".to_owned())));
        let point = point();
        let facts = InPlaceFacts {
            domain: &domain,
            point: &point,
            targets: &targets,
            from: Some("vda"),
            sizes: &|_| Some(2 * GIB),
            has_saved_memory: false,
            unfinished: None,
        };
        let found = findings(&facts, true);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].code, "disk-larger");
    }
}
