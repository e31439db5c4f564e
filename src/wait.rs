//! Waiting for something that gives no notice: a file that appears, a process that ends, a lock that becomes free.
//!
//! The only place where a thread sleeps. Whatever gives notice is waited for at its socket, channel or condition.

use std::thread;
use std::time::{Duration, Instant};

/// Lets the thread sleep for this long.
#[allow(clippy::disallowed_methods, reason = "the one home of sleeps")]
pub(crate) fn pause(duration: Duration) {
    thread::sleep(duration);
}

/// Asks `probe` every `step` until it has an answer; `None` when there was none before `deadline` passed.
/// It is asked at least once.
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
