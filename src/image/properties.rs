//! Property tests: chains of random images, sound and damaged, against a plain disk in memory.

use std::fs::File;

use proptest::collection::vec;
use proptest::prelude::*;

use super::chain::ChainDisk;
use super::qcow2::Image;
use super::qcow2::check::check;
use super::samples::{
    C, bytes_of, compressed_image, data, image, link, memory_file, options, read_chain, zero,
};
use crate::model::block::{Block, BlockErrorKind, Written};
use crate::model::stop::Stop;

/// One backup's changes: the disk's new size, and blocks with gaps between them.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) sectors: usize,
    blocks: Vec<(usize, usize, Vec<Option<u8>>)>,
    detect_zeroes: bool,
    compress: bool,
}

pub(super) fn layer() -> impl Strategy<Value = Layer> {
    // A gap in clusters, then a run of clusters. Zero blocks are lists of `None`; data blocks may
    // hold zeroes as well.
    let cluster = prop_oneof![1 => Just(Some(0)), 3 => (1..=255u8).prop_map(Some)];
    let clusters = prop_oneof![
        1 => (1..6usize).prop_map(|count| vec![None; count]),
        2 => vec(cluster, 1..9),
    ];
    (
        1..3000usize,
        vec((0..5usize, 0..C, clusters), 0..7),
        any::<[bool; 2]>(),
    )
        .prop_map(|(sectors, blocks, [detect_zeroes, compress])| Layer {
            sectors,
            blocks,
            detect_zeroes,
            compress,
        })
}

/// Returns the blocks of a layer, and applies them to a plain disk.
fn apply(layer: &Layer, disk: &mut Vec<u8>) -> Vec<Block> {
    disk.resize(layer.sectors * 512, 0);
    let mut blocks = Vec::new();
    let mut at = 0;
    for (gap, seed, clusters) in &layer.blocks {
        at += gap * C;
        if at >= disk.len() {
            break;
        }
        let end = (at + clusters.len() * C).min(disk.len());
        for (cluster, kind) in disk[at..end].chunks_mut(C).zip(clusters) {
            cluster.fill(0);
            // Half of them cannot be compressed.
            if let Some(noise @ 128..) = kind {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&[*noise]).update(&seed.to_le_bytes());
                hasher.finalize_xof().fill(cluster);
            }
            let place = seed % cluster.len();
            cluster[place] = kind.unwrap_or(0);
        }
        blocks.push(match clusters[0] {
            None => zero(at as u64, (end - at) as u64),
            Some(_) => data(at as u64, &disk[at..end]),
        });
        at = end;
    }
    blocks
}

/// A chain of images, oldest first, and the content of the disk after the last one.
pub(super) fn chain(layers: &[Layer]) -> (Vec<(File, Written)>, Vec<u8>) {
    let mut disk = Vec::new();
    let images = layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let blocks = apply(layer, &mut disk);
            let backing = (index > 0).then_some("../before/vda.qcow2");
            let mut options = options(layer.sectors as u64 * 512, backing);
            options.detect_zeroes = layer.detect_zeroes;
            match layer.compress {
                true => compressed_image(options, blocks),
                false => image(options, blocks),
            }
        })
        .collect();
    (images, disk)
}

fn read(images: &[(File, Written)], with_digests: bool) -> Result<Vec<u8>, BlockErrorKind> {
    let newest_first = images.iter().rev();
    read_chain(
        newest_first
            .map(|(file, written)| link(file, with_digests.then_some(written)))
            .collect(),
    )
    .map_err(|error| error.kind)
}

