//! State shared by all parts of an unlocked pack repository.

use std::sync::{Arc, Mutex, PoisonError};

use super::access::WriteAccess;
use super::collection::{AllPoints, Collection};
use super::content::Content;
use super::data::{CollectOptions, CollectReport, Data, DataFacts, RebuildOptions, RebuildReport};
use super::description::Description;
use super::error::PackError;
use super::keys::MasterKey;
use super::names::{DomainNames, is_hash};
use super::objects::ObjectStore;
use super::sealed::SealedObjects;
use super::state::HostFolders;
use crate::io::Store;
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::repo::{RepoError, Result};

/// The beginning of the name that stands for a domain whose own name cannot be read.
pub(super) const UNREADABLE: &str = "unreadable-";

/// The parts of the host that an unlocked repository needs.
#[derive(Clone)]
pub struct UnlockedHost {
    /// The folders of this host.
    pub folders: HostFolders,
    /// The store that writes the files in these folders.
    pub store: Arc<dyn Store>,
}

/// A repository with its key, on a host.
pub(super) struct Place {
    pub(super) location: String,
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) description: Description,
    pub(super) key: Arc<MasterKey>,
    pub(super) host: UnlockedHost,
    pub(super) stop: Stop,
}

/// What all parts of an unlocked repository share.
pub(super) struct Shared {
    pub(super) place: Place,
    pub(super) sealed: SealedObjects,
    /// Seals and opens records, which needs no index.
    pub(super) sealer: Data,
    current: Mutex<Current>,
}

/// The data that is in use.
struct Current {
    /// `None` after a run has failed: its blocks that were not uploaded are lost.
    data: Option<Data>,
    /// How many objects had been read when the index was last refreshed; `None` if it never was.
    refreshed: Option<usize>,
}

impl Place {
    fn open(&self) -> Result<Data> {
        let facts = DataFacts {
            id: &self.description.id,
            sizes: self.description.sizes,
            cipher: self.description.cipher,
        };
        let (objects, cache) = (Arc::clone(&self.objects), self.host.folders.cache.as_deref());
        Ok(Data::open(objects, &facts, &self.key, cache, &self.stop)?)
    }
}

impl Shared {
    pub(super) fn open(place: Place) -> Result<Shared> {
        let data = place.open()?;
        Ok(Shared {
            sealed: SealedObjects::new(Arc::clone(&place.objects), data.clone()),
            sealer: data.clone(),
            current: Mutex::new(Current {
                data: Some(data),
                refreshed: None,
            }),
            place,
        })
    }

    /// The data, with an index at least as new as the restore points that were read.
    pub(super) fn data(&self) -> Result<Data> {
        let fetched = self.sealed.fetched();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let data = match current.data.take() {
            Some(data) => data,
            None => {
                current.refreshed = None;
                self.place.open()?
            }
        };
        current.data = Some(data.clone());
        if current.refreshed != Some(fetched) {
            data.refresh(&self.place.stop)?;
            current.refreshed = Some(fetched);
        }
        Ok(data)
    }

    /// Begins to write a restore point. The run stores everything through one `Data` until the
    /// commit, so failures of other runs do not affect it.
    pub(super) fn begin_writing(&self) -> Result<WriteAccess> {
        let data = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            let data = match current.data.take() {
                Some(data) => data,
                None => self.place.open()?,
            };
            current.data = Some(data.clone());
            current.refreshed = None;
            data
        };
        let place = &self.place;
        Ok(WriteAccess::begin(
            data,
            &host_name(),
            &place.location,
            &place.stop,
        )?)
    }

    /// Collects data that no restore point of any domain needs.
    pub(super) fn collect(&self, how: &Collection, stop: &Stop) -> Result<CollectReport> {
        let host = host_name();
        let options = CollectOptions {
            grace: how.grace,
            dry_run: how.dry_run,
            ..CollectOptions::new(&host)
        };
        let points = self.all_points();
        let mut live = |stop: &Stop| points.needed(stop);
        let collected = self.sealer.collect(&mut live, &options, stop);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.refreshed = None;
        Ok(collected.map_err(|error| match error {
            PackError::Damaged {
                location,
                object,
                why,
            } => PackError::Uncollectable {
                location,
                object,
                why,
            },
            error => error,
        })?)
    }

    /// Adds missing packs to the index.
    pub(super) fn rebuild_index(
        &self,
        dry_run: bool,
        delete_damaged: bool,
        stop: &Stop,
    ) -> Result<RebuildReport> {
        let host = host_name();
        let options = RebuildOptions {
            host: &host,
            dry_run,
            delete_damaged,
        };
        let rebuilt = self.sealer.rebuild_index(&options, stop);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.refreshed = None;
        Ok(rebuilt?)
    }

    /// The restore points of all domains.
    pub(super) fn all_points(&self) -> AllPoints<'_> {
        AllPoints {
            objects: self.place.objects.as_ref(),
            sealed: &self.sealed,
            key: &self.place.key,
        }
    }

    /// The findings about objects of the index, as far as they have been read.
    pub(super) fn damaged_index(&self) -> Vec<Finding> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let names = current.data.iter().flat_map(Data::damaged_index);
        let finding = |name: String| {
            let what = format!(
                "{}/{name} is damaged, or was written by a newer vmsnap; without this index object, finding blocks takes longer",
                self.place.location
            );
            Finding::new("index-damaged", what)
        };
        names.map(finding).collect()
    }

    /// Discards the blocks that a failed run has stored but not uploaded.
    pub(super) fn give_up(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.data = None;
    }

    /// What the repository holds of a domain.
    pub(super) fn content(&self, names: &DomainNames) -> Result<Content> {
        Ok(Content::read(
            &self.sealed,
            &self.place.key,
            names,
            &self.place.stop,
        )?)
    }

    /// The error for an invalid object name. It never occurs, because all parts of names are valid.
    pub(super) fn no_name(&self, object: &str) -> RepoError {
        PackError::Damaged {
            location: self.place.location.clone(),
            object: object.to_owned(),
            why: "its name is invalid".to_owned(),
        }
        .into()
    }

    /// The names of a domain's objects.
    pub(super) fn names(&self, domain: &str) -> DomainNames {
        let hash = domain.strip_prefix(UNREADABLE).filter(|hash| is_hash(hash));
        match hash {
            Some(hash) => DomainNames::of_hash(&self.place.key, hash),
            None => DomainNames::of(&self.place.key, domain),
        }
    }
}

/// The name of this host, which other hosts show while they wait for its session.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "a host without a name".to_owned(),
        name => name.to_owned(),
    }
}
