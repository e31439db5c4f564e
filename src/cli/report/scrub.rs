//! What `vmsnap scrub` shows.

use serde::Serialize;

use super::{ErrorJson, document, line, push_line};
use crate::cli::exit_code::ExitCode;
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::ops::Error;
use crate::ops::scrub::{DiskBitmap, NextBackup, Outcome, ScrubPlan};

/// What came of a domain.
pub enum Result {
    /// What would be removed.
    Planned(ScrubPlan),
    /// What was removed, all that was meant or only a part.
    Done(Outcome),
}

/// A domain that had its turn.
pub struct Scrubbed {
    /// Its name.
    pub domain: String,
    /// What came of it.
    pub result: std::result::Result<Result, Error>,
}

/// What there is to show, whichever way it came about.
struct View<'a> {
    checkpoints: &'a [String],
    bitmaps: &'a [DiskBitmap],
    tried: &'a [String],
    left: &'a [DiskBitmap],
    next: &'a NextBackup,
    findings: &'a [Finding],
}

impl Scrubbed {
    /// Why it failed, wholly or in part.
    pub fn failure(&self) -> Option<&Error> {
        match &self.result {
            Ok(Result::Planned(_)) => None,
            Ok(Result::Done(outcome)) => outcome.failure.as_ref(),
            Err(error) => Some(error),
        }
    }

    fn view(&self) -> Option<View<'_>> {
        match self.result.as_ref().ok()? {
            Result::Planned(plan) => Some(View {
                checkpoints: &plan.checkpoints,
                bitmaps: &plan.bitmaps,
                tried: &plan.tried,
                left: &plan.left,
                next: &plan.next,
                findings: &plan.findings,
            }),
            Result::Done(outcome) => Some(View {
                checkpoints: &outcome.checkpoints,
                bitmaps: &outcome.bitmaps,
                tried: &[],
                left: &outcome.left,
                next: &outcome.next,
                findings: &outcome.findings,
            }),
        }
    }

    /// The lines that a person reads; none where nothing was done.
    pub fn lines(&self) -> String {
        let Some(view) = self.view() else {
            return String::new();
        };
        let planned = matches!(self.result, Ok(Result::Planned(_)));
        let verb = if planned { "would remove" } else { "removed" };
        let domain = shown(&self.domain);
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
            push_line(&mut text, &format!("  bitmap {name}, if there is one"));
        }
        for bitmap in view.left {
            push_line(
                &mut text,
                &format!("  left: bitmap {} of disk {}", bitmap.name, bitmap.disk),
            );
        }
        // The last line says why a backup is refused.
        let is_said = |finding: &&Finding| view.next.is_refused && finding.message == view.next.reason;
        for finding in view.findings.iter().filter(|finding| !is_said(finding)) {
            push_line(&mut text, &format!("  note: {}", finding.message));
        }
        push_line(&mut text, &format!("  {}", next_line(&domain, view.next)));
        text
    }
}

fn count(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        more => format!("{more} {what}s"),
    }
}

/// The classic sentence, and the reason behind it.
fn next_line(domain: &str, next: &NextBackup) -> String {
    let what = match next.level {
        Some(level) => level.word(),
        None if next.is_refused => "refused",
        None => "full or incremental",
    };
    format!("the next backup of {domain} will be {what} ({})", next.reason)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScrubJson<'a> {
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
    checkpoints: &'a [String],
    bitmaps: Vec<BitmapJson<'a>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tried: &'a [String],
    left: Vec<BitmapJson<'a>>,
    next_backup: Option<NextJson<'a>>,
    error: Option<ErrorJson>,
    findings: &'a [Finding],
}

#[derive(Serialize)]
struct BitmapJson<'a> {
    disk: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
struct NextJson<'a> {
    level: Option<&'static str>,
    refused: bool,
    reason: &'a str,
}

/// The outcome of every domain as one JSON document. `outcome` is `planned`, `ok` or `failed`; what a failed one removed before it failed
/// is told all the same.
pub fn json(done: &[Scrubbed], unmatched: &[String], code: ExitCode) -> String {
    document(&ScrubJson {
        schema: 1,
        domains: done.iter().map(domain_json).collect(),
        unmatched,
        exit_code: code.number(),
    })
}

fn domain_json(done: &Scrubbed) -> DomainJson<'_> {
    let failure = done.failure();
    let view = done.view();
    let view = view.as_ref();
    DomainJson {
        domain: &done.domain,
        outcome: match (&done.result, failure) {
            (_, Some(_)) => "failed",
            (Ok(Result::Planned(_)), None) => "planned",
            _ => "ok",
        },
        checkpoints: view.map_or(&[], |view| view.checkpoints),
        bitmaps: view.map_or_else(Vec::new, |view| bitmaps_json(view.bitmaps)),
        tried: view.map_or(&[], |view| view.tried),
        left: view.map_or_else(Vec::new, |view| bitmaps_json(view.left)),
        next_backup: view.map(|view| NextJson {
            level: view.next.level.map(|level| level.word()),
            refused: view.next.is_refused,
            reason: &view.next.reason,
        }),
        error: failure.map(ErrorJson::of),
        findings: match (view, failure) {
            (Some(view), _) => view.findings,
            (None, Some(error)) => &error.findings,
            (None, None) => &[],
        },
    }
}

fn bitmaps_json(bitmaps: &[DiskBitmap]) -> Vec<BitmapJson<'_>> {
    bitmaps
        .iter()
        .map(|bitmap| BitmapJson {
            disk: &bitmap.disk,
            name: &bitmap.name,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::restore_point::Level;

    fn done(failure: Option<Error>) -> Scrubbed {
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
        Scrubbed {
            domain: "vm1".to_owned(),
            result: Ok(Result::Done(outcome)),
        }
    }

    #[test]
    fn report_says_what_was_removed_and_the_next_backup() {
        assert_eq!(
            done(None).lines(),
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
        let json = json(&[failed], &["nope".to_owned()], ExitCode::ScrubFailed);
        let value: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        assert_eq!(value["exitCode"], 5);
        assert_eq!(value["unmatched"][0], "nope");
        let domain = &value["domains"][0];
        assert_eq!(domain["outcome"], "failed");
        assert_eq!(domain["checkpoints"][0], "virtnbdbackup.0");
        assert_eq!(domain["bitmaps"][1]["disk"], "vdb");
        assert_eq!(domain["nextBackup"]["level"], "full");
        let message = domain["error"]["message"].as_str().expect("a text");
        assert!(message.contains("still there"), "{message}");
    }
}
