//! One verification on its way: restore point after restore point, those that others stand upon first.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::point::Prover;
use super::{Damage, Options, Outcome, ProvedPoint, ids, with_parents};
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::text::with_sources;
use crate::ops::monitor::{Event, Monitor};
use crate::ops::{Error, Result};
use crate::repo::{DamageNote, DomainRepository, History, Kept, Proof};

/// A verification on its way.
pub(super) struct Verification<'a> {
    pub(super) domain: &'a str,
    pub(super) repository: &'a dyn DomainRepository,
    pub(super) history: &'a History,
    pub(super) options: &'a Options,
    pub(super) monitor: &'a dyn Monitor,
    /// The ids of the restore points that are meant.
    pub(super) chosen: Vec<String>,
    /// The same with all that they stand upon.
    pub(super) needed: BTreeSet<String>,
    /// The disks that were found damaged, each with its restore point's id.
    pub(super) damaged: BTreeSet<(String, String)>,
    /// The ids of those that could not be read, and of all that stand upon them.
    pub(super) unread: BTreeSet<String>,
    pub(super) prover: Prover<'a>,
    pub(super) outcome: Outcome,
}

impl Verification<'_> {
    pub(super) fn run(mut self) -> Result<Outcome> {
        let history = self.history;
        // Parents come before what stands upon them.
        for id in ids(history)
            .filter(|id| self.needed.contains(*id))
            .collect::<Vec<_>>()
        {
            let Some(kept) = history.get(id) else { continue };
            if self.stands_upon_unread(kept) {
                continue;
            }
            match self.prove(kept) {
                Ok(()) => {}
                // What does not stand upon it can be read all the same.
                Err(error) if error.cause.is_no_verdict() => self.pass_over(kept, error),
                Err(error) => {
                    self.outcome.ended = Some(error);
                    break;
                }
            }
        }
        if self.outcome.points.is_empty()
            && self.outcome.is_sound()
            && let Some(error) = self.outcome.ended
        {
            return Err(error);
        }
        // Of what has gone nothing needs to be known; that it is still known does no harm.
        let _ = self.repository.forget_removed();
        self.outcome.bytes = self.prover.bytes();
        Ok(self.outcome)
    }

    /// Whether nothing can be said of a restore point because of what it stands upon.
    fn stands_upon_unread(&mut self, kept: &Kept) -> bool {
        let point = &kept.manifest.point;
        let mut parents = point.disks.iter().filter_map(|disk| disk.parent.as_ref());
        let Some(parent) = parents.find(|parent| self.unread.contains(*parent)) else {
            return false;
        };
        let what = format!(
            "restore point {} was not verified: it stands upon {parent}, which could not be read",
            point.id
        );
        self.unread.insert(point.id.clone());
        self.report(Finding::new("not-verified", what));
        true
    }

    /// Goes on behind a restore point that could not be read. The first such error ends the program's work as one; all are told.
    fn pass_over(&mut self, kept: &Kept, error: Error) {
        let id = &kept.manifest.point.id;
        self.unread.insert(id.clone());
        if self.outcome.ended.is_none() {
            self.outcome.ended = Some(error);
            return;
        }
        let what = format!("restore point {id} was not verified: {}", with_sources(&error));
        self.report(Finding::new("not-verified", what));
    }

    /// Proves one restore point and remembers what was found, also when an error ends it.
    fn prove(&mut self, kept: &Kept) -> Result<()> {
        let id = &kept.manifest.point.id;
        let deep = self.is_deep(kept);
        let inherited = inherited(&kept.manifest.point, &self.damaged);
        if let Some(time) = self.proved_enough(kept)
            && inherited.is_empty()
        {
            self.outcome.points.push(ProvedPoint {
                id: id.clone(),
                skipped: Some(time),
                damage: Vec::new(),
            });
            return Ok(());
        }
        let mut damage = inherited;
        let proved = self.prover.prove(kept, deep, &mut damage);
        if self.is_pruned(kept)? {
            let what = format!("restore point {id} was removed while it was being verified");
            self.report(Finding::new("removed-meanwhile", what));
            return proved;
        }
        let proved = match proved {
            Ok(()) if deep && !damage.is_empty() => self.look_beneath(kept, &mut damage),
            proved => proved,
        };
        self.book(kept, deep, damage, proved.is_ok());
        proved
    }

    /// Whether its disks are to be read as well. What was found damaged that way may lie in what it stands upon, and only the same can tell
    /// whether it still is.
    fn is_deep(&self, kept: &Kept) -> bool {
        let was_met_deep = |known: &Proof| known.deep && !known.is_sound();
        kept.proof.as_ref().is_some_and(was_met_deep)
            || self.options.deep && self.chosen.contains(&kept.manifest.point.id)
    }

    /// When a restore point had been proved before, if that is enough by itself.
    fn proved_enough(&self, kept: &Kept) -> Option<Timestamp> {
        let id = &kept.manifest.point.id;
        let time = proved_before(kept.proof.as_ref(), self.options, self.is_deep(kept))?;
        (self.history.chains.faults(id).is_empty() && kept.has_checkpoint_file).then_some(time)
    }

    /// Proves those that a restore point stands upon and that were skipped, and whose images a deep reading has gone through and met damage: it has
    /// to be told of the one whose image it is. What then turns out to be inherited takes the place of what was found.
    fn look_beneath(&mut self, kept: &Kept, damage: &mut Vec<Damage>) -> Result<()> {
        let point = &kept.manifest.point;
        let beneath = with_parents(self.history, std::slice::from_ref(&point.id));
        let was_skipped = |proved: &ProvedPoint| proved.skipped.is_some() && beneath.contains(&proved.id);
        let skipped = self.outcome.points.iter().filter(|proved| was_skipped(proved));
        for id in skipped.map(|proved| proved.id.clone()).collect::<Vec<_>>() {
            let Some(parent) = self.history.get(&id) else {
                continue;
            };
            let mut found = inherited(&parent.manifest.point, &self.damaged);
            let proved = self.prover.prove(parent, false, &mut found);
            self.book(parent, false, found, proved.is_ok());
            proved?;
        }
        let inherited = inherited(point, &self.damaged);
        // Only what was found in its own files has a place.
        let is_own = |found: &Damage| found.location.is_some();
        damage.retain(|found| is_own(found) || !inherited.iter().any(|from| from.disk == found.disk));
        damage.extend(inherited);
        Ok(())
    }

    /// Takes a result down, in place of an earlier one of the same restore point.
    fn book(&mut self, kept: &Kept, deep: bool, damage: Vec<Damage>, is_complete: bool) {
        let id = &kept.manifest.point.id;
        if !is_complete && damage.is_empty() {
            return;
        }
        let disks = damage.iter().filter_map(|damage| damage.disk.as_ref());
        self.damaged.extend(disks.map(|disk| (id.clone(), disk.clone())));
        self.remember(kept, deep, &damage, is_complete);
        let proved = ProvedPoint {
            id: id.clone(),
            skipped: None,
            damage,
        };
        match self.outcome.points.iter_mut().find(|earlier| earlier.id == *id) {
            Some(earlier) => *earlier = proved,
            None => self.outcome.points.push(proved),
        }
    }

    /// Whether a restore point was pruned meanwhile.
    fn is_pruned(&self, kept: &Kept) -> Result<bool> {
        let removed = self.repository.is_removed(kept);
        removed.map_err(|error| Error::of(self.domain, error))
    }

    /// A result that cannot be remembered is a result all the same. One that is not complete forgets nothing of what was known.
    fn remember(&mut self, kept: &Kept, deep: bool, damage: &[Damage], is_complete: bool) {
        let known = kept.proof.as_ref();
        // What a restore point only inherits is remembered where it comes from.
        let own = damage.iter().filter(|damage| damage.upon.is_none());
        let mut notes: Vec<DamageNote> = own.map(DamageNote::from).collect();
        if !is_complete && notes.is_empty() {
            return;
        }
        if !is_complete {
            let known = known.iter().flat_map(|known| &known.damage);
            let others: Vec<DamageNote> = known.filter(|note| !notes.contains(note)).cloned().collect();
            notes.extend(others);
        }
        let proof = Proof {
            id: kept.manifest.point.id.clone(),
            manifest: kept.manifest.digest.clone(),
            time: self.options.now,
            deep,
            deep_time: known
                .and_then(Proof::last_deep)
                .filter(|_| damage.is_empty() && !deep),
            damage: notes,
        };
        // What has not been read again may be told of by any of them.
        let outdated: &[String] = if is_complete { &kept.records } else { &[] };
        let Err(error) = self.repository.keep_proof(&proof, outdated) else {
            return;
        };
        // Why the first result cannot be kept is why the others cannot.
        let told = &mut self.outcome.findings.iter();
        if !told.any(|finding| finding.code == "proof-not-kept") {
            let what = format!("the result cannot be remembered: {}", with_sources(&error));
            self.report(Finding::new("proof-not-kept", what));
        }
    }

    fn report(&mut self, finding: Finding) {
        self.monitor.event(Event::Found {
            domain: self.domain,
            finding: &finding,
        });
        self.outcome.findings.push(finding);
    }
}

/// What is damaged of a restore point because of what it stands upon.
fn inherited(point: &RestorePoint, damaged: &BTreeSet<(String, String)>) -> Vec<Damage> {
    let hurt = point.disks.iter().filter_map(|disk| {
        let parent = disk.parent.as_ref()?;
        let is_damaged = damaged.contains(&(parent.clone(), disk.target.clone()));
        is_damaged.then(|| {
            let what = format!(
                "disk {} of {} stands upon {parent}, which is damaged",
                disk.target, point.id
            );
            Damage {
                upon: Some(parent.clone()),
                ..Damage::told(what).of_disk(&disk.target)
            }
        })
    });
    hurt.collect()
}

/// When it had been proved before, if that is enough.
fn proved_before(proof: Option<&Proof>, options: &Options, deep: bool) -> Option<Timestamp> {
    let not_since = options.not_since?;
    let proof = proof.filter(|proof| proof.is_sound())?;
    let time = match deep {
        true => proof.last_deep()?,
        false => proof.time,
    };
    // A time that has not come yet was written by a clock that was wrong.
    (time >= not_since && time <= options.now).then_some(time)
}
