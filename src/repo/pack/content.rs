//! The restore points of one domain and the records about them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::error::Result;
use super::keys::MasterKey;
use super::names::{DomainNames, is_point, segment, stem};
use super::objects::{ListedObject, ObjectError, ObjectErrorKind};
use super::point::{self, PointRecord, Predecessor, Unreadable};
use super::records::{self, Kind, RecordName, Records};
use super::sealed::{ReadObject, SealedObjects};
use crate::model::restore_point::id_of;
use crate::model::stop::Stop;

/// How often records are listed, if some vanish while they are read.
const MOST_LISTS: usize = 20;

/// A restore point with the last segment of its object's name.
pub(super) struct StoredPoint {
    pub(super) name: String,
    /// When its object was written, by the clock of the store; `None` if the store does not report
    /// it.
    pub(super) written: Option<Timestamp>,
    pub(super) record: PointRecord,
}

/// The content of the repository for one domain.
pub(super) struct Content {
    /// The restore points, in the order of the names of their objects.
    pub(super) points: Vec<StoredPoint>,
    /// The restore points whose objects cannot be read, by name.
    pub(super) unreadable: BTreeMap<String, Unreadable>,
    /// The records.
    pub(super) records: Records,
}

impl Content {
    /// Reads the restore points and records of a domain.
    ///
    /// # Errors
    /// The store fails, or a list is not complete.
    pub(super) fn read(
        objects: &SealedObjects,
        key: &Arc<MasterKey>,
        names: &DomainNames,
        stop: &Stop,
    ) -> Result<Content> {
        let mut content = Content {
            points: Vec::new(),
            unreadable: BTreeMap::new(),
            records: Records::default(),
        };
        let is_ours = |object: &ListedObject| is_point(segment(&object.name));
        let points = listed(objects, &names.points(), is_ours, stop)?;
        for (object, text) in objects.read(points, point::LARGEST, stop)? {
            let name = segment(&object.name).to_owned();
            let parsed = text
                .map_err(Unreadable::damaged)
                .and_then(|text| PointRecord::parse(&text, key, names));
            match parsed {
                Ok(record) => content.points.push(StoredPoint {
                    name,
                    written: object.modified,
                    record,
                }),
                Err(why) => {
                    content.unreadable.insert(name, why);
                }
            }
        }
        // After the restore points, so that those which were removed since they were listed are
        // known to be removed.
        for (object, text) in read_records(objects, names, stop)? {
            if let Some(name) = RecordName::parse(segment(&object.name)) {
                let text = text.as_ref().map(|text| text.as_slice()).map_err(String::clone);
                content.records.take(name, text);
            }
        }
        content.records.settle();
        Ok(content)
    }

