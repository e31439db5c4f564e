//! The output of `vmsnap scrub`.

use serde::Serialize;

use super::lines::{line, push_line};
use super::parts::{Domains, ErrorPart, FindingPart, Text, findings, texts};
use crate::cli::exit_code::ExitCode;
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::ops::Error;
use crate::ops::each::{Judged, Turn};
use crate::ops::scrub::{DiskBitmap, NextBackup, Outcome, ScrubPlan};

/// The outcome of a scrub or of its dry run.
pub enum Scrubbed {
    /// What would be removed.
    Planned(ScrubPlan),
    /// What was removed; if the scrub failed, only a part.
    Done(Outcome),
}

impl Judged for Scrubbed {
    fn error(&self) -> Option<&Error> {
        match self {
            Scrubbed::Planned(_) => None,
            Scrubbed::Done(outcome) => outcome.failure.as_ref(),
        }
    }
}

/// The parts that an outcome and a plan have in common.
struct View<'a> {
    checkpoints: &'a [String],
    bitmaps: &'a [DiskBitmap],
    tried: &'a [String],
    left: &'a [DiskBitmap],
    next: &'a NextBackup,
    findings: &'a [Finding],
}

impl Scrubbed {
    fn view(&self) -> View<'_> {
        match self {
            Scrubbed::Planned(plan) => View {
                checkpoints: &plan.checkpoints,
                bitmaps: &plan.bitmaps,
                tried: &plan.tried,
                left: &plan.left,
                next: &plan.next,
                findings: &plan.findings,
            },
            Scrubbed::Done(outcome) => View {
                checkpoints: &outcome.checkpoints,
                bitmaps: &outcome.bitmaps,
                tried: &[],
                left: &outcome.left,
                next: &outcome.next,
                findings: &outcome.findings,
            },
        }
    }
}

/// The lines about a scrub; none if nothing was done.
pub fn lines(turn: &Turn<Scrubbed>) -> String {
    let Ok(scrubbed) = &turn.result else {
        return String::new();
    };
    let view = scrubbed.view();
    let verb = match scrubbed {
        Scrubbed::Planned(_) => "would remove",
        Scrubbed::Done(_) => "removed",
    };
    let domain = shown(&turn.domain);
    let mut text = line(&format!(
        "{domain}: {verb} {} and {}",
        count(view.checkpoints.len(), "checkpoint"),
        count(view.bitmaps.len(), "bitmap")
    ));
    for name in view.checkpoints {
        push_line(&mut text, &format!("  checkpoint {name}"));
    }
    for bitmap in view.bitmaps {
        push_line(
            &mut text,
            &format!("  bitmap {} of disk {}", bitmap.name, bitmap.disk),
        );
    }
    for name in view.tried {
        push_line(&mut text, &format!("  bitmap {name}, if it exists"));
    }
    for bitmap in view.left {
        push_line(
            &mut text,
            &format!("  not removed: bitmap {} of disk {}", bitmap.name, bitmap.disk),
        );
    }
    // The last line has the reason why a backup is refused.
    let is_said = |finding: &&Finding| view.next.is_refused && finding.message == view.next.reason;
    for finding in view.findings.iter().filter(|finding| !is_said(finding)) {
        push_line(&mut text, &format!("  note: {}", finding.message));
    }
    push_line(&mut text, &format!("  {}", next_line(&domain, view.next)));
    text
}

fn count(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        more => format!("{more} {what}s"),
    }
}

/// The classic sentence about the next backup, and the reason.
fn next_line(domain: &str, next: &NextBackup) -> String {
    let what = match next.level {
        Some(level) => level.word(),
        None if next.is_refused => "refused",
        None => "full or incremental",
    };
    format!("the next backup of {domain} will be {what} ({})", next.reason)
}

/// A domain in the document of a scrub.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ScrubbedDomain<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) checkpoints: Vec<Text<'a>>,
    pub(super) bitmaps: Vec<BitmapPart<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tried: Vec<Text<'a>>,
    pub(super) left: Vec<BitmapPart<'a>>,
    pub(super) next_backup: Option<NextPart<'a>>,
    pub(super) error: Option<ErrorPart>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// A bitmap of a disk.
#[derive(Debug, Serialize)]
pub(crate) struct BitmapPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) name: Text<'a>,
}

