//! Reads a chain of images as one disk, at any offset.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::compressed::Decompressors;
use super::recent::RecentWindows;
use super::{ChainImage, ChainSource, Layer, Place, Recorded, clip, windows};
use crate::image::pieces::PieceChecks;
use crate::image::qcow2::decompress::ClusterPart;
use crate::image::qcow2::layout::Fault;
use crate::image::qcow2::{Decompressor, Image};
use crate::image::{Error, Result, StoredFile, read_exact_at};
use crate::model::block::CLUSTER;
use crate::model::buffer::BufferPool;
use crate::model::stop::Stop;

/// The disk that a chain of images holds, for reads at any offset.
///
/// Each image needs an open file, so several readers of one disk should share a `ChainDisk`.
/// Lookups ([`ChainDisk::extent_at`]) and comparisons ([`ChainDisk::holds`]) do not check digests,
/// so they read only what the answer needs. Where an image has recorded digests,
/// [`ChainDisk::read_at`] verifies the bytes that it returns, and the tables that lead to them.
#[derive(Debug)]
pub struct ChainDisk {
    /// Newest first; shares its open files with the verified chain.
    unchecked: Mutex<ChainSource>,
    /// A second source for the chain, whose bytes are verified before they are used. It is opened
    /// by the first read.
    checked: OnceLock<Mutex<ChainSource>>,
    images: Vec<DiskImage>,
    /// For the threads that read compressed clusters of the checked chain.
    decompressors: Decompressors,
    size: u64,
    stop: Stop,
}

/// Where a range of the disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainExtent {
    /// Its length in bytes; never 0.
    pub length: u64,
    /// The image from which its data comes, counted from the newest one, which is 0. `None` if the
    /// images mark the range as zero or do not map it.
    pub image: Option<usize>,
}

impl ChainDisk {
    /// Opens a chain, newest image first.
    ///
    /// # Errors
    /// If there is no image, a file is not a readable image, or a stop was requested.
    pub fn open(images: Vec<ChainImage>, stop: Stop) -> Result<Self> {
        let images: Vec<DiskImage> = images.into_iter().map(DiskImage::from).collect();
        let unchecked = ChainSource::of_layers(&images, &stop, DiskImage::unchecked)?;
        Ok(ChainDisk {
            size: unchecked.disk_size(),
            unchecked: Mutex::new(unchecked),
            checked: OnceLock::new(),
            decompressors: Decompressors::default(),
            images,
            stop,
        })
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the extent of the disk at `offset`; `None` at its end and beyond. No digest is
    /// checked.
    ///
    /// # Errors
    /// If a table cannot be read or has an invalid entry, or a stop was requested.
    pub fn extent_at(&self, offset: u64) -> Result<Option<ChainExtent>> {
        self.look_up(&self.unchecked, offset)
    }

    /// Returns the extent of the disk at `offset`; `None` at its end and beyond. If an image has
    /// recorded digests, its tables are verified before they are used.
    ///
    /// # Errors
    /// The errors of [`ChainDisk::read_at`].
    pub fn verified_extent_at(&self, offset: u64) -> Result<Option<ChainExtent>> {
        self.look_up(self.checked()?, offset)
    }

    fn look_up(&self, chain: &Mutex<ChainSource>, offset: u64) -> Result<Option<ChainExtent>> {
        if offset >= self.size {
            return Ok(None);
        }
        let mut chain = lock(chain);
        chain.check_stop()?;
        let (place, length) = chain.place_at(offset)?;
        let image = match place {
            Place::Data { layer, .. } | Place::Compressed { layer, .. } => Some(layer),
            Place::Zero | Place::Absent => None,
        };
        Ok(Some(ChainExtent { length, image }))
    }

    /// Fills `out` with the disk's content from `offset` on; bytes past its end are zero. If an
    /// image has recorded digests, its bytes are verified before they are used. Several threads may
    /// read at the same time.
    ///
    /// # Errors
    /// If an image is damaged, invalid or cannot be read, or a stop was requested. The content of
    /// `out` is then meaningless.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            let here = offset.saturating_add(filled as u64);
            if here >= self.size {
                out[filled..].fill(0);
                break;
            }
            let checked = self.checked()?;
            // The bytes themselves are read and verified without the lock.
            let (place, length, source, part) = {
                let mut chain = lock(checked);
                chain.check_stop()?;
                let (place, length) = chain.place_at(here)?;
                let source = match place {
                    Place::Data { layer, .. } | Place::Compressed { layer, .. } => {
                        chain.layers[layer].checked.clone()
                    }
                    Place::Zero | Place::Absent => None,
                };
                (place, length, source, chain.compressed_part(place))
            };
            let end = filled + clip(length, out.len() - filled);
            match (place, source) {
                (Place::Data { host_offset, .. }, Some(source)) => {
                    source.read_at(&mut out[filled..end], host_offset)?;
                }
                (Place::Compressed { .. }, Some(source)) => {
                    if let Some((part, stored)) = part {
                        let out = &mut out[filled..end];
                        let fetch = |bytes: &mut Vec<u8>| source.read_stored(bytes, &part, stored);
                        let fault = |fault| source.damaged(&part, fault);
                        self.decompressors.read(out, &part, fetch, fault)?;
                    }
                }
                _ => out[filled..end].fill(0),
            }
            filled = end;
        }
        Ok(())
    }

    /// Whether the disk holds these bytes from `offset` on; bytes past its end are zero. No digest
    /// is checked. A compressed cluster that cannot be decompressed counts as a difference.
    ///
    /// # Errors
    /// If an image cannot be read or its tables are invalid, or a stop was requested.
    pub fn holds(&self, bytes: &[u8], offset: u64) -> Result<bool> {
        let mut kept = vec![0; bytes.len().min(CLUSTER as usize)];
        let mut at = offset;
        for expected in bytes.chunks(CLUSTER as usize) {
            let kept = &mut kept[..expected.len()];
            match self.read_unchecked(kept, at) {
                // A wrong byte in a compressed cluster.
                Err(Error::Format {
                    source: Fault::Decompression(_),
                    ..
                }) => return Ok(false),
                other => other?,
            }
            if kept != expected {
                return Ok(false);
            }
            at = at.saturating_add(expected.len() as u64);
        }
        Ok(true)
    }

    fn read_unchecked(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let mut chain = lock(&self.unchecked);
        let mut filled = 0;
        while filled < out.len() {
            chain.check_stop()?;
            let here = offset.saturating_add(filled as u64);
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
                Place::Compressed {
                    layer,
                    cluster,
                    within,
                } => {
                    chain.decompress(&mut out[filled..end], layer, cluster, within)?;
                }
                Place::Zero | Place::Absent => out[filled..end].fill(0),
            }
            filled = end;
        }
        Ok(())
    }

    /// Returns the verified chain, and opens it on first use.
    fn checked(&self) -> Result<&Mutex<ChainSource>> {
        if let Some(checked) = self.checked.get() {
            return Ok(checked);
        }
        let stop = &self.stop;
        let opened = ChainSource::of_layers(&self.images, stop, |image, table_window| {
            image.checked(table_window, stop)
        });
        // A merge may have replaced a header since the chain was opened, which is no damage.
        lock(&self.unchecked).check_unchanged()?;
        let opened = opened?;
        Ok(self.checked.get_or_init(|| Mutex::new(opened)))
    }
}

