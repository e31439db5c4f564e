//! An object store that calls back before one of its calls.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use vmsnap::model::stop::WaitLimit;
use vmsnap::repo::{ListPage, ObjectName, ObjectResult, ObjectStore, PutResult};
use vmsnap::testkit::MemoryObjects;

type Callback = Box<dyn FnOnce() + Send>;

/// The store.
pub struct Beside {
    inner: Arc<MemoryObjects>,
    /// What is called, and before how many further calls.
    callback: Mutex<Option<(usize, Callback)>>,
}

impl Beside {
    /// Calls back before the n-th call, counted from 0.
    pub fn new(
        inner: &Arc<MemoryObjects>,
        number: usize,
        callback: impl FnOnce() + Send + 'static,
    ) -> Arc<Beside> {
        Arc::new(Beside {
            inner: Arc::clone(inner),
            callback: Mutex::new(Some((number, Box::new(callback)))),
        })
    }

    /// Whether it has called back.
    pub fn is_done(&self) -> bool {
        self.callback.lock().expect("no test panics with it").is_none()
    }

    fn called(&self) {
        let callback = {
            let mut waiting = self.callback.lock().expect("no test panics with it");
            match waiting.take() {
                Some((0, callback)) => Some(callback),
                Some((left, callback)) => {
                    *waiting = Some((left - 1, callback));
                    None
                }
                None => None,
            }
        };
        if let Some(callback) = callback {
            callback();
        }
    }
}

impl ObjectStore for Beside {
    fn location(&self) -> String {
        self.inner.location()
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
        self.inner.put_if_absent(name, content, limit)
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        self.called();
        self.inner.put(name, content, limit)
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        self.called();
        self.inner.list(prefix, from, limit)
    }

    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>> {
        self.called();
        self.inner.head(name, limit)
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        self.called();
        self.inner.delete(name, limit)
    }
}
