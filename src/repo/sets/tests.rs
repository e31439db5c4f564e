//! Tests of streams against a simple model: an array of bytes.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::disk::SetDisk;
use super::layer::{ChainFile, Form, Layer};
use super::source::SetSource;
use super::stack::Stack;
use super::written::WrittenStream;
use crate::model::block::{BlockError, BlockErrorKind, BlockSource, CLUSTER, Content};
use crate::model::buffer::BufferPool;
use crate::model::stop::Stop;
use crate::repo::{DiskReader, RepoError, Stored};

/// Disks of the tests are a few clusters long; streams have ranges of any size.
const UNIT: usize = 512;

/// A chain of streams in a temporary folder, and the content of the disk after each.
struct Chain {
    _folder: tempfile::TempDir,
    files: Vec<ChainFile>,
    contents: Vec<Vec<u8>>,
}

fn write(folder: &Path, number: usize, stream: &WrittenStream, with_sum: bool) -> ChainFile {
    let path = folder.join(format!("{number}.data"));
    let bytes = stream.bytes();
    fs::write(&path, &bytes).expect("it can be written");
    ChainFile {
        path,
        form: Form::Stream,
        expected: with_sum.then(|| adler2::adler32_slice(&bytes)),
    }
}

/// One incremental backup: the size of the disk then, and the ranges that are written, each with a
/// byte.
type Change = (usize, Vec<(usize, usize, u8)>);

impl Chain {
    fn of(
        size: usize,
        full: &[(usize, usize, u8)],
        changes: &[Change],
        piece: Option<usize>,
        sums: bool,
    ) -> Chain {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut content = vec![0; size];
        apply(&mut content, full);
        let mut contents = vec![content.clone()];
        let stream = WrittenStream {
            compressed: piece,
            ..WrittenStream::full("vda", &content, UNIT)
        };
        let mut files = vec![write(folder.path(), 0, &stream, sums)];
        for (number, (size, ranges)) in (1..).zip(changes) {
            content.resize(*size, 0);
            let ranges = apply(&mut content, ranges);
            let stream = WrittenStream {
                compressed: piece,
                ..WrittenStream::incremental("vda", number, &content, &ranges)
            };
            files.insert(0, write(folder.path(), number as usize, &stream, sums));
            contents.push(content.clone());
        }
        Chain {
            _folder: folder,
            files,
            contents,
        }
    }

    fn newest(&self) -> &[u8] {
        self.contents.last().expect("at least one")
    }

    fn stack(&self) -> Stack {
        Stack::open(&self.files, self.newest().len() as u64, &Stop::default()).expect("it opens")
    }
}

/// Writes ranges, and returns them sorted and without overlap.
fn apply(content: &mut [u8], ranges: &[(usize, usize, u8)]) -> Vec<(usize, usize)> {
    let mut is_written = vec![false; content.len().div_ceil(UNIT)];
    for (start, length, byte) in ranges {
        let start = start % is_written.len().max(1);
        for unit in start..(start + length).min(is_written.len()) {
            let end = ((unit + 1) * UNIT).min(content.len());
            content[unit * UNIT..end].fill(*byte);
            is_written[unit] = true;
        }
    }
    let mut found: Vec<(usize, usize)> = Vec::new();
    for unit in (0..is_written.len()).filter(|unit| is_written[*unit]) {
        let (start, end) = (unit * UNIT, ((unit + 1) * UNIT).min(content.len()));
        match found.last_mut() {
            Some((first, length)) if *first + *length == start => *length += end - start,
            _ => found.push((start, end - start)),
        }
    }
    found
}

/// The content that a source gives, and which clusters it gives. Checks the rules of sources.
fn read(source: &mut SetSource) -> Result<(Vec<u8>, Vec<bool>), BlockError> {
    let size = usize::try_from(source.size()).expect("small");
    let mut content = vec![0xee; size];
    let mut is_given = vec![false; size.div_ceil(CLUSTER as usize)];
    let mut last = 0;
    while let Some(block) = source.next_block()? {
        let (start, length) = (block.offset as usize, block.length() as usize);
        assert!(start >= last && length > 0, "blocks come in order");
        assert_eq!(block.offset % CLUSTER, 0);
        assert!(block.length().is_multiple_of(CLUSTER) || start + length == size);
        match block.content {
            Content::Data(buffer) => content[start..start + length].copy_from_slice(&buffer),
            Content::Zero(_) => content[start..start + length].fill(0),
        }
        is_given[start / CLUSTER as usize..(start + length).div_ceil(CLUSTER as usize)].fill(true);
        last = start + length;
    }
    Ok((content, is_given))
}

fn source(stack: Stack, upper: usize) -> SetSource {
    SetSource::new(
        stack,
        upper,
        BufferPool::new(2, 3 * CLUSTER as usize),
        Stop::default(),
    )
}

fn ranges() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
    proptest::collection::vec((0..700usize, 1..260usize, 0..4u8), 0..5)
}

