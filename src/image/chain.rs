//! Reads a chain of images as one disk: each byte comes from the newest image that has it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::qcow2::decompress::ClusterPart;
use super::qcow2::{CompressedCluster, Decompressor, Image, MappedRun, Mapping};
use super::sequential::Sequential;
use super::{Error, Result, StoredFile, cache};
use crate::model::block::{Block, BlockError, BlockSource, CLUSTER, Content};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::stop::Stop;

mod compressed;
mod disk;
mod recent;

pub use super::recorded::Recorded;
pub use disk::{ChainDisk, ChainExtent};

use disk::CheckedFile;

/// Memory for all images of a chain together, in bytes; their tables may take as much again.
const WINDOWS: usize = 32 * 1024 * 1024;
/// Limits of one image's share. In a very long chain each image takes the lower limit, and together
/// they exceed the total.
const WINDOW: std::ops::RangeInclusive<usize> = 64 * 1024..=1024 * 1024;
const TABLE_WINDOW: std::ops::RangeInclusive<usize> = 16 * 1024..=64 * 1024;
/// How much of an image is read before its cached pages are dropped, in bytes.
const STRETCH: u64 = 8 * 1024 * 1024;

/// One image's share of the memory: for data, and for tables.
fn windows(images: usize) -> (usize, usize) {
    let share = WINDOWS / images;
    (
        share.clamp(*WINDOW.start(), *WINDOW.end()),
        share.clamp(*TABLE_WINDOW.start(), *TABLE_WINDOW.end()),
    )
}

/// An image of a chain, opened for reading.
#[derive(Debug)]
pub struct ChainImage {
    /// The open file.
    pub file: StoredFile,
    /// Its path, for messages only.
    pub path: PathBuf,
    /// The recorded length and digests. Without them the image is read but not verified.
    pub recorded: Option<Recorded>,
}

impl ChainImage {
    /// Drops the cached pages, so that the next reads come from the disk.
    pub fn forget_cached(&self) {
        cache::forget(self.file.file());
    }
}

/// The disk that a chain of images holds, as blocks in the disk's order.
///
/// [`ChainSource::open`] makes a source whose blocks cover all of the disk. Ranges that no image
/// maps are zero. So is the range past the end of a smaller image in the middle: older images do
/// not show through there, as in QEMU.
///
/// Images with a recorded length and digest are read completely, and their digests are compared
/// before the source ends. So the blocks are verified only after the source has returned `None`
/// without an earlier error. To verify a chain without writing it, take all blocks and drop them.
#[derive(Debug)]
pub struct ChainSource {
    /// Newest first.
    layers: Vec<Layer>,
    pool: BufferPool,
    stop: Stop,
    position: u64,
    ended: bool,
    /// The layer that was read last.
    last: usize,
    decompressor: Decompressor,
    /// Whether ranges that no image maps are skipped.
    is_part: bool,
}

/// The content of the disk at an offset, looked up in all images.
#[derive(Clone, Copy, Debug)]
enum Place {
    Data {
        layer: usize,
        host_offset: u64,
    },
    Compressed {
        layer: usize,
        cluster: CompressedCluster,
        within: u64,
    },
    Zero,
    /// No image maps it, and the images are not the whole chain.
    Absent,
}

impl ChainSource {
    /// Opens consecutive images of a chain, newest first. The blocks cover only the clusters that
    /// these images map, at least in part.
    ///
    /// The disk must not have shrunk: each image of the chain has at least the size of the older
    /// ones. Otherwise like [`ChainSource::open`].
    ///
    /// # Errors
    /// The errors of [`ChainSource::open`].
    ///
    /// # Panics
    /// As [`ChainSource::open`].
    pub fn open_part(images: Vec<ChainImage>, pool: BufferPool, stop: Stop) -> Result<Self> {
        let mut source = ChainSource::open(images, pool, stop)?;
        source.is_part = true;
        Ok(source)
    }

    /// Opens a chain, newest image first. Data blocks are at most as long as a buffer of `pool`,
    /// whose capacity must be at least [`CLUSTER`].
    ///
    /// # Errors
    /// If there is no image, a file is not a readable image, its length differs from the recorded
    /// one, or a stop was requested.
    ///
    /// # Panics
    /// If the pool's buffers are smaller than a cluster.
    pub fn open(images: Vec<ChainImage>, pool: BufferPool, stop: Stop) -> Result<Self> {
        assert!(
            pool.buffer_capacity() as u64 >= CLUSTER,
            "a buffer holds at least a cluster"
        );
        if images.is_empty() {
            return Err(Error::EmptyChain);
        }
        let (window, table_window) = windows(images.len());
        let layers = images
            .into_iter()
            .map(|image| {
                if stop.requested() {
                    Err(Error::Stopped)
                } else {
                    Layer::open(image, window, table_window, &stop)
                }
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ChainSource {
            layers,
            pool,
            stop,
            position: 0,
            ended: false,
            last: 0,
            decompressor: Decompressor::default(),
            is_part: false,
        })
    }

    fn disk_size(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.image.size())
    }

