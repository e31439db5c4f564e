//! Collection: deletes packs that no restore point needs. Two calls are needed, a day apart.
//!
//! A call first *marks* what the restore points need. Packs without such blocks are *condemned*: a
//! record names them. Packs with few of them are condemned after the blocks were stored again.
//! Packs that an earlier call has condemned are deleted when the grace period is over and every
//! session that began before has ended.
//!
//! Why this loses nothing:
//!
//! * A collector looks in this order: its own session, the sessions, the restore points, the
//!   condemned packs, the index, the list of packs. So whatever a restore point needs that it sees
//!   was there before it saw the packs. A writer: its own session, the condemned packs,
//!   the index, the restore points; before the commit its session and the condemned packs again.
//! * A pack stays condemned until it is deleted. A writer that began afterwards knows it, and does
//!   not reuse its blocks. A writer that began before has ended when the pack is deleted, and its
//!   restore point is among those that are marked, because the sessions were listed before.
//! * A pack is deleted only if every needed block in it is also in a pack that is not condemned.
//! * A collector that sees the session of another one changes nothing. Each puts its own session
//!   before it looks, so of two at the same time at most one works. All names are random, so
//!   nothing depends on conditional puts.
//! * A commit between the mark and the deletion is safe: its writer either began after the packs
//!   were condemned, or has a live session, for which the deletion waits. One case is left: the
//!   parent of its restore point was committed after the packs had been condemned, needs them, and
//!   is removed before the deletion. So a writer with such a parent checks the whole map, too.
//! * A writer that sleeps for days is taken for dead after three. Before its commit it renews its
//!   session, and refuses if two days have passed since the last time. If it sleeps between this
//!   check and its commit, it notices afterwards that its session was not renewed or has vanished,
//!   and says so. Therefore the objects of ended sessions are deleted before any pack.
//! * Packs that are younger than the grace period or than the oldest live session are not
//!   condemned: they may belong to a restore point that is not committed yet.
//! * The deletion puts index objects without the packs, then deletes the old index objects, the
//!   packs, and the record. If it is killed, the packs are still condemned, and the next call does
//!   the rest. What is not in the index is never missed.
//! * A call that cannot read everything changes nothing.
//!
//! * `mark`: finds out which blocks are needed.
//! * `plan`: decides what happens to each pack.
//! * `adopt`: lists packs in the index that a killed writer has left.
//! * `rewrite`: stores needed blocks again.
//! * `delete`: deletes condemned packs.
//! * `report`: what a call did.

mod adopt;
mod delete;
mod mark;
mod plan;
mod report;
mod rewrite;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::commit::Needed;
use super::condemned::{self, Condemned};
use super::id::{PACKS, PackId, object_name, random_digits};
use super::listing::{each, list};
use super::retry::{limit, retry};
use super::session::{Kind, MARGIN, SeenSessions, Session, describe};
use super::{Data, PackError, PackErrorClass, Result};
use crate::model::stop::Stop;
use crate::repo::pack::objects::ListedObject;

pub use report::{Amount, CollectReport, Waiting};

use mark::Marks;
use plan::{Facts, Fate};

/// How often a call looks at most.
const MOST_LOOKS: u32 = 3;

/// Where the probe of the store keeps its objects.
const PROBES: &str = "probe/";

/// How to collect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CollectOptions<'a> {
    /// The name of this host, which other hosts show while they wait for its session.
    pub(crate) host: &'a str,
    /// The grace period: how long packs stay after they were condemned, and how old they must be
    /// before they are condemned.
    pub(crate) grace: SignedDuration,
    /// A pack is rewritten if less than this percentage of its bytes is needed, from 0 to 100.
    pub(crate) rewrite_percent: u8,
    /// Whether to only find out what would be done. A session object is written nevertheless.
    pub(crate) dry_run: bool,
}

impl CollectOptions<'_> {
    /// The defaults: a grace period of a day, and 50 percent.
    pub(crate) fn new(host: &str) -> CollectOptions<'_> {
        CollectOptions {
            host,
            grace: SignedDuration::from_hours(24),
            rewrite_percent: 50,
            dry_run: false,
        }
    }
}