fn sizes() -> impl Strategy<Value = usize> {
    (1..300_000usize).prop_map(|size| size.next_multiple_of(UNIT))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_chain_gives_back_the_disk(
        size in sizes(),
        full in ranges(),
        changes in proptest::collection::vec((sizes(), ranges()), 0..4),
        piece in proptest::option::of(1_000..200_000usize),
        sums: bool,
    ) {
        let chain = Chain::of(size, &full, &changes, piece, sums);
        let all = chain.files.len();
        let (content, given) = read(&mut source(chain.stack(), all)).expect("it is sound");
        prop_assert!(content == chain.newest());
        prop_assert!(given.iter().all(|given| *given), "the whole disk is given");
        // Above each older restore point: what it had, with the given clusters, is the newest disk.
        for upper in 0..all {
            let mut below = chain.contents[all - 1 - upper].clone();
            below.resize(chain.newest().len(), 0);
            let (content, given) = read(&mut source(chain.stack(), upper)).expect("it is sound");
            for (number, part) in below.chunks_mut(CLUSTER as usize).enumerate().filter(|(n, _)| given[*n]) {
                let start = number * CLUSTER as usize;
                part.copy_from_slice(&content[start..start + part.len()]);
            }
            prop_assert!(below == chain.newest(), "above {upper}");
        }
    }

    #[test]
    fn any_place_can_be_read_at_random(
        size in sizes(),
        full in ranges(),
        changes in proptest::collection::vec((sizes(), ranges()), 0..4),
        piece in proptest::option::of(1_000..200_000usize),
        reads in proptest::collection::vec((0..320_000u64, 1..90_000usize), 1..10),
    ) {
        let chain = Chain::of(size, &full, &changes, piece, true);
        let disk = SetDisk::new(chain.stack()).expect("it is sound");
        let newest = chain.newest();
        for (offset, length) in reads {
            let mut out = vec![0xee; length];
            disk.read_at(&mut out, offset).expect("it can be read");
            let from = (offset as usize).min(newest.len());
            let mut expected = newest[from..(from + length).min(newest.len())].to_vec();
            expected.resize(length, 0);
            prop_assert!(out == expected);
            prop_assert!(disk.holds(&expected, offset).expect("it can be read"));
            expected[length / 2] ^= 1;
            prop_assert!(!disk.holds(&expected, offset).expect("it can be read"));
        }
        let reader: &dyn DiskReader = &disk;
        let mut at = 0;
        for extent in reader.extents(0..disk.size()) {
            let extent = extent.expect("it can be read");
            prop_assert_eq!(extent.offset, at);
            at += extent.length;
            let part = &newest[extent.offset as usize..at as usize];
            prop_assert!(extent.stored != Stored::Zero || part.iter().all(|byte| *byte == 0));
        }
        prop_assert_eq!(at, disk.size());
    }

    /// Whatever is changed in a file with a checksum: the right bytes, or an error.
    #[test]
    fn damage_is_found_by_the_checksum(
        piece in proptest::option::of(1_000..200_000usize),
        place in 0.0..1.0f64,
        bit in 0..8u32,
        which in 0..3usize,
    ) {
        let changes = [(150_016, vec![(3, 200, 5)]), (150_016, vec![(100, 100, 6)])];
        let chain = Chain::of(150_016, &[(0, 250, 1)], &changes, piece, true);
        let path = &chain.files[which].path;
        let mut bytes = fs::read(path).expect("it can be read");
        let place = (place * bytes.len() as f64) as usize;
        bytes[place] ^= 1 << bit;
        fs::write(path, &bytes).expect("it can be written");
        let opened = Stack::open(&chain.files, chain.newest().len() as u64, &Stop::default());
        let result = opened.map_err(kind).and_then(|stack| {
            let all = chain.files.len();
            read(&mut source(stack, all)).map_err(|error| error.kind)
        });
        prop_assert!(matches!(result, Err(BlockErrorKind::Damaged | BlockErrorKind::Invalid)), "{result:?}");
    }
}

fn kind(error: RepoError) -> BlockErrorKind {
    match error {
        RepoError::Blocks(error) => error.kind,
        other => panic!("{other}"),
    }
}

/// A file with these bytes.
fn file_of(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("x.data");
    fs::write(&path, bytes).expect("it can be written");
    path
}

fn verify(path: &Path, expected: Option<u32>) -> Result<(), String> {
    let file = ChainFile {
        path: path.to_owned(),
        form: Form::Stream,
        expected,
    };
    let mut layer = Layer::open(&file, &Stop::default()).map_err(|error| error.to_string())?;
    layer.verify(&mut |_| ()).map_err(|error| error.what)
}

fn sample(piece: Option<usize>) -> Vec<u8> {
    let mut content = vec![0; 40 * UNIT];
    content[2 * UNIT..9 * UNIT].fill(1);
    content[20 * UNIT..].fill(2);
    WrittenStream {
        compressed: piece,
        ..WrittenStream::full("vda", &content, UNIT)
    }
    .bytes()
}

