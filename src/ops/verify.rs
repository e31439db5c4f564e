//! Proves restore points: their manifests and parents, the digest of every file, the structure of every image, and on request every byte as a
//! restore would read it.
//!
//! It reads only, takes no lock and disturbs no run; a restore point that is pruned meanwhile is left out. What it finds is remembered in the
//! repository: `list` and `status` show it, and no backup relies on what was found damaged.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::Timestamp;

use super::error::Cause;
use super::monitor::{Event, Monitor};
use super::{Error, Result, list, restore};
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::history::WRITTEN_BY_A_NEWER_VMSNAP;
use crate::repo::{DomainRepository, History, RepoError, Repository};

pub use crate::repo::Proof;

mod point;

use point::Prover;

/// Which restore points are to be proved. Those that they stand upon are proved with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest one.
    Latest,
    /// One: its id, its checkpoint, or a time.
    At(String),
    /// All of them.
    All,
}

/// What a verification is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which restore points.
    pub which: Which,
    /// Whether to read every disk from end to end as a restore would, besides the files.
    pub deep: bool,
    /// Restore points that were found sound at this time or later are skipped.
    pub not_since: Option<Timestamp>,
    /// The time now, which is remembered.
    pub now: Timestamp,
}

/// What a verification has found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The restore points, in the order they were made.
    pub points: Vec<ProvedPoint>,
    /// Damage that belongs to no restore point that could be read: manifests that cannot be used.
    pub damage: Vec<Damage>,
    /// Bytes that were read.
    pub bytes: u64,
    /// What else is worth telling.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Whether there are restore points that only a newer program can read.
    pub fn needs_newer(&self) -> bool {
        let mut codes = self.findings.iter().map(|finding| &finding.code);
        codes.any(|code| code == WRITTEN_BY_A_NEWER_VMSNAP)
    }

    /// Whether nothing was found damaged.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.points.iter().all(|point| point.damage.is_empty())
    }

    /// All that was found damaged, once each.
    pub fn all_damage(&self) -> impl Iterator<Item = &Damage> {
        let of_points = self.points.iter().flat_map(|point| &point.damage);
        self.damage.iter().chain(of_points)
    }
}

/// One restore point of a verification.
#[derive(Clone, Debug)]
pub struct ProvedPoint {
    /// Its id.
    pub id: String,
    /// When it had been proved before, if that was enough.
    pub skipped: Option<Timestamp>,
    /// What is damaged of its own files and disks.
    pub damage: Vec<Damage>,
}

/// Something that is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, where it is one.
    pub path: Option<PathBuf>,
    /// Where in the file, in bytes, where that is known.
    pub offset: Option<u64>,
    /// What is wrong, in words that name the file.
    pub what: String,
}

