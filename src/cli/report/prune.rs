//! The report of `vmsnap prune`, and the part about a policy in the report of a backup.

use serde::Serialize;

use super::lines::{line, push_line, table};
use super::parts::{Domains, ErrorPart, FindingPart, Text, findings, texts};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::each::Turn;
use crate::ops::monitor::Ending;
use crate::ops::retention::{
    Decision, KeepReason, Obstacle, Outcome, PlannedPoint, RetentionOutcome, RetentionPlan, RetentionPreview,
};

/// The lines about a domain; none if nothing was decided.
pub(crate) fn lines(turn: &Turn<Outcome>) -> String {
    let Ok(outcome) = &turn.result else {
        return String::new();
    };
    let domain = shown(&turn.domain);
    let plan = &outcome.plan;
    let mut text = match &outcome.removed {
        None => {
            let merged = merged_of(plan, None);
            let what = of_all("would remove", plan.removals().count() + merged, plan);
            let (by_merging, cost) = match merged {
                0 => (String::new(), String::new()),
                _ => {
                    let cost = cost(plan.merge_bytes(), plan.merge_freed());
                    (by_merging(merged), format!("; merging {cost}"))
                }
            };
            let freed = freed(plan.freed(), "and free");
            let not_freed = not_freed(plan, plan.removals().count());
            line(&format!("{domain}: {what}{by_merging}{freed}{cost}{not_freed}"))
        }
        Some(removed) => line(&format!("{domain}: {}", removed_line(plan, &removed.ids))),
    };
    match &outcome.removed {
        None => text.push_str(&decisions(plan)),
        Some(removed) => {
            for id in &removed.ids {
                let how = merged_into(plan, id).map_or(String::new(), |into| format!(", merged into {into}"));
                push_line(&mut text, &format!("  removed {id}{how}"));
            }
        }
    }
    if let Some(obstacle) = &plan.obstacle {
        let what = format!(
            "  no restore point of this domain is removed: {}",
            obstacle.sentence()
        );
        push_line(&mut text, &what);
    }
    if let Some(writer) = &outcome.writer {
        let what = format!(
            "  a prune would now be refused, or wait with --wait, because another run ({writer}) is working on this domain"
        );
        push_line(&mut text, &what);
    }
    text
}

/// What was removed, in words.
pub(super) fn removed_line(plan: &RetentionPlan, ids: &[String]) -> String {
    let what = of_all("removed", ids.len(), plan);
    let freed = freed(bytes_of(plan, ids), "and freed");
    let by_merging = by_merging(merged_of(plan, Some(ids)));
    format!("{what}{by_merging}{freed}{}", not_freed(plan, ids.len()))
}

/// How many of the restore points are removed by merging, in brackets; empty for zero.
fn by_merging(merged: usize) -> String {
    match merged {
        0 => String::new(),
        merged => format!(" ({merged} by merging)"),
    }
}

/// Says that this many removals free no space by themselves, if that is so.
fn not_freed(plan: &RetentionPlan, count: usize) -> &'static str {
    match count > 0 && !plan.frees_space {
        true => "; a collection frees their space",
        false => "",
    }
}

/// The restore point into which the plan merges this one.
fn merged_into<'a>(plan: &'a RetentionPlan, id: &str) -> Option<&'a str> {
    let planned = plan.points.iter().find(|planned| planned.point.id == id)?;
    match &planned.decision {
        Decision::Merge { into } => Some(into),
        _ => None,
    }
}

/// How many restore points the plan merges. With `ids`, counts only restore points with these ids.
fn merged_of(plan: &RetentionPlan, ids: Option<&[String]>) -> usize {
    let counts = |id: &String| ids.is_none_or(|ids| ids.contains(id));
    let points = plan.points.iter();
    let merged = points.filter(|planned| matches!(planned.decision, Decision::Merge { .. }));
    merged.filter(|planned| counts(&planned.point.id)).count()
}

/// The number of restore points out of all, in words.
fn of_all(verb: &str, count: usize, plan: &RetentionPlan) -> String {
    let all = plan.points.len();
    let points = if all == 1 { "point" } else { "points" };
    match count {
        0 => format!("{verb} none of {all} restore {points}"),
        count => format!("{verb} {count} of {all} restore {points}"),
    }
}

/// What merges write and free.
fn cost(written: u64, freed: u64) -> String {
    let [written, freed] = [written, freed].map(pretty::bytes);
    format!("writes at most {written}, frees up to {freed}")
}

fn freed(bytes: u64, verb: &str) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" {verb} {}", pretty::bytes(bytes)),
    }
}

/// How many bytes the removal of these restore points freed. Merged restore points do not count.
fn bytes_of(plan: &RetentionPlan, ids: &[String]) -> u64 {
    plan.freed_of(|id| ids.iter().any(|removed| removed == id))
}