#[test]
fn sound_streams_are_verified() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for piece in [None, Some(700), Some(5 * UNIT), Some(1 << 20)] {
        let bytes = sample(piece);
        let sum = adler2::adler32_slice(&bytes);
        verify(&file_of(&folder, &bytes), Some(sum)).expect("it is sound");
    }
}

#[test]
fn every_cut_stream_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for piece in [None, Some(700)] {
        let bytes = sample(piece);
        for length in 0..bytes.len() {
            let path = file_of(&folder, &bytes[..length]);
            assert!(verify(&path, None).is_err(), "{length} of {} bytes", bytes.len());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(verify(&file_of(&folder, &longer), None).is_err());
    }
}

/// Compressed streams have checksums of their own, and every frame of both kinds is checked.
#[test]
fn changed_frames_are_found_without_a_checksum() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for piece in [None, Some(700)] {
        let bytes = sample(piece);
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        let frames = ["data 0", "zero 0", "stop 0"]
            .iter()
            .filter_map(|word| whole.find(word));
        let frames: Vec<usize> = if piece.is_some() { vec![] } else { frames.collect() };
        for start in frames {
            for place in start..start + 40 {
                let mut changed = bytes.clone();
                changed[place] ^= 1;
                assert!(verify(&file_of(&folder, &changed), None).is_err(), "{place}");
            }
        }
    }
    let bytes = sample(Some(700));
    let body = 40
        + bytes
            .windows(2)
            .position(|pair| pair == b"}\r")
            .expect("the header's end");
    for place in body + 3..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 0x10;
        assert!(verify(&file_of(&folder, &changed), None).is_err(), "{place}");
    }
}

#[test]
fn frames_out_of_order_and_overlaps_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let content = vec![3; 20 * UNIT];
    let unit = |start: usize, length: usize| (start * UNIT, length * UNIT);
    for (ranges, is_sound) in [
        (vec![unit(1, 2), unit(5, 1)], true),
        (vec![unit(5, 1), unit(1, 2)], false),
        (vec![unit(1, 2), unit(2, 2)], false),
        (vec![unit(1, 1), unit(1, 1)], false),
    ] {
        let stream = WrittenStream::incremental("vda", 1, &content, &ranges);
        let verified = verify(&file_of(&folder, &stream.bytes()), None);
        assert_eq!(verified.is_ok(), is_sound, "{ranges:?}: {verified:?}");
    }
}

#[test]
fn gap_in_a_full_stream_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut stream = WrittenStream::full("vda", &sample_disk(), UNIT);
    let _ = stream.frames.remove(1);
    let error = verify(&file_of(&folder, &stream.bytes()), None).expect_err("it has a gap");
    assert!(error.contains("a full backup has no gaps"), "{error}");
    let mut stream = WrittenStream::full("vda", &sample_disk(), UNIT);
    stream.frames.pop();
    let error = verify(&file_of(&folder, &stream.bytes()), None).expect_err("it ends early");
    assert!(error.contains("ends before the end of the disk"), "{error}");
}

fn sample_disk() -> Vec<u8> {
    let mut content = vec![0; 10 * UNIT];
    content[..UNIT].fill(1);
    content[5 * UNIT..6 * UNIT].fill(2);
    content
}

/// A frame that promises far more than the file has ends early, and takes little memory.
#[test]
fn promise_of_a_huge_disk_takes_no_memory() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stream = WrittenStream {
        size: 1 << 60,
        frames: vec![(0, Err(1 << 60))],
        ..WrittenStream::full("vda", &[], UNIT)
    };
    verify(&file_of(&folder, &stream.bytes()), None).expect("an empty disk is sound");
}

#[test]
fn compressed_bomb_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let content = vec![0x55; 64 << 10];
    let mut stream = WrittenStream {
        compressed: Some(1 << 30),
        ..WrittenStream::full("vda", &content, UNIT)
    };
    let sound = stream.bytes();
    // The data frame promises fewer bytes than its LZ4 frame holds.
    stream.size = 512;
    stream.frames = vec![(0, Ok(content[..512].to_vec()))];
    let small = stream.bytes();
    let magic = [4, 0x22, 0x4d, 0x18];
    let at = |bytes: &[u8]| {
        bytes
            .windows(4)
            .position(|four| four == magic)
            .expect("an LZ4 frame")
    };
    let list = |bytes: &[u8]| {
        bytes
            .windows(4)
            .position(|four| four == b"stop")
            .expect("the end")
    };
    let lz4 = &sound[at(&sound)..list(&sound) - 2];
    let mut bomb = small[..at(&small)].to_vec();
    bomb.extend(lz4);
    bomb.extend(b"\r\nstop 0000000000000000 0000000000000000\r\n");
    let sizes = format!("[{}]", lz4.len());
    bomb.extend(format!("{sizes}\r\ncomp 0000000000000000 {:016x}\r\n", sizes.len()).as_bytes());
    let error = verify(&file_of(&folder, &bomb), None).expect_err("it is too large");
    assert!(error.contains("another size than its data frame"), "{error}");
}
