//! A repository in memory: for the suite that every kind of repository must pass, and for tests of
//! the verbs on a kind other than a folder.

mod disk;
mod domain;
mod pending;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::model::chain::RemovedPoint;
use crate::model::pin::Pin;
use crate::model::restore_point::{RestorePoint, id_of};
use crate::repo::{
    BootProof, DomainRepository, Identity, Manifest, MissedWriteRecord, Proof, Repository, Result,
};

use disk::StoredDisk;
use domain::MemoryDomain;

/// Restore points in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryRepository {
    domains: Arc<Mutex<BTreeMap<String, Domain>>>,
    /// Its id, once it has one.
    id: Arc<OnceLock<String>>,
}

/// The stored state of one domain.
#[derive(Debug, Default)]
struct Domain {
    points: Vec<Arc<Point>>,
    /// Uncommitted restore points by `PERIOD/ID`, with the notes of their runs.
    pending: BTreeMap<String, Option<Vec<u8>>>,
    /// All ids that were ever given.
    ids: BTreeSet<String>,
    /// Verifications, each with the name of its record.
    proofs: Vec<(String, Proof)>,
    missed: Vec<MissedWriteRecord>,
    booted: Vec<BootProof>,
    /// The pins by the ids of their restore points.
    pins: BTreeMap<String, Pin>,
    removed: Vec<RemovedPoint>,
    /// The mark of a restore in place.
    restore_mark: Option<Vec<u8>>,
    /// The writer, as it has described itself.
    writer: Option<String>,
}

/// A committed restore point.
#[derive(Debug)]
struct Point {
    manifest: Manifest,
    disks: BTreeMap<String, StoredDisk>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Domain {
    fn point(&self, id: &str) -> Option<&Arc<Point>> {
        self.points.iter().find(|point| point.manifest.point.id == id)
    }

    fn place_of(&self, id: &str) -> Option<usize> {
        self.points.iter().position(|point| point.manifest.point.id == id)
    }

    /// Removes a restore point, and records that.
    fn forget(&mut self, point: &RestorePoint, now: jiff::Timestamp) {
        if let Some(place) = self.place_of(&point.id) {
            self.points.remove(place);
        }
        self.pins.remove(&point.id);
        self.removed.push(RemovedPoint {
            id: point.id.clone(),
            uuid: point.uuid.clone(),
            checkpoint: point.checkpoint.clone(),
            removed: now,
        });
    }

    /// Returns an id for this time that was never given before.
    fn free_id(&self, time: jiff::Timestamp) -> String {
        let stem = id_of(time);
        let numbered = (2u32..).map(|count| format!("{stem}-{count}"));
        let mut candidates = std::iter::once(stem.clone()).chain(numbered);
        candidates
            .find(|id| !self.ids.contains(id))
            .expect("the numbers do not end")
    }
}

impl MemoryRepository {
    fn domains(&self) -> MutexGuard<'_, BTreeMap<String, Domain>> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the stored state of a domain.
    fn with<T>(&self, name: &str, what: impl FnOnce(&mut Domain) -> T) -> T {
        what(self.domains().entry(name.to_owned()).or_default())
    }

    /// Changes a stored byte of a disk, as broken storage would: its digest stays as it was.
    ///
    /// # Panics
    /// If there is no such disk, or it holds no data.
    pub fn damage(&self, domain: &str, id: &str, target: &str) {
        self.with(domain, |kept| {
            let point = kept.points.iter_mut().find(|point| point.manifest.point.id == id);
            let point = point.expect("there is such a restore point");
            let mut damaged = Point {
                manifest: point.manifest.clone(),
                disks: point.disks.clone(),
                files: point.files.clone(),
            };
            let disk = damaged.disks.get_mut(target).expect("it holds that disk");
            disk.damage();
            *point = Arc::new(damaged);
        });
    }
}

impl Repository for MemoryRepository {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn exists(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        match self.id.get() {
            Some(id) => Identity::Known(id.clone()),
            None => Identity::None,
        }
    }

    fn ensure_identity(&self) -> Result<Identity> {
        self.id.get_or_init(|| uuid::Uuid::new_v4().to_string());
        Ok(self.identity())
    }

    fn domains(&self) -> Result<Vec<String>> {
        let domains = MemoryRepository::domains(self);
        let has_some = |(_, kept): &(&String, &Domain)| !kept.ids.is_empty();
        Ok(domains
            .iter()
            .filter(has_some)
            .map(|(name, _)| name.clone())
            .collect())
    }

    fn restore_marks(&self) -> Result<Vec<Vec<u8>>> {
        let domains = MemoryRepository::domains(self);
        let marks = domains.values().filter_map(|kept| kept.restore_mark.clone());
        Ok(marks.collect())
    }

    fn domain(&self, name: &str) -> Result<Box<dyn DomainRepository>> {
        Ok(Box::new(MemoryDomain {
            repository: self.clone(),
            name: name.to_owned(),
        }))
    }
}
