//! Finds out whether an object store honours the condition that an object does not exist yet.
//!
//! Some S3 servers ignore the condition, and some honour it only if the puts do not come at the
//! same time. So several threads put different contents under one name, and one more put follows.

use std::thread;

use uuid::Uuid;

use super::description::ConditionalPuts;
use super::objects::{ObjectErrorKind, ObjectName, ObjectResult, ObjectStore, PutResult, small};
use crate::model::stop::Stop;

/// The prefix of the names of a probe's objects.
pub(super) const PROBES: &str = "probe/";

/// The number of puts at the same time.
const AT_ONCE: usize = 8;

/// The number of objects that are tried.
const ROUNDS: usize = 3;

/// The result of a probe.
pub(super) struct Probed {
    pub(super) puts: ConditionalPuts,
    /// The objects that could not be deleted, because this user may not delete.
    pub(super) left: Vec<String>,
}

/// Finds out whether the store honours conditional puts.
///
/// # Errors
/// The store fails, so the result is unknown.
pub(super) fn probe(store: &dyn ObjectStore, stop: &Stop) -> ObjectResult<Probed> {
    let mut probed = Probed {
        puts: ConditionalPuts::Honoured,
        left: Vec::new(),
    };
    for _ in 0..ROUNDS {
        let text = format!("{PROBES}{}", Uuid::new_v4().simple());
        let Some(name) = ObjectName::new(&text) else {
            continue;
        };
        let honoured = round(store, &name, stop);
        if store.delete(&name, &small(stop)).is_err() {
            probed.left.push(text);
        }
        if !honoured? {
            probed.puts = ConditionalPuts::Ignored;
            break;
        }
    }
    Ok(probed)
}

/// Whether exactly one put created the object, and it has that put's content.
fn round(store: &dyn ObjectStore, name: &ObjectName, stop: &Stop) -> ObjectResult<bool> {
    let content = |number: usize| format!("probe {number}\n").into_bytes();
    let put = |number: usize| store.put_if_absent(name, &content(number), &small(stop));
    let results: Vec<_> = thread::scope(|scope| {
        let put = &put;
        let threads: Vec<_> = (0..AT_ONCE)
            .map(|number| scope.spawn(move || put(number)))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let mut created = Vec::new();
    for (number, result) in results.into_iter().enumerate() {
        match result {
            Ok(PutResult::Created) => created.push(number),
            Ok(PutResult::Existed) => {}
            Err(error) if error.kind == ObjectErrorKind::Unsupported => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    let later = put(AT_ONCE)?;
    let found = store.get(name, 64, &small(stop))?;
    // The answer of the put that created it may have been lost: then none reports it.
    let is_of_winner = match created.as_slice() {
        [] => (0..AT_ONCE).any(|number| content(number) == found),
        [winner] => content(*winner) == found,
        _ => false,
    };
    Ok(later == PutResult::Existed && is_of_winner)
}
