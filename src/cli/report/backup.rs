//! The output of `vmsnap backup`.

use serde::Serialize;

use super::lines::{self, line, push_line};
use super::parts::{
    Domains, ErrorPart, FailedDomain, FindingPart, LeftDiskPart, LeftOutPart, PointPart, Text, findings,
    left_disks,
};
use super::prune::{self, AppliedPart, RetentionPart};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::finding::Finding;
use crate::model::left_out::{self, Kind, LeftOut, UNASKED};
use crate::model::period::COPY_PREFIX;
use crate::model::restore_point::{Level, RestorePoint};
use crate::model::text::shown;
use crate::ops::backup::{Outcome, Preview, PruneOutcome};
use crate::ops::each::Turn;
use crate::ops::plan::BackupPlan;
use crate::ops::prune::PrunePlan;
use crate::ops::reconcile::Reconciliation;
use crate::ops::retention::RetentionOutcome;

/// A line with the domain and its disks that were left out for one of these kinds of reasons;
/// `None` if there are none.
pub fn lacks(turn: &Turn<Outcome>, kinds: &[Kind]) -> Option<String> {
    let outcome = turn.result.as_ref().ok()?;
    let targets = left_out::targets(&outcome.point.left_out, kinds);
    (!targets.is_empty()).then(|| format!("{}: {}", shown(&turn.domain), targets.join(", ")))
}

/// The failure of a domain, or of its pruning, in one line.
pub fn failure(turn: &Turn<Outcome>) -> Option<String> {
    match &turn.result {
        Err(error) => Some(lines::failure(error)),
        Ok(outcome) => match (&outcome.prune, &outcome.retention) {
            (Some(PruneOutcome::Failed(why)), _) | (_, Some(RetentionOutcome::Failed { why, .. })) => {
                Some(format!("{}: saved, but not pruned: {why}", shown(&turn.domain)))
            }
            _ => None,
        },
    }
}

/// The lines about a success; none about a failure, which is reported on stderr.
pub fn lines(turn: &Turn<Outcome>) -> String {
    let Ok(outcome) = &turn.result else {
        return String::new();
    };
    let point = &outcome.point;
    let copied = point.data_bytes();
    let zeroes: u64 = point.disks.iter().map(|disk| disk.zero_bytes).sum();
    let nothing = match (point.level, zeroes) {
        (Level::Incremental, 0) => "no changes",
        (_, 0) => "no data",
        _ => "only zeroes",
    };
    let pruned = outcome
        .prune
        .as_ref()
        .map(|prune| prune_line(&turn.domain, prune));
    let stored = match copied > 0 && point.is_compressed() {
        true => format!(", stored in {}", pretty::bytes(outcome.file_bytes)),
        false => String::new(),
    };
    let saved = line(&format!(
        "{}: {} {}, {}{}, {}{stored}, {}",
        shown(&turn.domain),
        kind(point),
        point.id,
        disks_word(point.disks.len()),
        without(&point.left_out),
        pretty::amount(copied, turn.took, nothing),
        point.consistency.sentence(),
    ));
    let retention = outcome.retention.as_ref();
    let removed = retention.map(|retention| prune::backup_line(&turn.domain, retention));
    saved + &pruned.unwrap_or_default() + &removed.unwrap_or_default()
}

/// The kind of a restore point, in words.
pub fn kind(point: &RestorePoint) -> String {
    match point.is_copy() {
        true => "full copy".to_owned(),
        false => format!("{} backup", point.level.word()),
    }
}

/// The line about pruning, which follows the line about the backup.
fn prune_line(domain: &str, prune: &PruneOutcome) -> String {
    let domain = shown(domain);
    match prune {
        PruneOutcome::Deleted(period) => line(&format!("{domain}: pruned {period}")),
        PruneOutcome::Kept(why) => line(&format!("{domain}: pruned nothing: {why}")),
        PruneOutcome::Failed(why) => line(&format!("{domain}: PRUNING FAILED: {why}")),
    }
}

/// The disks that were not saved, for the end of a sentence.
pub fn without(left_out: &[LeftOut]) -> String {
    let words = [
        (&UNASKED[..], "PARTIAL: without"),
        (&[Kind::Raw], "raw, not saved:"),
        (&[Kind::Excluded], "excluded:"),
    ];
    let parts = words.into_iter().filter_map(|(kinds, word)| {
        let targets = left_out::targets(left_out, kinds);
        (!targets.is_empty()).then(|| format!("{word} {}", targets.join(", ")))
    });
    match parts.collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        parts => format!(" ({})", parts.join("; ")),
    }
}

