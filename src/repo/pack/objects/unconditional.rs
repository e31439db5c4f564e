//! A store that cannot create an object only if it is absent.

use std::ops::Range;
use std::sync::Arc;

use super::{ListPage, ObjectName, ObjectResult, ObjectStore, PutResult};
use crate::model::stop::WaitLimit;

/// Passes calls on to another store, but never sends a condition, because some servers refuse
/// conditions. It may be used only for random names.
pub(crate) struct Unconditional(pub(crate) Arc<dyn ObjectStore>);

impl ObjectStore for Unconditional {
    fn location(&self) -> String {
        self.0.location()
    }

    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.0.get(name, most, limit)
    }

    fn get_range(&self, name: &ObjectName, range: Range<u64>, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        self.0.get_range(name, range, limit)
    }

    fn put_if_absent(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<PutResult> {
        self.0.put(name, content, limit).map(|()| PutResult::Created)
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        self.0.put(name, content, limit)
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        self.0.list(prefix, from, limit)
    }

    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>> {
        self.0.head(name, limit)
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        self.0.delete(name, limit)
    }
}
