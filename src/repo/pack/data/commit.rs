//! What a writer does for collectors: it begins before it reads anything, and checks before it
//! commits.

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;

use super::blocks::Blocks;
use super::cache::Place;
use super::condemned::{self, Condemned};
use super::id::BlockId;
use super::listing::PackList;
use super::packer::{Packer, Shelf};
use super::session::{Kind, MARGIN, Session};
use super::walk::{Visitor, walk};
use super::{Data, PackErrorClass, Result};
use crate::model::stop::Stop;
use crate::repo::pack::objects::ObjectName;

/// The data that a restore point needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needed {
    /// The roots and sizes of its disks.
    pub(crate) disks: Vec<(BlockId, u64)>,
    /// The blocks of its small files.
    pub(crate) blocks: Vec<BlockId>,
}

/// The session of a writer, with the condemned packs that were known when it began.
pub(crate) struct Writing {
    session: Session,
    known: BTreeSet<ObjectName>,
    condemned: Vec<Condemned>,
}

impl Writing {
    /// The session.
    #[cfg(test)]
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Ends the session: [`Session::end`].
    ///
    /// # Errors
    /// The errors of [`Session::end`].
    pub(crate) fn end(self, stop: &Stop) -> Result<()> {
        self.session.end(stop)
    }

    /// Ends the session of a run that has given up: [`Session::give_up`].
    pub(crate) fn give_up(self) {
        self.session.give_up();
    }
}

impl Data {
    /// Begins to write. The order matters: a collector that does not see the session condemned its
    /// packs before, so this call reads them. The caller must list restore points afterwards, if
    /// one may become a parent.
    ///
    /// # Errors
    /// The errors of [`Data::refresh`]; [`PackError::NoTimes`] if the store does not report when
    /// objects were written.
    pub(crate) fn begin_writing(&self, host: &str, stop: &Stop) -> Result<Writing> {
        let shared = &self.shared;
        let session = Session::begin(&shared.objects, &shared.sealer, host, Kind::Writer, stop)?;
        match self.learn_condemned(&BTreeSet::new(), stop) {
            Ok(condemned) => Ok(Writing {
                session,
                known: condemned.iter().map(|record| record.name.clone()).collect(),
                condemned,
            }),
            Err(error) => {
                session.give_up();
                Err(error)
            }
        }
    }

    /// Reads the records of condemned packs, except known ones, and then the index.
    pub(super) fn learn_condemned(
        &self,
        known: &BTreeSet<ObjectName>,
        stop: &Stop,
    ) -> Result<Vec<Condemned>> {
        let shared = &self.shared;
        let condemned = condemned::read(&shared.objects, &shared.sealer, known, stop)?;
        for record in &condemned {
            shared.index.condemn(record.packs.iter().copied());
        }
        self.refresh(stop)?;
        Ok(condemned)
    }

    /// Checks that a restore point that needs this data may be committed. Call [`Data::flush`]
    /// before it, and commit at once afterwards. `parent` is the time of the parent's object, by
    /// the clock of the store; of several parents, the newest time.
    ///
    /// # Errors
    /// [`PackError::SessionLost`] if the session has ended; [`PackError::Damaged`] if a block is
    /// missing. Others if the store fails.
    pub(crate) fn check_before_commit(
        &self,
        writing: &Writing,
        needed: &Needed,
        parent: Option<Timestamp>,
        stop: &Stop,
    ) -> Result<()> {
        writing.session.renew(stop)?;
        let new = self.learn_condemned(&writing.known, stop)?;
        // What was condemned before is not reused. But a parent that was committed while it was
        // condemned may need it.
        let concerns_parent =
            |record: &Condemned| parent.is_some_and(|parent| record.marked.duration_since(parent) <= MARGIN);
        if new.is_empty() && !writing.condemned.iter().any(concerns_parent) {
            return Ok(());
        }
        let saved = self.save_condemned(needed, stop);
        if saved
            .as_ref()
            .is_err_and(|error| error.class() == PackErrorClass::Damaged)
        {
            // Has it gone because this process was taken for dead?
            writing.session.renew(stop)?;
        }
        saved?;
        // Reading a large map may have taken long.
        writing.session.renew(stop)?;
        Ok(())
    }

    /// Stores everything again that is needed and in condemned packs only.
    fn save_condemned(&self, needed: &Needed, stop: &Stop) -> Result<()> {
        let shared = &self.shared;
        let mut rescue = Rescue {
            data: self,
            blocks: &shared.blocks,
            packer: &shared.packer,
            packs: self.packs(stop)?,
            pages: HashSet::new(),
            stop,
        };
        for (root, size) in &needed.disks {
            walk(&self.tree_context(), root, *size, &mut rescue, stop)?;
        }
        for block in &needed.blocks {
            rescue.save(block, Shelf::Data)?;
        }
        self.flush(stop)
    }
}

/// Stores those blocks again that are only in condemned packs.
pub(super) struct Rescue<'a> {
    pub(super) data: &'a Data,
    pub(super) blocks: &'a Blocks,
    pub(super) packer: &'a Packer,
    pub(super) packs: PackList,
    /// The pages that were visited.
    pub(super) pages: HashSet<BlockId>,
    pub(super) stop: &'a Stop,
}

impl Rescue<'_> {
    fn save(&mut self, id: &BlockId, shelf: Shelf) -> Result<()> {
        let index = &self.blocks.index;
        if index.is_noted(id) {
            return Ok(());
        }
        let places = self.places(id)?;
        if places.iter().any(|(_, place)| !index.is_condemned(&place.pack)) {
            return Ok(());
        }
        let (sealed, place) = self.read_one_of(id, &places)?;
        self.packer
            .add(shelf, *id, &sealed, place.plain as usize, self.stop)?;
        Ok(())
    }

    /// The places of a block in packs that exist. A list of the index that was made while a
    /// collector replaced index objects may lack some of its objects; then the index is read anew.
    fn places(&mut self, id: &BlockId) -> Result<Vec<(u32, Place)>> {
        let known = self.known_places(id)?;
        if !known.is_empty() {
            return Ok(known);
        }
        self.blocks.index.read_anew(self.stop)?;
        // A pack that was found just now may be newer than the list.
        self.packs = self.data.packs(self.stop)?;
        self.known_places(id)
    }

    fn known_places(&self, id: &BlockId) -> Result<Vec<(u32, Place)>> {
        let mut places = self.blocks.index.cache().places(id)?;
        places.retain(|(_, place)| self.packs.fault(place).is_none());
        Ok(places)
    }

    /// The sealed form of a block, from the first place where it is sound.
    fn read_one_of(&self, id: &BlockId, places: &[(u32, Place)]) -> Result<(Vec<u8>, Place)> {
        let mut damage = self.blocks.nowhere(id);
        for (_, place) in places {
            match self.blocks.read_sealed(id, place, self.stop) {
                Ok(sealed) => return Ok((sealed, *place)),
                Err(error) if error.class() == PackErrorClass::Damaged => damage = error,
                Err(error) => return Err(error),
            }
        }
        Err(damage)
    }
}

impl Visitor for Rescue<'_> {
    fn page(&mut self, id: &BlockId) -> Result<bool> {
        Ok(self.pages.insert(*id))
    }

    fn page_was_read(&mut self, id: &BlockId) -> Result<()> {
        self.save(id, Shelf::Pages)
    }

    fn block(&mut self, id: &BlockId) -> Result<()> {
        self.save(id, Shelf::Data)
    }
}
