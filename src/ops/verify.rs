//! Verifies restore points: their manifests and parents, the digest of every file, the structure of
//! every image and, on request, every byte as a restore would read it.
//!
//! A verification changes no restore point and does not lock the domain. Other runs continue beside
//! it, but a merge may have to wait until the verification has read the files. A restore point that
//! is pruned at the same time is left out. The repository records the result. `list` and `status`
//! show it, and no backup uses a damaged restore point as a parent.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::each::{Fault, Judged};
use super::monitor::{Event, Monitor};
use super::{Error, Result, list, restore};
use crate::model::chain::Concern;
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::repo::history::{self, WRITTEN_BY_A_NEWER_VMSNAP};
use crate::repo::{DamageNote, DomainRepository, FileDamage, History, RepoError, Repository};

pub use crate::repo::Proof;

mod point;
mod run;

use point::Prover;
use run::Verification;

/// The restore points to verify. Their parents are verified too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest restore point.
    Latest,
    /// One restore point, selected by its id, its checkpoint or a time.
    At(String),
    /// All restore points.
    All,
}

/// The options of a verification.
#[derive(Clone, Debug)]
pub struct Options {
    /// The restore points to verify.
    pub which: Which,
    /// Whether to read every disk from end to end too, as a restore would.
    pub deep: bool,
    /// Skips restore points that were found sound at this time or later.
    pub verified_since: Option<Timestamp>,
    /// The current time, which is recorded as the time of the verification.
    pub now: Timestamp,
}

/// The result of a verification.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The restore points that were verified or skipped, in the order of their commits.
    pub points: Vec<ProvedPoint>,
    /// Damage that belongs to no readable restore point, such as unusable manifests.
    pub damage: Vec<Damage>,
    /// The number of bytes that were read.
    pub bytes: u64,
    /// Other findings.
    pub findings: Vec<Finding>,
    /// The reason why the verification is incomplete: a request to stop, or the first error that is
    /// not due to damage, such as a missing permission.
    pub ended: Option<Error>,
}

impl Outcome {
    /// Whether there are restore points that only a newer program can read.
    pub fn needs_newer(&self) -> bool {
        let mut codes = self.findings.iter().map(|finding| &finding.code);
        codes.any(|code| code == WRITTEN_BY_A_NEWER_VMSNAP)
    }

    /// Whether no damage was found.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.points.iter().all(|point| point.damage.is_empty())
    }

    /// Returns all damage.
    pub fn all_damage(&self) -> impl Iterator<Item = &Damage> {
        let of_points = self.points.iter().flat_map(|point| &point.damage);
        self.damage.iter().chain(of_points)
    }
}

impl Judged for Outcome {
    fn faults(&self) -> Vec<Fault> {
        let damaged = (!self.is_sound()).then_some(Fault::Damaged);
        let incomplete = self.needs_newer().then_some(Fault::Incomplete);
        damaged.into_iter().chain(incomplete).collect()
    }

    fn error(&self) -> Option<&Error> {
        self.ended.as_ref()
    }
}

/// One restore point of a verification.
#[derive(Clone, Debug)]
pub struct ProvedPoint {
    /// Its id.
    pub id: String,
    /// The time of an earlier verification, if the restore point was skipped because of it.
    pub skipped: Option<Timestamp>,
    /// The damage in its own files, and in its disks with their chains.
    pub damage: Vec<Damage>,
}

/// Something that is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The path of the damaged file, if the damage lies in a file.
    pub location: Option<String>,
    /// The offset in the file, in bytes, if known.
    pub offset: Option<u64>,
    /// The target of the disk that the damage concerns; `None` for files that belong to no disk.
    pub disk: Option<String>,
    /// The damaged restore point, if the damage is not in this one but in a parent.
    pub inherited_from: Option<String>,
    /// A description that names the file.
    pub what: String,
}

impl Damage {
    /// Creates damage that is known by its description only.
    fn found(what: impl Into<String>) -> Damage {
        Damage {
            location: None,
            offset: None,
            disk: None,
            inherited_from: None,
            what: what.into(),
        }
    }

    fn of_disk(self, target: &str) -> Damage {
        Damage {
            disk: Some(target.to_owned()),
            ..self
        }
    }
}

