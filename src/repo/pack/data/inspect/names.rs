//! Lists all objects, and sorts them by what their names stand for.

use super::super::condemned::CONDEMNED;
use super::super::id::{INDEX, PACKS, PackId};
use super::super::listing::{Listed, PackList, each_name};
use super::super::session::{SESSIONS, digits_of};
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::repo::pack::description;
use crate::repo::pack::keys::SLOTS;
use crate::repo::pack::names::{POINTS, RECORDS, is_hash, is_hex, is_point};
use crate::repo::pack::objects::{ListedObject, ObjectError, ObjectErrorKind, ObjectStore};
use crate::repo::pack::probe::PROBES;
use crate::repo::pack::records::RecordName;
use crate::repo::pack_error::Result;

/// The number of foreign names that are kept.
const MOST_FOREIGN: usize = 20;

/// The number of foreign names in a message.
const SHOWN: usize = 5;

/// The objects of a repository.
#[derive(Default)]
pub(super) struct Names {
    pub(super) packs: PackList,
    pub(super) index: Vec<ListedObject>,
    pub(super) sessions: Vec<ListedObject>,
    pub(super) condemned: Vec<ListedObject>,
    foreign: Vec<String>,
    foreign_count: u64,
    has_description: bool,
}

/// What a name stands for.
enum Meaning {
    Description,
    Pack(PackId),
    Index,
    Session,
    Condemned,
    /// An object that others check.
    Other,
    Foreign,
}

impl Names {
    /// Lists everything.
    ///
    /// # Errors
    /// The store fails, or its list is incomplete: the object that describes the repository is
    /// missing in it.
    pub(super) fn read(objects: &dyn ObjectStore, stop: &Stop) -> Result<Names> {
        let mut names = Names::default();
        each_name(objects, "", stop, &mut |listed| match listed {
            Listed::Object(object) => names.take(object),
            Listed::Foreign(name) => names.take_foreign(name),
        })?;
        match names.has_description {
            true => Ok(names),
            false => {
                let why = format!("the list lacks {}, which exists", description::NAME);
                let kind = ObjectErrorKind::Unexpected(why);
                Err(ObjectError::new("list", objects.location(), kind).into())
            }
        }
    }

    fn take(&mut self, object: ListedObject) {
        match meaning(&object) {
            Meaning::Description => self.has_description = true,
            Meaning::Pack(id) => self.packs.add(id, object.size),
            Meaning::Index => self.index.push(object),
            Meaning::Session => self.sessions.push(object),
            Meaning::Condemned => self.condemned.push(object),
            Meaning::Other => {}
            Meaning::Foreign => self.take_foreign(object.name.to_string()),
        }
    }

    fn take_foreign(&mut self, name: String) {
        self.foreign_count += 1;
        if self.foreign.len() < MOST_FOREIGN {
            self.foreign.push(name);
        }
    }

    /// The finding about foreign names, if there are some.
    pub(super) fn foreign_note(&self) -> Option<Finding> {
        if self.foreign.is_empty() {
            return None;
        }
        let shown = &self.foreign[..self.foreign.len().min(SHOWN)];
        let more = if self.foreign_count > shown.len() as u64 {
            ", …"
        } else {
            ""
        };
        let mut what = format!(
            "objects that are not vmsnap's: {} ({}{more})",
            self.foreign_count,
            shown.join(", ")
        );
        if self.foreign.iter().any(|name| name.starts_with(POINTS)) {
            what += "; no data is collected while such an object is below points/";
        }
        Some(Finding::new("objects-foreign", what))
    }
}

fn meaning(object: &ListedObject) -> Meaning {
    let name = object.name.as_str();
    if name == description::NAME {
        return Meaning::Description;
    }
    let after = |prefix: &str| name.strip_prefix(prefix);
    let of = |is_ours: bool, meaning: Meaning| if is_ours { meaning } else { Meaning::Foreign };
    if after(PACKS).is_some() {
        return PackId::of_name(&object.name).map_or(Meaning::Foreign, Meaning::Pack);
    }
    // Everybody reads each object below these two, whatever its name.
    if after(INDEX).is_some() {
        return Meaning::Index;
    }
    if after(CONDEMNED).is_some() {
        return Meaning::Condemned;
    }
    if let Some(rest) = after(SESSIONS) {
        return of(is_session(rest), Meaning::Session);
    }
    if let Some(rest) = after(SLOTS) {
        let id = rest.strip_suffix(".age").or_else(|| rest.strip_suffix(".json"));
        return of(id.is_some_and(|id| is_hex(id, 16)), Meaning::Other);
    }
    if let Some(rest) = after(POINTS) {
        let parts = rest.split_once('/');
        return of(
            parts.is_some_and(|(hash, name)| is_hash(hash) && is_point(name)),
            Meaning::Other,
        );
    }
    if let Some(rest) = after(RECORDS) {
        let parts = rest.split_once('/');
        let is_ours = |(hash, name): (&str, &str)| is_hash(hash) && RecordName::parse(name).is_some();
        return of(parts.is_some_and(is_ours), Meaning::Other);
    }
    of(after(PROBES).is_some(), Meaning::Other)
}

fn is_session(name: &str) -> bool {
    let (id, number) = match name.split_once('-') {
        Some((id, number)) => (id, Some(number)),
        None => (name, None),
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_hex(digits_of(id), 32) && number.is_none_or(is_number)
}
