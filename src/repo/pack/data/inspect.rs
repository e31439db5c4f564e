//! Checks the repository as a whole: the packs in the store against the index, and both against
//! what the restore points need. It changes nothing, and needs no right to put or delete.
//!
//! Writers and collectors may be at work at the same time. So damage is believed only if it was
//! found twice, after the restore points, the index and the packs were listed again in this order:
//! a collector removes a pack from the index before it deletes the pack, and stores needed blocks
//! elsewhere before.
//!
//! * `names`: lists all objects.
//! * `deep`: reads all packs.
//! * `needs`: finds what the restore points need and cannot be read.
//! * `report`: what was found.

mod deep;
mod names;
mod needs;
mod report;

use std::collections::BTreeSet;

use super::collect::Amount;
use super::id::{BlockId, PackId};
use super::{Data, PackError, PackErrorClass, Result, condemned, session};
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::repo::pack::objects::ListedObject;

pub use report::{CondemnedNote, Cost, Damage, RepositoryCheck, SessionNote};

use deep::Unsound;
use names::Names;
use needs::{Costs, Needs};
use report::{Fault, Faults};

/// How often everything is looked at, at most.
const MOST_LOOKS: u32 = 4;

/// The data that a restore point needs, with the names of its disks and files.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) domain: String,
    pub(crate) id: String,
    /// The target of each disk, with its root and its size.
    pub(crate) disks: Vec<(String, BlockId, u64)>,
    /// The name of each small file, with its blocks.
    pub(crate) files: Vec<(String, Vec<BlockId>)>,
}

/// Lists the restore points that can be read.
pub(crate) type Subjects<'a> = &'a mut dyn FnMut(&Stop) -> Result<Vec<Subject>>;

impl Data {
    /// Checks the repository as a whole. With `deep`, every pack is read from end to end.
    ///
    /// The whole index is read into a temporary file, because the local cache is not trusted.
    /// Memory: about 200 bytes for each pack, about 40 bytes for each page of a map, and some for
    /// damage.
    ///
    /// # Errors
    /// The store fails, or its list is not complete. Damage is not an error.
    pub(crate) fn inspect(&self, subjects: Subjects<'_>, deep: bool, stop: &Stop) -> Result<RepositoryCheck> {
        let data = self.with_private_cache(stop)?;
        Inspector { data: &data, stop }.run(subjects, deep)
    }
}

/// One check.
struct Inspector<'a> {
    data: &'a Data,
    stop: &'a Stop,
}

/// What was seen at one time.
struct Look {
    names: Names,
    /// The packs that index objects list.
    listed: BTreeSet<PackId>,
    points: u64,
    faults: Faults,
    costs: Costs,
    /// Packs that no index object lists and restore points need.
    needed_unlisted: BTreeSet<PackId>,
    condemned: CondemnedNote,
}

impl Look {
    fn is_clean(&self) -> bool {
        self.faults.is_empty() && self.costs.is_empty()
    }

    fn is_as(&self, other: &Look) -> bool {
        self.faults == other.faults && self.costs == other.costs
    }
}

