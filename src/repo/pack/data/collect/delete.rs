//! Deletes condemned packs.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Fate;
use super::{Collector, Seen};
use crate::repo::pack::data::id::{PackId, object_name};
use crate::repo::pack::data::retry::{limit, retry};
use crate::repo::pack::data::sealer::LARGEST_RECORD;
use crate::repo::pack::data::table::PackEntry;
use crate::repo::pack::data::{PackError, Result};
use crate::repo::pack::objects::{ListedObject, ObjectName};

/// The most packs and blocks in one new index object.
const MOST_PACKS: usize = 256;
const MOST_BLOCKS: usize = 200_000;

impl Collector<'_> {
    /// Deletes packs: first from the index, then themselves, and last the records that name them.
    ///
    /// # Errors
    /// [`PackError::SessionLost`] if this process has slept too long; others if the store fails.
    pub(super) fn delete(&self, seen: &Seen, fates: &BTreeMap<PackId, Fate>) -> Result<()> {
        let dead: BTreeSet<PackId> = fates
            .iter()
            .filter(|(_, fate)| **fate == Fate::Delete)
            .map(|(id, _)| *id)
            .collect();
        if dead.is_empty() {
            return Ok(());
        }
        self.session.renew(self.stop)?;
        self.remove_from_index(&dead)?;
        for id in dead.iter().filter(|id| seen.stored.0.contains_key(id)) {
            self.remove(&id.name().map_err(PackError::Seal)?)?;
        }
        let is_done = |packs: &[PackId]| packs.iter().all(|id| dead.contains(id));
        for record in seen.records.iter().filter(|record| is_done(&record.packs)) {
            self.remove(&record.name)?;
        }
        Ok(())
    }

    /// Puts index objects with the other packs of the index objects that list dead ones, and
    /// deletes these.
    fn remove_from_index(&self, dead: &BTreeSet<PackId>) -> Result<()> {
        let index = &self.data.shared.index;
        let packs = index.cache().numbered_packs()?;
        let names = index.cache().index_names()?;
        let affected: BTreeSet<u32> = packs
            .values()
            .filter(|pack| dead.contains(&pack.id))
            .map(|pack| pack.index)
            .collect();
        let elsewhere = packs.values().filter(|pack| !affected.contains(&pack.index));
        let mut listed: BTreeSet<PackId> = elsewhere.map(|pack| pack.id).collect();
        let mut old: Vec<ObjectName> = Vec::new();
        let mut rest: Vec<PackEntry> = Vec::new();
        let mut blocks = 0;
        for name in affected.iter().filter_map(|number| names.get(number)) {
            let object = ListedObject {
                name: object_name(name).map_err(PackError::Seal)?,
                size: LARGEST_RECORD as u64,
                modified: None,
            };
            let found = index.read(&object, self.stop)?;
            let (_, found) = found.ok_or_else(|| index.damage(name, "it has vanished"))?;
            old.push(object.name);
            for pack in found {
                if dead.contains(&pack.id) || !listed.insert(pack.id) {
                    continue;
                }
                if rest.len() >= MOST_PACKS || blocks + pack.entries.len() > MOST_BLOCKS {
                    index.publish(std::mem::take(&mut rest), self.stop)?;
                    blocks = 0;
                }
                blocks += pack.entries.len();
                rest.push(pack);
            }
        }
        if !rest.is_empty() {
            index.publish(rest, self.stop)?;
        }
        old.iter().try_for_each(|name| self.remove(name))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn remove(&self, name: &ObjectName) -> Result<()> {
        let objects = &self.data.shared.objects;
        Ok(retry(self.stop, || objects.delete(name, &limit(0, self.stop)))?)
    }
}
