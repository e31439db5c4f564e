//! Writes a disk as the guest sees it, into a sparse file or onto a block device.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};

use super::order::Order;
use super::{Error, Result, zero};
use crate::io::DirectFile;
use crate::model::block::{Block, BlockError, BlockSink, Content, ImageFile, Written};
use crate::model::buffer::Buffer;
use crate::model::stop::Stop;

/// The largest number of bytes zeroed before the writer checks for a stop request.
const ZERO_STEP: u64 = 64 * 1024 * 1024;
/// The largest number of zero bytes written at once, where the target cannot zero a range.
const ZERO_WRITE: usize = 1024 * 1024;

/// The target of a raw disk.
enum Target {
    /// A new, empty file. Zeroes stay holes.
    File(Box<dyn ImageFile>),
    /// A block device with old content. Every byte of the disk is written or zeroed; bytes past the
    /// disk's end stay.
    Device(DirectFile),
}

impl Target {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Target::File(file) => file.write_at(bytes, offset),
            Target::Device(file) => file.write_any(bytes, offset),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        match self {
            Target::File(file) => file.sync(),
            Target::Device(file) => file.sync(),
        }
    }
}

/// Writes blocks as a raw disk.
pub struct RawWriter {
    /// `None` once it is finished.
    target: Option<Target>,
    path: PathBuf,
    /// The end of the disk, or of the zeroes after it.
    end: u64,
    order: Order,
    /// A buffer of zeroes, once the device has turned out not to zero ranges by itself.
    zeroes: Option<Buffer>,
    written: Written,
    stop: Stop,
}

impl RawWriter {
    /// Begins a disk of `size` bytes in a new, empty file. `path` is for messages only.
    ///
    /// # Errors
    /// If the file cannot have this length.
    pub fn into_file(
        mut file: Box<dyn ImageFile>,
        path: impl Into<PathBuf>,
        size: u64,
        stop: Stop,
    ) -> Result<Self> {
        let path = path.into();
        file.set_len(size)
            .map_err(|error| Error::of_file("set the length of", &path, error))?;
        Ok(RawWriter::new(Target::File(file), path, size, size, stop))
    }

    /// Begins a disk of `size` bytes on a block device that is open for reading and writing. `path`
    /// is for messages only.
    ///
    /// # Errors
    /// If the device is too small or cannot be examined. Nothing has been written then.
    pub fn onto_device(mut device: File, path: impl Into<PathBuf>, size: u64, stop: Stop) -> Result<Self> {
        let path = path.into();
        // The length of a block device is the offset of its end; its metadata says 0.
        let length = device
            .seek(SeekFrom::End(0))
            .map_err(|error| Error::of_file("examine", &path, error))?;
        if length < size {
            return Err(Error::TooSmall {
                path,
                actual: length,
                needed: size,
            });
        }
        let target = Target::Device(DirectFile::new(device));
        Ok(RawWriter::new(target, path, size, length, stop))
    }

    /// Also zeroes the bytes of the device after the disk's end.
    #[must_use]
    pub fn clearing_the_rest(mut self) -> Self {
        self.end = self.end.max(self.written.file_bytes);
        self
    }

    fn new(target: Target, path: PathBuf, size: u64, file_bytes: u64, stop: Stop) -> Self {
        RawWriter {
            target: Some(target),
            path,
            end: size,
            order: Order::new(size),
            zeroes: None,
            written: Written {
                file_bytes,
                ..Written::default()
            },
            stop,
        }
    }

    fn take(&mut self, block: Block) -> Result<()> {
        let gap = self.order.position();
        self.order.accept(block.offset, block.length())?;
        self.zero(gap, block.offset)?;
        match block.content {
            Content::Zero(length) => self.zero(block.offset, block.offset + length),
            Content::Data(buffer) if self.device().is_some() => self.store(block.offset, &buffer),
            Content::Data(buffer) => zero::runs(&buffer)
                .filter(|&(zero, _, _)| !zero)
                .try_for_each(|(_, start, end)| self.store(block.offset + start as u64, &buffer[start..end])),
        }
    }

    fn store(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_stop()?;
        self.written.data_bytes += bytes.len() as u64;
        self.write_at(offset, bytes)
    }

    /// Makes a range read as zero. A new file does so already.
    fn zero(&mut self, mut start: u64, end: u64) -> Result<()> {
        if self.device().is_none() {
            return Ok(());
        }
        self.written.zero_bytes += end.saturating_sub(start);
        while start < end {
            self.check_stop()?;
            start += self.zero_some(start, end - start)?;
        }
        Ok(())
    }

    /// Zeroes the first bytes of a range, and returns how many.
    fn zero_some(&mut self, start: u64, length: u64) -> Result<u64> {
        if let Some(zeroes) = self.zeroes.take() {
            let now = length.min(zeroes.len() as u64);
            let done = self.write_at(start, &zeroes[..now as usize]);
            self.zeroes = Some(zeroes);
            return done.map(|()| now);
        }
        let now = length.min(ZERO_STEP);
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let Some(device) = self.device() else {
            return Ok(now);
        };
        match fallocate(device.file(), flags, start, now) {
            Ok(()) => Ok(now),
            Err(rustix::io::Errno::INTR) => Ok(0),
            Err(error @ (rustix::io::Errno::NOSPC | rustix::io::Errno::IO)) => {
                Err(Error::io("zero", &self.path, start, error.into()))
            }
            // Not every device and file system supports this, and the range's end may not suit the
            // device's blocks.
            Err(_) => {
                let mut zeroes = Buffer::alone(ZERO_WRITE);
                zeroes.fill(0);
                self.zeroes = Some(zeroes);
                Ok(0)
            }
        }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.open()?.write_at(bytes, offset);
        written.map_err(|error| Error::io("write", &self.path, offset, error))
    }

