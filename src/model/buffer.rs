//! Reused, aligned memory, bounded in number: what a copy needs does not grow with the disk.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Start address and length of every buffer are multiples of this, in bytes, so that files can be read and written past the page cache.
pub const ALIGNMENT: usize = 4096;

/// Memory of a fixed capacity whose start is aligned to [`ALIGNMENT`]. It goes back to its pool when dropped.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
    home: Option<Arc<Shelf>>,
}

impl Buffer {
    /// A buffer that belongs to no pool. `capacity` is in bytes and is rounded up to [`ALIGNMENT`].
    pub fn alone(capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(ALIGNMENT);
        let memory = vec![0; capacity + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Buffer {
            memory,
            start,
            length: capacity,
            home: None,
        }
    }

    /// How many bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.memory.len() - ALIGNMENT
    }

    /// Sets how many bytes it holds.
    ///
    /// # Panics
    /// When `length` is beyond the capacity: that is a mistake of the caller, never of the data.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "a buffer cannot grow");
        self.length = length;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {})", self.length, self.capacity())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            let memory = std::mem::take(&mut self.memory);
            home.put((memory, self.start));
        }
    }
}

struct Shelf {
    free: Mutex<VecDeque<(Vec<u8>, usize)>>,
    returned: Condvar,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Vec<u8>, usize)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, memory: (Vec<u8>, usize)) {
        self.lock().push_back(memory);
        self.returned.notify_one();
    }
}

/// A fixed number of buffers of one size. Clones share the buffers.
///
/// The pool is what bounds a copy: a reader that outruns its writer finds it empty and waits.
#[derive(Clone)]
pub struct BufferPool {
    shelf: Arc<Shelf>,
    capacity: usize,
    count: usize,
}

impl BufferPool {
    /// `count` buffers of `capacity` bytes each (rounded up to [`ALIGNMENT`]). Memory is taken from the system as it is first used.
    pub fn new(count: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(ALIGNMENT);
        let mut free = VecDeque::with_capacity(count);
        for _ in 0..count {
            free.push_back((Vec::new(), 0));
        }
        BufferPool {
            shelf: Arc::new(Shelf {
                free: Mutex::new(free),
                returned: Condvar::new(),
            }),
            capacity,
            count,
        }
    }

    /// How many bytes one buffer holds.
    pub fn buffer_capacity(&self) -> usize {
        self.capacity
    }

    /// How many buffers there are in all, those in use included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// A buffer, if one is free now. Its content is whatever its last user left there.
    pub fn try_take(&self) -> Option<Buffer> {
        let taken = self.shelf.lock().pop_back();
        taken.map(|memory| self.dress(memory))
    }

    /// A buffer as soon as one is free, or none after `patience`, so that the caller can look whether it is to stop.
    pub fn take_within(&self, patience: Duration) -> Option<Buffer> {
        let guard = self.shelf.lock();
        let (mut guard, _) = self
            .shelf
            .returned
            .wait_timeout_while(guard, patience, |free| free.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let taken = guard.pop_back();
        drop(guard);
        taken.map(|memory| self.dress(memory))
    }

    fn dress(&self, (mut memory, mut start): (Vec<u8>, usize)) -> Buffer {
        if memory.is_empty() {
            memory = vec![0; self.capacity + ALIGNMENT];
            start = memory.as_ptr().align_offset(ALIGNMENT);
        }
        Buffer {
            memory,
            start,
            length: self.capacity,
            home: Some(Arc::clone(&self.shelf)),
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} x {})", self.count, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_returns_to_its_pool() {
        let pool = BufferPool::new(1, 65536);
        let first = pool.try_take().expect("one buffer is free");
        assert_eq!(first.as_ptr().align_offset(ALIGNMENT), 0);
        assert!(pool.try_take().is_none(), "the pool is bounded");
        drop(first);
        assert!(pool.take_within(Duration::ZERO).is_some());
    }

    #[test]
    fn a_shortened_buffer_is_handed_out_whole_again() {
        let pool = BufferPool::new(1, 8192);
        let mut buffer = pool.try_take().expect("one buffer is free");
        buffer.set_len(100);
        assert_eq!(buffer.len(), 100);
        drop(buffer);
        assert_eq!(pool.try_take().expect("it came back").len(), 8192);
    }
}
