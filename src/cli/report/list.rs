//! The output of `vmsnap list`.

use std::collections::BTreeSet;

use serde::Serialize;

use super::lines::{found_on, line, push_line, table};
use super::parts::{BootProofPart, FindingPart, LeftOutPart, PointPart, Text, findings, texts};
use super::pin::{self, PinPart};
use crate::cli::pretty;
use crate::model::guest::BootLevel;
use crate::model::left_out;
use crate::model::restore_point::{Consistency, CopiedFrom, Level, RestorePoint};
use crate::model::text::shown;
use crate::ops::list::{BootProof, DomainList, Listed, ListedMissedWrite};
use crate::ops::verify::Proof;

/// The document of a list.
#[derive(Debug, Serialize)]
pub struct ListDocument<'a> {
    pub(super) schema: u32,
    pub(super) domains: Vec<ListDomain<'a>>,
}

/// A domain in the document of a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListDomain<'a> {
    pub(super) domain: Text<'a>,
    pub(super) restore_points: Vec<ListedPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// A restore point in the document of a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedPart<'a> {
    #[serde(flatten)]
    pub(super) point: PointPart<'a>,
    pub(super) verified: Option<VerifiedPart<'a>>,
    pub(super) boot_proof: Option<BootProofPart<'a>>,
    pub(super) doubt: Option<Text<'a>>,
    pub(super) missed_writes: Vec<MissedPart<'a>>,
    pub(super) pin: Option<PinPart<'a>>,
    pub(super) copied_from: Option<OriginPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
    #[serde(flatten)]
    pub(super) left_out: LeftOutPart<'a>,
}

/// A write that a bitmap missed.
#[derive(Debug, Serialize)]
pub(crate) struct MissedPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) found: Text<'a>,
    pub(super) stands: bool,
}

impl<'a> MissedPart<'a> {
    fn of(missed: &'a ListedMissedWrite) -> Self {
        MissedPart {
            disk: Text::from(&missed.write.disk),
            found: Text::of(&missed.write.found),
            stands: missed.stands,
        }
    }
}

/// The repository from which a restore point was copied.
#[derive(Debug, Serialize)]
pub(crate) struct OriginPart<'a> {
    pub(super) repository: Option<Text<'a>>,
    pub(super) location: Text<'a>,
    pub(super) time: Text<'a>,
}

impl<'a> OriginPart<'a> {
    fn of(origin: &'a CopiedFrom) -> Self {
        OriginPart {
            repository: origin.repository.as_ref().map(Text::from),
            location: Text::from(&origin.location),
            time: Text::of(&origin.time),
        }
    }
}

/// The last recorded verification of a restore point.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifiedPart<'a> {
    pub(super) time: Text<'a>,
    pub(super) deep: bool,
    pub(super) deep_time: Option<Text<'a>>,
    pub(super) damage: Vec<Text<'a>>,
}

impl<'a> VerifiedPart<'a> {
    fn of(proof: &'a Proof) -> Self {
        VerifiedPart {
            time: Text::of(&proof.time),
            deep: proof.deep,
            deep_time: proof.last_deep().map(|time| Text::of(&time)),
            damage: texts(proof.damage.iter().map(|note| &note.what)),
        }
    }
}

/// The restore points of these domains.
pub fn document(domains: &[DomainList]) -> ListDocument<'_> {
    let domains = domains.iter().map(|domain| ListDomain {
        domain: Text::from(&domain.domain),
        restore_points: domain.points.iter().map(listed_part).collect(),
        findings: findings(&domain.findings),
    });
    ListDocument {
        schema: 1,
        domains: domains.collect(),
    }
}

fn listed_part(listed: &Listed) -> ListedPart<'_> {
    ListedPart {
        point: PointPart {
            whole: Some(listed.is_whole()),
            faults: texts(&listed.faults),
            ..PointPart::of(&listed.point, listed.size)
        },
        verified: listed.proof.as_ref().map(VerifiedPart::of),
        boot_proof: listed.boot_proof.as_ref().map(BootProofPart::of),
        doubt: listed.suspected_damage.as_ref().map(Text::from),
        missed_writes: listed.missed_writes.iter().map(MissedPart::of).collect(),
        pin: listed.pin.as_ref().map(PinPart::of),
        copied_from: listed.point.copied_from.as_ref().map(OriginPart::of),
        findings: listed.cautions().map(FindingPart::of).collect(),
        left_out: LeftOutPart::of(&listed.point),
    }
}

/// The columns of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Short ones, as many as fit on lines of this many characters.
    Fitting(usize),
    /// All, in full.
    Wide,
}

/// A column of a table.
struct Column {
    title: &'static str,
    is_number: bool,
    cell: fn(&Listed) -> String,
}

impl Column {
    const fn of(title: &'static str, cell: fn(&Listed) -> String) -> Column {
        Column {
            title,
            is_number: false,
            cell,
        }
    }

    const fn of_number(title: &'static str, cell: fn(&Listed) -> String) -> Column {
        Column {
            is_number: true,
            ..Column::of(title, cell)
        }
    }
}

