//! A restore point that is being written into a pack repository.
//!
//! Order of a commit: the packs with the blocks of the disks and small files, then the index of
//! those packs, then the check that nothing which it relies on was condemned, then the object of
//! the restore point. A session lasts from the beginning until after the commit.
//!
//! What a run has uploaded before it ends early is not part of any restore point; the next run
//! finds it in the index and does not upload it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::access::WriteAccess;
use super::commit::{self, Committed};
use super::data::{BlockId, Data, Reuse, block_error};
use super::description::ConditionalPuts;
use super::error::{PackError, PackErrorClass};
use super::names::random;
use super::objects::ObjectName;
use super::part::DomainPart;
use super::point::{self, PointRecord, Predecessor, map_name};
use super::records::{Kind, RecordName};
use crate::model::block::{BlockSink, Written};
use crate::model::chain::Concern;
use crate::repo::{
    DamageNote, FileEntry, Kept, Leftover, Manifest, NewDisk, PendingPoint, Proof, RepoError, Result,
    SmallFile,
};

/// A restore point that is invisible until it is committed. If it is dropped before that, its
/// journal entry is removed.
pub(super) struct PackPending {
    pub(super) domain: DomainPart,
    /// The access to the data, with the session of this run.
    pub(super) access: WriteAccess,
    /// The digests of the restore points that existed after the session began, with the times of
    /// their objects.
    pub(super) possible_parents: BTreeMap<String, Timestamp>,
    /// The time at which the object of the parent was written; the newest time if there are several
    /// parents.
    pub(super) parent_written: Mutex<Option<Timestamp>>,
    /// The id that the restore point will have.
    pub(super) id: String,
    /// The id of this run.
    pub(super) run: String,
    /// The restore point that was committed last when this run began.
    pub(super) previous: Option<Predecessor>,
    /// The damage that verifications have found in restore points of the domain.
    pub(super) damage: Vec<Concern>,
    /// The disks that were begun.
    pub(super) begun: Mutex<BTreeSet<String>>,
    /// The run's folder on this host.
    pub(super) leftover: Leftover,
    pub(super) blocks: Mutex<BTreeMap<String, Vec<BlockId>>>,
    pub(super) is_kept: bool,
}

impl PackPending {
    fn blocks(&self) -> MutexGuard<'_, BTreeMap<String, Vec<BlockId>>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data, for a writer of this part of the restore point. Where damage is suspected, it uses
    /// only stored blocks that can be read.
    fn data(&self, is_affected: impl Fn(&Concern) -> bool) -> Data {
        let reuse = match self.damage.iter().any(is_affected) {
            true => Reuse::Sound,
            false => Reuse::Known,
        };
        self.access.data().clone().reusing(reuse)
    }

    /// The root and the size of the map of a parent's disk.
    fn parent(&self, kept: &Kept, target: &str) -> Result<(BlockId, u64)> {
        let unusable = |fault: String| RepoError::NotWhole {
            id: kept.manifest.point.id.clone(),
            fault,
        };
        let written = self.possible_parents.get(&kept.manifest.digest);
        // Its data may be gone.
        let written = written.ok_or_else(|| unusable("it was removed since this run began".to_owned()))?;
        let disk = kept.manifest.point.disk(target);
        let root = disk.and_then(|disk| Some((point::root(&kept.manifest, target)?, disk.virtual_size)));
        let root = root.ok_or_else(|| unusable(format!("it has no map of disk {target}")))?;
        let mut newest = self.parent_written.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = (*newest).max(Some(*written));
        Ok(root)
    }

    /// Stores a small file.
    fn keep(&self, name: &str, content: &[u8]) -> Result<FileEntry> {
        let data = self.data(|concern| !matches!(concern, Concern::Disk(_)));
        let ids = data.put(content, &self.domain.shared.place.stop)?;
        self.blocks().insert(name.to_owned(), ids);
        Ok(FileEntry {
            name: name.to_owned(),
            size: content.len() as u64,
            blake3: blake3::hash(content).to_hex().to_string(),
            pieces: None,
            unused: None,
        })
    }

    /// Records that the restore point counts as damaged, so that no later one and no copy relies on
    /// it. If this fails, the error of the commit is all that tells it.
    fn note_doubt(&self, error: &PackError) -> Result<()> {
        let content = self.domain.content()?;
        let Some(stored) = content.point(&self.id) else {
            return Ok(());
        };
        let manifest = &stored.record.manifest;
        let proof = Proof {
            id: self.id.clone(),
            manifest: manifest.digest.clone(),
            time: manifest.point.time,
            deep: false,
            deep_time: None,
            damage: vec![DamageNote {
                what: error.to_string(),
                concerns: Concern::All,
            }],
        };
        let name = RecordName::new(Kind::Damaged, &self.domain.names, &self.id);
        self.domain.keep_record(&name, &proof, &[])
    }

