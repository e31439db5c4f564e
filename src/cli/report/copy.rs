//! The report of `vmsnap copy`.

use serde::Serialize;

use super::lines::{line, push_line, table};
use super::parts::{Domains, ErrorPart, FindingPart, Text, findings};
use super::prune::{RetentionPart, removed_line};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::each::Turn;
use crate::ops::monitor::Ending;
use crate::ops::transfer::{CopiedPoint, Outcome, PlannedTransfer, TransferDecision, TransferPlan};

/// The lines about a domain; none if nothing was decided.
pub(crate) fn lines(turn: &Turn<Outcome>) -> String {
    let Ok(outcome) = &turn.result else {
        return String::new();
    };
    let domain = shown(&turn.domain);
    let plan = &outcome.plan;
    let mut text = match &outcome.copied {
        None => {
            let what = format!("would copy {}", of_all(plan.copies().count(), plan));
            line(&format!("{domain}: {what}")) + &decisions(plan)
        }
        Some(copied) => {
            let bytes = copied.iter().map(|copied| copied.data_bytes).sum();
            let what = format!("copied {}", of_all(copied.len(), plan));
            let amount = pretty::amount(bytes, turn.took, "no data");
            line(&format!("{domain}: {what}, {amount}{}", others(plan)))
        }
    };
    for copied in outcome.copied.iter().flatten() {
        let stored = pretty::bytes(copied.stored_bytes);
        push_line(
            &mut text,
            &format!("  {} ({stored}): {}", copied.id, copied.location),
        );
    }
    if let Some(pruned) = &outcome.retention
        && let Some(removed) = &pruned.removed
    {
        let what = removed_line(&pruned.plan, &removed.ids);
        push_line(&mut text, &format!("  in the target: {what}"));
    }
    text
}

/// A number of restore points out of all wanted ones, in words.
fn of_all(count: usize, plan: &TransferPlan) -> String {
    let all = plan.points.len() + plan.lost.len();
    let points = if all == 1 { "point" } else { "points" };
    match count {
        0 => format!("none of {all} restore {points}"),
        count => format!("{count} of {all} restore {points}"),
    }
}

/// Why the other restore points were not copied, in words.
fn others(plan: &TransferPlan) -> String {
    let groups = [
        (plan.count(&TransferDecision::Present), "already there"),
        (
            plan.count(&TransferDecision::Removed),
            "removed from the target earlier",
        ),
        (plan.count(&TransferDecision::NotKept), "not kept by the policy"),
        (plan.obstacles().count(), "not possible"),
    ];
    let groups = groups.iter().filter(|(count, _)| *count > 0);
    let groups: Vec<String> = groups.map(|(count, why)| format!("{count} {why}")).collect();
    match groups.is_empty() {
        true => String::new(),
        false => format!("; {}", groups.join(", ")),
    }
}

/// The decisions as a table.
fn decisions(plan: &TransferPlan) -> String {
    let header = ["  ID (UTC)", "LEVEL", "SIZE", "DECISION", "WHY"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(plan.points.iter().map(|planned| {
        vec![
            format!("  {}", planned.point.id),
            planned.point.kind_word().to_owned(),
            pretty::bytes(planned.size),
            decision_word(&planned.decision).to_owned(),
            why(&planned.decision),
        ]
    }));
    table(&rows, &[2])
}

fn decision_word(decision: &TransferDecision) -> &'static str {
    match decision {
        TransferDecision::Copy => "copy",
        _ => "skip",
    }
}

fn why(decision: &TransferDecision) -> String {
    match decision {
        TransferDecision::Copy => "the target lacks it".to_owned(),
        TransferDecision::Present => "the target has it".to_owned(),
        TransferDecision::Removed => "it was removed from the target".to_owned(),
        TransferDecision::NotKept => "the policy does not keep it".to_owned(),
        TransferDecision::DamagedInTarget(what) => format!("it is damaged in the target: {what}"),
        TransferDecision::IdTaken => "another restore point of the target has its id".to_owned(),
        TransferDecision::Unusable(why) => why.clone(),
    }
}

/// A domain in the document of a copy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CopiedDomain<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) restore_points: Vec<ChoicePart<'a>>,
    pub(super) copied: Vec<CopiedPart<'a>>,
    pub(super) retention: Option<RetentionPart<'a>>,
    pub(super) error: Option<ErrorPart>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// The decision about a restore point of the source.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChoicePart<'a> {
    pub(super) id: Text<'a>,
    pub(super) time: Text<'a>,
    pub(super) level: &'static str,
    pub(super) size: u64,
    pub(super) decision: &'static str,
    pub(super) reason: Text<'a>,
}

/// A restore point that was copied.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CopiedPart<'a> {
    pub(super) id: Text<'a>,
    pub(super) path: Text<'a>,
    pub(super) data_bytes: u64,
    pub(super) size: u64,
}

/// The outcome of every domain.
pub(crate) fn document<'a>(
    turns: &'a [Turn<Outcome>],
    unmatched: &'a [String],
    code: ExitCode,
    dry_run: bool,
) -> Domains<'a, CopiedDomain<'a>> {
    Domains {
        dry_run: dry_run.then_some(true),
        ..Domains::new(turns.iter().map(domain).collect(), unmatched, code)
    }
}

fn domain(turn: &Turn<Outcome>) -> CopiedDomain<'_> {
    let outcome = turn.result.as_ref().ok();
    let error = turn.error();
    let plan = outcome.map(|outcome| &outcome.plan);
    let copied = outcome.and_then(|outcome| outcome.copied.as_ref());
    let pruned = outcome.and_then(|outcome| outcome.retention.as_ref());
    CopiedDomain {
        domain: Text::from(&turn.domain),
        outcome: match (turn.ending, outcome) {
            (Ending::Skipped, _) => "skipped",
            _ if error.is_some() => "failed",
            (_, Some(outcome)) if outcome.plan.obstacles().next().is_some() => "partial",
            (_, Some(outcome)) if outcome.copied.is_none() => "planned",
            _ => "ok",
        },
        restore_points: plan.map_or_else(Vec::new, |plan| plan.points.iter().map(choice_part).collect()),
        copied: copied.map_or_else(Vec::new, |copied| copied.iter().map(copied_part).collect()),
        retention: pruned.map(RetentionPart::of_prune),
        findings: findings(match (outcome, error) {
            (Some(outcome), _) => &outcome.findings,
            (None, Some(error)) => &error.findings,
            (None, None) => &[],
        }),
        error: error.map(ErrorPart::of),
    }
}

fn choice_part(planned: &PlannedTransfer) -> ChoicePart<'_> {
    let point = &planned.point;
    ChoicePart {
        id: Text::from(&point.id),
        time: Text::of(&point.time),
        level: point.level.word(),
        size: planned.size,
        decision: decision_word(&planned.decision),
        reason: Text::from(why(&planned.decision)),
    }
}

fn copied_part(copied: &CopiedPoint) -> CopiedPart<'_> {
    CopiedPart {
        id: Text::from(&copied.id),
        path: Text::from(&copied.location),
        data_bytes: copied.data_bytes,
        size: copied.stored_bytes,
    }
}
