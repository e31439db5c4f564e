//! Restored disks that were encrypted in the domain. They come back as plain text, or as bytes that
//! may be plain text or cipher text.

use crate::host::xml::{DomainDescription, read_domain};
use crate::model::finding::Finding;
use crate::model::restore_point::{Consistency, RestorePoint};
use crate::ops::stored::StoredPoint;
use crate::repo::SmallFile;

/// The restored disks that were encrypted in the domain.
#[derive(Debug, Default)]
pub(in crate::ops) struct Encrypted {
    /// Disks whose images hold plain text.
    plain: Vec<String>,
    /// Disks for which the restore point does not record whether their images hold plain text or
    /// cipher text.
    unknown: Vec<String>,
}

impl Encrypted {
    /// Finds the encrypted disks among `targets`. If the domain's definition cannot be read, only
    /// disks that the manifest records as encrypted count.
    pub(in crate::ops) fn of(stored: StoredPoint<'_>, targets: &[String]) -> Encrypted {
        let point = stored.point();
        let mut found = Encrypted::default();
        let unrecorded: Vec<&String> = targets
            .iter()
            .filter(
                |target| match point.disk(target).and_then(|disk| disk.decrypted) {
                    Some(true) => {
                        found.plain.push((*target).clone());
                        false
                    }
                    Some(false) => false,
                    None => true,
                },
            )
            .collect();
        if unrecorded.is_empty() {
            return found;
        }
        let described = definition(stored);
        let is_encrypted = |target: &str| {
            let disk = described
                .as_ref()
                .and_then(|domain| domain.disks.iter().find(|disk| disk.target == target));
            disk.is_some_and(|disk| disk.is_encrypted())
        };
        for target in unrecorded.into_iter().filter(|target| is_encrypted(target)) {
            match is_of_a_run(point) {
                true => found.plain.push(target.clone()),
                false => found.unknown.push(target.clone()),
            }
        }
        found
    }

    /// Returns a finding for each of them.
    pub(in crate::ops) fn findings(&self) -> impl Iterator<Item = Finding> {
        let plain = self.plain.iter().map(|disk| {
            let what = format!("disk {disk} was encrypted in the domain, but the restored disk is not");
            Finding::of_disk("restored-decrypted", disk, what)
        });
        let unknown = self.unknown.iter().map(|disk| {
            let what = format!("{}: {}", unclear(disk), HOW_TO_TELL);
            Finding::of_disk("restored-perhaps-encrypted", disk, what)
        });
        plain.chain(unknown)
    }

    /// Returns a disk with which a domain cannot be defined, and the reason; `None` if there is
    /// none.
    pub(in crate::ops) fn refusal(&self) -> Option<(&str, String)> {
        let disk = self.unknown.first()?;
        let what = format!(
            "{}, so a domain that is defined with this disk may see garbage; restore without --define and with --format raw, then {HOW_TO_TELL}",
            unclear(disk)
        );
        Some((disk, what))
    }
}

/// The first of these disks for which it is unknown whether the restore point holds plain text or
/// cipher text.
pub(in crate::ops) fn perhaps_encrypted(stored: StoredPoint<'_>, targets: &[String]) -> Option<String> {
    Encrypted::of(stored, targets).unknown.into_iter().next()
}

/// How the user can find out what a disk holds. The bytes alone prove nothing: a guest can use LUKS
/// on a disk that the host does not encrypt.
const HOW_TO_TELL: &str = "look at the first bytes of the restored disk. \"LUKS\": most likely still \
    encrypted; use the disk with the old <encryption> and secret. Anything else: plain text. (A \
    guest can also use LUKS on a plain disk.)";

fn unclear(disk: &str) -> String {
    format!(
        "disk {disk} was encrypted in the domain. An earlier vmsnap made the restore point while the \
         domain was shut off; the restore point does not record whether the image is plain text or cipher text"
    )
}

/// Whether QEMU read the disks, and so decrypted them. Otherwise an earlier version may have read
/// the cipher text.
fn is_of_a_run(point: &RestorePoint) -> bool {
    let was_saved = |finding: &Finding| finding.code == "managed-save";
    match point.consistency {
        Consistency::Filesystem => true,
        Consistency::Crash => !point.findings.iter().any(was_saved),
        Consistency::Offline => false,
    }
}

fn definition(stored: StoredPoint<'_>) -> Option<DomainDescription> {
    let xml = stored.read(SmallFile::Definition).ok()?;
    read_domain(std::str::from_utf8(&xml).ok()?).ok()
}
