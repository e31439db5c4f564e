//! Reports the state of a domain: its checkpoints, its disks with their bitmaps, and whether they
//! agree with each other and with the repository. Changes nothing and waits for no other run.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use jiff::Timestamp;
use jiff::civil::Date;

use super::each::{Fault, Judged};
use super::error::Cause;
use super::reconcile::{self, Reconciliation, Wishes};
use super::restore_mark::{self, FoundMark};
use super::{Error, Result, grouping, survey};
use crate::host::{Host, HostError};
use crate::model::chain::MissedWrite;
use crate::model::checkpoint::{Checkpoint, KEPT_CHECKPOINTS, is_own};
use crate::model::domain::{Domain, DomainState};
use crate::model::eligibility::{self, Allowed, Eligibility};
use crate::model::finding::Finding;
use crate::model::left_out::{self, Exclusion, Exclusions, Kind, LeftOut};
use crate::model::level::FullRule;
use crate::model::period::{GroupBy, Period};
use crate::model::stop::Stop;
use crate::model::text::{shell_word, shown, with_sources};
use crate::repo::{BootProof, DomainRepository, History, Identity, Proof, RepoError, Repository};

mod agreement;
mod folder;

use agreement::{Records, disagreeing_bitmaps, disagreeing_period};
pub use folder::DirStats;
use folder::dir_stats;

/// The state of a domain.
#[derive(Clone, Debug)]
pub struct DomainStatus {
    /// Its name.
    pub domain: String,
    /// Whether it runs.
    pub state: DomainState,
    /// Names of its checkpoints, oldest first.
    pub checkpoints: Vec<String>,
    /// The newest of vmsnap's checkpoints.
    pub newest: Option<Newest>,
    /// Its eligible disks that could be examined, including raw and encrypted ones, which a backup
    /// saves only on request.
    pub disks: Vec<DiskStatus>,
    /// The disks that a backup without `--raw` leaves out, and why.
    pub left_out: Vec<LeftOut>,
    /// What disagrees or cannot be checked; empty if everything agrees.
    pub inconsistencies: Vec<String>,
    /// The contents of the current period's folder; `None` without a repository.
    pub dir: Option<DirStats>,
    /// The newest restore point that is no copy: its id and its time.
    pub latest: Option<(String, Timestamp)>,
    /// The disks that the newest restore point lacks and that should have been saved.
    pub latest_lacks: Vec<String>,
    /// When the newest restore point was last verified, and with what result.
    pub proof: Option<Proof>,
    /// How far a guest came that was last started from the newest restore point.
    pub boot_proof: Option<BootProof>,
    /// The damage that verifications found in the newest restore point or its parents.
    pub suspected_damage: Option<String>,
    /// The writes that bitmaps are known to have missed, for disks that were not saved since.
    pub missed_writes: Vec<MissedWrite>,
    /// The plan of a backup made now. `None` without a repository, if the plan cannot be known, or
    /// if the backup would be refused because of its grouping.
    pub next: Option<Reconciliation>,
    /// The run that writes to the domain's folder now, as it describes itself.
    pub writer: Option<String>,
    /// Findings worth reporting.
    pub findings: Vec<Finding>,
}

/// The code of the finding that a disk could not be examined.
const NOT_EXAMINED: &str = "disk-not-examined";

impl Judged for DomainStatus {
    fn faults(&self) -> Vec<Fault> {
        match self.is_complete() {
            true => Vec::new(),
            false => vec![Fault::Incomplete],
        }
    }
}

impl DomainStatus {
    /// Whether no inconsistency was found.
    pub fn is_consistent(&self) -> bool {
        self.inconsistencies.is_empty()
    }

    /// Whether no finding says that a disk could not be examined.
    pub(crate) fn is_complete(&self) -> bool {
        self.not_examined().next().is_none()
    }

    /// The findings about disks that could not be examined.
    pub fn not_examined(&self) -> impl Iterator<Item = &Finding> {
        let mut findings = self.findings.iter();
        std::iter::from_fn(move || findings.find(|finding| finding.code == NOT_EXAMINED))
    }

