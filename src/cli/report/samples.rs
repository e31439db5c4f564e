//! Keeps `docs/json.md` complete: a sample of every document has every key, and the page has exactly
//! these keys.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::backup::{BackupDomain, MadePart, PlanPart, PlannedDiskPart, PlannedDomain};
use super::backup::{PrunePart, PrunePlanPart};
use super::compare::{ComparedDiskPart, ComparedDomain, ComparedPart, UncomparedPart};
use super::document::Document;
use super::list::{ListDocument, ListDomain, ListedPart, MissedPart, VerifiedPart};
use super::parts::{DiskPart, Domains, ErrorPart, FailedDomain, FindingPart};
use super::parts::{LeftDiskPart, LeftOutPart, PointPart, Text};
use super::restore::{DefinedPart, FailedRestore, RestoreDocument, RestoredPart};
use super::scrub::{BitmapPart, NextPart, ScrubbedDomain};
use super::status_document::{self as status, Size, StatusDocument, StatusPart};
use super::verify::{DamagePart, ProvedPart, VerifiedDomain, VerifiedPart as VerifiedOutcome};
use crate::cli::log;
use crate::model::restore_point::Consistency;

fn text() -> Text<'static> {
    Text::from("text")
}

fn finding() -> FindingPart<'static> {
    FindingPart {
        code: text(),
        disk: Some(text()),
        message: text(),
    }
}

fn error() -> ErrorPart {
    ErrorPart {
        message: text(),
        disk: Some(text()),
        hint: Some(text()),
    }
}

fn failed_domain() -> FailedDomain<'static> {
    FailedDomain {
        domain: text(),
        outcome: "failed",
        error: error(),
        findings: vec![finding()],
    }
}

fn left_disk() -> LeftDiskPart<'static> {
    LeftDiskPart {
        disk: text(),
        kind: text(),
        reason: text(),
    }
}

fn left_out() -> LeftOutPart<'static> {
    LeftOutPart {
        partial: true,
        left_out: vec![left_disk()],
    }
}

fn point() -> PointPart<'static> {
    PointPart {
        id: text(),
        time: text(),
        period: text(),
        level: "full",
        parent: Some(text()),
        checkpoint: Some(text()),
        whole: Some(true),
        size: 1,
        consistency: Consistency::Crash,
        disks: vec![DiskPart {
            disk: text(),
            level: "full",
            reason: text(),
            parent: Some(text()),
            virtual_size: 1,
            data_bytes: 1,
            zero_bytes: 1,
            image: text(),
            decrypted: Some(true),
        }],
        faults: vec![text()],
        copy: true,
    }
}

fn domains<D>(domains: Vec<D>) -> Domains<'static, D> {
    Domains {
        schema: 1,
        dry_run: Some(true),
        domains,
        unmatched: vec![text()],
        exit_code: 1,
    }
}

fn backup() -> BackupDomain<'static> {
    BackupDomain {
        domain: text(),
        outcome: "ok",
        seconds: 1.0,
        restore_point: Some(MadePart {
            point: point(),
            left_out: left_out(),
        }),
        path: Some(text()),
        prune: Some(PrunePart {
            deleted: Some(text()),
            kept: Some(text()),
            error: Some(text()),
        }),
        error: Some(error()),
        findings: vec![finding()],
    }
}

fn plan(prune: PrunePlanPart<'static>) -> PlannedDomain<'static> {
    PlannedDomain::Planned(Box::new(PlanPart {
        domain: text(),
        level: Some("full"),
        copy: true,
        reason: text(),
        period: text(),
        checkpoint: true,
        disks: vec![PlannedDiskPart {
            disk: text(),
            level: Some("full"),
            reason: text(),
        }],
        repairs: vec![text()],
        retired: vec![text()],
        prune,
        obstacle: Some(text()),
        writer: Some(text()),
        findings: vec![finding()],
        partial: true,
        left_out: vec![left_disk()],
    }))
}

fn listed() -> ListedPart<'static> {
    ListedPart {
        point: point(),
        verified: Some(VerifiedPart {
            time: text(),
            deep: true,
            deep_time: Some(text()),
            damage: vec![text()],
        }),
        doubt: Some(text()),
        missed_writes: vec![MissedPart {
            disk: text(),
            found: text(),
            stands: true,
        }],
        left_out: left_out(),
    }
}

