//! Images for the tests of this module.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

use super::StoredFile;
use super::chain::{ChainImage, ChainSource, Recorded};
use super::digest::piece_digest;
use super::qcow2::{CompressingWriter, Qcow2Options, Qcow2Writer};
use crate::model::block::{
    Block, BlockError, BlockSink, BlockSource, CLUSTER, Content, ImageFile, Pieces, Written,
};
use crate::model::buffer::{Buffer, BufferPool};
use crate::model::compression::ZstdLevel;
use crate::model::stop::Stop;

/// Bytes of a cluster.
pub(super) const C: usize = CLUSTER as usize;

/// A file in memory.
pub(super) fn memory_file(bytes: &[u8]) -> File {
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("memory"));
    file.write_all_at(bytes, 0).expect("it can be written");
    file
}

/// All bytes of a file.
pub(super) fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("it has a length").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("it can be read");
    bytes
}

/// An image file that asserts the trait's promises about every write.
struct Checked {
    file: File,
    end: u64,
}

impl ImageFile for Checked {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert_eq!(bytes.as_ptr().align_offset(4096), 0, "the address is aligned");
        assert!(
            bytes.len().is_multiple_of(4096) && offset.is_multiple_of(4096),
            "length and offset are aligned"
        );
        assert!(
            offset == 0 || offset >= self.end,
            "offsets rise until the header comes"
        );
        self.end = if offset == 0 {
            u64::MAX
        } else {
            offset + bytes.len() as u64
        };
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&mut self, _: u64) -> io::Result<()> {
        unreachable!("an image only grows")
    }

    fn sync(&mut self) -> io::Result<()> {
        assert_eq!(self.end, u64::MAX, "the header is there before the sync");
        Ok(())
    }
}

/// A block of data whose buffer has some room left, like those of a pool.
pub(super) fn data(offset: u64, bytes: &[u8]) -> Block {
    let mut buffer = Buffer::alone(bytes.len().next_multiple_of(C));
    buffer.fill(0xee);
    buffer.set_len(bytes.len());
    buffer.copy_from_slice(bytes);
    Block {
        offset,
        content: Content::Data(buffer),
    }
}

/// A block of zero.
pub(super) fn zero(offset: u64, length: u64) -> Block {
    Block {
        offset,
        content: Content::Zero(length),
    }
}

/// Options for an image of a disk of this size.
pub(super) fn options(size: u64, backing: Option<&str>) -> Qcow2Options {
    Qcow2Options {
        path: "sample.qcow2".into(),
        size,
        backing: backing.map(str::to_owned),
        detect_zeroes: true,
        stop: Stop::default(),
    }
}

/// Writes an image, and checks the writer's report about the file.
pub(super) fn image(options: Qcow2Options, blocks: impl IntoIterator<Item = Block>) -> (File, Written) {
    let begin = |file| Box::new(Qcow2Writer::new(file, options).expect("it begins")) as Box<dyn BlockSink>;
    write(begin, blocks)
}

/// The same with compressed clusters.
pub(super) fn compressed_image(
    options: Qcow2Options,
    blocks: impl IntoIterator<Item = Block>,
) -> (File, Written) {
    let level = ZstdLevel::default();
    let begin = |file| {
        let writer = CompressingWriter::new(file, options, level);
        Box::new(writer.expect("it begins")) as Box<dyn BlockSink>
    };
    write(begin, blocks)
}

fn write(
    begin: impl FnOnce(Box<dyn ImageFile>) -> Box<dyn BlockSink>,
    blocks: impl IntoIterator<Item = Block>,
) -> (File, Written) {
    let file = memory_file(&[]);
    let checked = Checked {
        file: file.try_clone().expect("a second handle"),
        end: CLUSTER,
    };
    let mut writer = begin(Box::new(checked));
    for block in blocks {
        writer.write(block).expect("it takes the block");
    }
    let written = writer.finish().expect("it finishes");
    let bytes = bytes_of(&file);
    assert_eq!(written.file_bytes, bytes.len() as u64);
    assert_eq!(written.blake3, Some(blake3::hash(&bytes).to_hex().to_string()));
    (file, written)
}

/// An image for a chain, with or without its recorded digest.
pub(super) fn link(file: &File, written: Option<&Written>) -> ChainImage {
    ChainImage {
        file: file.try_clone().expect("a second handle").into(),
        path: "sample.qcow2".into(),
        recorded: written.map(|written| Recorded {
            bytes: written.file_bytes,
            blake3: written.blake3.clone().expect("images have digests"),
            pieces: written.pieces.clone(),
        }),
    }
}

/// Opens a chain, newest first, and reads all of it as a plain disk.
pub(super) fn read_chain(images: Vec<ChainImage>) -> Result<Vec<u8>, BlockError> {
    let pool = BufferPool::new(2, 4 * C);
    let mut source = ChainSource::open(images, pool, Stop::default())?;
    let mut disk = Vec::new();
    while let Some(block) = source.next_block()? {
        assert_eq!(block.offset, disk.len() as u64, "blocks cover the disk in order");
        let end = block.offset + block.length();
        assert!(
            block.length() > 0 && end <= source.size(),
            "a block fits the disk"
        );
        assert!(
            end.is_multiple_of(CLUSTER) || end == source.size(),
            "blocks are whole clusters"
        );
        match &block.content {
            Content::Data(buffer) => disk.extend_from_slice(buffer),
            Content::Zero(length) => disk.resize(disk.len() + *length as usize, 0),
        }
    }
    assert_eq!(disk.len() as u64, source.size());
    Ok(disk)
}

/// The digests of the pieces of a file, as its writer would record them.
pub(super) fn pieces_of(file: &File, size: u64) -> Pieces {
    let length = file.metadata().expect("it has a length").len();
    let stored = StoredFile::from(file.try_clone().expect("a second handle"));
    let digest = |start: u64| {
        let range = start..length.min(start + size);
        piece_digest(&stored, Path::new("x"), range, &Stop::default()).expect("it can be read")
    };
    let digests = (0..length).step_by(size as usize).map(digest).collect();
    Pieces { size, digests }
}

/// A file on a full file system.
pub(super) struct Full;

impl ImageFile for Full {
    fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::StorageFull))
    }

    fn set_len(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
