//! Tests: images that are continued, against a plain disk in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use super::chain::{ChainImage, ChainSource};
use super::properties::{Layer, chain, layer};
use super::qcow2::check::check;
use super::qcow2::{Base, CompressingWriter, Image, Mapping, Qcow2Writer};
use super::samples::{bytes_of, data, image, link, memory_file, options, read_chain};
use super::{Result, StoredFile, damaged_ranges, file_digest};
use crate::io::DirectFile;
use crate::model::block::{BlockError, BlockSink, BlockSource, CLUSTER, Patch, Written};
use crate::model::buffer::BufferPool;
use crate::model::compression::ZstdLevel;
use crate::model::stop::Stop;

fn open(file: &File, written: &Written) -> Result<Option<Base>> {
    let ChainImage { file, path, recorded } = link(file, Some(written));
    let recorded = recorded.expect("it has digests");
    Base::open(file, path, recorded, (written.data_bytes, written.zero_bytes))
}

/// Continues an image with those above it, newest first.
fn continued(
    base: &(File, Written),
    newer: Vec<ChainImage>,
    size: u64,
    backing: Option<&str>,
    compress: bool,
) -> Written {
    let (file, before) = base;
    let opened = open(file, before);
    let opened = opened.expect("it can be read").expect("it can be continued");
    let direct = Box::new(DirectFile::new(file.try_clone().expect("a second handle")));
    let pool = BufferPool::new(4, 1 << 18);
    let mut source = ChainSource::open_part(newer, pool, Stop::default()).expect("a sound chain");
    let options = options(size, backing);
    let mut sink: Box<dyn BlockSink> = match compress {
        false => Box::new(Qcow2Writer::continued(direct, options, opened).expect("it begins")),
        true => {
            let level = ZstdLevel::default();
            Box::new(CompressingWriter::continued(direct, options, opened, level).expect("it begins"))
        }
    };
    while let Some(block) = source.next_block().expect("a sound chain") {
        sink.write(block).expect("it takes the block");
    }
    sink.finish().expect("it finishes")
}

fn patched(file: &File, written: &Written) -> ChainImage {
    let stored = StoredFile::from(file.try_clone().expect("a second handle"));
    ChainImage {
        file: stored.with_patch(written.patch.clone()),
        ..link(file, Some(written))
    }
}

/// Makes the changes that turn the file into the continued image.
fn apply(file: &File, patch: &Patch) {
    file.write_all_at(&patch.header, 0).expect("it can be written");
    for range in &patch.freed {
        let zeroes = vec![0; (range.end - range.start) as usize];
        file.write_all_at(&zeroes, range.start)
            .expect("it can be written");
    }
}

/// The bytes of the disk that an image holds as data.
fn data_in(file: &File) -> u64 {
    let mut image = Image::open(file.try_clone().expect("a second handle"), "x").expect("an image");
    let (mut at, mut found) = (0, 0);
    while let Some(run) = image.run_at(at).expect("sound tables") {
        let is_data = matches!(run.mapping, Mapping::Data { .. } | Mapping::Compressed { .. });
        found += if is_data { run.length } else { 0 };
        at += run.length;
    }
    found
}

/// The file is a sound image with these digests.
fn assert_sound(file: &File, written: &Written) {
    let (length, digest) = file_digest(file).expect("it can be read");
    assert_eq!(
        (length, Some(digest)),
        (written.file_bytes, written.blake3.clone())
    );
    let image = Image::open(file.try_clone().expect("a second handle"), "x").expect("an image");
    assert_eq!(check(&image, &Stop::default()).expect("it reads"), []);
    assert_eq!(data_in(file), written.data_bytes);
    if let Some(pieces) = &written.pieces {
        let stored = StoredFile::from(file.try_clone().expect("a second handle"));
        let damaged = damaged_ranges(&stored, Path::new("x"), pieces, 9, &Stop::default());
        assert_eq!(damaged.expect("it reads"), []);
    }
}

fn older_first(images: &[(File, Written)]) -> Vec<ChainImage> {
    let links = images
        .iter()
        .rev()
        .map(|(file, written)| link(file, Some(written)));
    links.collect()
}

