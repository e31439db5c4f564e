//! Lists restore points, and whether each can be given back. Needs no hypervisor.

use super::each::Judged;
use super::{Error, Result};
use crate::model::chain::{Chains, MissedWrite};
use crate::model::finding::Finding;
use crate::model::pin::Pin;
use crate::model::restore_point::RestorePoint;
use crate::repo::{DomainRepository, History, Leftover, Proof, RepoError, Repository};

/// The restore points of one domain.
#[derive(Clone, Debug)]
pub struct DomainList {
    /// The domain's name.
    pub domain: String,
    /// Its restore points, in the order they were made.
    pub points: Vec<Listed>,
    /// What is wrong with its folder.
    pub findings: Vec<Finding>,
}

impl Judged for DomainList {}

/// One restore point.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What its manifest says.
    pub point: RestorePoint,
    /// Why it cannot be given back whole; empty when it can, as far as names and sizes of its files and its parents' tell.
    pub faults: Vec<String>,
    /// Bytes of its files.
    pub size: u64,
    /// When it was last verified, and with what result.
    pub proof: Option<Proof>,
    /// What verifications found damaged of what it is made of, parents included.
    pub suspected_damage: Option<String>,
    /// The missed writes that comparisons of it with the domain have found.
    pub missed_writes: Vec<ListedMissedWrite>,
    /// What keeps it from being removed, if it is pinned.
    pub pin: Option<Pin>,
}

/// A write that a bitmap had missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMissedWrite {
    /// Of which disk, and when it was found.
    pub write: MissedWrite,
    /// Whether nothing was saved of the disk since: its next backup is full.
    pub stands: bool,
}

impl Listed {
    /// Whether it and the chain to it are all there.
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Lists the restore points of these domains. A domain without any is listed with none.
pub fn list(repo: &dyn Repository, domains: &[String]) -> Result<Vec<DomainList>> {
    domains.iter().map(|domain| list_domain(repo, domain)).collect()
}

/// Lists the restore points of a domain.
pub fn list_domain(repo: &dyn Repository, domain: &str) -> Result<DomainList> {
    let failed = |error: RepoError| Error::of(domain, error);
    let repository = repo.domain(domain).map_err(failed)?;
    let mut history = repository.history().map_err(failed)?;
    let points = history.kept.iter().map(|kept| Listed {
        point: kept.manifest.point.clone(),
        faults: history.chains.faults(&kept.manifest.point.id),
        size: kept.size(),
        proof: kept.proof.clone(),
        suspected_damage: history.chains.any_suspected_damage(&kept.manifest.point.id),
        missed_writes: missed(&history.chains, &kept.manifest.point.id),
        pin: history
            .chains
            .get(&kept.manifest.point.id)
            .and_then(|kept| kept.pin.clone()),
    });
    let points = points.collect();
    history.findings.extend(unfinished(repository.as_ref(), &history));
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

/// What is not wrong, but no restore point either. While somebody writes, what looks unfinished is theirs and told by nobody.
pub(super) fn unfinished(repository: &dyn DomainRepository, history: &History) -> Vec<Finding> {
    if history.leftovers.is_empty() || repository.writer().is_some() {
        return Vec::new();
    }
    // Who has written until now may have finished it since it was seen.
    let is_there = |leftover: &&Leftover| repository.has_leftover(leftover);
    let left = history.leftovers.iter().filter(is_there);
    left.map(|leftover| {
        let what = format!("{} is of a run that has not finished", leftover.location);
        Finding::new("unfinished-run", what)
    })
    .collect()
}
