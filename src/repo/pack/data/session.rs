//! Sessions: objects that show collectors who is at work, by the clock of the store.
//!
//! A session begins with `sessions/ID`, which stays until it ends, so that its time is that of the
//! beginning. While the work lasts, `sessions/ID-N` are added, and the one before is deleted. The
//! id of a collector's session begins with `collector.`, and that of a process that rebuilds the
//! index with `collector.rebuild.`: collectors do nothing meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::id::random_digits;
use super::listing::list;
use super::retry::{limit, retry};
use super::sealer::{OVERHEAD, Sealer};
use crate::model::stop::{Stop, StopReason};
use crate::repo::pack::objects::{ListedObject, ObjectName, ObjectStore, list_all};
use crate::repo::pack_error::{PackError, Result};

/// The prefix of the names of sessions.
pub(super) const SESSIONS: &str = "sessions/";

/// How the id of a collector's session begins.
const COLLECTOR: &str = "collector.";

/// How the id of a session begins in which the index is rebuilt. To collectors it is a collector.
const REBUILDER: &str = "collector.rebuild.";

/// How often a session is renewed.
const RENEWAL: Duration = Duration::from_secs(6 * 60 * 60);

/// When a renewal that failed is tried again.
const NEXT_TRY: Duration = Duration::from_secs(10 * 60);

/// The age of its newest object after which a session has ended, because its host must have
/// crashed.
pub(super) const END: SignedDuration = SignedDuration::from_hours(3 * 24);

/// A session that was not renewed for this long is lost to its own process. The difference to
/// [`END`] is the time for a commit.
const LOST: SignedDuration = SignedDuration::from_hours(2 * 24);

/// The margin for comparing times of the store. Times that are closer have no known order, because
/// a put takes time, and a store may consist of several machines.
pub(super) const MARGIN: SignedDuration = SignedDuration::from_hours(1);

/// The largest record in bytes.
const LARGEST: usize = 4096;

/// The most objects of all sessions. There are a few for each host.
const MOST_OBJECTS: usize = 100_000;

const FORMAT: u64 = 1;

/// The content of `sessions/ID`, for messages.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u64,
    host: String,
    process: u32,
}

/// Parses the record of a session.
pub(super) fn parse_for_fuzzing(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Record>(bytes);
}

/// The kind of process that has a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Writer,
    Collector,
    Rebuilder,
}

/// A session of this process, which a thread renews. Until it ends, the session protects the data
/// that the process writes.
///
/// Without [`Session::end`], its objects stay, and collectors wait for days, because a put that
/// seems to have failed may still take effect.
pub(crate) struct Session {
    shared: Arc<Shared>,
    renewer: Option<JoinHandle<()>>,
}

struct Shared {
    objects: Arc<dyn ObjectStore>,
    sealer: Arc<Sealer>,
    id: String,
    record: Vec<u8>,
    state: Mutex<State>,
    changed: Condvar,
    stop: Stop,
}

struct State {
    /// The number of the next renewal.
    next: u64,
    newest: ObjectName,
    is_lost: bool,
    /// One renewal at a time.
    is_renewing: bool,
}

