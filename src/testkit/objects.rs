//! An object store in memory that gives trouble at chosen calls.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::model::stop::WaitLimit;
use crate::repo::{
    ListPage, ListedObject, ObjectError, ObjectErrorKind, ObjectName, ObjectResult, ObjectStore, PutResult,
};

/// The number of names in a page of a list. It is small, so that tests see several pages.
const PAGE: usize = 1;

/// What goes wrong at a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectTrouble {
    /// It fails and does nothing.
    Fails(ObjectErrorKind),
    /// It takes effect, but is reported as failed.
    AnswerLost(ObjectErrorKind),
    /// A put is repeated after a lost answer: it reports the object that it wrote itself.
    RepeatsPut,
    /// A put stores only the first half, and reports success.
    Tears,
    /// A put replaces an existing object whatever the condition.
    IgnoresCondition,
    /// It takes longer than its deadline, or until it is stopped.
    Delays,
}

/// The store.
#[derive(Default)]
pub struct MemoryObjects(Mutex<State>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    /// When each object was written.
    times: BTreeMap<String, Timestamp>,
    now: Timestamp,
    ignores_conditions: bool,
    /// The call (all if empty), how many of them go well before, and the trouble.
    trouble: Option<(&'static str, usize, ObjectTrouble)>,
    calls: usize,
}

impl MemoryObjects {
    /// Gives trouble at the n-th call of this function, counted from 0; of any if it is empty.
    pub fn trouble(&self, call: &'static str, number: usize, trouble: ObjectTrouble) {
        self.state().trouble = Some((call, number, trouble));
    }

    /// Gives no more trouble.
    pub fn calm(&self) {
        self.state().trouble = None;
    }

    /// Ignores the condition of every put from now on.
    pub fn ignore_conditions(&self) {
        self.state().ignores_conditions = true;
    }

    /// Moves the clock of the store forward. It starts at 1970 and moves only here.
    pub fn pass(&self, time: SignedDuration) {
        let mut state = self.state();
        state.now = state.now.saturating_add(time).unwrap_or(Timestamp::MAX);
    }

    /// The time of the clock of the store.
    pub fn now(&self) -> Timestamp {
        self.state().now
    }

    /// The number of calls so far.
    pub fn calls(&self) -> usize {
        self.state().calls
    }

    /// The names of all objects.
    pub fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Puts an object there, whatever its name.
    pub fn insert(&self, name: &str, content: &[u8]) {
        let mut state = self.state();
        let now = state.now;
        state.times.insert(name.to_owned(), now);
        state.objects.insert(name.to_owned(), content.to_vec());
    }

    /// The content of an object.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.state().objects.get(name).cloned()
    }

    /// Removes an object.
    pub fn remove(&self, name: &str) {
        self.state().objects.remove(name);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Performs a call. `work` also gets the trouble that concerns what is written.
    fn call<T>(
        &self,
        call: &'static str,
        location: &str,
        limit: &WaitLimit,
        work: impl FnOnce(&mut State, Option<&ObjectTrouble>) -> ObjectResult<T>,
    ) -> ObjectResult<T> {
        let failed = |kind| Err(ObjectError::new(call, location.to_owned(), kind));
        if let Some(reason) = limit.stop.reason() {
            return failed(ObjectErrorKind::Stopped(reason));
        }
        let mut state = self.state();
        state.calls += 1;
        let trouble = state.next_trouble(call);
        match trouble {
            Some(ObjectTrouble::Fails(kind)) => failed(kind),
            Some(ObjectTrouble::AnswerLost(kind)) => {
                work(&mut state, None)?;
                failed(kind)
            }
            Some(ObjectTrouble::Delays) => {
                drop(state);
                delay(limit);
                match limit.stop.reason() {
                    Some(reason) => failed(ObjectErrorKind::Stopped(reason)),
                    None => failed(ObjectErrorKind::TimedOut(limit.deadline)),
                }
            }
            trouble => work(&mut state, trouble.as_ref()),
        }
    }
}

impl State {
    fn next_trouble(&mut self, call: &str) -> Option<ObjectTrouble> {
        let (of, left, trouble) = self.trouble.as_mut()?;
        if !of.is_empty() && *of != call {
            return None;
        }
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let trouble = trouble.clone();
        self.trouble = None;
        Some(trouble)
    }
}

/// Waits for the stop or the deadline.
fn delay(limit: &WaitLimit) {
    let started = Instant::now();
    // Nobody sends, so this is a wait with a time limit.
    let (_sender, receiver) = channel::<()>();
    while !limit.stop.requested() && started.elapsed() < limit.deadline {
        let _ = receiver.recv_timeout(Duration::from_millis(5));
    }
}

fn not_found(operation: &'static str, name: &ObjectName) -> ObjectError {
    ObjectError::new(operation, name.to_string(), ObjectErrorKind::NotFound)
}

impl ObjectStore for MemoryObjects {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.call("get", name.as_str(), limit, |state, _| {
            let found = state.objects.get(name.as_str());
            let found = found.cloned().ok_or_else(|| not_found("get", name))?;
            match found.len() as u64 > most {
                true => {
                    let kind = ObjectErrorKind::TooLarge { most };
                    Err(ObjectError::new("get", name.to_string(), kind))
                }
                false => Ok(found),
            }
        })
    }

    fn get_range(&self, name: &ObjectName, range: Range<u64>, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.call("get_range", name.as_str(), limit, |state, _| {
            let found = state
                .objects
                .get(name.as_str())
                .ok_or_else(|| not_found("get", name))?;
            let part = found.get(range.start as usize..range.end as usize);
            let short = || ObjectError::new("get", name.to_string(), ObjectErrorKind::TooShort);
            part.map(<[u8]>::to_vec).ok_or_else(short)
        })
    }

    fn put_if_absent(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<PutResult> {
        self.call("put_if_absent", name.as_str(), limit, |state, trouble| {
            let ignores = state.ignores_conditions || trouble == Some(&ObjectTrouble::IgnoresCondition);
            if state.objects.contains_key(name.as_str()) && !ignores {
                return Ok(PutResult::Existed);
            }
            state.insert(name, content, trouble);
            match trouble {
                Some(ObjectTrouble::RepeatsPut) => Ok(PutResult::Existed),
                _ => Ok(PutResult::Created),
            }
        })
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        self.call("put", name.as_str(), limit, |state, trouble| {
            state.insert(name, content, trouble);
            Ok(())
        })
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        self.call("list", prefix, limit, |state, _| {
            let mut page = ListPage::default();
            let names = state.objects.iter().filter(|(name, _)| name.starts_with(prefix));
            let names = names.filter(|(name, _)| from.is_none_or(|from| name.as_str() > from));
            let names: Vec<_> = names.collect();
            for (name, content) in names.iter().take(PAGE) {
                let size = content.len() as u64;
                let modified = state.times.get(*name).copied();
                match ObjectName::new(name) {
                    Some(name) => page.objects.push(ListedObject { name, size, modified }),
                    None => page.foreign.push((*name).clone()),
                }
            }
            let last = names.get(PAGE - 1).filter(|_| names.len() > PAGE);
            page.next = last.map(|(name, _)| (*name).clone());
            Ok(page)
        })
    }

    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>> {
        self.call("head", name.as_str(), limit, |state, _| {
            Ok(state
                .objects
                .get(name.as_str())
                .map(|content| content.len() as u64))
        })
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        self.call("delete", name.as_str(), limit, |state, _| {
            state.objects.remove(name.as_str());
            Ok(())
        })
    }
}

impl State {
    fn insert(&mut self, name: &ObjectName, content: &[u8], trouble: Option<&ObjectTrouble>) {
        let length = match trouble {
            Some(ObjectTrouble::Tears) => content.len() / 2,
            _ => content.len(),
        };
        self.times.insert(name.to_string(), self.now);
        self.objects.insert(name.to_string(), content[..length].to_vec());
    }
}

/// Opens a bucket of a server that checks no signatures.
///
/// # Errors
/// The location is invalid.
#[cfg(feature = "object-store")]
pub fn bucket(location: &str) -> crate::repo::PackResult<std::sync::Arc<dyn ObjectStore>> {
    let environment = [
        ("AWS_ACCESS_KEY_ID", "of-a-test"),
        ("AWS_SECRET_ACCESS_KEY", "of-a-test"),
    ];
    bucket_with(location, &environment)
}

/// Opens a bucket with these variables instead of those of the environment.
///
/// # Errors
/// The location is invalid, or there are no credentials.
#[cfg(feature = "object-store")]
pub fn bucket_with(
    location: &str,
    environment: &[(&str, &str)],
) -> crate::repo::PackResult<std::sync::Arc<dyn ObjectStore>> {
    let value = |name: &str| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).into())
    };
    crate::repo::pack::bucket_of_test(location.as_ref(), &value)
}
