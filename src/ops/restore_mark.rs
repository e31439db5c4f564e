//! The mark of a restore in place: until the restore has ended, the domain's disks may be in
//! between two moments.
//!
//! The mark is durable before the disks are opened, and says durably that it writes before the
//! first write. It is removed after the last write is durable, or if nothing was written.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cause, Error, Result};
use crate::host::{Host, Places};
use crate::model::in_place::InPlaceRefusal;
use crate::model::text::shown;
use crate::repo::{DomainRepository, DomainWriter, Note, Repository};

/// A restore in place that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreMark {
    /// The domain's name; empty in marks of earlier versions.
    #[serde(default)]
    pub domain: String,
    /// The domain's UUID.
    pub uuid: String,
    /// The id of the restore point to which the disks are restored.
    pub restore_point: String,
    /// The domain of the restore point, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// The targets of the disks that may be in between.
    pub disks: Vec<String>,
    /// When the restore began.
    pub began: Timestamp,
    /// The id of the restore point that holds the state of the disks before the restore, if that
    /// state was saved.
    pub saved: Option<String>,
    /// The paths of the sockets through which the restore writes.
    pub places: Places,
    /// Whether the restore may have written to the disks. Marks of earlier versions lack this
    /// field, and count as `true`.
    #[serde(default = "yes")]
    pub writing: bool,
}

fn yes() -> bool {
    true
}

/// What a repository knows about a restore in place that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundMark {
    /// The mark.
    Mark(Box<RestoreMark>),
    /// There is a mark, but it cannot be read, for this reason.
    Unreadable(String),
}

impl FoundMark {
    /// The mark, if it can be read.
    pub fn mark(&self) -> Option<&RestoreMark> {
        match self {
            FoundMark::Mark(mark) => Some(mark),
            FoundMark::Unreadable(_) => None,
        }
    }

    /// Whether the disks may be only partly restored. A restore that has only compared the disks
    /// has not changed them.
    pub fn is_writing(&self) -> bool {
        self.mark().is_none_or(|mark| mark.writing)
    }

    /// Whether the mark belongs to a domain with another UUID.
    pub(super) fn is_of_another(&self, uuid: &str) -> bool {
        self.mark().is_some_and(|mark| mark.uuid != uuid)
    }

    /// A sentence about the disks.
    pub fn sentence(&self) -> String {
        match self {
            FoundMark::Mark(mark) if !mark.writing => format!(
                "a restore in place to {} began at {:.0}, and has not written to {}",
                point_of(mark),
                mark.began,
                disks(&mark.disks)
            ),
            FoundMark::Mark(mark) => format!(
                "the content of {} is only partly restored: a restore in place to {} began at {:.0} and has not ended",
                disks(&mark.disks),
                point_of(mark),
                mark.began
            ),
            FoundMark::Unreadable(why) => format!(
                "the content of the disks may be only partly restored: a restore in place has not ended, and its mark cannot be read ({why})"
            ),
        }
    }
}

/// The restore point in words.
fn point_of(mark: &RestoreMark) -> String {
    match &mark.of {
        None => mark.restore_point.clone(),
        Some(domain) => format!("{} of domain '{}'", mark.restore_point, shown(domain)),
    }
}

fn disks(targets: &[String]) -> String {
    match targets {
        [one] => format!("disk {one}"),
        several => format!("disks {}", several.join(", ")),
    }
}

/// Reads the mark of a domain, if it has one.
///
/// # Errors
/// The repository cannot be read now, so nothing is known about a mark.
pub(super) fn read(repository: &dyn DomainRepository) -> Result<Option<FoundMark>> {
    let note = repository.restore_mark();
    Ok(match note.map_err(|error| Error::of(repository.name(), error))? {
        Note::None => None,
        Note::Unusable(why) => Some(FoundMark::Unreadable(why)),
        Note::Text(text) => Some(match serde_json::from_slice(&text) {
            Ok(mark) => FoundMark::Mark(Box::new(mark)),
            Err(error) => {
                let location = repository.restore_mark_location();
                FoundMark::Unreadable(format!("{location}: {error}"))
            }
        }),
    })
}