    fn device(&self) -> Option<&DirectFile> {
        match &self.target {
            Some(Target::Device(device)) => Some(device),
            _ => None,
        }
    }

    fn open(&mut self) -> Result<&mut Target> {
        let path = &self.path;
        self.target
            .as_mut()
            .ok_or_else(|| Error::Closed { path: path.clone() })
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.requested() {
            Err(Error::Stopped)
        } else {
            Ok(())
        }
    }

    fn complete(&mut self) -> Result<Written> {
        self.open()?;
        self.zero(self.order.position(), self.end)?;
        let synced = self.open()?.sync();
        synced.map_err(|error| Error::of_file("sync", &self.path, error))?;
        self.target = None;
        Ok(self.written.clone())
    }
}

impl fmt::Debug for RawWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawWriter({})", self.path.display())
    }
}

impl BlockSink for RawWriter {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        Ok(self.take(block)?)
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        Ok(self.complete()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::samples::{C, bytes_of, data, memory_file, zero};
    use crate::model::block::{BlockErrorKind, CLUSTER};
    use crate::model::stop::StopReason;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const SIZE: u64 = 7 * CLUSTER + 1536;

    /// Blocks with gaps before, between and after them, and the resulting disk.
    fn blocks() -> (Vec<Block>, Vec<u8>) {
        let mut disk = vec![0; SIZE as usize];
        disk[2 * C] = 1;
        disk[4 * C - 1] = 2;
        disk[7 * C..].fill(3);
        let blocks = vec![
            data(CLUSTER, &disk[C..4 * C]),
            zero(5 * CLUSTER, CLUSTER),
            data(7 * CLUSTER, &disk[7 * C..]),
        ];
        (blocks, disk)
    }

    fn old_content(length: u64) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(&vec![0xaa; length as usize], 0)
            .expect("it can be written");
        file
    }

    type Outcome = std::result::Result<Written, BlockError>;

    fn onto_device(file: &File, size: u64, blocks: Vec<Block>) -> Outcome {
        let second = file.try_clone().expect("a second handle");
        write(
            RawWriter::onto_device(second, "disk.raw", size, Stop::default())?,
            blocks,
        )
    }

    fn write(mut writer: RawWriter, blocks: Vec<Block>) -> Outcome {
        blocks.into_iter().try_for_each(|block| writer.write(block))?;
        writer.finish()
    }

    #[test]
    fn a_file_holds_the_disk_and_stays_sparse() {
        let file = tempfile::tempfile().expect("a temporary file");
        let (blocks, disk) = blocks();
        let second = Box::new(DirectFile::new(file.try_clone().expect("a second handle")));
        let writer = RawWriter::into_file(second, "disk.raw", SIZE, Stop::default()).expect("it begins");
        let written = write(writer, blocks).expect("it is written");
        assert!(bytes_of(&file) == disk);
        assert_eq!(
            (written.data_bytes, written.file_bytes),
            (2 * CLUSTER + 1536, SIZE)
        );
        assert!(
            file.metadata().expect("it has a length").blocks() * 512 < SIZE,
            "zeroes are holes"
        );
    }

    #[test]
    fn device_is_written_exactly_and_nothing_after_it() {
        // A file in memory does not support zeroing, so the zeroes have to be written.
        for file in [
            old_content(SIZE + 5000),
            memory_file(&vec![0xaa; SIZE as usize + 5000]),
        ] {
            let (blocks, mut disk) = blocks();
            let written = onto_device(&file, SIZE, blocks).expect("it is written");
            disk.resize(SIZE as usize + 5000, 0xaa);
            assert!(bytes_of(&file) == disk);
            assert_eq!(written.data_bytes + written.zero_bytes, SIZE);
            assert_eq!(written.file_bytes, SIZE + 5000);
        }
    }

    #[test]
    fn the_rest_of_a_device_is_cleared_on_request() {
        let file = old_content(SIZE + 5000);
        let second = file.try_clone().expect("a second handle");
        let writer = RawWriter::onto_device(second, "disk.raw", SIZE, Stop::default()).expect("it begins");
        let (blocks, mut disk) = blocks();
        write(writer.clearing_the_rest(), blocks).expect("it is written");
        disk.resize(SIZE as usize + 5000, 0);
        assert!(bytes_of(&file) == disk);
    }

    #[test]
    fn a_device_that_nothing_is_written_to_reads_as_zero() {
        let file = old_content(SIZE);
        onto_device(&file, SIZE, Vec::new()).expect("it is written");
        assert!(bytes_of(&file).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_device_that_is_too_small_is_left_alone() {
        let file = old_content(SIZE - 1);
        let error = onto_device(&file, SIZE, Vec::new()).expect_err("it is too small");
        assert_eq!(error.kind, BlockErrorKind::NoSpace);
        assert!(bytes_of(&file).iter().all(|&byte| byte == 0xaa));
    }

    #[test]
    fn a_wish_to_stop_ends_the_zeroing() {
        let stop = Stop::default();
        let file = old_content(SIZE);
        let mut writer = RawWriter::onto_device(file, "disk.raw", SIZE, stop.clone()).expect("it begins");
        stop.request(StopReason::Terminated);
        assert_eq!(
            writer.finish().expect_err("it was asked to stop").kind,
            BlockErrorKind::Stopped
        );
    }
}
