//! Random stories of writes, zeroes, discards, growth and backups on a qcow2 image, compared with a
//! plain array of bytes. `qemu-img` makes the bitmaps and `qemu-nbd` the exports: all of the data
//! path except libvirt.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use vmsnap::image::chain::{ChainDisk, ChainImage, ChainSource, Recorded};
use vmsnap::image::qcow2::{Qcow2Options, Qcow2Writer};
use vmsnap::io::DirectFile;
use vmsnap::model::block::{Beneath, BlockError, BlockErrorKind, BlockSource, Content, Written};
use vmsnap::model::stop::Stop;
use vmsnap::nbd::{ExportSource, Mode, SourceOptions};
use vmsnap::ops::copy::{copy_export, pool};

use crate::support::{Server, qemu_io, run, temp_dir};

const CLUSTER: usize = 65536;
const SIZE: usize = 5 * 1024 * 1024 + 512 * 37;

#[derive(Clone, Debug)]
enum Act {
    Write { at: usize, length: usize, byte: u8 },
    Zero { at: usize, length: usize },
    Discard { at: usize, length: usize },
    Grow(usize),
    ShrinkAndGrow(usize),
    Backup,
}

fn act() -> impl Strategy<Value = Act> {
    // qemu-io writes at any offset. Zeroes and discards are aligned to sectors, as those of a guest
    // are.
    let at = 0..SIZE - 1;
    let sectors = 0..SIZE / 512 - 1;
    prop_oneof![
        8 => (at, 1..200_000usize, 1..=255u8).prop_map(|(at, length, byte)| Act::Write { at, length, byte }),
        3 => (sectors, 1..600usize).prop_map(|(at, length)| Act::Zero { at: at * 512, length: length * 512 }),
        3 => (0..SIZE / CLUSTER, 1..5usize).prop_map(|(at, length)| Act::Discard { at: at * CLUSTER, length: length * CLUSTER }),
        1 => (1..300usize).prop_map(|sectors| Act::Grow(sectors * 512)),
        1 => (1..60usize).prop_map(|clusters| Act::ShrinkAndGrow(clusters * CLUSTER)),
        4 => Just(Act::Backup),
    ]
}

/// One image under test, its expected content, and the restore points made of it.
struct Story {
    folder: tempfile::TempDir,
    image: PathBuf,
    model: Vec<u8>,
    /// The guest's writes that have not reached the image yet.
    waiting: Vec<String>,
    points: Vec<Point>,
}

struct Point {
    path: PathBuf,
    written: Written,
    /// The number of the parent.
    upon: Option<usize>,
    model: Vec<u8>,
}

