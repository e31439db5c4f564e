//! The output of `vmsnap boot`.

use std::time::Duration;

use serde::Serialize;

use super::lines::{line, push_line};
use super::parts::{FindingPart, Text, findings};
use crate::cli::pretty;
use crate::model::text::{shell_word, shown};
use crate::ops::boot::{BootPlan, Booted, Ending, Outcome};

/// The document of a domain that runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootDocument<'a> {
    pub(super) schema: u32,
    pub(super) event: &'static str,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) time: Text<'a>,
    pub(super) name: Text<'a>,
    pub(super) uuid: Text<'a>,
    pub(super) disks: Vec<OverlayPart<'a>>,
    pub(super) left_out_devices: Vec<Text<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// A disk of a domain that runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OverlayPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) virtual_size: u64,
    pub(super) path: Text<'a>,
}

/// The document of a domain that has ended, or that stays.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootedDocument<'a> {
    pub(super) schema: u32,
    pub(super) event: &'static str,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) name: Text<'a>,
    pub(super) ending: &'static str,
    pub(super) bytes_read: u64,
    pub(super) damaged_reads: u64,
    pub(super) failed_reads: u64,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// The document of a domain that runs.
pub fn document<'a>(domain: &'a str, booted: &Booted<'a>) -> BootDocument<'a> {
    let plan = booted.plan;
    let disks = plan.disks.iter().map(|disk| OverlayPart {
        disk: Text::from(&disk.target),
        virtual_size: disk.size,
        path: Text::of(&disk.path.display()),
    });
    BootDocument {
        schema: 1,
        event: "ready",
        domain: Text::from(domain),
        restore_point: Text::from(&plan.point.id),
        time: Text::of(&plan.point.time),
        name: Text::from(&plan.name),
        uuid: Text::from(&plan.uuid),
        disks: disks.collect(),
        left_out_devices: plan.lacks.iter().map(Text::from).collect(),
        findings: findings(&plan.findings),
    }
}

/// The document of a domain that has ended, or that stays.
pub fn ended_document<'a>(domain: &'a str, outcome: &'a Outcome) -> BootedDocument<'a> {
    let sum = |of: fn(&crate::ops::serve::ReadCounts) -> u64| outcome.counts.iter().map(of).sum();
    BootedDocument {
        schema: 1,
        event: "ended",
        domain: Text::from(domain),
        restore_point: Text::from(&outcome.plan.point.id),
        name: Text::from(&outcome.plan.name),
        ending: match outcome.ending {
            Ending::Ended => "ended",
            // Nobody looks on.
            Ending::Stopped | Ending::Seen => "stopped",
            Ending::Kept => "kept",
        },
        bytes_read: sum(|counts| counts.bytes),
        damaged_reads: sum(|counts| counts.damaged),
        failed_reads: sum(|counts| counts.failed),
        findings: findings(&outcome.findings),
    }
}

/// The plan of a domain, for a dry run.
pub fn plan_text(domain: &str, plan: &BootPlan) -> String {
    let mut text = line(&format!(
        "{}: would start domain '{}' from restore point {} ({})",
        shown(domain),
        shown(&plan.name),
        plan.point.id,
        plan.point.consistency.sentence()
    ));
    for disk in &plan.disks {
        let (size, path) = (pretty::bytes(disk.size), disk.path.display());
        push_line(
            &mut text,
            &format!("  disk {} ({size}): overlay {path}", disk.target),
        );
    }
    push_lacks(&mut text, plan);
    if let Some((dir, _)) = &plan.keep {
        let what = format!(
            "  then its disks would be copied into {} while it runs",
            dir.display()
        );
        push_line(&mut text, &what);
    }
    for finding in &plan.findings {
        push_line(&mut text, &format!("  note: {}", finding.message));
    }
    text
}

/// The lines about a domain that runs.
pub fn ready_text(domain: &str, booted: &Booted<'_>, is_detached: bool) -> String {
    let plan = booted.plan;
    let until = match (&plan.keep, is_detached) {
        (Some((dir, _)), true) => format!("its disks are being copied into {}", dir.display()),
        (Some((dir, _)), false) => format!(
            "its disks are being copied into {}; until that is done, Ctrl-C ends it and removes them",
            dir.display()
        ),
        (None, true) => "all its changes are lost when it ends".to_owned(),
        (None, false) => "until Ctrl-C, SIGTERM or its end; all its changes are lost then".to_owned(),
    };
    let name = shown(&plan.name);
    let mut text = line(&format!(
        "{}: domain '{name}' runs from restore point {} ({}); {until}",
        shown(domain),
        plan.point.id,
        plan.point.consistency.sentence(),
    ));
    push_line(
        &mut text,
        &format!("  to see it: virsh console {}", shell_word(&plan.name)),
    );
    push_lacks(&mut text, plan);
    text
}

fn push_lacks(text: &mut String, plan: &BootPlan) {
    if !plan.lacks.is_empty() {
        push_line(text, &format!("  without: {}", plan.lacks.join(", ")));
    }
}

/// The line about a domain that has ended, or that stays.
pub fn ended_text(domain: &str, outcome: &Outcome, took: Duration) -> String {
    let name = shown(&outcome.plan.name);
    let what = match (outcome.ending, &outcome.plan.keep) {
        (Ending::Kept, Some((dir, _))) => {
            format!(
                "domain '{name}' stays: its disks are in {}, and from its next start on it has the network cards and \
                 devices of the old definition",
                dir.display()
            )
        }
        (Ending::Kept, None) => format!("domain '{name}' stays"),
        (Ending::Ended, Some(_)) => {
            format!("domain '{name}' ended before its disks were copied, so nothing was kept")
        }
        (Ending::Stopped | Ending::Seen, Some(_)) => {
            format!("domain '{name}' was ended before its disks were copied, so nothing was kept")
        }
        (Ending::Ended, None) => format!("domain '{name}' has ended, and was removed"),
        (Ending::Stopped | Ending::Seen, None) => format!("domain '{name}' was ended and removed"),
    };
    let bytes: u64 = outcome.counts.iter().map(|counts| counts.bytes).sum();
    line(&format!(
        "{}: {what}; it read {} of the restore point in {}",
        shown(domain),
        pretty::bytes(bytes),
        pretty::seconds(took)
    ))
}