fn lock(chain: &Mutex<ChainSource>) -> MutexGuard<'_, ChainSource> {
    chain.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChainSource {
    /// Opens a chain for reads at any offset; `open` makes each layer.
    fn of_layers(
        images: &[DiskImage],
        stop: &Stop,
        open: impl Fn(&DiskImage, usize) -> Result<Layer>,
    ) -> Result<ChainSource> {
        if images.is_empty() {
            return Err(Error::EmptyChain);
        }
        let (_, table_window) = windows(images.len());
        let layers = images.iter().map(|image| match stop.requested() {
            true => Err(Error::Stopped),
            false => open(image, table_window),
        });
        Ok(ChainSource {
            layers: layers.collect::<Result<_>>()?,
            pool: BufferPool::new(0, CLUSTER as usize),
            stop: stop.clone(),
            position: 0,
            ended: false,
            last: 0,
            decompressor: Decompressor::default(),
            is_part: false,
        })
    }
}

/// An image of the chain. All its readers share its open file.
#[derive(Debug)]
struct DiskImage {
    file: Arc<StoredFile>,
    path: PathBuf,
    recorded: Option<Recorded>,
}

impl From<ChainImage> for DiskImage {
    fn from(image: ChainImage) -> DiskImage {
        DiskImage {
            file: Arc::new(image.file),
            path: image.path,
            recorded: image.recorded,
        }
    }
}

impl DiskImage {
    /// Opens the image as a layer without verification.
    fn unchecked(&self, table_window: usize) -> Result<Layer> {
        let image = Image::open_guarded(Arc::clone(&self.file), self.path.clone(), table_window, None)?;
        Ok(self.layer(image, None))
    }

    /// Opens the image as a layer whose bytes are verified before they are used, if digests were
    /// recorded.
    fn checked(&self, table_window: usize, stop: &Stop) -> Result<Layer> {
        let new = |recorded: &Recorded| {
            let (file, path) = (Arc::clone(&self.file), self.path.clone());
            PieceChecks::new(file, path, recorded.clone(), stop.clone()).map(Arc::new)
        };
        let checks = self.recorded.as_ref().map(new).transpose()?;
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let image = Image::open_guarded(file, path, table_window, checks.clone())?;
        let file = CheckedFile {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            checks,
            recent: RecentWindows::default(),
        };
        Ok(self.layer(image, Some(Arc::new(file))))
    }

