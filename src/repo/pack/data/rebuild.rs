//! Lists packs in the index again that no readable index object lists, from their own tables, and
//! deletes damaged index objects on request.
//!
//! It runs in a session that is that of a collector to collectors: they do nothing meanwhile, so
//! no pack is deleted between the check of its digest and the put of its index object. Runs that
//! write are not concerned: a pack may be in several index objects.
//!
//! A damaged index object can only have listed packs that existed when the index was read. So it
//! is deleted only if each pack that existed afterwards is in a readable index object.

use std::collections::{BTreeMap, BTreeSet};

use super::collect::Amount;
use super::id::{INDEX, PACKS, PackId};
use super::listing::{each, list};
use super::retry::{limit, retry};
use super::sealer::{LARGEST_RECORD, OVERHEAD};
use super::session::{Kind, SeenSessions, Session, describe};
use super::stored::{Found, read_whole};
use super::table::{PackEntry, parse_index};
use super::{Data, PackError, Result};
use crate::model::stop::Stop;
use crate::repo::pack::names::is_hex;
use crate::repo::pack::objects::ListedObject;

/// The most packs and blocks in one new index object.
const MOST_PACKS: usize = 256;
const MOST_BLOCKS: usize = 200_000;

/// How to rebuild the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RebuildOptions<'a> {
    /// The name of this host, which other hosts show while they wait for its session.
    pub(crate) host: &'a str,
    /// Whether to only find out what would be done. Nothing is written, not even a session object.
    pub(crate) dry_run: bool,
    /// Whether to delete damaged index objects.
    pub(crate) delete_damaged: bool,
}

/// Why an index object cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexFault {
    /// Its seal is invalid. The object may be deleted after its packs are listed in others.
    Seal,
    /// Its seal is valid, but its format is unknown: a newer version of vmsnap may have written it.
    Format,
    /// Its name is not one that vmsnap uses for index objects.
    Name,
}

/// An index object that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedIndex {
    /// Its name.
    pub name: String,
    /// The kind of fault.
    pub fault: IndexFault,
    /// A description of the fault.
    pub why: String,
    /// Whether it was deleted; in a dry run, whether it would be.
    pub is_deleted: bool,
}

/// The result of rebuilding the index; of a dry run, the expected result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// All packs.
    pub all: Amount,
    /// The packs that were added to the index.
    pub listed: Amount,
    /// The damaged packs that no index object lists, each with the reason.
    pub unsound: Vec<(String, String)>,
    /// Index objects that cannot be used.
    pub damaged: Vec<DamagedIndex>,
    /// Whether damaged index objects were not deleted as requested, because no readable one lists
    /// some of the packs.
    pub is_held_back: bool,
}

impl Data {
    /// Adds missing packs to the index.
    ///
    /// The whole index is read into a temporary file, because the local cache is not trusted.
    ///
    /// # Errors
    /// [`PackError::Collecting`] if a collector is at work; others if the store fails. A later call
    /// continues.
    pub(crate) fn rebuild_index(&self, options: &RebuildOptions<'_>, stop: &Stop) -> Result<RebuildReport> {
        let data = self.with_private_cache(stop)?;
        let shared = &data.shared;
        let rebuilder = |session| Rebuilder {
            data: &data,
            session,
            options,
            stop,
        };
        if options.dry_run {
            return rebuilder(None).run();
        }
        let kind = Kind::Rebuilder;
        let session = Session::begin(&shared.objects, &shared.sealer, options.host, kind, stop)?;
        let rebuilt = rebuilder(Some(&session)).run();
        match rebuilt {
            Ok(report) => {
                session.end(stop)?;
                Ok(report)
            }
            Err(error) => {
                // What was put needs no protection.
                session.give_up();
                Err(error)
            }
        }
    }
}

/// One call.
struct Rebuilder<'a> {
    data: &'a Data,
    /// `None` in a dry run.
    session: Option<&'a Session>,
    options: &'a RebuildOptions<'a>,
    stop: &'a Stop,
}