/// A chain whose disk never shrinks.
fn growing(mut layers: Vec<Layer>) -> Vec<Layer> {
    layers.sort_by_key(|layer| layer.sectors);
    layers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_continued_image_is_the_chain_it_replaces(
        layers in vec(layer(), 2..=5).prop_map(growing),
        base: prop::sample::Index,
        compress: bool,
        at_once: bool,
    ) {
        let (images, disk) = chain(&layers);
        let base = base.index(layers.len() - 1);
        let (beneath, newer) = images.split_at(base + 1);
        let old_disk = read_chain(older_first(beneath)).expect("a sound chain");
        let (mut file, mut now) = (beneath[base].0.try_clone().expect("a handle"), beneath[base].1.clone());
        let backing = (base > 0).then_some("../../elsewhere/before/vda.qcow2");
        let steps: Vec<&[(File, Written)]> = match at_once {
            true => vec![newer],
            false => newer.chunks(1).collect(),
        };
        let mut size = 0;
        for step in steps {
            size += step.len();
            let sectors = layers[base + size].sectors as u64;
            let before = bytes_of(&file);
            let old = now.clone();
            let base_of_step = (file, now);
            now = continued(&base_of_step, older_first(step), sectors * 512, backing, compress);
            file = base_of_step.0;
            // The old image is untouched, and readable in the file that has grown.
            prop_assert!(bytes_of(&file)[..before.len()] == before);
            let stored = StoredFile::from(file.try_clone().expect("a handle")).limited_to(old.file_bytes);
            let old_link = ChainImage { file: stored, ..link(&file, Some(&old)) };
            if size == step.len() {
                let chain = [old_link].into_iter().chain(older_first(&beneath[..base]));
                prop_assert!(read_chain(chain.collect()).expect("sound") == old_disk);
            }
            if base + size + 1 == layers.len() {
                let chain = [patched(&file, &now)].into_iter().chain(older_first(&beneath[..base]));
                prop_assert!(read_chain(chain.collect()).expect("sound") == disk);
            }
            let patch = now.patch.take().expect("it has changes");
            prop_assert!(patch.freed.windows(2).all(|pair| pair[0].end < pair[1].start));
            apply(&file, &patch);
            assert_sound(&file, &now);
        }
        let chain = [link(&file, Some(&now))].into_iter().chain(older_first(&beneath[..base]));
        prop_assert!(read_chain(chain.collect()).expect("sound") == disk);
    }

    #[test]
    fn a_damaged_base_is_refused_or_stays_damaged(
        layers in vec(layer(), 2..=2).prop_map(growing),
        place: prop::sample::Index,
        bit in 0..8u8,
    ) {
        let (images, disk) = chain(&layers);
        let (file, written) = &images[0];
        let mut bytes = bytes_of(file);
        let place = place.index(bytes.len());
        bytes[place] ^= 1u8 << bit;
        let damaged = memory_file(&bytes);
        let opened = open(&damaged, written);
        let Ok(Some(opened)) = opened else { return Ok(()) };
        let direct = Box::new(DirectFile::new(damaged.try_clone().expect("a handle")));
        let options = options(layers[1].sectors as u64 * 512, None);
        let Ok(mut sink) = Qcow2Writer::continued(direct, options, opened) else { return Ok(()) };
        let pool = BufferPool::new(4, 1 << 18);
        let newer = vec![link(&images[1].0, Some(&images[1].1))];
        let mut source = ChainSource::open_part(newer, pool, Stop::default()).expect("a sound chain");
        while let Some(block) = source.next_block().expect("a sound chain") {
            if sink.write(block).is_err() {
                return Ok(());
            }
        }
        if let Ok(now) = sink.finish() {
            prop_assert!(read_chain(vec![patched(&damaged, &now)]).is_err() || disk.is_empty());
        }
    }
}

#[test]
fn an_image_that_is_continued_while_it_is_read_is_noticed() {
    let size = 20 * CLUSTER;
    let base = image(options(size, None), [data(0, &[1; 20 * CLUSTER as usize])]);
    let (newer, above) = image(options(size, Some("base")), [data(0, &[2; CLUSTER as usize])]);
    let pool = BufferPool::new(4, 1 << 18);
    let reading = vec![link(&base.0, Some(&base.1))];
    let mut source = ChainSource::open(reading, pool, Stop::default()).expect("it is sound");
    source.next_block().expect("it is sound");
    let now = continued(&base, vec![link(&newer, Some(&above))], size, None, false);
    apply(&base.0, &now.patch.expect("it has changes"));
    let mut blocks = std::iter::from_fn(|| source.next_block().transpose());
    assert!(blocks.any(|block| block.is_err()));
}

