//! What `vmsnap backup` shows.

use std::time::Duration;

use serde::Serialize;

use super::tree::Tree;
use super::{
    ErrorJson, LeftOutJson, PointJson, document, failed_tree, failure, finding_tree, left_out_tree, line,
    push_line,
};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::finding::Finding;
use crate::model::left_out::{self, Kind, LeftOut, UNASKED};
use crate::model::period::COPY_PREFIX;
use crate::model::restore_point::{Level, RestorePoint};
use crate::model::stop::StopReason;
use crate::model::text::shown;
use crate::ops::backup::{Outcome, Preview, PruneOutcome};
use crate::ops::plan::BackupPlan;
use crate::ops::prune::PrunePlan;
use crate::ops::reconcile::Reconciliation;
use crate::ops::{Cause, Error, Result};

/// A domain that had its turn.
pub struct Done {
    /// Its name.
    pub domain: String,
    /// How long it took.
    pub took: Duration,
    /// What came of it.
    pub result: Result<Outcome>,
}

impl Done {
    /// A domain whose turn did not come.
    pub fn not_reached(domain: &str, reason: StopReason) -> Done {
        Done {
            domain: domain.to_owned(),
            took: Duration::ZERO,
            result: Err(Error::of(domain, Cause::Stopped(reason))),
        }
    }

    /// Whether the backup succeeded, but not the pruning that was asked for.
    pub fn prune_failed(&self) -> bool {
        let prune = self
            .result
            .as_ref()
            .ok()
            .and_then(|outcome| outcome.prune.as_ref());
        matches!(prune, Some(PruneOutcome::Failed(_)))
    }

    /// Whether a disk is missing though nobody asked for that.
    pub fn is_partial(&self) -> bool {
        self.result
            .as_ref()
            .is_ok_and(|outcome| outcome.point.is_partial())
    }

    /// The domain with the disks that are left out for these kinds of reasons, if there are any.
    pub fn lacks(&self, kinds: &[Kind]) -> Option<String> {
        let outcome = self.result.as_ref().ok()?;
        let targets = left_out::targets(&outcome.point.left_out, kinds);
        (!targets.is_empty()).then(|| format!("{}: {}", shown(&self.domain), targets.join(", ")))
    }

    /// What failed, with domain, disk and reason.
    pub fn failure(&self) -> Option<String> {
        match &self.result {
            Err(error) => Some(failure(error)),
            Ok(outcome) => match &outcome.prune {
                Some(PruneOutcome::Failed(why)) => {
                    Some(format!("{}: saved, but not pruned: {why}", shown(&self.domain)))
                }
                _ => None,
            },
        }
    }

    /// The lines that a person reads of a success; none of a failure, which is told elsewhere.
    pub fn lines(&self) -> String {
        match &self.result {
            Err(_) => String::new(),
            Ok(outcome) => {
                let point = &outcome.point;
                let copied: u64 = point.disks.iter().map(|disk| disk.data_bytes).sum();
                let zeroes: u64 = point.disks.iter().map(|disk| disk.zero_bytes).sum();
                let nothing = match (point.level, zeroes) {
                    (Level::Incremental, 0) => "no changes",
                    (_, 0) => "no data",
                    _ => "only zeroes",
                };
                let pruned = outcome
                    .prune
                    .as_ref()
                    .map(|prune| prune_line(&self.domain, prune));
                let saved = line(&format!(
                    "{}: {} {}, {}{}, {}, {}",
                    shown(&self.domain),
                    kind(point),
                    point.id,
                    disks_word(point.disks.len()),
                    without(&point.left_out),
                    pretty::amount(copied, self.took, nothing),
                    point.consistency.sentence(),
                ));
                saved + &pruned.unwrap_or_default()
            }
        }
    }
}

/// What a restore point is, in words.
pub fn kind(point: &RestorePoint) -> String {
    match point.is_copy() {
        true => "full copy".to_owned(),
        false => format!("{} backup", point.level.word()),
    }
}

/// What is said of pruning, behind what is said of the backup.
fn prune_line(domain: &str, prune: &PruneOutcome) -> String {
    let domain = shown(domain);
    match prune {
        PruneOutcome::Deleted(period) => line(&format!("{domain}: pruned {period}")),
        PruneOutcome::Kept(why) => line(&format!("{domain}: pruned nothing: {why}")),
        PruneOutcome::Failed(why) => line(&format!("{domain}: PRUNING FAILED: {why}")),
    }
}

/// Which disks are not among those that were saved, after their number.
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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackupJson<'a> {
    schema: u32,
    domains: Vec<DomainJson<'a>>,
    unmatched: &'a [String],
    exit_code: i32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DomainJson<'a> {
    domain: &'a str,
    outcome: &'static str,
    seconds: f64,
    restore_point: Option<MadeJson<'a>>,
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<PruneJson<'a>>,
    error: Option<ErrorJson>,
    findings: &'a [Finding],
}

#[derive(Serialize)]
struct MadeJson<'a> {
    #[serde(flatten)]
    point: PointJson<'a>,
    #[serde(flatten)]
    left_out: LeftOutJson<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PruneJson<'a> {
    deleted: Option<&'a str>,
    kept: Option<&'a str>,
    error: Option<&'a str>,
}

