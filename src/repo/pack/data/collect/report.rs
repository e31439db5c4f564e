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
    /// The sizes of their objects together, in bytes.
    pub bytes: u64,
}

impl Amount {
    pub(in crate::repo::pack::data) fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// What the deletion of condemned packs waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The end of the grace period, by the clock of the store.
    Until(Timestamp),
    /// A session that began before: its host and process.
    Session(String),
    /// Another collection, for which the whole call waits: its host and process.
    Collector(String),
}

/// What a call did, or in a dry run what it would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// All packs.
    pub all: Amount,
    /// Packs with needed blocks, and only the bytes of these blocks.
    pub needed: Amount,
    /// Packs that this call condemns, with those that are rewritten.
    pub condemned: Amount,
    /// Packs whose needed blocks are stored again, and only the bytes of these blocks.
    pub rewritten: Amount,
    /// Condemned packs that are deleted.
    pub deleted: Amount,
    /// Condemned packs that stay for now.
    pub kept: Amount,
    /// Packs of killed writers that are listed in the index now.
    pub adopted: Amount,
    /// Packs that were not rewritten because a block in them cannot be read.
    pub unreadable: Vec<String>,
    /// What the deletion of condemned packs waits for.
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
