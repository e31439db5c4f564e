//! What `vmsnap backup` shows.

use std::time::Duration;

use serde::Serialize;

use super::{PointJson, causes, document, error_text};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::ops::backup::Outcome;
use crate::ops::plan::BackupPlan;
use crate::ops::{Error, Result};

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
    /// The line that a person reads.
    pub fn line(&self) -> String {
        match &self.result {
            Err(error) => format!("vmsnap: {}\n", error_text(error)),
            Ok(outcome) => {
                let point = &outcome.point;
                let copied: u64 = point.disks.iter().map(|disk| disk.data_bytes).sum();
                let rate = copied as f64 / self.took.as_secs_f64().max(0.001);
                format!(
                    "{}: {} backup {}, {}, {} in {} ({}/s), {}\n",
                    shown(&self.domain),
                    point.level.word(),
                    point.id,
                    disks_word(point.disks.len()),
                    pretty::bytes(copied),
                    pretty::seconds(self.took),
                    pretty::bytes(rate as u64),
                    point.consistency.sentence(),
                )
            }
        }
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
    restore_point: Option<PointJson<'a>>,
    path: Option<String>,
    error: Option<ErrorJson>,
    findings: &'a [Finding],
}

#[derive(Serialize)]
struct ErrorJson {
    message: String,
    disk: Option<String>,
    hint: Option<String>,
}

/// The outcome of every domain as one JSON document.
pub fn json(done: &[Done], unmatched: &[String], code: ExitCode) -> String {
    let domains = done.iter().map(|done| match &done.result {
        Ok(outcome) => DomainJson {
            domain: &done.domain,
            outcome: "ok",
            seconds: done.took.as_secs_f64(),
            restore_point: Some(PointJson::of(&outcome.point, outcome.file_bytes, None, &[])),
            path: Some(outcome.dir.display().to_string()),
            error: None,
            findings: &outcome.findings,
        },
        Err(error) => DomainJson {
            domain: &done.domain,
            outcome: "failed",
            seconds: done.took.as_secs_f64(),
            restore_point: None,
            path: None,
            error: Some(error_json(error)),
            findings: &[],
        },
    });
    document(&BackupJson {
        schema: 1,
        domains: domains.collect(),
        unmatched,
        exit_code: code.number(),
    })
}

fn error_json(error: &Error) -> ErrorJson {
    ErrorJson {
        message: causes(error),
        disk: error.disk.clone(),
        hint: error.hint(),
    }
}

/// What a dry run would do with a domain.
pub fn plan_text(domain: &str, plan: &BackupPlan) -> String {
    let mut text = format!(
        "{}: a {} backup into {}\n",
        shown(domain),
        plan.level().word(),
        plan.period
    );
    if let Some(checkpoint) = &plan.checkpoint {
        text.push_str(&format!("  checkpoint {checkpoint}\n"));
    }
    for disk in &plan.disks {
        let level = disk.level.level().word();
        text.push_str(&format!(
            "  disk {}: {level}, {}\n",
            disk.disk.target, disk.level.reason
        ));
    }
    for finding in &plan.findings {
        text.push_str(&format!("  note: {}\n", finding.message));
    }
    if plan.disks.is_empty() {
        text.push_str("  there is nothing to back up\n");
    }
    text
}
