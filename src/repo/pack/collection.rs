//! What the restore points of all domains need, so that a collection deletes nothing of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;

use super::data::{Needed, Subject};
use super::error::{PackError, Result};
use super::keys::MasterKey;
use super::names::{DomainNames, POINTS, is_hash, is_point};
use super::objects::{ListedObject, ObjectStore, list_all, small};
use super::point::{self, PointRecord, Unreadable};
use super::sealed::{MOST_OBJECTS, SealedObjects};
use crate::model::stop::Stop;

/// The number of restore points that are read at a time.
const AT_A_TIME: usize = 64;

/// How to collect data that no restore point needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// The grace period: how long a pack stays after it was condemned, and how old it must be
    /// before it is condemned.
    pub grace: SignedDuration,
    /// Whether to change nothing, and only find out what would be done.
    pub dry_run: bool,
}

impl Collection {
    /// The usual grace period.
    pub const GRACE: SignedDuration = SignedDuration::from_hours(24);
}

/// The restore points of all domains.
pub(super) struct AllPoints<'a> {
    pub(super) objects: &'a dyn ObjectStore,
    pub(super) sealed: &'a SealedObjects,
    pub(super) key: &'a Arc<MasterKey>,
}

impl AllPoints<'_> {
    /// The data that they need. A restore point that cannot be read may need any data, so it is an
    /// error.
    ///
    /// # Errors
    /// The list is not complete, an object is not a restore point or cannot be read, or the store
    /// fails.
    pub(super) fn needed(&self, stop: &Stop) -> Result<Vec<Needed>> {
        let mut all = Vec::new();
        for (hash, points) in self.by_domain(stop)? {
            let names = DomainNames::of_hash(self.key, &hash);
            for some in points.chunks(AT_A_TIME) {
                for (object, text) in self.sealed.read(some.to_vec(), point::LARGEST, stop)? {
                    let parsed = text
                        .map_err(Unreadable::damaged)
                        .and_then(|text| PointRecord::parse(&text, self.key, &names));
                    let record = parsed.map_err(|why| self.forbidden(object.name.as_str(), &why.why))?;
                    let needed = record.needed();
                    all.push(
                        needed.ok_or_else(|| self.forbidden(object.name.as_str(), "its map is unknown"))?,
                    );
                }
                self.sealed.forget_others(&names.points(), &[]);
            }
        }
        Ok(all)
    }

    /// The data that the readable restore points need, with the names of their parts.
    ///
    /// # Errors
    /// The list is not complete, or the store fails.
    pub(super) fn readable(&self, stop: &Stop) -> Result<Vec<Subject>> {
        let listed = list_all(self.objects, POINTS, MOST_OBJECTS, &small(stop))?;
        let mut domains: BTreeMap<String, Vec<ListedObject>> = BTreeMap::new();
        for object in listed.objects {
            if let Some(hash) = domain_of(&object) {
                domains.entry(hash.to_owned()).or_default().push(object);
            }
        }
        let mut all = Vec::new();
        for (hash, points) in domains {
            let names = DomainNames::of_hash(self.key, &hash);
            for some in points.chunks(AT_A_TIME) {
                for (_, text) in self.sealed.read(some.to_vec(), point::LARGEST, stop)? {
                    let record = text.ok().map(|text| PointRecord::parse(&text, self.key, &names));
                    all.extend(record.and_then(|record| record.ok()?.subject()));
                }
            }
            self.sealed.forget_others(&names.points(), &[]);
        }
        Ok(all)
    }

    /// The objects of restore points, by the part of their names that stands for the domain.
    fn by_domain(&self, stop: &Stop) -> Result<BTreeMap<String, Vec<ListedObject>>> {
        let listed = list_all(self.objects, POINTS, MOST_OBJECTS, &small(stop))?;
        let unknown = "it is not the name of a restore point";
        if let Some(name) = listed.foreign.first() {
            return Err(self.forbidden(name, unknown));
        }
        let mut domains: BTreeMap<String, Vec<ListedObject>> = BTreeMap::new();
        for object in listed.objects {
            match domain_of(&object) {
                Some(hash) => domains.entry(hash.to_owned()).or_default().push(object),
                None => return Err(self.forbidden(object.name.as_str(), unknown)),
            }
        }
        Ok(domains)
    }

    /// The error that nothing is collected because of this object.
    fn forbidden(&self, object: &str, why: &str) -> PackError {
        PackError::Uncollectable {
            location: self.objects.location(),
            object: object.to_owned(),
            why: why.to_owned(),
        }
    }
}

/// The part of the name of a restore point's object that stands for the domain; `None` for other
/// names.
fn domain_of(object: &ListedObject) -> Option<&str> {
    let mut parts = object.name.as_str().strip_prefix(POINTS)?.split('/');
    let (hash, name) = (parts.next()?, parts.next()?);
    (is_hash(hash) && is_point(name) && parts.next().is_none()).then_some(hash)
}
