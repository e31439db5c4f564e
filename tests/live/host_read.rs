//! Jobs read to their end by the NBD client.

use std::time::Duration;

use vmsnap::host::{BackupJob, ReadOptions};
use vmsnap::model::block::Content;
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::stop::Stop;

use crate::embed::{DISK, Kind, TestDomain};
use crate::host::begin;

const DEADLINE: Duration = Duration::from_secs(30);

/// The blocks of a disk, in KiB: `(offset, length, first byte)`. Zeroes have no byte, and adjacent
/// blocks with the same content are joined.
fn blocks(job: &dyn BackupJob, target: &str, changes_only: bool) -> Vec<(u64, u64, Option<u8>)> {
    let options = ReadOptions {
        changes_only,
        only: None,
        all_from: None,
        beneath: None,
        pool: BufferPool::new(8, 1 << 20),
        deadline: DEADLINE,
        stop: Stop::default(),
    };
    let mut source = job.open(target, &options).expect("it opens");
    assert_eq!(source.size(), DISK);
    let mut blocks: Vec<(u64, u64, Option<u8>)> = Vec::new();
    while let Some(block) = source.next_block().expect("it is read") {
        let (offset, length) = (block.offset / 1024, block.length() / 1024);
        let byte = match block.content {
            Content::Zero(_) => None,
            Content::Data(bytes) => {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "at {offset} KiB");
                Some(bytes[0])
            }
        };
        match blocks.last_mut() {
            Some(last) if last.0 + last.1 == offset && last.2 == byte => last.1 += length,
            _ => blocks.push((offset, length, byte)),
        }
    }
    blocks
}

fn check_changes(domain: &TestDomain) {
    domain.io("vda", "write -P 0x41 0 2M");
    let (job, _) = begin(domain, "c0", &[("vda", None)]).expect("it begins");
    assert_eq!(
        job.disk_size("vda", DEADLINE, &Stop::default())
            .expect("the size is known"),
        DISK
    );
    let full = blocks(job.as_ref(), "vda", false);
    assert_eq!(full, [(0, 2048, Some(0x41)), (2048, DISK / 1024 - 2048, None)]);
    job.finish().expect("it ends");

    domain.io("vda", "write -z 1M 64k");
    domain.io("vda", "write -P 0x42 4M 128k");
    let (job, _) = begin(domain, "c1", &[("vda", Some("c0"))]).expect("it begins");
    let changes = blocks(job.as_ref(), "vda", true);
    assert_eq!(changes, [(1024, 64, None), (4096, 128, Some(0x42))]);
    let whole = [
        (0, 1024, Some(0x41)),
        (1024, 64, None),
        (1088, 960, Some(0x41)),
        (2048, 2048, None),
        (4096, 128, Some(0x42)),
        (4224, DISK / 1024 - 4224, None),
    ];
    assert_eq!(
        blocks(job.as_ref(), "vda", false),
        whole,
        "the same job can be read in full as well"
    );
    job.finish().expect("it ends");

    let (job, _) = begin(domain, "c2", &[("vda", None)]).expect("it begins");
    let options = ReadOptions {
        changes_only: true,
        only: None,
        all_from: None,
        beneath: None,
        pool: BufferPool::new(1, 1 << 20),
        deadline: DEADLINE,
        stop: Stop::default(),
    };
    assert!(
        job.open("vda", &options).is_err(),
        "it was requested in full: no changes are known"
    );
    assert!(job.open("vdz", &options).is_err());
}

#[test]
fn active_domain_disks_are_read_in_full_and_by_changes() {
    check_changes(&TestDomain::paused("read ", &[Kind::Qcow2]));
}

#[test]
fn shut_off_domain_disks_are_read_in_full_and_by_changes() {
    check_changes(&TestDomain::define("read off ", &[Kind::Qcow2]));
}
