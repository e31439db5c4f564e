//! Reads the state of a domain: what the hypervisor reports, which bitmaps its disks have, and what
//! unfinished runs recorded. Changes nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::journal::JournalEntry;
use super::{Error, Result};
use crate::host::{ActiveJob, Capabilities, Host, HostError};
use crate::model::chain::Chains;
use crate::model::checkpoint::{self, Checkpoint, KEPT_CHECKPOINTS};
use crate::model::domain::{Disk, Domain, Source};
use crate::model::finding::Finding;
use crate::model::restore_point::{FileId, Level};
use crate::repo::{DomainRepository, History, Identity, Leftover, Note, RepoError};

/// The state of a domain.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The domain.
    pub domain: Domain,
    /// The features that its hypervisor supports.
    pub capabilities: Capabilities,
    /// The job that is active on it, if there is one.
    pub job: Option<ActiveJob>,
    /// Its checkpoints, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// The facts about its disks, in the order of its XML.
    pub disks: Vec<DiskFacts>,
    /// The leftovers of unfinished runs in the repository.
    pub leftovers: Vec<LeftoverRun>,
    /// Interrupted removals of periods and restore points, and interrupted merges.
    pub removals: Vec<Leftover>,
    /// Lost checkpoints that could not be registered again, for example because their bitmaps are
    /// gone.
    pub missing: Vec<String>,
    /// The id of the repository, if it is known.
    pub repository: Option<String>,
    /// Findings about its state.
    pub findings: Vec<Finding>,
}

/// The facts about a disk before a backup begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// Its target.
    pub target: String,
    /// Its size in bytes, if known. The backup reads it again from the export.
    pub size: Option<u64>,
    /// The identities of the disk's image files, as far as they can be determined.
    pub files: Vec<(PathBuf, FileId)>,
    /// The bitmaps that the disk's image is known to have, including those of other programs.
    pub bitmaps: Vec<String>,
}

/// A run that did not finish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftoverRun {
    /// The leftover itself.
    pub leftover: Leftover,
    /// Its journal entry; `None` if the entry is missing or unusable.
    pub journal_entry: Option<JournalEntry>,
}

/// The largest number of attempts to examine a domain that is started or stopped at the same time.
const MOST_LOOKS: usize = 4;

/// Runs `look` on the domain `name`. If `look` fails and the domain was started or stopped in the
/// meantime, runs it again.
pub(crate) fn steadily<T>(
    name: &str,
    host: &dyn Host,
    mut look: impl FnMut(Domain) -> Result<T>,
) -> Result<T> {
    let mut looks = 1;
    loop {
        let domain = host.domain(name).map_err(|error| Error::of(name, error))?;
        let before = (domain.state.is_active(), domain.id);
        let error = match look(domain) {
            Ok(seen) => return Ok(seen),
            Err(error) => error,
        };
        let is_other = |now: Domain| (now.state.is_active(), now.id) != before;
        if looks == MOST_LOOKS || !host.domain(name).is_ok_and(is_other) {
            return Err(error);
        }
        looks += 1;
    }
}

/// Reads the state of the domain.
pub fn survey(
    domain: Domain,
    repository: &dyn DomainRepository,
    history: &History,
    host: &dyn Host,
) -> Result<Survey> {
    let checkpoints = host.checkpoints(&domain);
    let checkpoints = checkpoints.map_err(|error| Error::of(&domain.name, error))?;
    survey_with(checkpoints, domain, repository, history, host)
}

/// Reads the state of the domain, for checkpoints that have just been read.
pub(super) fn survey_with(
    checkpoints: Vec<Checkpoint>,
    domain: Domain,
    repository: &dyn DomainRepository,
    history: &History,
    host: &dyn Host,
) -> Result<Survey> {
    let name = domain.name.clone();
    let failed = |error: HostError| Error::of(&name, error);
    let repo_failed = |error: RepoError| Error::of(&name, error);
    let mut findings = Vec::new();
    let identity = repository.identity();
    findings.extend(without_its_past(repository, &identity, history, &checkpoints));
    Ok(Survey {
        capabilities: host.capabilities().map_err(failed)?,
        job: host.active_job(&domain).map_err(failed)?,
        disks: disk_facts(&domain, &history.chains, &checkpoints, host),
        leftovers: leftover_runs(repository, history, &mut findings).map_err(repo_failed)?,
        removals: repository.interrupted_removals().map_err(repo_failed)?,
        missing: Vec::new(),
        repository: identity.id().map(str::to_owned),
        findings,
        checkpoints,
        domain,
    })
}