#[test]
fn faults_in_tables_are_named_by_their_offset() {
    let size = 600 << 20;
    let far = 550 << 20;
    let (file, written) = image(options(size, None), [data(far, &[1; 4 * CLUSTER as usize])]);
    let sound = bytes_of(&file);
    let number = |at: u64| {
        let bytes = &sound[at as usize..][..8];
        u64::from_be_bytes(bytes.try_into().expect("8 bytes"))
    };
    // The fields of the header, and the L1 entry of the disk's second half.
    let (l1, refcounts) = (number(40) + 8, number(48));
    let l2 = number(l1) & 0x00ff_ffff_ffff_fe00;
    let entry = l2 + (far % (512 << 20) / CLUSTER + 2) * 8;
    let (newer, above) = image(
        options(size, Some("base")),
        [data(far, &[2; 4 * CLUSTER as usize])],
    );
    for at in [l1, refcounts, entry] {
        let mut bytes = sound.clone();
        bytes[at as usize..][..8].copy_from_slice(&(1u64 << 40 | 1 << 9).to_be_bytes());
        let damaged = memory_file(&bytes);
        let base = open(&damaged, &written)
            .expect("a header")
            .expect("it has digests");
        let direct = Box::new(DirectFile::new(damaged.try_clone().expect("a handle")));
        let pool = BufferPool::new(4, 1 << 18);
        let newer = vec![link(&newer, Some(&above))];
        let mut source = ChainSource::open_part(newer, pool, Stop::default()).expect("sound");
        let merged = Qcow2Writer::continued(direct, options(size, None), base)
            .map_err(BlockError::from)
            .and_then(|mut sink| {
                while let Some(block) = source.next_block().expect("sound") {
                    sink.write(block)?;
                }
                sink.finish()
            });
        let error = merged.expect_err("a table is damaged").to_string();
        assert!(error.contains(&format!("fault at offset {at}")), "{at}: {error}");
    }
}

/// More than one refcount block: a file with a hole of 3 GiB, as many continuations leave it.
#[test]
fn refcounts_far_apart_are_kept_right() {
    let size = 600 << 20;
    let ones = vec![1; 3 * CLUSTER as usize];
    let (file, _) = image(options(size, None), [data(0, &ones), data(550 << 20, &ones)]);
    let hole = 3u64 << 30;
    file.set_len(hole).expect("it grows");
    let (length, digest) = file_digest(&file).expect("it reads");
    let far = Written {
        data_bytes: 6 * CLUSTER,
        file_bytes: length,
        blake3: Some(digest),
        pieces: Some(super::samples::pieces_of(&file, 4 << 20)),
        ..Written::default()
    };
    let mut base = (file, far);
    let mut expected = ones.clone();
    for round in 2..5 {
        let new = vec![round; CLUSTER as usize];
        let place = u64::from(round) % 3 * CLUSTER;
        expected[place as usize..][..new.len()].copy_from_slice(&new);
        let (newer, written) = image(options(size, Some("base")), [data(place, &new)]);
        let mut now = continued(&base, vec![link(&newer, Some(&written))], size, None, false);
        assert!(
            now.file_bytes < base.1.file_bytes + 8 * CLUSTER,
            "only what is needed is appended"
        );
        let patch = now.patch.take().expect("it has changes");
        apply(&base.0, &patch);
        assert_sound(&base.0, &now);
        base.1 = now;
    }
    let mut image = Image::open(base.0.try_clone().expect("a handle"), "x").expect("an image");
    for (number, cluster) in expected.chunks(CLUSTER as usize).enumerate() {
        let run = image
            .run_at(number as u64 * CLUSTER)
            .expect("sound")
            .expect("there");
        let Mapping::Data { host_offset } = run.mapping else {
            panic!("{run:?}")
        };
        let mut found = vec![0; cluster.len()];
        image.read_at(&mut found, host_offset).expect("it reads");
        assert!(found == cluster, "cluster {number}");
    }
}
