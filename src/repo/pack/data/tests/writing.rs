//! What is written can be read: against a naive model, over many generations.

use proptest::prelude::*;

use super::lab::{C, Lab, Root, assert_disk, data_block, noise, read, write, write_full, zero_block};
use crate::model::block::Block;
use crate::model::stop::Stop;
use crate::repo::pack::data::page::{BRANCH_SPAN, LEAF_SPAN};
use crate::repo::pack::description::Cipher;
use crate::repo::pack::objects::ObjectName;

/// A change of some clusters.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// The first cluster after the origin.
    first: usize,
    count: usize,
    fill: Fill,
}

#[derive(Clone, Copy, Debug)]
enum Fill {
    Noise(u64),
    /// One of few contents, which occur several times.
    Common(u8),
    /// Zeroes that are given as data.
    ZeroData,
    Zero,
}

/// The disk after the origin, as plain bytes.
struct Model {
    origin: u64,
    bytes: Vec<u8>,
}

impl Model {
    fn size(&self) -> u64 {
        self.origin + self.bytes.len() as u64
    }

    /// Makes changes, in the disk's order and without overlap, and returns them as blocks.
    fn change(&mut self, mut changes: Vec<Change>) -> Vec<Block> {
        changes.sort_by_key(|change| change.first);
        let mut at = 0;
        let mut blocks = Vec::new();
        for change in changes {
            let start = at.max(change.first * C);
            let end = self.bytes.len().min((change.first + change.count) * C);
            if start >= end {
                continue;
            }
            at = end;
            let place = &mut self.bytes[start..end];
            match change.fill {
                Fill::Noise(seed) => place.copy_from_slice(&noise(seed, place.len())),
                Fill::Common(byte) => place.fill(byte),
                Fill::ZeroData | Fill::Zero => place.fill(0),
            }
            let offset = self.origin + start as u64;
            blocks.push(match change.fill {
                Fill::Zero => zero_block(offset, (end - start) as u64),
                _ => data_block(offset, place),
            });
        }
        blocks
    }
}

fn change() -> impl Strategy<Value = Change> {
    let fill = prop_oneof![
        4 => any::<u64>().prop_map(Fill::Noise),
        2 => (1..4u8).prop_map(Fill::Common),
        1 => Just(Fill::ZeroData),
        2 => Just(Fill::Zero),
    ];
    (0..40usize, 1..12usize, fill).prop_map(|(first, count, fill)| Change { first, count, fill })
}

/// A new size after the origin, in bytes, if the size changes; and changes.
fn generation() -> impl Strategy<Value = (Option<usize>, Vec<Change>)> {
    let size = prop_oneof![
        3 => Just(None),
        1 => (1..45 * C / 512).prop_map(|sectors| Some(sectors * 512)),
    ];
    (size, proptest::collection::vec(change(), 0..6))
}