const ID: Column = Column::of("  ID (UTC)", |listed| format!("  {}", listed.point.id));
const DATA: Column = Column::of_number("DATA", |listed| pretty::bytes(listed.point.data_bytes()));
const SIZE: Column = Column::of_number("SIZE", |listed| pretty::bytes(listed.size));
const CHAIN: Column = Column::of("CHAIN", |listed| chain_word(listed).to_owned());

const SHORT: [Column; 7] = [
    ID,
    Column::of("KIND", |listed| short_kind(&listed.point).to_owned()),
    DATA,
    SIZE,
    Column::of("GUEST", |listed| guest_word(listed.point.consistency).to_owned()),
    CHAIN,
    VERIFIED,
];

const VERIFIED: Column = Column::of("VERIFIED", |listed| verified(listed, short_proof));

/// The same, with a mark for restore points that are proven to boot. A guest that only reads its
/// disks may not even have a boot loader.
const VERIFIED_AND_BOOTED: Column = Column::of("VERIFIED", |listed| {
    let is_booted = |proof: &BootProof| proof.is_proven() && proof.reached > BootLevel::Read;
    let is_booted = listed.boot_proof.as_ref().is_some_and(is_booted);
    match (is_booted, &listed.proof) {
        (false, _) => verified(listed, short_proof),
        (true, None) => "booted".to_owned(),
        (true, Some(proof)) => format!("{}, booted", short_proof(proof)),
    }
});

/// The short columns that are left out on narrow lines, in this order.
const LEFT_OUT: [&str; 5] = ["GUEST", "DATA", "SIZE", "KIND", "VERIFIED"];

const WIDE: [Column; 10] = [
    ID,
    Column::of("LEVEL", |listed| listed.point.kind_word().to_owned()),
    DATA,
    SIZE,
    Column::of("CHECKPOINT", |listed| {
        let checkpoint = listed.point.checkpoint.as_ref();
        checkpoint.map_or("-".to_owned(), |checkpoint| checkpoint.name.clone())
    }),
    Column::of("CONSISTENCY", |listed| {
        listed.point.consistency.sentence().to_owned()
    }),
    CHAIN,
    Column::of("VERIFIED", |listed| verified(listed, full_proof)),
    Column::of("BOOTED", |listed| {
        listed.boot_proof.as_ref().map_or("-".to_owned(), booted)
    }),
    Column::of("PERIOD", |listed| listed.point.period.clone()),
];

/// The list as a table per domain, followed by lines about the domain's restore points and folder.
pub fn text(domains: &[DomainList], location: &str, columns: Columns) -> String {
    if domains.is_empty() {
        return line(&format!("No restore points in {}", location));
    }
    let mut blocks = Vec::new();
    for domain in domains {
        let mut block = line(&format!("Restore points of {}:", shown(&domain.domain)));
        match columns {
            _ if domain.points.is_empty() => block.push_str("  none\n"),
            Columns::Fitting(width) => block.push_str(&fitting_table(&domain.points, width)),
            Columns::Wide => block.push_str(&table_of(&domain.points, &WIDE.each_ref())),
        }
        for listed in domain.points.iter().filter(|listed| !listed.is_whole()) {
            for fault in &listed.faults {
                push_line(&mut block, &format!("  {}: {fault}", listed.point.id));
            }
        }
        for (listed, proof) in domain
            .points
            .iter()
            .filter_map(|listed| Some((listed, listed.proof.as_ref()?)))
        {
            for note in &proof.damage {
                push_line(&mut block, &format!("  {}: {}", listed.point.id, note.what));
            }
        }
        block.push_str(&unproven_lines(&domain.points));
        for listed in &domain.points {
            for missed in &listed.missed_writes {
                let (disk, found) = (shown(&missed.write.disk), found_on(&missed.write));
                let next = match missed.stands {
                    true => "; the next backup will save this disk in full",
                    false => "",
                };
                let id = &listed.point.id;
                push_line(
                    &mut block,
                    &format!("  {id}: the bitmap of disk {disk} missed a write ({found}){next}"),
                );
            }
        }
        for listed in &domain.points {
            for left in left_out::unasked(&listed.point.left_out) {
                let (disk, reason) = (shown(&left.disk), shown(&left.reason));
                let id = &listed.point.id;
                push_line(
                    &mut block,
                    &format!("  {id}: partial, without disk {disk}: {reason}"),
                );
            }
        }
        for listed in &domain.points {
            for finding in listed.cautions() {
                push_line(&mut block, &format!("  {}: {}", listed.point.id, finding.message));
            }
        }
        for listed in &domain.points {
            if let Some(pin) = &listed.pin {
                push_line(
                    &mut block,
                    &format!("  {}: {}", listed.point.id, pin::sentence(pin)),
                );
            }
        }
        for origin in origins(&domain.points) {
            push_line(&mut block, &format!("  {origin}"));
        }
        for finding in &domain.findings {
            push_line(&mut block, &format!("  note: {}", finding.message));
        }
        blocks.push(block);
    }
    blocks.join("\n")
}