/// Returns the facts about the domain's disks. Facts that cannot be read now are left out, because
/// they are read again when they are needed.
pub(crate) fn disk_facts(
    domain: &Domain,
    chains: &Chains,
    checkpoints: &[Checkpoint],
    host: &dyn Host,
) -> Vec<DiskFacts> {
    let asks_images = !domain.state.is_active() || is_record_lost(&domain.uuid, chains, checkpoints);
    let disks = domain.disks.iter().filter(|disk| disk.source != Source::Empty);
    let facts = disks.map(|disk| DiskFacts {
        target: disk.target.clone(),
        size: host
            .disk_sizes(domain, &disk.target)
            .ok()
            .map(|found| found.virtual_size),
        files: images(disk)
            .filter_map(|path| Some((path.to_owned(), host.file_id(path)?)))
            .collect(),
        bitmaps: match asks_images {
            true => host.bitmap_names(domain, &disk.target).unwrap_or_default(),
            false => Vec::new(),
        },
    });
    facts.collect()
}

/// The paths of a disk's images: its source, and the images beneath it.
fn images(disk: &Disk) -> impl Iterator<Item = &Path> {
    let beneath = disk.beneath().filter_map(|layer| layer.source.path());
    disk.source
        .path()
        .into_iter()
        .chain(beneath)
        .map(PathBuf::as_path)
}

/// Whether libvirt has lost a checkpoint that the newest chain recorded. Its bitmaps may still be
/// there. Looking for them takes time on a running domain, so vmsnap looks for them only in this
/// case.
fn is_record_lost(uuid: &str, chains: &Chains, checkpoints: &[Checkpoint]) -> bool {
    let newest_first = chains.in_periods().rev().map(|kept| &kept.point);
    let mut of_chain = newest_first.filter(|point| point.uuid == uuid);
    let mut is_full = false;
    let mut chain = std::iter::from_fn(|| {
        let point = of_chain.next().filter(|_| !is_full)?;
        is_full = point.level == Level::Full;
        Some(point)
    });
    // Older checkpoints have been retired.
    chain.by_ref().take(KEPT_CHECKPOINTS).any(|point| {
        let recorded = point.checkpoint.as_ref();
        recorded.is_some_and(|recorded| !checkpoints.iter().any(|listed| listed.name == recorded.name))
    })
}

/// Returns the unfinished runs with their journal entries.
fn leftover_runs(
    repository: &dyn DomainRepository,
    history: &History,
    findings: &mut Vec<Finding>,
) -> std::result::Result<Vec<LeftoverRun>, RepoError> {
    let mut runs = Vec::new();
    for leftover in &history.leftovers {
        let journal_entry = match repository.note(leftover)? {
            // The entry is durable before anything is begun, so a run with an incomplete entry
            // began nothing.
            Note::Text(bytes) => serde_json::from_slice(&bytes).ok(),
            Note::Unusable(what) => {
                findings.push(Finding::new("note-unusable", what));
                None
            }
            Note::None => None,
        };
        runs.push(LeftoverRun {
            leftover: leftover.clone(),
            journal_entry,
        });
    }
    Ok(runs)
}

/// Returns the checkpoints that unfinished runs are making, as far as their journal entries can be
/// read.
pub(crate) fn begun_checkpoints(repository: &dyn DomainRepository, history: &History) -> BTreeSet<String> {
    let runs = leftover_runs(repository, history, &mut Vec::new()).unwrap_or_default();
    let entries = runs.into_iter().filter_map(|run| run.journal_entry);
    entries.filter_map(|entry| entry.checkpoint).collect()
}

/// Reports a repository that holds nothing of a domain although the domain has vmsnap's
/// checkpoints: it may be the wrong repository, or its file system is not mounted.
///
/// If the repository has an id, checkpoints that name another repository do not count.
fn without_its_past(
    repository: &dyn DomainRepository,
    identity: &Identity,
    history: &History,
    checkpoints: &[Checkpoint],
) -> Option<Finding> {
    let has_past = !history.kept.is_empty() || !history.findings.is_empty() || !history.leftovers.is_empty();
    let is_own = |found: &Checkpoint| {
        let is_other = identity.id().is_some() && found.is_of_other_repository(identity.id());
        checkpoint::is_own(&found.name) && !is_other
    };
    (!has_past && checkpoints.iter().any(is_own)).then(|| {
        let what = format!(
            "the domain has checkpoints of earlier backups, but {} holds no restore point; if restore \
             points should be there, check that the file system is mounted",
            repository.location()
        );
        Finding::new("repository-without-its-past", what)
    })
}