    /// Whether the repository holds nothing of the domain.
    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty() && self.unreadable.is_empty()
    }

    /// The restore point of this id.
    pub(super) fn point(&self, id: &str) -> Option<&StoredPoint> {
        self.points
            .iter()
            .find(|point| point.record.manifest.point.id == id)
    }

    /// The runs whose restore points are committed, including removed ones.
    pub(super) fn committed_runs(&self) -> BTreeSet<&str> {
        let kept = self.points.iter().map(|point| point.record.run.as_str());
        let removed = self.records.removals();
        kept.chain(removed.into_iter().map(|removal| removal.run.as_str()))
            .collect()
    }

    /// The predecessor of the next restore point: the one that was committed last, even if it was
    /// removed, is missing or cannot be read. Times and numbers do not matter, because copies of
    /// old restore points may be committed late.
    pub(super) fn last_committed(&self, names: &DomainNames) -> Option<Predecessor> {
        let mut known: BTreeMap<&str, (u64, Option<&str>)> = BTreeMap::new();
        // A missing restore point is known from the one after it.
        let previous = self
            .points
            .iter()
            .filter_map(|stored| stored.record.previous.as_ref());
        known.extend(previous.map(|previous| (previous.name.as_str(), (0, previous.id.as_deref()))));
        known.extend(self.unreadable.keys().map(|name| (name.as_str(), (0, None))));
        let removals = self.records.removals();
        let removed = removals.iter().map(|removal| {
            let number = (removal.sequence, Some(removal.id.as_str()));
            (removal.name.as_str(), number)
        });
        known.extend(removed);
        known.extend(self.points.iter().map(|stored| {
            let point = &stored.record.manifest.point;
            (stored.name.as_str(), (point.sequence, Some(point.id.as_str())))
        }));
        let stems: BTreeSet<&str> = known.keys().map(|name| stem(name)).collect();
        let is_last = |name: &str| !stems.contains(names.stem_after(Some(name)).as_str());
        let last = known.iter().filter(|(name, _)| is_last(name));
        // There are several only after damage.
        let last = last.max_by_key(|(name, (sequence, _))| (*sequence, **name))?;
        Some(Predecessor {
            name: (*last.0).to_owned(),
            id: last.1.1.map(str::to_owned),
        })
    }

    /// Whether a verification found damage in a restore point that no longer exists. Others may
    /// still use its blocks.
    pub(super) fn has_damage_of_removed(&self, names: &DomainNames) -> bool {
        let points = self.points.iter();
        let tags: BTreeSet<String> = points
            .map(|stored| names.tag(&stored.record.manifest.point.id))
            .collect();
        let mut damage = self.records.names(&[Kind::Damaged]).into_iter();
        damage.any(|name| !tags.contains(&name.tag))
    }

    /// Whether a restore point has this id, even one that cannot be read. A missing one does not
    /// count.
    pub(super) fn has_id(&self, id: &str) -> bool {
        let previous = self
            .points
            .iter()
            .filter_map(|stored| stored.record.previous.as_ref());
        let is_unreadable = |name: &str| self.unreadable.contains_key(name);
        let mut unreadable = previous.filter(|previous| is_unreadable(&previous.name));
        self.point(id).is_some() || unreadable.any(|previous| previous.id.as_deref() == Some(id))
    }

    /// An id for this time that no restore point has or had, and no unfinished run in `pending`
    /// uses.
    pub(super) fn free_id(&self, time: jiff::Timestamp, pending: &[String]) -> String {
        let removals = self.records.removals();
        let removed = removals.iter().map(|removal| removal.id.as_str());
        let kept = self
            .points
            .iter()
            .map(|stored| stored.record.manifest.point.id.as_str());
        let previous = self
            .points
            .iter()
            .filter_map(|stored| stored.record.previous.as_ref()?.id.as_deref());
        let taken: BTreeSet<&str> = kept
            .chain(removed)
            .chain(previous)
            .chain(pending.iter().map(String::as_str))
            .collect();
        let stem = id_of(time);
        let numbered = (2u32..).map(|count| format!("{stem}-{count}"));
        let mut candidates = std::iter::once(stem.clone()).chain(numbered);
        // There are more numbers than restore points.
        candidates.find(|id| !taken.contains(id.as_str())).unwrap_or(stem)
    }
}

/// Reads all records. A record that vanishes while the others are read was replaced by one that the
/// list did not have yet, so they are listed again.
fn read_records(objects: &SealedObjects, names: &DomainNames, stop: &Stop) -> Result<Vec<ReadObject>> {
    let is_ours = |object: &ListedObject| RecordName::parse(segment(&object.name)).is_some();
    for _ in 0..MOST_LISTS {
        let found = listed(objects, &names.records(), is_ours, stop)?;
        let count = found.len();
        let read = objects.read(found, records::LARGEST, stop)?;
        if read.len() == count {
            return Ok(read);
        }
    }
    let why = "records were replaced each time they were read";
    let kind = ObjectErrorKind::Unexpected(why.to_owned());
    Err(ObjectError::new("read", names.records(), kind).into())
}

/// Lists the objects below a prefix that have names of ours, and forgets the others.
fn listed(
    objects: &SealedObjects,
    prefix: &str,
    is_ours: impl Fn(&ListedObject) -> bool,
    stop: &Stop,
) -> Result<Vec<ListedObject>> {
    let mut listed = objects.list(prefix, stop)?;
    listed.retain(|object| is_ours(object));
    objects.forget_others(prefix, &listed);
    Ok(listed)
}
