//! The runs of a set in their order: times, ids, and which run shows which checkpoint.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::folder::{DataFile, Group, SetContent};
use super::names::{CHECKPOINT, Run, Whole};
use super::place::SetPlace;
use crate::model::chain::LostPoint;
use crate::model::restore_point::id_of;

/// How much a local time can differ from UTC, in seconds.
const ZONES: u64 = 15 * 3600;

/// A run with what is known about its place in the chain.
pub(super) struct Dated<'a> {
    /// The files that the run wrote.
    pub(super) group: &'a Group,
    /// The time of its first disk, in local time; `None` if it has only raw files.
    pub(super) date: Option<DateTime>,
    /// The moment that its restore point shows.
    pub(super) time: Timestamp,
    /// The id of its restore point.
    pub(super) id: String,
    /// Its sequence number.
    pub(super) sequence: u64,
}

/// The runs that hold the disk of a target at a checkpoint, by the names of both.
pub(super) type Providers = BTreeMap<(String, String), usize>;

/// Finds the runs that show the checkpoints.
pub(super) fn providers(content: &SetContent) -> Providers {
    let mut providers = Providers::new();
    for (place, group) in content.groups.iter().enumerate() {
        for file in &group.files {
            let checkpoint = match (group.run, file.header()) {
                (Run::Base, header) if file.whole == Some(Whole::Full) => {
                    header.map_or(FIRST_CHECKPOINT.to_owned(), |header| header.checkpoint.clone())
                }
                // While a domain is shut off, a run makes no checkpoint.
                (Run::Incremental(_), Some(header)) if header.parent == header.checkpoint => continue,
                (Run::Incremental(_), Some(header)) => header.checkpoint.clone(),
                // The file is damaged, and so is what depends on it.
                (Run::Incremental(number), None) => format!("{CHECKPOINT}{number}"),
                _ => continue,
            };
            providers.insert((checkpoint, file.target.clone()), place);
        }
    }
    providers
}

/// The name of the checkpoint of every full backup.
const FIRST_CHECKPOINT: &str = "virtnbdbackup.0";

/// Gives every run its time, id and place in the order.
pub(super) fn dated<'a>(
    place: &SetPlace,
    content: &'a SetContent,
    providers: &Providers,
    zone: &TimeZone,
) -> Vec<Dated<'a>> {
    let mut dated: Vec<Dated<'a>> = Vec::new();
    // The checkpoints that each run shows.
    let mut shown: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for ((checkpoint, _), group) in providers {
        shown.entry(*group).or_default().push(checkpoint);
    }
    let mut sequences: BTreeMap<&str, u64> = BTreeMap::new();
    for (number, group) in content.groups.iter().enumerate() {
        let headers = || group.files.iter().filter_map(DataFile::header);
        let date = headers().map(|header| header.date).min();
        let written = group
            .files
            .iter()
            .map(|file| file.written)
            .min()
            .unwrap_or_default();
        let own = headers().find(|header| header.parent != header.checkpoint);
        let own = own.filter(|_| !matches!(group.run, Run::Differential(_)));
        let created = own
            .and_then(|header| content.created.get(&header.checkpoint))
            .copied();
        let time = date.map_or(written, |date| time_of(date, created, zone));
        let base = match date {
            Some(date) => date.strftime("%Y-%m-%dT%H-%M-%S").to_string(),
            None => id_of(written),
        };
        let mut id = base.clone();
        for copy in 2.. {
            if !dated.iter().any(|known| known.id == id) && !place.taken.contains(&id) {
                break;
            }
            id = format!("{base}-{copy}");
        }
        let of_parent = headers()
            .filter_map(|header| sequences.get(header.parent.as_str()))
            .max();
        let seconds = u64::try_from(time.as_second()).unwrap_or(0);
        let sequence = seconds.max(of_parent.map_or(0, |parent| parent + 1));
        for checkpoint in shown.get(&number).into_iter().flatten() {
            sequences.insert(checkpoint, sequence);
        }
        dated.push(Dated {
            group,
            date,
            time,
            id,
            sequence,
        });
    }
    dated
}

/// The moment of a local time. The time of the checkpoint is more exact, if it can be that of the
/// same run.
fn time_of(date: DateTime, created: Option<i64>, zone: &TimeZone) -> Timestamp {
    let as_utc = TimeZone::UTC.to_timestamp(date).unwrap_or_default();
    let is_near = |created: &i64| created.abs_diff(as_utc.as_second()) <= ZONES;
    let created = created.filter(is_near);
    let created = created.and_then(|created| Timestamp::from_second(created).ok());
    let local = || zone.to_timestamp(date).unwrap_or(as_utc);
    let whole = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or(time);
    created.unwrap_or_else(|| whole(local()))
}

/// The checkpoints that the set lists, but for which it has no data.
pub(super) fn lost(
    place: &SetPlace,
    content: &SetContent,
    dated: &[Dated<'_>],
    providers: &Providers,
) -> Vec<LostPoint> {
    let is_there = |name: &str| providers.keys().any(|(checkpoint, _)| checkpoint == name);
    let mut before = String::new();
    let mut lost = Vec::new();
    for name in &content.listed {
        let of_name = providers.iter().find(|((checkpoint, _), _)| checkpoint == name);
        if let Some((_, group)) = of_name {
            before.clone_from(&dated[*group].id);
        }
        if !is_there(name) {
            lost.push(LostPoint {
                id: format!("{before}.{name}"),
                what: format!(
                    "the set {} lists checkpoint {name}, but has no backup for it: a backup failed, or its files were removed",
                    place.dir.display()
                ),
                is_newer: false,
                is_gone: true,
            });
        }
    }
    lost
}
