//! The request to stop, shared by everything that can take long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The reason for a request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// SIGINT, as after Ctrl-C.
    Interrupted,
    /// SIGTERM, as from `kill` or systemd.
    Terminated,
    /// SIGHUP, as after the terminal was closed.
    HungUp,
    /// Another part of the same work failed; that failure is the one to report.
    OtherPartFailed,
}

/// A request to stop: by a signal, by a test, or because another part of the same work failed.
///
/// Every loop that can take long checks it. Clones share one state. A stop is never withdrawn.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    own: Arc<OnceLock<StopReason>>,
    exit_holds: Arc<AtomicUsize>,
    parent: Option<Arc<Stop>>,
}

/// Delays a forced exit of the program until it is dropped: a frozen guest has to be thawed first.
#[derive(Debug)]
pub(crate) struct ExitHold(Arc<AtomicUsize>);

impl Drop for ExitHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Stop {
    /// Creates a child: a request to this stop is also one to the child, but not the other way
    /// round.
    pub fn child(&self) -> Stop {
        Stop {
            own: Arc::default(),
            exit_holds: Arc::clone(&self.exit_holds),
            parent: Some(Arc::new(self.clone())),
        }
    }

    /// Delays a forced exit of the program until the result is dropped.
    pub(crate) fn hold_exit(&self) -> ExitHold {
        self.exit_holds.fetch_add(1, Ordering::SeqCst);
        ExitHold(Arc::clone(&self.exit_holds))
    }

    /// Whether a forced exit of the program has to wait.
    pub(crate) fn is_exit_held(&self) -> bool {
        self.exit_holds.load(Ordering::SeqCst) > 0
    }

    /// Asks everything that shares this state to stop. Later requests do not change the reason.
    pub fn request(&self, reason: StopReason) {
        let _ = self.own.set(reason);
    }

    /// Whether a stop was requested.
    pub fn requested(&self) -> bool {
        self.reason().is_some()
    }

    /// The reason for the request to stop; `None` without a request. A child's own reason takes
    /// precedence over that of its parent.
    pub fn reason(&self) -> Option<StopReason> {
        let own = self.own.get().copied();
        own.or_else(|| self.parent.as_ref()?.reason())
    }
}

/// A limit for a wait: a longest time, and a stop that ends it early.
#[derive(Clone, Debug)]
pub struct WaitLimit {
    /// The longest wait.
    pub deadline: Duration,
    /// Ends the wait when it is requested.
    pub stop: Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_hold_counts_everywhere_until_it_is_dropped() {
        let stop = Stop::default();
        let hold = stop.child().hold_exit();
        assert!(stop.is_exit_held());
        drop(hold);
        assert!(!stop.is_exit_held());
    }

    #[test]
    fn a_child_stops_with_its_parent_and_not_the_other_way_round() {
        let parent = Stop::default();
        let first = parent.child();
        first.request(StopReason::OtherPartFailed);
        assert!(!parent.requested());
        let second = parent.child();
        parent.request(StopReason::Terminated);
        parent.request(StopReason::Interrupted);
        assert_eq!(second.reason(), Some(StopReason::Terminated));
        assert_eq!(first.reason(), Some(StopReason::OtherPartFailed));
    }
}
