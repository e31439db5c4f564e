//! The output of `vmsnap restore --in-place`.

use std::time::Duration;

use serde::Serialize;

use super::lines::{line, push_line};
use super::parts::{FindingPart, Text, findings};
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::in_place::{Basis, InPlaceDisk, InPlacePlan, Outcome};
use crate::ops::restore_mark::FoundMark;

/// The document of a restore in place.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InPlaceDocument<'a> {
    pub(super) schema: u32,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) time: Text<'a>,
    pub(super) of: Option<Text<'a>>,
    pub(super) saved: Option<Text<'a>>,
    pub(super) disks: Vec<InPlacePart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// A disk that was restored in place.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InPlacePart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) from: Option<Text<'a>>,
    pub(super) path: Text<'a>,
    pub(super) virtual_size: u64,
    pub(super) since: Option<Text<'a>>,
    pub(super) compared: Text<'a>,
    pub(super) compared_bytes: u64,
    pub(super) data_bytes: u64,
    pub(super) zero_bytes: u64,
}

/// The document of a restore that succeeded.
pub fn document<'a>(domain: &'a str, outcome: &'a Outcome) -> InPlaceDocument<'a> {
    let part = |restored: &'a crate::ops::in_place::RestoredInPlace| InPlacePart {
        disk: Text::from(&restored.disk.target),
        from: restored.disk.from.as_ref().map(Text::from),
        path: Text::from(&restored.disk.source),
        virtual_size: restored.disk.size,
        since: match &restored.disk.basis {
            Basis::Changes { since, .. } => Some(Text::from(&since.id)),
            Basis::Whole(_) => None,
        },
        compared: Text::from(restored.disk.basis.sentence()),
        compared_bytes: restored.compared_bytes,
        data_bytes: restored.written.data_bytes,
        zero_bytes: restored.written.zero_bytes,
    };
    InPlaceDocument {
        schema: 1,
        domain: Text::from(domain),
        restore_point: Text::from(&outcome.point.id),
        time: Text::of(&outcome.point.time),
        of: outcome.of.as_ref().map(Text::from),
        saved: outcome.saved.as_ref().map(Text::from),
        disks: outcome.disks.iter().map(part).collect(),
        findings: findings(&outcome.findings),
    }
}

/// The lines about a restore in place.
pub fn text(domain: &str, outcome: &Outcome, took: Duration) -> String {
    let mut text = line(&format!(
        "{}: restored in place to {}{} ({}) in {}",
        shown(domain),
        outcome.point.id,
        of_domain(outcome.of.as_deref()),
        outcome.point.consistency.sentence(),
        pretty::seconds(took),
    ));
    for restored in &outcome.disks {
        let written = restored.written.data_bytes + restored.written.zero_bytes;
        push_line(
            &mut text,
            &format!(
                "  disk {}{}: {} of {} compared, {} written",
                restored.disk.target,
                from_disk(&restored.disk),
                pretty::bytes(restored.compared_bytes),
                pretty::bytes(restored.disk.size),
                pretty::bytes(written),
            ),
        );
    }
    if let Some(saved) = &outcome.saved {
        push_line(
            &mut text,
            &format!("  the previous state of the disks was saved as restore point {saved}"),
        );
    }
    text
}

/// The words about the domain of the restore point, if it is another one.
fn of_domain(of: Option<&str>) -> String {
    of.map_or_else(String::new, |of| format!(" of {}", shown(of)))
}

/// The words about the disk in the restore point, if it is another one.
fn from_disk(disk: &InPlaceDisk) -> String {
    let from = disk.from.as_ref();
    from.map_or_else(String::new, |from| format!(" from disk {from}"))
}

/// The lines of a dry run.
pub fn plan_text(domain: &str, plan: &InPlacePlan) -> String {
    let mut text = line(&format!(
        "{}: the disks would be restored in place to {}{}",
        shown(domain),
        plan.point.id,
        of_domain(plan.of.as_deref())
    ));
    let first = match (&plan.ends, plan.saves) {
        (Some(mark), _) => format!(
            "  finishes the restore in place to {} that began at {:.0}",
            shown(&mark.restore_point),
            mark.began
        ),
        (None, true) => "  first saves the present state as a restore point".to_owned(),
        (None, false) => "  the present state is not saved".to_owned(),
    };
    push_line(&mut text, &first);
    for disk in &plan.disks {
        push_line(
            &mut text,
            &format!(
                "  disk {}{} ({}, {}): compares {}, and writes what differs",
                disk.target,
                from_disk(disk),
                shown(&disk.source),
                pretty::bytes(disk.size),
                disk.basis.sentence(),
            ),
        );
    }
    for finding in &plan.findings {
        push_line(&mut text, &format!("  note: {}", finding.message));
    }
    text
}

/// The line about a restore in place that was given up.
pub fn abandoned_text(domain: &str, found: Option<&FoundMark>) -> String {
    let domain = shown(domain);
    line(&match found {
        None => format!("{domain}: there is no unfinished restore in place"),
        Some(found) => format!(
            "{domain}: the mark was removed, and the disks stay as they are ({})",
            found.sentence()
        ),
    })
}