    /// The number of bytes written since vmsnap's newest checkpoint to the disks that can be
    /// incremental; `None` if there is no such disk, or if the number is unknown for one of them.
    pub fn changed_bytes(&self) -> Option<u64> {
        let changed = self.disks.iter().filter(|disk| disk.can_be_incremental);
        let mut changed = changed.map(|disk| disk.changed_bytes).peekable();
        changed.peek()?;
        changed.try_fold(0u64, |sum, bytes| Some(sum.saturating_add(bytes?)))
    }
}

/// The newest of vmsnap's checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Its name.
    pub name: String,
    /// When it was made, if its record has a valid time.
    pub created: Option<Timestamp>,
}

/// The state of a disk.
#[derive(Clone, Debug)]
pub struct DiskStatus {
    /// Its target.
    pub target: String,
    /// Its size, in bytes.
    pub virtual_size: u64,
    /// The space that it takes on the host, in bytes.
    pub actual_size: u64,
    /// Names of its bitmaps. While the domain runs, these are the sound bitmaps of checkpoints, and
    /// vmsnap's bitmaps without a checkpoint that were in the image when the domain started.
    pub bitmaps: Vec<String>,
    /// Whether its bitmaps could be examined; if not, `bitmaps` is empty and means nothing.
    pub bitmaps_known: bool,
    /// The number of bytes written since vmsnap's newest checkpoint, if the hypervisor reports it.
    pub changed_bytes: Option<u64>,
    /// Whether its backups can be incremental.
    pub can_be_incremental: bool,
}

/// The inputs of a status.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The hypervisor.
    pub host: &'a dyn Host,
    /// The repository, if there is one. The status then covers the current period and the next
    /// backup too.
    pub repo: Option<&'a dyn Repository>,
    /// The grouping whose current period is examined.
    pub group_by: GroupBy,
    /// The rule for full restore points, which decides whether a chain may cross periods.
    pub full: FullRule,
    /// The current day, in the local time zone.
    pub today: Date,
    /// Whether backups may hold the plain text of encrypted disks.
    pub store_decrypted: bool,
    /// The disks that the command line excludes from backups.
    pub exclude: &'a Exclusions,
}

/// The largest number of domains examined at the same time: each may run a `qemu-img`.
const AT_ONCE: usize = 8;

/// Returns the state of each domain, in the order of `names`. Examines several at a time. A failure
/// does not stop the others.
pub fn statuses(names: &[String], subject: &Subject<'_>, stop: &Stop) -> Vec<Result<DomainStatus>> {
    let results: Vec<OnceLock<Result<DomainStatus>>> = names.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(place) else { return };
            let result = match stop.reason() {
                Some(reason) => Err(Error::of(name, Cause::Stopped(reason))),
                None => status(name, subject),
            };
            // Each place is filled by one thread only.
            let _ = results[place].set(result);
        }
    };
    thread::scope(|scope| {
        for _ in 0..names.len().min(AT_ONCE) {
            scope.spawn(work);
        }
    });
    results.into_iter().filter_map(OnceLock::into_inner).collect()
}

/// Returns the state of the domain `name`.
pub fn status(name: &str, subject: &Subject<'_>) -> Result<DomainStatus> {
    survey::steadily(name, subject.host, |domain| status_of(domain, subject))
}

