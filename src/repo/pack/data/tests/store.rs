//! An object store in memory. One of its calls can fail, and calls are counted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use crate::model::stop::WaitLimit;
use crate::repo::pack::objects::{
    ListPage, ListedObject, ObjectError, ObjectErrorKind, ObjectName, ObjectResult, ObjectStore, PutResult,
};

/// What happens at a chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It fails, and so do all later ones.
    Dies,
    /// It fails in a way that may pass.
    Hiccups,
    /// A put takes effect, but is reported as failed in a way that may pass.
    LosesAnswer,
}

#[derive(Default)]
pub(super) struct Store(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Vec<u8>>,
    pub(super) calls: usize,
    /// The number of reads of ranges.
    pub(super) ranges: usize,
    trouble: Option<(usize, Trouble)>,
}

impl Store {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    /// Gives trouble at the n-th call from now, counted from 0.
    pub(super) fn trouble(&self, number: usize, trouble: Trouble) {
        let mut state = self.state();
        state.trouble = Some((state.calls + number, trouble));
    }

    pub(super) fn calm(&self) {
        self.state().trouble = None;
    }

    pub(super) fn names(&self, prefix: &str) -> Vec<String> {
        let state = self.state();
        let names = state.objects.keys().filter(|name| name.starts_with(prefix));
        names.cloned().collect()
    }

    fn call<T>(
        &self,
        name: &str,
        limit: &WaitLimit,
        work: impl FnOnce(&mut State) -> ObjectResult<T>,
    ) -> ObjectResult<T> {
        let failed = |kind| Err(ObjectError::new("use", name.to_owned(), kind));
        if let Some(reason) = limit.stop.reason() {
            return failed(ObjectErrorKind::Stopped(reason));
        }
        let mut state = self.state();
        let number = state.calls;
        state.calls += 1;
        match state.trouble {
            Some((at, Trouble::Dies)) if number >= at => failed(ObjectErrorKind::Refused),
            Some((at, Trouble::Hiccups)) if number == at => failed(ObjectErrorKind::Failed),
            Some((at, Trouble::LosesAnswer)) if number == at => {
                work(&mut state)?;
                failed(ObjectErrorKind::Failed)
            }
            _ => work(&mut state),
        }
    }
}

fn error(name: &ObjectName, kind: ObjectErrorKind) -> ObjectError {
    ObjectError::new("read", name.to_string(), kind)
}

impl ObjectStore for Store {
    fn location(&self) -> String {
        "memory:".to_owned()
    }

    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.call(name.as_str(), limit, |state| {
            let found = state.objects.get(name.as_str()).cloned();
            let found = found.ok_or_else(|| error(name, ObjectErrorKind::NotFound))?;
            match found.len() as u64 <= most {
                true => Ok(found),
                false => Err(error(name, ObjectErrorKind::TooLarge { most })),
            }
        })
    }

    fn get_range(&self, name: &ObjectName, range: Range<u64>, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.call(name.as_str(), limit, |state| {
            state.ranges += 1;
            let found = state.objects.get(name.as_str());
            let found = found.ok_or_else(|| error(name, ObjectErrorKind::NotFound))?;
            let part = found.get(range.start as usize..range.end as usize);
            part.map(<[u8]>::to_vec)
                .ok_or_else(|| error(name, ObjectErrorKind::TooShort))
        })
    }

    fn put_if_absent(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<PutResult> {
        self.call(name.as_str(), limit, |state| {
            if state.objects.contains_key(name.as_str()) {
                return Ok(PutResult::Existed);
            }
            state.objects.insert(name.to_string(), content.to_vec());
            Ok(PutResult::Created)
        })
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        self.call(name.as_str(), limit, |state| {
            state.objects.insert(name.to_string(), content.to_vec());
            Ok(())
        })
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        // Pages are short, so that every list has several.
        const PAGE: usize = 2;
        self.call(prefix, limit, |state| {
            let names = state.objects.iter().filter(|(name, _)| name.starts_with(prefix));
            let mut names = names.filter(|(name, _)| from.is_none_or(|from| name.as_str() > from));
            let mut page = ListPage::default();
            for (name, content) in names.by_ref().take(PAGE) {
                let name = ObjectName::new(name).expect("valid names only");
                let size = content.len() as u64;
                page.objects.push(ListedObject {
                    name,
                    size,
                    modified: None,
                });
            }
            let last = page.objects.last().map(|object| object.name.to_string());
            page.next = last.filter(|_| names.next().is_some());
            Ok(page)
        })
    }

    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>> {
        self.call(name.as_str(), limit, |state| {
            Ok(state
                .objects
                .get(name.as_str())
                .map(|content| content.len() as u64))
        })
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        self.call(name.as_str(), limit, |state| {
            state.objects.remove(name.as_str());
            Ok(())
        })
    }
}
