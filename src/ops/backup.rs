//! Makes a restore point of a domain.
//!
//! The order, which `docs/safety.md` explains: lock, heal, plan, write the journal entry, begin the
//! job and make the checkpoint, copy the disks, end the job, commit. Superseded checkpoints are
//! removed only after the commit. After a failure before the commit, the new checkpoint and the
//! partial folder are removed, now or by the next run. No earlier restore point is touched.

use std::time::Duration;

use super::each::{Fault, Judged};
use super::monitor::{self, Event};
use super::prune::{self, PrunePlan};
use super::reconcile::{self, Reconciliation, Wishes};
use super::retention::{self, Policy, RetentionOutcome, RetentionPreview};
use super::survey::{self, Survey};
use super::{Cause, Class, Context, Error, Result, grouping, heal, lock, restore_mark};
use crate::host::PlaceWishes;
use crate::model::checkpoint::KEPT_CHECKPOINTS;
use crate::model::compression::Compression;
use crate::model::eligibility::Allowed;
use crate::model::finding::Finding;
use crate::model::left_out::Exclusion;
use crate::model::level::FullRule;
use crate::model::period::{GroupBy, Period};
use crate::model::restore_point::RestorePoint;
use crate::model::text::with_sources;
use crate::repo::{DomainRepository, DomainWriter, History, RepoError};

mod attempt;
mod commit;
mod disks;
mod final_level;
mod firmware;
mod spot;
mod standalone;

use attempt::Attempt;

/// The options of a backup.
#[derive(Clone, Debug)]
pub struct Options {
    /// The grouping, which decides which restore points share a folder.
    pub group_by: GroupBy,
    /// Whether raw disks are saved too.
    pub raw: bool,
    /// Whether encrypted disks are saved too, as plain text.
    pub store_decrypted: bool,
    /// Disks to leave out, besides those that the domain's metadata excludes.
    pub exclude: Vec<Exclusion>,
    /// How long the guest agent may take to freeze the file systems; `None` for no freeze.
    pub freeze: Option<Duration>,
    /// Where to put the socket and scratch files.
    pub places: PlaceWishes,
    /// How many checkpoints to keep in the domain for the newest chain of each current period.
    pub keep_checkpoints: usize,
    /// The rule for full restore points, which decides whether a chain may cross periods.
    pub full: FullRule,
    /// Whether to delete the previous period once the current one can replace it.
    pub prune: bool,
    /// The policy to apply after the new restore point exists, if there is one.
    pub keep: Option<Policy>,
    /// Whether to back up even if the domain's backups have another grouping.
    pub force: bool,
    /// Whether to make a standalone copy, which has no checkpoint and belongs to no chain.
    pub copy: bool,
    /// How the images are compressed.
    pub compression: Compression,
    /// How long to wait for another run that writes to the domain's folder.
    pub wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            group_by: GroupBy::default(),
            raw: false,
            store_decrypted: false,
            exclude: Vec::new(),
            freeze: Some(Duration::from_secs(10)),
            places: PlaceWishes::default(),
            keep_checkpoints: KEPT_CHECKPOINTS,
            full: FullRule::default(),
            prune: false,
            keep: None,
            force: false,
            copy: false,
            compression: Compression::default(),
            wait: Duration::ZERO,
        }
    }
}

/// The result of a successful backup.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The restore point, as its manifest describes it.
    pub point: RestorePoint,
    /// Where it is stored.
    pub location: String,
    /// The total size of its images and small files, in bytes.
    pub file_bytes: u64,
    /// The result of pruning, if it was requested.
    pub prune: Option<PruneOutcome>,
    /// The result of the policy, if there was one.
    pub retention: Option<RetentionOutcome>,
    /// The findings in the manifest, those about the repository and repairs, and those about
    /// problems after the commit.
    pub findings: Vec<Finding>,
}

impl Judged for Outcome {
    fn faults(&self) -> Vec<Fault> {
        let partial = self.point.is_partial().then_some(Fault::Partial);
        let not_pruned = matches!(self.prune, Some(PruneOutcome::Failed(_)))
            || matches!(self.retention, Some(RetentionOutcome::Failed { .. }));
        let not_pruned = not_pruned.then_some(Fault::NotPruned);
        partial.into_iter().chain(not_pruned).collect()
    }
}

/// The result of pruning after a successful backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PruneOutcome {
    /// This period was deleted.
    Deleted(String),
    /// Nothing was deleted, for this reason.
    Kept(String),
    /// Deleting failed, for this reason. The period may still exist, completely or in part.
    Failed(String),
}

/// The reason not to prune while superseded checkpoints could not be removed.
const STILL_NEEDED: &str = "superseded checkpoints could not be removed, and the previous period \
    may hold the only record of them";

/// The reason not to prune after a partial backup: only older restore points may hold the missing
/// disk.
const PARTIAL: &str = "the backup is partial, and the previous period may hold the missing disk";