/// Lists the data that every restore point needs. This function must fail rather than return an
/// incomplete list.
pub(crate) type Live<'a> = &'a mut dyn FnMut(&Stop) -> Result<Vec<Needed>>;

impl Data {
    /// Collects unused data: condemns packs, and deletes those that earlier calls have condemned.
    ///
    /// The whole index is read into a temporary file, because the local cache is not trusted.
    /// Memory: 5 bytes for each block in the repository, and about 200 bytes for each pack.
    ///
    /// # Errors
    /// Something cannot be read, or a needed block is missing, and nothing was condemned or
    /// deleted; or the store fails later, and the next call does the rest.
    pub(crate) fn collect(
        &self,
        live: Live<'_>,
        options: &CollectOptions<'_>,
        stop: &Stop,
    ) -> Result<CollectReport> {
        self.check_right_to_delete(stop)?;
        let data = self.with_private_cache(stop)?;
        let shared = &data.shared;
        let session = Session::begin(
            &shared.objects,
            &shared.sealer,
            options.host,
            Kind::Collector,
            stop,
        )?;
        let collected = Collector {
            data: &data,
            session: &session,
            options,
            stop,
        }
        .run(live);
        match collected {
            Ok(report) => {
                session.end(stop)?;
                Ok(report)
            }
            Err(error) => {
                // Nothing that this call has put needs its protection.
                session.give_up();
                Err(error)
            }
        }
    }
}

impl Data {
    /// Checks that this user may delete. Otherwise the session of this call would stay, and no
    /// other collector would work for three days.
    fn check_right_to_delete(&self, stop: &Stop) -> Result<()> {
        let objects = &self.shared.objects;
        let digits = random_digits().map_err(PackError::Seal)?;
        let name = object_name(&format!("{PROBES}{digits}")).map_err(PackError::Seal)?;
        retry(stop, || {
            objects.put_if_absent(&name, b"may this be deleted?\n", &limit(0, stop))
        })?;
        retry(stop, || objects.delete(&name, &limit(0, stop)))?;
        Ok(())
    }
}

/// One call.
struct Collector<'a> {
    data: &'a Data,
    session: &'a Session,
    options: &'a CollectOptions<'a>,
    stop: &'a Stop,
}

/// The packs in the store.
struct Stored(BTreeMap<PackId, ListedObject>);

/// What a call sees before it marks.
struct Seen {
    sessions: SeenSessions,
    records: Vec<Condemned>,
    condemned: HashSet<PackId>,
    stored: Stored,
}

