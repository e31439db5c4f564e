//! The wish to stop, shared by everything that can take long.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Asked for by a signal (or a test), looked at by every loop that can take long.
///
/// Clones share one state. Once asked for, a stop is never taken back.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicI32>);

impl Stop {
    /// Ask everything that shares this to stop. `signal` is the number that asked (2 or 15);
    /// the first one stays.
    pub fn request(&self, signal: i32) {
        let _ = self
            .0
            .compare_exchange(0, signal.max(1), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        self.signal().is_some()
    }

    /// The signal that asked for the stop.
    pub fn signal(&self) -> Option<i32> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal),
        }
    }
}
