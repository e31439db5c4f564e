//! Volumes of a storage pool that a restore creates.
//!
//! libvirt creates each volume. A file has a temporary name until all disks are complete, as other
//! restored files have. A device has its final name at once, because libvirt cannot rename it;
//! until it is complete, its first bytes are a mark instead of the disk's.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::unfinished::Unfinished;
use super::{RestoredDisk, Volume, io_cause};
use crate::host::xml::ImageFormat;
use crate::host::{Host, NewVolume, Pool, VolumeKind};
use crate::io::{DirectFile, Store};
use crate::model::block::{Block, BlockError, BlockSink, CLUSTER, Content, ImageFile, Written};
use crate::model::buffer::Buffer;
use crate::model::file_name;
use crate::model::finding::Finding;
use crate::model::text::with_sources;
use crate::ops::{Cause, Error, Result};

/// The beginning of the mark on a device that is not complete.
const MARK: &[u8] = b"vmsnap: the restore onto this volume has not ended, so the volume lacks data\n";

/// How many of the first bytes of a device are written last.
const HEAD: usize = 4096;

/// The longest name that LVM takes.
const LVM_NAME_MAX: usize = 127;

/// The name of the volume for a disk of the domain `name`.
pub(super) fn name_of(name: &str, target: &str, kind: VolumeKind, ending: &str) -> String {
    match kind {
        VolumeKind::Files => {
            let name = file_name::escape(name).unwrap_or_else(|| "restored".to_owned());
            format!("{name}-{target}.{ending}")
        }
        VolumeKind::Devices => {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '+' | '-');
            let name = format!("{name}-{target}").replace(|c: char| !is_allowed(c), "_");
            let name: String = name.trim_start_matches(['-', '.']).to_owned();
            let start = name.len().saturating_sub(LVM_NAME_MAX);
            // The target at the end stays.
            name[start..].to_owned()
        }
    }
}

/// Refuses a volume that exists.
pub(super) fn refuse_existing(
    domain: &str,
    disk: &str,
    volume: &Volume,
    path: &Path,
    host: &dyn Host,
) -> Result<()> {
    let exists = host.has_volume(&volume.pool, &volume.name);
    match exists.map_err(|error| Error::of_disk(domain, disk, error))? {
        false => Ok(()),
        true => Err(Error::of_disk(
            domain,
            disk,
            Cause::VolumeExists {
                pool: volume.pool.clone(),
                name: volume.name.clone(),
                is_unfinished: is_marked(path),
            },
        )),
    }
}

/// Whether a device has the mark of a restore that has not ended.
fn is_marked(path: &Path) -> bool {
    let mut found = [0; MARK.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut found));
    read.is_ok() && found == MARK
}

/// Refuses disks that need more space than a pool has; both in bytes.
pub(super) fn check_room(domain: &str, pool: &Pool, needed: u64) -> Result<()> {
    match needed > pool.available {
        false => Ok(()),
        true => Err(Error::of(
            domain,
            Cause::PoolFull {
                pool: pool.name.clone(),
                free: pool.available,
                needed,
            },
        )),
    }
}

/// A pool in which volumes are created. The pool is refreshed at the end, also after a failure.
pub(super) struct UsedPool<'a> {
    host: &'a dyn Host,
    name: &'a str,
    is_refreshed: bool,
}

impl<'a> UsedPool<'a> {
    pub(super) fn new(host: &'a dyn Host, pool: &'a Pool) -> UsedPool<'a> {
        UsedPool {
            host,
            name: &pool.name,
            is_refreshed: false,
        }
    }

    /// Refreshes the pool. A failure is a finding, because the volumes are complete.
    pub(super) fn refresh(mut self) -> Option<Finding> {
        self.is_refreshed = true;
        let error = self.host.refresh_pool(self.name).err()?;
        let what = format!(
            "libvirt does not show the new volumes yet ({}): run `virsh pool-refresh {}`",
            with_sources(&error),
            self.name
        );
        Some(Finding::new("pool-not-refreshed", what))
    }
}

impl Drop for UsedPool<'_> {
    fn drop(&mut self) {
        if !self.is_refreshed {
            let _ = self.host.refresh_pool(self.name);
        }
    }
}

