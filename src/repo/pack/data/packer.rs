//! Collects sealed blocks in packs, and uploads the packs.
//!
//! All writers of one process share the packs that are open. A block counts as stored as soon as it
//! is in an open pack: if an upload fails, every later call fails, too, and nothing refers to the
//! lost blocks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::cache::Place;
use super::id::{BlockId, PackId};
use super::index::Index;
use super::retry::{limit, retry};
use super::sealer::Sealer;
use super::spare::Spare;
use super::table::{Entry, MOST_BLOCKS, PACKS_OF_RECORD, PackEntry, TRAILER, encode_table, encode_trailer};
use crate::model::stop::{Stop, StopReason};
use crate::repo::pack::objects::{
    ObjectError, ObjectErrorKind, ObjectName, ObjectResult, ObjectStore, PutResult,
};
use crate::repo::pack_error::{PackError, Result};

/// The most bytes of packs on their way. At least one is.
const UPLOADS: u64 = 48 << 20;

/// Buffers of packs that are kept for the next packs.
const SPARE: usize = 2;

/// The size at which a pack of pages is complete, in bytes.
const PAGE_PACK: u64 = 8 << 20;

/// How often a wait looks whether a stop was requested.
const STEP: Duration = Duration::from_millis(50);

/// The longest wait for uploads when the work ends early.
const FAREWELL: Duration = Duration::from_secs(10);

/// The kind of blocks in a pack. Pages are packed together, so that a map can be read with few
/// requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shelf {
    Data,
    Pages,
}

/// Collects blocks in packs.
pub(super) struct Packer(Arc<Uploads>);

struct Uploads {
    objects: Arc<dyn ObjectStore>,
    sealer: Arc<Sealer>,
    index: Arc<Index>,
    pack_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// Buffers for packs.
    spare: Spare,
    /// Ends the uploads.
    stop: Stop,
}

#[derive(Default)]
struct State {
    open: [Option<OpenPack>; 2],
    /// The number of packs on their way, and of index objects.
    uploading: usize,
    /// Packs that are stored, but in no index object yet.
    stored: Vec<PackEntry>,
    failure: Option<Arc<PackError>>,
    threads: Vec<JoinHandle<()>>,
}

struct OpenPack {
    id: PackId,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl State {
    fn check(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(PackError::Earlier(Arc::clone(failure))),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: PackError) {
        self.failure.get_or_insert_with(|| Arc::new(error));
    }
}

impl Packer {
    pub(super) fn new(
        objects: &Arc<dyn ObjectStore>,
        sealer: &Arc<Sealer>,
        index: &Arc<Index>,
        pack_bytes: u64,
        stop: &Stop,
    ) -> Packer {
        Packer(Arc::new(Uploads {
            objects: Arc::clone(objects),
            sealer: Arc::clone(sealer),
            index: Arc::clone(index),
            pack_bytes,
            state: Mutex::default(),
            changed: Condvar::new(),
            spare: Spare::new(SPARE),
            stop: stop.child(),
        }))
    }

    /// Adds a sealed block of `plain` bytes. Waits while too many packs are being uploaded. Returns
    /// false if this process has already stored the same block.
    ///
    /// # Errors
    /// An upload has failed, or a stop was requested.
    pub(super) fn add(
        &self,
        shelf: Shelf,
        id: BlockId,
        sealed: &[u8],
        plain: usize,
        stop: &Stop,
    ) -> Result<bool> {
        let uploads = &self.0;
        let mut state = uploads.state();
        loop {
            state.check()?;
            if uploads.index.is_noted(&id) {
                return Ok(false);
            }
            let open = &mut state.open[shelf as usize];
            let Some(pack) = open else {
                let id = PackId::random().map_err(PackError::Seal)?;
                let mut bytes = uploads.spare.take();
                bytes.clear();
                *open = Some(OpenPack {
                    id,
                    bytes,
                    entries: Vec::new(),
                });
                continue;
            };
            if pack.has_room(sealed.len() as u64, uploads.pack_bytes(shelf)) {
                let place = pack.push(id, sealed, plain)?;
                uploads.index.note(id, place);
                return Ok(true);
            }
            state = uploads.send(state, shelf, stop)?;
        }
    }

    /// Uploads all collected blocks, and writes the index object. Afterwards every block that was
    /// added before the call is stored.
    ///
    /// # Errors
    /// An upload has failed, or a stop was requested.
    pub(super) fn flush(&self, stop: &Stop) -> Result<()> {
        let uploads = &self.0;
        let mut state = uploads.state();
        for shelf in [Shelf::Data, Shelf::Pages] {
            state.check()?;
            while state.open[shelf as usize].is_some() {
                state = uploads.send(state, shelf, stop)?;
            }
        }
        while state.uploading > 0 {
            state.check()?;
            state = uploads.wait(state, stop)?;
        }
        state.check()?;
        let stored = std::mem::take(&mut state.stored);
        if stored.is_empty() {
            return Ok(());
        }
        // Another thread that flushes waits for this index object, too.
        state.uploading += 1;
        drop(state);
        let published = uploads.publish(stored);
        uploads.state().uploading -= 1;
        uploads.changed.notify_all();
        published
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.0.stop.request(StopReason::OtherPartFailed);
        let state = self.0.state();
        let waited = self
            .0
            .changed
            .wait_timeout_while(state, FAREWELL, |state| state.uploading > 0);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.uploading == 0 {
            let threads = std::mem::take(&mut state.threads);
            drop(state);
            for thread in threads {
                // A panic has left a failure, or nothing to do.
                let _ = thread.join();
            }
        }
    }
}

impl OpenPack {
    fn has_room(&self, bytes: u64, most: u64) -> bool {
        let is_small = self.bytes.len() as u64 + bytes <= most && self.entries.len() < MOST_BLOCKS;
        self.entries.is_empty() || is_small
    }