/// The decisions as a table.
fn decisions(plan: &RetentionPlan) -> String {
    let header = ["  ID (UTC)", "LEVEL", "SIZE", "DECISION", "WHY"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(plan.points.iter().map(|planned| {
        vec![
            format!("  {}", planned.point.id),
            planned.point.kind_word().to_owned(),
            pretty::bytes(planned.size),
            decision_word(&planned.decision).to_owned(),
            why(&planned.decision).join(", "),
        ]
    }));
    table(&rows, &[2])
}

fn decision_word(decision: &Decision) -> &'static str {
    match decision {
        Decision::Keep(_) => "keep",
        Decision::Needed { .. } => "needed",
        Decision::Merge { .. } => "merge",
        Decision::Remove => "remove",
    }
}

/// The reasons of a decision, each in words.
fn why(decision: &Decision) -> Vec<String> {
    match decision {
        Decision::Keep(reasons) => reasons.iter().map(reason).collect(),
        Decision::Needed { by } => vec![format!("needed by {by}")],
        Decision::Merge { into } => vec![format!("no rule keeps it: merged into {into}")],
        Decision::Remove => vec!["no rule keeps it".to_owned()],
    }
}

fn reason(reason: &KeepReason) -> String {
    match reason {
        KeepReason::Rule(rule) => rule.word().to_owned(),
        KeepReason::Oldest(rule) => format!("oldest ({})", rule.word()),
        KeepReason::Within => "within".to_owned(),
        KeepReason::Pinned => "pinned".to_owned(),
        KeepReason::Copy => "copy".to_owned(),
        KeepReason::Newest => "newest".to_owned(),
        KeepReason::NewestOfDisk(disk) => format!("newest with disk {disk}"),
        KeepReason::NewestIntactOfDisk(disk) => format!("newest intact with disk {disk}"),
        KeepReason::HeldBack => "held back".to_owned(),
    }
}

/// The line about a policy, after the line about the backup.
pub(super) fn backup_line(domain: &str, outcome: &RetentionOutcome) -> String {
    let domain = shown(domain);
    line(&match outcome {
        RetentionOutcome::Applied { plan, removed } => {
            let what = removed_line(plan, removed);
            let held_back = plan.obstacle.as_ref().map(Obstacle::sentence);
            let held_back = held_back.map_or(String::new(), |why| format!(": {why}"));
            format!("{domain}: {what}{held_back}")
        }
        RetentionOutcome::Kept(why) => format!("{domain}: removed nothing: {why}"),
        RetentionOutcome::Failed { removed, why } => {
            let after = match removed.len() {
                0 => String::new(),
                count => format!(" after {count} were removed"),
            };
            format!("{domain}: REMOVING RESTORE POINTS FAILED{after}: {why}")
        }
    })
}

/// The lines about a policy in the dry run of a backup.
pub(super) fn preview_lines(preview: &RetentionPreview) -> Vec<String> {
    let plan = match preview {
        RetentionPreview::Keep(why) => return vec![format!("remove nothing: {why}")],
        RetentionPreview::Plan(plan) => plan,
    };
    let removals = plan.removals().map(|planned| {
        let size = pretty::bytes(planned.size);
        format!("remove restore point {} ({size})", planned.point.id)
    });
    let merges = plan.merges();
    let merges = merges.iter().map(|merge| {
        let (run, into) = (merge.run.join(", "), &merge.into);
        format!("merge {run} into {into} ({})", cost(merge.bytes, merge.freed))
    });
    let lines: Vec<String> = removals.chain(merges).collect();
    match (&plan.obstacle, lines.is_empty()) {
        (Some(obstacle), _) => vec![format!("remove nothing: {}", obstacle.sentence())],
        (None, true) => {
            vec!["remove nothing: all restore points are kept or needed".to_owned()]
        }
        (None, false) => lines,
    }
}

/// The decisions and removals of a policy for a domain, in a document.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RetentionPart<'a> {
    pub(super) restore_points: Vec<DecisionPart<'a>>,
    pub(super) removed: Vec<Text<'a>>,
    pub(super) freed_bytes: u64,
    pub(super) merge_bytes: u64,
    pub(super) merge_freed_bytes: u64,
    pub(super) held_back: Option<Text<'a>>,
}

/// The decision about a restore point.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DecisionPart<'a> {
    pub(super) id: Text<'a>,
    pub(super) time: Text<'a>,
    pub(super) level: &'static str,
    pub(super) size: u64,
    pub(super) decision: &'static str,
    pub(super) reasons: Vec<Text<'a>>,
    pub(super) needed_by: Option<Text<'a>>,
    pub(super) merged_into: Option<Text<'a>>,
}

