//! A verification in progress: restore point by restore point, parents first.

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

/// A verification in progress.
pub(super) struct Verification<'a> {
    pub(super) domain: &'a str,
    pub(super) repository: &'a dyn DomainRepository,
    pub(super) history: &'a History,
    pub(super) options: &'a Options,
    pub(super) monitor: &'a dyn Monitor,
    /// The ids of the selected restore points.
    pub(super) chosen: Vec<String>,
    /// The ids of the selected restore points and of all their parents.
    pub(super) needed: BTreeSet<String>,
    /// The damaged disks, each with its restore point's id.
    pub(super) damaged: BTreeSet<(String, String)>,
    /// The ids of restore points that could not be read, and of everything that depends on them.
    pub(super) unread: BTreeSet<String>,
    pub(super) prover: Prover<'a>,
    pub(super) outcome: Outcome,
}

impl Verification<'_> {
    pub(super) fn run(mut self) -> Result<Outcome> {
        let history = self.history;
        // Parents come before what depends on them.
        for id in ids(history)
            .filter(|id| self.needed.contains(*id))
            .collect::<Vec<_>>()
        {
            let Some(kept) = history.get(id) else { continue };
            if self.depends_on_unread(kept) {
                continue;
            }
            match self.prove(kept) {
                Ok(()) => {}
                // Restore points that do not depend on it can still be read.
                Err(error) if error.cause.is_no_verdict() => self.skip(kept, error),
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
        // Records of removed restore points are of no use, but do no harm if they stay.
        let _ = self.repository.forget_removed();
        self.outcome.bytes = self.prover.bytes();
        Ok(self.outcome)
    }

    /// Whether a restore point cannot be verified because a parent could not be read.
    fn depends_on_unread(&mut self, kept: &Kept) -> bool {
        let point = &kept.manifest.point;
        let mut parents = self.history.chains.parents(point);
        let Some((_, parent)) = parents.find(|(_, parent)| self.unread.contains(*parent)) else {
            return false;
        };
        let what = format!(
            "restore point {} was not verified: it depends on {parent}, which could not be read",
            point.id
        );
        self.unread.insert(point.id.clone());
        self.report(Finding::new("not-verified", what));
        true
    }

    /// Continues after a restore point that could not be read, and reports it. The first such error
    /// becomes the error of the run too.
    fn skip(&mut self, kept: &Kept, error: Error) {
        let id = &kept.manifest.point.id;
        self.unread.insert(id.clone());
        let what = format!(
            "restore point {id} was not verified: {}",
            with_sources(&error.cause)
        );
        self.report(Finding::new("not-verified", what));
        self.outcome.ended.get_or_insert(error);
    }

    /// Verifies one restore point and records the result, also if an error ends it.
    fn prove(&mut self, kept: &Kept) -> Result<()> {
        let id = &kept.manifest.point.id;
        let deep = self.is_deep(kept);
        let inherited = inherited(self.history, &kept.manifest.point, &self.damaged);
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
            Ok(()) if deep && !damage.is_empty() => self.check_parents(kept, &mut damage),
            proved => proved,
        };
        self.record(kept, deep, damage, proved.is_ok());
        proved
    }

    /// Whether the disks of a restore point are read too. Damage that an earlier deep verification
    /// found may lie in a parent, so only another deep verification shows whether that damage is
    /// still there.
    fn is_deep(&self, kept: &Kept) -> bool {
        let was_met_deep = |known: &Proof| known.deep && !known.is_sound();
        kept.proof.as_ref().is_some_and(was_met_deep)
            || self.options.deep && self.chosen.contains(&kept.manifest.point.id)
    }

    /// Returns the time of an earlier verification that makes a new one unnecessary, if there is
    /// one.
    fn proved_enough(&self, kept: &Kept) -> Option<Timestamp> {
        let id = &kept.manifest.point.id;
        let time = proved_before(kept.proof.as_ref(), self.options, self.is_deep(kept))?;
        (self.history.chains.faults(id).is_empty() && kept.has_checkpoint_file).then_some(time)
    }

    /// After a deep verification found damage, verifies the parents that were skipped, to find the
    /// restore point whose image is damaged. Damage that turns out to be inherited replaces the
    /// damage that was found.
    fn check_parents(&mut self, kept: &Kept, damage: &mut Vec<Damage>) -> Result<()> {
        let point = &kept.manifest.point;
        let beneath = with_parents(self.history, std::slice::from_ref(&point.id));
        let was_skipped = |proved: &ProvedPoint| proved.skipped.is_some() && beneath.contains(&proved.id);
        let skipped = self.outcome.points.iter().filter(|proved| was_skipped(proved));
        for id in skipped.map(|proved| proved.id.clone()).collect::<Vec<_>>() {
            let Some(parent) = self.history.get(&id) else {
                continue;
            };
            let mut found = inherited(self.history, &parent.manifest.point, &self.damaged);
            let proved = self.prover.prove(parent, false, &mut found);
            self.record(parent, false, found, proved.is_ok());
            proved?;
        }
        let inherited = inherited(self.history, point, &self.damaged);
        // Only damage in its own files has a location.
        let is_own = |found: &Damage| found.location.is_some();
        damage.retain(|found| is_own(found) || !inherited.iter().any(|from| from.disk == found.disk));
        damage.extend(inherited);
        Ok(())
    }

    /// Records a result, and replaces an earlier one of the same restore point.
    fn record(&mut self, kept: &Kept, deep: bool, damage: Vec<Damage>, is_complete: bool) {
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

    /// Whether a restore point was pruned during the verification.
    fn is_pruned(&self, kept: &Kept) -> Result<bool> {
        let removed = self.repository.is_removed(kept);
        removed.map_err(|error| Error::of(self.domain, error))
    }

    /// Records a result in the repository. A failure is reported, but the result stands. An
    /// incomplete result keeps the damage that was known before.
    fn remember(&mut self, kept: &Kept, deep: bool, damage: &[Damage], is_complete: bool) {
        let known = kept.proof.as_ref();
        // Inherited damage is recorded with the restore point that it comes from.
        let own = damage.iter().filter(|damage| damage.inherited_from.is_none());
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
        // After an incomplete reading, each older record may name damage that was not read again.
        let outdated: &[String] = if is_complete { &kept.records } else { &[] };
        let Err(error) = self.repository.keep_proof(&proof, outdated) else {
            return;
        };
        // Reported once: later results fail for the same reason.
        let findings = &mut self.outcome.findings.iter();
        if !findings.any(|finding| finding.code == "proof-not-kept") {
            let what = format!(
                "the result of the verification cannot be recorded: {}",
                with_sources(&error)
            );
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

/// Returns the damage that a restore point inherits from its parents.
fn inherited(history: &History, point: &RestorePoint, damaged: &BTreeSet<(String, String)>) -> Vec<Damage> {
    let hurt = history.chains.parents(point).filter_map(|(disk, parent)| {
        let is_damaged = damaged.contains(&(parent.to_owned(), disk.to_owned()));
        is_damaged.then(|| {
            let what = format!(
                "disk {disk} of {} depends on {parent}, which is damaged",
                point.id
            );
            Damage {
                inherited_from: Some(parent.to_owned()),
                ..Damage::found(what).of_disk(disk)
            }
        })
    });
    hurt.collect()
}

/// Returns the time of an earlier verification that is recent and deep enough, if there is one.
fn proved_before(proof: Option<&Proof>, options: &Options, deep: bool) -> Option<Timestamp> {
    let verified_since = options.verified_since?;
    let proof = proof.filter(|proof| proof.is_sound())?;
    let time = match deep {
        true => proof.last_deep()?,
        false => proof.time,
    };
    // A time in the future was written by a wrong clock.
    (time >= verified_since && time <= options.now).then_some(time)
}
