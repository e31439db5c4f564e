//! One domain's part of a pack repository, with the right to write to it from this host.
//!
//! The right keeps two runs of one host apart. Runs of different hosts do not know of each other
//! until they commit: see `commit`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::access::WriteAccess;
use super::content::{Content, StoredPoint};
use super::error::PackError;
use super::objects::small;
use super::part::DomainPart;
use super::pending::PackPending;
use super::point::Predecessor;
use super::records::{Kind, RecordName, WrittenPin, WrittenRemoval, WrittenRemovals};
use crate::model::chain::Concern;
use crate::model::pin::Pin;
use crate::repo::lock::DomainLock;
use crate::repo::{DomainWriter, History, Kept, Leftover, Merge, Merged, PendingPoint, RepoError, Result};

/// The right to write to a domain, until it is dropped.
pub(super) struct PackWriter {
    pub(super) domain: DomainPart,
    pub(super) _lock: DomainLock,
    /// The restore point that was committed last, according to the history that was read last. The
    /// decisions of this run are based on it. `None` if no history was read.
    pub(super) base: Mutex<Option<Option<Predecessor>>>,
}

impl PackWriter {
    /// Removes the folders of this host's runs whose restore points are committed.
    fn tidy(&self, content: &Content) -> Result<()> {
        let committed = content.committed_runs();
        for (run, leftover) in self.domain.state.runs()? {
            if committed.contains(run.as_str()) {
                self.domain.state.remove(&leftover)?;
            }
        }
        Ok(())
    }

    /// Begins a session, and then reads the index and the content: a restore point that is there
    /// now keeps its data while the session lasts. An index that cannot be read ends the run before
    /// it begins anything with the domain.
    fn begin_writing(&self) -> Result<(WriteAccess, Content)> {
        let shared = &self.domain.shared;
        let access = shared.begin_writing()?;
        let fetched = shared.sealed.fetched();
        let content = self.domain.content()?;
        // A restore point that is newer than the index refers to blocks that it does not list.
        if shared.sealed.fetched() != fetched {
            access.data().refresh(&shared.place.stop)?;
        }
        Ok((access, content))
    }

    /// Begins a run that makes the restore point of this id.
    fn start(&self, access: WriteAccess, content: &Content, id: String) -> Result<Box<dyn PendingPoint>> {
        let names = &self.domain.names;
        let points = content.points.iter().map(|stored| &stored.record.manifest);
        let damage = points.flat_map(|manifest| {
            let tag = names.tag(&manifest.point.id);
            content.records.suspected_damage(manifest, &tag)
        });
        let mut damage: Vec<Concern> = damage.map(|damage| damage.concerns).collect();
        if content.has_damage_of_removed(names) {
            damage.push(Concern::All);
        }
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let run = uuid::Uuid::new_v4().simple().to_string();
        Ok(Box::new(PackPending {
            leftover: self.domain.state.begin(&id, &run)?,
            domain: self.domain.clone(),
            access,
            possible_parents: possible_parents(content),
            parent_written: Mutex::default(),
            id,
            run,
            previous: base.unwrap_or_else(|| content.last_committed(names)),
            damage,
            begun: Mutex::default(),
            blocks: Mutex::new(BTreeMap::new()),
            is_kept: false,
        }))
    }

    /// Records that restore points are removed now, and then deletes their objects.
    ///
    /// # Errors
    /// [`PackError::Pinned`] if one is pinned: another host may have pinned it since this run read
    /// the history.
    fn remove(&self, content: &Content, points: &[&StoredPoint], now: Timestamp) -> Result<()> {
        let Some(first) = points.first() else {
            return Ok(());
        };
        for stored in points {
            let id = &stored.record.manifest.point.id;
            if content.records.pin(id, &self.domain.names.tag(id)).is_some() {
                return Err(PackError::Pinned {
                    location: self.domain.shared.place.location.clone(),
                    id: id.clone(),
                }
                .into());
            }
        }
        let removal = |stored: &&StoredPoint| {
            let point = &stored.record.manifest.point;
            WrittenRemoval {
                id: point.id.clone(),
                name: stored.name.clone(),
                run: stored.record.run.clone(),
                sequence: point.sequence,
                uuid: point.uuid.clone(),
                checkpoint: point.checkpoint.clone(),
                removed: now,
            }
        };
        let removals = points.iter().map(removal).collect();
        let name = RecordName::new(Kind::Removed, &self.domain.names, &first.record.manifest.point.id);
        self.domain
            .keep_record(&name, &WrittenRemovals { removals }, &[])?;
        let shared = &self.domain.shared;
        for stored in points {
            let object = self.domain.names.point(&stored.name);
            let object = object.ok_or_else(|| shared.no_name(&stored.name))?;
            let deleted = shared.place.objects.delete(&object, &small(&shared.place.stop));
            deleted.map_err(PackError::from)?;
        }
        Ok(())
    }
}

