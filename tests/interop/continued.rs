//! `qemu-img` reads images that were continued, at each stage.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmsnap::image::chain::{ChainImage, ChainSource, Recorded};
use vmsnap::image::qcow2::{Base, CompressingWriter, Qcow2Options, Qcow2Writer};
use vmsnap::io::{DiskStore, Store};
use vmsnap::model::block::{BlockSink, BlockSource, CLUSTER, Written};
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::compression::{Compression, ZstdLevel};
use vmsnap::model::stop::Stop;

use crate::qcow2::{data, mixed_bytes, write_image, zero};
use crate::support::{run, temp_dir};

const C: usize = CLUSTER as usize;

fn link(path: &Path, written: &Written) -> ChainImage {
    ChainImage {
        file: File::open(path).expect("the image").into(),
        path: path.to_owned(),
        recorded: Some(Recorded {
            bytes: written.file_bytes,
            blake3: written.blake3.clone().expect("images have digests"),
            pieces: written.pieces.clone(),
        }),
    }
}

/// Continues an image with the one above it.
fn continued(base: (&Path, &Written), newer: ChainImage, size: u64, compression: Compression) -> Written {
    let (path, before) = base;
    let ChainImage {
        file,
        path: of,
        recorded,
    } = link(path, before);
    let recorded = recorded.expect("it has digests");
    let opened = Base::open(file, of, recorded, (before.data_bytes, before.zero_bytes));
    let opened = opened.expect("it can be read").expect("it can be continued");
    let file = DiskStore.continue_image(path).expect("it opens");
    let options = Qcow2Options {
        path: path.to_owned(),
        size,
        backing: None,
        detect_zeroes: true,
        stop: Stop::default(),
    };
    let mut writer: Box<dyn BlockSink> = match compression {
        Compression::None => Box::new(Qcow2Writer::continued(file, options, opened).expect("it begins")),
        Compression::Zstd(level) => {
            Box::new(CompressingWriter::continued(file, options, opened, level).expect("it begins"))
        }
    };
    let pool = BufferPool::new(4, 4 * C);
    let mut source = ChainSource::open_part(vec![newer], pool, Stop::default()).expect("a sound image");
    while let Some(block) = source.next_block().expect("a sound image") {
        writer.write(block).expect("it takes the block");
    }
    writer.finish().expect("it finishes")
}

/// What qemu-img makes of an image with its backing files; the image itself has no fault.
fn read_by_qemu_img(image: &Path, raw: &Path) -> Vec<u8> {
    let (image, to) = (
        image.to_str().expect("a plain path"),
        raw.to_str().expect("a plain path"),
    );
    run("qemu-img", &["check", "-q", "-f", "qcow2", image]);
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", image, to]);
    fs::read(raw).expect("readable")
}

/// Full images of plain and compressed clusters that are continued several times, while the disk
/// grows: at each stage `qemu-img` reads the old image, and the newer one above it.
#[test]
fn qemu_img_reads_continued_images_at_each_stage() {
    let kinds = [Compression::None, Compression::Zstd(ZstdLevel::default())];
    for (of_full, of_newer) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        let temp = temp_dir();
        let [full, newer, raw] = ["full", "newer", "raw"].map(|name| temp.path().join(name));
        let mut disk = mixed_bytes(50 * C, 1);
        let blocks = [data(0, &disk)];
        let mut written = write_image(&full, disk.len() as u64, None, kinds[of_full], blocks);
        for round in 2..6u8 {
            let before = disk.clone();
            disk.resize(disk.len() + 3 * C + 512, 0);
            let size = disk.len() as u64;
            let changed = mixed_bytes(7 * C, round);
            let place = usize::from(round) * 4 * C;
            disk[place..place + changed.len()].copy_from_slice(&changed);
            disk[place + 9 * C..place + 12 * C].fill(0);
            let blocks = [data(place, &changed), zero(place + 9 * C, 3 * C)];
            let above = write_image(&newer, size, Some("full"), kinds[of_newer], blocks);
            let newest = link(&newer, &above);
            written = continued((&full, &written), newest, size, kinds[of_newer]);
            // The file is still the old image, and the newer one above it is what it was.
            assert!(read_by_qemu_img(&full, &raw) == before);
            assert!(read_by_qemu_img(&newer, &raw) == disk);
            let patch = written.patch.take().expect("it has changes");
            let file = File::options().write(true).open(&full).expect("it opens");
            file.write_all_at(&patch.header, 0).expect("written");
            assert!(read_by_qemu_img(&full, &raw) == disk);
            assert!(read_by_qemu_img(&newer, &raw) == disk);
            let mut image = DiskStore.continue_image(&full).expect("it opens");
            for range in patch.freed {
                image.free(range).expect("the file system has holes");
            }
            image.sync().expect("synced");
            assert!(read_by_qemu_img(&full, &raw) == disk);
            assert!(read_by_qemu_img(&newer, &raw) == disk);
            fs::remove_file(&newer).expect("removed");
        }
    }
}
