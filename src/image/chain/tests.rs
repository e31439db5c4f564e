//! Chains as sources of blocks.

use super::*;
use crate::image::qcow2::header::Header;
use crate::image::qcow2::layout::{L2Entry, l1_entry};
use crate::image::samples::{C, data, image, link, memory_file, options, read_chain};
use crate::model::block::BlockErrorKind;
use crate::model::stop::StopReason;

#[test]
fn old_content_does_not_show_through_a_smaller_image() {
    let ones = vec![1; 3 * C];
    let (oldest, first) = image(options(3 * CLUSTER, None), [data(0, &ones)]);
    let (middle, second) = image(options(CLUSTER + 512, Some("oldest")), []);
    let (newest, third) = image(options(3 * CLUSTER, Some("middle")), []);
    let links = vec![
        link(&newest, Some(&third)),
        link(&middle, Some(&second)),
        link(&oldest, Some(&first)),
    ];
    let disk = read_chain(links).expect("a sound chain");
    assert!(disk[..C + 512].iter().all(|&byte| byte == 1));
    assert!(disk[C + 512..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_wish_to_stop_ends_it_also_while_all_buffers_are_in_use() {
    let (file, written) = image(options(CLUSTER, None), [data(0, &[1; C])]);
    let pool = BufferPool::new(1, C);
    let stop = Stop::default();
    let mut source =
        ChainSource::open(vec![link(&file, Some(&written))], pool.clone(), stop.clone()).expect("it opens");
    let _held = pool.try_take().expect("one buffer is free");
    let asker = std::thread::spawn(move || stop.request(StopReason::Interrupted));
    assert_eq!(
        source.next_block().expect_err("it was asked to stop").kind,
        BlockErrorKind::Stopped
    );
    assert!(source.next_block().expect("it has ended").is_none());
    asker.join().expect("it asks");
}

#[test]
fn wrong_digest_is_reported_with_the_path_at_the_end() {
    let (file, mut written) = image(options(CLUSTER, None), [data(0, &[1; C])]);
    let right = written.blake3.replace("00".repeat(32));
    let mut source = ChainSource::open(
        vec![link(&file, Some(&written))],
        BufferPool::new(1, C),
        Stop::default(),
    )
    .expect("it opens");
    assert!(
        source
            .next_block()
            .expect("the data itself is readable")
            .is_some()
    );
    let error = source.next_block().expect_err("the digest differs");
    assert_eq!(error.kind, BlockErrorKind::Damaged);
    let right = right.expect("images have digests");
    assert_eq!(
        error.to_string(),
        format!(
            "sample.qcow2 does not match its recorded digest: expected {:.16}…, found {right:.16}…",
            "00".repeat(32)
        )
    );
}

#[test]
fn no_image_is_no_chain() {
    let result = ChainSource::open(Vec::new(), BufferPool::new(1, C), Stop::default());
    assert!(matches!(result, Err(Error::EmptyChain)));
}

/// The blocks of a part of a chain: their offsets and lengths.
fn blocks_of_part(images: Vec<ChainImage>) -> Vec<(u64, u64)> {
    let pool = BufferPool::new(2, 4 * C);
    let mut source = ChainSource::open_part(images, pool, Stop::default()).expect("it opens");
    let mut blocks = Vec::new();
    while let Some(block) = source.next_block().expect("it is sound") {
        blocks.push((block.offset, block.length()));
    }
    blocks
}

#[test]
fn part_of_a_chain_has_the_clusters_that_it_maps() {
    let size = 9 * CLUSTER + 512;
    let (older, first) = image(
        options(3 * CLUSTER + 512, Some("oldest")),
        [data(CLUSTER, &[1; C])],
    );
    let (newer, second) = image(options(size, Some("older")), [data(5 * CLUSTER, &[2; 2 * C])]);
    let links = vec![link(&newer, Some(&second)), link(&older, Some(&first))];
    assert_eq!(
        blocks_of_part(links),
        [(CLUSTER, CLUSTER), (5 * CLUSTER, 2 * CLUSTER)]
    );
}

#[test]
fn part_with_smaller_clusters_has_blocks_of_our_clusters() {
    const SMALL: u64 = 4096;
    let header = Header {
        cluster_bits: 12,
        size: 4 * CLUSTER,
        l1_offset: SMALL,
        l1_entries: 1,
        refcount_table_offset: 0,
        refcount_table_clusters: 0,
        refcount_order: 4,
        snapshots: 0,
        zstd: false,
        backing_name: Some("older".into()),
        backing_format: Some("qcow2".into()),
    };
    let mut bytes = vec![0; 4 * SMALL as usize];
    let encoded = header.encode();
    bytes[..encoded.len()].copy_from_slice(&encoded);
    let mut put = |at: u64, entry: u64| {
        bytes[at as usize..at as usize + 8].copy_from_slice(&entry.to_be_bytes());
    };
    put(SMALL, l1_entry(2 * SMALL));
    // One small cluster within our second one, and one within our last.
    for place in [CLUSTER / SMALL + 3, 4 * CLUSTER / SMALL - 1] {
        put(2 * SMALL + 8 * place, L2Entry::Data(3 * SMALL).encode());
    }
    let file = memory_file(&bytes);
    assert_eq!(
        blocks_of_part(vec![link(&file, None)]),
        [(CLUSTER, CLUSTER), (3 * CLUSTER, CLUSTER)]
    );
}