    fn push(&mut self, id: BlockId, sealed: &[u8], plain: usize) -> Result<Place> {
        let number = |value: usize| {
            let why = || std::io::Error::other("a pack is too large");
            u32::try_from(value).map_err(|_| PackError::Seal(why()))
        };
        let place = Place {
            pack: self.id,
            offset: number(self.bytes.len())?,
            stored: number(sealed.len())?,
            plain: number(plain)?,
        };
        self.bytes.extend_from_slice(sealed);
        self.entries.push(Entry {
            id,
            stored: place.stored,
            plain: place.plain,
        });
        Ok(place)
    }
}

impl Uploads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pack_bytes(&self, shelf: Shelf) -> u64 {
        match shelf {
            Shelf::Data => self.pack_bytes,
            Shelf::Pages => self.pack_bytes.min(PAGE_PACK),
        }
    }

    /// Waits for a moment, or for an upload to end.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, stop: &Stop) -> Result<MutexGuard<'a, State>> {
        let waited = self.changed.wait_timeout(state, STEP);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match stop.reason().or_else(|| self.stop.reason()) {
            Some(reason) => {
                let kind = ObjectErrorKind::Stopped(reason);
                Err(ObjectError::new("write", self.objects.location(), kind).into())
            }
            None => Ok(state),
        }
    }

    /// Starts the upload of an open pack as soon as it is its turn. While this waits, another
    /// thread may do the same.
    fn send<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        shelf: Shelf,
        stop: &Stop,
    ) -> Result<MutexGuard<'a, State>> {
        let most = (UPLOADS / self.pack_bytes).max(1) as usize;
        if state.uploading >= most {
            return self.wait(state, stop);
        }
        let Some(pack) = state.open[shelf as usize].take() else {
            return Ok(state);
        };
        state.uploading += 1;
        let uploads = Arc::clone(self);
        let work = move || {
            let uploaded = catch_unwind(AssertUnwindSafe(|| uploads.upload(pack)));
            let panicked = || PackError::Seal(std::io::Error::other("an upload panicked"));
            let result = uploaded.unwrap_or_else(|_| Err(panicked()));
            let mut state = uploads.state();
            state.uploading -= 1;
            if let Err(error) = result {
                state.fail(error);
            }
            uploads.changed.notify_all();
        };
        state.threads.retain(|thread| !thread.is_finished());
        match Builder::new().name("pack-upload".into()).spawn(work) {
            Ok(thread) => state.threads.push(thread),
            Err(error) => {
                state.uploading -= 1;
                state.fail(PackError::Seal(error));
            }
        }
        Ok(state)
    }

    /// Completes a pack and stores it. After several packs it writes an index object.
    fn upload(&self, pack: OpenPack) -> Result<()> {
        let OpenPack {
            id,
            mut bytes,
            entries,
        } = pack;
        let name = id.name().map_err(PackError::Seal)?;
        let table = self.sealer.seal_record(&name, &encode_table(&entries));
        let table = table.map_err(PackError::Seal)?;
        bytes.reserve_exact(table.len() + TRAILER);
        bytes.extend_from_slice(&table);
        let trailer = encode_trailer(table.len() as u32, &blake3::hash(&bytes));
        bytes.extend_from_slice(&trailer);
        let size = bytes.len() as u64;
        retry(&self.stop, || self.put(&name, &bytes, &trailer))?;
        self.spare.give(bytes);
        let mut state = self.state();
        state.stored.push(PackEntry { id, size, entries });
        if state.stored.len() < PACKS_OF_RECORD {
            return Ok(());
        }
        let stored = std::mem::take(&mut state.stored);
        drop(state);
        self.publish(stored)
    }

    /// Stores a pack. If its name exists, an earlier call must have stored it.
    fn put(&self, name: &ObjectName, bytes: &[u8], trailer: &[u8]) -> ObjectResult<()> {
        let size = bytes.len() as u64;
        let limit = limit(size, &self.stop);
        if self.objects.put_if_absent(name, bytes, &limit)? == PutResult::Created {
            return Ok(());
        }
        let is_ours = self.objects.head(name, &limit)? == Some(size)
            && self
                .objects
                .get_range(name, size - trailer.len() as u64..size, &limit)?
                == trailer;
        let location = || format!("{}/{name}", self.objects.location());
        let kind = || ObjectErrorKind::Unexpected("another object has its name".to_owned());
        match is_ours {
            true => Ok(()),
            false => Err(ObjectError::new("write", location(), kind())),
        }
    }

    fn publish(&self, packs: Vec<PackEntry>) -> Result<()> {
        let published = self.index.publish(packs, &self.stop);
        published.map_err(|error| {
            let error = Arc::new(error);
            self.state().failure.get_or_insert_with(|| Arc::clone(&error));
            PackError::Earlier(error)
        })
    }
}