fn damage() -> DamagePart<'static> {
    DamagePart {
        path: Some(text()),
        offset: Some(1),
        disk: Some(text()),
        stands_upon: Some(text()),
        what: text(),
    }
}

fn verified() -> VerifiedOutcome<'static> {
    VerifiedOutcome {
        domain: text(),
        outcome: "sound",
        bytes_read: 1,
        milliseconds: 1,
        restore_points: vec![ProvedPart {
            id: text(),
            outcome: "sound",
            proved_before: Some(text()),
            damage: vec![damage()],
        }],
        damage: vec![damage()],
        findings: vec![finding()],
        error: Some(error()),
    }
}

fn compared() -> ComparedPart<'static> {
    ComparedPart {
        domain: text(),
        outcome: "same",
        disks: vec![ComparedDiskPart {
            disk: text(),
            restore_point: text(),
            unchanged_clusters: 1,
            compared_clusters: 1,
            differing_clusters: 1,
            places: &[1],
        }],
        uncompared: vec![UncomparedPart {
            disk: text(),
            meaning: "not-comparable",
            why: text(),
        }],
        findings: vec![finding()],
    }
}

fn restore() -> RestoreDocument<'static> {
    RestoreDocument {
        schema: 1,
        domain: text(),
        restore_point: text(),
        time: text(),
        disks: vec![RestoredPart {
            disk: text(),
            path: text(),
            format: "raw",
            virtual_size: 1,
            data_bytes: 1,
        }],
        defined: Some(DefinedPart {
            name: text(),
            new_uuid: Some(text()),
        }),
        findings: vec![finding()],
    }
}

fn scrubbed() -> ScrubbedDomain<'static> {
    let bitmap = || BitmapPart {
        disk: text(),
        name: text(),
    };
    ScrubbedDomain {
        domain: text(),
        outcome: "ok",
        checkpoints: vec![text()],
        bitmaps: vec![bitmap()],
        tried: vec![text()],
        left: vec![bitmap()],
        next_backup: Some(NextPart {
            level: Some("full"),
            refused: true,
            reason: text(),
        }),
        error: Some(error()),
        findings: vec![finding()],
    }
}

fn status() -> StatusPart<'static> {
    StatusPart {
        checkpoints: vec![text()],
        disks: vec![status::DiskPart {
            disk: text(),
            virtual_size: Size::Bytes(1),
            actual_size: Size::Pretty(text()),
            bitmaps: vec![text()],
            bitmaps_known: true,
            changed_bytes: Some(1),
        }],
        overall_status: 1,
        backup_dir_stats: Some(status::FolderPart {
            path: text(),
            total_files: 1,
            checkpoints: 1,
            total_size: Size::Bytes(1),
        }),
        state: text(),
        newest_checkpoint: Some(text()),
        newest_checkpoint_time: Some(text()),
        changed_bytes: Some(1),
        last_restore_point: Some(text()),
        last_restore_point_time: Some(text()),
        next_backup: Some(status::NextPart {
            level: Some(text()),
            reason: text(),
            period: text(),
        }),
        inconsistencies: vec![text()],
        findings: vec![finding()],
        repairs: vec![text()],
        last_verified_time: Some(text()),
        last_verified_damage: vec![text()],
        doubt: Some(text()),
        writer: Some(text()),
        missed_writes: vec![status::MissedPart {
            disk: text(),
            found: text(),
        }],
        left_out: vec![left_disk()],
        last_restore_point_lacks: vec![text()],
    }
}

