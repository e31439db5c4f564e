//! The reports of `vmsnap repository check` and `vmsnap repository rebuild-index`.

use serde::Serialize;

use super::collect::{AmountPart, amount};
use super::lines::{line, push_line};
use super::parts::{FindingPart, Text, findings, texts};
use crate::model::finding::Finding;
use crate::model::text::shown;
use crate::ops::integrity::{
    Cost, Damage, DamagedIndex, IndexFault, RebuildReport, RepositoryCheck, SessionNote,
};

/// The lines about a check.
pub fn check_lines(location: &str, check: &RepositoryCheck) -> String {
    let location = shown(location);
    let mut text = line(&match check.damage.len() {
        0 => format!("{location}: OK"),
        1 => format!("{location}: DAMAGED in 1 place"),
        count => format!("{location}: DAMAGED in {count} places"),
    });
    for damage in &check.damage {
        push_line(&mut text, &format!("  {}", damage.finding.message));
        for cost in &damage.costs {
            push_line(&mut text, &format!("    makes unreadable: {}", cost_text(cost)));
        }
    }
    let read = match check.deep {
        true => "all of them read",
        false => "not read; `--deep` reads them",
    };
    for what in [
        format!(
            "{} of {}",
            count(check.points, "restore point"),
            count(check.domains, "domain")
        ),
        format!("data: {}, {read}", amount(&check.packs)),
        format!("index objects: {}", check.index_objects),
    ] {
        push_line(&mut text, &format!("  {what}"));
    }
    let condemned = &check.condemned;
    if condemned.records > 0 {
        let packs = amount(&condemned.packs);
        let since = condemned.oldest.map(|time| format!(", since {time}"));
        let since = since.unwrap_or_default();
        push_line(&mut text, &format!("  condemned by a collection: {packs}{since}"));
    }
    for session in &check.sessions {
        push_line(&mut text, &format!("  {}", session_text(session)));
    }
    for note in &check.notes {
        push_line(&mut text, &format!("  {}", note.message));
    }
    text
}

/// A restore point with the parts of it that are lost.
fn cost_text(cost: &Cost) -> String {
    let names = |word: &str, names: &std::collections::BTreeSet<String>| match names.len() {
        0 => None,
        1 => Some(format!("{word} {}", names.iter().next()?)),
        _ => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Some(format!("{word}s {}", names.join(", ")))
        }
    };
    let parts = [names("disk", &cost.disks), names("file", &cost.files)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("{} {}: {}", cost.domain, cost.id, parts.join("; "))
}

fn session_text(session: &SessionNote) -> String {
    let began = match session.began {
        Some(began) => format!("began {began}, "),
        None => String::new(),
    };
    format!(
        "a run is active, or was killed ({}): {}; {began}last renewed {}",
        session.kind, session.host, session.renewed
    )
}

/// The lines about the index.
pub fn rebuild_lines(location: &str, report: &RebuildReport, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let location = shown(location);
    let mut text = line(&match report.listed.packs {
        0 if report.unsound.is_empty() => format!("{location}: the index lists all packs"),
        0 => format!("{location}: {would}added to the index: none"),
        _ => format!(
            "{location}: {would}added to the index: {}",
            amount(&report.listed)
        ),
    });
    for (pack, why) in &report.unsound {
        push_line(
            &mut text,
            &format!("  {pack} is in no index object, and cannot be added: {why}"),
        );
    }
    for damaged in &report.damaged {
        push_line(&mut text, &format!("  {}", index_text(damaged, would)));
    }
    let stays = |damaged: &DamagedIndex| damaged.fault == IndexFault::Seal && !damaged.is_deleted;
    if report.is_held_back {
        push_line(
            &mut text,
            "  damaged index objects are not deleted, because no readable index object lists the \
             packs above. Restore these packs if you have a copy. Before you delete one of them, run \
             `vmsnap repository check --deep`, which shows whether restore points need it",
        );
    } else if report.damaged.iter().any(stays) {
        push_line(
            &mut text,
            "  no data can be collected until the damaged index objects are deleted: use --delete-damaged",
        );
    }
    text
}

