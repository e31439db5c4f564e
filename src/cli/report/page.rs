//! Keeps `docs/json.md` complete: it lists exactly the keys that the documents have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::document::Document;
use super::parts::Text;
use super::samples::{samples, status};
use super::status_document::{StatusDocument, StatusPart};
use crate::cli::log;

/// The heading that describes a document. A new kind of document has to get one.
fn heading(document: &Document<'_>) -> &'static str {
    match document {
        Document::Backup(_) => "`backup --json`",
        Document::DryRun(_) => "`backup --dry-run --json`",
        Document::List(_) => "`list --json`",
        Document::Verify(_) => "`verify --json`",
        Document::Compare(_) => "`verify --compare-live --json`",
        Document::BootProof(_) => "`verify --boot --json`",
        Document::Restore(_) => "`restore --json`",
        Document::InPlace(_) => "`restore --in-place --json`",
        Document::FailedRestore(_) => "`restore --json` that failed",
        Document::Boot(_) => "`boot --json`",
        Document::Booted(_) => "`boot --json` that has ended",
        Document::Serve(_) => "`serve --json`",
        Document::Served(_) => "`serve --json` that has ended",
        Document::FileSystems(_) => "`files --json`",
        Document::Files(_) => "`files ls --json`",
        Document::Copies(_) => "`files get --json`",
        Document::Prune(_) => "`prune --json`",
        Document::Copy(_) => "`copy --json`",
        Document::Pin(_) => "`pin --json`",
        Document::FailedPin(_) => "`pin --json` that failed",
        Document::Init(_) => "`init --json`",
        Document::Info(_) => "`repository info --json`",
        Document::Collect(_) => "`repository collect --json`",
        Document::Check(_) => "`repository check --json`",
        Document::Rebuild(_) => "`repository rebuild-index --json`",
        Document::Keys(_) => "`key list --json`",
        Document::Scrub(_) => "`scrub --json`",
        Document::Status(_) => "`status --json`",
    }
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

/// The keys that a page lists, by heading. A key may link to a heading, whose keys it contains.
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

/// The paths of keys that a heading lists, with those of the headings that it links to.
fn described(rows: &Rows<'_>, heading: &str) -> BTreeSet<String> {
    let own = rows.get(heading);
    let own = own.unwrap_or_else(|| panic!("docs/json.md has no table of keys for {heading}"));
    let mut found = BTreeSet::new();
    for (key, linked) in own {
        found.insert((*key).to_owned());
        let below = linked.iter().flat_map(|linked| described(rows, linked));
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
        // Only dry runs have this key; some share their type with others.
        if !matches!(
            document,
            Document::DryRun(_)
                | Document::Prune(_)
                | Document::Copy(_)
                | Document::Collect(_)
                | Document::Rebuild(_)
        ) {
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
  bootProof:
    time: \"text\"
    reached: \"text\"
    wanted: \"text\"
    proven: true
    shortfall: \"text\"
    seconds: 1
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