impl Inspector<'_> {
    fn run(&self, subjects: Subjects<'_>, deep: bool) -> Result<RepositoryCheck> {
        let unsound = match deep {
            true => deep::read_all(self.data, self.stop)?,
            false => Unsound::new(),
        };
        let mut look = self.look(subjects, &unsound, None)?;
        for _ in 1..MOST_LOOKS {
            if look.is_clean() {
                break;
            }
            let mut again = self.look(subjects, &unsound, Some(&look.costs))?;
            // Restore points without damage were not looked at again.
            let names = &again.names.packs;
            let needed = look.needed_unlisted.iter().copied();
            let needed = needed.filter(|id| names.knows(*id) && !again.listed.contains(id));
            again.needed_unlisted.extend(needed);
            let is_confirmed = again.is_as(&look);
            look = again;
            if is_confirmed {
                break;
            }
        }
        self.report(look, deep, &unsound)
    }

    /// Looks at everything. After a look that found damage, only the restore points that are
    /// concerned are looked at again.
    fn look(&self, subjects: Subjects<'_>, unsound: &Unsound, only: Option<&Costs>) -> Result<Look> {
        let shared = &self.data.shared;
        let mut subjects = subjects(self.stop)?;
        let points = subjects.len() as u64;
        self.data.refresh(self.stop)?;
        let sizes = shared.index.cache().numbered_packs()?;
        let names = Names::read(shared.objects.as_ref(), self.stop)?;
        let mut faults = Faults::default();
        for pack in sizes.values() {
            let found = names.packs.size(pack.id);
            if !names.packs.knows(pack.id) {
                faults.add(pack.id.text(), Fault::missing());
            } else if found != pack.size {
                let why = format!("it has {found} bytes, and the index lists {}", pack.size);
                faults.add(pack.id.text(), Fault::damaged(why));
            }
        }
        let listed: BTreeSet<PackId> = sizes.values().map(|pack| pack.id).collect();
        for (id, why) in unsound {
            if names.packs.knows(*id) && listed.contains(id) {
                faults.add(id.text(), Fault::damaged(why.clone()));
            }
        }
        self.check_index(&names.index, &mut faults)?;
        let condemned = self.check_condemned(&names, &mut faults)?;
        if let Some(only) = only {
            subjects.retain(|subject| only.concern(&subject.domain, &subject.id));
        }
        let mut needs = Needs::new(self.data, &names.packs, unsound, &listed, faults, self.stop);
        for subject in &subjects {
            needs.check(subject)?;
        }
        let Needs {
            faults,
            costs,
            needed_unlisted,
            ..
        } = needs;
        Ok(Look {
            names,
            listed,
            points,
            faults,
            costs,
            needed_unlisted,
            condemned,
        })
    }

    /// Reads the index objects again that could not be used.
    fn check_index(&self, index: &[ListedObject], faults: &mut Faults) -> Result<()> {
        let damaged: BTreeSet<String> = self.data.damaged_index().into_iter().collect();
        for object in index {
            if !damaged.contains(object.name.as_str()) {
                continue;
            }
            match self.data.shared.index.read(object, self.stop) {
                Ok(_) => {}
                Err(PackError::Damaged { object, why, .. }) => {
                    faults.add(object, Fault::index(why));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn check_condemned(&self, names: &Names, faults: &mut Faults) -> Result<CondemnedNote> {
        let shared = &self.data.shared;
        let mut note = CondemnedNote::default();
        let mut packs = BTreeSet::new();
        for object in &names.condemned {
            let read = condemned::read_content(&shared.objects, &shared.sealer, &object.name, self.stop);
            match read {
                Ok(None) => {}
                Ok(Some((_, condemned))) => {
                    note.records += 1;
                    note.oldest = note.oldest.into_iter().chain(object.modified).min();
                    packs.extend(condemned);
                }
                Err(PackError::Damaged { object, why, .. }) => {
                    faults.add(object, Fault::condemned(why));
                }
                Err(error) => return Err(error),
            }
        }
        for pack in packs.into_iter().filter(|pack| names.packs.knows(*pack)) {
            note.packs.add(names.packs.size(pack));
        }
        Ok(note)
    }

    fn report(&self, look: Look, deep: bool, unsound: &Unsound) -> Result<RepositoryCheck> {
        let mut packs = Amount::default();
        let mut unlisted = Amount::default();
        let mut unsound_unlisted = 0;
        for (id, size) in look.names.packs.iter() {
            packs.add(size);
            if !look.listed.contains(&id) {
                unlisted.add(size);
                unsound_unlisted += u64::from(unsound.contains_key(&id));
            }
        }
        let mut notes = Vec::new();
        if unlisted.packs > 0 {
            notes.push(self.unlisted_note(&look, unlisted.packs, unsound_unlisted));
        }
        notes.extend(look.names.foreign_note());
        Ok(RepositoryCheck {
            deep,
            domains: 0,
            points: look.points,
            index_objects: look.names.index.len() as u64,
            packs,
            unlisted,
            condemned: look.condemned,
            sessions: self.sessions(look.names.sessions)?,
            damage: look.costs.damage(look.faults),
            notes,
        })
    }

    fn unlisted_note(&self, look: &Look, count: u64, unsound: u64) -> Finding {
        let mut what = format!(
            "packs in no index object: {count}. They belong to a run that is at work or was killed, or their index object is lost or damaged"
        );
        if unsound > 0 {
            what += &format!(". {unsound} of them cannot be read");
        }
        let needed = look.needed_unlisted.len();
        if needed > 0 {
            what += &format!(
                ". Restore points need {needed} of them: `vmsnap repository rebuild-index` adds the sound ones to the index"
            );
        }
        Finding::new("packs-not-listed", what)
    }

    fn sessions(&self, listed: Vec<ListedObject>) -> Result<Vec<SessionNote>> {
        let shared = &self.data.shared;
        let all = session::group(listed).ok_or_else(|| session::no_times(&shared.objects))?;
        let note = |seen: &session::SeenSession| SessionNote {
            host: session::describe(&shared.objects, &shared.sealer, seen, self.stop),
            kind: match () {
                () if seen.is_rebuilder() => "rebuild-index",
                () if seen.is_collector() => "collect",
                () => "write",
            },
            began: seen.has_beginning().then_some(seen.began),
            renewed: seen.renewed,
        };
        Ok(all.values().map(note).collect())
    }
}

/// Whether an error says that stored data is damaged.
fn is_damage(error: &PackError) -> bool {
    error.class() == PackErrorClass::Damaged
}
