//! The local cache of the index: an embedded database in a file. It may be deleted or damaged at
//! any time; then it is filled again from the index objects.
//!
//! The cache is never believed about the content of a block. Each row has a tag that only this
//! repository's key can make, so a damaged row is noticed.

mod scan;
mod temporary;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Database, DatabaseError, Durability, MultimapTableDefinition, ReadableDatabase, ReadableTable,
    TableDefinition,
};

use super::bytes::Bytes;
use super::id::{BlockId, PackId};
use super::sealer::Sealer;
use super::table::PackEntry;
use crate::io::{DiskStore, Store};
use crate::repo::pack_error::{PackError, Result};

use temporary::Temporary;

/// Memory for pages of the database, in bytes.
const MEMORY: usize = 64 << 20;

/// The version of the file.
const FORMAT: &str = "1";

/// The length of a row: a place in a pack and a tag.
const ROW: usize = 24;

const BLOCKS: TableDefinition<'_, &[u8; 32], &[u8; ROW]> = TableDefinition::new("blocks");
/// Further places of blocks that lie in several packs.
const TWINS: MultimapTableDefinition<'_, &[u8; 32], &[u8; ROW]> = MultimapTableDefinition::new("twins");
/// Number of a pack: its id, its size, and the number of the index object that lists it.
const PACKS: TableDefinition<'_, u32, (&[u8; 16], u64, u32)> = TableDefinition::new("packs");
/// Name of an index object: its number.
const INDEXES: TableDefinition<'_, &str, u32> = TableDefinition::new("indexes");
const FACTS: TableDefinition<'_, &str, &str> = TableDefinition::new("facts");

pub(super) use scan::CachedBlock;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pack: PackId,
    /// The place of its sealed form in the pack, in bytes.
    pub(super) offset: u32,
    /// The length of its sealed form in bytes.
    pub(super) stored: u32,
    /// The number of its plain bytes.
    pub(super) plain: u32,
}

/// The local cache of the index.
pub(super) struct Cache {
    database: Database,
    /// `None` if only this process has it.
    path: Option<PathBuf>,
    sealer: Arc<Sealer>,
}

/// A row of the table of blocks.
#[derive(Clone, Copy)]
struct Row {
    pack: u32,
    offset: u32,
    stored: u32,
    plain: u32,
}

impl Row {
    fn encode(self, id: &BlockId, sealer: &Sealer) -> [u8; ROW] {
        let mut row = [0; ROW];
        for (field, place) in [self.pack, self.offset, self.stored, self.plain].iter().zip(0..) {
            row[4 * place..4 * place + 4].copy_from_slice(&field.to_le_bytes());
        }
        let tag = Row::tag(id, &row, sealer);
        row[16..].copy_from_slice(&tag);
        row
    }

    fn parse(id: &BlockId, row: &[u8; ROW], sealer: &Sealer) -> Option<Row> {
        if row[16..] != Row::tag(id, row, sealer) {
            return None;
        }
        let mut bytes = Bytes::new(row);
        Some(Row {
            pack: bytes.u32()?,
            offset: bytes.u32()?,
            stored: bytes.u32()?,
            plain: bytes.u32()?,
        })
    }

    fn tag(id: &BlockId, row: &[u8; ROW], sealer: &Sealer) -> [u8; 8] {
        let mut bytes = [0; 48];
        bytes[..32].copy_from_slice(id.bytes());
        bytes[32..].copy_from_slice(&row[..16]);
        sealer.short_tag(&bytes)
    }
}

impl Cache {
    /// Opens the cache of a repository in this folder, which is created if it is missing. A damaged
    /// file is replaced. If another process uses the file, or the folder cannot be used, the cache
    /// is a temporary file.
    ///
    /// # Errors
    /// No temporary file can be created either.
    pub(super) fn open(folder: Option<&Path>, repository: &str, sealer: &Arc<Sealer>) -> Result<Cache> {
        let shared = folder.and_then(|folder| Cache::open_shared(folder, repository, sealer));
        match shared {
            Some(cache) => Ok(cache),
            None => Cache::private(folder, repository, sealer),
        }
    }

    /// `None` if the file is in use or cannot be used.
    fn open_shared(folder: &Path, repository: &str, sealer: &Arc<Sealer>) -> Option<Cache> {
        let _ = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        let path = folder.join(format!("{repository}.index"));
        // The second try follows the removal of a damaged file.
        for _ in 0..2 {
            match Cache::open_file(&path, repository, sealer) {
                Ok(cache) => return Some(cache),
                Err(Unusable::Busy) => return None,
                Err(Unusable::Damaged) => DiskStore.remove_file(&path).ok()?,
            }
        }
        None
    }