/// The reason why a policy removes nothing after a partial backup.
const PARTIAL_KEPT: &str = "the backup is partial, and older restore points may hold the missing disk";

/// The reason why a policy removes nothing while superseded checkpoints could not be removed.
const STILL_RECORDED: &str = "superseded checkpoints have to be removed first, but their removal failed";

/// Makes a restore point of the domain `name`.
pub fn backup(name: &str, context: &Context, options: &Options) -> Result<Outcome> {
    monitor::noting(context.monitor, |monitor| {
        back_up(name, &context.with_monitor(monitor), options)
    })
}

fn back_up(name: &str, context: &Context, options: &Options) -> Result<Outcome> {
    check(name, options)?;
    let repo_failed = |error: RepoError| Error::of(name, error);
    let repository = context.repo.domain(name).map_err(repo_failed)?;
    // Fails for an unknown domain before anything is created for it.
    let found = context.host.domain(name);
    let uuid = found.map_err(|error| Error::of(name, error))?.uuid;
    let guards = !options.force && !options.copy;
    if guards {
        let history = repository.history().map_err(repo_failed)?;
        grouping::check(repository.as_ref(), &history, options.group_by)?;
    }
    let locked = lock::lock_for(repository.as_ref(), options.wait, context)?;
    // Before anything is healed: the disks may be open for the dead run.
    restore_mark::refuse(context.repo, repository.as_ref(), &uuid)?;
    restore_mark::clear_unwritten(repository.as_ref(), locked.as_ref(), context.host)?;
    let healed = heal::heal(
        repository.as_ref(),
        locked.as_ref(),
        context,
        |survey, history| {
            match options.copy {
                // A copy touches no checkpoint.
                true => reconcile::repairs(survey),
                false => reconciled(survey, history, context, options).repairs,
            }
        },
    )?;
    if guards {
        // Another run may have begun another chain while this one waited for the lock.
        grouping::check(repository.as_ref(), &healed.history, options.group_by)?;
    }
    let planned = decide(
        repository.as_ref(),
        &healed.survey,
        &healed.history,
        context,
        options,
    )?;
    if let Some(operation) = planned.obstacle {
        return Err(Error::of(name, Cause::Busy { operation }));
    }
    let mut findings = healed.findings;
    let of_history = healed.history.findings.iter().cloned();
    for finding in of_history.chain(healed.history.damage()) {
        report(name, &finding, context);
        findings.push(finding);
    }
    let attempt = Attempt {
        domain: &healed.survey.domain,
        repository: repository.as_ref(),
        locked: locked.as_ref(),
        history: &healed.history,
        context,
        options,
    };
    let mut outcome = attempt.make(&planned)?;
    monitor::add_new(&mut findings, std::mem::take(&mut outcome.findings));
    if options.prune {
        let is_retired = !findings.iter().any(|finding| finding.code == commit::NOT_RETIRED);
        outcome.prune = Some(if outcome.point.is_partial() {
            PruneOutcome::Kept(PARTIAL.to_owned())
        } else if !is_retired {
            PruneOutcome::Kept(STILL_NEEDED.to_owned())
        } else {
            prune_after(name, repository.as_ref(), locked.as_ref(), context, options)
        });
        findings.extend(pinned_period(repository.as_ref(), context, options));
    }
    if let Some(policy) = &options.keep {
        let is_retired = !findings.iter().any(|finding| finding.code == commit::NOT_RETIRED);
        outcome.retention = Some(if outcome.point.is_partial() {
            RetentionOutcome::Kept(PARTIAL_KEPT.to_owned())
        } else if !is_retired {
            RetentionOutcome::Kept(STILL_RECORDED.to_owned())
        } else {
            let (applied, waiting) =
                retention::after_backup(name, repository.as_ref(), locked.as_ref(), policy, context);
            findings.extend(waiting);
            applied
        });
    }
    outcome.findings = findings;
    Ok(outcome)
}

/// Refuses options that contradict each other.
fn check(name: &str, options: &Options) -> Result<()> {
    match options.contradiction() {
        None => Ok(()),
        Some(what) => Err(Error::of(name, Cause::Usage(what.to_owned()))),
    }
}

impl Options {
    /// Returns the reason why these options are invalid or cannot be combined, if there is one.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        match &self.keep {
            _ if self.copy && self.prune => Some(
                "--copy and --prune cannot be combined: --prune deletes the period before that of the backup, and a copy belongs to no period",
            ),
            Some(policy) if policy.is_empty() => Some(retention::EMPTY_POLICY),
            Some(_) if self.prune => Some("--prune and --keep-… cannot be combined: use one of them"),
            Some(_) if self.copy => {
                Some("--copy and --keep-… cannot be combined: the rules do not apply to copies")
            }
            _ => None,
        }
    }
}

/// Reports that the previous period stays because of a pin although it was due to be deleted.
fn pinned_period(repository: &dyn DomainRepository, context: &Context, options: &Options) -> Option<Finding> {
    let history = repository.history().ok()?;
    let today = context.now.date();
    let finding = prune::pinned(&history.chains, options.group_by, today)?;
    report(repository.name(), &finding, context);
    Some(finding)
}

