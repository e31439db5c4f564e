//! The output of `vmsnap status`: the classic lines and keys first, then ours.

use anstyle::{AnsiColor, Style};

use super::document::Document;
use super::lines::{found_on, push_line};
use super::status_document::document;
use crate::cli::pretty;
use crate::model::restore_point::Level;
use crate::model::text::shown;
use crate::ops::status::{DiskStatus, DomainStatus};

/// The format in which a status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines for people.
    Text,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// How a status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The format.
    pub form: Form,
    /// Whether to omit the title and separator lines of JSON and YAML, and to print JSON on one
    /// line. It has no effect on text.
    pub machine: bool,
    /// Whether to print sizes with units, such as `14.3 GB`.
    pub pretty: bool,
}

const DOMAIN: Style = AnsiColor::Magenta.on_default().bold();
const OK: Style = AnsiColor::Green.on_default().bold();
const INCONSISTENT: Style = AnsiColor::Yellow.on_default().bold();

/// The status of these domains as it is printed; text has colours.
pub fn write(statuses: &[DomainStatus], look: Look) -> String {
    let document = || Document::Status(document(statuses, look.pretty));
    match look.form {
        Form::Text => statuses.iter().map(|status| text(status, look.pretty)).collect(),
        Form::Json if look.machine => document().json_line(),
        Form::Json => frame("JSON", &document().json()),
        Form::Yaml if look.machine => document().yaml(),
        Form::Yaml => frame("YAML", &document().yaml()),
    }
}

fn frame(title: &str, lines: &str) -> String {
    let rule = "-".repeat(80);
    format!("{title}:\n{rule}\n{lines}{rule}\n")
}

/// The text about one domain, with colours: the classic lines, then the others.
pub fn text(status: &DomainStatus, pretty: bool) -> String {
    let size = |bytes: u64| match pretty {
        true => pretty::bytes(bytes),
        false => bytes.to_string(),
    };
    let name = shown(&status.domain);
    let (style, overall) = match status.is_consistent() {
        true => (OK, "OK"),
        false => (INCONSISTENT, "INCONSISTENT"),
    };
    let mut text =
        format!("Status for {DOMAIN}{name}{DOMAIN:#}:\n  Overall status: {style}{overall}{style:#}\n");
    let mut lines = Vec::new();
    if status.checkpoints.is_empty() {
        lines.push(format!("  No checkpoints found for {name}"));
    } else {
        lines.push(format!("  Checkpoints found for {name}:"));
        lines.extend(
            status
                .checkpoints
                .iter()
                .map(|name| format!("    {}", shown(name))),
        );
    }
    if status.disks.is_empty() {
        lines.push(format!("  No eligible disks found for {name}"));
    } else {
        lines.push(format!("  Eligible disks found for {name}:"));
    }
    for disk in &status.disks {
        disk_lines(disk, &size, &mut lines);
    }
    if let Some(dir) = &status.dir {
        lines.push(format!("  Backup directory stats for {name}:"));
        lines.push(format!("    Path: {}", shown(&dir.location)));
        lines.push(format!("    Total files: {}", dir.total_files));
        lines.push(format!("    Total size: {}", size(dir.total_size)));
        lines.push(format!("    Checkpoints: {}", dir.checkpoints));
    }
    lines.extend(further_lines(status, &size, pretty));
    for line in lines {
        push_line(&mut text, &line);
    }
    text
}

fn disk_lines(disk: &DiskStatus, size: &dyn Fn(u64) -> String, lines: &mut Vec<String>) {
    let target = &disk.target;
    lines.push(format!("    {target}"));
    lines.push(format!("      Virtual size: {}", size(disk.virtual_size)));
    lines.push(format!("      Actual size: {}", size(disk.actual_size)));
    if disk.bitmaps.is_empty() {
        lines.push(format!("      No bitmaps found for {target}"));
    } else {
        lines.push(format!("      Bitmaps found for {target}:"));
        lines.extend(
            disk.bitmaps
                .iter()
                .map(|name| format!("          {}", shown(name))),
        );
    }
}

