//! What a run writes with: the data, and the session that protects what the run relies on.

use jiff::Timestamp;

use super::data::{Data, Needed, Writing};
use super::error::{PackError, Result};
use crate::model::stop::Stop;

/// The data for writing one restore point, with the session that protects it. Dropping it gives up
/// the session.
pub(super) struct WriteAccess {
    data: Data,
    /// `None` after the session was ended or left.
    writing: Option<Writing>,
    location: String,
}

impl WriteAccess {
    /// Begins a session, and then reads the condemned packs and the index. The caller must list
    /// restore points only afterwards.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn begin(data: Data, host: &str, location: &str, stop: &Stop) -> Result<WriteAccess> {
        Ok(WriteAccess {
            writing: Some(data.begin_writing(host, stop)?),
            location: location.to_owned(),
            data,
        })
    }

    /// The data.
    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    /// Uploads everything, and checks that a restore point that needs this data may be committed.
    /// The commit must follow at once. `parent` is the time of the object of the parent, or the
    /// newest of several.
    ///
    /// # Errors
    /// [`PackError::SessionLost`] if the session has ended; others if an upload or the store fails.
    pub(super) fn check(&self, needed: &Needed, parent: Option<Timestamp>, stop: &Stop) -> Result<()> {
        self.data.flush(stop)?;
        let writing = self.writing.as_ref().ok_or_else(|| self.lost())?;
        self.data.check_before_commit(writing, needed, parent, stop)
    }

    /// Ends the session after the commit of the restore point at this location.
    ///
    /// # Errors
    /// [`PackError::CommittedAfterSession`] if the session had ended before the commit, so that the
    /// restore point may lack data. If the store fails, the session ends later by its age.
    pub(super) fn end(&mut self, point: &str) -> Result<()> {
        // The restore point exists, so a stop does not matter.
        let ended = self.writing.take().map(|writing| writing.end(&Stop::default()));
        match ended {
            None | Some(Err(PackError::SessionLost { .. })) => Err(PackError::CommittedAfterSession {
                point: point.to_owned(),
            }),
            Some(_) => Ok(()),
        }
    }

    /// Leaves the session until it ends by its age, because a commit that seems to have failed may
    /// still take effect.
    pub(super) fn leave(&mut self) {
        self.writing = None;
    }

    fn lost(&self) -> PackError {
        PackError::SessionLost {
            location: self.location.clone(),
        }
    }
}

impl Drop for WriteAccess {
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            writing.give_up();
        }
    }
}
