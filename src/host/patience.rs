//! Waiting for something that tells nobody when it happens: a file that appears, a process that ends.

use std::thread;
use std::time::{Duration, Instant};

/// Asks `probe` every `step` until it has an answer; `None` when there was none before `deadline` passed.
/// It is asked at least once.
pub fn until<T>(deadline: Duration, step: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return Some(answer);
        }
        let left = deadline.checked_sub(started.elapsed())?;
        thread::park_timeout(step.min(left));
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
