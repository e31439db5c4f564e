//! Memory use for a very large disk.

use std::fs::File;

use vmsnap::image::chain::{ChainImage, ChainSource, Recorded};
use vmsnap::image::qcow2::{CompressingWriter, Qcow2Options, Qcow2Writer};
use vmsnap::io::DirectFile;
use vmsnap::model::block::{Block, BlockSink, BlockSource, CLUSTER, Content};
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::compression::Compression;
use vmsnap::model::stop::Stop;

use crate::qcow2::{data, new_file};
use crate::support::{is_alone, status_kib};

const TEN_TEBIBYTES: u64 = 10 << 40;

#[test]
fn disk_of_10_tib_with_many_extents_takes_little_memory() {
    if is_alone("qcow2_memory::disk_of_10_tib_with_many_extents_takes_little_memory") {
        write_and_read(Compression::None);
    }
}

#[test]
fn compressing_a_disk_of_10_tib_takes_little_memory() {
    if is_alone("qcow2_memory::compressing_a_disk_of_10_tib_takes_little_memory") {
        write_and_read(Compression::default());
    }
}

fn write_and_read(compression: Compression) {
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
    let file = Box::new(DirectFile::new(new_file(&path)));
    let mut writer: Box<dyn BlockSink> = match compression {
        Compression::None => Box::new(Qcow2Writer::new(file, options).expect("it begins")),
        Compression::Zstd(level) => {
            Box::new(CompressingWriter::new(file, options, level).expect("it begins"))
        }
    };
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
        file: File::open(&path).expect("the image").into(),
        path,
        recorded: Some(Recorded {
            bytes: written.file_bytes,
            blake3: written.blake3.expect("images have digests"),
            pieces: written.pieces,
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
