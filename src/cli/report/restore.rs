//! The output of `vmsnap restore`.

use std::time::Duration;

use serde::Serialize;

use super::lines::{line, push_line};
use super::parts::{FailedDomain, FindingPart, Text, findings};
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::Error;
use crate::ops::monitor::Ending;
use crate::ops::restore::{Outcome, RestorePlan, RestoredDisk};

/// The document of a restore.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreDocument<'a> {
    pub(super) schema: u32,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) time: Text<'a>,
    pub(super) pool: Option<Text<'a>>,
    pub(super) disks: Vec<RestoredPart<'a>>,
    pub(super) defined: Option<DefinedPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// The document of a restore that failed.
#[derive(Debug, Serialize)]
pub struct FailedRestore<'a> {
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) failed: FailedDomain<'a>,
}

/// A disk that was restored.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RestoredPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) path: Text<'a>,
    pub(super) volume: Option<Text<'a>>,
    pub(super) format: &'static str,
    pub(super) virtual_size: u64,
    pub(super) data_bytes: u64,
}

/// A domain that was defined.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DefinedPart<'a> {
    pub(super) name: Text<'a>,
    pub(super) new_uuid: Option<Text<'a>>,
}

/// The document of a restore that succeeded.
pub fn document<'a>(domain: &'a str, outcome: &'a Outcome) -> RestoreDocument<'a> {
    let plan = &outcome.plan;
    let disks = plan.disks.iter().zip(&outcome.written);
    let disks = disks.map(|(disk, written)| RestoredPart {
        disk: Text::from(&disk.target),
        path: Text::of(&disk.to.display()),
        volume: disk.volume.as_ref().map(|volume| Text::from(&volume.name)),
        format: disk.format.word(),
        virtual_size: disk.size,
        data_bytes: written.data_bytes,
    });
    RestoreDocument {
        schema: 1,
        domain: Text::from(domain),
        restore_point: Text::from(&plan.point.id),
        time: Text::of(&plan.point.time),
        pool: plan.pool.as_ref().map(|pool| Text::from(&pool.name)),
        disks: disks.collect(),
        defined: plan.define.as_ref().map(|define| DefinedPart {
            name: Text::from(&define.name),
            new_uuid: define.new_uuid.as_ref().map(Text::from),
        }),
        findings: findings(&plan.findings),
    }
}

/// The document of a restore that failed.
pub fn failed_document(error: &Error) -> FailedRestore<'_> {
    FailedRestore {
        schema: 1,
        failed: FailedDomain::of(error, Ending::Failed),
    }
}

/// The lines about a restore.
pub fn text(domain: &str, outcome: &Outcome, took: Duration) -> String {
    let plan = &outcome.plan;
    let copied: u64 = outcome.written.iter().map(|written| written.data_bytes).sum();
    let mut text = line(&format!(
        "{}: restore point {} ({}), {}",
        shown(domain),
        plan.point.id,
        plan.point.consistency.sentence(),
        pretty::amount(copied, took, "no data"),
    ));
    for disk in &plan.disks {
        push_line(
            &mut text,
            &format!("  disk {}: {}{}", disk.target, disk.to.display(), of_pool(disk)),
        );
    }
    if let Some(define) = &plan.define {
        let identity = match &define.new_uuid {
            Some(uuid) => format!("the new UUID {uuid} and new MAC addresses"),
            None => "its old UUID and MAC addresses".to_owned(),
        };
        push_line(
            &mut text,
            &format!("  defined domain {} with {identity}", shown(&define.name)),
        );
    }
    text
}

/// The words about the volume that a disk becomes, if it becomes one.
fn of_pool(disk: &RestoredDisk) -> String {
    let volume = disk.volume.as_ref();
    volume.map_or_else(String::new, |volume| {
        format!(", volume of the storage pool {}", shown(&volume.pool))
    })
}

/// The lines of a dry run.
pub fn plan_text(domain: &str, plan: &RestorePlan) -> String {
    let mut text = line(&format!(
        "{}: restore point {} would be restored",
        shown(domain),
        plan.point.id
    ));
    for disk in &plan.disks {
        push_line(
            &mut text,
            &format!(
                "  disk {}: {} to {}{} ({}), from {} {}",
                disk.target,
                pretty::bytes(disk.size),
                disk.to.display(),
                of_pool(disk),
                disk.format.word(),
                disk.steps,
                if disk.steps == 1 { "image" } else { "images" }
            ),
        );
    }
    if let Some(define) = &plan.define {
        push_line(&mut text, &format!("  define domain {}", shown(&define.name)));
    }
    for finding in &plan.findings {
        push_line(&mut text, &format!("  note: {}", finding.message));
    }
    text
}
