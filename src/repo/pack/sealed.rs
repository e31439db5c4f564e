//! Small sealed objects: lists them, reads several at once, and remembers what it has read. That is
//! safe because no object ever changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::data::Data;
use super::error::Result;
use super::objects::{ListedObject, ObjectError, ObjectErrorKind, ObjectName, ObjectStore, list_all, small};
use crate::model::stop::Stop;

/// The largest number of objects below one prefix.
pub(super) const MOST_OBJECTS: usize = 1_000_000;

/// The number of objects that are read at the same time.
const AT_ONCE: usize = 8;

/// The text of an object, or why it cannot be read.
pub(super) type Text = std::result::Result<Arc<Vec<u8>>, String>;

/// An object with its text.
pub(super) type ReadObject = (ListedObject, Text);

/// An object with its text; `None` if it has gone since it was listed.
type Fetched = (ListedObject, Option<Text>);

/// The sealed objects of a repository.
pub(super) struct SealedObjects {
    objects: Arc<dyn ObjectStore>,
    data: Data,
    /// Texts by the name and the size of the object.
    known: Mutex<HashMap<(ObjectName, u64), Text>>,
    /// The number of objects that were read from the store.
    fetched: AtomicUsize,
}

impl SealedObjects {
    pub(super) fn new(objects: Arc<dyn ObjectStore>, data: Data) -> SealedObjects {
        SealedObjects {
            objects,
            data,
            known: Mutex::default(),
            fetched: AtomicUsize::new(0),
        }
    }

    /// The number of objects that were read from the store so far.
    pub(super) fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Relaxed)
    }

    /// The objects below a prefix.
    ///
    /// # Errors
    /// The store fails. An incomplete list is an error, and is never returned.
    pub(super) fn list(&self, prefix: &str, stop: &Stop) -> Result<Vec<ListedObject>> {
        let page = list_all(self.objects.as_ref(), prefix, MOST_OBJECTS, &small(stop))?;
        Ok(page.objects)
    }

    /// Reads these objects of at most `most` bytes each. Objects that were deleted since they were
    /// listed are left out. For a damaged object, the reason is returned instead of a text.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn read(&self, listed: Vec<ListedObject>, most: u64, stop: &Stop) -> Result<Vec<ReadObject>> {
        let threads = AT_ONCE.min(listed.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut read = Vec::new();
            while let Some(object) = listed.get(next.fetch_add(1, Ordering::Relaxed)) {
                read.push((object.clone(), self.read_one(object, most, stop)?));
            }
            Ok(read)
        };
        let parts: Vec<Result<Vec<Fetched>>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let lost = || Err(ended_early(self.objects.as_ref()));
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| lost()))
                .collect()
        });
        let mut all = Vec::with_capacity(listed.len());
        for part in parts {
            let found = part?.into_iter();
            all.extend(found.filter_map(|(object, text)| Some((object, text?))));
        }
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        Ok(all)
    }

    fn read_one(&self, object: &ListedObject, most: u64, stop: &Stop) -> Result<Option<Text>> {
        let key = (object.name.clone(), object.size);
        if let Some(known) = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
        {
            return Ok(Some(known.clone()));
        }
        let text = match self.objects.get(&object.name, most, &small(stop)) {
            Ok(sealed) => match self.data.open_record(&object.name, &sealed) {
                Ok(text) => Ok(Arc::new(text)),
                Err(error) => Err(crate::model::text::with_sources(&error)),
            },
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_too_large() => Err(error.kind.to_string()),
            Err(error) => return Err(error.into()),
        };
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, text.clone());
        Ok(Some(text))
    }

    /// Forgets the objects below a prefix that are no longer listed.
    pub(super) fn forget_others(&self, prefix: &str, listed: &[ListedObject]) {
        let there: BTreeSet<&ObjectName> = listed.iter().map(|object| &object.name).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(name, _), _| !name.as_str().starts_with(prefix) || there.contains(name));
    }
}

/// The error of a thread that ended without an answer.
fn ended_early(objects: &dyn ObjectStore) -> super::error::PackError {
    let kind = ObjectErrorKind::Unexpected("a reader ended early".to_owned());
    ObjectError::new("read", objects.location(), kind).into()
}
