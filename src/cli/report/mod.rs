//! What the verbs' outcomes look like, as text and as JSON.

pub mod backup;
pub mod compare;
pub mod list;
pub mod restore;
pub mod scrub;
pub mod status;
pub mod tree;
pub mod verify;

use serde::Serialize;

use tree::Tree;

use crate::cli::exit_code::ExitCode;
use crate::model::chain::MissedWrite;
use crate::model::finding::Finding;
use crate::model::left_out::LeftOut;
use crate::model::restore_point::RestorePoint;
use crate::model::text::{shown, with_sources};
use crate::ops::Error;

/// A line for a person. Text from outside in it (names, headers of images, errors of other programs)
/// can neither end the line nor control the terminal. Every line on stdout is made by this.
fn line(text: &str) -> String {
    shown(text) + "\n"
}

/// Adds a [`line`] to a text.
fn push_line(text: &mut String, what: &str) {
    text.push_str(&line(what));
}

/// The domain and disk of an error, and why, in one line.
pub fn failure(error: &Error) -> String {
    let disk = error.disk.as_ref().map(|disk| format!(", disk {}", shown(disk)));
    format!(
        "{}{}: {}",
        shown(&error.domain),
        disk.unwrap_or_default(),
        with_sources(&error.cause)
    )
}

/// A document as JSON with a line end.
fn document(value: &impl Serialize) -> String {
    match serde_json::to_string_pretty(value) {
        Ok(text) => text + "\n",
        // Nothing we serialise has keys that are no strings; were it so, an empty answer would be a lie.
        Err(error) => format!("{{\"error\": \"the answer cannot be written as JSON: {error}\"}}\n"),
    }
}

/// A failure as every command shows it in JSON.
#[derive(Serialize)]
struct ErrorJson {
    message: String,
    disk: Option<String>,
    hint: Option<String>,
}

impl ErrorJson {
    fn of(error: &Error) -> Self {
        ErrorJson {
            message: with_sources(error),
            disk: error.disk.clone(),
            hint: error.hint(),
        }
    }
}

/// A restore point as `list` and `backup` show it in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PointJson<'a> {
    id: &'a str,
    time: String,
    period: &'a str,
    level: &'static str,
    parent: Option<&'a str>,
    checkpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<bool>,
    size: u64,
    consistency: crate::model::restore_point::Consistency,
    disks: Vec<DiskJson<'a>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    faults: &'a [String],
    copy: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskJson<'a> {
    disk: &'a str,
    level: &'static str,
    reason: &'a str,
    parent: Option<&'a str>,
    virtual_size: u64,
    data_bytes: u64,
    zero_bytes: u64,
    image: &'a str,
    decrypted: Option<bool>,
}

impl<'a> PointJson<'a> {
    fn of(point: &'a RestorePoint, size: u64, whole: Option<bool>, faults: &'a [String]) -> Self {
        PointJson {
            id: &point.id,
            time: point.time.to_string(),
            period: &point.period,
            level: point.level.word(),
            parent: point.parent.as_deref(),
            checkpoint: point
                .checkpoint
                .as_ref()
                .map(|checkpoint| checkpoint.name.as_str()),
            whole,
            size,
            consistency: point.consistency,
            disks: point.disks.iter().map(DiskJson::of).collect(),
            faults,
            copy: point.is_copy(),
        }
    }
}

impl<'a> DiskJson<'a> {
    fn of(disk: &'a crate::model::restore_point::DiskPoint) -> Self {
        DiskJson {
            disk: &disk.target,
            level: disk.level.word(),
            reason: &disk.reason,
            parent: disk.parent.as_deref(),
            virtual_size: disk.virtual_size,
            data_bytes: disk.data_bytes,
            zero_bytes: disk.zero_bytes,
            decrypted: disk.decrypted,
            image: &disk.image,
        }
    }
}

/// The disks that a restore point lacks; these keys come after the others in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LeftOutJson<'a> {
    partial: bool,
    left_out: Vec<LeftDiskJson<'a>>,
}

#[derive(Serialize)]
struct LeftDiskJson<'a> {
    disk: &'a str,
    kind: &'static str,
    reason: &'a str,
}

impl<'a> LeftOutJson<'a> {
    fn of(point: &'a RestorePoint) -> Self {
        let disks = point.left_out.iter().map(|left| LeftDiskJson {
            disk: &left.disk,
            kind: left.kind.word(),
            reason: &left.reason,
        });
        LeftOutJson {
            partial: point.is_partial(),
            left_out: disks.collect(),
        }
    }
}

/// The same of a backup that has not been made.
fn left_out_tree(left_out: &[LeftOut]) -> Tree {
    let disks = left_out.iter().map(|left| {
        Tree::map([
            ("disk", Tree::text(&left.disk)),
            ("kind", Tree::text(left.kind.word())),
            ("reason", Tree::text(&left.reason)),
        ])
    });
    Tree::List(disks.collect())
}

/// Columns of equal width, two blanks between them; `right` names the columns whose cells end at the right.
fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let cells = rows
        .iter()
        .map(|row| row.iter().map(|cell| shown(cell)).collect());
    let rows: Vec<Vec<String>> = cells.collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if right.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// That a bitmap has missed a write, and when that was found (UTC).
fn missed_sentence(missed: &MissedWrite) -> String {
    let day = missed.found.strftime("%Y-%m-%d");
    format!("{}: its bitmap missed a write, found {day}", shown(&missed.disk))
}

/// The outcomes of several domains, and of those that have none but an error, as one JSON document.
fn domains_json(mut domains: Vec<Tree>, failed: &[Error], unmatched: &[String], code: ExitCode) -> String {
    domains.extend(failed.iter().map(failed_tree));
    let document = Tree::map([
        ("schema", Tree::Number(1)),
        ("domains", Tree::List(domains)),
        ("unmatched", Tree::texts(unmatched)),
        ("exitCode", Tree::Number(code.number().unsigned_abs().into())),
    ]);
    document.json(false) + "\n"
}

/// A domain that has nothing but an error, and what was found before it.
fn failed_tree(error: &Error) -> Tree {
    let findings = error.findings.iter().map(finding_tree);
    Tree::map([
        ("domain", Tree::text(&error.domain)),
        ("outcome", Tree::text("failed")),
        ("error", error_tree(error)),
        ("findings", Tree::List(findings.collect())),
    ])
}

/// The same as [`ErrorJson`].
fn error_tree(error: &Error) -> Tree {
    Tree::map([
        ("message", Tree::text(with_sources(error))),
        ("disk", Tree::text_or_null(error.disk.clone())),
        ("hint", Tree::text_or_null(error.hint())),
    ])
}

fn finding_tree(finding: &Finding) -> Tree {
    Tree::map([
        ("code", Tree::text(&finding.code)),
        ("disk", Tree::text_or_null(finding.disk.as_deref())),
        ("message", Tree::text(&finding.message)),
    ])
}