/// Returns an error if the disks may be only partly restored. A mark of a restore that has not
/// written anything is ignored.
///
/// A renamed domain is found by its UUID, as long as its mark is in the same repository.
pub(super) fn refuse(repo: &dyn Repository, repository: &dyn DomainRepository, uuid: &str) -> Result<()> {
    if let Some(renamed) = of_former_name(repo, repository.name(), uuid)? {
        return Err(Error::of(repository.name(), renamed));
    }
    match read(repository)? {
        Some(found) if found.is_writing() => {
            let mut what = found.sentence();
            if found.is_of_another(uuid) {
                what.push_str(" (it was a domain with the same name and another UUID)");
            }
            Err(Error::of(repository.name(), Cause::InBetween(what)))
        }
        _ => Ok(()),
    }
}

/// Returns an error if the domain has a mark under a former name, found by its UUID.
pub(super) fn of_former_name(
    repo: &dyn Repository,
    name: &str,
    uuid: &str,
) -> Result<Option<InPlaceRefusal>> {
    let marks = repo.restore_marks().map_err(|error| Error::of(name, error))?;
    let mut parsed = marks
        .iter()
        .filter_map(|text| serde_json::from_slice::<RestoreMark>(text).ok());
    let former = |mark: &RestoreMark| mark.writing && mark.uuid == uuid && mark.domain != name;
    // A mark without a name may be the domain's own, which is found without this search.
    let found = parsed.find(|mark| former(mark) && !mark.domain.is_empty());
    Ok(found.map(|mark| InPlaceRefusal::Renamed {
        former: mark.domain.clone(),
        sentence: FoundMark::Mark(Box::new(mark)).sentence(),
    }))
}

/// Removes the mark of a dead restore that has not written anything, after ending the processes
/// that still hold images open for it. The lock shows that the restore is dead.
pub(super) fn clear_unwritten(
    repository: &dyn DomainRepository,
    locked: &dyn DomainWriter,
    host: &dyn Host,
) -> Result<()> {
    let failed = |cause: Cause| Error::of(repository.name(), cause);
    let found = read(repository)?;
    let Some(mark) = found
        .as_ref()
        .and_then(FoundMark::mark)
        .filter(|mark| !mark.writing)
    else {
        return Ok(());
    };
    host.clear_places(&mark.places)
        .map_err(|error| failed(error.into()))?;
    locked.remove_restore_mark().map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_name_disks_and_restore_point() {
        let mark = RestoreMark {
            domain: "vm1".to_owned(),
            uuid: "u".to_owned(),
            restore_point: "2026-11-01T02-00-03Z".to_owned(),
            of: None,
            disks: vec!["vda".to_owned(), "vdb".to_owned()],
            began: "2026-11-02T03:04:05Z".parse().expect("a time"),
            saved: None,
            places: Places::default(),
            writing: true,
        };
        assert_eq!(
            FoundMark::Mark(Box::new(mark.clone())).sentence(),
            "the content of disks vda, vdb is only partly restored: a restore in place to 2026-11-01T02-00-03Z \
             began at 2026-11-02T03:04:05Z and has not ended"
        );
        let comparing = RestoreMark {
            writing: false,
            ..mark.clone()
        };
        assert_eq!(
            FoundMark::Mark(Box::new(comparing)).sentence(),
            "a restore in place to 2026-11-01T02-00-03Z began at 2026-11-02T03:04:05Z, and has not written to disks vda, vdb"
        );
        let of_another = RestoreMark {
            of: Some("vm2".to_owned()),
            ..mark
        };
        let sentence = FoundMark::Mark(Box::new(of_another)).sentence();
        assert!(
            sentence.contains("to 2026-11-01T02-00-03Z of domain 'vm2' began"),
            "{sentence}"
        );
        let unreadable = FoundMark::Unreadable("/b/.restoring.json: it is empty".to_owned());
        assert!(unreadable.sentence().contains("/b/.restoring.json"));
    }

    #[test]
    fn a_mark_of_an_earlier_version_counts_as_writing() {
        let mark: RestoreMark = serde_json::from_str(
            r#"{"uuid": "u", "restorePoint": "p", "disks": ["vda"], "began": "2026-11-02T03:04:05Z", "saved": null,
                "places": {"sockets": [], "scratch": [], "ownDirs": []}}"#,
        )
        .expect("a mark");
        assert!(mark.writing && FoundMark::Mark(Box::new(mark)).is_writing());
        assert!(FoundMark::Unreadable(String::new()).is_writing());
    }
}
