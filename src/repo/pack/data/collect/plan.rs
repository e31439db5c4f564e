//! Decides what happens to each pack.

use std::collections::HashSet;

use jiff::Timestamp;

use crate::repo::pack::data::id::PackId;
use crate::repo::pack::data::session::MARGIN;

/// A pack, and how much of it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackUse {
    pub(super) id: PackId,
    /// The size of its object in bytes.
    pub(super) size: u64,
    /// The bytes of its blocks.
    pub(super) blocks: u64,
    /// The bytes of its needed blocks.
    pub(super) needed: u64,
    /// When it was written; `None` if it is missing.
    pub(super) time: Option<Timestamp>,
    pub(super) is_condemned: bool,
}

/// The decision about a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays.
    Keep,
    /// It is condemned.
    Condemn,
    /// Its needed blocks are stored again, then it is condemned.
    Rewrite,
    /// It is condemned already, and stays for now.
    Wait,
    /// It is condemned already, but needed: its needed blocks are stored again.
    Rescue,
    /// It is deleted.
    Delete,
}

/// The facts, besides the pack, on which its fate depends.
#[derive(Debug)]
pub(super) struct Facts {
    /// Packs that were written before this time are old enough to be condemned.
    pub(super) old: Timestamp,
    /// The beginning of the oldest live session.
    pub(super) oldest_session: Option<Timestamp>,
    /// Condemned packs that may be deleted.
    pub(super) due: HashSet<PackId>,
    pub(super) rewrite_percent: u8,
}

impl Facts {
    /// Whether a pack of this age may belong to a restore point that is not committed yet.
    pub(super) fn is_young(&self, time: Timestamp) -> bool {
        let of_session = |began: Timestamp| began.duration_since(time) <= MARGIN;
        time >= self.old || self.oldest_session.is_some_and(of_session)
    }
}

impl PackUse {
    /// Decides what happens to the pack.
    pub(super) fn fate(&self, facts: &Facts) -> Fate {
        let is_young = self.time.is_some_and(|time| facts.is_young(time));
        let percent = u64::from(facts.rewrite_percent);
        match (self.is_condemned, self.needed) {
            (true, 0) if facts.due.contains(&self.id) => Fate::Delete,
            (true, 0) => Fate::Wait,
            (true, _) => Fate::Rescue,
            (false, _) if is_young => Fate::Keep,
            (false, 0) => Fate::Condemn,
            (false, needed) if needed * 100 < self.blocks * percent => Fate::Rewrite,
            (false, _) => Fate::Keep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(hours: i64) -> Timestamp {
        Timestamp::from_second(hours * 3600).expect("a time")
    }

    fn pack(needed: u64, hours: i64, is_condemned: bool) -> PackUse {
        PackUse {
            id: PackId::from_bytes([1; 16]),
            size: 120,
            blocks: 100,
            needed,
            time: Some(time(hours)),
            is_condemned,
        }
    }

    #[test]
    fn fate_depends_on_need_age_and_record() {
        let mut facts = Facts {
            old: time(100),
            oldest_session: None,
            due: HashSet::new(),
            rewrite_percent: 50,
        };
        let fates = |facts: &Facts, hours, is_condemned| {
            [0, 49, 50, 100].map(|needed| pack(needed, hours, is_condemned).fate(facts))
        };
        use Fate::*;
        assert_eq!(fates(&facts, 99, false), [Condemn, Rewrite, Keep, Keep]);
        assert_eq!(
            fates(&facts, 100, false),
            [Keep; 4],
            "younger than the grace period"
        );
        assert_eq!(fates(&facts, 99, true), [Wait, Rescue, Rescue, Rescue]);
        facts.due.insert(PackId::from_bytes([1; 16]));
        assert_eq!(fates(&facts, 99, true), [Delete, Rescue, Rescue, Rescue]);
        facts.oldest_session = Some(time(98));
        assert_eq!(fates(&facts, 97, false), [Keep; 4], "it may be of the session");
        assert_eq!(fates(&facts, 96, false), [Condemn, Rewrite, Keep, Keep]);
    }
}