/// Decides what a backup would do now.
fn decide(
    repository: &dyn DomainRepository,
    survey: &Survey,
    history: &History,
    context: &Context,
    options: &Options,
) -> Result<Reconciliation> {
    let planned = reconciled(survey, history, context, options);
    if !options.copy {
        return Ok(planned);
    }
    let folder = repository.copy_period(context.now.timestamp());
    let folder = folder.map_err(|error| Error::of(repository.name(), error))?;
    Ok(standalone::as_copy(planned, folder))
}

fn reconciled(survey: &Survey, history: &History, context: &Context, options: &Options) -> Reconciliation {
    let wishes = Wishes {
        period: &Period::containing(options.group_by, context.now.date()).folder(),
        current: &current_periods(context),
        full: options.full,
        allowed: Allowed {
            raw: options.raw,
            decrypted: options.store_decrypted,
        },
        exclude: &options.exclude,
        keep_checkpoints: options.keep_checkpoints,
    };
    reconcile::reconcile(survey, &history.chains, &wishes)
}

/// Returns the folders of the current periods, one per grouping, because a domain may have backups
/// of several groupings.
fn current_periods(context: &Context) -> [String; 4] {
    GroupBy::ALL.map(|by| Period::containing(by, context.now.date()).folder())
}

/// Prunes after the new restore point exists. A failure here does not fail the backup.
fn prune_after(
    name: &str,
    repository: &dyn DomainRepository,
    locked: &dyn DomainWriter,
    context: &Context,
    options: &Options,
) -> PruneOutcome {
    let pruned = locked
        .history()
        .map_err(|error| Error::of(name, error))
        .and_then(|history| {
            let plan = prune::plan(repository, &history.chains, options.group_by, context.now.date());
            prune::carry_out(name, locked, &plan, context.now.timestamp())?;
            Ok(plan)
        });
    match pruned {
        Ok(PrunePlan::Delete { period, .. }) => PruneOutcome::Deleted(period),
        Ok(PrunePlan::Keep(why)) => PruneOutcome::Kept(why),
        Err(error) => PruneOutcome::Failed(with_sources(&error.cause)),
    }
}

/// The result of a dry run.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What would be repaired, backed up and retired.
    pub planned: Reconciliation,
    /// What would be pruned afterwards, if pruning was requested.
    pub prune: Option<PrunePlan>,
    /// What the policy would remove afterwards, if there is one.
    pub retention: Option<RetentionPreview>,
    /// A description of the run that writes to the domain's folder now, if there is one. Until that
    /// run ends, its unfinished work looks like leftovers.
    pub writer: Option<String>,
}

impl Judged for Preview {
    fn faults(&self) -> Vec<Fault> {
        let plan = &self.planned.backup;
        let fault = match self.writer {
            Some(_) => Some(Fault::Failed(Class::Locked)),
            None if self.planned.obstacle.is_some() || plan.disks.is_empty() || plan.is_partial() => {
                Some(Fault::Partial)
            }
            None => None,
        };
        fault.into_iter().collect()
    }
}

/// Plans a backup without doing anything.
pub fn preview(name: &str, context: &Context, options: &Options) -> Result<Preview> {
    check(name, options)?;
    let failed = |error: RepoError| Error::of(name, error);
    let repository = context.repo.domain(name).map_err(failed)?;
    let history = repository.history().map_err(failed)?;
    if !options.force && !options.copy {
        grouping::check(repository.as_ref(), &history, options.group_by)?;
    }
    let look = |domain| survey::survey(domain, repository.as_ref(), &history, context.host);
    let survey = survey::steadily(name, context.host, look)?;
    restore_mark::refuse(context.repo, repository.as_ref(), &survey.domain.uuid)?;
    let mut planned = decide(repository.as_ref(), &survey, &history, context, options)?;
    planned.backup.findings.extend(survey.findings);
    let today = context.now.date();
    let prune = || match &planned.backup {
        plan if plan.disks.is_empty() => PrunePlan::Keep(plan.reason()),
        plan if plan.is_partial() => PrunePlan::Keep(PARTIAL.to_owned()),
        _ => prune::plan(repository.as_ref(), &history.chains, options.group_by, today),
    };
    let prune = options.prune.then(prune);
    let retention = options.keep.as_ref().map(|policy| match &planned.backup {
        plan if plan.disks.is_empty() => RetentionPreview::Keep(plan.reason()),
        plan if plan.is_partial() => RetentionPreview::Keep(PARTIAL_KEPT.to_owned()),
        _ => retention::preview_after(&history, &planned, &survey.domain.uuid, policy, context),
    });
    Ok(Preview {
        planned,
        prune,
        retention,
        writer: repository.writer(),
    })
}

fn report(domain: &str, finding: &Finding, context: &Context) {
    context.monitor.event(Event::Found { domain, finding });
}