impl Session {
    /// Begins a session by writing its object. Condemned packs and the index may be read only
    /// afterwards.
    ///
    /// # Errors
    /// The store fails, or no thread can be started.
    pub(super) fn begin(
        objects: &Arc<dyn ObjectStore>,
        sealer: &Arc<Sealer>,
        host: &str,
        kind: Kind,
        stop: &Stop,
    ) -> Result<Session> {
        let record = Record {
            format: FORMAT,
            host: host.chars().take(64).collect(),
            process: std::process::id(),
        };
        let record = serde_json::to_vec(&record).map_err(|error| PackError::Seal(error.into()))?;
        let digits = random_digits().map_err(PackError::Seal)?;
        let id = match kind {
            Kind::Writer => digits,
            Kind::Collector => format!("{COLLECTOR}{digits}"),
            Kind::Rebuilder => format!("{REBUILDER}{digits}"),
        };
        let newest = object_name(&id, None)?;
        let shared = Arc::new(Shared {
            objects: Arc::clone(objects),
            sealer: Arc::clone(sealer),
            id,
            record,
            state: Mutex::new(State {
                next: 1,
                newest: newest.clone(),
                is_lost: false,
                is_renewing: false,
            }),
            changed: Condvar::new(),
            stop: stop.child(),
        });
        shared.put(&newest, stop)?;
        let renewing = Arc::clone(&shared);
        let thread = Builder::new().name("pack-session".into());
        let renewer = thread.spawn(move || renewing.renew_until_stop());
        Ok(Session {
            shared,
            renewer: Some(renewer.map_err(PackError::Seal)?),
        })
    }

    /// The id of the session.
    pub(super) fn id(&self) -> &str {
        &self.shared.id
    }

    /// Renews the session now, and returns the time by the clock of the store.
    ///
    /// # Errors
    /// [`PackError::SessionLost`] if the session was not renewed for two days, or its objects have
    /// vanished: collectors may have deleted what this process relies on. Others if the store
    /// fails.
    pub(crate) fn renew(&self, stop: &Stop) -> Result<Timestamp> {
        self.shared.renew(stop)
    }

    /// Ends the session, after the commit or if there will be no commit. If the store refuses to
    /// delete, the session ends later by its age.
    ///
    /// # Errors
    /// [`PackError::SessionLost`] as for [`Session::renew`]: a restore point that was committed
    /// just now may lack data. Others if the store fails, which does not affect the commit.
    pub(crate) fn end(mut self, stop: &Stop) -> Result<()> {
        self.stop_renewing();
        // Only the times of the store tell whether this process has slept for days.
        self.shared.renew(stop)?;
        let newest = self.shared.state().newest.clone();
        self.shared.delete(&[newest], stop);
        Ok(())
    }

    /// Ends the session of a run that has given up, with one attempt. If it fails, the session ends
    /// by its age.
    pub(crate) fn give_up(mut self) {
        self.stop_renewing();
        // A run that was stopped still does this.
        let stop = Stop::default();
        let objects = self.shared.objects.as_ref();
        // Without the whole list, all objects stay.
        if let Ok(all) = list_all(objects, SESSIONS, MOST_OBJECTS, &limit(0, &stop)) {
            self.shared.delete(&self.shared.renewals(&all.objects), &stop);
        }
    }