/// Reads the runs of an image, at most 10,000.
fn walk(file: File) {
    if let Ok(mut image) = Image::open(file, "hostile.qcow2") {
        let mut offset = 0;
        for _ in 0..10_000 {
            match image.run_at(offset) {
                Ok(Some(run)) => {
                    assert!(run.length > 0 && run.length <= image.size() - offset);
                    offset += run.length;
                }
                Ok(None) | Err(_) => break,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_chain_gives_back_the_disk(layers in vec(layer(), 1..=5)) {
        let (images, disk) = chain(&layers);
        for with_digests in [true, false] {
            let found = read(&images, with_digests).expect("a sound chain");
            prop_assert!(found == disk, "the bytes differ, digests {}", with_digests);
        }
    }

    #[test]
    fn flipped_bit_is_always_reported(layers in vec(layer(), 1..=3), which: prop::sample::Index, place: prop::sample::Index, bit in 0..8u8) {
        let (mut images, _) = chain(&layers);
        let (file, _) = &mut images[which.index(layers.len())];
        let mut bytes = bytes_of(file);
        let place = place.index(bytes.len());
        bytes[place] ^= 1u8 << bit;
        *file = memory_file(&bytes);
        prop_assert!(read(&images, true).is_err(), "byte {} of {}", place, bytes.len());
        let _ = read(&images, false);
    }

    #[test]
    fn file_of_wrong_length_is_always_reported(layers in vec(layer(), 1..=3), which: prop::sample::Index, length: prop::sample::Index, grown in 1..10_000usize) {
        let (mut images, _) = chain(&layers);
        let (file, _) = &mut images[which.index(layers.len())];
        let whole = bytes_of(file);
        let mut longer = whole.clone();
        longer.resize(whole.len() + grown, 0);
        for bytes in [&whole[..length.index(whole.len())], &longer] {
            images[which.index(layers.len())].0 = memory_file(bytes);
            prop_assert_eq!(read(&images, true), Err(BlockErrorKind::Damaged));
            let _ = read(&images, false);
        }
    }

    #[test]
    fn damaged_headers_and_tables_never_panic(
        layer in layer(),
        damage in vec((0..400usize, any::<u8>()), 0..12),
        tail in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (images, _) = chain(&[layer]);
        let mut bytes = bytes_of(&images[0].0);
        for (place, value) in damage {
            bytes[place] = value;
        }
        // The tables are at the end.
        let tables = bytes.len().saturating_sub(5 * C);
        for (place, value) in tail {
            let place = tables + place.index(bytes.len() - tables);
            bytes[place] = value;
        }
        walk(memory_file(&bytes));
    }

    /// Frames with wrong bytes, and descriptors that point anywhere, read without digests.
    #[test]
    fn hostile_compressed_clusters_never_panic(
        layer in layer(),
        frames in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        descriptors in vec((any::<prop::sample::Index>(), any::<u64>(), any::<bool>()), 1..8),
    ) {
        let (mut images, disk) = chain(&[Layer { compress: true, ..layer }]);
        let mut bytes = bytes_of(&images[0].0);
        let length = bytes.len() as u64;
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let l2 = (number(number(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
        prop_assume!(l2 > C);
        for (place, value) in frames {
            bytes[C + place.index(l2 - C)] = value;
        }
        for (cluster, value, is_inside) in descriptors {
            let at = l2 + cluster.index(disk.len().div_ceil(C)) * 8;
            let sectors = value & 0x3fc0_0000_0000_0000;
            let place = if is_inside { sectors | (value % length) } else { value >> 2 };
            bytes[at..at + 8].copy_from_slice(&(1u64 << 62 | place).to_be_bytes());
        }
        images[0].0 = memory_file(&bytes);
        let _ = read(&images, false);
        let image = Image::open(memory_file(&bytes), "hostile.qcow2").expect("a sound header");
        let _ = check(&image, &Stop::default());
        let open = ChainDisk::open(vec![link(&images[0].0, None)], Stop::default());
        let mut out = [0; 700];
        for offset in (0..disk.len() - out.len().min(disk.len())).step_by(5000) {
            let _ = open.as_ref().expect("it opens").read_at(&mut out, offset as u64);
        }
    }

    #[test]
    fn headers_of_random_fields_never_panic(
        fields in vec(prop_oneof![Just(0u32), Just(1), Just(16), Just(0x10000), any::<u32>()], 30),
        cluster_bits in 0..24u32,
        zero_l1: bool,
    ) {
        let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
        bytes[32..36].fill(0);
        bytes[72..80].fill(0);
        bytes[96..100].copy_from_slice(&4u32.to_be_bytes());
        bytes[100..104].copy_from_slice(&104u32.to_be_bytes());
        if zero_l1 {
            bytes[40..48].fill(0);
        }
        bytes.resize(3 * C, 0x80);
        walk(memory_file(&bytes));
    }
}