    fn open_file(
        path: &Path,
        repository: &str,
        sealer: &Arc<Sealer>,
    ) -> std::result::Result<Cache, Unusable> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(|_| Unusable::Busy)?;
        let opened = catch_unwind(AssertUnwindSafe(|| builder().create_file(file)));
        let database = match opened {
            Ok(Ok(database)) => database,
            Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => return Err(Unusable::Busy),
            Ok(Err(_)) | Err(_) => return Err(Unusable::Damaged),
        };
        let cache = Cache {
            database,
            path: Some(path.to_owned()),
            sealer: Arc::clone(sealer),
        };
        match cache.prepare(repository) {
            Ok(true) => Ok(cache),
            Ok(false) | Err(_) => Err(Unusable::Damaged),
        }
    }

    /// A cache in a temporary file, which ends with this process. The file is in the given folder
    /// if possible.
    ///
    /// # Errors
    /// No temporary file can be created.
    pub(super) fn private(folder: Option<&Path>, repository: &str, sealer: &Arc<Sealer>) -> Result<Cache> {
        let near = folder.and_then(|folder| tempfile::tempfile_in(folder).ok());
        let file = near.map_or_else(tempfile::tempfile, Ok);
        let file = file.map_err(|error| cache_error(None, error))?;
        let database = builder().create_with_backend(Temporary(file));
        let cache = Cache {
            database: database.map_err(|error| cache_error(None, error))?,
            path: None,
            sealer: Arc::clone(sealer),
        };
        cache.prepare(repository)?;
        Ok(cache)
    }

    /// Creates the tables. Returns whether the file belongs to this repository and this version.
    fn prepare(&self, repository: &str) -> Result<bool> {
        self.guarded(|| {
            let transaction = self.database.begin_write()?;
            let is_ours = {
                let mut facts = transaction.open_table(FACTS)?;
                let mut is_ours = true;
                for (fact, value) in [("format", FORMAT), ("repository", repository)] {
                    let known = facts.get(fact)?.map(|known| known.value() == value);
                    is_ours &= known.unwrap_or(true);
                    if known.is_none() {
                        facts.insert(fact, value)?;
                    }
                }
                transaction.open_table(BLOCKS)?;
                transaction.open_multimap_table(TWINS)?;
                transaction.open_table(PACKS)?;
                transaction.open_table(INDEXES)?;
                is_ours
            };
            transaction.commit()?;
            Ok(is_ours)
        })
    }

    /// Where a block is, if an index object lists it.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn find(&self, id: &BlockId) -> Result<Option<Place>> {
        let found = self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let blocks = transaction.open_table(BLOCKS)?;
            let Some(row) = blocks.get(id.bytes())? else {
                return Ok(None);
            };
            let Some(row) = Row::parse(id, row.value(), &self.sealer) else {
                return Ok(Some(None));
            };
            let packs = transaction.open_table(PACKS)?;
            let pack = packs.get(row.pack)?;
            Ok(Some(pack.map(|pack| Place {
                pack: PackId::from_bytes(*pack.value().0),
                offset: row.offset,
                stored: row.stored,
                plain: row.plain,
            })))
        })?;
        match found {
            None => Ok(None),
            Some(Some(place)) => Ok(Some(place)),
            Some(None) => Err(self.damaged("a row is wrong".to_owned())),
        }
    }

    /// The other places of a block that several packs hold.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn twins(&self, id: &BlockId) -> Result<Vec<Place>> {
        self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let packs = transaction.open_table(PACKS)?;
            let mut places = Vec::new();
            for row in transaction.open_multimap_table(TWINS)?.get(id.bytes())? {
                let row = row?;
                let Some(row) = Row::parse(id, row.value(), &self.sealer) else {
                    continue;
                };
                places.extend(packs.get(row.pack)?.map(|pack| Place {
                    pack: PackId::from_bytes(*pack.value().0),
                    offset: row.offset,
                    stored: row.stored,
                    plain: row.plain,
                }));
            }
            Ok(places)
        })
    }

    /// The names of the index objects that were added.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn indexes(&self) -> Result<BTreeSet<String>> {
        self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let indexes = transaction.open_table(INDEXES)?;
            let names = indexes.iter()?.map(|entry| Ok(entry?.0.value().to_owned()));
            names.collect()
        })
    }

    /// The packs that the index objects list, with their sizes in bytes.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(super) fn packs(&self) -> Result<BTreeMap<PackId, u64>> {
        self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let packs = transaction.open_table(PACKS)?;
            let sizes = packs.iter()?.map(|entry| {
                let (_, entry) = entry?;
                let (id, size, _) = entry.value();
                Ok((PackId::from_bytes(*id), size))
            });
            sizes.collect()
        })
    }

    /// Removes the file, so that the next run starts with a new one.
    pub(super) fn discard(&self) {
        if let Some(path) = &self.path {
            let _ = DiskStore.remove_file(path);
        }
    }

    /// Adds index objects. If `is_last` is true, no call follows soon, and the file is synced.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub(super) fn add(&self, objects: &[(String, Vec<PackEntry>)], is_last: bool) -> Result<()> {
        self.guarded(|| {
            let mut transaction = self.database.begin_write()?;
            match is_last {
                // A run that is killed later leaves a file that opens at once.
                true => transaction.set_quick_repair(true),
                false => transaction.set_durability(Durability::None)?,
            }
            {
                let mut indexes = transaction.open_table(INDEXES)?;
                let mut packs = transaction.open_table(PACKS)?;
                let mut next_index = 0;
                for entry in indexes.iter()? {
                    next_index = next_index.max(entry?.1.value().saturating_add(1));
                }
                let mut rows = Vec::new();
                for (name, listed) in objects {
                    if indexes.get(name.as_str())?.is_some() {
                        continue;
                    }
                    let index = next_index;
                    next_index = next_index.saturating_add(1);
                    indexes.insert(name.as_str(), index)?;
                    for pack in listed {
                        let last = packs.last()?.map(|(number, _)| number.value());
                        let number = last.map_or(0, |last| last.saturating_add(1));
                        packs.insert(number, (pack.id.bytes(), pack.size, index))?;
                        rows.extend(pack.located().map(|(offset, entry)| {
                            let row = Row {
                                pack: number,
                                offset,
                                stored: entry.stored,
                                plain: entry.plain,
                            };
                            (entry.id, row.encode(&entry.id, &self.sealer))
                        }));
                    }
                }
                // In order, neighbours share pages.
                rows.sort_unstable();
                let mut blocks = transaction.open_table(BLOCKS)?;
                let mut twins = transaction.open_multimap_table(TWINS)?;
                for (id, row) in &rows {
                    let before = blocks.insert(id.bytes(), row)?.map(|before| *before.value());
                    if let Some(before) = before {
                        twins.insert(id.bytes(), &before)?;
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Forgets index objects, and the packs that no other index object lists.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub(super) fn forget(&self, names: &[String]) -> Result<()> {
        let is_sound = self.guarded(|| {
            let transaction = self.database.begin_write()?;
            let mut is_sound = true;
            {
                let mut indexes = transaction.open_table(INDEXES)?;
                let mut gone = BTreeSet::new();
                for name in names {
                    gone.extend(indexes.remove(name.as_str())?.map(|number| number.value()));
                }
                let mut packs = transaction.open_table(PACKS)?;
                packs.retain(|_, (_, _, index)| !gone.contains(&index))?;
                let mut blocks = transaction.open_table(BLOCKS)?;
                let mut twins = transaction.open_multimap_table(TWINS)?;
                let mut known = BTreeSet::new();
                for entry in packs.iter()? {
                    known.insert(entry?.0.value());
                }
                let has_pack =
                    |row: &[u8; ROW]| known.contains(&u32::from_le_bytes([row[0], row[1], row[2], row[3]]));
                let mut twin_ids = BTreeSet::new();
                for entry in redb::ReadableMultimapTable::iter(&twins)? {
                    twin_ids.insert(*entry?.0.value());
                }
                blocks.retain(|id, row| has_pack(row) || twin_ids.contains(id))?;
                for id in &twin_ids {
                    let mut rows: Vec<[u8; ROW]> = Vec::new();
                    for row in twins.remove_all(id)? {
                        rows.push(*row?.value());
                    }
                    rows.extend(blocks.remove(id)?.map(|row| *row.value()));
                    rows.retain(has_pack);
                    if let Some(first) = rows.pop() {
                        blocks.insert(id, &first)?;
                    }
                    for row in rows {
                        is_sound &= twins.insert(id, &row).is_ok();
                    }
                }
            }
            transaction.commit()?;
            Ok(is_sound)
        })?;
        match is_sound {
            true => Ok(()),
            false => Err(self.damaged("a row cannot be written".to_owned())),
        }
    }

    /// Calls the database. A panic in it means that the file is damaged.
    fn guarded<T>(&self, work: impl FnOnce() -> std::result::Result<T, redb::Error>) -> Result<T> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(redb::Error::Corrupted(why))) => Err(self.damaged(why)),
            Ok(Err(error)) => Err(cache_error(self.path.as_deref(), error)),
            Err(_) => Err(self.damaged("its structure is wrong".to_owned())),
        }
    }

    fn damaged(&self, why: String) -> PackError {
        self.discard();
        cache_error(self.path.as_deref(), std::io::Error::other(why))
    }
}

/// Why a file cannot be used.
enum Unusable {
    /// Another process uses it, or it cannot be opened.
    Busy,
    /// Its content is not that of a cache.
    Damaged,
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(MEMORY);
    builder
}

fn cache_error(path: Option<&Path>, source: impl std::error::Error + Send + Sync + 'static) -> PackError {
    PackError::Cache {
        path: path.map_or_else(|| "a temporary file".into(), Path::to_owned),
        source: Box::new(source),
    }
}
