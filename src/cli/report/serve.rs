//! The output of `vmsnap serve`.

use std::time::Duration;

use serde::Serialize;

use super::lines::{line, push_line};
use super::parts::{FindingPart, Text, findings};
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::serve::{Outcome, Served};

/// The document of a server that clients can use.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServeDocument<'a> {
    pub(super) schema: u32,
    pub(super) event: &'static str,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) time: Text<'a>,
    pub(super) exports: Vec<ExportPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// A disk that is served.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExportPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) uri: Text<'a>,
    pub(super) virtual_size: u64,
}

/// The document of a server that has ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServedDocument<'a> {
    pub(super) schema: u32,
    pub(super) event: &'static str,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) connections: u64,
    pub(super) refused_connections: u64,
    pub(super) exports: Vec<ReadPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// How much of a disk was read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) bytes_read: u64,
    pub(super) damaged_reads: u64,
    pub(super) failed_reads: u64,
}

/// The document of a server that clients can use.
pub fn document<'a>(domain: &'a str, served: &'a Served) -> ServeDocument<'a> {
    let exports = served.disks.iter().map(|disk| ExportPart {
        disk: Text::from(&disk.target),
        uri: Text::from(&disk.uri),
        virtual_size: disk.size,
    });
    ServeDocument {
        schema: 1,
        event: "ready",
        domain: Text::from(domain),
        restore_point: Text::from(&served.point.id),
        time: Text::of(&served.point.time),
        exports: exports.collect(),
        findings: findings(&served.findings),
    }
}

/// The document of a server that has ended.
pub fn ended_document<'a>(domain: &'a str, outcome: &'a Outcome) -> ServedDocument<'a> {
    let disks = outcome.served.disks.iter().zip(&outcome.counts);
    let exports = disks.map(|(disk, counts)| ReadPart {
        disk: Text::from(&disk.target),
        bytes_read: counts.bytes,
        damaged_reads: counts.damaged,
        failed_reads: counts.failed,
    });
    ServedDocument {
        schema: 1,
        event: "ended",
        domain: Text::from(domain),
        restore_point: Text::from(&outcome.served.point.id),
        connections: outcome.visits.served,
        refused_connections: outcome.visits.refused,
        exports: exports.collect(),
        findings: findings(&outcome.findings),
    }
}

/// The lines about a server that clients can use.
pub fn text(domain: &str, served: &Served) -> String {
    let mut text = line(&format!(
        "{}: serving restore point {} ({}), read-only, until Ctrl-C or SIGTERM",
        shown(domain),
        served.point.id,
        served.point.consistency.sentence(),
    ));
    for disk in &served.disks {
        push_line(&mut text, &format!("  disk {}: {}", disk.target, disk.uri));
    }
    text
}

/// The line about a server that has ended.
pub fn ended_text(domain: &str, outcome: &Outcome, took: Duration) -> String {
    let sum = |of: fn(&crate::ops::serve::ReadCounts) -> u64| outcome.counts.iter().map(of).sum::<u64>();
    let bytes = sum(|counts| counts.bytes);
    let mut text = format!(
        "{}: served {} in {}, over {}",
        shown(domain),
        if bytes == 0 {
            "no data".to_owned()
        } else {
            pretty::bytes(bytes)
        },
        pretty::seconds(took),
        counted(outcome.visits.served, "connection"),
    );
    let failures = [
        (sum(|counts| counts.damaged), "failed because of damage"),
        (sum(|counts| counts.failed), "failed for another reason"),
    ];
    for (number, what) in failures.iter().filter(|(number, _)| *number > 0) {
        text.push_str(&format!("; {} {what}", counted(*number, "read")));
    }
    if outcome.visits.refused > 0 {
        let refused = counted(outcome.visits.refused, "connection");
        text.push_str(&format!("; {refused} refused, because too many were open"));
    }
    line(&text)
}

fn counted(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}