/// The lines that the Node.js VMSnap does not print.
fn further_lines(status: &DomainStatus, size: &dyn Fn(u64) -> String, pretty: bool) -> Vec<String> {
    let mut lines = vec![format!("  State: {}", status.state.word())];
    if let Some(newest) = &status.newest {
        let name = shown(&newest.name);
        let time = newest
            .created
            .map_or_else(String::new, |time| format!(", of {time}"));
        lines.push(format!("  Newest checkpoint: {name}{time}"));
        if let Some(bytes) = status.changed_bytes() {
            let unit = if pretty { "" } else { " bytes" };
            lines.push(format!("  Changed since {name}: {}{unit}", size(bytes)));
        }
    }
    match (&status.latest, &status.dir) {
        (Some((id, _)), _) if status.latest_lacks.is_empty() => {
            lines.push(format!("  Last restore point: {id}"));
        }
        (Some((id, _)), _) => {
            let lacks = status.latest_lacks.join(", ");
            lines.push(format!(
                "  Last restore point: {id}, PARTIAL (without {})",
                shown(&lacks)
            ));
        }
        (None, Some(_)) => lines.push("  Last restore point: none".to_owned()),
        (None, None) => {}
    }
    if status.latest.is_some() {
        lines.push(match (&status.suspected_damage, &status.proof) {
            (Some(damage), _) => format!("  Damaged: {damage}"),
            (None, None) => "  Last verified: never".to_owned(),
            (None, Some(proof)) => match proof.damage.first() {
                None => format!("  Last verified: {}, sound", proof.time),
                Some(note) => format!("  Last verified: {}, DAMAGED: {}", proof.time, note.what),
            },
        });
    }
    lines.extend(status.boot_proof.iter().map(|proof| {
        let result = match &proof.shortfall {
            None => format!("proven ({})", proof.reached.word()),
            Some(why) => format!("NOT PROVEN: {}", shown(why)),
        };
        format!("  Last boot proof: {}, {result}", proof.time)
    }));
    lines.extend(status.missed_writes.iter().map(|missed| {
        let (disk, found) = (shown(&missed.disk), found_on(missed));
        format!("  Missed write: disk {disk}, {found}; the next backup will save this disk in full")
    }));
    if let Some(writer) = &status.writer {
        lines.push(format!("  Running now: {writer}"));
    }
    match status.next.as_ref().map(|next| &next.backup) {
        Some(plan) if plan.disks.is_empty() => lines.push(format!("  Next backup: none, {}", plan.reason())),
        Some(plan) => lines.push(format!(
            "  Next backup: {}, {}",
            plan.announced_level().map_or("full or incremental", Level::word),
            plan.reason()
        )),
        None => {}
    }
    lines.extend(left_line(status));
    lines.extend(
        status
            .left_out
            .iter()
            .map(|left| format!("  Left out: {}, {}", shown(&left.disk), left.reason)),
    );
    lines.extend(
        status
            .inconsistencies
            .iter()
            .map(|what| format!("  Inconsistent: {what}")),
    );
    lines.extend(
        status
            .findings
            .iter()
            .filter(|finding| !status.left_out.iter().any(|left| left.finding() == **finding))
            .map(|finding| format!("  Note: {}", finding.message)),
    );
    lines
}

/// The line about leftovers of a dead run and lost records of checkpoints. They are no
/// inconsistency, because the next backup repairs them. `None` while a run is in progress, because
/// its files look like leftovers.
fn left_line(status: &DomainStatus) -> Option<String> {
    let next = status.next.as_ref().filter(|_| status.writer.is_none())?;
    (!next.repairs.is_empty()).then(|| {
        "  The next backup first cleans up after an unfinished run or restores lost checkpoint records \
         (--verbose shows the steps)"
            .to_owned()
    })
}
