//! The parsers of sets, for the fuzz targets. Each accepts any bytes.

use std::fs::File;
use std::path::Path;

use super::definition::Definition;
use super::layer::{ChainFile, Form, Layer};
use super::logs::Logs;
use super::names::{DataName, config_run};
use super::source::SetSource;
use super::stack::Stack;
use crate::model::block::{BlockSource, CLUSTER};
use crate::model::buffer::BufferPool;
use crate::model::stop::Stop;

/// The largest disk that is read to its end, in bytes.
const LARGEST: u64 = 64 << 20;

/// Parses and reads the file at this path as a stream. It takes a path because chains open their
/// files by path.
pub fn stream(path: &Path) {
    let file = ChainFile {
        path: path.to_owned(),
        form: Form::Stream,
        expected: None,
    };
    let stop = Stop::default();
    let Ok(layer) = Layer::open(&file, &stop) else {
        return;
    };
    let size = layer.size();
    if size > LARGEST {
        return;
    }
    drop(layer);
    let Ok(stack) = Stack::open(std::slice::from_ref(&file), size, &stop) else {
        return;
    };
    let mut source = SetSource::new(stack, 1, BufferPool::new(2, 2 * CLUSTER as usize), stop.clone());
    let mut end = 0;
    let is_sound = loop {
        match source.next_block() {
            Ok(Some(block)) => {
                assert_eq!(block.offset, end, "blocks leave no gap");
                end += block.length();
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    assert!(!is_sound || end == size, "a sound stream gives the whole disk");
    let verified = Layer::open(&file, &stop).is_ok_and(|mut layer| layer.verify(&mut |_| ()).is_ok());
    assert!(is_sound || !verified, "a verified stream can be read");
    let Ok(stack) = Stack::open(std::slice::from_ref(&file), size, &stop) else {
        return;
    };
    if let Ok(disk) = super::disk::SetDisk::new(stack) {
        let disk: &dyn crate::repo::DiskReader = &disk;
        let mut at = 0;
        for extent in disk.extents(0..size).map_while(Result::ok) {
            assert_eq!(extent.offset, at, "extents leave no gap");
            at += extent.length;
        }
        let _ = disk.read_at(&mut [0; 4096], size / 2);
    }
}

/// Parses a text as the name of a file, as a definition, and as a log.
pub fn texts(bytes: &[u8]) {
    let _ = Definition::parse(bytes);
    Logs::default().add(bytes);
    let _ = super::frame::Header::parse(bytes);
    if let Ok(name) = std::str::from_utf8(bytes) {
        let _ = (DataName::parse(name), config_run(name));
    }
}

/// Writes bytes to a file for [`stream`].
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::io::Write::write_all(&mut File::create(path)?, bytes)
}