impl Collector<'_> {
    /// Collects. Index objects may be replaced while this call looks, so it looks again if
    /// something seems to be missing.
    fn run(&self, live: Live<'_>) -> Result<CollectReport> {
        for _ in 1..MOST_LOOKS {
            match self.run_once(live) {
                Err(error) if error.class() == PackErrorClass::Damaged => {}
                result => return result,
            }
        }
        self.run_once(live)
    }

    fn run_once(&self, live: Live<'_>) -> Result<CollectReport> {
        let mut report = CollectReport::default();
        let shared = &self.data.shared;
        let sessions = SeenSessions::read(&shared.objects, self.session, self.stop)?;
        // Two collectors that begin at the same time see each other.
        if let Some(other) = sessions.live.iter().find(|session| session.is_collector()) {
            let host = describe(&shared.objects, &shared.sealer, other, self.stop);
            report.waiting.push(Waiting::Collector(host));
            return Ok(report);
        }
        let points = live(self.stop)?;
        let seen = self.look(sessions)?;
        let useless = self.adopt(&seen, &mut report)?;
        let marks = Marks::read(self.data, &seen.stored, &seen.condemned, &points, self.stop)?;
        let mut packs = marks.packs(self.data, &seen)?;
        packs.extend(useless);
        let facts = self.facts(&seen);
        let mut fates: BTreeMap<PackId, Fate> =
            packs.values().map(|pack| (pack.id, pack.fate(&facts))).collect();
        report.count(&packs, &fates);
        self.say_what_waits(&seen, &mut report);
        if self.options.dry_run {
            return Ok(report);
        }
        self.rewrite(&marks, &seen, &mut fates, &mut report)?;
        self.condemn(&seen, &fates)?;
        self.end_sessions(&seen)?;
        self.delete(&seen, &fates)?;
        self.delete_probes(&seen)?;
        Ok(report)
    }

    /// Looks at the rest of what the store holds. The order is part of the argument above.
    fn look(&self, sessions: SeenSessions) -> Result<Seen> {
        let shared = &self.data.shared;
        let records = self.data.learn_condemned(&BTreeSet::new(), self.stop)?;
        // Without an index object, packs that it lists seem to be unknown.
        if let Some(name) = self.data.damaged_index().first() {
            return Err(shared
                .index
                .damage(name, "it is damaged, or a newer vmsnap wrote it"));
        }
        let condemned = records.iter().flat_map(|record| record.packs.clone()).collect();
        let mut stored = BTreeMap::new();
        each(shared.objects.as_ref(), PACKS, self.stop, &mut |object| {
            stored.extend(PackId::of_name(&object.name).map(|id| (id, object)));
        })?;
        Ok(Seen {
            sessions,
            records,
            condemned,
            stored: Stored(stored),
        })
    }

    fn facts(&self, seen: &Seen) -> Facts {
        let old = seen.sessions.now.saturating_sub(self.options.grace);
        let oldest = seen.sessions.live.iter().map(|session| session.began).min();
        let is_due = |record: &&Condemned| {
            record.time < self.before_grace(seen) && seen.sessions.all_began_after(record.time)
        };
        Facts {
            old: old.unwrap_or(Timestamp::MIN),
            oldest_session: oldest,
            due: seen
                .records
                .iter()
                .filter(is_due)
                .flat_map(|record| record.packs.clone())
                .collect(),
            rewrite_percent: self.options.rewrite_percent.min(100),
        }
    }

    /// What was condemned before this time has had its grace period.
    fn before_grace(&self, seen: &Seen) -> Timestamp {
        let time = seen.sessions.now.saturating_sub(self.options.grace);
        time.unwrap_or(Timestamp::MIN)
    }

    fn condemn(&self, seen: &Seen, fates: &BTreeMap<PackId, Fate>) -> Result<()> {
        let shared = &self.data.shared;
        let packs: Vec<PackId> = fates
            .iter()
            .filter(|(_, fate)| matches!(fate, Fate::Condemn | Fate::Rewrite))
            .map(|(id, _)| *id)
            .collect();
        condemned::condemn(
            &shared.objects,
            &shared.sealer,
            seen.sessions.now,
            &packs,
            self.stop,
        )
    }

    fn say_what_waits(&self, seen: &Seen, report: &mut CollectReport) {
        let shared = &self.data.shared;
        let is_new = report.condemned.packs > 0;
        let new = is_new.then_some(seen.sessions.now);
        let known = seen.records.iter().map(|record| record.time);
        for time in known.chain(new).filter(|time| *time >= self.before_grace(seen)) {
            let until = time.saturating_add(self.options.grace);
            report
                .waiting
                .push(Waiting::Until(until.unwrap_or(Timestamp::MAX)));
        }
        for session in &seen.sessions.live {
            let is_older = |record: &Condemned| session.began.duration_since(record.time) <= MARGIN;
            if seen.records.iter().any(is_older) {
                let host = describe(&shared.objects, &shared.sealer, session, self.stop);
                report.waiting.push(Waiting::Session(host));
            }
        }
    }

    /// Deletes the objects of ended sessions. It has to precede the deletion of packs: a process
    /// that has slept for days and wakes later notices it.
    fn end_sessions(&self, seen: &Seen) -> Result<()> {
        let ended = seen.sessions.ended.iter();
        let mut objects = ended.flat_map(|session| &session.objects);
        objects.try_for_each(|name| self.remove(name))
    }

    /// Deletes what an old `init` has left.
    fn delete_probes(&self, seen: &Seen) -> Result<()> {
        let objects = &self.data.shared.objects;
        let probes = list(objects.as_ref(), PROBES, self.stop)?;
        let is_old =
            |object: &ListedObject| object.modified.is_some_and(|time| time < self.before_grace(seen));
        let mut probes = probes.iter().filter(|object| is_old(object));
        probes.try_for_each(|object| self.remove(&object.name))
    }
}
