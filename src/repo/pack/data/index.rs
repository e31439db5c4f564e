//! Finds the place of a block, from the index objects and from what this process has stored.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;

use super::cache::{Cache, Place};
use super::id::{BlockId, INDEX, PACKS, PackId, new_index_name};
use super::listing::list;
use super::retry::{limit, retry};
use super::sealer::{LARGEST_RECORD, OVERHEAD, Sealer};
use super::table::{PackEntry, TRAILER, encode_index, parse_index, parse_table, parse_trailer};
use crate::model::stop::Stop;
use crate::repo::pack::objects::{
    ListedObject, ObjectError, ObjectErrorKind, ObjectResult, ObjectStore, PutResult,
};
use crate::repo::pack_error::{PackError, Result};

/// The number of index objects that are read at the same time.
const AT_ONCE: usize = 4;

/// How often the index objects are listed at most, because one has gone since.
const MOST_LISTS: usize = 8;

/// The number of blocks in one transaction of the cache.
const BATCH: usize = 100_000;

/// An object with the packs that it lists. A pack lists itself.
type Listed = (String, Vec<PackEntry>);

/// Reads such an object.
type Read = fn(&Index, &ListedObject, &Stop) -> Result<Option<Listed>>;

/// The index of a repository.
pub(super) struct Index {
    objects: Arc<dyn ObjectStore>,
    sealer: Arc<Sealer>,
    repository: String,
    cache: RwLock<Arc<Cache>>,
    /// Whether the index was read anew since the last refresh.
    is_recovered: Mutex<bool>,
    /// The names of damaged index objects.
    damaged: Mutex<BTreeSet<String>>,
    /// The blocks of this process that no index object lists yet.
    recent: Mutex<HashMap<BlockId, Place>>,
    /// Condemned and missing packs. Their blocks are stored again, and read only if they are
    /// nowhere else.
    condemned: RwLock<HashSet<PackId>>,
    largest: usize,
}

impl Index {
    /// Opens the index. The caller must call [`Index::refresh`] next.
    ///
    /// # Errors
    /// There is no place for the cache.
    pub(super) fn open(
        objects: &Arc<dyn ObjectStore>,
        sealer: &Arc<Sealer>,
        repository: &str,
        cache: Option<&Path>,
        largest: usize,
    ) -> Result<Index> {
        let cache = Cache::open(cache, repository, sealer)?;
        Ok(Index::with_cache(objects, sealer, repository, cache, largest))
    }

    /// An empty index in a temporary file, which lies in the given folder if that is possible.
    ///
    /// # Errors
    /// There is no place for the file.
    pub(super) fn private(
        objects: &Arc<dyn ObjectStore>,
        sealer: &Arc<Sealer>,
        folder: Option<&Path>,
        largest: usize,
    ) -> Result<Index> {
        let cache = Cache::private(folder, "", sealer)?;
        Ok(Index::with_cache(objects, sealer, "", cache, largest))
    }

    fn with_cache(
        objects: &Arc<dyn ObjectStore>,
        sealer: &Arc<Sealer>,
        repository: &str,
        cache: Cache,
        largest: usize,
    ) -> Index {
        Index {
            objects: Arc::clone(objects),
            sealer: Arc::clone(sealer),
            repository: repository.to_owned(),
            cache: RwLock::new(Arc::new(cache)),
            is_recovered: Mutex::default(),
            damaged: Mutex::default(),
            recent: Mutex::default(),
            condemned: RwLock::default(),
            largest,
        }
    }

    /// The cache. It may be replaced by another one.
    pub(super) fn cache(&self) -> Arc<Cache> {
        Arc::clone(&self.cache.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn recent(&self) -> MutexGuard<'_, HashMap<BlockId, Place>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a block is; `None` if it is not stored.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn find(&self, id: &BlockId) -> Result<Option<Place>> {
        let recent = self.recent().get(id).copied();
        match recent {
            Some(place) => Ok(Some(place)),
            None => self.find_listed(id),
        }
    }

    /// Where an index object says that a block is, if possible in a pack that is not condemned.
    fn find_listed(&self, id: &BlockId) -> Result<Option<Place>> {
        let cache = self.cache();
        let Some(first) = cache.find(id)? else {
            return Ok(None);
        };
        if !self.is_condemned(&first.pack) {
            return Ok(Some(first));
        }
        let places = cache.places(id)?;
        let better = places.iter().find(|(_, place)| !self.is_condemned(&place.pack));
        Ok(Some(better.map_or(first, |(_, place)| *place)))
    }

    /// Adds condemned packs.
    pub(super) fn condemn(&self, packs: impl IntoIterator<Item = PackId>) {
        let mut condemned = self.condemned.write().unwrap_or_else(PoisonError::into_inner);
        condemned.extend(packs);
    }

    /// Whether a pack is known to be condemned.
    pub(super) fn is_condemned(&self, pack: &PackId) -> bool {
        let condemned = self.condemned.read().unwrap_or_else(PoisonError::into_inner);
        condemned.contains(pack)
    }

    /// All places of a block that several packs hold.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn find_all(&self, id: &BlockId) -> Result<Vec<Place>> {
        let cache = self.cache();
        let mut places = cache.twins(id)?;
        places.extend(self.recent().get(id).copied());
        places.extend(cache.find(id)?);
        Ok(places)
    }

