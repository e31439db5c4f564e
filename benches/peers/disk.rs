//! The content of the domains' disks, and whether it is in the page cache.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use vmsnap::image::qcow2::{Qcow2Options, Qcow2Writer};
use vmsnap::io::DirectFile;
use vmsnap::model::block::{Block, BlockSink, Content};
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::stop::Stop;

/// Length of a piece of a disk, in bytes.
const MIB: u64 = 1 << 20;

/// The content of a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Incompressible bytes.
    Random,
    /// In each 16 MiB: 6 MiB incompressible, 2 MiB text, 4 MiB written zeroes, and a hole of 4 MiB.
    Mixed,
    /// No data.
    Nothing,
}

/// The content of a MiB.
enum Piece {
    Random,
    Text,
    Zeroes,
    Hole,
}

impl Fill {
    fn piece(self, number: u64) -> Piece {
        match (self, number % 16) {
            (Fill::Nothing, _) | (Fill::Mixed, 12..) => Piece::Hole,
            (Fill::Random, _) | (Fill::Mixed, 0..6) => Piece::Random,
            (Fill::Mixed, 6..8) => Piece::Text,
            (Fill::Mixed, _) => Piece::Zeroes,
        }
    }
}

/// Makes a qcow2 image of `size` bytes, a multiple of a MiB.
pub fn make(path: &Path, size: u64, fill: Fill) {
    let file = File::options().create_new(true).read(true).write(true).open(path);
    let options = Qcow2Options {
        path: path.to_owned(),
        size,
        backing: None,
        // Written zeroes must be allocated.
        detect_zeroes: false,
        stop: Stop::default(),
    };
    let file = DirectFile::new(file.expect("the image is new"));
    let mut image = Qcow2Writer::new(Box::new(file), options).expect("an image can be created");
    let pool = BufferPool::new(8, MIB as usize);
    let mut random = blake3::Hasher::new().finalize_xof();
    let pieces = if fill == Fill::Nothing { 0 } else { size / MIB };
    for number in 0..pieces {
        let mut buffer = loop {
            if let Some(buffer) = pool.take_within(std::time::Duration::from_secs(1)) {
                break buffer;
            }
        };
        match fill.piece(number) {
            Piece::Random => random.fill(&mut buffer),
            Piece::Text => write_text(&mut buffer, number),
            Piece::Zeroes => buffer.fill(0),
            Piece::Hole => continue,
        }
        let block = Block {
            offset: number * MIB,
            content: Content::Data(buffer),
        };
        image.write(block).expect("an image can be written");
    }
    image.finish().expect("an image can be finished");
}

fn write_text(buffer: &mut [u8], seed: u64) {
    for (line, place) in buffer.chunks_mut(64).enumerate() {
        let text = format!("{seed:>16} line {line:>8}: nothing happened, and nobody was there.\n");
        let length = place.len().min(text.len());
        place[..length].copy_from_slice(&text.as_bytes()[..length]);
    }
}

/// Reads a file into the page cache.
pub fn warm(path: &Path) {
    let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
    read.expect("the file can be read");
}

/// Drops a file from the page cache.
pub fn cool(path: &Path) {
    let file = File::open(path).expect("the file is there");
    // The kernel does not drop dirty pages.
    file.sync_all().expect("it can be synced");
    fadvise(&file, 0, None, Advice::DontNeed).expect("the kernel accepts the advice");
}

/// Drops a file from the page cache and allocates memory for reading it again.
///
/// A hypervisor may have reclaimed free memory. Then the first use of each page is slow, most of
/// all when the page cache is filled in large pieces. So twice the file's length is allocated and
/// freed.
pub fn cool_with_memory(path: &Path) {
    cool(path);
    let length = path.metadata().expect("the file is there").len();
    // Dropping the file frees its pages. A failure means less memory, which is acceptable.
    let mut memory = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let _ = io::copy(&mut io::repeat(1).take(2 * length), &mut memory);
}
