//! What a collection did.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::plan::{Fate, PackUse};
use crate::repo::pack::data::id::PackId;

/// A number of packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// The number.
    pub packs: u64,
    /// The total size of their objects, in bytes.
    pub bytes: u64,
}

impl Amount {
    pub(in crate::repo::pack::data) fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// The events for which the deletion of condemned packs waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The end of the grace period, by the clock of the store.
    Until(Timestamp),
    /// The end of a session that began before they were condemned: its host and process.
    Session(String),
    /// The end of another collection, because of which this call did nothing: its host and process.
    Collector(String),
}

/// The result of a collection; of a dry run, the expected result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// All packs.
    pub all: Amount,
    /// The number of packs with needed blocks; the bytes are those of these blocks only.
    pub needed: Amount,
    /// The packs that this call condemns, including those that it rewrites.
    pub condemned: Amount,
    /// The number of packs whose needed blocks are stored again; the bytes are those of these
    /// blocks only.
    pub rewritten: Amount,
    /// Condemned packs that are deleted.
    pub deleted: Amount,
    /// Condemned packs that stay for now.
    pub kept: Amount,
    /// Packs of killed writers that are listed in the index now.
    pub adopted: Amount,
    /// Packs that were not rewritten because a block in them cannot be read.
    pub unreadable: Vec<String>,
    /// The events for which the deletion of condemned packs waits.
    pub waiting: Vec<Waiting>,
}

impl CollectReport {
    /// Counts packs by what happens to them.
    pub(super) fn count(&mut self, packs: &BTreeMap<PackId, PackUse>, fates: &BTreeMap<PackId, Fate>) {
        for (id, pack) in packs {
            self.all.add(pack.size);
            if pack.needed > 0 {
                self.needed.add(pack.needed);
            }
            match fates.get(id) {
                None | Some(Fate::Keep) => {}
                Some(Fate::Condemn) => self.condemned.add(pack.size),
                Some(Fate::Rewrite) => {
                    self.condemned.add(pack.size);
                    self.rewritten.add(pack.needed);
                }
                Some(Fate::Wait) => self.kept.add(pack.size),
                Some(Fate::Rescue) => {
                    self.kept.add(pack.size);
                    self.rewritten.add(pack.needed);
                }
                Some(Fate::Delete) => self.deleted.add(pack.size),
            }
        }
    }
}
