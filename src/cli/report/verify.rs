//! What `vmsnap verify` shows.

use std::time::Duration;

use super::tree::Tree;
use super::{domains_json, error_tree, finding_tree, push_line};
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::Error;
use crate::ops::verify::{Damage, Outcome, ProvedPoint};

/// A domain whose restore points were looked at.
pub struct Proved {
    /// Its name.
    pub domain: String,
    /// How long it took.
    pub took: Duration,
    /// What was found.
    pub outcome: Outcome,
}

impl Proved {
    /// The lines that a person reads: the damage, then the sum.
    pub fn lines(&self) -> String {
        let domain = shown(&self.domain);
        let mut text = String::new();
        for damage in self.outcome.all_damage().filter(|damage| damage.upon.is_none()) {
            push_line(&mut text, &format!("{domain}: DAMAGED: {}", damage.what));
        }
        let upon = points_upon(&self.outcome.points);
        if !upon.is_empty() {
            push_line(
                &mut text,
                &format!("{domain}: DAMAGED: what stands upon that: {}", upon.join(", ")),
            );
        }
        let points = &self.outcome.points;
        let skipped = points.iter().filter(|point| point.skipped.is_some()).count();
        let damaged = points.iter().filter(|point| !point.damage.is_empty()).count();
        let mut parts = vec![format!("{} sound", points_word(points.len() - skipped - damaged))];
        if damaged > 0 {
            parts.push(format!("{damaged} DAMAGED"));
        }
        if skipped > 0 {
            parts.push(format!("{skipped} proved before"));
        }
        if self.outcome.bytes > 0 {
            let rate = self.outcome.bytes as f64 / self.took.as_secs_f64().max(0.001);
            parts.push(format!(
                "{} read in {} ({}/s)",
                pretty::bytes(self.outcome.bytes),
                pretty::seconds(self.took),
                pretty::bytes(rate as u64),
            ));
        }
        push_line(&mut text, &format!("{domain}: {}", parts.join(", ")));
        text
    }
}

/// The restore points that are damaged by what they stand upon, each with those of its disks.
fn points_upon(points: &[ProvedPoint]) -> Vec<String> {
    let upon = points.iter().filter_map(|point| {
        let damage = point.damage.iter().filter(|damage| damage.upon.is_some());
        let disks: Vec<&str> = damage.filter_map(|damage| damage.disk.as_deref()).collect();
        (!disks.is_empty()).then(|| format!("{} ({})", point.id, disks.join(", ")))
    });
    upon.collect()
}

fn points_word(count: usize) -> String {
    match count {
        1 => "1 restore point".to_owned(),
        more => format!("{more} restore points"),
    }
}

/// The outcome of every domain as one JSON document.
pub fn json(done: &[Proved], failed: &[Error], unmatched: &[String], code: ExitCode) -> String {
    let domains = done.iter().map(|proved| {
        let outcome = &proved.outcome;
        Tree::map([
            ("domain", Tree::text(&proved.domain)),
            (
                "outcome",
                Tree::text(match outcome.is_sound() {
                    false => "damaged",
                    true if outcome.ended.is_some() || outcome.needs_newer() => "incomplete",
                    true => "sound",
                }),
            ),
            ("bytesRead", Tree::Number(outcome.bytes)),
            (
                "milliseconds",
                Tree::Number(u64::try_from(proved.took.as_millis()).unwrap_or(u64::MAX)),
            ),
            (
                "restorePoints",
                Tree::List(outcome.points.iter().map(point_tree).collect()),
            ),
            (
                "damage",
                Tree::List(outcome.damage.iter().map(damage_tree).collect()),
            ),
            (
                "findings",
                Tree::List(outcome.findings.iter().map(finding_tree).collect()),
            ),
            ("error", outcome.ended.as_ref().map_or(Tree::Null, error_tree)),
        ])
    });
    domains_json(domains.collect(), failed, unmatched, code)
}

fn point_tree(point: &ProvedPoint) -> Tree {
    let outcome = match (&point.skipped, point.damage.is_empty()) {
        (Some(_), _) => "skipped",
        (None, true) => "sound",
        (None, false) => "damaged",
    };
    Tree::map([
        ("id", Tree::text(&point.id)),
        ("outcome", Tree::text(outcome)),
        (
            "provedBefore",
            Tree::text_or_null(point.skipped.map(|time| time.to_string())),
        ),
        (
            "damage",
            Tree::List(point.damage.iter().map(damage_tree).collect()),
        ),
    ])
}

fn damage_tree(damage: &Damage) -> Tree {
    let path = damage.location.clone();
    Tree::map([
        ("path", Tree::text_or_null(path)),
        ("offset", Tree::number_or_null(damage.offset)),
        ("disk", Tree::text_or_null(damage.disk.clone())),
        ("standsUpon", Tree::text_or_null(damage.upon.clone())),
        ("what", Tree::text(&damage.what)),
    ])
}