    /// Notes a block that is in a pack of this process. Returns false, and notes nothing, if a
    /// block with the same id is already noted.
    pub(super) fn note(&self, id: BlockId, place: Place) -> bool {
        let mut recent = self.recent();
        let is_new = !recent.contains_key(&id);
        if is_new {
            recent.insert(id, place);
        }
        is_new
    }

    /// Whether a block of this process is noted.
    pub(super) fn is_noted(&self, id: &BlockId) -> bool {
        self.recent().contains_key(id)
    }

    /// Writes an index object for packs of this process, which are all stored.
    ///
    /// # Errors
    /// The object or the cache cannot be written.
    pub(super) fn publish(&self, packs: Vec<PackEntry>, stop: &Stop) -> Result<()> {
        let name = new_index_name().map_err(PackError::Seal)?;
        let record = self.sealer.seal_record(&name, &encode_index(&packs));
        let record = record.map_err(PackError::Seal)?;
        retry(stop, || {
            let limit = limit(record.len() as u64, stop);
            match self.objects.put_if_absent(&name, &record, &limit)? {
                PutResult::Created | PutResult::Existed => Ok(()),
            }
        })?;
        let object = (name.to_string(), packs);
        self.cache().add(std::slice::from_ref(&object), true)?;
        let mut recent = self.recent();
        for entry in object.1.iter().flat_map(|pack| &pack.entries) {
            recent.remove(&entry.id);
        }
        Ok(())
    }

    /// Where a block is that must exist. If the index lacks the block, the index is read anew.
    ///
    /// # Errors
    /// The errors of [`Index::read_anew`].
    pub(super) fn find_needed(&self, id: &BlockId, stop: &Stop) -> Result<Option<Place>> {
        match self.find(id) {
            Ok(Some(place)) => return Ok(Some(place)),
            Ok(None) | Err(PackError::Cache { .. }) => {}
            Err(error) => return Err(error),
        }
        self.read_anew(stop)?;
        self.find(id)
    }

    /// Reads the index anew, once after each refresh: from all index objects, and from the tables
    /// of packs that they do not list.
    ///
    /// # Errors
    /// The store fails, or the cache cannot be used.
    pub(super) fn read_anew(&self, stop: &Stop) -> Result<()> {
        let mut is_recovered = self.is_recovered.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_recovered {
            self.recover(stop)?;
            *is_recovered = true;
        }
        Ok(())
    }

    fn recover(&self, stop: &Stop) -> Result<()> {
        let cache = Arc::new(Cache::private(None, &self.repository, &self.sealer)?);
        let objects = self.objects.as_ref();
        self.load(&cache, list(objects, INDEX, stop)?, stop, Index::read)?;
        let known = cache.packs()?;
        let mut unlisted = list(objects, PACKS, stop)?;
        unlisted.retain(|object| PackId::of_name(&object.name).is_some_and(|id| !known.contains_key(&id)));
        self.load(&cache, unlisted, stop, Index::read_pack)?;
        let mut current = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        current.discard();
        *current = cache;
        Ok(())
    }

