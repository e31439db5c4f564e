//! A disk of a set with random access.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::stack::{Origin, Stack};
use crate::model::block::BlockError;
use crate::repo::{DiskReader, Stored, StoredExtent};

/// How many bytes are compared at a time.
const COMPARED: usize = 64 << 10;

/// A disk of a set. Only one reader at a time can read it.
#[derive(Debug)]
pub(super) struct SetDisk {
    size: u64,
    stack: Mutex<Stack>,
}

impl SetDisk {
    /// Prepares random access to the disk. All files with a checksum are read from end to end
    /// first, because a checksum is about the whole file.
    ///
    /// # Errors
    /// A file is damaged or cannot be read, or a stop was requested.
    pub(super) fn new(mut stack: Stack) -> Result<SetDisk, BlockError> {
        for layer in stack.layers_mut() {
            layer.make_index()?;
        }
        Ok(SetDisk {
            size: stack.size(),
            stack: Mutex::new(stack),
        })
    }

    fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskReader for SetDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError> {
        if offset >= self.size {
            return Ok(None);
        }
        let segment = self.stack().segment(offset, usize::MAX)?;
        let stored = match segment.origin {
            Origin::Layer(depth, _) if !segment.origin.is_zero() => Stored::Data { depth },
            _ => Stored::Zero,
        };
        Ok(Some(StoredExtent {
            offset,
            length: segment.end - offset,
            stored,
        }))
    }

    fn verified_extent_at(&self, offset: u64) -> Result<Option<StoredExtent>, BlockError> {
        // Files with a checksum were read when the disk was opened. Others have nothing to verify.
        self.extent_at(offset)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError> {
        self.stack().fill(out, offset)
    }

    fn holds(&self, bytes: &[u8], offset: u64) -> Result<bool, BlockError> {
        let mut buffer = vec![0; COMPARED.min(bytes.len())];
        let mut at = offset;
        for part in bytes.chunks(COMPARED) {
            let out = &mut buffer[..part.len()];
            match self.read_at(out, at) {
                Ok(()) if out == part => {}
                Ok(()) => return Ok(false),
                Err(error) if error.kind == crate::model::block::BlockErrorKind::Damaged => return Ok(false),
                Err(error) => return Err(error),
            }
            at = at.saturating_add(part.len() as u64);
        }
        Ok(true)
    }
}
