//! The output of `vmsnap verify --boot`.

use serde::Serialize;

use super::lines::push_line;
use super::parts::{BootProofPart, Domains, ErrorPart, FailedDomain, FindingPart, Text, findings};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::guest::BootLevel;
use crate::model::text::shown;
use crate::ops::boot_proof::{BootedPoint, Outcome};
use crate::ops::each::Turn;
use crate::ops::list::BootProof;

/// The lines about a domain: one for each restore point, and its details.
pub fn lines(turn: &Turn<Outcome>) -> String {
    let Ok(outcome) = &turn.result else {
        return String::new();
    };
    let mut text = String::new();
    for point in &outcome.points {
        let what = format!("{}: {}: {}", shown(&turn.domain), point.proof.id, sentence(point));
        push_line(&mut text, &what);
        if !point.proof.is_proven() && !point.last_line.is_empty() {
            push_line(
                &mut text,
                &format!("  last line of its console: {}", point.last_line),
            );
        }
        if lacks_prompt(&point.proof) {
            let what = "  without a guest agent at the backup, a login prompt on the first serial port is expected; \
                        --console-pattern names another text";
            push_line(&mut text, what);
        }
        if let Some(path) = &point.picture {
            push_line(&mut text, &format!("  picture: {}", path.display()));
        }
    }
    text
}

/// Whether only the text is missing that is expected if the user names none.
fn lacks_prompt(proof: &BootProof) -> bool {
    !proof.is_proven() && proof.wanted == BootLevel::Console && proof.pattern.is_none()
}

fn sentence(point: &BootedPoint) -> String {
    let proof = &point.proof;
    let level = format!("{} reached", proof.reached.word());
    let took = pretty::seconds(std::time::Duration::from_secs(proof.seconds));
    match (&proof.shortfall, point.is_skipped) {
        (None, true) => format!("skipped (proven on {:.0}: {level})", proof.time),
        (None, false) => format!("PROVEN: {level} in {took}"),
        // The text that the user named is missing, or data are damaged.
        (Some(why), _) if proof.reached >= proof.wanted => {
            format!("NOT PROVEN: {level}, but {}", shown(why))
        }
        (Some(why), _) => format!(
            "NOT PROVEN: {level}, but not {}: {}",
            proof.wanted.word(),
            shown(why)
        ),
    }
}

/// A domain in the document of boot proofs.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum BootedDomain<'a> {
    /// The results.
    Booted(BootedPart<'a>),
    /// The error, if nothing was started.
    Failed(FailedDomain<'a>),
}

/// The results of a domain.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootedPart<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) restore_points: Vec<BootedPointPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
    pub(super) error: Option<ErrorPart>,
}

/// A restore point that was started, or skipped.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BootedPointPart<'a> {
    pub(super) id: Text<'a>,
    pub(super) skipped: bool,
    pub(super) boot_proof: BootProofPart<'a>,
    pub(super) damaged: bool,
    pub(super) last_line: Text<'a>,
    pub(super) picture: Option<Text<'a>>,
    pub(super) console: Option<Text<'a>>,
}

/// The outcome of every domain.
pub fn document<'a>(
    turns: &'a [Turn<Outcome>],
    unmatched: &'a [String],
    code: ExitCode,
) -> Domains<'a, BootedDomain<'a>> {
    let domains = turns.iter().map(|turn| match &turn.result {
        Ok(outcome) => BootedDomain::Booted(part(&turn.domain, outcome)),
        Err(error) => BootedDomain::Failed(FailedDomain::of(error, turn.ending)),
    });
    Domains::new(domains.collect(), unmatched, code)
}

fn part<'a>(domain: &'a str, outcome: &'a Outcome) -> BootedPart<'a> {
    let points = &outcome.points;
    let is_proven = points.iter().all(|point| point.proof.is_proven());
    BootedPart {
        domain: Text::from(domain),
        outcome: match points.iter().any(|point| point.is_damaged) {
            true => "damaged",
            false if !is_proven => "not-proven",
            false if outcome.ended.is_some() => "incomplete",
            false => "proven",
        },
        restore_points: points.iter().map(point_part).collect(),
        findings: findings(&outcome.findings),
        error: outcome.ended.as_ref().map(ErrorPart::of),
    }
}

fn point_part(point: &BootedPoint) -> BootedPointPart<'_> {
    BootedPointPart {
        id: Text::from(&point.proof.id),
        skipped: point.is_skipped,
        boot_proof: BootProofPart::of(&point.proof),
        damaged: point.is_damaged,
        last_line: Text::from(&point.last_line),
        picture: point.picture.as_ref().map(|path| Text::of(&path.display())),
        console: point.console.as_ref().map(|path| Text::of(&path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(reached: BootLevel, shortfall: Option<&str>, is_skipped: bool) -> BootedPoint {
        BootedPoint {
            proof: BootProof {
                id: "2026-11-03T01-00-00Z".to_owned(),
                manifest: String::new(),
                time: "2026-11-21T02:00:00Z".parse().expect("a time"),
                reached,
                wanted: BootLevel::Same,
                pattern: None,
                command: Vec::new(),
                shortfall: shortfall.map(str::to_owned),
                seconds: 9,
            },
            is_skipped,
            is_damaged: false,
            last_line: String::new(),
            picture: None,
            console: None,
        }
    }

    #[test]
    fn sentences_never_deny_the_level_that_was_reached() {
        let (same, console) = (BootLevel::Same, BootLevel::Console);
        let proven = sentence(&point(same, None, false));
        assert!(proven.starts_with("PROVEN: same reached in 9"), "{proven}");
        let skipped = sentence(&point(same, None, true));
        assert_eq!(skipped, "skipped (proven on 2026-11-21T02:00:00Z: same reached)");
        let low = sentence(&point(console, Some("it is silent"), false));
        assert_eq!(low, "NOT PROVEN: console reached, but not same: it is silent");
        let damaged = sentence(&point(same, Some("its data are damaged"), false));
        assert_eq!(damaged, "NOT PROVEN: same reached, but its data are damaged");
    }
}
