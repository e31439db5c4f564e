//! Lists packs in the index that a killed writer has left.

use std::collections::BTreeMap;

use super::plan::PackUse;
use super::{CollectReport, Collector, Seen};
use crate::repo::pack::data::Result;
use crate::repo::pack::data::id::PackId;
use crate::repo::pack::data::stored::{Found, read_whole};
use crate::repo::pack::data::table::PACKS_OF_RECORD;

impl Collector<'_> {
    /// Adds old packs that no index object lists to the index. Returns those that are useless,
    /// because they are damaged or are not packs. In a dry run, all of them count as useless.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn adopt(&self, seen: &Seen, report: &mut CollectReport) -> Result<BTreeMap<PackId, PackUse>> {
        let index = &self.data.shared.index;
        let listed: BTreeMap<PackId, u64> = index.cache().packs()?;
        let facts = self.facts(seen);
        let mut useless = BTreeMap::new();
        let mut sound = Vec::new();
        for (id, object) in &seen.stored.0 {
            let is_young = object.modified.is_none_or(|time| facts.is_young(time));
            if is_young || listed.contains_key(id) || seen.condemned.contains(id) {
                continue;
            }
            let found = match self.options.dry_run {
                true => Found::Unsound("it was not read"),
                false => read_whole(self.data, *id, object.size, self.stop)?,
            };
            match found {
                Found::Sound(pack) => {
                    report.adopted.add(pack.size);
                    sound.push(pack);
                }
                Found::Unsound(_) => {
                    let pack = PackUse {
                        id: *id,
                        size: object.size,
                        blocks: 0,
                        needed: 0,
                        time: object.modified,
                        is_condemned: false,
                    };
                    useless.insert(*id, pack);
                }
                Found::Gone => {}
            }
            if sound.len() >= PACKS_OF_RECORD {
                index.publish(std::mem::take(&mut sound), self.stop)?;
            }
        }
        if !sound.is_empty() {
            index.publish(sound, self.stop)?;
        }
        Ok(useless)
    }
}
