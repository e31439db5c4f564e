//! The report of a collection of unused data.

use serde::Serialize;

use super::lines::{line, push_line};
use super::parts::{Domains, ErrorPart, Text, texts};
use super::prune::PrunedDomain;
use crate::cli::pretty;
use crate::model::text::shown;
use crate::ops::Result;
use crate::ops::collect::{Amount, CollectReport, Waiting};

/// The lines about a collection.
pub(crate) fn lines(location: &str, report: &CollectReport, dry_run: bool) -> String {
    let location = shown(location);
    if let Some(collector) = collector(report) {
        let collector = shown(collector);
        return line(&format!(
            "{location}: nothing was collected, because another collection or rebuild of the index is \
             running: {collector}"
        ));
    }
    let [would, deletes, condemns, stores] = match dry_run {
        true => ["would ", "delete", "condemn", "would be stored again"],
        false => ["", "deleted", "condemned", "were stored again"],
    };
    let all = report.all.packs;
    let mut text = line(&match report.deleted.packs {
        0 => format!("{location}: {would}{deletes} none of {}", packs(all)),
        _ => {
            let bytes = pretty::bytes(report.deleted.bytes);
            let deleted = report.deleted.packs;
            format!(
                "{location}: {would}{deletes} {deleted} of {} ({bytes})",
                packs(all)
            )
        }
    });
    if report.condemned.packs > 0 {
        let condemned = amount(&report.condemned);
        let again = match report.rewritten.bytes {
            0 => String::new(),
            bytes => format!("; {} of needed data {stores}", pretty::bytes(bytes)),
        };
        push_line(
            &mut text,
            &format!("  {would}{condemns} {condemned}, which a later collection deletes{again}"),
        );
    }
    if report.kept.packs > 0 {
        let kept = amount(&report.kept);
        push_line(
            &mut text,
            &format!("  not deleted yet: {kept}, condemned earlier"),
        );
    }
    if let Some(time) = not_before(report) {
        push_line(
            &mut text,
            &format!("  the first grace period ends at {time} (the store's clock)"),
        );
    }
    for session in sessions(report) {
        let session = shown(session);
        push_line(
            &mut text,
            &format!("  condemned packs stay until a run that began earlier ends: {session}"),
        );
    }
    if report.adopted.packs > 0 {
        let adopted = amount(&report.adopted);
        push_line(
            &mut text,
            &format!("  added to the index: {adopted} that interrupted runs left"),
        );
    }
    for pack in &report.unreadable {
        let what =
            format!("  {pack} stays, because a block in it cannot be read: run `vmsnap verify --deep`");
        push_line(&mut text, &what);
    }
    text
}

fn packs(count: u64) -> String {
    match count {
        1 => "1 pack".to_owned(),
        count => format!("{count} packs"),
    }
}

pub(super) fn amount(amount: &Amount) -> String {
    format!("{} ({})", packs(amount.packs), pretty::bytes(amount.bytes))
}

fn collector(report: &CollectReport) -> Option<&str> {
    report.waiting.iter().find_map(|waiting| match waiting {
        Waiting::Collector(host) => Some(host.as_str()),
        _ => None,
    })
}

fn sessions(report: &CollectReport) -> impl Iterator<Item = &String> {
    report.waiting.iter().filter_map(|waiting| match waiting {
        Waiting::Session(host) => Some(host),
        _ => None,
    })
}

/// The first end of a grace period.
fn not_before(report: &CollectReport) -> Option<jiff::Timestamp> {
    let ends = report.waiting.iter().filter_map(|waiting| match waiting {
        Waiting::Until(time) => Some(*time),
        _ => None,
    });
    ends.min()
}

/// What a collection did, in a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CollectionPart<'a> {
    pub(super) all: AmountPart,
    pub(super) needed: AmountPart,
    pub(super) deleted: AmountPart,
    pub(super) condemned: AmountPart,
    pub(super) stored_again: AmountPart,
    pub(super) waiting: AmountPart,
    pub(super) adopted: AmountPart,
    pub(super) unreadable: Vec<Text<'a>>,
    pub(super) not_before: Option<Text<'a>>,
    pub(super) sessions: Vec<Text<'a>>,
    pub(super) collector: Option<Text<'a>>,
}