fn disks_word(count: usize) -> String {
    match count {
        1 => "1 disk".to_owned(),
        more => format!("{more} disks"),
    }
}

/// A domain in the document of a backup.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupDomain<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) seconds: f64,
    pub(super) restore_point: Option<MadePart<'a>>,
    pub(super) path: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prune: Option<PrunePart<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retention: Option<AppliedPart<'a>>,
    pub(super) error: Option<ErrorPart>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// A restore point that a backup made.
#[derive(Debug, Serialize)]
pub(crate) struct MadePart<'a> {
    #[serde(flatten)]
    pub(super) point: PointPart<'a>,
    #[serde(flatten)]
    pub(super) left_out: LeftOutPart<'a>,
}

/// The outcome of pruning.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PrunePart<'a> {
    pub(super) deleted: Option<Text<'a>>,
    pub(super) kept: Option<Text<'a>>,
    pub(super) error: Option<Text<'a>>,
}

impl<'a> PrunePart<'a> {
    fn of(prune: &'a PruneOutcome) -> Self {
        let (mut deleted, mut kept, mut error) = (None, None, None);
        match prune {
            PruneOutcome::Deleted(period) => deleted = Some(Text::from(period)),
            PruneOutcome::Kept(why) => kept = Some(Text::from(why)),
            PruneOutcome::Failed(why) => error = Some(Text::from(why)),
        }
        PrunePart { deleted, kept, error }
    }
}

/// The outcome of every domain.
pub fn document<'a>(
    turns: &'a [Turn<Outcome>],
    unmatched: &'a [String],
    code: ExitCode,
) -> Domains<'a, BackupDomain<'a>> {
    let domains = turns.iter().map(domain).collect();
    Domains::new(domains, unmatched, code)
}

fn domain(turn: &Turn<Outcome>) -> BackupDomain<'_> {
    let domain = Text::from(&turn.domain);
    let seconds = turn.took.as_secs_f64();
    match &turn.result {
        Ok(outcome) => BackupDomain {
            domain,
            outcome: match outcome.point.is_partial() {
                true => "partial",
                false => "ok",
            },
            seconds,
            restore_point: Some(MadePart {
                point: PointPart::of(&outcome.point, outcome.file_bytes),
                left_out: LeftOutPart::of(&outcome.point),
            }),
            path: Some(Text::from(&outcome.location)),
            prune: outcome.prune.as_ref().map(PrunePart::of),
            retention: outcome.retention.as_ref().map(AppliedPart::of),
            error: None,
            findings: findings(&outcome.findings),
        },
        Err(error) => BackupDomain {
            domain,
            outcome: "failed",
            seconds,
            restore_point: None,
            path: None,
            prune: None,
            retention: None,
            error: Some(ErrorPart::of(error)),
            findings: findings(&error.findings),
        },
    }
}

/// A domain in the document of a dry run.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum PlannedDomain<'a> {
    /// The plan of its backup.
    Planned(Box<PlanPart<'a>>),
    /// The error, if there is no plan.
    Failed(FailedDomain<'a>),
}

/// The plan of a backup.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanPart<'a> {
    pub(super) domain: Text<'a>,
    pub(super) level: Option<&'static str>,
    pub(super) copy: bool,
    pub(super) reason: Text<'a>,
    pub(super) period: Text<'a>,
    pub(super) checkpoint: bool,
    pub(super) disks: Vec<PlannedDiskPart<'a>>,
    pub(super) repairs: Vec<Text<'a>>,
    pub(super) retired: Vec<Text<'a>>,
    pub(super) prune: PrunePlanPart<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retention: Option<RetentionPart<'a>>,
    pub(super) obstacle: Option<Text<'a>>,
    pub(super) writer: Option<Text<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
    pub(super) partial: bool,
    pub(super) left_out: Vec<LeftDiskPart<'a>>,
}

/// A disk that a backup would save.
#[derive(Debug, Serialize)]
pub(crate) struct PlannedDiskPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) level: Option<&'static str>,
    pub(super) reason: Text<'a>,
}

