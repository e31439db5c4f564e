//! The interface to an object store: whole objects with names, which are never changed.
//!
//! * `bucket`: where a bucket is.
//! * `name`: names of objects.
//! * `folder`: objects as files below a folder.
//! * `s3`: objects in a bucket of an S3 server.
//! * `unconditional`: a store that cannot create an object only if it is absent.
//!
//! A call to a server ends at its deadline, and soon after a stop was requested; calls of a file
//! system cannot be interrupted. An object appears whole or
//! not at all.

mod bucket;
mod folder;
mod name;
#[cfg(feature = "object-store")]
mod s3;
mod unconditional;

use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::stop::{Stop, WaitLimit};
use crate::repo::object_error as error;

pub use bucket::BucketLocation;
pub use error::{ObjectError, ObjectErrorKind};
pub(crate) use folder::FolderObjects;
pub use name::ObjectName;
pub(crate) use name::is_segment;
#[cfg(feature = "object-store")]
pub(crate) use s3::S3Objects;
pub(crate) use unconditional::Unconditional;

/// The result of an object store.
pub type ObjectResult<T> = Result<T, ObjectError>;

/// The most names in one page of a list.
pub const PAGE: usize = 1000;

/// The longest time for a call about a small object, including retries.
pub(crate) const SMALL: Duration = Duration::from_secs(60);

/// The limit for a call about a small object.
pub(crate) fn small(stop: &Stop) -> WaitLimit {
    WaitLimit {
        deadline: SMALL,
        stop: stop.clone(),
    }
}

/// Whether [`ObjectStore::put_if_absent`] created an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutResult {
    /// The call created the object.
    Created,
    /// An object with this name existed. It may be the caller's own: if the answer to the first
    /// attempt was lost, a retry finds the object of that attempt. A caller that needs to know
    /// reads the object.
    Existed,
}

/// One object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its name.
    pub name: ObjectName,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the clock of the store; `None` if the store does not report it. The
    /// time may be compared only with times of the same store.
    pub modified: Option<Timestamp>,
}

/// A page of a list, in the order of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// The objects.
    pub objects: Vec<ListedObject>,
    /// Names that no version of vmsnap uses, with unusual characters escaped.
    pub foreign: Vec<String>,
    /// The start of the next page; `None` if this page is the last one.
    pub next: Option<String>,
}

/// Keeps objects under names. Calls may be made from several threads at once.
pub trait ObjectStore: Send + Sync {
    /// Its location, for messages.
    fn location(&self) -> String;

    /// Reads a whole object of at most `most` bytes.
    ///
    /// # Errors
    /// [`ObjectErrorKind::NotFound`] or [`ObjectErrorKind::TooLarge`]; others if the store fails.
    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>>;

    /// Reads exactly these bytes of an object.
    ///
    /// # Errors
    /// The errors of [`ObjectStore::get`]. [`ObjectErrorKind::TooShort`] if the object ends before
    /// the end of the range.
    fn get_range(&self, name: &ObjectName, range: Range<u64>, limit: &WaitLimit) -> ObjectResult<Vec<u8>>;

    /// Creates an object unless one with this name exists. Some stores do not honour the condition,
    /// and replace the object; `probe` finds out whether a store does.
    fn put_if_absent(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<PutResult>;

    /// Creates an object, or replaces the one with this name.
    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()>;

    /// Lists the objects whose names begin with `prefix`, which is empty or ends with a slash.
    /// `from` is [`ListPage::next`] of the page before.
    ///
    /// # Errors
    /// The store fails. An incomplete list is an error, and is never returned.
    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage>;

    /// The size of an object in bytes; `None` if it does not exist.
    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>>;

    /// Deletes an object. A missing object is not an error.
    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()>;
}

/// Lists all objects whose names begin with `prefix`, at most `most` of them.
///
/// # Errors
/// The errors of [`ObjectStore::list`]; [`ObjectErrorKind::TooMany`] if there are more.
pub(crate) fn list_all(
    store: &dyn ObjectStore,
    prefix: &str,
    most: usize,
    limit: &WaitLimit,
) -> ObjectResult<ListPage> {
    let mut all = ListPage::default();
    loop {
        let page = store.list(prefix, all.next.as_deref(), limit)?;
        all.objects.extend(page.objects);
        all.foreign.extend(page.foreign);
        if all.objects.len() + all.foreign.len() > most {
            let kind = ObjectErrorKind::TooMany { most };
            return Err(ObjectError::new(
                "list",
                format!("{}/{prefix}", store.location()),
                kind,
            ));
        }
        if page.next.is_none() {
            all.next = None;
            return Ok(all);
        }
        // A server that repeats a page would keep this loop busy for ever.
        if page.next <= all.next {
            let why = "the server repeats a page of the list";
            let kind = ObjectErrorKind::Unexpected(why.to_owned());
            return Err(ObjectError::new(
                "list",
                format!("{}/{prefix}", store.location()),
                kind,
            ));
        }
        all.next = page.next;
    }
}