fn status_of(domain: Domain, subject: &Subject<'_>) -> Result<DomainStatus> {
    let host = subject.host;
    let name = &domain.name;
    let failed = |error: HostError| Error::of(name, error);
    let checkpoints = host.checkpoints(&domain).map_err(failed)?;
    let newest = checkpoints.iter().rev().find(|found| is_own(&found.name));
    let mut findings = Vec::new();
    let mut disks = Vec::new();
    let mut left_out = Vec::new();
    let excluded = excluded_of(subject, name);
    for disk in &domain.disks {
        if let Eligibility::Skipped(left) = eligibility::of(&domain, disk, allowed(subject), excluded) {
            if left.kind == Kind::Encrypted {
                findings.push(left.finding());
            }
            left_out.push(left);
        }
        // Raw and encrypted disks are shown even where a backup needs a switch to save them.
        let eligibility = eligibility::of(&domain, disk, Allowed::ALL, excluded);
        match &eligibility {
            Eligibility::NoDisk(_) => continue,
            Eligibility::Skipped(left) => {
                findings.push(left.finding());
                continue;
            }
            Eligibility::Incremental | Eligibility::FullOnly(_) => {}
        }
        let target = &disk.target;
        let of_disk = |error: HostError| Error::of_disk(name, target, error);
        let sizes = match host.disk_sizes(&domain, target) {
            Ok(sizes) => sizes,
            Err(error) => {
                findings.push(not_examined(host, &domain, target, error).map_err(of_disk)?);
                continue;
            }
        };
        let bitmaps = match bitmaps(host, &domain, target, &checkpoints) {
            Ok(bitmaps) => Some(bitmaps),
            Err(HostError::NotHere { .. }) => {
                let message = format!(
                    "the bitmaps of disk {target} cannot be seen: the domain is shut off, and its images are on another machine"
                );
                findings.push(Finding::of_disk("bitmaps-not-seen", target, message));
                None
            }
            Err(error) => {
                findings.push(not_examined(host, &domain, target, error).map_err(of_disk)?);
                None
            }
        };
        disks.push(DiskStatus {
            target: target.clone(),
            virtual_size: sizes.virtual_size,
            actual_size: sizes.actual_size,
            bitmaps_known: bitmaps.is_some(),
            bitmaps: bitmaps.unwrap_or_default(),
            changed_bytes: newest.and_then(|newest| newest.dirty_bytes(target)),
            can_be_incremental: eligibility == Eligibility::Incremental,
        });
    }
    findings.extend(eligibility::missing_exclusions(&domain, excluded));
    let has_bitmaps = disks
        .iter()
        .any(|disk| disk.bitmaps.iter().any(|name| is_own(name)));
    if newest.is_some() || has_bitmaps {
        findings.extend(internal_snapshots(host, &domain));
    }
    let mut inconsistencies = disagreeing_bitmaps(&disks, &checkpoints);
    let not_examined = findings.iter().filter(|finding| finding.code == NOT_EXAMINED);
    inconsistencies.extend(
        not_examined
            .filter_map(|finding| finding.disk.as_ref())
            .map(|disk| format!("the bitmaps of disk {disk} cannot be checked")),
    );
    let mut status = DomainStatus {
        domain: domain.name.clone(),
        state: domain.state,
        newest: newest.map(|newest| Newest {
            name: newest.name.clone(),
            created: Timestamp::from_second(newest.created).ok(),
        }),
        inconsistencies,
        disks,
        left_out,
        dir: None,
        latest: None,
        latest_lacks: Vec::new(),
        proof: None,
        boot_proof: None,
        suspected_damage: None,
        missed_writes: Vec::new(),
        next: None,
        writer: None,
        findings,
        checkpoints: Vec::new(),
    };
    if let Some(repo) = subject.repo {
        compare_with(repo, &domain, &checkpoints, subject, &mut status)?;
    }
    status.checkpoints = checkpoints
        .into_iter()
        .map(|checkpoint| checkpoint.name)
        .collect();
    Ok(status)
}