/// The plan of pruning: an object with one key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PrunePlanPart<'a> {
    /// Delete this folder.
    Delete(Text<'a>),
    /// Delete nothing, for this reason. There is no reason without `--prune`.
    Keep(Option<Text<'a>>),
}

impl<'a> PrunePlanPart<'a> {
    fn of(prune: Option<&'a PrunePlan>) -> Self {
        match prune {
            Some(PrunePlan::Delete { location, .. }) => PrunePlanPart::Delete(Text::from(location)),
            Some(PrunePlan::Keep(why)) => PrunePlanPart::Keep(Some(Text::from(why))),
            None => PrunePlanPart::Keep(None),
        }
    }
}

/// The plans of every domain.
pub fn plan_document<'a>(
    turns: &'a [Turn<Preview>],
    unmatched: &'a [String],
    code: ExitCode,
) -> Domains<'a, PlannedDomain<'a>> {
    let domains = turns.iter().map(|turn| match &turn.result {
        Ok(preview) => PlannedDomain::Planned(Box::new(plan_part(&turn.domain, preview))),
        Err(error) => PlannedDomain::Failed(FailedDomain::of(error, turn.ending)),
    });
    Domains {
        dry_run: Some(true),
        ..Domains::new(domains.collect(), unmatched, code)
    }
}

fn plan_part<'a>(domain: &'a str, preview: &'a Preview) -> PlanPart<'a> {
    let planned = &preview.planned;
    let plan = &planned.backup;
    let disks = plan.disks.iter().map(|disk| PlannedDiskPart {
        disk: Text::from(&disk.disk.target),
        level: disk.announced_level().map(Level::word),
        reason: Text::of(&disk.announced_reason()),
    });
    PlanPart {
        domain: Text::from(domain),
        level: plan.announced_level().map(Level::word),
        copy: is_copy(plan),
        reason: Text::of(&plan.reason()),
        period: Text::from(&plan.period),
        checkpoint: plan.checkpoint,
        disks: disks.collect(),
        repairs: planned.repairs.iter().map(Text::of).collect(),
        retired: planned.retired.iter().map(Text::of).collect(),
        prune: PrunePlanPart::of(preview.prune.as_ref()),
        retention: preview.retention.as_ref().map(RetentionPart::of_preview),
        obstacle: planned.obstacle.as_ref().map(Text::from),
        writer: preview.writer.as_ref().map(Text::from),
        findings: findings(&plan.findings),
        partial: plan.is_partial(),
        left_out: left_disks(&plan.left_out),
    }
}

fn is_copy(plan: &BackupPlan) -> bool {
    plan.period.starts_with(COPY_PREFIX)
}

/// The lines of a dry run about a domain.
pub fn plan_text(domain: &str, preview: &Preview) -> String {
    let plan = &preview.planned.backup;
    let mut text = line(&format!(
        "{}: {} into {}{}",
        shown(domain),
        match plan.announced_level() {
            _ if plan.disks.is_empty() => "no backup",
            _ if is_copy(plan) => "a full copy",
            Some(Level::Full) => "a full backup",
            Some(Level::Incremental) => "an incremental backup",
            None => "a full or incremental backup",
        },
        plan.period,
        without(&plan.left_out),
    ));
    let mut lines = plan_lines(&preview.planned, preview.writer.as_deref(), &[]);
    match &preview.prune {
        Some(PrunePlan::Delete { location, .. }) => lines.push(format!("delete {location}")),
        Some(PrunePlan::Keep(why)) => lines.push(format!("prune nothing: {why}")),
        None => {}
    }
    lines.extend(preview.retention.iter().flat_map(prune::preview_lines));
    for step in lines {
        push_line(&mut text, &format!("  {step}"));
    }
    text
}

/// The steps of a planned backup, a line each. Findings in `known` are left out, because they are
/// reported elsewhere.
pub(crate) fn plan_lines(planned: &Reconciliation, writer: Option<&str>, known: &[Finding]) -> Vec<String> {
    let plan = &planned.backup;
    let mut lines = Vec::new();
    if let Some(writer) = writer {
        lines.push(format!(
            "refused while another run ({writer}) is working on this domain; leftovers listed below may belong to that run"
        ));
    }
    if let Some(operation) = &planned.obstacle {
        lines.push(format!(
            "refused while another job ({operation}) is active on the domain"
        ));
    }
    lines.extend(planned.repairs.iter().map(|repair| format!("first: {repair}")));
    lines.extend(plan.checkpoint.then(|| "create a checkpoint".to_owned()));
    for disk in &plan.disks {
        let level = disk.announced_level().map(|level| format!("{}, ", level.word()));
        lines.push(format!(
            "disk {}: {}{}",
            disk.disk.target,
            level.unwrap_or_default(),
            disk.announced_reason()
        ));
    }
    if plan.disks.is_empty() {
        lines.push("no disk of the domain can be backed up".to_owned());
    }
    lines.extend(
        plan.findings
            .iter()
            .filter(|finding| !known.contains(finding))
            .map(|finding| format!("note: {}", finding.message)),
    );
    lines.extend(planned.retired.iter().map(|retired| format!("then: {retired}")));
    lines
}
