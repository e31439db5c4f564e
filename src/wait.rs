//! Waits for events that give no notice: a file appears, a process ends, a lock becomes free.
//!
//! No other module sleeps. Code that waits for an event with a notice blocks on the socket, channel
//! or condition variable.

use std::thread;
use std::time::{Duration, Instant};

/// Suspends the calling thread for this long.
#[allow(clippy::disallowed_methods, reason = "the one home of sleeps")]
pub(crate) fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// Calls `probe` every `step` until it returns an answer, and at least once.
///
/// Returns `None` if there was no answer before `deadline` passed.
pub(crate) fn until<T>(
    deadline: Duration,
    step: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return Some(answer);
        }
        let left = deadline.checked_sub(started.elapsed())?;
        pause(step.min(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answer_ends_the_waiting() {
        let mut asked = 0;
        let answer = until(Duration::from_secs(60), Duration::from_micros(1), || {
            asked += 1;
            (asked == 3).then_some("here")
        });
        assert_eq!((answer, asked), (Some("here"), 3));
    }

    #[test]
    fn condition_is_checked_at_least_once() {
        let mut asked = 0;
        let answer: Option<()> = until(Duration::ZERO, Duration::from_secs(1), || {
            asked += 1;
            None
        });
        assert!(answer.is_none());
        assert!(asked >= 1);
    }
}
