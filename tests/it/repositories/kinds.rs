//! The kinds of repositories that the suite runs for, and how it makes restore points.

use std::sync::Arc;

use jiff::Timestamp;
use vmsnap::io::DiskStore;
use vmsnap::model::block::{Block, BlockErrorKind, Content};
use vmsnap::model::buffer::{Buffer, BufferPool};
use vmsnap::model::compression::Compression;
use vmsnap::model::restore_point::{Consistency, DiskPoint, Level, RestorePoint};
use vmsnap::model::stop::Stop;
use vmsnap::repo::{
    DomainRepository, FolderRepository, History, Manifest, NewDisk, PackErrorClass, PendingPoint, RepoError,
    Repository, SmallFile, SourceOptions,
};
use vmsnap::testkit::MemoryRepository;

use crate::lab::CLUSTER;

/// The default period of a point.
pub const PERIOD: &str = "vmsnap-backup-monthly-2026-11";

/// The domain's definition in every point.
pub const DEFINITION: &[u8] = b"<domain type='kvm'/>";

/// A kind of repository, initially empty.
pub trait Kind {
    fn repository(&self) -> Box<dyn Repository>;

    /// Changes a byte of a disk's stored data.
    fn damage(&self, domain: &str, id: &str, target: &str);

    /// Whether its restore points are complete by themselves, and it has an id from the beginning.
    fn is_complete(&self) -> bool {
        false
    }
}

/// A repository in a folder.
pub struct Folder(tempfile::TempDir);

impl Default for Folder {
    fn default() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }
}

impl Kind for Folder {
    fn repository(&self) -> Box<dyn Repository> {
        let root = self.0.path().join("backups");
        let opened = FolderRepository::open_or_create(&root, Arc::new(DiskStore));
        Box::new(opened.expect("it can be opened"))
    }

    fn damage(&self, domain: &str, id: &str, target: &str) {
        let history = self.repository().domain(domain).expect("a name").history();
        let history = history.expect("it can be read");
        let kept = history.get(id).expect("it is kept");
        let path = std::path::Path::new(&kept.location).join(format!("{target}.qcow2"));
        let mut image = std::fs::read(&path).expect("an image");
        // Data comes first in an image, after its header.
        image[CLUSTER + 10] ^= 1;
        std::fs::write(&path, image).expect("written");
    }
}

/// A repository in memory.
#[derive(Default)]
pub struct Memory(MemoryRepository);

impl Kind for Memory {
    fn repository(&self) -> Box<dyn Repository> {
        Box::new(self.0.clone())
    }

    fn damage(&self, domain: &str, id: &str, target: &str) {
        self.0.damage(domain, id, target);
    }
}

/// The time of a point.
pub fn moment(number: i64) -> Timestamp {
    Timestamp::from_second(1_793_667_600 + 600 * number).expect("in range")
}

/// The maker of a point with one disk, `vda`.
pub struct Maker<'a> {
    pub domain: &'a dyn DomainRepository,
    pub period: &'a str,
    pub time: Timestamp,
}