/// Verifies restore points of the domain.
///
/// # Errors
/// There is nothing to verify, or nothing could be verified. Damage is not an error; the outcome
/// reports it. The outcome also reports an error if some restore points were verified nevertheless.
pub fn verify(
    domain: &str,
    repo: &dyn Repository,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Outcome> {
    let failed = |error: RepoError| Error::of(domain, error);
    let repository = repo.domain(domain).map_err(failed)?;
    let history = repository.history().map_err(failed)?;
    let mut outcome = Outcome {
        findings: list::unfinished(repository.as_ref(), &history),
        ..Outcome::default()
    };
    for finding in &history.findings {
        match options.which {
            // This file is read below anyway, and reported with what is found there.
            _ if finding.code == history::CHECKPOINT_DAMAGED => {}
            // A manifest that only a newer program can read is not known to be damaged.
            _ if finding.code == WRITTEN_BY_A_NEWER_VMSNAP => outcome.findings.push(finding.clone()),
            // An unusable manifest may be that of the newest restore point, so it counts unless the
            // user named another one.
            Which::At(_) => outcome.findings.push(finding.clone()),
            Which::Latest | Which::All => outcome.damage.push(Damage::found(&finding.message)),
        }
    }
    let chosen = match chosen(domain, &history, &options.which) {
        Ok(chosen) => chosen,
        // Damage that explains this was added above.
        Err(_) if !outcome.damage.is_empty() => Vec::new(),
        Err(error) => {
            let findings = outcome.findings;
            return Err(Error { findings, ..error });
        }
    };
    let needed = with_parents(&history, &chosen);
    outcome
        .findings
        .extend(cautions(repository.as_ref(), &history, &needed));
    for finding in &outcome.findings {
        monitor.event(Event::Found { domain, finding });
    }
    Verification {
        domain,
        history: &history,
        options,
        monitor,
        needed,
        chosen,
        damaged: BTreeSet::new(),
        unread: BTreeSet::new(),
        prover: Prover::new(domain, repository.as_ref(), &history, monitor, stop),
        repository: repository.as_ref(),
        outcome,
    }
    .run()
}

/// What a verification of these restore points cannot show.
fn cautions(repository: &dyn DomainRepository, history: &History, ids: &BTreeSet<String>) -> Vec<Finding> {
    let general = repository.caution().filter(|_| !ids.is_empty());
    let general = general.map(|what| Finding::new("weak-checksums", what));
    let kept = history.kept.iter().map(|kept| &kept.manifest.point);
    let needed = kept.filter(|point| ids.contains(&point.id));
    let of_points = needed.flat_map(history::cautions).cloned();
    general.into_iter().chain(of_points).collect()
}

fn ids(history: &History) -> impl Iterator<Item = &str> {
    history.chains.points().iter().map(|kept| kept.point.id.as_str())
}

pub(super) fn chosen(domain: &str, history: &History, which: &Which) -> Result<Vec<String>> {
    let at = match which {
        Which::All if history.chains.points().is_empty() => "latest",
        Which::All => return Ok(ids(history).map(str::to_owned).collect()),
        Which::Latest => "latest",
        Which::At(at) => at,
    };
    let kept = restore::choose(domain, history, at)?;
    Ok(vec![kept.point.id.clone()])
}

/// Returns the ids of these restore points and of everything that they depend on.
fn with_parents(history: &History, chosen: &[String]) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let mut next: Vec<String> = chosen.to_vec();
    while let Some(id) = next.pop() {
        if let Some(kept) = history.chains.get(&id) {
            let parents = history
                .chains
                .parents(&kept.point)
                .map(|(_, parent)| parent.to_owned());
            next.extend(parents.filter(|parent| !needed.contains(parent)));
        }
        needed.insert(id);
    }
    needed
}

impl From<FileDamage> for Damage {
    fn from(found: FileDamage) -> Damage {
        Damage {
            location: found.location,
            offset: found.offset,
            disk: found.disk,
            inherited_from: None,
            what: found.what,
        }
    }
}

impl From<&Damage> for DamageNote {
    fn from(damage: &Damage) -> DamageNote {
        DamageNote {
            what: damage.what.clone(),
            concerns: damage.disk.clone().map_or(Concern::Files, Concern::Disk),
        }
    }
}