    /// Returns where the content of the disk at `offset` is, and how many bytes from there on, at
    /// least, are in the same place.
    fn place_at(&mut self, offset: u64) -> Result<(Place, u64)> {
        let mut length = self.disk_size() - offset;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let Some(run) = layer.run_at(offset)? else {
                // Past the end of this image the disk is zero, whatever the older images hold.
                // Those beneath a part hold nothing there.
                break;
            };
            length = length.min(run.length);
            match run.mapping {
                Mapping::Data { host_offset } => {
                    let layer = index;
                    return Ok((Place::Data { layer, host_offset }, length));
                }
                Mapping::Compressed { cluster, within } => {
                    let place = Place::Compressed {
                        layer: index,
                        cluster,
                        within,
                    };
                    return Ok((place, length));
                }
                Mapping::Zero => return Ok((Place::Zero, length)),
                Mapping::Unallocated => {}
            }
        }
        match self.is_part {
            true => Ok((Place::Absent, length)),
            false => Ok((Place::Zero, length)),
        }
    }

    fn next(&mut self) -> Result<Option<Block>> {
        self.skip_absent()?;
        let offset = self.position;
        if offset >= self.disk_size() {
            self.check_digests()?;
            return Ok(None);
        }
        let zeroes = self.zeroes_from(offset)?;
        let content = if zeroes > 0 {
            Content::Zero(zeroes)
        } else {
            Content::Data(self.data_from(offset)?)
        };
        let block = Block { offset, content };
        self.position += block.length();
        Ok(Some(block))
    }

    /// Goes on to the next cluster that an image maps, at least in part.
    fn skip_absent(&mut self) -> Result<()> {
        if self.is_part {
            self.position = self.absent_until(self.position, self.disk_size())?;
        }
        Ok(())
    }

    /// Returns the end of the clusters that no image maps, from the start of a cluster on. Looks no
    /// further than `limit`, which is the end of a cluster or of the disk.
    fn absent_until(&mut self, offset: u64, limit: u64) -> Result<u64> {
        let mut end = offset;
        while end < limit {
            self.check_stop()?;
            match self.place_at(end)? {
                (Place::Absent, length) => end += length,
                // A foreign image may have smaller clusters than ours.
                _ => return Ok(end - end % CLUSTER),
            }
        }
        Ok(end)
    }

    /// Returns the number of zero bytes from the start of a cluster on, in whole clusters or up to
    /// the disk's end.
    fn zeroes_from(&mut self, offset: u64) -> Result<u64> {
        let size = self.disk_size();
        let mut end = offset;
        while end < size {
            self.check_stop()?;
            match self.place_at(end)? {
                (Place::Zero, length) => end += length,
                (Place::Data { .. } | Place::Compressed { .. } | Place::Absent, _) => {
                    end -= end % CLUSTER;
                    break;
                }
            }
        }
        Ok(end - offset)
    }

    /// Reads a buffer of data from the start of a cluster on. It ends before the next cluster that
    /// is all zero.
    fn data_from(&mut self, offset: u64) -> Result<Buffer> {
        let mut buffer = self.buffer()?;
        let whole = buffer.capacity() as u64 / CLUSTER * CLUSTER;
        let limit = whole.min(self.disk_size() - offset) as usize;
        buffer.set_len(limit);
        let mut filled = 0;
        while filled < limit {
            self.check_stop()?;
            let here = offset + filled as u64;
            let to_boundary = CLUSTER - here % CLUSTER;
            match self.place_at(here)? {
                (Place::Data { layer, host_offset }, length) => {
                    let count = clip(length, limit - filled);
                    self.last = layer;
                    self.layers[layer].read(&mut buffer[filled..filled + count], host_offset)?;
                    filled += count;
                }
                (
                    Place::Compressed {
                        layer,
                        cluster,
                        within,
                    },
                    length,
                ) => {
                    let count = clip(length, limit - filled);
                    self.last = layer;
                    self.decompress(&mut buffer[filled..filled + count], layer, cluster, within)?;
                    filled += count;
                }
                (Place::Absent, length) => {
                    let end = (here + CLUSTER).min(self.disk_size());
                    if to_boundary == CLUSTER && self.absent_until(here, end)? >= end {
                        break;
                    }
                    // The image that has the cluster ends within it, or has smaller clusters.
                    let count = clip(length.min(to_boundary), limit - filled);
                    buffer[filled..filled + count].fill(0);
                    filled += count;
                }
                (Place::Zero, length) => {
                    // A foreign image may have smaller clusters than ours: a block must not end
                    // within one of ours.
                    let at_boundary = to_boundary == CLUSTER;
                    if filled > 0 && at_boundary && length >= CLUSTER.min((limit - filled) as u64) {
                        break;
                    }
                    let count = clip(length.min(to_boundary), limit - filled);
                    buffer[filled..filled + count].fill(0);
                    filled += count;
                }
            }
        }
        buffer.set_len(filled);
        Ok(buffer)
    }

    /// Fills `out` with a part of a compressed cluster of a layer.
    fn decompress(
        &mut self,
        out: &mut [u8],
        layer: usize,
        cluster: CompressedCluster,
        within: u64,
    ) -> Result<()> {
        let of = &mut self.layers[layer];
        let part = of.part(layer, cluster, within);
        let path = of.image.path().to_owned();
        let fetch = |stored: &mut Vec<u8>| {
            stored.resize(of.image.stored_length(cluster), 0);
            of.read(stored, cluster.start)
        };
        let fault = |source| Error::Format {
            path,
            offset: cluster.start,
            source,
        };
        self.decompressor.read(out, &part, fetch, fault)
    }

    fn buffer(&self) -> Result<Buffer> {
        loop {
            self.check_stop()?;
            if let Some(buffer) = self.pool.take_within(Duration::from_millis(100)) {
                return Ok(buffer);
            }
        }
    }

    fn check_digests(&mut self) -> Result<()> {
        self.layers
            .iter_mut()
            .filter_map(|layer| layer.whole.as_mut())
            .try_for_each(Sequential::finish)?;
        self.check_unchanged()
    }

    /// Checks that no header was replaced since the chain was opened. Where locks do not keep
    /// readers and merges apart, a merge may have continued an image.
    fn check_unchanged(&self) -> Result<()> {
        self.layers
            .iter()
            .try_for_each(|layer| layer.image.check_unchanged())
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.requested() {
            Err(Error::Stopped)
        } else {
            Ok(())
        }
    }
}