/// An index object that cannot be used, and what is or can be done.
fn index_text(damaged: &DamagedIndex, would: &str) -> String {
    let DamagedIndex {
        name,
        fault,
        why,
        is_deleted,
    } = damaged;
    match fault {
        IndexFault::Seal if *is_deleted => format!("{name} is damaged: {why}; {would}deleted"),
        IndexFault::Seal => format!("{name} is damaged: {why}; not deleted"),
        IndexFault::Format => {
            format!(
                "{name} has a valid seal, but this version of vmsnap cannot read it: use the newest version"
            )
        }
        IndexFault::Name => format!("{name} is not an object of vmsnap: delete it by hand"),
    }
}

fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// The document of `repository check`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckDocument<'a> {
    pub(super) schema: u32,
    pub(super) location: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) deep: bool,
    pub(super) domains: u64,
    pub(super) restore_points: u64,
    pub(super) index_objects: u64,
    pub(super) packs: AmountPart,
    pub(super) unlisted: AmountPart,
    pub(super) condemned: CondemnedPart<'a>,
    pub(super) sessions: Vec<SessionPart<'a>>,
    pub(super) damage: Vec<DamagedObjectPart<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
}

/// Condemned packs in a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CondemnedPart<'a> {
    pub(super) packs: u64,
    pub(super) bytes: u64,
    pub(super) records: u64,
    pub(super) oldest: Option<Text<'a>>,
}

/// A session in a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionPart<'a> {
    pub(super) host: Text<'a>,
    pub(super) kind: &'static str,
    pub(super) began: Option<Text<'a>>,
    pub(super) renewed: Text<'a>,
}

/// Damage in a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DamagedObjectPart<'a> {
    pub(super) code: Text<'a>,
    pub(super) message: Text<'a>,
    pub(super) object: Option<Text<'a>>,
    pub(super) restore_points: Vec<CostPart<'a>>,
}

/// The disks and files of one restore point that damage makes unreadable, in a document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CostPart<'a> {
    pub(super) domain: Text<'a>,
    pub(super) id: Text<'a>,
    pub(super) disks: Vec<Text<'a>>,
    pub(super) files: Vec<Text<'a>>,
}

impl<'a> DamagedObjectPart<'a> {
    fn of(damage: &'a Damage) -> Self {
        let Finding { code, message, .. } = &damage.finding;
        DamagedObjectPart {
            code: Text::from(code),
            message: Text::from(message),
            object: damage.object.as_ref().map(Text::from),
            restore_points: damage.costs.iter().map(CostPart::of).collect(),
        }
    }
}

impl<'a> CostPart<'a> {
    fn of(cost: &'a Cost) -> Self {
        CostPart {
            domain: Text::from(&cost.domain),
            id: Text::from(&cost.id),
            disks: texts(&cost.disks),
            files: texts(&cost.files),
        }
    }
}

/// The document about a check.
pub(crate) fn check_document<'a>(location: &'a str, check: &'a RepositoryCheck) -> CheckDocument<'a> {
    let condemned = &check.condemned;
    let session = |session: &'a SessionNote| SessionPart {
        host: Text::from(&session.host),
        kind: session.kind,
        began: session.began.as_ref().map(Text::of),
        renewed: Text::of(&session.renewed),
    };
    CheckDocument {
        schema: 1,
        location: Text::from(location),
        outcome: match check.damage.is_empty() {
            true => "ok",
            false => "damaged",
        },
        deep: check.deep,
        domains: check.domains,
        restore_points: check.points,
        index_objects: check.index_objects,
        packs: AmountPart::of(&check.packs),
        unlisted: AmountPart::of(&check.unlisted),
        condemned: CondemnedPart {
            packs: condemned.packs.packs,
            bytes: condemned.packs.bytes,
            records: condemned.records,
            oldest: condemned.oldest.as_ref().map(Text::of),
        },
        sessions: check.sessions.iter().map(session).collect(),
        damage: check.damage.iter().map(DamagedObjectPart::of).collect(),
        findings: findings(&check.notes),
    }
}

/// The document of `repository rebuild-index`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RebuildDocument<'a> {
    pub(super) schema: u32,
    pub(super) location: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dry_run: Option<bool>,
    pub(super) all: AmountPart,
    pub(super) listed: AmountPart,
    pub(super) unusable: Vec<UnusablePart<'a>>,
    pub(super) damaged: Vec<DamagedIndexPart<'a>>,
    pub(super) held_back: bool,
}

