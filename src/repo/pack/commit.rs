//! Creates the object of a restore point. That is the commit: of several runs that follow the same
//! restore point, one wins.

use super::error::{PackError, Result};
use super::objects::{ListedObject, ObjectName, ObjectStore, PutResult, list_all, small};
use crate::model::stop::Stop;

/// The most restore points that can have the same predecessor.
const MOST_RIVALS: usize = 1000;

/// The result of an attempt to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Committed {
    /// The restore point exists.
    Ours,
    /// Another run committed first. The restore point of this run does not exist.
    Other,
}

/// Creates the object in a store that honours conditional puts.
///
/// # Errors
/// The store fails. The object may exist nevertheless.
pub(super) fn create(
    store: &dyn ObjectStore,
    name: &ObjectName,
    content: &[u8],
    stop: &Stop,
) -> Result<Committed> {
    let put = store.put_if_absent(name, content, &small(stop));
    if put.as_ref().is_ok_and(|put| *put == PutResult::Created) {
        return Ok(Committed::Ours);
    }
    // A put that failed may have taken effect, and one that found an object may have found its own.
    // This is settled even after a stop.
    let settling = Stop::default();
    match store.get(name, content.len() as u64, &small(&settling)) {
        Ok(found) if found == content => match put {
            Ok(_) => Ok(Committed::Ours),
            // It may be visible but not durable yet: the store has to confirm it.
            Err(_) => match store.put_if_absent(name, content, &small(&settling)) {
                Ok(_) => Ok(Committed::Ours),
                Err(error) => Err(error.into()),
            },
        },
        Ok(_) => Ok(Committed::Other),
        Err(error) if error.is_too_large() => Ok(Committed::Other),
        Err(error) => Err(put.err().unwrap_or(error).into()),
    }
}

/// Creates the object in a store that ignores the condition of conditional puts. The name has a
/// random suffix after `stem`, so no object is replaced. Of several runs that see each other's
/// objects, the run with the lowest name wins.
///
/// # Errors
/// The store fails. The object may exist nevertheless.
pub(super) fn create_beside(
    store: &dyn ObjectStore,
    stem: &str,
    name: &ObjectName,
    content: &[u8],
    stop: &Stop,
) -> Result<Committed> {
    if !rivals(store, stem, name, stop)?.is_empty() {
        return Ok(Committed::Other);
    }
    if let Err(error) = store.put(name, content, &small(stop)) {
        let settling = Stop::default();
        match store.get(name, content.len() as u64, &small(&settling)) {
            Ok(found) if found == content => store
                .put(name, content, &small(&settling))
                .map_err(PackError::from)?,
            _ => return Err(error.into()),
        }
    }
    let settling = Stop::default();
    let rivals = rivals(store, stem, name, &settling)?;
    if rivals.iter().all(|rival| rival.name > *name) {
        return Ok(Committed::Ours);
    }
    store.delete(name, &small(&settling))?;
    Ok(Committed::Other)
}

/// The other restore points with the same predecessor.
fn rivals(store: &dyn ObjectStore, stem: &str, own: &ObjectName, stop: &Stop) -> Result<Vec<ListedObject>> {
    let folder = stem.rsplit_once('/').map_or("", |(folder, _)| folder);
    let all = list_all(store, &format!("{folder}/"), usize::MAX, &small(stop))?;
    let is_rival = |object: &ListedObject| object.name != *own && object.name.as_str().starts_with(stem);
    let mut rivals: Vec<ListedObject> = all.objects.into_iter().filter(is_rival).collect();
    rivals.truncate(MOST_RIVALS);
    Ok(rivals)
}
