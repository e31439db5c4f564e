//! Buffers that are used again: memory that is new costs the kernel more time than the work on it.

use std::sync::{Mutex, PoisonError};

/// Buffers that nobody uses at the moment.
#[derive(Debug)]
pub(super) struct Spare {
    most: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Spare {
    /// Creates a collection that keeps at most `most` buffers.
    pub(super) fn new(most: usize) -> Spare {
        Spare {
            most,
            buffers: Mutex::default(),
        }
    }

    /// A buffer with any content and any capacity.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.pop().unwrap_or_default()
    }

    /// Keeps a buffer, unless there are enough.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < self.most {
            buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_up_to_a_number() {
        let spare = Spare::new(2);
        assert_eq!(spare.take().capacity(), 0);
        for _ in 0..3 {
            spare.give(Vec::with_capacity(100));
        }
        assert!(spare.take().capacity() >= 100);
        assert!(spare.take().capacity() >= 100);
        assert_eq!(spare.take().capacity(), 0);
    }
}
