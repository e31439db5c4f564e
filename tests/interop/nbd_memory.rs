//! Memory use of a backup, in this process and in QEMU.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vmsnap::image::qcow2::{Qcow2Options, Qcow2Writer};
use vmsnap::io::DirectFile;
use vmsnap::model::block::{BlockSource, CLUSTER};
use vmsnap::model::stop::Stop;
use vmsnap::nbd::{ExportSource, Mode, SourceOptions};
use vmsnap::ops::copy;

use crate::qcow2::new_file;
use crate::support::{Server, is_alone, status_kib, temp_dir};

const TEN_TEBIBYTES: u64 = 10 << 40;

/// Entries of an L1 or L2 table in a cluster.
const ENTRIES: u64 = CLUSTER / 8;
const TABLES: u64 = TEN_TEBIBYTES / CLUSTER / ENTRIES;
/// One in this many L2 tables is in use.
const EVERY: u64 = 160;
const USED_TABLES: u64 = TABLES / EVERY;
/// In each of these tables data and holes alternate.
const EXTENTS: u64 = USED_TABLES * ENTRIES;

#[test]
fn backup_of_10_tib_in_a_million_extents_takes_little_memory() {
    if !is_alone("nbd_memory::backup_of_10_tib_in_a_million_extents_takes_little_memory") {
        return;
    }
    const { assert!(EXTENTS > 1_000_000) };
    let folder = temp_dir();
    let (vast, path) = (folder.path().join("vast.qcow2"), folder.path().join("copy.qcow2"));
    write_vast_image(&vast);
    let server = Server::qemu_nbd(folder.path(), &vast, "qcow2", &[]);
    let before = status_kib("VmRSS:");

    let stop = Stop::default();
    let options = SourceOptions::new(Mode::Full, copy::pool(), Duration::from_secs(60), stop.clone());
    let mut source = ExportSource::open(server.socket(), "", options).expect("the export opens");
    let options = Qcow2Options {
        path: path.clone(),
        size: TEN_TEBIBYTES,
        // With a backing file, zeroes have to be recorded in the image.
        backing: Some("../older/vda.qcow2".into()),
        detect_zeroes: true,
        stop: stop.clone(),
    };
    let mut sink = Qcow2Writer::new(Box::new(DirectFile::new(new_file(&path))), options).expect("it begins");
    let mut copied = 0;
    let written = copy::copy_export(&mut source, &mut sink, &stop, &mut |at| copied = at.copied);
    let written = written.expect("it is copied");
    assert_eq!(copied, EXTENTS / 2 * CLUSTER, "every second piece was read");
    assert_eq!((written.data_bytes, written.zero_bytes), (0, TEN_TEBIBYTES));

    let grown = status_kib("VmHWM:") - before;
    assert!(grown < 64 * 1024, "{grown} KiB more than at the start");
    let all = status_kib("VmHWM:");
    assert!(all < 128 * 1024, "{all} KiB in all");
}

/// Writes an image of 10 TiB whose data is all in one cluster. Every second entry of one L2 table
/// names this cluster, and many entries of the L1 table name this L2 table. QEMU accepts that when
/// it only reads. The data is zeroes, which only reading reveals.
fn write_vast_image(path: &Path) {
    let l1_clusters = TABLES.div_ceil(ENTRIES);
    let (l1, refcounts) = (CLUSTER, CLUSTER * (1 + l1_clusters));
    let (l2, data) = (refcounts + CLUSTER, refcounts + 2 * CLUSTER);
    let mut image = vec![0; (data + CLUSTER) as usize];
    let mut put = |offset: u64, bytes: &[u8]| {
        let start = offset as usize;
        image[start..start + bytes.len()].copy_from_slice(bytes);
    };
    // Source: the header in QEMU's docs/interop/qcow2.txt.
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &CLUSTER.trailing_zeros().to_be_bytes());
    put(24, &TEN_TEBIBYTES.to_be_bytes());
    put(36, &(TABLES as u32).to_be_bytes());
    put(40, &l1.to_be_bytes());
    put(48, &refcounts.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    for table in 0..USED_TABLES {
        put(l1 + table * EVERY * 8, &l2.to_be_bytes());
    }
    for entry in (0..ENTRIES).step_by(2) {
        put(l2 + entry * 8, &data.to_be_bytes());
    }
    fs::write(path, image).expect("there is room");
}

#[test]
fn qemu_reuses_the_memory_for_its_answers() {
    const SIZE: u64 = 256 << 20;
    let folder = temp_dir();
    let image = folder.path().join("full.raw");
    fs::write(&image, vec![7; SIZE as usize]).expect("there is room");
    let server = Server::qemu_nbd(folder.path(), &image, "raw", &[]);
    let read_all = || {
        let (pool, patience) = (copy::pool(), Duration::from_secs(60));
        let options = SourceOptions::new(Mode::Full, pool, patience, Stop::default());
        let mut source = ExportSource::open(server.socket(), "", options).expect("the export opens");
        let mut read = 0;
        while let Some(block) = source.next_block().expect("it can be read") {
            read += block.length();
        }
        assert_eq!(read, SIZE);
    };
    // The first read makes QEMU's heap grow. QEMU returns only the free end of its heap to the
    // kernel, and only now and then.
    read_all();
    let before = server.page_faults();
    read_all();
    let faults = server.page_faults() - before;
    let pages = SIZE / 4096;
    assert!(
        faults < pages / 2,
        "{faults} page faults for {pages} pages of the disk"
    );
}