/// Proves restore points of the domain of that name.
///
/// # Errors
/// When there is nothing to prove, the repository cannot be read, or the user asked to stop. Damage is no error: it is in the outcome.
pub fn verify(
    domain: &str,
    repo: &Repository,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Outcome> {
    let failed = |error: RepoError| Error::of(domain, error);
    let repository = repo.domain(domain).map_err(failed)?;
    let history = repository.history().map_err(failed)?;
    let mut outcome = Outcome {
        findings: list::unfinished(&repository, &history),
        ..Outcome::default()
    };
    for finding in &history.findings {
        // A manifest that cannot be used may be that of the newest restore point, so it concerns whoever did not name another.
        match options.which {
            // What only a newer program can read is not known to be damaged.
            _ if finding.code == WRITTEN_BY_A_NEWER_VMSNAP => outcome.findings.push(finding.clone()),
            Which::At(_) => outcome.findings.push(finding.clone()),
            Which::Latest | Which::All => outcome.damage.push(Damage {
                path: None,
                offset: None,
                what: finding.message.clone(),
            }),
        }
    }
    let chosen = match chosen(domain, &history, &options.which) {
        Ok(chosen) => chosen,
        // That none can be read is told above.
        Err(_) if !outcome.damage.is_empty() => Vec::new(),
        Err(error) => return Err(error),
    };
    for finding in &outcome.findings {
        monitor.event(Event::Found { domain, finding });
    }
    let needed = with_parents(&history, &chosen);
    let mut prover = Prover::new(domain, &repository, &history, monitor, stop);
    // Parents come before what stands upon them.
    let mut damaged: BTreeSet<String> = BTreeSet::new();
    for id in ids(&history).filter(|id| needed.contains(*id)) {
        let deep = options.deep && chosen.iter().any(|chosen| chosen == id);
        let Some(kept) = history.get(id) else { continue };
        let inherited = inherited(&kept.manifest.point, &damaged);
        if let Some(time) = proved_before(kept.proof.as_ref(), options, deep).filter(|_| inherited.is_empty())
        {
            outcome.points.push(ProvedPoint {
                id: id.to_owned(),
                skipped: Some(time),
                damage: Vec::new(),
            });
            continue;
        }
        let mut damage = prover.prove(kept, deep && inherited.is_empty())?;
        damage.extend(inherited);
        if !kept.dir.is_dir() {
            let what = format!("restore point {id} was removed while it was being verified");
            let finding = Finding::new("removed-meanwhile", what);
            monitor.event(Event::Found {
                domain,
                finding: &finding,
            });
            outcome.findings.push(finding);
            continue;
        }
        if !damage.is_empty() {
            damaged.insert(id.to_owned());
        }
        let proof = Proof {
            id: id.to_owned(),
            manifest: kept.manifest.digest.clone(),
            time: options.now,
            deep,
            damage: damage.iter().map(|damage| damage.what.clone()).collect(),
        };
        // Why the first result cannot be kept is why the others cannot.
        let is_told = outcome
            .findings
            .iter()
            .any(|finding| finding.code == "proof-not-kept");
        if let Some(finding) = remember(&repository, &proof, kept.proof.as_ref())
            && !is_told
        {
            monitor.event(Event::Found {
                domain,
                finding: &finding,
            });
            outcome.findings.push(finding);
        }
        outcome.points.push(ProvedPoint {
            id: id.to_owned(),
            skipped: None,
            damage,
        });
    }
    // Of what has gone nothing needs to be known; that it is still known does no harm.
    let _ = repository.forget_removed();
    outcome.bytes = prover.bytes();
    Ok(outcome)
}

fn ids(history: &History) -> impl Iterator<Item = &str> {
    history.chains.points().iter().map(|kept| kept.point.id.as_str())
}

fn chosen(domain: &str, history: &History, which: &Which) -> Result<Vec<String>> {
    let at = match which {
        Which::All if history.chains.points().is_empty() => "latest",
        Which::All => return Ok(ids(history).map(str::to_owned).collect()),
        Which::Latest => "latest",
        Which::At(at) => at,
    };
    let kept = restore::choose(domain, history, at)?;
    Ok(vec![kept.point.id.clone()])
}

/// The ids of these restore points, and of all that they stand upon.
fn with_parents(history: &History, chosen: &[String]) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let mut next: Vec<String> = chosen.to_vec();
    while let Some(id) = next.pop() {
        if let Some(kept) = history.chains.get(&id) {
            let parents = kept.point.disks.iter().filter_map(|disk| disk.parent.clone());
            next.extend(parents.filter(|parent| !needed.contains(parent)));
        }
        needed.insert(id);
    }
    needed
}

/// What is damaged of a restore point because of what it stands upon.
fn inherited(point: &RestorePoint, damaged: &BTreeSet<String>) -> Vec<Damage> {
    let hurt = point.disks.iter().filter_map(|disk| {
        let parent = disk.parent.as_ref().filter(|parent| damaged.contains(*parent))?;
        Some(Damage {
            path: None,
            offset: None,
            what: format!(
                "disk {} of {} stands upon {parent}, which is damaged",
                disk.target, point.id
            ),
        })
    });
    hurt.collect()
}

/// When it had been proved before, if that is enough.
fn proved_before(proof: Option<&Proof>, options: &Options, deep: bool) -> Option<Timestamp> {
    let not_since = options.not_since?;
    let proof = proof?;
    // A time that has not come yet was written by a clock that was wrong.
    let is_enough =
        proof.is_sound() && proof.time >= not_since && proof.time <= options.now && (proof.deep || !deep);
    is_enough.then_some(proof.time)
}

/// A result that cannot be remembered is a result all the same.
fn remember(repository: &DomainRepository, proof: &Proof, known: Option<&Proof>) -> Option<Finding> {
    let error = repository.keep_proof(proof, known).err()?;
    let what = format!("the result cannot be remembered: {}", with_sources(&error));
    Some(Finding::new("proof-not-kept", what))
}

impl From<Cause> for Damage {
    fn from(cause: Cause) -> Damage {
        Damage {
            path: None,
            offset: None,
            what: with_sources(&cause),
        }
    }
}