impl BlockSource for ChainSource {
    fn size(&self) -> u64 {
        self.disk_size()
    }

    fn next_block(&mut self) -> std::result::Result<Option<Block>, BlockError> {
        if self.ended {
            return Ok(None);
        }
        let next = self.next();
        self.ended = !matches!(next, Ok(Some(_)));
        Ok(next?)
    }
}

impl Drop for ChainSource {
    fn drop(&mut self) {
        // Only the last image read can still have read-ahead in progress.
        let last = self.layers.get_mut(self.last);
        if let Some(whole) = last.and_then(|layer| layer.whole.as_mut()) {
            whole.break_off();
        }
    }
}

/// One image, with the last run that was looked up in it.
#[derive(Debug)]
struct Layer {
    image: Image,
    /// Reads and verifies the whole file, if it is read front to back and has a recorded digest.
    whole: Option<Sequential>,
    /// Reads and verifies pieces, if the file is read at random places and has to be verified.
    checked: Option<Arc<CheckedFile>>,
    /// The start of the last run, and the run.
    run: Option<(u64, MappedRun)>,
    /// Bytes read from an image without verification since its pages were dropped.
    unreleased: u64,
}

impl Layer {
    fn open(source: ChainImage, window: usize, table_window: usize, stop: &Stop) -> Result<Layer> {
        let ChainImage { file, path, recorded } = source;
        // A wrong length explains any other fault, so it is reported first.
        if let Some(recorded) = &recorded {
            let actual = file
                .length()
                .map_err(|error| Error::of_file("examine", &path, error))?;
            if actual != recorded.bytes {
                return Err(Error::Length {
                    path,
                    actual,
                    expected: recorded.bytes,
                });
            }
        }
        let image = Image::open_with(file, path, table_window)?;
        let whole = recorded.map(|recorded| {
            let (file, path) = (image.file().clone(), image.path().to_owned());
            Sequential::new(file, path, recorded.bytes, recorded.blake3, window, stop.clone())
        });
        Ok(Layer {
            image,
            whole,
            checked: None,
            run: None,
            unreleased: 0,
        })
    }

    /// Returns the image's mapping from `offset` on, or `None` past its end.
    fn run_at(&mut self, offset: u64) -> Result<Option<MappedRun>> {
        if let Some((start, run)) = self.run
            && let Some(passed) = offset.checked_sub(start)
            && passed < run.length
        {
            return Ok(Some(run.after(passed)));
        }
        let run = self.image.run_at(offset)?;
        self.run = run.map(|run| (offset, run));
        Ok(run)
    }

    /// A part of a compressed cluster of this layer, which has that number.
    fn part(&self, number: usize, cluster: CompressedCluster, within: u64) -> ClusterPart {
        ClusterPart {
            image: number,
            size: self.image.header().cluster_size(),
            cluster,
            within,
        }
    }

    fn read(&mut self, out: &mut [u8], host_offset: u64) -> Result<()> {
        match &mut self.whole {
            Some(whole) => whole.read_at(out, host_offset),
            None => {
                self.image.read_at(out, host_offset)?;
                self.unreleased += out.len() as u64;
                if self.unreleased >= STRETCH {
                    self.unreleased = 0;
                    // Pages that were read ahead stay: they are read next.
                    self.image.forget_until(host_offset + out.len() as u64);
                }
                Ok(())
            }
        }
    }
}

fn clip(length: u64, limit: usize) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX).min(limit)
}

#[cfg(test)]
mod tests;