impl Story {
    fn begin() -> Story {
        let folder = temp_dir();
        let image = folder.path().join("disk.qcow2");
        let size = SIZE.to_string();
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", text(&image), size.as_str()],
        );
        Story {
            folder,
            image,
            model: vec![0; SIZE],
            waiting: Vec::new(),
            points: Vec::new(),
        }
    }

    fn act(&mut self, act: &Act) {
        let end = |at: usize, length: usize| (at + length).min(self.model.len());
        match *act {
            Act::Write { at, length, byte } => {
                let end = end(at, length);
                self.waiting.push(format!("write -P {byte} {at} {}", end - at));
                self.model[at..end].fill(byte);
            }
            Act::Zero { at, length } => {
                let end = end(at, length);
                self.waiting.push(format!("write -z {at} {}", end - at));
                self.model[at..end].fill(0);
            }
            Act::Discard { at, length } => {
                // Whole clusters only: the result of a partial discard depends on the image.
                let end = end(at, length) / CLUSTER * CLUSTER;
                if end > at {
                    self.waiting.push(format!("discard {at} {}", end - at));
                    self.model[at..end].fill(0);
                }
            }
            Act::Grow(by) => {
                self.settle();
                self.model.resize(self.model.len() + by, 0);
                let size = self.model.len().to_string();
                run(
                    "qemu-img",
                    &["resize", "-q", "-f", "qcow2", text(&self.image), size.as_str()],
                );
            }
            Act::ShrinkAndGrow(by) => {
                self.settle();
                let size = self.model.len();
                // Whole clusters: truncating within a cluster leaves no trace in the image.
                let less = size.saturating_sub(by).max(CLUSTER) / CLUSTER * CLUSTER;
                self.model.truncate(less);
                self.model.resize(size, 0);
                for size in [less.to_string(), size.to_string()] {
                    let arguments = [
                        "resize",
                        "-q",
                        "--shrink",
                        "-f",
                        "qcow2",
                        text(&self.image),
                        size.as_str(),
                    ];
                    run("qemu-img", &arguments);
                }
            }
            Act::Backup => self.backup(),
        }
    }

    fn settle(&mut self) {
        if !self.waiting.is_empty() {
            qemu_io(&self.image, "qcow2", &std::mem::take(&mut self.waiting));
        }
    }

    fn backup(&mut self) {
        self.settle();
        let number = self.points.len();
        let bitmap = format!("b{number}");
        run(
            "qemu-img",
            &["bitmap", "--add", text(&self.image), bitmap.as_str()],
        );
        let since = number.checked_sub(1).map(|parent| format!("b{parent}"));
        let bitmap_arguments: Vec<&str> = since.iter().flat_map(|name| ["-B", name.as_str()]).collect();
        let mut arguments = vec!["-x", "vda"];
        arguments.extend(bitmap_arguments);
        let server = Server::qemu_nbd(self.folder.path(), &self.image, "qcow2", &arguments);
        let path = self.folder.path().join(format!("point-{number}.qcow2"));
        let (written, upon) = match self.copy(&server, &path, since.as_deref()) {
            Ok(written) => (written, number.checked_sub(1)),
            Err(error) => {
                assert_eq!(error.kind, BlockErrorKind::Distrusted, "{error}");
                std::fs::remove_file(&path).expect("it was begun");
                (self.copy(&server, &path, None).expect("a full copy"), None)
            }
        };
        self.points.push(Point {
            path,
            written,
            upon,
            model: self.model.clone(),
        });
    }

    fn copy(&self, server: &Server, path: &Path, since: Option<&str>) -> Result<Written, BlockError> {
        let stop = Stop::default();
        let mode = match since {
            None => Mode::Full,
            Some(name) => Mode::Changes {
                bitmap_context: format!("qemu:dirty-bitmap:{name}"),
            },
        };
        let mut options = SourceOptions::new(mode, pool(), Duration::from_secs(30), stop.clone());
        let parent = self.points.last().filter(|_| since.is_some());
        if let Some(parent) = parent {
            let before = parent.model.len() as u64;
            options.all_from = Some(before).filter(|before| *before < self.model.len() as u64);
            let beneath = ChainDisk::open(self.chain(self.points.len() - 1), stop.clone()).expect("a chain");
            options.beneath = Some(std::sync::Arc::new(Under(beneath)));
        }
        let mut source = ExportSource::open(server.socket(), "vda", options).expect("an export");
        let name = |parent: &Point| {
            parent
                .path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        };
        let image = Qcow2Options {
            path: path.to_owned(),
            size: source.size(),
            backing: parent.map(name),
            detect_zeroes: true,
            stop: stop.clone(),
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("a new file");
        let mut sink = Qcow2Writer::new(Box::new(DirectFile::new(file)), image).expect("an image");
        copy_export(&mut source, &mut sink, &stop, &mut |_| {})
    }

    /// vmsnap's reader returns the right bytes for every point, and qemu-img for the newest one.
    fn check(&self) {
        for number in 0..self.points.len() {
            let found = self.read_back(number);
            assert!(
                found == self.points[number].model,
                "restore point {number} of {}",
                self.points.len()
            );
        }
        if let Some(newest) = self.points.last() {
            run("qemu-img", &["check", "-q", text(&newest.path)]);
            let raw = self.folder.path().join("newest.raw");
            run(
                "qemu-img",
                &["convert", "-O", "raw", text(&newest.path), text(&raw)],
            );
            assert!(
                std::fs::read(raw).expect("converted") == newest.model,
                "qemu-img reads other bytes"
            );
        }
    }

    fn chain(&self, number: usize) -> Vec<ChainImage> {
        let line = std::iter::successors(Some(number), |number| self.points[*number].upon);
        let images = line.map(|number| &self.points[number]).map(|point| ChainImage {
            file: File::open(&point.path).expect("an image").into(),
            path: point.path.clone(),
            recorded: Some(Recorded {
                bytes: point.written.file_bytes,
                blake3: point.written.blake3.clone().expect("a digest"),
                pieces: point.written.pieces.clone(),
            }),
        });
        images.collect()
    }

    fn read_back(&self, number: usize) -> Vec<u8> {
        let mut source = ChainSource::open(self.chain(number), pool(), Stop::default()).expect("a chain");
        let mut bytes = vec![0xee; source.size() as usize];
        while let Some(block) = source.next_block().expect("a sound chain") {
            let at = block.offset as usize;
            match block.content {
                Content::Data(data) => bytes[at..at + data.len()].copy_from_slice(&data),
                Content::Zero(length) => bytes[at..at + length as usize].fill(0),
            }
        }
        bytes
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_restore_point_gives_back_its_moment(acts in prop::collection::vec(act(), 20..60)) {
        let mut story = Story::begin();
        for act in &acts {
            story.act(act);
        }
        story.backup();
        story.check();
    }
}

/// The disk beneath an incremental image.
#[derive(Debug)]
struct Under(ChainDisk);

impl Beneath for Under {
    fn other_than_zero(&self, offset: u64, length: u64) -> Option<u64> {
        let end = (offset + length).min(self.0.size());
        let mut at = offset;
        while at < end {
            let extent = self.0.extent_at(at).expect("a sound table")?;
            if extent.image.is_some() {
                return Some(at);
            }
            at += extent.length;
        }
        None
    }
}
