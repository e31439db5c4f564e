//! What a check of the repository found.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::model::finding::Finding;
use crate::repo::pack::data::collect::Amount;

const MISSING: &str = "pack-missing";
const DAMAGED: &str = "pack-damaged";
const INDEX: &str = "index-damaged";
const CONDEMNED: &str = "condemned-damaged";
const NOWHERE: &str = "blocks-missing";
const OTHERS: &str = "more-damage";

/// The most objects whose faults are reported one by one.
const MOST: usize = 1000;

/// The name under which everything else is reported.
const MORE: &str = "more objects";

/// The name that stands for blocks without a pack.
const BLOCKS: &str = "blocks";

/// A fault of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    code: &'static str,
    why: String,
}

impl Fault {
    pub(super) fn missing() -> Fault {
        Fault {
            code: MISSING,
            why: "it is missing".to_owned(),
        }
    }

    pub(super) fn damaged(why: impl Into<String>) -> Fault {
        Fault {
            code: DAMAGED,
            why: why.into(),
        }
    }

    pub(super) fn index(why: String) -> Fault {
        Fault { code: INDEX, why }
    }

    pub(super) fn condemned(why: String) -> Fault {
        Fault { code: CONDEMNED, why }
    }
}

/// Faults of objects, each with a number.
#[derive(Debug, Default)]
pub(super) struct Faults {
    numbers: BTreeMap<String, u16>,
    all: Vec<(String, Fault)>,
}

/// The order in which faults were found does not matter.
impl PartialEq for Faults {
    fn eq(&self, other: &Faults) -> bool {
        self.numbers.keys().eq(other.numbers.keys())
    }
}

impl Faults {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds a fault unless the object has one, and returns its number.
    pub(super) fn add(&mut self, object: String, fault: Fault) -> u16 {
        if let Some(number) = self.numbers.get(&object) {
            return *number;
        }
        let (object, fault) = match self.all.len() {
            0..MOST => (object, fault),
            _ => {
                let why = format!("more than {MOST} objects have faults");
                (MORE.to_owned(), Fault { code: OTHERS, why })
            }
        };
        if let Some(number) = self.numbers.get(&object) {
            return *number;
        }
        let number = self.all.len() as u16;
        self.numbers.insert(object.clone(), number);
        self.all.push((object, fault));
        number
    }

    /// Adds a block that no pack contains. All such blocks share one number.
    pub(super) fn add_block(&mut self, block: &str) -> u16 {
        let fault = Fault {
            code: NOWHERE,
            why: format!("some are in no pack, such as {block}"),
        };
        self.add(BLOCKS.to_owned(), fault)
    }

    /// The object with this number.
    pub(super) fn object(&self, number: u16) -> &str {
        self.all
            .get(usize::from(number))
            .map_or(MORE, |(object, _)| object)
    }

    pub(super) fn into_all(self) -> Vec<(String, Fault)> {
        self.all
    }
}

/// Damage in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The name of the damaged object, if the damage concerns one object.
    pub object: Option<String>,
    /// A finding that describes the damage.
    pub finding: Finding,
    /// The restore points that cannot be read completely because of the damage.
    pub costs: Vec<Cost>,
}

impl Damage {
    pub(super) fn new(object: String, fault: Fault, costs: Vec<Cost>) -> Damage {
        let what = format!("{object}: {}", fault.why);
        let is_one = ![MORE, BLOCKS].contains(&object.as_str());
        Damage {
            object: is_one.then_some(object),
            finding: Finding::new(fault.code, what),
            costs,
        }
    }
}

/// The disks and files of one restore point that cannot be read because of damage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// The domain.
    pub domain: String,
    /// The id of the restore point.
    pub id: String,
    /// The targets of the disks that cannot be read completely.
    pub disks: BTreeSet<String>,
    /// The names of the small files that cannot be read.
    pub files: BTreeSet<String>,
}

/// A session: a run that is at work, or was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionNote {
    /// Its host and process.
    pub host: String,
    /// What it does: `write`, `collect` or `rebuild-index`.
    pub kind: &'static str,
    /// When it began, by the clock of the store, if that is known.
    pub began: Option<Timestamp>,
    /// When it was renewed last, by the clock of the store.
    pub renewed: Timestamp,
}

/// Packs that a collection will delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CondemnedNote {
    /// The condemned packs that exist.
    pub packs: Amount,
    /// The number of records that name them.
    pub records: u64,
    /// When the oldest record was written, by the clock of the store.
    pub oldest: Option<Timestamp>,
}

/// The result of a check of a repository as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepositoryCheck {
    /// Whether every pack was read.
    pub deep: bool,
    /// The number of domains with restore points.
    pub domains: u64,
    /// The number of restore points that can be read.
    pub points: u64,
    /// The number of index objects.
    pub index_objects: u64,
    /// The packs in the store.
    pub packs: Amount,
    /// The packs that no index object lists.
    pub unlisted: Amount,
    /// The packs that a collection will delete.
    pub condemned: CondemnedNote,
    /// The sessions.
    pub sessions: Vec<SessionNote>,
    /// The damage that was found.
    pub damage: Vec<Damage>,
    /// Findings that are worth reporting, but are not damage.
    pub notes: Vec<Finding>,
}