/// What an index object is.
enum State {
    Usable,
    Gone,
    /// Its seal is wrong, for this reason.
    Damaged(&'static str),
    /// Its seal is right, but it cannot be used: a newer vmsnap may have written it.
    Unknown(&'static str),
}

impl Rebuilder<'_> {
    /// The order is part of the argument above.
    fn run(&self) -> Result<RebuildReport> {
        self.check_alone()?;
        self.data.refresh(self.stop)?;
        let index = &self.data.shared.index;
        let listed = index.packs()?;
        let mut stored: BTreeMap<PackId, u64> = BTreeMap::new();
        let objects = self.data.shared.objects.as_ref();
        each(objects, PACKS, self.stop, &mut |object| {
            stored.extend(PackId::of_name(&object.name).map(|id| (id, object.size)));
        })?;
        let mut report = RebuildReport::default();
        for size in stored.values() {
            report.all.add(*size);
        }
        self.list_again(&listed, &stored, &mut report)?;
        self.handle_damaged(&stored, &mut report)?;
        Ok(report)
    }

    /// Makes sure that no collector is at work.
    fn check_alone(&self) -> Result<()> {
        let Some(session) = self.session else {
            return Ok(());
        };
        let shared = &self.data.shared;
        let seen = SeenSessions::read(&shared.objects, session, self.stop)?;
        let mut others = seen.live.iter();
        match others.find(|other| other.is_collector() && !other.is_rebuilder()) {
            None => Ok(()),
            Some(other) => Err(PackError::Collecting {
                location: shared.objects.location(),
                host: describe(&shared.objects, &shared.sealer, other, self.stop),
            }),
        }
    }

    /// Puts index objects with the sound packs that are in none.
    fn list_again(
        &self,
        listed: &BTreeMap<PackId, u64>,
        stored: &BTreeMap<PackId, u64>,
        report: &mut RebuildReport,
    ) -> Result<()> {
        let mut sound: Vec<PackEntry> = Vec::new();
        let mut blocks = 0;
        for (id, size) in stored.iter().filter(|(id, _)| !listed.contains_key(*id)) {
            let pack = match read_whole(self.data, *id, *size, self.stop)? {
                Found::Sound(pack) => pack,
                Found::Unsound(why) => {
                    report.unsound.push((id.text(), why.to_owned()));
                    continue;
                }
                Found::Gone => continue,
            };
            if sound.len() >= MOST_PACKS || blocks + pack.entries.len() > MOST_BLOCKS {
                self.publish(std::mem::take(&mut sound))?;
                blocks = 0;
            }
            report.listed.add(pack.size);
            blocks += pack.entries.len();
            sound.push(pack);
        }
        self.publish(sound)
    }

    fn publish(&self, packs: Vec<PackEntry>) -> Result<()> {
        match self.session {
            Some(session) if !packs.is_empty() => {
                // After a long sleep, a collector may have deleted them.
                session.renew(self.stop)?;
                self.data.shared.index.publish(packs, self.stop)
            }
            _ => Ok(()),
        }
    }

    fn handle_damaged(&self, stored: &BTreeMap<PackId, u64>, report: &mut RebuildReport) -> Result<()> {
        let mut deletable: Vec<ListedObject> = Vec::new();
        let names: BTreeSet<String> = self.data.damaged_index().into_iter().collect();
        if names.is_empty() {
            return Ok(());
        }
        for object in list(self.data.shared.objects.as_ref(), INDEX, self.stop)? {
            if !names.contains(object.name.as_str()) {
                continue;
            }
            let (fault, why) = match self.state(&object)? {
                State::Usable | State::Gone => continue,
                State::Damaged(why) if is_ours(&object) => (IndexFault::Seal, why),
                State::Damaged(_) => (IndexFault::Name, "it is not an object of vmsnap"),
                State::Unknown(why) => (IndexFault::Format, why),
            };
            report.damaged.push(DamagedIndex {
                name: object.name.to_string(),
                fault,
                why: why.to_owned(),
                is_deleted: false,
            });
            if fault == IndexFault::Seal {
                deletable.push(object);
            }
        }
        if !self.options.delete_damaged || deletable.is_empty() {
            return Ok(());
        }
        if !self.is_all_listed(stored, report)? {
            report.is_held_back = true;
            return Ok(());
        }
        for object in deletable {
            self.delete(&object)?;
            let mut damaged = report.damaged.iter_mut();
            if let Some(damaged) = damaged.find(|damaged| damaged.name == object.name.as_str()) {
                damaged.is_deleted = true;
            }
        }
        Ok(())
    }

    /// Whether readable index objects list every pack that existed after the index was read, and
    /// still exists. The index is read again for this.
    fn is_all_listed(&self, stored: &BTreeMap<PackId, u64>, report: &RebuildReport) -> Result<bool> {
        if self.options.dry_run {
            return Ok(report.unsound.is_empty());
        }
        let fresh = self.data.with_private_cache(self.stop)?;
        fresh.refresh(self.stop)?;
        let listed = fresh.shared.index.packs()?;
        let objects = &self.data.shared.objects;
        for id in stored.keys().filter(|id| !listed.contains_key(*id)) {
            let name = id.name().map_err(PackError::Seal)?;
            let there = retry(self.stop, || objects.head(&name, &limit(0, self.stop)))?;
            if there.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn delete(&self, object: &ListedObject) -> Result<()> {
        let Some(session) = self.session else {
            return Ok(());
        };
        session.renew(self.stop)?;
        let objects = &self.data.shared.objects;
        Ok(retry(self.stop, || {
            objects.delete(&object.name, &limit(0, self.stop))
        })?)
    }

    fn state(&self, object: &ListedObject) -> Result<State> {
        let shared = &self.data.shared;
        let most = (LARGEST_RECORD + OVERHEAD) as u64;
        let read = retry(self.stop, || {
            shared
                .objects
                .get(&object.name, most, &limit(object.size, self.stop))
        });
        let sealed = match read {
            Ok(sealed) => sealed,
            Err(error) if error.is_not_found() => return Ok(State::Gone),
            Err(error) if error.is_too_large() => return Ok(State::Damaged("it is too large")),
            Err(error) => return Err(error.into()),
        };
        let record = match shared.sealer.open_record(&object.name, sealed, LARGEST_RECORD) {
            Ok(record) => record,
            Err(why) => return Ok(State::Damaged(why)),
        };
        Ok(match parse_index(&record, shared.largest_block()) {
            Ok(_) => State::Usable,
            Err(why) => State::Unknown(why),
        })
    }
}

/// Whether an object has the name of an index object.
fn is_ours(object: &ListedObject) -> bool {
    let digits = object.name.as_str().strip_prefix(INDEX);
    digits.is_some_and(|digits| is_hex(digits, 32))
}
