//! The output of `vmsnap verify`.

use serde::Serialize;

use super::lines::push_line;
use super::parts::{Domains, ErrorPart, FailedDomain, FindingPart, Text, findings};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::each::Turn;
use crate::ops::verify::{Damage, Outcome, ProvedPoint};

/// The lines about a verification: the damage, then a summary. None if nothing was verified.
pub fn lines(turn: &Turn<Outcome>) -> String {
    let Ok(outcome) = &turn.result else {
        return String::new();
    };
    let domain = shown(&turn.domain);
    let mut text = String::new();
    for damage in outcome
        .all_damage()
        .filter(|damage| damage.inherited_from.is_none())
    {
        push_line(&mut text, &format!("{domain}: DAMAGED: {}", damage.what));
    }
    let dependents = dependent_points(&outcome.points);
    if !dependents.is_empty() {
        push_line(
            &mut text,
            &format!(
                "{domain}: DAMAGED: restore points that depend on the damaged ones: {}",
                dependents.join(", ")
            ),
        );
    }
    let points = &outcome.points;
    let skipped = points.iter().filter(|point| point.skipped.is_some()).count();
    let damaged = points.iter().filter(|point| !point.damage.is_empty()).count();
    let mut parts = vec![format!("{} sound", points_word(points.len() - skipped - damaged))];
    if damaged > 0 {
        parts.push(format!("{damaged} DAMAGED"));
    }
    if skipped > 0 {
        parts.push(format!("{skipped} skipped (verified recently)"));
    }
    if outcome.bytes > 0 {
        let rate = outcome.bytes as f64 / turn.took.as_secs_f64().max(0.001);
        parts.push(format!(
            "{} read in {} ({}/s)",
            pretty::bytes(outcome.bytes),
            pretty::seconds(turn.took),
            pretty::bytes(rate as u64),
        ));
    }
    push_line(&mut text, &format!("{domain}: {}", parts.join(", ")));
    text
}

/// The restore points with damaged parents, each with the affected disks.
fn dependent_points(points: &[ProvedPoint]) -> Vec<String> {
    let dependents = points.iter().filter_map(|point| {
        let damage = point
            .damage
            .iter()
            .filter(|damage| damage.inherited_from.is_some());
        let disks: Vec<&str> = damage.filter_map(|damage| damage.disk.as_deref()).collect();
        (!disks.is_empty()).then(|| format!("{} ({})", point.id, disks.join(", ")))
    });
    dependents.collect()
}

fn points_word(count: usize) -> String {
    match count {
        1 => "1 restore point".to_owned(),
        more => format!("{more} restore points"),
    }
}

/// A domain in the document of a verification.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum VerifiedDomain<'a> {
    /// The results.
    Verified(VerifiedPart<'a>),
    /// The error, if nothing was verified.
    Failed(FailedDomain<'a>),
}

/// The results of a verification.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedPart<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) bytes_read: u64,
    pub(super) milliseconds: u64,
    pub(super) restore_points: Vec<ProvedPart<'a>>,
    pub(super) damage: Vec<DamagePart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
    pub(super) error: Option<ErrorPart>,
}

/// The result of a verification for one restore point.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProvedPart<'a> {
    pub(super) id: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) proved_before: Option<Text<'a>>,
    pub(super) damage: Vec<DamagePart<'a>>,
}

/// Damage.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DamagePart<'a> {
    pub(super) path: Option<Text<'a>>,
    pub(super) offset: Option<u64>,
    pub(super) disk: Option<Text<'a>>,
    pub(super) stands_upon: Option<Text<'a>>,
    pub(super) what: Text<'a>,
}

/// The outcome of every domain.
pub fn document<'a>(
    turns: &'a [Turn<Outcome>],
    unmatched: &'a [String],
    code: ExitCode,
) -> Domains<'a, VerifiedDomain<'a>> {
    let domains = turns.iter().map(|turn| match &turn.result {
        Ok(outcome) => VerifiedDomain::Verified(part(turn, outcome)),
        Err(error) => VerifiedDomain::Failed(FailedDomain::of(error, turn.ending)),
    });
    Domains::new(domains.collect(), unmatched, code)
}

fn part<'a>(turn: &'a Turn<Outcome>, outcome: &'a Outcome) -> VerifiedPart<'a> {
    VerifiedPart {
        domain: Text::from(&turn.domain),
        outcome: match outcome.is_sound() {
            false => "damaged",
            true if outcome.ended.is_some() || outcome.needs_newer() => "incomplete",
            true => "sound",
        },
        bytes_read: outcome.bytes,
        milliseconds: u64::try_from(turn.took.as_millis()).unwrap_or(u64::MAX),
        restore_points: outcome.points.iter().map(proved_part).collect(),
        damage: outcome.damage.iter().map(damage_part).collect(),
        findings: findings(&outcome.findings),
        error: outcome.ended.as_ref().map(ErrorPart::of),
    }
}

fn proved_part(point: &ProvedPoint) -> ProvedPart<'_> {
    ProvedPart {
        id: Text::from(&point.id),
        outcome: match (&point.skipped, point.damage.is_empty()) {
            (Some(_), _) => "skipped",
            (None, true) => "sound",
            (None, false) => "damaged",
        },
        proved_before: point.skipped.map(|time| Text::of(&time)),
        damage: point.damage.iter().map(damage_part).collect(),
    }
}

fn damage_part(damage: &Damage) -> DamagePart<'_> {
    DamagePart {
        path: damage.location.as_ref().map(Text::from),
        offset: damage.offset,
        disk: damage.disk.as_ref().map(Text::from),
        stands_upon: damage.inherited_from.as_ref().map(Text::from),
        what: Text::from(&damage.what),
    }
}
