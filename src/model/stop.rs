//! The wish to stop, shared by everything that can take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Asked for by a signal, by a test, or by the failure of what one works for; looked at by every loop that can take long.
///
/// Clones share one state. Once asked for, a stop is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    own: Arc<AtomicI32>,
    parent: Option<Arc<Stop>>,
}

impl Stop {
    /// One that is asked for when this one is, and can be asked for alone.
    pub fn child(&self) -> Stop {
        Stop {
            own: Arc::default(),
            parent: Some(Arc::new(self.clone())),
        }
    }

    /// Ask everything that shares this to stop. `signal` is the number that asked (2 or 15);
    /// the first one stays.
    pub fn request(&self, signal: i32) {
        let _ = self
            .own
            .compare_exchange(0, signal.max(1), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        self.signal().is_some()
    }

    /// The signal that asked for the stop.
    pub fn signal(&self) -> Option<i32> {
        match self.own.load(Ordering::SeqCst) {
            0 => self.parent.as_ref().and_then(|parent| parent.signal()),
            signal => Some(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stops_with_its_parent_and_not_the_other_way_round() {
        let parent = Stop::default();
        let first = parent.child();
        first.request(9);
        assert!(!parent.requested());
        let second = parent.child();
        parent.request(15);
        parent.request(2);
        assert_eq!(second.signal(), Some(15));
        assert_eq!(first.signal(), Some(9));
    }
}