/// Adds what the repository knows.
fn compare_with(
    repo: &dyn Repository,
    domain: &Domain,
    checkpoints: &[Checkpoint],
    subject: &Subject<'_>,
    status: &mut DomainStatus,
) -> Result<()> {
    let failed = |error: RepoError| Error::of(&domain.name, error);
    let repository = repo.domain(&domain.name).map_err(failed)?;
    // Read before its folder: a run that ends in between has left nothing unfinished.
    status.writer = repository.writer();
    let history = repository.history().map_err(failed)?;
    if !repo.exists() {
        let message = format!(
            "there is no folder {}: nothing was backed up there yet, or its file system is not mounted",
            shown(&repo.location())
        );
        status.findings.push(Finding::new("no-repository", message));
    }
    let period = Period::containing(subject.group_by, subject.today).folder();
    let begun = match status.writer {
        Some(_) => survey::begun_checkpoints(repository.as_ref(), &history),
        None => BTreeSet::new(),
    };
    let identity = repo.identity();
    if let Identity::Unusable(why) = &identity {
        let what = format!("the id of the repository cannot be used: {why}");
        status.findings.push(Finding::new("repository-id-unusable", what));
    }
    let records = Records {
        history: &history,
        repository: identity.id(),
        period: &period,
        current: &current_periods(subject),
        uuid: &domain.uuid,
        begun: &begun,
    };
    let disagreeing = disagreeing_period(&records, checkpoints);
    status.inconsistencies.extend(disagreeing);
    // A copy does not show that the backups continue.
    let newest = history.chains.latest_in_periods();
    let latest = newest.map(|kept| (kept.point.id.clone(), kept.point.time));
    status.latest = latest;
    let lacks = newest.map(|kept| left_out::unasked(&kept.point.left_out));
    status.latest_lacks = lacks
        .into_iter()
        .flatten()
        .map(|left| left.disk.clone())
        .collect();
    status.suspected_damage = newest.and_then(|kept| history.chains.any_suspected_damage(&kept.point.id));
    let kept = newest.and_then(|newest| history.get(&newest.point.id));
    status.proof = kept.and_then(|kept| kept.proof.clone());
    status.boot_proof = kept.and_then(|kept| kept.boot_proof.clone());
    status.missed_writes = history.chains.standing_missed_writes().cloned().collect();
    status.dir = Some(dir_stats(repository.period_usage(&period), &history, &period));
    let unfinished = restore_mark::read(repository.as_ref())?;
    if let Some(found) = &unfinished {
        let what = found.sentence();
        match status.writer {
            None if found.is_writing() => status.inconsistencies.push(what),
            // It may be at work, or it has changed nothing.
            _ => status.findings.push(Finding::new("restore-in-place", what)),
        }
    }
    let renamed = restore_mark::of_former_name(repo, &domain.name, &domain.uuid)?;
    status
        .inconsistencies
        .extend(renamed.iter().map(ToString::to_string));
    match grouping::finding(repository.as_ref(), &history, subject.group_by)? {
        // No backup is made of disks in between.
        _ if renamed.is_some() || unfinished.as_ref().is_some_and(FoundMark::is_writing) => {}
        // A refused backup has no level.
        Some(refused) => status.findings.push(refused),
        None if status.is_complete() && status.disks.iter().all(|disk| disk.bitmaps_known) => {
            match next_backup(repository.as_ref(), &history, domain, checkpoints, subject) {
                Ok(next) => status.next = Some(next),
                Err(error) => status.findings.push(Finding::new(
                    "next-backup-unknown",
                    format!(
                        "the next backup cannot be predicted: {}",
                        with_sources(&error.cause)
                    ),
                )),
            }
        }
        None => {}
    }
    let damage = history.damage();
    status.findings.extend(history.findings.into_iter().chain(damage));
    Ok(())
}

/// Returns the finding that a disk could not be examined. Returns the error instead if the other
/// disks cannot be examined either: the error concerns the host or the domain, or the domain has
/// been started or stopped since.
fn not_examined(
    host: &dyn Host,
    domain: &Domain,
    target: &str,
    error: HostError,
) -> std::result::Result<Finding, HostError> {
    let cause = match &error {
        HostError::OfDisk { source, .. } => source,
        other => other,
    };
    let is_of_host = matches!(
        cause,
        HostError::Connect { .. }
            | HostError::ImageInUse { .. }
            | HostError::MissingProgram { .. }
            | HostError::NoAnswer { .. }
            | HostError::NoLibvirt
            | HostError::NoSuchDomain { .. }
            | HostError::Stopped
    );
    let before = (domain.state.is_active(), domain.id);
    let is_same = |now: Domain| (now.state.is_active(), now.id) == before;
    if is_of_host || !host.domain(&domain.name).is_ok_and(is_same) {
        return Err(error);
    }
    let what = format!("disk {target} cannot be examined: {}", with_sources(cause));
    Ok(Finding::of_disk(NOT_EXAMINED, target, what))
}