/// The heading that describes a document. A new kind of document has to get one.
fn heading(document: &Document<'_>) -> &'static str {
    match document {
        Document::Backup(_) => "`backup --json`",
        Document::DryRun(_) => "`backup --dry-run --json`",
        Document::List(_) => "`list --json`",
        Document::Verify(_) => "`verify --json`",
        Document::Compare(_) => "`verify --compare-live --json`",
        Document::Restore(_) => "`restore --json`",
        Document::FailedRestore(_) => "`restore --json` that failed",
        Document::Scrub(_) => "`scrub --json`",
        Document::Status(_) => "`status --json`",
    }
}

/// A sample of every document, each with every key that it can have.
fn samples() -> Vec<Document<'static>> {
    let plans = vec![
        plan(PrunePlanPart::Delete(text())),
        plan(PrunePlanPart::Keep(Some(text()))),
        PlannedDomain::Failed(failed_domain()),
    ];
    vec![
        Document::Backup(domains(vec![backup()])),
        Document::DryRun(domains(plans)),
        Document::List(ListDocument {
            schema: 1,
            domains: vec![ListDomain {
                domain: text(),
                restore_points: vec![listed()],
                findings: vec![finding()],
            }],
        }),
        Document::Verify(domains(vec![
            VerifiedDomain::Verified(verified()),
            VerifiedDomain::Failed(failed_domain()),
        ])),
        Document::Compare(domains(vec![
            ComparedDomain::Compared(compared()),
            ComparedDomain::Failed(failed_domain()),
        ])),
        Document::Restore(restore()),
        Document::FailedRestore(FailedRestore {
            schema: 1,
            failed: failed_domain(),
        }),
        Document::Scrub(domains(vec![scrubbed()])),
        Document::Status(StatusDocument(vec![("DOMAIN", status())])),
    ]
}

/// The paths of all keys: a dot leads into an object, or into the objects of a list.
fn paths(value: &Value, above: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let path = match above {
                    "" => key.clone(),
                    above => format!("{above}.{key}"),
                };
                paths(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| paths(value, above, found)),
        _ => {}
    }
}

/// The rows of a page's tables of keys, by heading: the key, and the heading whose keys it has too.
type Rows<'a> = BTreeMap<&'a str, Vec<(&'a str, Option<&'a str>)>>;

fn rows(page: &str) -> Rows<'_> {
    let mut rows = Rows::new();
    let (mut heading, mut is_keys) = ("", false);
    for line in page.lines() {
        if let Some(title) = line
            .trim_start_matches('#')
            .strip_prefix(' ')
            .filter(|_| line.starts_with('#'))
        {
            heading = title;
        }
        if !line.starts_with('|') {
            is_keys = false;
        } else if line == "| key | meaning |" {
            is_keys = true;
        } else if is_keys && !line.starts_with("|---") {
            let (keys, meaning) = line[1..].split_once('|').expect("two cells");
            let linked = meaning
                .split_once("](#")
                .and_then(|(before, _)| before.rsplit_once('['));
            for key in keys.split('`').skip(1).step_by(2) {
                let linked = linked.map(|(_, title)| title);
                rows.entry(heading).or_default().push((key, linked));
            }
        }
    }
    rows
}

/// The paths that a heading's table lists, with those of the headings that it links.
fn described(rows: &Rows<'_>, heading: &str) -> BTreeSet<String> {
    let own = rows.get(heading);
    let own = own.unwrap_or_else(|| panic!("docs/json.md has no table of keys for {heading}"));
    let mut found = BTreeSet::new();
    for (key, linked) in own {
        found.insert((*key).to_owned());
        let below = linked.into_iter().flat_map(|linked| described(rows, linked));
        found.extend(below.map(|path| format!("{key}.{path}")));
    }
    found
}

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md");
    std::fs::read_to_string(path).expect("docs/json.md")
}

