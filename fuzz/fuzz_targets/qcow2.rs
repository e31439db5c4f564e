//! Reads arbitrary bytes as a qcow2 image: the header, the tables and the data they point to.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vmsnap::image::chain::{ChainImage, ChainSource};
use vmsnap::image::qcow2::{Header, Image};
use vmsnap::model::block::BlockSource;
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::stop::Stop;

fuzz_target!(|bytes: &[u8]| {
    let _ = Header::parse(bytes, bytes.len() as u64);

    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("memory"));
    file.write_all_at(bytes, 0).expect("memory");
    let Ok(mut image) = Image::open(file.try_clone().expect("a second handle"), "image") else {
        return;
    };
    let mut offset = 0;
    for _ in 0..1000 {
        let Ok(Some(run)) = image.run_at(offset) else {
            break;
        };
        assert!(run.length > 0 && run.length <= image.size() - offset);
        offset += run.length;
    }

    // A run of zeroes can be as long as the disk claims to be, so only small disks are read to the
    // end.
    if image.size() > 64 << 20 {
        return;
    }
    let link = ChainImage {
        file: file.into(),
        path: "image".into(),
        recorded: None,
    };
    if let Ok(mut source) = ChainSource::open(vec![link], BufferPool::new(1, 1 << 20), Stop::default()) {
        while let Ok(Some(block)) = source.next_block() {
            assert!(block.length() > 0);
        }
    }
});