fn origins() -> impl Strategy<Value = u64> {
    let before = 17 * C as u64;
    prop_oneof![Just(0), Just(LEAF_SPAN - before), Just(BRANCH_SPAN - before)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_generation_reads_as_the_model(
        origin in origins(),
        block_clusters in prop_oneof![Just(1usize), Just(2), Just(16)],
        is_encrypted: bool,
        generations in proptest::collection::vec(generation(), 1..7),
    ) {
        let mut lab = Lab::new(block_clusters * C, 12 * C);
        if !is_encrypted {
            lab.cipher = Cipher::None;
        }
        let mut model = Model { origin, bytes: vec![0; 30 * C + 1536] };
        let mut parent: Option<Root> = None;
        let mut kept = Vec::new();
        let mut data = lab.data();
        for (size, changes) in generations {
            if let Some(size) = size {
                model.bytes.resize(size, 0);
            }
            let blocks = model.change(changes);
            let (root, written) = write(&data, model.size(), parent, blocks);
            prop_assert!(written.file_bytes <= lab.pack_bytes() as u64);
            kept.push((root, model.bytes.clone()));
            parent = Some(root);
        }
        for (root, bytes) in &kept {
            assert_disk(&data, *root, origin, bytes);
        }
        data = lab.data();
        for (root, bytes) in &kept {
            assert_disk(&data, *root, origin, bytes);
        }
    }
}

#[test]
fn equal_disks_are_stored_once() {
    let lab = Lab::new(16 * C, 64 * C);
    let bytes = noise(1, 100 * C + 512);
    let (root, first) = write_full(&lab.data(), &bytes, 5 * C);
    assert!(first.file_bytes > bytes.len() as u64 && first.data_bytes == bytes.len() as u64);
    let before = lab.pack_bytes();
    let (again, second) = write_full(&lab.data(), &bytes, 32 * C);
    assert_eq!((again, second.file_bytes), (root, 0));
    assert_eq!(second.data_bytes, bytes.len() as u64);
    assert_eq!(lab.pack_bytes(), before);
    assert_disk(&lab.data(), root, 0, &bytes);
}

/// Blocks that another disk of the same process has just stored count, too.
#[test]
fn disks_of_one_process_share_blocks() {
    let lab = Lab::new(16 * C, 1024 * C);
    let data = lab.data();
    let bytes = noise(1, 64 * C);
    let stop = Stop::default();
    let mut stored = 0;
    for _ in 0..3 {
        let mut sink = data
            .sink(bytes.len() as u64, None, Default::default(), stop.clone())
            .expect("it begins");
        sink.write(data_block(0, &bytes)).expect("it writes");
        stored += sink.finish().expect("it finishes").file_bytes;
    }
    data.flush(&stop).expect("it flushes");
    assert!(stored < bytes.len() as u64 + 8192, "{stored}");
}

/// Scattered changes cost little more than the changed clusters.
#[test]
fn scattered_clusters_are_stored_alone() {
    let lab = Lab::new(16 * C, 512 * C);
    let data = lab.data();
    let mut bytes = noise(1, 2048 * C);
    let (parent, _) = write_full(&data, &bytes, 32 * C);
    let changed: Vec<usize> = (0..2048).step_by(17).collect();
    let mut blocks = Vec::new();
    for cluster in &changed {
        let place = &mut bytes[cluster * C..(cluster + 1) * C];
        place.copy_from_slice(&noise(1000 + *cluster as u64, C));
        blocks.push(data_block((cluster * C) as u64, place));
    }
    let before = lab.pack_bytes();
    let (root, written) = write(&data, bytes.len() as u64, Some(parent), blocks);
    let grown = (lab.pack_bytes() - before) as u64;
    let expected = (changed.len() * C) as u64;
    assert!(grown < expected * 110 / 100, "{grown} for {expected}");
    assert!(written.file_bytes <= grown && written.data_bytes == expected);
    assert_disk(&data, root, 0, &bytes);
}

/// Many generations of single clusters: maps stay short, because fragmented windows are rewritten.
#[test]
fn fragmented_windows_are_rewritten() {
    let lab = Lab::new(16 * C, 512 * C);
    let data = lab.data();
    let mut bytes = noise(1, 16 * C);
    let (mut root, _) = write_full(&data, &bytes, 16 * C);
    for generation in 0..32 {
        let cluster = generation * 7 % 16;
        let place = &mut bytes[cluster * C..(cluster + 1) * C];
        place.copy_from_slice(&noise(1000 + generation as u64, C));
        let block = data_block((cluster * C) as u64, place);
        root = write(&data, bytes.len() as u64, Some(root), [block]).0;
        let tree = data.open_tree(root.0, root.1, Stop::default()).expect("it opens");
        let leaf = tree.leaf(0).expect("it reads").expect("it has data");
        assert!(leaf.runs.len() <= 8, "{}", leaf.runs.len());
    }
    assert_disk(&data, root, 0, &bytes);
}

#[test]
fn an_empty_change_keeps_the_root() {
    let lab = Lab::new(16 * C, 64 * C);
    let data = lab.data();
    let (root, _) = write_full(&data, &noise(1, 40 * C), 8 * C);
    let before = lab.store.state().objects.len();
    let (again, written) = write(&data, root.1, Some(root), []);
    assert_eq!((again, written.file_bytes), (root, 0));
    assert_eq!(lab.store.state().objects.len(), before, "nothing is uploaded");
}

#[test]
fn an_empty_disk_and_one_of_zeroes_come_back() {
    let lab = Lab::new(16 * C, 64 * C);
    let data = lab.data();
    for size in [0, 512, 3 * BRANCH_SPAN + 512] {
        let zeroes = (size > 0).then(|| zero_block(0, size));
        let (root, written) = write(&data, size, None, zeroes);
        assert_eq!((written.data_bytes, written.zero_bytes), (0, size));
        assert!(read(&data, root, size).expect("it reads").is_empty());
    }
}

/// Zeroes over everything that the parent has remove whole pages.
#[test]
fn zeroes_replace_whole_pages() {
    let lab = Lab::new(16 * C, 64 * C);
    let data = lab.data();
    let size = 2 * BRANCH_SPAN;
    let places = [
        0,
        LEAF_SPAN - C as u64,
        5 * LEAF_SPAN,
        BRANCH_SPAN,
        size - C as u64,
    ];
    let blocks = places.iter().map(|place| data_block(*place, &noise(*place, C)));
    let (parent, _) = write(&data, size, None, blocks);
    let (root, _) = write(
        &data,
        size,
        Some(parent),
        [zero_block(C as u64, size - 2 * C as u64)],
    );
    let disk = data.disk(root.0, size, Stop::default()).expect("it opens");
    let found: Vec<_> = disk
        .extents(0..size)
        .map(|extent| extent.expect("it reads"))
        .collect();
    assert!(disk.holds(&noise(0, C), 0).expect("it compares"));
    let last = size - C as u64;
    assert!(disk.holds(&noise(last, C), last).expect("it compares"));
    let stored = found
        .iter()
        .filter(|extent| extent.stored != crate::repo::Stored::Zero);
    assert_eq!(stored.count(), 2);
}

#[test]
fn small_files_come_back() {
    let lab = Lab::new(C, 8 * C);
    let data = lab.data();
    let stop = Stop::default();
    for length in [0, 1, C - 1, C, C + 1, 5 * C + 7] {
        let bytes = noise(length as u64, length);
        let ids = data.put(&bytes, &stop).expect("it is put");
        data.flush(&stop).expect("it flushes");
        let most = length as u64;
        assert!(lab.data().get(&ids, most, &stop).expect("it reads") == bytes);
        assert!(length == 0 || data.get(&ids, most - 1, &stop).is_err());
    }
}

#[test]
fn blocks_out_of_order_are_refused() {
    let lab = Lab::new(16 * C, 64 * C);
    let data = lab.data();
    let mut sink = data
        .sink(8 * C as u64, None, Default::default(), Stop::default())
        .expect("it begins");
    sink.write(zero_block(2 * C as u64, C as u64)).expect("the first");
    assert!(sink.write(zero_block(C as u64, C as u64)).is_err());
    assert!(sink.write(zero_block(8 * C as u64, C as u64)).is_err());
    assert!(sink.write(data_block(3 * C as u64, &[1; 512])).is_err());
}

/// Reads of a disk that was written in order need few requests.
#[test]
fn neighbours_are_read_together() {
    let lab = Lab::new(C, 512 * C);
    let data = lab.data();
    let bytes = noise(1, 512 * C);
    let (root, _) = write_full(&data, &bytes, 16 * C);
    let before = lab.store.state().ranges;
    assert!(read(&data, root, 0).expect("it reads") == bytes);
    let requests = lab.store.state().ranges - before;
    assert!(requests < 20, "{requests}");
}

#[test]
fn records_belong_to_their_object() {
    let name = |text| ObjectName::new(text).expect("valid");
    for cipher in [Cipher::XChaCha20Poly1305, Cipher::None] {
        let mut lab = Lab::new(C, 8 * C);
        lab.cipher = cipher;
        let data = lab.data();
        for length in [0, 1, 5, 70_000] {
            let mut bytes = noise(7, length);
            bytes.extend(vec![7; length]);
            let sealed = data
                .seal_record(&name("points/a/b"), &bytes)
                .expect("it is sealed");
            let opened = data.open_record(&name("points/a/b"), &sealed);
            assert!(opened.expect("it opens") == bytes);
            assert!(data.open_record(&name("points/a/c"), &sealed).is_err());
            for place in (0..sealed.len()).step_by(1 + sealed.len() / 100) {
                let mut changed = sealed.clone();
                changed[place] ^= 1;
                assert!(
                    data.open_record(&name("points/a/b"), &changed).is_err(),
                    "{place}"
                );
                assert!(data.open_record(&name("points/a/b"), &sealed[..place]).is_err());
            }
        }
        let too_large = vec![0; (64 << 20) + 1];
        assert!(data.seal_record(&name("points/a/b"), &too_large).is_err());
    }
}
