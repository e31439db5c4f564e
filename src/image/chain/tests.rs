//! Chains as sources of blocks.

use super::*;
use crate::image::samples::{C, data, image, link, options, read_chain};
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