fn request(disk: &RestoredDisk, volume: &Volume, name: &str) -> NewVolume {
    NewVolume {
        pool: volume.pool.clone(),
        name: name.to_owned(),
        format: match disk.format {
            super::Format::Qcow2 => ImageFormat::Qcow2,
            super::Format::Raw => ImageFormat::Raw,
        },
        size: disk.size,
        allocates: disk.device,
    }
}

/// Creates the file of a volume through libvirt, under a temporary name.
pub(super) fn create_file<'a>(
    store: &'a dyn Store,
    host: &dyn Host,
    disk: &RestoredDisk,
    volume: &Volume,
) -> std::result::Result<(Unfinished<'a>, Box<dyn ImageFile>), Cause> {
    let create = |name: &str| Ok(host.create_volume(&request(disk, volume, name))?);
    let remove = |name: &str| {
        let _ = host.delete_volume(&volume.pool, name);
    };
    Unfinished::of_another(store, &disk.to, create, remove)
}

/// A device that libvirt has created as a volume. Dropping it deletes the volume, unless
/// [`NewDevice::keep`] was called.
pub(super) struct NewDevice<'a> {
    host: &'a dyn Host,
    volume: Volume,
    is_kept: bool,
}

impl<'a> NewDevice<'a> {
    /// Creates the volume of a disk.
    pub(super) fn create(
        host: &'a dyn Host,
        disk: &RestoredDisk,
        volume: &Volume,
    ) -> std::result::Result<NewDevice<'a>, Cause> {
        let path = host.create_volume(&request(disk, volume, &volume.name))?;
        let device = NewDevice {
            host,
            volume: volume.clone(),
            is_kept: false,
        };
        match path == disk.to {
            true => Ok(device),
            false => {
                let name = volume.name.clone();
                let refused = crate::host::Refusal::VolumeElsewhere { name, path };
                Err(crate::host::HostError::from(refused).into())
            }
        }
    }

    /// Keeps the volume, because all disks are complete.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for NewDevice<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = self.host.delete_volume(&self.volume.pool, &self.volume.name);
        }
    }
}

/// Writes a disk onto a new device. The first bytes of the disk are written last; until then the
/// device begins with the mark.
pub(super) struct MarkedSink {
    sink: Box<dyn BlockSink>,
    device: DirectFile,
    /// The first bytes of the disk, once its first block is known.
    head: Option<Vec<u8>>,
}

impl MarkedSink {
    /// Marks the device durably. `sink` writes to the same device.
    pub(super) fn begin(
        device: File,
        sink: Box<dyn BlockSink>,
        disk: &RestoredDisk,
    ) -> std::result::Result<MarkedSink, Cause> {
        let mut device = DirectFile::new(device);
        let marked = device
            .write_any(&marked(disk.size.min(HEAD as u64)), 0)
            .and_then(|()| device.sync());
        marked.map_err(|source| io_cause("write", &disk.to, source))?;
        Ok(MarkedSink {
            sink,
            device,
            head: None,
        })
    }

    /// Writes the mark in place of the first cluster, which is zero. `length` is less if the disk
    /// is.
    fn mark(&mut self, length: u64) -> std::result::Result<(), BlockError> {
        self.head = Some(vec![0; HEAD.min(length as usize)]);
        self.sink.write(Block {
            offset: 0,
            content: Content::Data(marked(length)),
        })
    }
}

/// The mark with zeroes after it, or as much of it as fits.
fn marked(length: u64) -> Buffer {
    let length = length as usize;
    let mut buffer = Buffer::alone(length);
    buffer.set_len(length);
    buffer.fill(0);
    let shown = MARK.len().min(length);
    buffer[..shown].copy_from_slice(&MARK[..shown]);
    buffer
}

