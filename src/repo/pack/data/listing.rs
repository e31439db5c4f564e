//! Lists objects completely, with retries, and the packs that exist.

use std::collections::HashMap;

use super::cache::Place;
use super::id::{PACKS, PackId};
use super::retry::{limit, retry};
use super::table::TRAILER;
use crate::model::stop::Stop;
use crate::repo::pack::objects::{ListedObject, ObjectError, ObjectErrorKind, ObjectResult, ObjectStore};
use crate::repo::pack_error::Result;

/// All objects whose names begin with `prefix`. Foreign names are skipped.
///
/// # Errors
/// The store fails, or its pages do not end.
pub(super) fn list(objects: &dyn ObjectStore, prefix: &str, stop: &Stop) -> ObjectResult<Vec<ListedObject>> {
    let mut all = Vec::new();
    each(objects, prefix, stop, &mut |object| all.push(object))?;
    Ok(all)
}

/// Visits all objects whose names begin with `prefix`.
///
/// # Errors
/// The errors of [`list`].
pub(super) fn each(
    objects: &dyn ObjectStore,
    prefix: &str,
    stop: &Stop,
    visit: &mut dyn FnMut(ListedObject),
) -> ObjectResult<()> {
    each_name(objects, prefix, stop, &mut |listed| {
        if let Listed::Object(object) = listed {
            visit(object);
        }
    })
}

/// An entry of a list.
pub(super) enum Listed {
    Object(ListedObject),
    /// A name that no version of vmsnap uses.
    Foreign(String),
}

/// Visits all objects whose names begin with `prefix`, also those with foreign names.
///
/// # Errors
/// The errors of [`list`].
pub(super) fn each_name(
    objects: &dyn ObjectStore,
    prefix: &str,
    stop: &Stop,
    visit: &mut dyn FnMut(Listed),
) -> ObjectResult<()> {
    let mut from: Option<String> = None;
    loop {
        let page = retry(stop, || objects.list(prefix, from.as_deref(), &limit(0, stop)))?;
        page.objects.into_iter().map(Listed::Object).for_each(&mut *visit);
        page.foreign
            .into_iter()
            .map(Listed::Foreign)
            .for_each(&mut *visit);
        match page.next {
            None => return Ok(()),
            // A server that repeats a page would keep this loop busy for ever.
            Some(next) if from.as_ref() >= Some(&next) => {
                let why = "the server repeats a page of the list".to_owned();
                let place = format!("{}/{prefix}", objects.location());
                return Err(ObjectError::new("list", place, ObjectErrorKind::Unexpected(why)));
            }
            next => from = next,
        }
    }
}

/// The packs that exist, with their sizes. About 40 bytes of memory for each.
#[derive(Default)]
pub(crate) struct PackList(HashMap<PackId, u64>);

impl PackList {
    /// Lists the packs.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn read(objects: &dyn ObjectStore, stop: &Stop) -> Result<PackList> {
        let mut packs = HashMap::new();
        each(objects, PACKS, stop, &mut |object| {
            packs.extend(PackId::of_name(&object.name).map(|id| (id, object.size)));
        })?;
        Ok(PackList(packs))
    }

    /// The fault of the pack of a block, if it has one.
    pub(super) fn fault(&self, place: &Place) -> Option<&'static str> {
        let needed = u64::from(place.offset) + u64::from(place.stored) + TRAILER as u64;
        match self.0.get(&place.pack) {
            None => Some("the pack is missing"),
            Some(size) if *size < needed => Some("the pack is too short"),
            Some(_) => None,
        }
    }

    /// Whether the list knows if this pack exists.
    pub(super) fn knows(&self, pack: PackId) -> bool {
        self.0.contains_key(&pack)
    }

    /// The packs and their sizes, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PackId, u64)> {
        self.0.iter().map(|(id, size)| (*id, *size))
    }

    /// The size of a pack in bytes; 0 if it does not exist.
    pub(super) fn size(&self, pack: PackId) -> u64 {
        self.0.get(&pack).copied().unwrap_or(0)
    }

    /// Records the size of a pack in bytes; 0 if it does not exist.
    pub(super) fn add(&mut self, pack: PackId, size: u64) {
        self.0.insert(pack, size);
    }
}