/// A line for each restore point whose last boot proof failed.
fn unproven_lines(points: &[Listed]) -> String {
    let mut lines = String::new();
    for listed in points {
        if let Some(proof) = &listed.boot_proof
            && let Some(why) = &proof.shortfall
        {
            let (id, day) = (&listed.point.id, proof.time.strftime("%Y-%m-%d"));
            push_line(&mut lines, &format!("  {id}: not proven to boot: {why} ({day})"));
        }
    }
    lines
}

/// From which repositories restore points were copied: a sentence for each location.
fn origins(points: &[Listed]) -> Vec<String> {
    let location = |listed: &Listed| Some(listed.point.copied_from.as_ref()?.location.clone());
    let locations: BTreeSet<String> = points.iter().filter_map(location).collect();
    let sentence = |of: String| {
        let copied = points
            .iter()
            .filter(|listed| location(listed).as_ref() == Some(&of));
        let ids: Vec<&str> = copied.map(|listed| listed.point.id.as_str()).collect();
        let place = shown(&of);
        match (ids.as_slice(), ids.len() == points.len()) {
            ([id], false) => format!("{id} was copied from {place}"),
            (_, true) => format!("copied from {place}"),
            (several, false) => format!("{} of them were copied from {place}", several.len()),
        }
    };
    locations.into_iter().map(sentence).collect()
}

/// A table without the least important parts that do not fit: first the marks of boot proofs, then
/// columns.
fn fitting_table(points: &[Listed], width: usize) -> String {
    let fits = |table: &str| table.lines().all(|line| line.chars().count() <= width);
    let mut columns: Vec<&Column> = SHORT.iter().collect();
    let place = columns.len() - 1;
    columns[place] = &VERIFIED_AND_BOOTED;
    let mut table = table_of(points, &columns);
    if !fits(&table) {
        columns[place] = &VERIFIED;
        table = table_of(points, &columns);
    }
    for title in LEFT_OUT {
        if fits(&table) {
            break;
        }
        columns.retain(|column| column.title != title);
        table = table_of(points, &columns);
    }
    table
}

fn table_of(points: &[Listed], columns: &[&Column]) -> String {
    let titles = columns.iter().map(|column| column.title.to_owned());
    let row = |listed: &Listed| columns.iter().map(|column| (column.cell)(listed)).collect();
    let mut rows: Vec<Vec<String>> = vec![titles.collect()];
    rows.extend(points.iter().map(row));
    let is_number = |place: &usize| columns[*place].is_number;
    let numbers: Vec<usize> = (0..columns.len()).filter(is_number).collect();
    table(&rows, &numbers)
}

fn verified(listed: &Listed, words: fn(&Proof) -> String) -> String {
    listed.proof.as_ref().map_or("-".to_owned(), words)
}

/// What a restore point is, in at most four letters.
fn short_kind(point: &RestorePoint) -> &'static str {
    match (point.is_copy(), point.level) {
        (true, _) => "copy",
        (false, Level::Full) => "full",
        (false, Level::Incremental) => "inc",
    }
}

/// The state of the guest's file systems, in at most six letters.
fn guest_word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Filesystem => "frozen",
        Consistency::Crash => "crash",
        Consistency::Offline => "off",
    }
}

fn chain_word(listed: &Listed) -> &'static str {
    match (listed.is_whole(), &listed.suspected_damage) {
        (false, _) => "BROKEN",
        (true, Some(_)) => "DAMAGED",
        (true, None) if listed.point.is_partial() => "PARTIAL",
        (true, None) => "whole",
    }
}

/// The day of the last verification (UTC), and whether it read the disks as a restore would. The
/// lines below the table describe damage.
fn short_proof(proof: &Proof) -> String {
    let day = proof.time.strftime("%Y-%m-%d");
    match (proof.is_sound(), proof.deep) {
        (false, _) => "DAMAGED".to_owned(),
        (true, true) => format!("{day} deep"),
        (true, false) => day.to_string(),
    }
}

/// The day of the last verification, with `DAMAGED` if it found damage, otherwise with the day of
/// the last deep verification, if there was one.
fn full_proof(proof: &Proof) -> String {
    let day = proof.time.strftime("%Y-%m-%d");
    match (proof.is_sound(), proof.deep, proof.last_deep()) {
        (false, ..) => format!("{day} DAMAGED"),
        (true, true, _) => format!("{day} deep"),
        (true, false, Some(deep)) => format!("{day} (deep {})", deep.strftime("%Y-%m-%d")),
        (true, false, None) => day.to_string(),
    }
}

/// The day of the last boot proof (UTC), and how far the guest came if that was far enough.
fn booted(proof: &BootProof) -> String {
    let day = proof.time.strftime("%Y-%m-%d");
    match proof.is_proven() {
        true => format!("{day} {}", proof.reached.word()),
        false => format!("{day} not proven"),
    }
}
