//! A store that fails at each of its calls.

use super::lab::{C, Lab, assert_disk, data_block, noise, read, try_write, write_full};
use super::store::Trouble;
use crate::model::block::{BlockErrorKind, BlockSink};
use crate::model::stop::{Stop, StopReason};
use crate::repo::pack::data::PackErrorClass;

fn bytes() -> Vec<u8> {
    noise(1, 40 * C + 512)
}

fn blocks(bytes: &[u8]) -> impl Iterator<Item = crate::model::block::Block> {
    let blocks = bytes.chunks(3 * C).enumerate();
    blocks.map(|(number, part)| data_block((number * 3 * C) as u64, part))
}

/// The number of calls of one backup.
fn calls_of_a_run() -> usize {
    let lab = Lab::new(2 * C, 2 * C);
    write_full(&lab.data(), &bytes(), 3 * C);
    let calls = lab.store.state().calls;
    assert!(calls > 20, "{calls}");
    calls
}

/// Whatever call fails for good, the run fails. A later run with the store in order succeeds, and
/// reuses what an index object lists.
#[test]
fn run_fails_cleanly_at_each_call() {
    let bytes = bytes();
    for number in 0..calls_of_a_run() {
        let lab = Lab::new(2 * C, 2 * C);
        lab.store.trouble(number, Trouble::Dies);
        let result = lab.open().map_err(|error| error.to_string());
        let result = result.and_then(|data| try_write(&data, bytes.len() as u64, None, blocks(&bytes)));
        let error = result.expect_err("it fails");
        assert!(error.contains("access was refused"), "call {number}: {error}");
        lab.store.calm();
        let listed = lab.store.names("index/").len();
        let data = lab.data();
        let (root, written) =
            try_write(&data, bytes.len() as u64, None, blocks(&bytes)).expect("it succeeds");
        let is_less = written.file_bytes < bytes.len() as u64 / 2;
        assert!(listed == 0 || is_less, "call {number}: {written:?}");
        assert_disk(&data, root, 0, &bytes);
        assert_disk(&lab.data(), root, 0, &bytes);
    }
}

#[test]
fn passing_failures_are_survived_at_each_call() {
    let bytes = bytes();
    for number in 0..calls_of_a_run() {
        for trouble in [Trouble::Hiccups, Trouble::LosesAnswer] {
            let lab = Lab::new(2 * C, 2 * C);
            lab.store.trouble(number, trouble);
            let data = lab.data();
            let result = try_write(&data, bytes.len() as u64, None, blocks(&bytes));
            let (root, _) = result.unwrap_or_else(|error| panic!("call {number}: {error}"));
            assert!(read(&lab.data(), root, 0).expect("it reads") == bytes);
        }
    }
}

/// After a failed upload nothing can be flushed: a record could refer to lost blocks.
#[test]
fn failed_upload_spoils_the_later_work() {
    let lab = Lab::new(2 * C, 2 * C);
    let data = lab.data();
    let stop = Stop::default();
    lab.store.trouble(0, Trouble::Dies);
    data.put(&bytes(), &stop).expect_err("it fails");
    lab.store.calm();
    assert!(data.flush(&stop).is_err() && data.put(b"small", &stop).is_err());
    assert!(try_write(&data, C as u64, None, blocks(&noise(1, C))).is_err());
    assert!(lab.data().put(b"small", &stop).is_ok());
}

#[test]
fn a_wish_to_stop_ends_reading_and_writing() {
    let lab = Lab::new(2 * C, 2 * C);
    let data = lab.data();
    let (root, _) = write_full(&data, &bytes(), C);
    let stop = Stop::default();
    let mut sink = data
        .sink(root.1, None, Default::default(), stop.clone())
        .expect("it begins");
    let disk = data.disk(root.0, root.1, stop.clone()).expect("it opens");
    let pool = crate::model::buffer::BufferPool::new(1, C);
    let mut source = data
        .source(root.0, root.1, pool.clone(), stop.clone())
        .expect("it opens");
    stop.request(StopReason::Interrupted);
    let _held = pool.try_take();
    let kinds = [
        sink.write(data_block(0, &noise(1, C)))
            .map_err(|error| error.kind),
        sink.finish().map(drop).map_err(|error| error.kind),
        disk.read_at(&mut [0; 10], 0).map_err(|error| error.kind),
        disk.holds(&[0; 10], 0).map(drop).map_err(|error| error.kind),
        disk.extent_at(0).map(drop).map_err(|error| error.kind),
        source.next_block().map(drop).map_err(|error| error.kind),
    ];
    assert_eq!(kinds, [Err(BlockErrorKind::Stopped); 6]);
    let put = data.refresh(&stop).expect_err("it stops");
    assert_eq!(put.class(), PackErrorClass::Stopped(StopReason::Interrupted));
}

/// A sink that is dropped leaves blocks behind that a later sink may use.
#[test]
fn dropped_sink_leaves_usable_blocks() {
    let lab = Lab::new(2 * C, 2 * C);
    let data = lab.data();
    let bytes = bytes();
    let sink = data.sink(bytes.len() as u64, None, Default::default(), Stop::default());
    let mut sink: Box<dyn BlockSink> = sink.expect("it begins");
    for block in blocks(&bytes).take(7) {
        sink.write(block).expect("it writes");
    }
    drop(sink);
    let (root, _) = try_write(&data, bytes.len() as u64, None, blocks(&bytes)).expect("it writes");
    assert_disk(&lab.data(), root, 0, &bytes);
}
