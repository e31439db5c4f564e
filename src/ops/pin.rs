//! Pins restore points, so that they are not removed, and unpins them.

use std::time::Duration;

use jiff::Timestamp;

use super::each::Judged;
use super::restore::choose;
use super::{Cause, Error, Monitor, Result, lock};
use crate::model::pin::Pin;
use crate::model::stop::Stop;
use crate::repo::{RepoError, Repository};

/// A change to the pin of a restore point.
#[derive(Clone, Debug)]
pub enum PinRequest {
    /// Pin it with this note, which may be empty. The new pin replaces an existing one.
    Pin {
        /// The reason in the user's words; at most [`Pin::LONGEST_NOTE`] bytes.
        note: String,
        /// The current time.
        now: Timestamp,
    },
    /// Unpin it.
    Unpin,
}

/// The environment of a change to a pin.
pub struct Means<'a> {
    /// The repository.
    pub repo: &'a dyn Repository,
    /// How long to wait for another run that writes to the domain's folder.
    pub wait: Duration,
    /// Receives progress and findings.
    pub monitor: &'a dyn Monitor,
    /// A request to stop.
    pub stop: &'a Stop,
}

/// The result of pinning or unpinning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The id of the restore point.
    pub id: String,
    /// The pin of the restore point now; `None` if it is not pinned.
    pub pin: Option<Pin>,
    /// Whether it was pinned before.
    pub was_pinned: bool,
}

impl Judged for Outcome {}

/// Pins or unpins a restore point. `at` selects the restore point, as for a restore.
///
/// # Errors
/// There is no such restore point, it cannot be read, the note is too long, the lock is held, or
/// the pin cannot be written or removed. A pin that cannot be read can be removed, but not
/// replaced.
pub fn change_pin(domain: &str, at: &str, change: &PinRequest, means: &Means<'_>) -> Result<Outcome> {
    let failed = |error: RepoError| Error::of(domain, error);
    let repository = means.repo.domain(domain).map_err(failed)?;
    // Fails for an unknown restore point before a lock is created.
    choose(domain, &repository.history().map_err(failed)?, at)?;
    let locked = lock::lock(repository.as_ref(), means.wait, means.monitor, means.stop)?;
    let history = locked.history().map_err(failed)?;
    let point = choose(domain, &history, at)?;
    let id = point.point.id.clone();
    let gone = || {
        Error::of(
            domain,
            Cause::NoSuchRestorePoint(format!("restore point {id} is missing")),
        )
    };
    let kept = history.get(&id).ok_or_else(gone)?;
    let pin = match change {
        PinRequest::Unpin => {
            locked.unpin(kept).map_err(failed)?;
            None
        }
        PinRequest::Pin { note, .. } if note.len() > Pin::LONGEST_NOTE => {
            let what = format!(
                "the note has {} bytes, but at most {} bytes are allowed",
                note.len(),
                Pin::LONGEST_NOTE
            );
            return Err(Error::of(domain, Cause::Usage(what)));
        }
        PinRequest::Pin { note, now } => {
            let pin = Pin {
                since: Some(*now),
                note: note.clone(),
            };
            locked.pin(kept, &pin).map_err(failed)?;
            Some(pin)
        }
    };
    Ok(Outcome {
        was_pinned: point.pin.is_some(),
        id,
        pin,
    })
}
