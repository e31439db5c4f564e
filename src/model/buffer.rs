//! Aligned memory that is reused and limited: the memory of a copy does not depend on the disk's
//! size.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memmap2::{Advice, MmapMut};

/// Alignment of the start address and the capacity of every buffer, in bytes. It allows files to be
/// read and written past the page cache.
pub(crate) const ALIGNMENT: usize = 4096;

/// Length of a huge page in bytes, on machines whose usual pages have 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// Memory of a fixed capacity whose start is aligned to [`ALIGNMENT`]. It returns to its pool when
/// it is dropped.
pub struct Buffer {
    memory: Memory,
    length: usize,
    home: Option<Arc<Shelf>>,
}

impl Buffer {
    /// A buffer that belongs to no pool. `capacity` is in bytes and is rounded up to [`ALIGNMENT`].
    pub fn alone(capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(ALIGNMENT);
        Buffer {
            memory: Memory::new(capacity),
            length: capacity,
            home: None,
        }
    }

    /// The number of bytes that the buffer can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.memory.capacity
    }

    /// Sets the number of bytes that the buffer holds.
    ///
    /// # Panics
    /// If `length` exceeds the capacity, which is a bug in the caller.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "a buffer cannot grow");
        self.length = length;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.bytes()[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..self.length]
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
            home.put(std::mem::take(&mut self.memory));
        }
    }
}

/// Aligned memory. The system provides it when it is first used.
#[derive(Default)]
struct Memory {
    room: Room,
    /// The start of the aligned part within the room, and its length, both in bytes.
    start: usize,
    capacity: usize,
}

/// An allocation that is larger than needed, so that it contains an aligned start.
enum Room {
    /// In huge pages, if the kernel has some. The kernel fills a large buffer, hashing reads it,
    /// and the writer writes it in place; each of them looks up every page. A huge page counts as
    /// resident in whole.
    Mapped(MmapMut),
    Plain(Vec<u8>),
}

impl Default for Room {
    fn default() -> Self {
        Room::Plain(Vec::new())
    }
}

impl Memory {
    /// `capacity` is a multiple of [`ALIGNMENT`].
    fn new(capacity: usize) -> Memory {
        let is_large = capacity > HUGE_PAGE / 2;
        let length = capacity.next_multiple_of(HUGE_PAGE) + HUGE_PAGE;
        let mapped = is_large.then(|| MmapMut::map_anon(length).ok());
        let (mut room, alignment) = match mapped.flatten() {
            Some(mapped) => {
                // Without huge pages in the kernel, the usual ones do.
                let _ = mapped.advise(Advice::HugePage);
                (Room::Mapped(mapped), HUGE_PAGE)
            }
            None => (Room::Plain(vec![0; capacity + ALIGNMENT]), ALIGNMENT),
        };
        let start = room.bytes_mut().as_ptr().align_offset(alignment);
        Memory {
            room,
            start,
            capacity,
        }
    }

    fn bytes(&self) -> &[u8] {
        let bytes = match &self.room {
            Room::Mapped(mapped) => &mapped[..],
            Room::Plain(plain) => plain,
        };
        &bytes[self.start..self.start + self.capacity]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.room.bytes_mut()[self.start..self.start + self.capacity]
    }
}

impl Room {
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Room::Mapped(mapped) => mapped,
            Room::Plain(plain) => plain,
        }
    }
}

struct Shelf {
    free: Mutex<VecDeque<Memory>>,
    returned: Condvar,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Memory>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, memory: Memory) {
        self.lock().push_back(memory);
        self.returned.notify_one();
    }
}

/// A fixed number of buffers of one size. Clones share the buffers.
///
/// The pool limits a copy: a reader that is faster than its writer finds it empty and waits.
#[derive(Clone)]
pub struct BufferPool {
    shelf: Arc<Shelf>,
    capacity: usize,
    count: usize,
}

impl BufferPool {
    /// Makes `count` buffers of `capacity` bytes each (rounded up to [`ALIGNMENT`]). The system
    /// provides the memory when it is first used.
    pub fn new(count: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(ALIGNMENT);
        let mut free = VecDeque::with_capacity(count);
        for _ in 0..count {
            free.push_back(Memory::default());
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

    /// The number of bytes that one buffer holds.
    pub(crate) fn buffer_capacity(&self) -> usize {
        self.capacity
    }

    /// The number of buffers, including those in use.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes a buffer if one is free now. It may still hold the bytes of its last user.
    pub(crate) fn try_take(&self) -> Option<Buffer> {
        let taken = self.shelf.lock().pop_back();
        taken.map(|memory| self.dress(memory))
    }

    /// Takes a buffer as soon as one is free. Returns `None` after `longest`, so that the caller
    /// can check whether to stop.
    pub fn take_within(&self, longest: Duration) -> Option<Buffer> {
        let guard = self.shelf.lock();
        let (mut guard, _) = self
            .shelf
            .returned
            .wait_timeout_while(guard, longest, |free| free.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let taken = guard.pop_back();
        drop(guard);
        taken.map(|memory| self.dress(memory))
    }

    fn dress(&self, memory: Memory) -> Buffer {
        let is_new = memory.capacity == 0;
        Buffer {
            memory: if is_new {
                Memory::new(self.capacity)
            } else {
                memory
            },
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
    fn large_buffer_is_aligned_to_huge_pages_and_keeps_its_bytes() {
        for capacity in [
            HUGE_PAGE - ALIGNMENT,
            HUGE_PAGE,
            HUGE_PAGE + ALIGNMENT,
            3 * HUGE_PAGE,
        ] {
            let mut buffer = Buffer::alone(capacity);
            assert_eq!(buffer.as_ptr().align_offset(HUGE_PAGE), 0);
            assert_eq!(buffer.len(), capacity);
            assert!(buffer.iter().all(|byte| *byte == 0), "nobody else's bytes");
            buffer.fill(7);
            buffer.set_len(10);
            assert_eq!(*buffer, [7; 10]);
        }
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
