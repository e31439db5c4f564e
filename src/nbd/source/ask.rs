//! Sends the next requests of a source: status and reads, as many as there is room for.

use super::super::error::{Error, Result};
use super::{ExportSource, LONGEST_STATUS, STATUS_COOKIE, Slot};
use crate::model::block::{Block, CLUSTER, Content, Extent, ExtentKind};
use crate::model::buffer::Buffer;

/// The largest number of requests in flight: QEMU handles no more (`MAX_NBD_REQUESTS` in its
/// `nbd/server.c`).
const MAX_IN_FLIGHT: usize = 16;
/// The length of the longest reads but one, in bytes. A guest's write waits while the disk serves a
/// longer one.
pub(super) const LONGEST_READ: u64 = 1 << 20;
/// The largest number of bytes in flight: while one read is received, the disk serves the next.
/// More made backups no faster, and a guest's writes wait longer for it.
const MAX_BYTES_IN_FLIGHT: u64 = 2 << 20;
/// The largest number of slots in the queue. Zeroes need a slot but no buffer.
const MAX_SLOTS: usize = 256;
/// The status of further ranges is requested while fewer extents than this are planned.
const PLAN_AHEAD: usize = 4096;

impl ExportSource {
    /// Sends as many requests as extents, buffers and slots allow.
    pub(super) fn ask(&mut self) -> Result<()> {
        self.ask_for_status();
        while self.slots.len() < MAX_SLOTS {
            match self.planner.next().map(|next| next.kind) {
                None => break,
                Some(ExtentKind::Zero) => {
                    if let Some(extent) = self.planner.take(u64::MAX / CLUSTER * CLUSTER) {
                        let content = Content::Zero(extent.length);
                        self.slots.push_back(Slot::Ready(Block {
                            offset: extent.offset,
                            content,
                        }));
                    }
                }
                Some(ExtentKind::CleanZero) => {
                    if let Some(extent) = self.planner.take(u64::MAX / CLUSTER * CLUSTER) {
                        self.check_beneath(extent)?;
                    }
                }
                Some(ExtentKind::Data) if !self.ask_for_data() => break,
                Some(ExtentKind::Data) => {}
            }
        }
        self.connection.flush()
    }

    /// Checks that the parent also reads as zero in a range of zeroes that the bitmap does not
    /// mark.
    fn check_beneath(&self, extent: Extent) -> Result<()> {
        let beneath = self.beneath.as_ref();
        match beneath.and_then(|beneath| beneath.other_than_zero(extent.offset, extent.length)) {
            Some(offset) => Err(Error::Distrusted { offset }),
            None => Ok(()),
        }
    }

    fn ask_for_status(&mut self) {
        if self.status.in_flight || self.planner.complete() || self.planner.planned() >= PLAN_AHEAD {
            return;
        }
        let offset = self.planner.position();
        let length = self.status.length.min(self.size - offset);
        self.connection.status(STATUS_COOKIE, offset, length as u32);
        self.status.in_flight = true;
        self.status.length = (self.status.length * 2).min(LONGEST_STATUS);
    }

    /// Queues a read of the next extent or its beginning. Returns `false` if there is no room for
    /// another request.
    fn ask_for_data(&mut self) -> bool {
        if self.in_flight >= MAX_BYTES_IN_FLIGHT {
            return false;
        }
        // Keeps one request free for the status, so that it is sent before all reads have ended.
        let reserved = usize::from(!self.status.in_flight && !self.planner.complete());
        if self.connection.in_flight() + reserved >= MAX_IN_FLIGHT {
            return false;
        }
        let Some((buffer, longest)) = self.room_for_read() else {
            return false;
        };
        let Some(extent) = self.planner.take(longest) else {
            return false;
        };
        let cookie = self.first_slot + self.slots.len() as u64;
        self.connection
            .read(cookie, extent.offset, extent.length as u32, buffer);
        self.in_flight += extent.length;
        self.slots.push_back(Slot::Waiting);
        true
    }

    /// Returns a buffer for the next read, and the longest length of that read.
    ///
    /// One read is longer than all others. QEMU takes the memory for a read from the C library,
    /// which maps new memory unless a longer mapped piece was freed before (`M_MMAP_THRESHOLD` in
    /// mallopt(3)). If all reads had one length, each would cost a page fault per 4 KiB of the
    /// disk, and half of QEMU's processor time. After one longer piece was freed, the other reads
    /// reuse their memory.
    fn room_for_read(&mut self) -> Option<(Buffer, u64)> {
        let is_longer = |longer: &mut u64| self.planner.next().is_some_and(|next| next.length >= *longer);
        if let Some(longer) = self.longer_read.take_if(is_longer) {
            return Some((Buffer::alone(usize::try_from(longer).ok()?), longer));
        }
        let buffer = self.spare.take().or_else(|| self.pool.try_take())?;
        Some((buffer, self.longest_read))
    }
}