    /// The packs that the index objects list, with their sizes in bytes.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn packs(&self) -> Result<BTreeMap<PackId, u64>> {
        self.cache().packs()
    }

    /// The names of the index objects that were found to be damaged.
    pub(super) fn damaged_objects(&self) -> Vec<String> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.iter().cloned().collect()
    }

    /// Brings the cache up to date with the index objects. Damaged index objects are noted and
    /// skipped.
    ///
    /// # Errors
    /// The store fails, or the cache cannot be written.
    pub(super) fn refresh(&self, stop: &Stop) -> Result<()> {
        for _ in 0..MOST_LISTS {
            if self.refresh_once(stop)? {
                return Ok(());
            }
        }
        let why = "index objects were replaced while they were read: run the command again".to_owned();
        let kind = ObjectErrorKind::Unexpected(why);
        Err(ObjectError::new("list", format!("{}/{INDEX}", self.objects.location()), kind).into())
    }

    /// Returns false if an index object has gone since it was listed. A collector puts its packs
    /// into others first, so they have to be listed again.
    fn refresh_once(&self, stop: &Stop) -> Result<bool> {
        let mut is_recovered = self.is_recovered.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = self.cache();
        // Before the list: what this process publishes meanwhile is not gone.
        let known = cache.indexes()?;
        let mut listed = list(self.objects.as_ref(), INDEX, stop)?;
        let names: BTreeSet<&str> = listed.iter().map(|object| object.name.as_str()).collect();
        let gone = known.iter().filter(|name| !names.contains(name.as_str()));
        let gone: Vec<String> = gone.cloned().collect();
        if !gone.is_empty() {
            cache.forget(&gone)?;
        }
        listed.retain(|object| !known.contains(object.name.as_str()));
        *is_recovered = false;
        self.load(&cache, listed, stop, Index::read)
    }

    /// Reads objects on several threads, and adds what they list to the cache. Returns false if one
    /// has gone.
    fn load(&self, cache: &Cache, new: Vec<ListedObject>, stop: &Stop, read: Read) -> Result<bool> {
        let mut is_complete = true;
        let work = Mutex::new(new.into_iter());
        let (sender, loaded) = sync_channel(AT_ONCE);
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                let (sender, work) = (sender.clone(), &work);
                scope.spawn(move || {
                    loop {
                        let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(object) = next else { return };
                        if sender.send((read(self, &object, stop), object.name)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut batch = Vec::new();
            let mut blocks = 0;
            // After an error the receiver is dropped, which ends the threads.
            for (result, name) in loaded {
                let object = match result {
                    Ok(Some(object)) => object,
                    Ok(None) => {
                        is_complete = false;
                        continue;
                    }
                    Err(PackError::Damaged { .. }) => {
                        let damaged = self.damaged.lock();
                        let mut damaged = damaged.unwrap_or_else(PoisonError::into_inner);
                        // A damaged pack is reported with the blocks that need it.
                        if name.as_str().starts_with(INDEX) {
                            damaged.insert(name.to_string());
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                blocks += object.1.iter().map(|pack| pack.entries.len()).sum::<usize>();
                batch.push(object);
                if blocks >= BATCH {
                    cache.add(&std::mem::take(&mut batch), false)?;
                    blocks = 0;
                }
            }
            cache.add(&batch, true).map(|()| is_complete)
        })
    }

    /// Reads an index object. `None` if it was deleted after it was listed.
    ///
    /// # Errors
    /// The store fails, or the object is damaged.
    pub(super) fn read(&self, object: &ListedObject, stop: &Stop) -> Result<Option<Listed>> {
        let name = &object.name;
        let most = (LARGEST_RECORD + OVERHEAD) as u64;
        let read: ObjectResult<Vec<u8>> =
            retry(stop, || self.objects.get(name, most, &limit(object.size, stop)));
        let sealed = match read {
            Ok(sealed) => sealed,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_too_large() => {
                return Err(self.damage(name.as_str(), "it is too large"));
            }
            Err(error) => return Err(error.into()),
        };
        let record = self.sealer.open_record(name, sealed, LARGEST_RECORD);
        let packs = record.and_then(|record| parse_index(&record, self.largest));
        let packs = packs.map_err(|why| self.damage(name.as_str(), why))?;
        Ok(Some((name.to_string(), packs)))
    }

    /// Reads the table of a pack.
    fn read_pack(&self, object: &ListedObject, stop: &Stop) -> Result<Option<Listed>> {
        let name = &object.name;
        let damage = |why| self.damage(name.as_str(), why);
        let part = |range: Range<u64>| {
            let read = retry(stop, || {
                let bytes = range.end - range.start;
                self.objects.get_range(name, range.clone(), &limit(bytes, stop))
            });
            read.map_err(|error| match error.kind {
                ObjectErrorKind::NotFound | ObjectErrorKind::TooShort => {
                    damage("it is missing or ends too early")
                }
                _ => error.into(),
            })
        };
        let Some(id) = PackId::of_name(name) else {
            return Ok(None);
        };
        let end = object.size.checked_sub(TRAILER as u64);
        let end = end.ok_or_else(|| damage("it is too short"))?;
        let trailer = parse_trailer(&part(end..object.size)?).map_err(damage)?;
        let start = end.checked_sub(u64::from(trailer.table_length));
        let start = start.filter(|start| end - start <= (LARGEST_RECORD + OVERHEAD) as u64);
        let start = start.ok_or_else(|| damage("its table has an impossible length"))?;
        let table = self.sealer.open_record(name, part(start..end)?, LARGEST_RECORD);
        let entries = table.and_then(|table| parse_table(&table, self.largest));
        let entries = entries.map_err(damage)?;
        let stored: u64 = entries.iter().map(|entry| u64::from(entry.stored)).sum();
        if stored != start {
            return Err(damage("its table does not fit its blocks"));
        }
        let size = object.size;
        Ok(Some((name.to_string(), vec![PackEntry { id, size, entries }])))
    }

    /// The error about an object of the index.
    pub(super) fn damage(&self, object: &str, why: &str) -> PackError {
        PackError::Damaged {
            location: self.objects.location(),
            object: object.to_owned(),
            why: why.to_owned(),
        }
    }
}
