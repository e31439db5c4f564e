//! Takes the lock of a domain's folder, and waits for another run if requested.

use std::time::{Duration, Instant};

use super::{Cause, Context, Error, Event, Monitor, Result};
use crate::model::stop::Stop;
use crate::repo::{DomainRepository, DomainWriter, RepoError};
use crate::wait;

/// Time between two tries.
const STEP: Duration = Duration::from_millis(100);

/// Takes the lock of the domain's folder; waits up to `wait` while another run holds the lock, and
/// reports the wait once.
///
/// # Errors
/// The lock is still held after that time, the user asked to stop, or the folder cannot be used.
pub(super) fn lock(
    repository: &dyn DomainRepository,
    wait: Duration,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Box<dyn DomainWriter>> {
    let domain = repository.name();
    let began = Instant::now();
    let mut is_reported = false;
    loop {
        let (location, holder) = match repository.try_lock() {
            Err(RepoError::Locked { location, holder, .. }) => (location, holder),
            other => return other.map_err(|error| Error::of(domain, error)),
        };
        let left = wait.saturating_sub(began.elapsed());
        if left.is_zero() {
            let locked = RepoError::Locked {
                location,
                holder,
                waited: wait,
            };
            return Err(Error::of(domain, locked));
        }
        if !is_reported {
            monitor.event(Event::Waits {
                domain,
                holder: &holder,
                at_most: wait,
            });
            is_reported = true;
        }
        if let Some(reason) = stop.reason() {
            return Err(Error::of(domain, Cause::Stopped(reason)));
        }
        wait::pause(STEP.min(left));
    }
}

/// Takes the lock, with the monitor and the request to stop of `context`.
pub(super) fn lock_for(
    repository: &dyn DomainRepository,
    wait: Duration,
    context: &Context,
) -> Result<Box<dyn DomainWriter>> {
    lock(repository, wait, context.monitor, &context.stop)
}
