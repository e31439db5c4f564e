//! Reads the whole cache, and all places of a block.

use std::collections::BTreeMap;

use redb::{ReadableDatabase, ReadableMultimapTable, ReadableTable};

use super::{BLOCKS, Cache, INDEXES, PACKS, Place, Row, TWINS};
use crate::repo::pack::data::id::{BlockId, PackId};
use crate::repo::pack_error::Result;

/// A pack, as one index object lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::repo::pack::data) struct CachedPack {
    pub(in crate::repo::pack::data) id: PackId,
    /// The size of its object in bytes.
    pub(in crate::repo::pack::data) size: u64,
    /// The number of the index object.
    pub(in crate::repo::pack::data) index: u32,
}

/// Where an index object says that a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::repo::pack::data) struct CachedBlock {
    pub(in crate::repo::pack::data) id: BlockId,
    /// The number of its pack.
    pub(in crate::repo::pack::data) pack: u32,
    /// Its place in the pack, in bytes.
    pub(in crate::repo::pack::data) offset: u32,
    /// The length of its sealed form in bytes.
    pub(in crate::repo::pack::data) stored: u32,
    /// The number of its plain bytes.
    pub(in crate::repo::pack::data) plain: u32,
}

impl Cache {
    /// All places of a block, each with the number of its pack.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(in crate::repo::pack::data) fn places(&self, id: &BlockId) -> Result<Vec<(u32, Place)>> {
        let found = self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let blocks = transaction.open_table(BLOCKS)?;
            let twins = transaction.open_multimap_table(TWINS)?;
            let packs = transaction.open_table(PACKS)?;
            let mut rows = Vec::new();
            rows.extend(blocks.get(id.bytes())?.map(|row| *row.value()));
            for row in twins.get(id.bytes())? {
                rows.push(*row?.value());
            }
            let mut places = Vec::with_capacity(rows.len());
            for row in rows {
                let Some(row) = Row::parse(id, &row, &self.sealer) else {
                    return Ok(None);
                };
                let Some(pack) = packs.get(row.pack)? else {
                    return Ok(None);
                };
                let place = Place {
                    pack: PackId::from_bytes(*pack.value().0),
                    offset: row.offset,
                    stored: row.stored,
                    plain: row.plain,
                };
                places.push((row.pack, place));
            }
            Ok(Some(places))
        })?;
        found.ok_or_else(|| self.damaged("a row is wrong".to_owned()))
    }

    /// The packs by their numbers. A pack in several index objects has several numbers.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(in crate::repo::pack::data) fn numbered_packs(&self) -> Result<BTreeMap<u32, CachedPack>> {
        self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let mut packs = BTreeMap::new();
            for entry in transaction.open_table(PACKS)?.iter()? {
                let (number, pack) = entry?;
                let (id, size, index) = pack.value();
                let id = PackId::from_bytes(*id);
                packs.insert(number.value(), CachedPack { id, size, index });
            }
            Ok(packs)
        })
    }

    /// The names of the index objects by their numbers.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(in crate::repo::pack::data) fn index_names(&self) -> Result<BTreeMap<u32, String>> {
        self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let mut names = BTreeMap::new();
            for entry in transaction.open_table(INDEXES)?.iter()? {
                let (name, number) = entry?;
                names.insert(number.value(), name.value().to_owned());
            }
            Ok(names)
        })
    }

    /// Visits every place of every block.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub(in crate::repo::pack::data) fn each_block(&self, visit: &mut dyn FnMut(CachedBlock)) -> Result<()> {
        let is_sound = self.guarded(|| {
            let transaction = self.database.begin_read()?;
            let mut is_sound = true;
            let mut take = |id: &[u8; 32], row: &[u8; super::ROW]| match Row::parse(
                &BlockId::new(*id),
                row,
                &self.sealer,
            ) {
                Some(row) => visit(CachedBlock {
                    id: BlockId::new(*id),
                    pack: row.pack,
                    offset: row.offset,
                    stored: row.stored,
                    plain: row.plain,
                }),
                None => is_sound = false,
            };
            for entry in transaction.open_table(BLOCKS)?.iter()? {
                let (id, row) = entry?;
                take(id.value(), row.value());
            }
            for entry in transaction.open_multimap_table(TWINS)?.iter()? {
                let (id, rows) = entry?;
                for row in rows {
                    take(id.value(), row?.value());
                }
            }
            Ok(is_sound)
        })?;
        match is_sound {
            true => Ok(()),
            false => Err(self.damaged("a row is wrong".to_owned())),
        }
    }
}
