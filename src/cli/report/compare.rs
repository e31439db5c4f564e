//! What `vmsnap verify --compare-live` shows.

use super::tree::Tree;
use super::{domains_json, finding_tree, push_line};
use crate::cli::exit_code::ExitCode;
use crate::model::text::shown;
use crate::ops::Error;
use crate::ops::compare::{Meaning, Outcome, Verdict};

/// What a comparison with a domain found, in lines that a person reads.
pub fn lines(domain: &str, outcome: &Outcome) -> String {
    let domain = shown(domain);
    let mut text = String::new();
    for disk in &outcome.disks {
        let target = shown(&disk.target);
        let of = format!(
            "{} of {} clusters unchanged since {}",
            disk.compared, disk.unchanged, disk.point
        );
        if disk.differing == 0 {
            push_line(&mut text, &format!("{domain}: disk {target}: the same in {of}"));
        } else {
            let places: Vec<String> = disk.places.iter().map(u64::to_string).collect();
            push_line(
                &mut text,
                &format!(
                    "{domain}: disk {target}: {} DIFFER of {of}, at {}{}: a bitmap has missed a write, or the restore point is damaged \
                 (vmsnap verify tells); {}",
                    disk.differing,
                    places.join(", "),
                    if disk.differing > places.len() as u64 {
                        ", …"
                    } else {
                        ""
                    },
                    disk.consequence(),
                ),
            );
        }
    }
    for disk in &outcome.uncompared {
        let (target, why) = (shown(&disk.target), shown(&disk.why));
        let not = match disk.meaning {
            Meaning::MissedWrite | Meaning::NotComparable => "NOT COMPARED",
            Meaning::NothingToCompare => "not compared",
        };
        push_line(&mut text, &format!("{domain}: disk {target}: {not}: {why}"));
    }
    text
}

/// How the program ends after it.
pub fn exit_code(outcome: &Outcome) -> ExitCode {
    match outcome.verdict() {
        Verdict::Same => ExitCode::Ok,
        Verdict::Incomplete => ExitCode::Failed,
        Verdict::Differs => ExitCode::Damaged,
    }
}

/// The comparisons of several domains as one JSON document.
pub fn json(done: &[(String, Outcome)], failed: &[Error], unmatched: &[String], code: ExitCode) -> String {
    let domains = done.iter().map(|(domain, outcome)| {
        let disks = outcome.disks.iter().map(|disk| {
            let places = disk.places.iter().map(|place| Tree::Number(*place));
            Tree::map([
                ("disk", Tree::text(&disk.target)),
                ("restorePoint", Tree::text(&disk.point)),
                ("unchangedClusters", Tree::Number(disk.unchanged)),
                ("comparedClusters", Tree::Number(disk.compared)),
                ("differingClusters", Tree::Number(disk.differing)),
                ("places", Tree::List(places.collect())),
            ])
        });
        let uncompared = outcome.uncompared.iter().map(|disk| {
            let meaning = match disk.meaning {
                Meaning::MissedWrite => "missed-write",
                Meaning::NotComparable => "not-comparable",
                Meaning::NothingToCompare => "nothing-to-compare",
            };
            Tree::map([
                ("disk", Tree::text(&disk.target)),
                ("meaning", Tree::text(meaning)),
                ("why", Tree::text(&disk.why)),
            ])
        });
        let verdict = match outcome.verdict() {
            Verdict::Same => "same",
            Verdict::Incomplete => "incomplete",
            Verdict::Differs => "differs",
        };
        let findings = outcome.findings.iter().map(finding_tree);
        Tree::map([
            ("domain", Tree::text(domain)),
            ("outcome", Tree::text(verdict)),
            ("disks", Tree::List(disks.collect())),
            ("uncompared", Tree::List(uncompared.collect())),
            ("findings", Tree::List(findings.collect())),
        ])
    });
    domains_json(domains.collect(), failed, unmatched, code)
}