/// Plans a backup into the current period.
fn next_backup(
    repository: &dyn DomainRepository,
    history: &History,
    domain: &Domain,
    checkpoints: &[Checkpoint],
    subject: &Subject<'_>,
) -> Result<Reconciliation> {
    let checkpoints = checkpoints.to_vec();
    let survey = survey::survey_with(checkpoints, domain.clone(), repository, history, subject.host)?;
    let wishes = Wishes {
        period: &Period::containing(subject.group_by, subject.today).folder(),
        current: &current_periods(subject),
        full: subject.full,
        allowed: allowed(subject),
        exclude: excluded_of(subject, &domain.name),
        keep_checkpoints: KEPT_CHECKPOINTS,
    };
    Ok(reconcile::reconcile(&survey, &history.chains, &wishes))
}

/// Returns the folders of the current periods, one per grouping.
fn current_periods(subject: &Subject<'_>) -> [String; 4] {
    GroupBy::ALL.map(|by| Period::containing(by, subject.today).folder())
}

fn allowed(subject: &Subject<'_>) -> Allowed {
    Allowed {
        raw: false,
        decrypted: subject.store_decrypted,
    }
}

fn excluded_of<'a>(subject: &Subject<'a>, domain: &str) -> &'a [Exclusion] {
    subject.exclude.get(domain).map_or(&[], Vec::as_slice)
}

/// Returns the bitmaps of a disk: first those of checkpoints, in their order, then the others.
/// While the domain runs, the others are only vmsnap's, and only those that were in the image at
/// its start.
fn bitmaps(
    host: &dyn Host,
    domain: &Domain,
    target: &str,
    checkpoints: &[Checkpoint],
) -> std::result::Result<Vec<String>, HostError> {
    if !domain.state.is_active() {
        let mut names = host.bitmap_names(domain, target)?;
        let place = |name: &String| checkpoints.iter().position(|found| found.name == *name);
        names.sort_by_key(|name| (place(name).unwrap_or(usize::MAX), name.clone()));
        return Ok(names);
    }
    let sound = checkpoints
        .iter()
        .filter(|checkpoint| checkpoint.is_sound_for(target));
    let mut names: Vec<String> = sound.map(|checkpoint| checkpoint.name.clone()).collect();
    let is_listed = |name: &String| checkpoints.iter().any(|listed| listed.name == *name);
    // The rest is reported even if an image cannot be examined.
    let mut orphans = host.bitmap_names(domain, target).unwrap_or_default();
    orphans.retain(|name| is_own(name) && !is_listed(name));
    orphans.sort();
    names.extend(orphans);
    Ok(names)
}

/// Reports internal snapshots, because reverting to one fails while a disk has bitmaps: QEMU
/// refuses to revert, and libvirt then shuts the domain off.
fn internal_snapshots(host: &dyn Host, domain: &Domain) -> Option<Finding> {
    // A failure to list them is ignored: the status is worth more.
    let names = host.internal_snapshots(domain).unwrap_or_default();
    let (newest, others) = names.split_last()?;
    let all = match others.len() {
        0 => format!("the internal snapshot {}", shown(newest)),
        more => format!("internal snapshots ({} and {more} more)", shown(newest)),
    };
    let domain = shell_word(&domain.name);
    let what = format!(
        "the domain has {all}: reverting to an internal snapshot fails as long as the domain's disks have vmsnap's bitmaps. Before reverting, run \
         `vmsnap scrub {domain} --scrub-type both`; the next backup then saves all disks in full"
    );
    Some(Finding::new("internal-snapshots", what))
}
