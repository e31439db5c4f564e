//! Makes the history of a domain from its objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::content::{Content, StoredPoint};
use super::names::DomainNames;
use super::state::DomainState;
use crate::model::chain::{Chains, KeptPoint, LostPoint, RemovedPoint};
use crate::model::finding::Finding;
use crate::repo::history::{History, Kept, Leftover, WRITTEN_BY_A_NEWER_VMSNAP};

/// How the id of a restore point begins whose own id is unknown. It sorts after all times, so such
/// a restore point counts as later than the others.
const UNREADABLE: &str = "unreadable-";

/// The digits of its name that follow.
const SHOWN: usize = 16;

/// Makes histories of one domain.
pub(super) struct Reader<'a> {
    pub(super) names: &'a DomainNames,
    /// The location of the repository.
    pub(super) location: &'a str,
}

impl Reader<'_> {
    /// The location of a restore point.
    pub(super) fn point_location(&self, name: &str) -> String {
        format!("{}/{}{name}", self.location, self.names.points())
    }

    /// The location of a record.
    pub(super) fn record_location(&self, name: &str) -> String {
        format!("{}/{}{name}", self.location, self.names.records())
    }

    /// Makes the history from the content of the repository and these unfinished runs.
    pub(super) fn history(&self, content: &Content, leftovers: Vec<Leftover>) -> History {
        let mut findings = Vec::new();
        let points = content
            .points
            .iter()
            .map(|stored| self.kept_point(content, stored));
        let (lost, of_lost) = self.lost(content);
        findings.extend(of_lost);
        let removed: Vec<RemovedPoint> = content
            .records
            .removals()
            .iter()
            .map(|removal| removal.point())
            .collect();
        let chains = Chains::new(points.collect()).beside(lost).with_removed(removed);
        let by_digest: HashMap<&str, &StoredPoint> = content
            .points
            .iter()
            .map(|stored| (stored.record.manifest.digest.as_str(), stored))
            .collect();
        let kept: Vec<Kept> = chains
            .points()
            .iter()
            .filter_map(|kept| Some(self.kept(content, by_digest.get(kept.manifest.as_str())?)))
            .collect();
        let ids: BTreeMap<String, &str> = kept
            .iter()
            .map(|kept| kept.manifest.point.id.as_str())
            .map(|id| (self.names.tag(id), id))
            .collect();
        let id_of = |tag: &str| ids.get(tag).map(|id| (*id).to_owned());
        findings.extend(content.records.findings(id_of, |name| self.record_location(name)));
        History {
            chains,
            kept,
            findings,
            leftovers,
            can_continue: false,
            _guard: None,
        }
    }

    fn kept_point(&self, content: &Content, stored: &StoredPoint) -> KeptPoint {
        let manifest = &stored.record.manifest;
        let tag = self.names.tag(&manifest.point.id);
        KeptPoint {
            point: manifest.point.clone(),
            manifest: manifest.digest.clone(),
            faults: Vec::new(),
            suspected_damage: content.records.suspected_damage(manifest, &tag),
            missed_writes: content.records.missed_writes(manifest, &tag),
            pin: content.records.pin(&manifest.point.id, &tag),
            needs_parents: false,
        }
    }

    fn kept(&self, content: &Content, stored: &StoredPoint) -> Kept {
        let manifest = stored.record.manifest.clone();
        let tag = self.names.tag(&manifest.point.id);
        Kept {
            location: self.point_location(&stored.name),
            proof: content.records.proof(&manifest),
            records: content.records.proof_names(&tag),
            boot_proof: content.records.boot_proof(&manifest),
            has_checkpoint_file: true,
            manifest,
        }
    }

    /// The restore points whose objects are damaged or missing, and the findings about them.
    fn lost(&self, content: &Content) -> (Vec<LostPoint>, Vec<Finding>) {
        let removals = content.records.removals();
        let removed: BTreeSet<&str> = removals.iter().map(|removal| removal.name.as_str()).collect();
        let mut lost = Vec::new();
        let mut findings = Vec::new();
        for (name, why) in &content.unreadable {
            if removed.contains(name.as_str()) {
                continue;
            }
            let what = format!("{} cannot be read: {}", self.point_location(name), why.why);
            let code = match why.is_newer {
                true => WRITTEN_BY_A_NEWER_VMSNAP,
                false => "restore-point-unreadable",
            };
            findings.push(Finding::new(code, what.clone()));
            lost.push(LostPoint {
                id: known_id(content, name).unwrap_or_else(|| shown_id(name)),
                what,
                is_newer: why.is_newer,
                is_gone: false,
            });
        }
        let there: BTreeSet<&str> = content.points.iter().map(|stored| stored.name.as_str()).collect();
        let mut missing = BTreeSet::new();
        for previous in content
            .points
            .iter()
            .filter_map(|stored| stored.record.previous.as_ref())
        {
            let name = previous.name.as_str();
            // Its copy may have come from another repository since.
            let is_there = previous.id.as_ref().is_some_and(|id| content.point(id).is_some());
            let is_known = is_there
                || there.contains(name)
                || removed.contains(name)
                || content.unreadable.contains_key(name);
            if is_known || !missing.insert(name) {
                continue;
            }
            let what = format!("restore point {} is missing", self.point_location(name));
            findings.push(Finding::new("restore-point-missing", what.clone()));
            lost.push(LostPoint {
                id: previous.id.clone().unwrap_or_else(|| shown_id(name)),
                what,
                is_newer: false,
                is_gone: true,
            });
        }
        (lost, findings)
    }
}

/// The id of a restore point, if the one that follows it recorded it.
fn known_id(content: &Content, name: &str) -> Option<String> {
    let mut previous = content
        .points
        .iter()
        .filter_map(|stored| stored.record.previous.as_ref());
    previous.find(|previous| previous.name == name)?.id.clone()
}

fn shown_id(name: &str) -> String {
    let digits = name.get(..SHOWN).unwrap_or(name);
    format!("{UNREADABLE}{digits}")
}

/// The unfinished runs of this host. A run whose restore point is committed is finished.
pub(super) fn leftovers(state: &DomainState, content: &Content) -> crate::repo::Result<Vec<Leftover>> {
    let committed = content.committed_runs();
    let runs = state.runs()?.into_iter();
    let unfinished = runs.filter(|(run, _)| !committed.contains(run.as_str()));
    Ok(unfinished.map(|(_, leftover)| leftover).collect())
}