impl<'a> Maker<'a> {
    pub fn new(domain: &'a dyn DomainRepository, number: i64) -> Maker<'a> {
        Maker {
            domain,
            period: PERIOD,
            time: moment(number),
        }
    }

    /// Makes a restore point of these blocks that depends on `parent`, and returns its id.
    pub fn make(&self, size: u64, blocks: Vec<Block>, parent: Option<&str>) -> String {
        let writer = self.domain.try_lock().expect("nobody else writes");
        let history = writer.history().expect("it can be read");
        let mut pending = writer.begin(self.period, self.time).expect("it begins");
        let manifest = self.fill(pending.as_ref(), size, blocks, (&history, parent));
        pending.commit(&manifest).expect("it is committed");
        pending.id().to_owned()
    }

    /// Writes everything except the manifest, and returns the manifest.
    pub fn fill(
        &self,
        pending: &dyn PendingPoint,
        size: u64,
        blocks: Vec<Block>,
        base: (&History, Option<&str>),
    ) -> Manifest {
        let filled = self.try_fill(pending, size, blocks, base);
        filled.expect("it takes the blocks")
    }

    /// The same where others may hinder it.
    pub fn try_fill(
        &self,
        pending: &dyn PendingPoint,
        size: u64,
        blocks: Vec<Block>,
        (history, parent): (&History, Option<&str>),
    ) -> Result<Manifest, RepoError> {
        let parent = parent.map(|id| history.get(id).expect("it is kept"));
        let disk = NewDisk {
            target: "vda",
            size,
            parent,
            compression: Compression::default(),
            stop: Stop::default(),
        };
        let mut sink = pending.sink(&disk)?;
        for block in blocks {
            sink.write(block)?;
        }
        let written = sink.finish()?;
        let image = pending.entry("vda", &written);
        let definition = pending.put(SmallFile::Definition, DEFINITION)?;
        let level = match parent {
            Some(_) => Level::Incremental,
            None => Level::Full,
        };
        let parent_id = parent.map(|kept| kept.manifest.point.id.clone());
        let point = RestorePoint {
            id: pending.id().to_owned(),
            sequence: history.chains.latest().map_or(0, |kept| kept.point.sequence) + 1,
            domain: self.domain.name().to_owned(),
            uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809".to_owned(),
            time: self.time,
            period: self.period.to_owned(),
            level,
            parent: parent_id.clone(),
            checkpoint: None,
            consistency: Consistency::Crash,
            disks: vec![DiskPoint {
                target: "vda".to_owned(),
                level,
                reason: "a test".to_owned(),
                parent: parent_id,
                parent_manifest: parent.map(|kept| kept.manifest.digest.clone()),
                checkpointed: false,
                virtual_size: size,
                source: "/images/vm1.qcow2".to_owned(),
                source_file: None,
                source_format: "qcow2".to_owned(),
                decrypted: None,
                image: image.name.clone(),
                data_bytes: written.data_bytes,
                zero_bytes: written.zero_bytes,
                compression: written.is_compressed.then(|| "zstd".to_owned()),
            }],
            findings: Vec::new(),
            left_out: Vec::new(),
            merged: None,
            copied_from: None,
            guest: None,
        };
        Ok(Manifest::new("a test", point, vec![image, definition], None))
    }
}

/// A block of data at this cluster.
pub fn data(cluster: usize, bytes: &[u8]) -> Block {
    let mut buffer = Buffer::alone(bytes.len());
    buffer.set_len(bytes.len());
    buffer.copy_from_slice(bytes);
    Block {
        offset: (cluster * CLUSTER) as u64,
        content: Content::Data(buffer),
    }
}

/// A block of this many zero bytes at this cluster.
pub fn zero(cluster: usize, length: usize) -> Block {
    Block {
        offset: (cluster * CLUSTER) as u64,
        content: Content::Zero(length as u64),
    }
}

/// The options to open a source.
pub fn reading(stop: &Stop) -> SourceOptions {
    SourceOptions {
        above: None,
        pool: BufferPool::new(4, 4 * CLUSTER),
        stop: stop.clone(),
        past_caches: false,
    }
}

/// The disk `vda` at a restore point, read from front to back.
pub fn read_through(domain: &dyn DomainRepository, id: &str) -> Result<Vec<u8>, RepoError> {
    read_disk(domain, id, "vda")
}

/// A disk at a restore point, read from front to back.
pub fn read_disk(domain: &dyn DomainRepository, id: &str, target: &str) -> Result<Vec<u8>, RepoError> {
    let history = domain.history()?;
    let mut source = domain.open_source(&history, id, target, &reading(&Stop::default()))?;
    let mut disk = Vec::new();
    while let Some(block) = source.next_block()? {
        assert_eq!(block.offset, disk.len() as u64, "blocks cover the disk in order");
        match &block.content {
            Content::Data(bytes) => disk.extend_from_slice(bytes),
            Content::Zero(length) => disk.resize(disk.len() + *length as usize, 0),
        }
    }
    assert_eq!(disk.len() as u64, source.size());
    Ok(disk)
}

/// Whether an error reports damage.
pub fn is_damage(error: &RepoError) -> bool {
    match error {
        RepoError::Blocks(error) => error.kind == BlockErrorKind::Damaged,
        RepoError::Pack(error) => error.class() == PackErrorClass::Damaged,
        _ => false,
    }
}