    /// Uploads everything, and makes sure that it and the data of the parent stay.
    fn check(&self, record: &PointRecord) -> Result<()> {
        let place = &self.domain.shared.place;
        let needed = record.needed().ok_or_else(|| PackError::Damaged {
            location: place.location.clone(),
            object: format!("restore point {}", self.id),
            why: "the id of a disk's map is invalid".to_owned(),
        })?;
        let parent = *self.parent_written.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.access.check(&needed, parent, &place.stop)?)
    }

    /// The sealed record of the restore point, for the object of this name.
    fn sealed(&self, record: &PointRecord, name: &ObjectName) -> Result<Vec<u8>> {
        let text = record.to_text().map_err(|source| RepoError::Manifest {
            id: self.id.clone(),
            source,
        })?;
        Ok(self.domain.shared.sealer.seal_record(name, text.as_bytes())?)
    }

    /// Creates the object unless another run was faster. Returns its name.
    fn create(&self, record: &PointRecord) -> Result<(String, Committed)> {
        let shared = &self.domain.shared;
        let names = &self.domain.names;
        let previous = self.previous.as_ref().map(|previous| previous.name.as_str());
        let stem = names.stem_after(previous);
        let segment = match shared.place.description.conditional_puts {
            ConditionalPuts::Honoured => stem.clone(),
            ConditionalPuts::Ignored => format!("{stem}-{}", random()),
        };
        let name = names.point(&segment).ok_or_else(|| shared.no_name(&segment))?;
        let sealed = self.sealed(record, &name)?;
        let store = shared.place.objects.as_ref();
        let committed = match shared.place.description.conditional_puts {
            ConditionalPuts::Honoured => commit::create(store, &name, &sealed, &shared.place.stop),
            ConditionalPuts::Ignored => {
                let stem = format!("{}{stem}", names.points());
                commit::create_beside(store, &stem, &name, &sealed, &shared.place.stop)
            }
        };
        Ok((segment, committed?))
    }
}

impl PendingPoint for PackPending {
    fn id(&self) -> &str {
        &self.id
    }

    fn write_note(&self, note: &[u8]) -> Result<()> {
        self.domain.state.write_note(&self.leftover, note)
    }

    fn sink(&self, disk: &NewDisk<'_>) -> Result<Box<dyn BlockSink>> {
        let parent = disk.parent.map(|kept| self.parent(kept, disk.target));
        let parent = parent.transpose()?;
        // A second attempt follows damage in the parent, or a bitmap that proved wrong.
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = begun.insert(disk.target.to_owned());
        drop(begun);
        let data = self.data(|concern| concern.is_of_disk(disk.target));
        let data = match is_first {
            true => data,
            false => data.reusing(Reuse::Sound),
        };
        let sink = data.sink(disk.size, parent, disk.compression, disk.stop.clone());
        sink.map_err(|error| match error.class() {
            // Damage of the parent is an error of its blocks: a full image is possible.
            PackErrorClass::Damaged => block_error(error).into(),
            _ => error.into(),
        })
    }

    fn entry(&self, target: &str, written: &Written) -> FileEntry {
        FileEntry {
            name: map_name(target),
            size: written.file_bytes,
            blake3: written.blake3.clone().unwrap_or_default(),
            pieces: None,
            unused: None,
        }
    }

    fn put(&self, file: SmallFile, content: &[u8]) -> Result<FileEntry> {
        self.keep(file.name(), content)
    }

    fn put_checkpoint(&self, checkpoint: &str, xml: &str) -> Result<FileEntry> {
        self.keep(&format!("{checkpoint}.xml"), xml.as_bytes())
    }

    fn commit(&mut self, manifest: &Manifest) -> Result<String> {
        let record = PointRecord {
            run: self.run.clone(),
            previous: self.previous.clone(),
            manifest: manifest.clone(),
            blocks: self.blocks().clone(),
        };
        self.check(&record)?;
        let (segment, committed) = match self.create(&record) {
            Ok(created) => created,
            Err(error) => {
                self.access.leave();
                return Err(error);
            }
        };
        let location = self.domain.reader().point_location(&segment);
        if committed == Committed::Other {
            return Err(PackError::Overtaken { location }.into());
        }
        self.is_kept = true;
        // Only now, because before the commit the next run needs the journal entry. If this fails,
        // the entry has no meaning, because a restore point names its run.
        let _ = self.domain.state.remove(&self.leftover);
        if let Err(error) = self.access.end(&location) {
            let _ = self.note_doubt(&error);
            return Err(error.into());
        }
        Ok(location)
    }

    fn leave(mut self: Box<Self>) -> String {
        self.is_kept = true;
        self.domain.shared.give_up();
        self.leftover.location.clone()
    }
}

impl Drop for PackPending {
    fn drop(&mut self) {
        if !self.is_kept {
            self.domain.shared.give_up();
            // Best effort: the next run removes the rest.
            let _ = self.domain.state.remove(&self.leftover);
        }
    }
}
