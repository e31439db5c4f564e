//! Writes a disk byte by byte as the guest sees it: into a sparse file, or onto a block device.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};

use super::order::Order;
use super::{Error, Result, zero};
use crate::io::DirectFile;
use crate::model::block::{Block, BlockError, BlockSink, Content, ImageFile, Written};
use crate::model::buffer::Buffer;
use crate::model::stop::Stop;

/// So much is zeroed at once before a wish to stop is looked for, in bytes.
const ZERO_STEP: u64 = 64 * 1024 * 1024;
/// So much when the zeroes have to be written.
const ZERO_WRITE: usize = 1024 * 1024;

/// What a raw disk is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawTarget {
    /// A new, empty file. What is zero stays a hole.
    File,
    /// A block device with some content. Every byte of the disk is written or zeroed; what lies behind the disk's end stays.
    Device,
}

/// Writes blocks as a raw disk.
#[derive(Debug)]
pub struct RawWriter {
    /// Gone after the end.
    file: Option<DirectFile>,
    path: PathBuf,
    target: RawTarget,
    size: u64,
    order: Order,
    /// Memory for zeroes, once it is known that the device cannot zero by itself.
    zeroes: Option<Buffer>,
    written: Written,
    stop: Stop,
}

impl RawWriter {
    /// Begins a disk of `size` bytes in a file that may be read and written. `path` is for messages only.
    ///
    /// # Errors
    /// When a device is too small or a file is not empty; nothing has been written then.
    pub fn new(
        mut file: File,
        path: impl Into<PathBuf>,
        size: u64,
        target: RawTarget,
        stop: Stop,
    ) -> Result<Self> {
        let path = path.into();
        // The length of a block device is where its end is; its metadata says 0.
        let length = file
            .seek(SeekFrom::End(0))
            .map_err(|error| Error::io("examine", &path, 0, error))?;
        let file_bytes = match target {
            RawTarget::File if length > 0 => return Err(Error::NotEmpty { path, length }),
            RawTarget::File => {
                file.set_len(size)
                    .map_err(|error| Error::io("set the length of", &path, 0, error))?;
                size
            }
            RawTarget::Device if length < size => {
                return Err(Error::TooSmall {
                    path,
                    actual: length,
                    needed: size,
                });
            }
            RawTarget::Device => length,
        };
        Ok(RawWriter {
            file: Some(DirectFile::new(file)),
            path,
            target,
            size,
            order: Order::new(size),
            zeroes: None,
            written: Written {
                file_bytes,
                ..Written::default()
            },
            stop,
        })
    }

    fn take(&mut self, block: Block) -> Result<()> {
        let gap = self.order.position();
        self.order.accept(block.offset, block.length())?;
        self.zero(gap, block.offset)?;
        match block.content {
            Content::Zero(length) => self.zero(block.offset, block.offset + length),
            Content::Data(buffer) if self.target == RawTarget::Device => self.store(block.offset, &buffer),
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

    /// Makes a range read as zero: in a new file it does.
    fn zero(&mut self, mut start: u64, end: u64) -> Result<()> {
        if self.target == RawTarget::File {
            return Ok(());
        }
        self.written.zero_bytes += end.saturating_sub(start);
        while start < end {
            self.check_stop()?;
            start += self.zero_some(start, end - start)?;
        }
        Ok(())
    }

    /// Zeroes the first bytes of a range, and tells how many.
    fn zero_some(&mut self, start: u64, length: u64) -> Result<u64> {
        if let Some(zeroes) = self.zeroes.take() {
            let now = length.min(zeroes.len() as u64);
            let done = self.write_at(start, &zeroes[..now as usize]);
            self.zeroes = Some(zeroes);
            return done.map(|()| now);
        }
        let now = length.min(ZERO_STEP);
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match fallocate(self.open()?.file(), flags, start, now) {
            Ok(()) => Ok(now),
            Err(rustix::io::Errno::INTR) => Ok(0),
            Err(error @ (rustix::io::Errno::NOSPC | rustix::io::Errno::IO)) => {
                Err(Error::io("zero", &self.path, start, error.into()))
            }
            // Not every device and file system can do it, and the range's end may not suit the device's blocks.
            Err(_) => {
                let mut zeroes = Buffer::alone(ZERO_WRITE);
                zeroes.fill(0);
                self.zeroes = Some(zeroes);
                Ok(0)
            }
        }
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.open()?.write_any(bytes, offset);
        written.map_err(|error| Error::io("write", &self.path, offset, error))
    }

    fn open(&mut self) -> Result<&mut DirectFile> {
        let path = &self.path;
        self.file
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
        self.zero(self.order.position(), self.size)?;
        let synced = self.open()?.sync();
        synced.map_err(|error| Error::io("sync", &self.path, 0, error))?;
        self.file = None;
        Ok(self.written.clone())
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
    use std::os::unix::fs::{FileExt, MetadataExt};

    const SIZE: u64 = 7 * CLUSTER + 1536;

    /// Blocks with gaps before, between and behind them, and the disk they make.
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

    fn write(file: &File, target: RawTarget, size: u64, blocks: Vec<Block>) -> Outcome {
        let second = file.try_clone().expect("a second handle");
        let mut writer = RawWriter::new(second, "disk.raw", size, target, Stop::default())?;
        blocks.into_iter().try_for_each(|block| writer.write(block))?;
        writer.finish()
    }

    #[test]
    fn a_file_holds_the_disk_and_stays_sparse() {
        let file = tempfile::tempfile().expect("a temporary file");
        let (blocks, disk) = blocks();
        let written = write(&file, RawTarget::File, SIZE, blocks).expect("it is written");
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
    fn every_byte_of_a_device_is_right_and_none_behind_is_touched() {
        // In memory zeroing is refused and the zeroes have to be written.
        for file in [
            old_content(SIZE + 5000),
            memory_file(&vec![0xaa; SIZE as usize + 5000]),
        ] {
            let (blocks, mut disk) = blocks();
            let written = write(&file, RawTarget::Device, SIZE, blocks).expect("it is written");
            disk.resize(SIZE as usize + 5000, 0xaa);
            assert!(bytes_of(&file) == disk);
            assert_eq!(written.data_bytes + written.zero_bytes, SIZE);
            assert_eq!(written.file_bytes, SIZE + 5000);
        }
    }

    #[test]
    fn a_device_that_nothing_is_written_to_reads_as_zero() {
        let file = old_content(SIZE);
        write(&file, RawTarget::Device, SIZE, Vec::new()).expect("it is written");
        assert!(bytes_of(&file).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn targets_that_do_not_fit_are_left_alone() {
        let file = old_content(SIZE - 1);
        let error = write(&file, RawTarget::Device, SIZE, Vec::new()).expect_err("it is too small");
        assert_eq!(error.kind, BlockErrorKind::NoSpace);
        let error = write(&file, RawTarget::File, SIZE, Vec::new()).expect_err("it is not empty");
        assert_eq!(
            error.to_string(),
            format!("disk.raw is not empty: it holds {} bytes", SIZE - 1)
        );
        assert!(bytes_of(&file).iter().all(|&byte| byte == 0xaa));
    }

    #[test]
    fn a_wish_to_stop_ends_the_zeroing() {
        let stop = Stop::default();
        let file = old_content(SIZE);
        let mut writer =
            RawWriter::new(file, "disk.raw", SIZE, RawTarget::Device, stop.clone()).expect("it begins");
        stop.request(15);
        assert_eq!(
            writer.finish().expect_err("it was asked to stop").kind,
            BlockErrorKind::Stopped
        );
    }
}
