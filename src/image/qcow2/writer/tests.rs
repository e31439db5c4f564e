//! Tests of the writer.

use super::*;
use crate::image::qcow2::{Image, Mapping};
use crate::image::samples::{C, Full, data, image, memory_file, options, zero};
use crate::model::block::BlockErrorKind;
use crate::model::stop::StopReason;
use std::path::Path;

/// The mapping of each of the first clusters: d for data, 0 for zero, - for unallocated.
fn clusters(file: std::fs::File, count: u64) -> String {
    let mut image = Image::open(file, "x").expect("it is an image");
    let kind = |run: crate::image::qcow2::MappedRun| match run.mapping {
        Mapping::Data { .. } => 'd',
        Mapping::Compressed { .. } => 'c',
        Mapping::Zero => '0',
        Mapping::Unallocated => '-',
    };
    (0..count)
        .map(|n| {
            image
                .run_at(n * CLUSTER)
                .expect("it can be read")
                .map_or('.', kind)
        })
        .collect()
}

fn mixed() -> Vec<Block> {
    let mut bytes = vec![0; 4 * C];
    bytes[C] = 1;
    bytes[4 * C - 1] = 1;
    vec![
        zero(0, 2 * CLUSTER),
        data(3 * CLUSTER, &bytes),
        zero(9 * CLUSTER, 512),
    ]
}

#[test]
fn zeroes_are_explicit_only_above_a_backing_image() {
    let size = 9 * CLUSTER + 512;
    let (alone, written) = image(options(size, None), mixed());
    assert_eq!(clusters(alone, 11), "----d-d---.");
    assert_eq!((written.data_bytes, written.zero_bytes), (2 * CLUSTER, 0));
    let (above, written) = image(options(size, Some("base.qcow2")), mixed());
    assert_eq!(clusters(above, 11), "00-0d0d--0.");
    assert_eq!(
        (written.data_bytes, written.zero_bytes),
        (2 * CLUSTER, 4 * CLUSTER + 512)
    );
}

#[test]
fn zero_detection_can_be_turned_off() {
    let mut options = options(9 * CLUSTER + 512, Some("base.qcow2"));
    options.detect_zeroes = false;
    let (file, written) = image(options, mixed());
    assert_eq!(clusters(file, 11), "00-dddd--0.");
    assert_eq!(written.data_bytes, 4 * CLUSTER);
}

#[test]
fn an_empty_disk_is_an_image_too() {
    for size in [0, 512] {
        let (file, _) = image(options(size, None), []);
        assert_eq!(Image::open(file, "x").expect("it is an image").size(), size);
    }
}

#[test]
fn long_runs_short_runs_and_tables_keep_their_order() {
    // The sample file asserts rising offsets and the digest; two runs cross the end of a table.
    let ones = vec![1; 20 * C];
    let blocks = [
        data(0, &ones[..3 * C]),
        data(TABLE_SPAN - 10 * CLUSTER, &ones),
        data(2 * TABLE_SPAN - CLUSTER, &ones[..2 * C]),
        data(5 * TABLE_SPAN, &ones[..17 * C]),
        data(6 * TABLE_SPAN, &ones[..512]),
    ];
    let (file, written) = image(options(6 * TABLE_SPAN + 512, None), blocks);
    assert_eq!(written.data_bytes, 42 * CLUSTER + 512);
    let mut image = Image::open(file, "x").expect("it is an image");
    let run = image
        .run_at(TABLE_SPAN - 9 * CLUSTER)
        .expect("it can be read")
        .expect("it is on the disk");
    assert_eq!(run.length, 9 * CLUSTER, "a table ends here");
    let run = image
        .run_at(2 * TABLE_SPAN + CLUSTER)
        .expect("it can be read")
        .expect("it is on the disk");
    assert_eq!(
        (run.mapping, run.length),
        (Mapping::Unallocated, TABLE_SPAN - CLUSTER)
    );
    let run = image
        .run_at(3 * TABLE_SPAN + 5)
        .expect("it can be read")
        .expect("it is on the disk");
    assert_eq!(
        (run.mapping, run.length),
        (Mapping::Unallocated, 2 * TABLE_SPAN - 5)
    );
}

#[test]
fn impossible_disks_and_names_are_refused() {
    let begin = |options| Qcow2Writer::new(Box::new(Full), options).map(|_| ());
    assert!(matches!(begin(options(1000, None)), Err(Error::Size { .. })));
    assert!(matches!(
        begin(options((2 << 50) + 512, None)),
        Err(Error::Size { .. })
    ));
    assert!(matches!(
        begin(options(512, Some(""))),
        Err(Error::BackingName { .. })
    ));
    assert!(matches!(
        begin(options(512, Some(&"n".repeat(1024)))),
        Err(Error::BackingName { .. })
    ));
}

#[test]
fn full_file_system_is_reported_as_such() {
    let mut writer = Qcow2Writer::new(Box::new(Full), options(100 * CLUSTER, None)).expect("it begins");
    let ones = vec![1; 8 * C];
    let failed = (0..12).find_map(|n| writer.write(data(n * 8 * CLUSTER, &ones)).err());
    let error = failed
        .or_else(|| writer.finish().err())
        .expect("nothing can be written");
    assert_eq!(error.kind, BlockErrorKind::NoSpace);
    assert!(writer.finish().is_err(), "after a failure there is no image");
}

#[test]
fn an_unfinished_file_is_no_image() {
    let file = memory_file(&[]);
    let second = file.try_clone().expect("a second handle");
    let direct = crate::io::DirectFile::new(second);
    let mut writer = Qcow2Writer::new(Box::new(direct), options(100 * CLUSTER, None)).expect("it begins");
    for n in 0..12 {
        writer
            .write(data(n * 8 * CLUSTER, &vec![1; 8 * C]))
            .expect("it takes the block");
    }
    // Gives the writer thread time to begin.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while file.metadata().expect("it has a length").len() <= CLUSTER {
        assert!(std::time::Instant::now() < deadline, "something is written");
        std::thread::yield_now();
    }
    drop(writer);
    assert!(matches!(
        Image::open(file, Path::new("x")),
        Err(Error::Format { .. })
    ));
}

#[test]
fn nothing_is_written_after_the_end_or_a_wish_to_stop() {
    let mut writer = Qcow2Writer::new(Box::new(Full), options(CLUSTER, None)).expect("it begins");
    writer.options.stop.request(StopReason::Interrupted);
    assert_eq!(
        writer.finish().expect_err("it was asked to stop").kind,
        BlockErrorKind::Stopped
    );

    let direct = crate::io::DirectFile::new(memory_file(&[]));
    let mut writer = Qcow2Writer::new(Box::new(direct), options(CLUSTER, None)).expect("it begins");
    writer.finish().expect("it finishes");
    assert!(writer.write(data(0, &[1; C])).is_err());
    assert!(writer.finish().is_err());
}