/// A pack that cannot be listed, in a document.
#[derive(Debug, Serialize)]
pub(crate) struct UnusablePart<'a> {
    pub(super) object: Text<'a>,
    pub(super) why: Text<'a>,
}

/// A damaged index object in a document.
#[derive(Debug, Serialize)]
pub(crate) struct DamagedIndexPart<'a> {
    pub(super) object: Text<'a>,
    pub(super) why: Text<'a>,
    pub(super) deleted: bool,
}

/// The document about the index.
pub(crate) fn rebuild_document<'a>(
    location: &'a str,
    report: &'a RebuildReport,
    dry_run: bool,
) -> RebuildDocument<'a> {
    let unusable = report.unsound.iter().map(|(object, why)| UnusablePart {
        object: Text::from(object),
        why: Text::from(why),
    });
    let damaged = report.damaged.iter().map(|damaged| DamagedIndexPart {
        object: Text::from(&damaged.name),
        why: Text::from(&damaged.why),
        deleted: damaged.is_deleted,
    });
    RebuildDocument {
        schema: 1,
        location: Text::from(location),
        dry_run: dry_run.then_some(true),
        all: AmountPart::of(&report.all),
        listed: AmountPart::of(&report.listed),
        unusable: unusable.collect(),
        damaged: damaged.collect(),
        held_back: report.is_held_back,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::collect::Amount;

    fn damaged(name: &str, fault: IndexFault, is_deleted: bool) -> DamagedIndex {
        DamagedIndex {
            name: format!("index/{name}"),
            fault,
            why: "its seal is wrong".to_owned(),
            is_deleted,
        }
    }

    fn lines(report: &RebuildReport) -> String {
        rebuild_lines("pack:/b", report, false)
    }

    #[test]
    fn only_damaged_index_objects_are_to_be_deleted() {
        let unusable = vec![
            damaged("newer", IndexFault::Format, false),
            damaged("notes", IndexFault::Name, false),
        ];
        let mut report = RebuildReport {
            damaged: unusable,
            ..RebuildReport::default()
        };
        let expected = "pack:/b: the index lists all packs
  index/newer has a valid seal, but this version of vmsnap cannot read it: use the newest version
  index/notes is not an object of vmsnap: delete it by hand
";
        assert_eq!(lines(&report), expected);
        report.damaged.push(damaged("old", IndexFault::Seal, true));
        let deleted = "  index/old is damaged: its seal is wrong; deleted\n";
        assert_eq!(lines(&report), format!("{expected}{deleted}"));
        report.damaged = vec![damaged("old", IndexFault::Seal, false)];
        let expected = "pack:/b: the index lists all packs
  index/old is damaged: its seal is wrong; not deleted
  no data can be collected until the damaged index objects are deleted: use --delete-damaged
";
        assert_eq!(lines(&report), expected);
    }

    #[test]
    fn packs_that_hold_a_deletion_back_are_not_to_be_deleted_unseen() {
        let report = RebuildReport {
            unsound: vec![("packs/0a".to_owned(), "its digest is wrong".to_owned())],
            damaged: vec![damaged("old", IndexFault::Seal, false)],
            is_held_back: true,
            ..RebuildReport::default()
        };
        let expected = "pack:/b: added to the index: none
  packs/0a is in no index object, and cannot be added: its digest is wrong
  index/old is damaged: its seal is wrong; not deleted
  damaged index objects are not deleted, because no readable index object lists the packs above. \
Restore these packs if you have a copy. Before you delete one of them, \
run `vmsnap repository check --deep`, which shows whether restore points need it
";
        assert_eq!(lines(&report), expected);
    }

    #[test]
    fn counts_of_a_check_come_before_their_words() {
        let mut check = RepositoryCheck {
            points: 1,
            domains: 1,
            packs: Amount {
                packs: 1,
                bytes: 1024,
            },
            ..RepositoryCheck::default()
        };
        let text = check_lines("pack:/b", &check);
        assert!(text.contains("\n  1 restore point of 1 domain\n"), "{text}");
        (check.points, check.domains) = (4, 2);
        let text = check_lines("pack:/b", &check);
        assert!(text.contains("\n  4 restore points of 2 domains\n"), "{text}");
    }
}
