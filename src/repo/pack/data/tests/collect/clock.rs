//! An object store with a clock of its own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};

use crate::model::stop::WaitLimit;
use crate::repo::pack::data::tests::store::Store;
use crate::repo::pack::objects::{
    ListPage, ObjectError, ObjectErrorKind, ObjectName, ObjectResult, ObjectStore, PutResult,
};

type Callback = Box<dyn FnOnce() + Send>;

/// The store.
#[derive(Default)]
pub(super) struct Clocked {
    pub(super) inner: Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Timestamp,
    times: BTreeMap<String, Timestamp>,
    /// What is called before the call after so many others.
    callback: Option<(usize, Callback)>,
    has_no_times: bool,
    ignores_conditions: bool,
    refuses_deletion: bool,
    lists_nothing: bool,
}

impl Clocked {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// A store of its own with the same objects, times and clock, and without any trouble.
    pub(super) fn twin(&self) -> Clocked {
        let twin = Clocked::default();
        twin.inner.state().objects = self.snapshot();
        let state = self.state();
        *twin.state() = State {
            now: state.now,
            times: state.times.clone(),
            ..State::default()
        };
        drop(state);
        twin
    }

    pub(super) fn now(&self) -> Timestamp {
        self.state().now
    }

    pub(super) fn pass(&self, hours: i64) {
        let mut state = self.state();
        state.now += SignedDuration::from_hours(hours);
    }

    /// Calls back before the n-th call from now, counted from 0.
    pub(super) fn before_call(&self, number: usize, callback: impl FnOnce() + Send + 'static) {
        self.state().callback = Some((number, Box::new(callback)));
    }

    /// Whether a callback still waits; it waits no more.
    pub(super) fn take_callback(&self) -> bool {
        self.state().callback.take().is_some()
    }

    pub(super) fn forget_times(&self) {
        self.state().has_no_times = true;
    }

    pub(super) fn ignore_conditions(&self) {
        self.state().ignores_conditions = true;
    }

    pub(super) fn refuse_deletion(&self, refuses: bool) {
        self.state().refuses_deletion = refuses;
    }

    /// Lists nothing from now on, as a broken server does.
    pub(super) fn list_nothing(&self, nothing: bool) {
        self.state().lists_nothing = nothing;
    }

    /// Puts an object, without a call.
    pub(super) fn put_now(&self, name: &str, content: &[u8]) {
        let mut state = self.state();
        let now = state.now;
        state.times.insert(name.to_owned(), now);
        let mut inner = self.inner.state();
        inner.objects.insert(name.to_owned(), content.to_vec());
    }

    /// Everything in the store.
    pub(super) fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        self.inner.state().objects.clone()
    }

    fn called(&self) {
        let callback = {
            let mut state = self.state();
            match state.callback.take() {
                Some((0, callback)) => Some(callback),
                Some((left, callback)) => {
                    state.callback = Some((left - 1, callback));
                    None
                }
                None => None,
            }
        };
        if let Some(callback) = callback {
            callback();
        }
    }

    fn written(&self, name: &ObjectName) {
        let mut state = self.state();
        let now = state.now;
        state.times.insert(name.to_string(), now);
    }
}

impl ObjectStore for Clocked {
    fn location(&self) -> String {
        "memory:".to_owned()
    }

    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.called();
        self.inner.get(name, most, limit)
    }

    fn get_range(&self, name: &ObjectName, range: Range<u64>, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.called();
        self.inner.get_range(name, range, limit)
    }

    fn put_if_absent(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<PutResult> {
        self.called();
        if self.state().ignores_conditions {
            self.inner.put(name, content, limit)?;
            self.written(name);
            return Ok(PutResult::Created);
        }
        let exists = || self.inner.state().objects.contains_key(name.as_str());
        let was_there = exists();
        let put = self.inner.put_if_absent(name, content, limit);
        // The answer may be lost.
        if !was_there && exists() {
            self.written(name);
        }
        put
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        self.called();
        self.inner.put(name, content, limit)?;
        self.written(name);
        Ok(())
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        self.called();
        let mut page = self.inner.list(prefix, from, limit)?;
        let state = self.state();
        if state.lists_nothing {
            return Ok(ListPage::default());
        }
        for object in &mut page.objects {
            let time = state.times.get(object.name.as_str()).copied();
            object.modified = time.filter(|_| !state.has_no_times);
        }
        Ok(page)
    }

    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>> {
        self.called();
        self.inner.head(name, limit)
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        self.called();
        if self.state().refuses_deletion {
            let kind = ObjectErrorKind::Refused;
            return Err(ObjectError::new("delete", name.to_string(), kind));
        }
        self.inner.delete(name, limit)
    }
}

/// The store as others see it.
pub(super) fn as_store(store: &Arc<Clocked>) -> Arc<dyn ObjectStore> {
    store.clone()
}
