//! Repeats calls of the object store that failed for a reason that may pass.

use std::time::{Duration, Instant};

use crate::model::stop::{Stop, WaitLimit};
use crate::repo::pack::objects::{ObjectErrorKind, ObjectResult, SMALL};
use crate::wait;

/// The wait after the first failure. It doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// The longest wait between two calls.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// The most calls.
const MOST_CALLS: u32 = 8;

/// When no further call is started.
const END: Duration = Duration::from_secs(15 * 60);

/// How often a wait looks whether a stop was requested.
const STEP: Duration = Duration::from_millis(50);

/// The slowest connection for which large objects still arrive in time, in bytes per second.
const SLOWEST: u64 = 64 * 1024;

/// The time limit for one call that transfers this number of bytes.
pub(super) fn limit(bytes: u64, stop: &Stop) -> WaitLimit {
    WaitLimit {
        deadline: SMALL + Duration::from_secs(bytes / SLOWEST),
        stop: stop.clone(),
    }
}

/// Repeats the call until it succeeds, or fails in a way that a repetition would not change.
///
/// # Errors
/// The error of the last call.
pub(super) fn retry<T>(stop: &Stop, mut call: impl FnMut() -> ObjectResult<T>) -> ObjectResult<T> {
    let started = Instant::now();
    let mut wait = FIRST_WAIT;
    for number in 1.. {
        match call() {
            Err(error) if number < MOST_CALLS && may_pass(&error.kind) && started.elapsed() < END => {
                let stopped = || stop.requested().then_some(());
                wait::until(wait, STEP, stopped);
                wait = (2 * wait).min(LONGEST_WAIT);
            }
            result => return result,
        }
    }
    call()
}

/// Whether a failure may pass by itself.
fn may_pass(kind: &ObjectErrorKind) -> bool {
    matches!(
        kind,
        ObjectErrorKind::TimedOut(_) | ObjectErrorKind::Unexpected(_) | ObjectErrorKind::Failed
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::pack::objects::ObjectError;

    #[test]
    fn only_failures_that_may_pass_are_repeated() {
        let stop = Stop::default();
        let failed = |kind| -> ObjectResult<u32> { Err(ObjectError::new("read", "x".to_owned(), kind)) };
        let mut calls = 0;
        let answer = retry(&stop, || {
            calls += 1;
            if calls < 3 {
                failed(ObjectErrorKind::Failed)
            } else {
                Ok(calls)
            }
        });
        assert_eq!(answer.expect("the third call answers"), 3);
        let mut calls = 0;
        let answer = retry(&stop, || {
            calls += 1;
            failed(ObjectErrorKind::Refused)
        });
        assert!(answer.is_err() && calls == 1);
        let mut calls = 0;
        let answer = retry(&stop, || -> ObjectResult<u32> {
            calls += 1;
            let read_only = std::io::ErrorKind::ReadOnlyFilesystem.into();
            Err(ObjectError::io("create", "x".to_owned(), read_only))
        });
        assert!(answer.is_err() && calls == 1);
    }
}