    fn stop_renewing(&mut self) {
        {
            // The lock keeps the renewer from beginning its wait of hours between its look at the
            // stop and the notification.
            let _state = self.shared.state();
            self.shared.stop.request(StopReason::OtherPartFailed);
        }
        self.shared.changed.notify_all();
        if let Some(renewer) = self.renewer.take() {
            // It only renews; a panic there leaves the session as it is.
            let _ = renewer.join();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_renewing();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, name: &ObjectName, stop: &Stop) -> Result<()> {
        let sealed = self
            .sealer
            .seal_record(name, &self.record)
            .map_err(PackError::Seal)?;
        retry(stop, || {
            self.objects.put_if_absent(name, &sealed, &limit(0, stop))
        })?;
        Ok(())
    }

    fn renew_until_stop(&self) {
        let mut wait = RENEWAL;
        loop {
            let state = self.state();
            let waited = self
                .changed
                .wait_timeout_while(state, wait, |_| !self.stop.requested());
            drop(waited);
            if self.stop.requested() {
                return;
            }
            wait = match self.renew(&self.stop) {
                Ok(_) => RENEWAL,
                Err(_) => NEXT_TRY,
            };
        }
    }

    fn renew(&self, stop: &Stop) -> Result<Timestamp> {
        let (name, before) = {
            let mut state = self.state();
            while state.is_renewing {
                let waited = self.changed.wait_timeout(state, Duration::from_millis(50));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                if let Some(reason) = stop.reason() {
                    return Err(super::stopped("renew", SESSIONS, reason));
                }
            }
            if state.is_lost {
                return Err(self.lost());
            }
            state.is_renewing = true;
            let number = state.next;
            state.next += 1;
            (object_name(&self.id, Some(number)), state.newest.clone())
        };
        let renewed = name.and_then(|name| self.renew_as(name, &before, stop));
        let mut state = self.state();
        state.is_renewing = false;
        state.is_lost |= matches!(renewed, Err(PackError::SessionLost { .. }));
        if let Ok((name, _)) = &renewed {
            state.newest = name.clone();
        }
        drop(state);
        self.changed.notify_all();
        renewed.map(|(_, now)| now)
    }

    fn renew_as(
        &self,
        name: ObjectName,
        before: &ObjectName,
        stop: &Stop,
    ) -> Result<(ObjectName, Timestamp)> {
        self.put(&name, stop)?;
        let listed = list(self.objects.as_ref(), SESSIONS, stop)?;
        let time_of = |name: &ObjectName| {
            let found = listed.iter().find(|object| object.name == *name);
            found
                .ok_or_else(|| self.lost())?
                .modified
                .ok_or_else(|| no_times(&self.objects))
        };
        let first = object_name(&self.id, None)?;
        let (last, now) = (time_of(before)?, time_of(&name)?);
        time_of(&first)?;
        if now.duration_since(last) > LOST {
            return Err(self.lost());
        }
        for older in self.renewals(&listed).iter().filter(|older| **older != name) {
            // Where it is refused, the newest counts.
            let _ = self.objects.delete(older, &limit(0, stop));
        }
        Ok((name, now))
    }

    /// The listed renewals of this session.
    fn renewals(&self, listed: &[ListedObject]) -> Vec<ObjectName> {
        let own = format!("{SESSIONS}{}-", self.id);
        let names = listed.iter().map(|object| &object.name);
        names
            .filter(|name| name.as_str().starts_with(&own))
            .cloned()
            .collect()
    }

    /// Deletes these renewals, and then the first object: without it, the others would count as a
    /// session of unknown age. After a failure the rest stays, and ends by its age.
    fn delete(&self, renewals: &[ObjectName], stop: &Stop) {
        let first = object_name(&self.id, None).ok();
        for name in renewals.iter().chain(first.as_ref()) {
            if self.objects.delete(name, &limit(0, stop)).is_err() {
                return;
            }
        }
    }

    fn lost(&self) -> PackError {
        PackError::SessionLost {
            location: self.objects.location(),
        }
    }
}

pub(super) fn no_times(objects: &Arc<dyn ObjectStore>) -> PackError {
    PackError::NoTimes {
        location: objects.location(),
    }
}

fn object_name(id: &str, number: Option<u64>) -> Result<ObjectName> {
    let text = match number {
        None => format!("{SESSIONS}{id}"),
        Some(number) => format!("{SESSIONS}{id}-{number}"),
    };
    super::id::object_name(&text).map_err(PackError::Seal)
}

/// A session of any process, as its objects show it.
#[derive(Clone, Debug)]
pub(super) struct SeenSession {
    pub(super) id: String,
    /// When it began; the earliest possible time if its first object is missing.
    pub(super) began: Timestamp,
    /// When it was renewed last.
    pub(super) renewed: Timestamp,
    /// Its objects, the first one last.
    pub(super) objects: Vec<ObjectName>,
}

impl SeenSession {
    /// Whether the session belongs to a collector.
    pub(super) fn is_collector(&self) -> bool {
        self.id.starts_with(COLLECTOR)
    }

    /// Whether the session belongs to a process that rebuilds the index.
    pub(super) fn is_rebuilder(&self) -> bool {
        self.id.starts_with(REBUILDER)
    }

