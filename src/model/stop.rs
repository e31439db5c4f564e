//! The wish to stop, shared by everything that can take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Asked for by a signal, by a test, or by the failure of what one works for; looked at by every loop that can take long.
///
/// Clones share one state. Once asked for, a stop is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    own: Arc<AtomicI32>,
    debts: Arc<AtomicUsize>,
    parent: Option<Arc<Stop>>,
}

/// Something that must be put right before the program may end by force: a guest whose file systems are frozen.
#[derive(Debug)]
pub struct Debt(Arc<AtomicUsize>);

impl Drop for Debt {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Stop {
    /// One that is asked for when this one is, and can be asked for alone.
    pub fn child(&self) -> Stop {
        Stop {
            own: Arc::default(),
            debts: Arc::clone(&self.debts),
            parent: Some(Arc::new(self.clone())),
        }
    }

    /// Until the debt is dropped, whoever ends the program by force waits for it.
    pub fn owe(&self) -> Debt {
        self.debts.fetch_add(1, Ordering::SeqCst);
        Debt(Arc::clone(&self.debts))
    }

    /// Whether something has to be put right first.
    pub fn is_owing(&self) -> bool {
        self.debts.load(Ordering::SeqCst) > 0
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
    fn a_debt_is_everybodys_until_it_is_dropped() {
        let stop = Stop::default();
        let debt = stop.child().owe();
        assert!(stop.is_owing());
        drop(debt);
        assert!(!stop.is_owing());
    }

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
