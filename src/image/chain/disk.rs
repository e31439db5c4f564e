//! A chain of images as one disk, read anywhere. No digest is checked: what is read is compared with something else.

use super::{ChainImage, ChainSource, Place, clip};
use crate::image::Result;
use crate::model::block::CLUSTER;
use crate::model::buffer::BufferPool;
use crate::model::clusters::ClusterSet;
use crate::model::stop::Stop;

/// The disk that a chain of images holds.
#[derive(Debug)]
pub struct ChainDisk(ChainSource);

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
        Ok(ChainDisk(ChainSource::open(unchecked.collect(), pool, stop)?))
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.0.disk_size()
    }

    /// The clusters of which some image holds data.
    ///
    /// # Errors
    /// When a table cannot be read, or the wish to stop came.
    pub fn data(&mut self) -> Result<ClusterSet> {
        let mut data = ClusterSet::new(self.size());
        let mut at = 0;
        while at < data.disk_size() {
            self.0.check_stop()?;
            let (place, length) = self.0.place_at(at)?;
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
    pub fn data_from(&mut self, offset: u64) -> Result<Option<u64>> {
        let mut at = offset - offset % CLUSTER;
        while at < self.size() {
            self.0.check_stop()?;
            match self.0.place_at(at)? {
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
    pub fn read(&mut self, out: &mut [u8], offset: u64) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            let here = offset + filled as u64;
            if here >= self.size() {
                out[filled..].fill(0);
                break;
            }
            let (place, length) = self.0.place_at(here)?;
            let end = filled + clip(length, out.len() - filled);
            match place {
                Place::Data { layer, host_offset } => {
                    self.0.layers[layer].read(&mut out[filled..end], host_offset)?;
                }
                Place::Zero => out[filled..end].fill(0),
            }
            filled = end;
        }
        Ok(())
    }
}