impl<'a> RetentionPart<'a> {
    /// The part about a plan. `removed` are the ids of removed restore points; `None` for a dry
    /// run.
    fn of(plan: &'a RetentionPlan, removed: Option<&'a [String]>) -> Self {
        RetentionPart {
            restore_points: plan.points.iter().map(decision_part).collect(),
            removed: texts(removed.unwrap_or_default()),
            freed_bytes: removed.map_or_else(|| plan.freed(), |ids| bytes_of(plan, ids)),
            merge_bytes: plan.merge_bytes(),
            merge_freed_bytes: plan.merge_freed(),
            held_back: plan.obstacle.as_ref().map(|why| Text::from(why.sentence())),
        }
    }

    /// The plan of a prune, with what was removed.
    pub(super) fn of_prune(outcome: &'a Outcome) -> Self {
        let removed = outcome.removed.as_ref();
        RetentionPart::of(&outcome.plan, removed.map(|removed| removed.ids.as_slice()))
    }

    pub(super) fn of_preview(preview: &'a RetentionPreview) -> Self {
        match preview {
            RetentionPreview::Plan(plan) => RetentionPart::of(plan, None),
            RetentionPreview::Keep(why) => RetentionPart {
                held_back: Some(Text::from(why)),
                ..RetentionPart::default()
            },
        }
    }
}

fn decision_part(planned: &PlannedPoint) -> DecisionPart<'_> {
    let point = &planned.point;
    DecisionPart {
        id: Text::from(&point.id),
        time: Text::of(&point.time),
        level: point.level.word(),
        size: planned.size,
        decision: decision_word(&planned.decision),
        reasons: why(&planned.decision).into_iter().map(Text::from).collect(),
        needed_by: match &planned.decision {
            Decision::Needed { by } => Some(Text::from(by)),
            _ => None,
        },
        merged_into: match &planned.decision {
            Decision::Merge { into } => Some(Text::from(into)),
            _ => None,
        },
    }
}

/// The result of a policy after a backup, in a document.
#[derive(Debug, Serialize)]
pub(crate) struct AppliedPart<'a> {
    #[serde(flatten)]
    pub(super) retention: RetentionPart<'a>,
    pub(super) error: Option<Text<'a>>,
}

impl<'a> AppliedPart<'a> {
    pub(super) fn of(outcome: &'a RetentionOutcome) -> Self {
        let mut error = None;
        let retention = match outcome {
            RetentionOutcome::Applied { plan, removed } => RetentionPart::of(plan, Some(removed)),
            RetentionOutcome::Kept(why) => RetentionPart {
                held_back: Some(Text::from(why)),
                ..RetentionPart::default()
            },
            RetentionOutcome::Failed { removed, why } => {
                error = Some(Text::from(why));
                RetentionPart {
                    removed: texts(removed),
                    ..RetentionPart::default()
                }
            }
        };
        AppliedPart { retention, error }
    }
}

/// A domain in the document of a prune.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PrunedDomain<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    #[serde(flatten)]
    pub(super) retention: RetentionPart<'a>,
    pub(super) writer: Option<Text<'a>>,
    pub(super) error: Option<ErrorPart>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// The outcome of every domain.
pub(crate) fn document<'a>(
    turns: &'a [Turn<Outcome>],
    unmatched: &'a [String],
    code: ExitCode,
    dry_run: bool,
) -> Domains<'a, PrunedDomain<'a>> {
    Domains {
        dry_run: dry_run.then_some(true),
        ..Domains::new(turns.iter().map(domain).collect(), unmatched, code)
    }
}

fn domain(turn: &Turn<Outcome>) -> PrunedDomain<'_> {
    let outcome = turn.result.as_ref().ok();
    let error = turn.error();
    let removed = outcome.map(|outcome| outcome.removed.as_ref().map(|removed| removed.ids.as_slice()));
    let retention = outcome.zip(removed);
    PrunedDomain {
        domain: Text::from(&turn.domain),
        outcome: match (turn.ending, outcome) {
            (Ending::Skipped, _) => "skipped",
            _ if error.is_some() => "failed",
            (_, Some(outcome)) if outcome.plan.obstacle.is_some() => "held-back",
            (_, Some(outcome)) if outcome.removed.is_none() => "planned",
            _ => "ok",
        },
        retention: retention
            .map(|(outcome, removed)| RetentionPart::of(&outcome.plan, removed))
            .unwrap_or_default(),
        writer: outcome
            .and_then(|outcome| outcome.writer.as_ref())
            .map(Text::from),
        findings: findings(match (outcome, error) {
            (Some(outcome), _) => &outcome.findings,
            (None, Some(error)) => &error.findings,
            (None, None) => &[],
        }),
        error: error.map(ErrorPart::of),
    }
}