impl DomainWriter for PackWriter {
    fn history(&self) -> Result<History> {
        let (content, history) = self.domain.read()?;
        // What is left of a finished run does no harm.
        let _ = self.tidy(&content);
        let last = content.last_committed(&self.domain.names);
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        Ok(history)
    }

    fn begin(&self, _period: &str, time: Timestamp) -> Result<Box<dyn PendingPoint>> {
        let (access, content) = self.begin_writing()?;
        let id = content.free_id(time, &self.domain.state.ids()?);
        self.start(access, &content, id)
    }

    fn begin_with_id(&self, _period: &str, id: &str) -> Result<Box<dyn PendingPoint>> {
        let (access, content) = self.begin_writing()?;
        let is_pending = self.domain.state.ids()?.iter().any(|pending| pending == id);
        let id = id.to_owned();
        match is_pending || content.has_id(&id) {
            true => Err(RepoError::IdTaken { id }),
            false => self.start(access, &content, id),
        }
    }

    /// Does nothing: each restore point records the one before it.
    fn remember_committed(&self, _history: &History) -> Result<()> {
        Ok(())
    }

    fn remove_period(&self, period: &str, now: Timestamp) -> Result<()> {
        let content = self.domain.content()?;
        let points = content.points.iter();
        let of_period: Vec<&StoredPoint> = points
            .filter(|stored| stored.record.manifest.point.period == period)
            .collect();
        if of_period.is_empty() {
            return Err(RepoError::Io {
                operation: "remove",
                location: self.domain.period_location(period),
                source: std::io::ErrorKind::NotFound.into(),
            });
        }
        self.remove(&content, &of_period, now)
    }

    fn remove_point(&self, _history: &History, id: &str, now: Timestamp) -> Result<()> {
        let content = self.domain.content()?;
        let stored = content.point(id).ok_or_else(|| RepoError::NotWhole {
            id: id.to_owned(),
            fault: "it is missing".to_owned(),
        })?;
        self.remove(&content, &[stored], now)
    }

    /// Refuses: a restore point that needs no other one is never merged.
    fn merge_points(&self, _history: &History, merge: &Merge<'_>) -> Result<Merged> {
        Err(PackError::NoMerge {
            location: self.domain.shared.place.location.clone(),
            id: merge.into.to_owned(),
        }
        .into())
    }

    fn pin(&self, kept: &Kept, pin: &Pin) -> Result<()> {
        let id = &kept.manifest.point.id;
        let tag = self.domain.names.tag(id);
        let records = self.domain.content()?.records;
        if let Some((name, why)) = records.unreadable_pin(&tag) {
            return Err(RepoError::NoNote {
                location: self.domain.reader().record_location(name),
                why: why.to_owned(),
            });
        }
        let old = records.pin_names(&tag);
        let name = RecordName::new(Kind::Pin, &self.domain.names, id);
        self.domain.keep_record(&name, &WrittenPin::new(id, pin), &old)
    }

    fn unpin(&self, kept: &Kept) -> Result<bool> {
        let tag = self.domain.names.tag(&kept.manifest.point.id);
        let old = self.domain.content()?.records.pin_names(&tag);
        for name in &old {
            self.domain.delete_record(name)?;
        }
        Ok(!old.is_empty())
    }

    fn finish_removal(&self, _removal: &Leftover) -> Result<bool> {
        Ok(true)
    }

    fn write_restore_mark(&self, mark: &[u8]) -> Result<()> {
        self.domain.state.write_restore_mark(mark)
    }

    fn remove_restore_mark(&self) -> Result<()> {
        self.domain.state.remove_restore_mark()
    }

    fn remove_leftover(&self, leftover: &Leftover) -> Result<()> {
        self.domain.state.remove(leftover)
    }
}

/// The digests of the restore points on which the next one may be based. Each has the time of its
/// object; a time that the store does not say counts as the latest.
fn possible_parents(content: &Content) -> BTreeMap<String, Timestamp> {
    let points = content.points.iter();
    let parents = points.map(|stored| {
        let written = stored.written.unwrap_or(Timestamp::MAX);
        (stored.record.manifest.digest.clone(), written)
    });
    parents.collect()
}