    fn layer(&self, image: Image, checked: Option<Arc<CheckedFile>>) -> Layer {
        Layer {
            image,
            whole: None,
            checked,
            run: None,
            unreleased: 0,
        }
    }
}

/// The bytes of an image. If it has recorded digests, a byte is returned only after its piece was
/// verified.
#[derive(Debug)]
pub(super) struct CheckedFile {
    file: Arc<StoredFile>,
    path: PathBuf,
    checks: Option<Arc<PieceChecks>>,
    recent: RecentWindows,
}

impl CheckedFile {
    /// Reads the `length` bytes that are stored of a compressed cluster.
    fn read_stored(&self, bytes: &mut Vec<u8>, part: &ClusterPart, length: usize) -> Result<()> {
        bytes.resize(length, 0);
        self.read_at(bytes, part.cluster.start)
    }

    /// The error of a compressed cluster that is damaged although its digest is right.
    fn damaged(&self, part: &ClusterPart, source: Fault) -> Error {
        Error::Format {
            path: self.path.clone(),
            offset: part.cluster.start,
            source,
        }
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        if let Some(checks) = &self.checks {
            checks.check(offset..end)?;
        }
        read_exact_at(&self.file, &self.path, out, offset)?;
        self.recent.note(self.file.file(), offset..end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use crate::image::samples::{C, bytes_of, compressed_image, data, image, link, memory_file, options};

    /// A chain of compressed images, whose disk also has clusters that cannot be compressed.
    fn compressed_chain() -> (Vec<File>, Vec<ChainImage>, Vec<u8>) {
        let mut bytes = vec![0; 60 * C];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        for cluster in bytes.chunks_mut(C).step_by(3) {
            cluster.iter_mut().for_each(|byte| *byte %= 5);
        }
        let size = bytes.len() as u64;
        let (oldest, full) = compressed_image(options(size, None), [data(0, &bytes)]);
        let above = compressed_image(options(size, Some("oldest")), [data(7 * CLUSTER, &[9; C])]);
        let (newest, incremental) = above;
        bytes[7 * C..8 * C].fill(9);
        let links = vec![link(&newest, Some(&incremental)), link(&oldest, Some(&full))];
        (vec![newest, oldest], links, bytes)
    }

    /// A chain of a full image and an image that replaces one cluster: several pieces long.
    fn chain() -> (Vec<File>, Vec<ChainImage>, Vec<u8>) {
        let mut bytes = vec![0; 40 * C];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let size = bytes.len() as u64;
        let (oldest, full) = image(options(size, None), [data(0, &bytes)]);
        let (newest, incremental) = image(options(size, Some("oldest")), [data(7 * CLUSTER, &[9; C])]);
        bytes[7 * C..8 * C].fill(9);
        let links = vec![link(&newest, Some(&incremental)), link(&oldest, Some(&full))];
        (vec![newest, oldest], links, bytes)
    }

    /// As a merge does where locks do not keep it apart from readers.
    #[test]
    fn a_header_replaced_before_the_first_read_is_no_damage() {
        let (files, links, bytes) = chain();
        let disk = ChainDisk::open(links, Stop::default()).expect("it opens");
        let size = (bytes.len() as u64 + CLUSTER).to_be_bytes();
        files[1].write_all_at(&size, 24).expect("it can be written");
        let error = disk.read_at(&mut [0; 10], 0).expect_err("it has changed");
        assert!(matches!(error, Error::Changed { .. }), "{error}");
    }

    #[test]
    fn several_threads_read_what_was_written() {
        for (_, links, bytes) in [chain(), compressed_chain()] {
            read_by_threads(links, &bytes);
        }
    }

    fn read_by_threads(links: Vec<ChainImage>, bytes: &[u8]) {
        let disk = ChainDisk::open(links, Stop::default()).expect("it opens");
        std::thread::scope(|scope| {
            for start in 0..4 {
                let disk = &disk;
                scope.spawn(move || {
                    let mut out = vec![1; C + 700];
                    for offset in (start * 300..bytes.len()).step_by(C - 511) {
                        disk.read_at(&mut out, offset as u64).expect("it is sound");
                        let there = out.len().min(bytes.len() - offset);
                        assert!(out[..there] == bytes[offset..offset + there], "at {offset}");
                        assert!(out[there..].iter().all(|byte| *byte == 0), "beyond the end");
                    }
                });
            }
        });
    }

    #[test]
    fn no_damaged_byte_of_any_image_is_handed_out() {
        for (files, links, bytes) in [chain(), compressed_chain()] {
            hands_out_no_damage(&files, links, &bytes);
        }
    }

    fn hands_out_no_damage(files: &[File], links: Vec<ChainImage>, bytes: &[u8]) {
        let recorded: Vec<_> = links.into_iter().map(|link| link.recorded).collect();
        let contents: Vec<Vec<u8>> = files.iter().map(bytes_of).collect();
        for (number, content) in contents.iter().enumerate() {
            for place in (0..content.len()).step_by(content.len() / 37) {
                let images = contents.iter().enumerate().map(|(other, content)| {
                    let mut content = content.clone();
                    if other == number {
                        content[place] ^= 0x11;
                    }
                    ChainImage {
                        file: memory_file(&content).into(),
                        path: "sample.qcow2".into(),
                        recorded: recorded[other].clone(),
                    }
                });
                // A damaged header may be rejected when the chain is opened.
                let Ok(disk) = ChainDisk::open(images.collect(), Stop::default()) else {
                    continue;
                };
                let mut refused = 0;
                for offset in (0..bytes.len()).step_by(C) {
                    let mut out = vec![0; C];
                    match disk.read_at(&mut out, offset as u64) {
                        Ok(()) => assert!(out == bytes[offset..offset + C], "byte {place} of image {number}"),
                        Err(_) => refused += 1,
                    }
                }
                assert!(refused > 0, "byte {place} of image {number} was not missed");
            }
        }
    }

    #[test]
    fn stored_bytes_are_compared_without_being_handed_out() {
        for (_, links, bytes) in [chain(), compressed_chain()] {
            compares(links, &bytes);
        }
    }

    fn compares(links: Vec<ChainImage>, bytes: &[u8]) {
        let disk = ChainDisk::open(links, Stop::default()).expect("it opens");
        assert!(
            disk.holds(&bytes[5 * C..9 * C + 100], 5 * CLUSTER)
                .expect("it reads")
        );
        assert!(!disk.holds(&bytes[..C], CLUSTER).expect("it reads"));
        assert!(
            disk.holds(&[0; 10], disk.size()).expect("it reads"),
            "zero beyond the end"
        );
    }

    #[test]
    fn extents_tell_which_image_holds_what() {
        let (_, links, _) = chain();
        let disk = ChainDisk::open(links, Stop::default()).expect("it opens");
        let extent = |offset| disk.extent_at(offset).expect("the extent is known");
        assert_eq!(
            extent(0),
            Some(ChainExtent {
                length: 7 * CLUSTER,
                image: Some(1)
            })
        );
        assert_eq!(extent(7 * CLUSTER + 5).expect("within").image, Some(0));
        assert_eq!(extent(40 * CLUSTER), None);
    }

    /// An entry of a table that has become zero turns data into a hole.
    #[test]
    fn a_verified_extent_does_not_call_damaged_data_zero() {
        let (files, links, _) = chain();
        let content = bytes_of(&files[1]);
        let recorded: Vec<_> = links.into_iter().map(|link| link.recorded).collect();
        let mut lied = 0;
        // Tables follow the data; their entries are eight bytes long.
        for entry in (0..content.len()).step_by(8) {
            if content[entry] != 0x80 || content[entry + 1..entry + 4] != [0; 3] {
                continue;
            }
            let mut damaged = content.clone();
            damaged[entry..entry + 8].fill(0);
            let contents = [bytes_of(&files[0]), damaged];
            let images = contents
                .iter()
                .zip(&recorded)
                .map(|(content, recorded)| ChainImage {
                    file: memory_file(content).into(),
                    path: "sample.qcow2".into(),
                    recorded: recorded.clone(),
                });
            let disk = ChainDisk::open(images.collect(), Stop::default()).expect("it opens");
            for offset in (0..disk.size()).step_by(C) {
                let is_zero = |extent: Option<ChainExtent>| extent.expect("within").image.is_none();
                // Without a check, the entry is believed.
                lied += usize::from(disk.extent_at(offset).is_ok_and(is_zero));
                assert!(
                    !disk.verified_extent_at(offset).is_ok_and(is_zero),
                    "entry at {entry}"
                );
            }
        }
        assert!(lied > 0, "no entry of a table was found");
    }

    #[test]
    fn a_wish_to_stop_ends_a_read() {
        let (_, links, _) = chain();
        let stop = Stop::default();
        let disk = ChainDisk::open(links, stop.clone()).expect("it opens");
        stop.request(crate::model::stop::StopReason::Terminated);
        assert!(matches!(disk.read_at(&mut [0; 10], 0), Err(Error::Stopped)));
    }
}