impl<'a> PruneJson<'a> {
    fn of(prune: &'a PruneOutcome) -> Self {
        let (mut deleted, mut kept, mut error) = (None, None, None);
        match prune {
            PruneOutcome::Deleted(period) => deleted = Some(period.as_str()),
            PruneOutcome::Kept(why) => kept = Some(why.as_str()),
            PruneOutcome::Failed(why) => error = Some(why.as_str()),
        }
        PruneJson { deleted, kept, error }
    }
}

/// The outcome of every domain as one JSON document.
pub fn json(done: &[Done], unmatched: &[String], code: ExitCode) -> String {
    let domains = done.iter().map(|done| match &done.result {
        Ok(outcome) => DomainJson {
            domain: &done.domain,
            outcome: match outcome.point.is_partial() {
                true => "partial",
                false => "ok",
            },
            seconds: done.took.as_secs_f64(),
            restore_point: Some(MadeJson {
                point: PointJson::of(&outcome.point, outcome.file_bytes, None, &[]),
                left_out: LeftOutJson::of(&outcome.point),
            }),
            path: Some(outcome.location.clone()),
            prune: outcome.prune.as_ref().map(PruneJson::of),
            error: None,
            findings: &outcome.findings,
        },
        Err(error) => DomainJson {
            domain: &done.domain,
            outcome: "failed",
            seconds: done.took.as_secs_f64(),
            restore_point: None,
            path: None,
            prune: None,
            error: Some(ErrorJson::of(error)),
            findings: &error.findings,
        },
    });
    document(&BackupJson {
        schema: 1,
        domains: domains.collect(),
        unmatched,
        exit_code: code.number(),
    })
}

/// What a dry run would do, as one JSON document.
pub fn plan_json(
    plans: &[(String, Preview)],
    failed: &[Error],
    unmatched: &[String],
    code: ExitCode,
) -> String {
    let planned = plans.iter().map(|(domain, preview)| plan_tree(domain, preview));
    let domains = planned.chain(failed.iter().map(failed_tree));
    let document = Tree::map([
        ("schema", Tree::Number(1)),
        ("dryRun", Tree::Bool(true)),
        ("domains", Tree::List(domains.collect())),
        ("unmatched", Tree::texts(unmatched)),
        ("exitCode", Tree::Number(code.number().unsigned_abs().into())),
    ]);
    document.json(false) + "\n"
}

fn plan_tree(domain: &str, preview: &Preview) -> Tree {
    let planned = &preview.planned;
    let plan = &planned.backup;
    let disks = plan.disks.iter().map(|disk| {
        Tree::map([
            ("disk", Tree::text(&disk.disk.target)),
            (
                "level",
                Tree::text_or_null(disk.announced_level().map(Level::word)),
            ),
            ("reason", Tree::text(disk.announced_reason())),
        ])
    });
    let prune = match &preview.prune {
        Some(PrunePlan::Delete { location, .. }) => ("delete", Tree::text(location)),
        Some(PrunePlan::Keep(why)) => ("keep", Tree::text(why)),
        None => ("keep", Tree::Null),
    };
    Tree::map([
        ("domain", Tree::text(domain)),
        (
            "level",
            Tree::text_or_null(plan.announced_level().map(Level::word)),
        ),
        ("copy", Tree::Bool(is_copy(plan))),
        ("reason", Tree::text(plan.reason())),
        ("period", Tree::text(&plan.period)),
        ("checkpoint", Tree::Bool(plan.checkpoint)),
        ("disks", Tree::List(disks.collect())),
        ("repairs", sentences(&planned.repairs)),
        ("retired", sentences(&planned.retired)),
        ("prune", Tree::map([prune])),
        ("obstacle", Tree::text_or_null(planned.obstacle.as_deref())),
        ("writer", Tree::text_or_null(preview.writer.as_deref())),
        (
            "findings",
            Tree::List(plan.findings.iter().map(finding_tree).collect()),
        ),
        ("partial", Tree::Bool(plan.is_partial())),
        ("leftOut", left_out_tree(&plan.left_out)),
    ])
}

/// Steps as a list of sentences.
pub fn sentences(steps: &[impl ToString]) -> Tree {
    Tree::List(steps.iter().map(|step| Tree::text(step.to_string())).collect())
}

fn is_copy(plan: &BackupPlan) -> bool {
    plan.period.starts_with(COPY_PREFIX)
}

/// What a dry run would do with a domain.
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
    for step in lines {
        push_line(&mut text, &format!("  {step}"));
    }
    text
}

/// What a backup would do now, step by step. Findings that are `known` were reported elsewhere.
pub fn plan_lines(planned: &Reconciliation, writer: Option<&str>, known: &[Finding]) -> Vec<String> {
    let plan = &planned.backup;
    let mut lines = Vec::new();
    if let Some(writer) = writer {
        lines.push(format!(
            "refused while another run ({writer}) is at work on this domain; what it has begun looks unfinished here"
        ));
    }
    if let Some(operation) = &planned.obstacle {
        lines.push(format!(
            "refused while another job ({operation}) is active on the domain"
        ));
    }
    lines.extend(planned.repairs.iter().map(|repair| format!("first: {repair}")));
    lines.extend(plan.checkpoint.then(|| "make a checkpoint".to_owned()));
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
        lines.push("there is nothing to back up".to_owned());
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
