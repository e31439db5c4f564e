//! What `vmsnap restore` shows.

use std::time::Duration;

use serde::Serialize;

use super::tree::Tree;
use super::{document, error_tree, finding_tree, line, push_line};
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::Error;
use crate::ops::restore::{Outcome, RestorePlan};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RestoreJson<'a> {
    schema: u32,
    domain: &'a str,
    restore_point: &'a str,
    time: String,
    disks: Vec<DiskJson<'a>>,
    defined: Option<DefinedJson<'a>>,
    findings: &'a [crate::model::finding::Finding],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskJson<'a> {
    disk: &'a str,
    path: String,
    format: &'static str,
    virtual_size: u64,
    data_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DefinedJson<'a> {
    name: &'a str,
    new_uuid: Option<&'a str>,
}

/// What was brought back, as one JSON document.
pub fn json(domain: &str, outcome: &Outcome) -> String {
    let plan = &outcome.plan;
    let disks = plan
        .disks
        .iter()
        .zip(&outcome.written)
        .map(|(disk, written)| DiskJson {
            disk: &disk.target,
            path: disk.to.display().to_string(),
            format: disk.format.word(),
            virtual_size: disk.size,
            data_bytes: written.data_bytes,
        });
    document(&RestoreJson {
        schema: 1,
        domain,
        restore_point: &plan.point.id,
        time: plan.point.time.to_string(),
        disks: disks.collect(),
        defined: plan.define.as_ref().map(|define| DefinedJson {
            name: &define.name,
            new_uuid: define.new_uuid.as_deref(),
        }),
        findings: &plan.findings,
    })
}

/// A restore that failed, as one JSON document.
pub fn failed_json(error: &Error) -> String {
    let findings = error.findings.iter().map(finding_tree);
    let document = Tree::map([
        ("schema", Tree::Number(1)),
        ("domain", Tree::text(&error.domain)),
        ("outcome", Tree::text("failed")),
        ("error", error_tree(error)),
        ("findings", Tree::List(findings.collect())),
    ]);
    document.json(false) + "\n"
}

/// What was brought back, for a person.
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
            &format!("  disk {}: {}", disk.target, disk.to.display()),
        );
    }
    if let Some(define) = &plan.define {
        let identity = match &define.new_uuid {
            Some(uuid) => format!("new UUID {uuid}, new network addresses"),
            None => "its old identity".to_owned(),
        };
        push_line(
            &mut text,
            &format!("  defined domain {} with {identity}", shown(&define.name)),
        );
    }
    text
}

/// What a dry run would do.
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
                "  disk {}: {} to {} ({}), from {} image(s)",
                disk.target,
                pretty::bytes(disk.size),
                disk.to.display(),
                disk.format.word(),
                disk.steps
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