    /// Whether its first object exists, so that its beginning is known.
    pub(super) fn has_beginning(&self) -> bool {
        self.began > Timestamp::MIN
    }
}

/// The part of an id after the word for the kind of its session.
pub(super) fn digits_of(id: &str) -> &str {
    let words = [REBUILDER, COLLECTOR];
    words.iter().find_map(|word| id.strip_prefix(word)).unwrap_or(id)
}

/// The sessions at one moment.
#[derive(Debug)]
pub(super) struct SeenSessions {
    /// The time of the moment, by the clock of the store.
    pub(super) now: Timestamp,
    /// The sessions of other processes that have not ended.
    pub(super) live: Vec<SeenSession>,
    /// The sessions whose processes must have died.
    pub(super) ended: Vec<SeenSession>,
}

impl SeenSessions {
    /// Lists the sessions. `own` is the session of the caller, which has just begun.
    ///
    /// # Errors
    /// The store fails, does not list the own session, or gives no times.
    pub(super) fn read(objects: &Arc<dyn ObjectStore>, own: &Session, stop: &Stop) -> Result<SeenSessions> {
        let look = || group(list(objects.as_ref(), SESSIONS, stop)?).ok_or_else(|| no_times(objects));
        let mut all = look()?;
        let own = all.remove(own.id()).ok_or_else(|| own.shared.lost())?;
        let now = own.renewed;
        let is_old = |session: &SeenSession| now.duration_since(session.renewed) > END;
        let (mut ended, mut live): (Vec<_>, Vec<_>) = all.into_values().partition(is_old);
        if !ended.is_empty() {
            // A renewal during a list may hide both the old and the new object.
            let again = look()?;
            let is_ended = |session: &SeenSession| again.get(&session.id).is_some_and(is_old);
            let (still, others) = ended.into_iter().partition(is_ended);
            ended = still;
            live.extend::<Vec<SeenSession>>(others);
        }
        Ok(SeenSessions { now, live, ended })
    }

    /// Whether every live session began clearly after this time.
    pub(super) fn all_began_after(&self, time: Timestamp) -> bool {
        self.live
            .iter()
            .all(|session| session.began.duration_since(time) > MARGIN)
    }
}

/// Groups the objects of each session; `None` if one has no time.
pub(super) fn group(listed: Vec<ListedObject>) -> Option<BTreeMap<String, SeenSession>> {
    let mut all: BTreeMap<String, SeenSession> = BTreeMap::new();
    for object in listed {
        let name = object.name.as_str().strip_prefix(SESSIONS)?;
        let (id, number) = match name.split_once('-') {
            Some((id, number)) => (id, Some(number)),
            None => (name, None),
        };
        let time = object.modified?;
        let session = all.entry(id.to_owned()).or_insert_with(|| SeenSession {
            id: id.to_owned(),
            began: Timestamp::MIN,
            renewed: time,
            objects: Vec::new(),
        });
        session.renewed = session.renewed.max(time);
        if number.is_none() {
            session.began = time;
        }
        // In a list, `ID` comes before `ID-N`.
        session.objects.insert(0, object.name);
    }
    Some(all)
}

/// The host and the process of a session, for messages.
pub(super) fn describe(
    objects: &Arc<dyn ObjectStore>,
    sealer: &Sealer,
    session: &SeenSession,
    stop: &Stop,
) -> String {
    let read = || {
        let name = session.objects.last()?;
        let most = (LARGEST + OVERHEAD) as u64;
        let sealed = retry(stop, || objects.get(name, most, &limit(0, stop))).ok()?;
        let record = sealer.open_record(name, sealed, LARGEST).ok()?;
        serde_json::from_slice::<Record>(&record).ok()
    };
    match read() {
        Some(record) => format!("{} (process {})", record.host, record.process),
        None => format!("an unknown host ({})", session.id),
    }
}
