//! Lists restore points and whether each can be restored. Needs no hypervisor.

use super::each::Judged;
use super::{Error, Result};
use crate::model::chain::{Chains, MissedWrite};
use crate::model::finding::Finding;
use crate::model::pin::Pin;
use crate::model::restore_point::RestorePoint;
pub use crate::repo::BootProof;
use crate::repo::{DomainRepository, History, Leftover, Proof, RepoError, Repository, history};

/// The restore points of one domain.
#[derive(Clone, Debug)]
pub struct DomainList {
    /// The domain's name.
    pub domain: String,
    /// Its restore points, in the order of their commits.
    pub points: Vec<Listed>,
    /// Findings about its folder.
    pub findings: Vec<Finding>,
}

impl Judged for DomainList {}

/// One restore point.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The restore point, as its manifest describes it.
    pub point: RestorePoint,
    /// Why it cannot be restored completely. Empty if it can, judged by the names and sizes of its
    /// files and its parents' files.
    pub faults: Vec<String>,
    /// What its images and small files store, in bytes: their size without holes of merges.
    pub size: u64,
    /// When it was last verified, and with what result; `None` if it never was.
    pub proof: Option<Proof>,
    /// How far a guest came that was last started from it; `None` if none was.
    pub boot_proof: Option<BootProof>,
    /// The first known damage in it or its parents that a verification found; `None` if there is
    /// none.
    pub suspected_damage: Option<String>,
    /// The missed writes that comparisons have found and recorded with it.
    pub missed_writes: Vec<ListedMissedWrite>,
    /// Its pin, if it has one.
    pub pin: Option<Pin>,
}

/// A write that a bitmap missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMissedWrite {
    /// The disk, and when the missed write was found.
    pub write: MissedWrite,
    /// Whether the disk has not been saved since, so that its next backup is full.
    pub stands: bool,
}

impl Listed {
    /// What its content may lack, and whether damage of it can be found.
    pub fn cautions(&self) -> impl Iterator<Item = &Finding> {
        history::cautions(&self.point)
    }

    /// Whether it can be restored completely, judged by names and sizes of files.
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Lists the restore points of these domains. A domain without any has an empty list.
pub fn list(repo: &dyn Repository, domains: &[String]) -> Result<Vec<DomainList>> {
    domains.iter().map(|domain| list_domain(repo, domain)).collect()
}

/// Lists the restore points of a domain.
pub(crate) fn list_domain(repo: &dyn Repository, domain: &str) -> Result<DomainList> {
    let failed = |error: RepoError| Error::of(domain, error);
    let repository = repo.domain(domain).map_err(failed)?;
    let mut history = repository.history().map_err(failed)?;
    let points = history.kept.iter().map(|kept| Listed {
        point: kept.manifest.point.clone(),
        faults: history.chains.faults(&kept.manifest.point.id),
        size: kept.size(),
        proof: kept.proof.clone(),
        boot_proof: kept.boot_proof.clone(),
        suspected_damage: history.chains.any_suspected_damage(&kept.manifest.point.id),
        missed_writes: missed(&history.chains, &kept.manifest.point.id),
        pin: history
            .chains
            .get(&kept.manifest.point.id)
            .and_then(|kept| kept.pin.clone()),
    });
    let points = points.collect();
    history.findings.extend(unfinished(repository.as_ref(), &history));
    history
        .findings
        .extend(repository.sets_location().map(|location| {
            let what = format!("backups of virtnbdbackup are here too: --repository {location} reads them");
            Finding::new("virtnbdbackup-sets", what)
        }));
    Ok(DomainList {
        domain: domain.to_owned(),
        points,
        findings: history.findings,
    })
}

fn missed(chains: &Chains, id: &str) -> Vec<ListedMissedWrite> {
    let missed = chains.get(id).into_iter().flat_map(|kept| &kept.missed_writes);
    let listed = missed.map(|write| ListedMissedWrite {
        write: write.clone(),
        stands: chains.is_latest_with(id, &write.disk),
    });
    listed.collect()
}

/// Reports unfinished runs. While another run writes, its leftovers are work in progress and not
/// reported.
pub(super) fn unfinished(repository: &dyn DomainRepository, history: &History) -> Vec<Finding> {
    if history.leftovers.is_empty() || repository.writer().is_some() {
        return Vec::new();
    }
    // A run that was still writing may have finished since its folder was seen.
    let is_there = |leftover: &&Leftover| repository.has_leftover(leftover);
    let left = history.leftovers.iter().filter(is_there);
    left.map(|leftover| {
        let what = format!(
            "{} belongs to a run that has not finished; the next backup cleans it up",
            leftover.location
        );
        Finding::new("unfinished-run", what)
    })
    .collect()
}
