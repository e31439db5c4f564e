//! A chain of images as one disk, read anywhere. No digest is checked: what is read is compared with something else.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ChainImage, ChainSource, Place, clip};
use crate::image::Result;
use crate::model::block::{Beneath, CLUSTER};
use crate::model::buffer::BufferPool;
use crate::model::clusters::ClusterSet;
use crate::model::stop::Stop;

/// The disk that a chain of images holds. Each image takes an open file, so it is shared where several want to look at one disk.
#[derive(Debug)]
pub struct ChainDisk {
    chain: Mutex<ChainSource>,
    size: u64,
}

impl ChainDisk {
    /// Opens a chain, newest image first.
    ///
    /// # Errors
    /// When there is no image, or one cannot be read as such.
    pub fn open(images: Vec<ChainImage>, stop: Stop) -> Result<Self> {
        let unchecked = images.into_iter().map(|image| ChainImage {
            recorded: None,
            ..image
        });
        let pool = BufferPool::new(0, CLUSTER as usize);
        let chain = ChainSource::open(unchecked.collect(), pool, stop)?;
        Ok(ChainDisk {
            size: chain.disk_size(),
            chain: Mutex::new(chain),
        })
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn chain(&self) -> MutexGuard<'_, ChainSource> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clusters of which some image holds data.
    ///
    /// # Errors
    /// When a table cannot be read, or the wish to stop came.
    pub fn data(&self) -> Result<ClusterSet> {
        let mut chain = self.chain();
        let mut data = ClusterSet::new(self.size);
        let mut at = 0;
        while at < self.size {
            chain.check_stop()?;
            let (place, length) = chain.place_at(at)?;
            if let Place::Data { .. } = place {
                data.add(at, length);
            }
            at += length;
        }
        Ok(data)
    }

    /// The first cluster from that of `offset` on of which some image holds data, by its offset in bytes.
    ///
    /// # Errors
    /// When a table cannot be read, or the wish to stop came.
    pub fn data_from(&self, offset: u64) -> Result<Option<u64>> {
        let mut chain = self.chain();
        let mut at = offset - offset % CLUSTER;
        while at < self.size {
            chain.check_stop()?;
            match chain.place_at(at)? {
                (Place::Data { .. }, _) => return Ok(Some(at - at % CLUSTER)),
                (Place::Zero, length) => at += length,
            }
        }
        Ok(None)
    }

    /// Fills `out` with what the disk holds from `offset` on; what lies behind its end is zero.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let mut chain = self.chain();
        let mut filled = 0;
        while filled < out.len() {
            let here = offset + filled as u64;
            if here >= self.size {
                out[filled..].fill(0);
                break;
            }
            let (place, length) = chain.place_at(here)?;
            let end = filled + clip(length, out.len() - filled);
            match place {
                Place::Data { layer, host_offset } => {
                    chain.layers[layer].read(&mut out[filled..end], host_offset)?;
                }
                Place::Zero => out[filled..end].fill(0),
            }
            filled = end;
        }
        Ok(())
    }
}

impl Beneath for ChainDisk {
    fn other_than_zero(&self, offset: u64, length: u64) -> Option<u64> {
        let mut chain = self.chain();
        let end = offset.saturating_add(length).min(self.size);
        let mut at = offset;
        while at < end {
            match chain.place_at(at) {
                Ok((Place::Zero, run)) => at = at.saturating_add(run),
                // A table that cannot be read hides what lies there.
                Ok((Place::Data { .. }, _)) | Err(_) => return Some(at),
            }
        }
        None
    }
}
