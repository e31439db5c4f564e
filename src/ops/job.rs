//! Whether a begun job can still be relied on.

use super::{Cause, Error};
use crate::host::{BackupJob, JobHealth};

/// Why a job cannot be relied on any more, if it cannot.
pub fn trouble(domain: &str, job: &dyn BackupJob) -> Option<Error> {
    match job.health() {
        Ok(JobHealth::Good) => None,
        Ok(JobHealth::ScratchFull(disk)) => Some(Error::of(domain, Cause::ScratchFull(disk))),
        Ok(JobHealth::Gone(why)) => Some(Error::of(domain, Cause::JobLost(why))),
        // A question that could not be asked says nothing about the job: the data path tells by itself.
        Err(_) => None,
    }
}
