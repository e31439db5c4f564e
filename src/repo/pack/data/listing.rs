//! Lists objects, and the packs that exist.

use std::collections::HashMap;

use super::cache::Place;
use super::id::{PACKS, PackId};
use super::retry::{limit, retry};
use super::table::TRAILER;
use crate::model::stop::Stop;
use crate::repo::pack::objects::{ListedObject, ObjectError, ObjectErrorKind, ObjectStore};
use crate::repo::pack_error::Result;

/// Passes on all objects whose names begin with a prefix.
///
/// # Errors
/// The store fails, or repeats a page of the list.
pub(super) fn for_each(
    objects: &dyn ObjectStore,
    prefix: &str,
    stop: &Stop,
    mut take: impl FnMut(ListedObject),
) -> Result<()> {
    let mut from: Option<String> = None;
    loop {
        let page = retry(stop, || objects.list(prefix, from.as_deref(), &limit(0, stop)))?;
        page.objects.into_iter().for_each(&mut take);
        match page.next {
            None => return Ok(()),
            // A server that repeats a page would keep this loop busy for ever.
            Some(next) if from.as_ref() >= Some(&next) => {
                let why = "the server repeats a page of the list".to_owned();
                let kind = ObjectErrorKind::Unexpected(why);
                return Err(ObjectError::new("list", objects.location(), kind).into());
            }
            next => from = next,
        }
    }
}

/// The packs that exist, with their sizes. About 40 bytes of memory for each.
pub(crate) struct PackList(HashMap<PackId, u64>);

impl PackList {
    /// Lists the packs.
    ///
    /// # Errors
    /// The store fails.
    pub(super) fn read(objects: &dyn ObjectStore, stop: &Stop) -> Result<PackList> {
        let mut packs = HashMap::new();
        for_each(objects, PACKS, stop, |object| {
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

    /// Whether it is known if this pack exists.
    pub(super) fn knows(&self, pack: PackId) -> bool {
        self.0.contains_key(&pack)
    }

    /// The size of a pack in bytes; 0 if it does not exist.
    pub(super) fn size(&self, pack: PackId) -> u64 {
        self.0.get(&pack).copied().unwrap_or(0)
    }

    /// Adds what is known about a pack: its size, or 0 if it does not exist.
    pub(super) fn add(&mut self, pack: PackId, size: u64) {
        self.0.insert(pack, size);
    }
}
