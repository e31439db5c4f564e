//! The memory that a vast disk takes.
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait for them")]

use std::fs::{self, File};
use std::process::Command;

use vmsnap::image::chain::{ChainImage, ChainSource, Recorded};
use vmsnap::image::qcow2::{Qcow2Options, Qcow2Writer};
use vmsnap::io::DirectFile;
use vmsnap::model::block::{Block, BlockSink, BlockSource, CLUSTER, Content};
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::stop::Stop;

use crate::qcow2::{data, new_file};

const TEN_TEBIBYTES: u64 = 10 << 40;
const CHILD: &str = "VMSNAP_MEMORY_TEST_CHILD";

/// A peak is a matter of the whole process, so the test runs once more, alone, in a process of its own.
#[test]
fn a_disk_of_ten_tebibytes_with_many_extents_takes_little_memory() {
    if std::env::var_os(CHILD).is_none() {
        let name = "qcow2_memory::a_disk_of_ten_tebibytes_with_many_extents_takes_little_memory";
        let itself = std::env::current_exe().expect("the test's own program");
        let status = Command::new(itself)
            .args(["--exact", name])
            .env(CHILD, "1")
            .status();
        assert!(status.expect("it starts").success(), "the child failed");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("vast.qcow2");
    let before = status_kib("VmRSS:");

    let options = Qcow2Options {
        path: path.clone(),
        size: TEN_TEBIBYTES,
        backing: Some("../older/vda.qcow2".into()),
        detect_zeroes: true,
        stop: Stop::default(),
    };
    let mut writer =
        Qcow2Writer::new(Box::new(DirectFile::new(new_file(&path))), options).expect("it begins");
    let (places, extents) = (2000, 100);
    for place in 0..places {
        let start = place * (TEN_TEBIBYTES / places / CLUSTER * CLUSTER);
        writer
            .write(data(start as usize, &[place as u8 | 1; CLUSTER as usize]))
            .expect("it takes data");
        for extent in 1..extents {
            let block = Block {
                offset: start + extent * 3 * CLUSTER,
                content: Content::Zero(CLUSTER),
            };
            writer.write(block).expect("it takes zero");
        }
    }
    let written = writer.finish().expect("it finishes");
    assert_eq!(written.data_bytes, places * CLUSTER);
    assert_eq!(written.zero_bytes, places * (extents - 1) * CLUSTER);

    let link = ChainImage {
        file: File::open(&path).expect("the image"),
        path,
        recorded: Some(Recorded {
            bytes: written.file_bytes,
            blake3: written.blake3.expect("images have digests"),
        }),
    };
    let mut source =
        ChainSource::open(vec![link], BufferPool::new(4, 1 << 20), Stop::default()).expect("it opens");
    let (mut covered, mut found) = (0, 0);
    while let Some(block) = source.next_block().expect("it is sound") {
        covered += block.length();
        if let Content::Data(buffer) = block.content {
            found += buffer.len() as u64;
        }
    }
    assert_eq!((covered, found), (TEN_TEBIBYTES, written.data_bytes));

    let grown = status_kib("VmHWM:") - before;
    assert!(grown < 64 * 1024, "{grown} KiB more than at the start");
}

/// A field of procfs about this process, in KiB.
pub fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .expect("the field");
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number")
}
