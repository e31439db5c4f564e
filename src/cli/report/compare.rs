//! The output of `vmsnap verify --compare-live`.

use serde::Serialize;

use super::lines::push_line;
use super::parts::{Domains, FailedDomain, FindingPart, Text, findings};
use crate::cli::exit_code::ExitCode;
use crate::model::text::shown;
use crate::ops::compare::{Meaning, Outcome, Verdict};
use crate::ops::each::Turn;

/// The lines about the comparison of a domain.
pub fn lines(domain: &str, outcome: &Outcome) -> String {
    let domain = shown(domain);
    let mut text = String::new();
    for disk in &outcome.disks {
        let target = shown(&disk.target);
        if disk.differing == 0 {
            push_line(
                &mut text,
                &format!(
                    "{domain}: disk {target}: no difference from restore point {} in {} of the {} clusters that hold data and are unchanged according to the bitmap",
                    disk.point, disk.compared, disk.unchanged
                ),
            );
        } else {
            let places: Vec<String> = disk.places.iter().map(u64::to_string).collect();
            push_line(
                &mut text,
                &format!(
                    "{domain}: disk {target}: {} of {} compared clusters DIFFER from restore point {} although the bitmap marks \
                     them as unchanged (byte offsets {}{}): a bitmap has missed a write, or the restore point is damaged \
                     (run `vmsnap verify` to find out which); {}",
                    disk.differing,
                    disk.compared,
                    disk.point,
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

/// A domain in the document of a comparison.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum ComparedDomain<'a> {
    /// The results.
    Compared(ComparedPart<'a>),
    /// The error, if the comparison failed.
    Failed(FailedDomain<'a>),
}

/// The results of a comparison.
#[derive(Debug, Serialize)]
pub struct ComparedPart<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) disks: Vec<ComparedDiskPart<'a>>,
    pub(super) uncompared: Vec<UncomparedPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// A disk that was compared.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ComparedDiskPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) unchanged_clusters: u64,
    pub(super) compared_clusters: u64,
    pub(super) differing_clusters: u64,
    pub(super) places: &'a [u64],
}

/// A disk that was not compared.
#[derive(Debug, Serialize)]
pub(crate) struct UncomparedPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) meaning: &'static str,
    pub(super) why: Text<'a>,
}

/// The comparisons of several domains.
pub fn document<'a>(
    turns: &'a [Turn<Outcome>],
    unmatched: &'a [String],
    code: ExitCode,
) -> Domains<'a, ComparedDomain<'a>> {
    let domains = turns.iter().map(|turn| match &turn.result {
        Ok(outcome) => ComparedDomain::Compared(part(&turn.domain, outcome)),
        Err(error) => ComparedDomain::Failed(FailedDomain::of(error, turn.ending)),
    });
    Domains::new(domains.collect(), unmatched, code)
}

fn part<'a>(domain: &'a str, outcome: &'a Outcome) -> ComparedPart<'a> {
    let disks = outcome.disks.iter().map(|disk| ComparedDiskPart {
        disk: Text::from(&disk.target),
        restore_point: Text::from(&disk.point),
        unchanged_clusters: disk.unchanged,
        compared_clusters: disk.compared,
        differing_clusters: disk.differing,
        places: &disk.places,
    });
    let uncompared = outcome.uncompared.iter().map(|disk| UncomparedPart {
        disk: Text::from(&disk.target),
        meaning: match disk.meaning {
            Meaning::MissedWrite => "missed-write",
            Meaning::NotComparable => "not-comparable",
            Meaning::NothingToCompare => "nothing-to-compare",
        },
        why: Text::from(&disk.why),
    });
    ComparedPart {
        domain: Text::from(domain),
        outcome: match outcome.verdict() {
            Verdict::Same => "same",
            Verdict::Incomplete => "incomplete",
            Verdict::Differs => "differs",
        },
        disks: disks.collect(),
        uncompared: uncompared.collect(),
        findings: findings(&outcome.findings),
    }
}
