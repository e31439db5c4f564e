//! Stores needed blocks again, so that their packs are no longer needed.

use std::collections::BTreeMap;

use super::mark::Marks;
use super::plan::Fate;
use super::{CollectReport, Collector, Seen};
use crate::repo::pack::data::cache::Place;
use crate::repo::pack::data::id::{BlockId, PackId};
use crate::repo::pack::data::packer::Shelf;
use crate::repo::pack::data::stored::{Found, read_entries};
use crate::repo::pack::data::table::PackEntry;
use crate::repo::pack::data::{PackErrorClass, Result};

/// A block that is stored again.
struct Moved {
    id: BlockId,
    place: Place,
    shelf: Shelf,
}

impl Collector<'_> {
    /// Stores the needed blocks of some packs again, and flushes them. A pack with a block that
    /// cannot be read stays as it is.
    ///
    /// # Errors
    /// The store fails. Then no restore point or other run is affected.
    pub(super) fn rewrite(
        &self,
        marks: &Marks,
        seen: &Seen,
        fates: &mut BTreeMap<PackId, Fate>,
        report: &mut CollectReport,
    ) -> Result<()> {
        let mut numbers: BTreeMap<PackId, Vec<u32>> = BTreeMap::new();
        for (number, pack) in self.data.shared.index.cache().numbered_packs()? {
            numbers.entry(pack.id).or_default().push(number);
        }
        for (id, fate) in fates.iter_mut() {
            if !matches!(fate, Fate::Rewrite | Fate::Rescue) {
                continue;
            }
            let numbers = numbers.get(id).map_or(&[][..], Vec::as_slice);
            if !self.rewrite_pack(*id, numbers, marks, seen)? {
                report.unreadable.push(id.text());
                *fate = match fate {
                    Fate::Rewrite => Fate::Keep,
                    _ => Fate::Wait,
                };
            }
        }
        self.data.flush(self.stop)
    }

    /// Returns false if a block cannot be read.
    fn rewrite_pack(&self, id: PackId, numbers: &[u32], marks: &Marks, seen: &Seen) -> Result<bool> {
        let size = seen.stored.0.get(&id).map_or(0, |object| object.size);
        let entries = match read_entries(self.data, id, size, self.stop)? {
            Found::Sound(entries) => entries,
            Found::Unsound(_) | Found::Gone => return Ok(false),
        };
        let pack = PackEntry { id, size, entries };
        let moved: Vec<Moved> = pack
            .located()
            .filter_map(|(offset, entry)| {
                let number = numbers.iter().find(|number| marks.is_needed(**number, offset))?;
                let is_page = marks.is_page(*number, offset);
                Some(Moved {
                    id: entry.id,
                    place: Place {
                        pack: id,
                        offset,
                        stored: entry.stored,
                        plain: entry.plain,
                    },
                    shelf: if is_page { Shelf::Pages } else { Shelf::Data },
                })
            })
            .collect();
        for moved in moved {
            let sealed = match self
                .data
                .shared
                .blocks
                .read_sealed(&moved.id, &moved.place, self.stop)
            {
                Ok(sealed) => sealed,
                Err(error) if error.class() == PackErrorClass::Damaged => return Ok(false),
                Err(error) => return Err(error),
            };
            let plain = moved.place.plain as usize;
            let packer = &self.data.shared.packer;
            packer.add(moved.shelf, moved.id, &sealed, plain, self.stop)?;
        }
        Ok(true)
    }
}
