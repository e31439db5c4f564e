//! What `vmsnap status` shows: the classic lines first, ours below them.

use serde::{Serialize, Serializer};

use super::document;
use crate::model::finding::Finding;
use crate::ops::status::DomainStatus;

/// The classic text.
pub fn text(statuses: &[DomainStatus]) -> String {
    statuses.iter().map(domain_text).collect::<Vec<_>>().join("\n")
}

fn domain_text(status: &DomainStatus) -> String {
    let name = &status.domain;
    let mut text = format!("Status for {name}:\n");
    let overall = if status.inconsistencies.is_empty() {
        "OK"
    } else {
        "INCONSISTENT"
    };
    text.push_str(&format!("  Overall status: {overall}\n"));
    if status.checkpoints.is_empty() {
        text.push_str(&format!("  No checkpoints found for {name}\n"));
    } else {
        text.push_str(&format!("  Checkpoints found for {name}:\n"));
        for checkpoint in &status.checkpoints {
            text.push_str(&format!("    {checkpoint}\n"));
        }
    }
    if status.disks.is_empty() {
        text.push_str(&format!("  No eligible disks found for {name}\n"));
    } else {
        text.push_str(&format!("  Eligible disks found for {name}:\n"));
    }
    for disk in &status.disks {
        let target = &disk.target;
        text.push_str(&format!("    {target}\n"));
        text.push_str(&format!("      Virtual size: {}\n", disk.virtual_size));
        text.push_str(&format!("      Actual size: {}\n", disk.actual_size));
        if disk.bitmaps.is_empty() {
            text.push_str(&format!("      No bitmaps found for {target}\n"));
        } else {
            text.push_str(&format!("      Bitmaps found for {target}:\n"));
            for bitmap in &disk.bitmaps {
                text.push_str(&format!("          {bitmap}\n"));
            }
        }
    }
    if let Some(dir) = &status.dir {
        text.push_str(&format!("  Backup directory stats for {name}:\n"));
        text.push_str(&format!("    Path: {}\n", dir.path.display()));
        text.push_str(&format!("    Total files: {}\n", dir.total_files));
        text.push_str(&format!("    Total size: {}\n", dir.total_size));
        text.push_str(&format!("    Checkpoints: {}\n", dir.checkpoints));
    }
    text.push_str(&format!("  State: {}\n", status.state.word()));
    if let Some(latest) = &status.latest {
        text.push_str(&format!("  Last restore point: {latest}\n"));
    }
    for line in &status.inconsistencies {
        text.push_str(&format!("  Inconsistent: {line}\n"));
    }
    for finding in &status.findings {
        text.push_str(&format!("  Note: {}\n", finding.message));
    }
    text
}

/// The classic JSON: an object with a key per domain, ours after the known keys.
pub fn json(statuses: &[DomainStatus]) -> String {
    document(&Domains(statuses))
}

/// Keeps the order of the domains, which a map of JSON values would not.
struct Domains<'a>(&'a [DomainStatus]);

impl Serialize for Domains<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|status| (&status.domain, DomainJson::of(status))),
        )
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DomainJson<'a> {
    checkpoints: &'a [String],
    disks: Vec<DiskJson<'a>>,
    overall_status: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup_dir_stats: Option<DirJson>,
    state: &'static str,
    last_restore_point: Option<&'a str>,
    inconsistencies: &'a [String],
    findings: &'a [Finding],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskJson<'a> {
    disk: &'a str,
    virtual_size: u64,
    actual_size: u64,
    bitmaps: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DirJson {
    path: String,
    total_files: u64,
    checkpoints: u64,
    total_size: u64,
}

impl<'a> DomainJson<'a> {
    fn of(status: &'a DomainStatus) -> Self {
        let disks = status.disks.iter().map(|disk| DiskJson {
            disk: &disk.target,
            virtual_size: disk.virtual_size,
            actual_size: disk.actual_size,
            bitmaps: &disk.bitmaps,
        });
        DomainJson {
            checkpoints: &status.checkpoints,
            disks: disks.collect(),
            overall_status: u8::from(!status.inconsistencies.is_empty()),
            backup_dir_stats: status.dir.as_ref().map(|dir| DirJson {
                path: dir.path.display().to_string(),
                total_files: dir.total_files,
                checkpoints: dir.checkpoints,
                total_size: dir.total_size,
            }),
            state: status.state.word(),
            last_restore_point: status.latest.as_deref(),
            inconsistencies: &status.inconsistencies,
            findings: &status.findings,
        }
    }
}