#[test]
fn samples_leave_nothing_empty() {
    let samples = samples();
    for document in &samples {
        let text = format!("{document:?}");
        for empty in ["None", "[]", "{}", "\"\""] {
            assert!(!text.contains(empty), "a sample has an empty value: {text}");
        }
    }
    let headings: BTreeSet<_> = samples.iter().map(heading).collect();
    assert_eq!(headings.len(), samples.len());
}

#[test]
fn the_page_lists_exactly_the_keys_of_each_document() {
    let page = page();
    let rows = rows(&page);
    for document in samples() {
        let mut written = BTreeSet::new();
        paths(&serde_json::to_value(&document).expect("JSON"), "", &mut written);
        // A dry run is the only document with this key, and shares its type with others.
        if !matches!(document, Document::DryRun(_)) {
            written.remove("dryRun");
        }
        let heading = heading(&document);
        // Only `list` shows these two.
        if matches!(document, Document::Backup(_)) {
            written.remove("domains.restorePoint.whole");
            written.remove("domains.restorePoint.faults");
        }
        let described = described(&rows, heading);
        let missing: Vec<_> = written.difference(&described).collect();
        assert!(missing.is_empty(), "{heading} lacks {missing:#?}");
        let extra: Vec<_> = described.difference(&written).collect();
        assert!(
            extra.is_empty(),
            "{heading} names {extra:#?}, which are not written"
        );
    }
}

#[test]
fn the_page_lists_exactly_the_keys_of_a_log_line() {
    let page = page();
    let mut written = BTreeSet::new();
    paths(&log::sample(), "", &mut written);
    assert_eq!(described(&rows(&page), "The log"), written);
}

#[test]
fn yaml_has_the_layout_of_the_node_program() {
    let mut part = StatusPart {
        backup_dir_stats: None,
        missed_writes: Vec::new(),
        left_out: Vec::new(),
        ..status()
    };
    part.checkpoints = vec![Text::from("virtnbdbackup.0"), Text::from("a\u{e9}\"b\\")];
    part.disks[0].bitmaps = Vec::new();
    part.next_backup = None;
    let document = Document::Status(StatusDocument(vec![("vm1", part)]));
    let expected = "vm1:
  checkpoints:
    - \"virtnbdbackup.0\"
    - \"a\u{e9}\\\"b\\\\\"
  disks:
    - disk: \"text\"
      virtualSize: 1
      actualSize: \"text\"
      bitmaps: []
      bitmapsKnown: true
      changedBytes: 1
  overallStatus: 1
  state: \"text\"
  newestCheckpoint: \"text\"
  newestCheckpointTime: \"text\"
  changedBytes: 1
  lastRestorePoint: \"text\"
  lastRestorePointTime: \"text\"
  nextBackup: null
  inconsistencies:
    - \"text\"
  findings:
    - code: \"text\"
      disk: \"text\"
      message: \"text\"
  repairs:
    - \"text\"
  lastVerifiedTime: \"text\"
  lastVerifiedDamage:
    - \"text\"
  doubt: \"text\"
  writer: \"text\"
  lastRestorePointLacks:
    - \"text\"
";
    assert_eq!(document.yaml(), expected);
    assert_eq!(Document::Status(StatusDocument(Vec::new())).yaml(), "{}\n");
}

#[test]
fn yaml_quotes_names_that_it_would_take_for_something_else() {
    for name in [
        "101",
        "1.0",
        "no",
        "True",
        "y",
        "a: b",
        "#x",
        "-",
        "",
        "a\nb",
        "~",
        "2026-01-01",
    ] {
        let yaml = Document::Status(StatusDocument(vec![(name, status())])).yaml();
        assert!(yaml.starts_with('"'), "{yaml}");
    }
    for name in ["vm1", "web-1.example", "_x"] {
        let yaml = Document::Status(StatusDocument(vec![(name, status())])).yaml();
        assert!(yaml.starts_with(&format!("{name}:\n")), "{yaml}");
    }
}