impl BlockSink for MarkedSink {
    fn write(&mut self, mut block: Block) -> std::result::Result<(), BlockError> {
        if self.head.is_some() {
            return self.sink.write(block);
        }
        match &mut block.content {
            _ if block.offset > 0 => self.mark(CLUSTER.min(block.offset))?,
            Content::Data(bytes) => {
                let length = bytes.len().min(HEAD);
                self.head = Some(bytes[..length].to_vec());
                bytes[..length].copy_from_slice(&marked(length as u64));
            }
            Content::Zero(length) => {
                let first = CLUSTER.min(*length);
                *length -= first;
                block.offset = first;
                let is_all = *length == 0;
                self.mark(first)?;
                if is_all {
                    return Ok(());
                }
            }
        }
        self.sink.write(block)
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        let written = self.sink.finish()?;
        if let Some(head) = self.head.take() {
            let ended = self.device.write_any(&head, 0).and_then(|()| self.device.sync());
            ended.map_err(|source| BlockError::io("cannot write the first bytes of the volume", source))?;
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::image::raw::RawWriter;
    use crate::model::stop::Stop;
    use crate::ops::restore::Format;

    fn data(offset: u64, bytes: &[u8]) -> Block {
        let mut buffer = Buffer::alone(bytes.len());
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        Block {
            offset,
            content: Content::Data(buffer),
        }
    }

    fn zero(offset: u64, length: u64) -> Block {
        Block {
            offset,
            content: Content::Zero(length),
        }
    }

    fn disk(size: u64, to: &Path) -> RestoredDisk {
        RestoredDisk {
            target: "vda".to_owned(),
            size,
            to: to.to_owned(),
            device: true,
            format: Format::Raw,
            steps: 1,
            volume: None,
        }
    }

    /// Writes the blocks onto a larger device with old content, and checks the mark before the end.
    fn written(size: u64, blocks: Vec<Block>) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path: PathBuf = folder.path().join("device");
        std::fs::write(&path, vec![0xaa; size as usize + 1000]).expect("written");
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).open(&path).expect("opened")
        };
        let writer = RawWriter::onto_device(open(), &path, size, Stop::default()).expect("it begins");
        let writer = writer.clearing_the_rest();
        let mut sink = MarkedSink::begin(open(), Box::new(writer), &disk(size, &path)).expect("marked");
        assert_eq!(is_marked(&path), size >= MARK.len() as u64);
        for block in blocks {
            sink.write(block).expect("written");
        }
        assert_eq!(is_marked(&path), size >= MARK.len() as u64, "it stays");
        sink.finish().expect("finished");
        assert!(!is_marked(&path));
        std::fs::read(&path).expect("readable")
    }

    #[test]
    fn the_mark_goes_at_the_end_and_the_rest_is_zero() {
        let size = 3 * CLUSTER + 512;
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
        let (c, s) = (CLUSTER as usize, size as usize);
        let padded = |bytes: &[u8]| [bytes, &[0; 1000]].concat();
        assert!(written(size, vec![data(0, &content)]) == padded(&content));
        let two = vec![data(0, &content[..c]), data(CLUSTER, &content[c..])];
        assert!(written(size, two) == padded(&content));
        let late = |at: usize| [&vec![0; at][..], &content[at..]].concat();
        for skipped in [c, 2 * c] {
            let rest = data(skipped as u64, &content[skipped..]);
            assert!(written(size, vec![rest]) == padded(&late(skipped)));
            let rest = data(skipped as u64, &content[skipped..]);
            assert!(written(size, vec![zero(0, skipped as u64), rest]) == padded(&late(skipped)));
        }
        assert!(written(size, Vec::new()) == padded(&vec![0; s]));
        assert!(written(size, vec![zero(0, size)]) == padded(&vec![0; s]));
        assert!(written(10, vec![data(0, &[9; 10])]) == padded(&[9; 10]));
    }

    #[test]
    fn names_of_volumes_suit_their_pools() {
        let file = |name: &str| name_of(name, "vda", VolumeKind::Files, "qcow2");
        assert_eq!(file("web server"), "web server-vda.qcow2");
        assert_eq!(file("a/b"), "a%2Fb-vda.qcow2");
        let device = |name: &str| name_of(name, "vda", VolumeKind::Devices, "raw");
        assert_eq!(device("web server"), "web_server-vda");
        assert_eq!(device("-b\u{fc}ro"), "b_ro-vda");
        let long = device(&"x".repeat(200));
        assert!(long.len() == LVM_NAME_MAX && long.ends_with("-vda"));
    }
}