/// A number of packs in a document.
#[derive(Debug, Serialize)]
pub(crate) struct AmountPart {
    pub(super) packs: u64,
    pub(super) bytes: u64,
}

impl AmountPart {
    pub(super) fn of(amount: &Amount) -> Self {
        AmountPart {
            packs: amount.packs,
            bytes: amount.bytes,
        }
    }
}

impl<'a> CollectionPart<'a> {
    fn of(report: &'a CollectReport) -> Self {
        CollectionPart {
            all: AmountPart::of(&report.all),
            needed: AmountPart::of(&report.needed),
            deleted: AmountPart::of(&report.deleted),
            condemned: AmountPart::of(&report.condemned),
            stored_again: AmountPart::of(&report.rewritten),
            waiting: AmountPart::of(&report.kept),
            adopted: AmountPart::of(&report.adopted),
            unreadable: texts(&report.unreadable),
            not_before: not_before(report).as_ref().map(Text::of),
            sessions: texts(sessions(report)),
            collector: collector(report).map(Text::from),
        }
    }
}

/// The document of `repository collect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CollectDocument<'a> {
    pub(super) schema: u32,
    pub(super) location: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dry_run: Option<bool>,
    pub(super) collection: CollectionPart<'a>,
}

/// The document about a collection.
pub(crate) fn document<'a>(
    location: &'a str,
    report: &'a CollectReport,
    dry_run: bool,
) -> CollectDocument<'a> {
    CollectDocument {
        schema: 1,
        location: Text::from(location),
        dry_run: dry_run.then_some(true),
        collection: CollectionPart::of(report),
    }
}

/// The document of `prune`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PruneDocument<'a> {
    #[serde(flatten)]
    pub(super) domains: Domains<'a, PrunedDomain<'a>>,
    pub(super) collection: Option<CollectionPart<'a>>,
    pub(super) collection_error: Option<ErrorPart>,
}

impl<'a> PruneDocument<'a> {
    /// The document of these domains and of the collection afterwards.
    pub(crate) fn new(
        domains: Domains<'a, PrunedDomain<'a>>,
        collected: &'a Result<Option<CollectReport>>,
    ) -> Self {
        let report = collected.as_ref().ok().and_then(Option::as_ref);
        PruneDocument {
            domains,
            collection: report.map(CollectionPart::of),
            collection_error: collected.as_ref().err().map(ErrorPart::of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(packs: u64) -> Amount {
        Amount {
            packs,
            bytes: packs * 1024,
        }
    }

    #[test]
    fn lines_say_what_waits_and_for_what() {
        let time = "2026-11-03T01:00:00Z".parse().expect("a time");
        let report = CollectReport {
            all: amount(9),
            condemned: amount(2),
            rewritten: amount(1),
            kept: amount(1),
            adopted: amount(3),
            waiting: vec![
                Waiting::Until(time),
                Waiting::Session("kvm1 (process 7)".to_owned()),
            ],
            ..CollectReport::default()
        };
        let text = lines("pack:/b", &report, true);
        for part in [
            "; 1.02 kB of needed data would be stored again\n",
            "  the first grace period ends at 2026-11-03T01:00:00Z (the store's clock)\n",
            "  condemned packs stay until a run that began earlier ends: kvm1 (process 7)\n",
            "  added to the index: 3 packs (3.07 kB) that interrupted runs left\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn another_collection_or_rebuild_is_named() {
        let report = CollectReport {
            waiting: vec![Waiting::Collector("kvm1 (process 7)".to_owned())],
            ..CollectReport::default()
        };
        let expected = "pack:/b: nothing was collected, because another collection or rebuild of \
                        the index is running: kvm1 (process 7)\n";
        assert_eq!(lines("pack:/b", &report, false), expected);
    }
}
