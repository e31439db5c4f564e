//! The mark of a restore in place: until the restore has ended, the domain's disks may be in
//! between two moments.
//!
//! The mark is durable before the first write. It is removed after the last write is durable, or if
//! nothing was written.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cause, Error, Result};
use crate::host::Places;
use crate::repo::{DomainRepository, Note};

/// A restore in place that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreMark {
    /// The domain's UUID.
    pub uuid: String,
    /// The id of the restore point to which the disks are brought back.
    pub restore_point: String,
    /// The targets of the disks that may be in between.
    pub disks: Vec<String>,
    /// When the restore began.
    pub began: Timestamp,
    /// The id of the restore point that holds the state before it, if that was saved.
    pub saved: Option<String>,
    /// The paths of the sockets through which it writes.
    pub places: Places,
}

/// What a repository knows of a restore in place that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundMark {
    /// The mark.
    Mark(RestoreMark),
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

    /// A sentence about the disks.
    pub fn sentence(&self) -> String {
        match self {
            FoundMark::Mark(mark) => format!(
                "the content of {} is in between two moments: a restore in place to {} began at {:.0} and has not ended",
                disks(&mark.disks),
                mark.restore_point,
                mark.began
            ),
            FoundMark::Unreadable(why) => format!(
                "the content of the disks may be in between two moments: a restore in place has not ended, and its mark cannot be read ({why})"
            ),
        }
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
/// It cannot be read now, so that nothing is known.
pub(super) fn read(repository: &dyn DomainRepository) -> Result<Option<FoundMark>> {
    let note = repository.restore_mark();
    Ok(match note.map_err(|error| Error::of(repository.name(), error))? {
        Note::None => None,
        Note::Unusable(why) => Some(FoundMark::Unreadable(why)),
        Note::Text(text) => Some(match serde_json::from_slice(&text) {
            Ok(mark) => FoundMark::Mark(mark),
            Err(error) => {
                let location = repository.restore_mark_location();
                FoundMark::Unreadable(format!("{location}: {error}"))
            }
        }),
    })
}

/// Refuses to take disks in between two moments for a good state.
pub(super) fn refuse(repository: &dyn DomainRepository) -> Result<()> {
    match read(repository)? {
        None => Ok(()),
        Some(found) => Err(Error::of(repository.name(), Cause::InBetween(found.sentence()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_name_disks_and_restore_point() {
        let mark = RestoreMark {
            uuid: "u".to_owned(),
            restore_point: "2026-11-01T02-00-03Z".to_owned(),
            disks: vec!["vda".to_owned(), "vdb".to_owned()],
            began: "2026-11-02T03:04:05Z".parse().expect("a time"),
            saved: None,
            places: Places::default(),
        };
        assert_eq!(
            FoundMark::Mark(mark).sentence(),
            "the content of disks vda, vdb is in between two moments: a restore in place to 2026-11-01T02-00-03Z \
             began at 2026-11-02T03:04:05Z and has not ended"
        );
        let unreadable = FoundMark::Unreadable("/b/.restoring.json: it is empty".to_owned());
        assert!(unreadable.sentence().contains("/b/.restoring.json"));
    }
}
