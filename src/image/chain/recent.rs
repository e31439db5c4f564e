//! Keeps the page cache small while a file is read at random places.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::image::cache;

/// The unit in which pages stay or go, in bytes: that of the digests, which are verified as a
/// whole.
const WINDOW: u64 = 1 << 20;

/// The number of windows whose pages stay.
const KEPT: usize = 64;

/// The windows of a file that were read last. The pages of all others are dropped.
///
/// To drop all pages before an offset would take milliseconds, again and again, and hit pages that
/// are needed next.
#[derive(Debug, Default)]
pub(super) struct RecentWindows(Mutex<VecDeque<u64>>);

impl RecentWindows {
    /// Records a read, and drops the pages of windows that are no longer recent.
    pub(super) fn note(&self, file: &File, range: Range<u64>) {
        for window in range.start / WINDOW..range.end.div_ceil(WINDOW) {
            if let Some(old) = self.push(window) {
                cache::forget_range(file, old * WINDOW, WINDOW);
            }
        }
    }

    /// Makes a window the newest one. Returns the one that falls behind.
    fn push(&self, window: u64) -> Option<u64> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.back() == Some(&window) {
            return None;
        }
        if let Some(place) = kept.iter().position(|kept| *kept == window) {
            kept.remove(place);
        }
        kept.push_back(window);
        (kept.len() > KEPT).then(|| kept.pop_front()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_windows_read_last_stay() {
        let recent = RecentWindows::default();
        for window in 0..KEPT as u64 {
            assert_eq!(recent.push(window), None);
        }
        assert_eq!(recent.push(0), None, "it becomes the newest one");
        assert_eq!(recent.push(1000), Some(1));
        assert_eq!(recent.push(1000), None);
        assert_eq!(recent.push(1), Some(2));
    }
}
