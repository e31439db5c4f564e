//! Any bytes as compressed clusters, and any descriptors of them.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vmsnap::image::chain::{ChainDisk, ChainImage, ChainSource};
use vmsnap::image::qcow2::Image;
use vmsnap::image::qcow2::check::check;
use vmsnap::model::block::BlockSource;
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::stop::Stop;

/// Clusters of 4 KiB: the header, the L1 table, the L2 table, and from there on what is stored.
const CLUSTER: u64 = 4096;
const STORED: u64 = 3 * CLUSTER;
/// How many descriptors are taken from the input. Each is the place and length of a cluster.
const ENTRIES: usize = 8;

fn link(file: &File) -> Vec<ChainImage> {
    vec![ChainImage {
        file: file.try_clone().expect("a second handle").into(),
        path: "image".into(),
        recorded: None,
    }]
}

/// A header with the compression type zstd ("Header" in QEMU's `docs/interop/qcow2.txt`).
fn header() -> [u8; 112] {
    let mut bytes = [0; 112];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &CLUSTER.trailing_zeros().to_be_bytes());
    put(24, &(ENTRIES as u64 * CLUSTER - 512).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &CLUSTER.to_be_bytes());
    put(72, &8u64.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    put(104, &[1]);
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let Some((descriptors, stored)) = bytes.split_at_checked(ENTRIES * 4) else {
        return;
    };
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("memory"));
    let put = |bytes: &[u8], at: u64| file.write_all_at(bytes, at).expect("memory");
    put(&header(), 0);
    put(&(1u64 << 63 | 2 * CLUSTER).to_be_bytes(), CLUSTER);
    for (number, descriptor) in descriptors.chunks(4).enumerate() {
        // Three bytes of offset near the stored bytes, one of sectors; odd ones reach anywhere.
        let [high, middle, low, sectors] = [0, 1, 2, 3].map(|n| u64::from(descriptor[n]));
        let offset = STORED + (middle << 8 | low) + (high / 0x80 << 40);
        let entry = 1u64 << 62 | sectors << 58 | offset;
        put(&entry.to_be_bytes(), 2 * CLUSTER + number as u64 * 8);
    }
    put(stored, STORED);

    let stop = Stop::default();
    let image = Image::open(file.try_clone().expect("a second handle"), "image").expect("it is one");
    let _ = check(&image, &stop);
    let mut source =
        ChainSource::open(link(&file), BufferPool::new(1, 1 << 20), stop.clone()).expect("a chain");
    while let Ok(Some(block)) = source.next_block() {
        assert!(block.length() > 0);
    }
    let disk = ChainDisk::open(link(&file), stop).expect("a chain");
    let mut out = [0; 700];
    for offset in (0..disk.size()).step_by(1000) {
        let _ = disk.read_at(&mut out, offset);
        let _ = disk.holds(&out, offset);
    }
});