/// The expected next backup.
#[derive(Debug, Serialize)]
pub(crate) struct NextPart<'a> {
    pub(super) level: Option<&'static str>,
    pub(super) refused: bool,
    pub(super) reason: Text<'a>,
}

/// The outcome of every domain: `planned`, `ok` or `failed`. A failed scrub also lists what it had
/// removed.
pub fn document<'a>(
    turns: &'a [Turn<Scrubbed>],
    unmatched: &'a [String],
    code: ExitCode,
) -> Domains<'a, ScrubbedDomain<'a>> {
    Domains::new(turns.iter().map(domain).collect(), unmatched, code)
}

fn domain(turn: &Turn<Scrubbed>) -> ScrubbedDomain<'_> {
    let error = turn.error();
    let view = turn.result.as_ref().ok().map(Scrubbed::view);
    let view = view.as_ref();
    ScrubbedDomain {
        domain: Text::from(&turn.domain),
        outcome: match (&turn.result, error) {
            (_, Some(_)) => "failed",
            (Ok(Scrubbed::Planned(_)), None) => "planned",
            _ => "ok",
        },
        checkpoints: view.map_or_else(Vec::new, |view| texts(view.checkpoints)),
        bitmaps: view.map_or_else(Vec::new, |view| bitmaps(view.bitmaps)),
        tried: view.map_or_else(Vec::new, |view| texts(view.tried)),
        left: view.map_or_else(Vec::new, |view| bitmaps(view.left)),
        next_backup: view.map(|view| NextPart {
            level: view.next.level.map(|level| level.word()),
            refused: view.next.is_refused,
            reason: Text::from(&view.next.reason),
        }),
        error: error.map(ErrorPart::of),
        findings: findings(match (view, error) {
            (Some(view), _) => view.findings,
            (None, Some(error)) => &error.findings,
            (None, None) => &[],
        }),
    }
}

fn bitmaps(bitmaps: &[DiskBitmap]) -> Vec<BitmapPart<'_>> {
    let parts = bitmaps.iter().map(|bitmap| BitmapPart {
        disk: Text::from(&bitmap.disk),
        name: Text::from(&bitmap.name),
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::restore_point::Level;

    fn done(failure: Option<Error>) -> Turn<Scrubbed> {
        let bitmap = |disk: &str| DiskBitmap {
            disk: disk.to_owned(),
            name: "virtnbdbackup.0".to_owned(),
        };
        let outcome = Outcome {
            checkpoints: vec!["virtnbdbackup.0".to_owned()],
            bitmaps: vec![bitmap("vda"), bitmap("vdb")],
            left: Vec::new(),
            next: NextBackup {
                level: Some(Level::Full),
                is_refused: false,
                reason: "first of the period".to_owned(),
            },
            findings: Vec::new(),
            failure,
        };
        Turn::new("vm1", Duration::ZERO, Ok(Scrubbed::Done(outcome)))
    }

    #[test]
    fn report_says_what_was_removed_and_the_next_backup() {
        assert_eq!(
            lines(&done(None)),
            "vm1: removed 1 checkpoint and 2 bitmaps\n  checkpoint virtnbdbackup.0\n  bitmap virtnbdbackup.0 of disk vda\n  \
             bitmap virtnbdbackup.0 of disk vdb\n  the next backup of vm1 will be full (first of the period)\n"
        );
    }

    #[test]
    fn json_of_a_failure_lists_what_was_removed_before() {
        let failed = done(Some(Error::of(
            "vm1",
            crate::ops::Cause::StillThere("checkpoint virtnbdbackup.1".to_owned()),
        )));
        let failed = [failed];
        let unmatched = ["nope".to_owned()];
        let document = document(&failed, &unmatched, ExitCode::ScrubFailed);
        let value = serde_json::to_value(document).expect("it is JSON");
        assert_eq!(value["exitCode"], 5);
        assert_eq!(value["unmatched"][0], "nope");
        let domain = &value["domains"][0];
        assert_eq!(domain["outcome"], "failed");
        assert_eq!(domain["checkpoints"][0], "virtnbdbackup.0");
        assert_eq!(domain["bitmaps"][1]["disk"], "vdb");
        assert_eq!(domain["nextBackup"]["level"], "full");
        let message = domain["error"]["message"].as_str().expect("a text");
        assert!(message.contains("still exists"), "{message}");
    }
}
