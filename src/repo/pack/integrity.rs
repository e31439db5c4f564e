//! Checks a repository as a whole, and rebuilds its index.

use std::sync::Arc;

use super::data::{Cost, Damage, RebuildReport, RepositoryCheck};
use super::description::Cipher;
use super::keys::{SLOTS, SlotState, read_slots};
use super::part::DomainPart;
use super::shared::Shared;
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::repo::history::WRITTEN_BY_A_NEWER_VMSNAP;
use crate::repo::{DomainRepository, Result};

/// How to rebuild the index of a pack repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuild {
    /// Whether to change nothing, and only find out what would be done.
    pub dry_run: bool,
    /// Whether to delete damaged index objects, after all packs are listed in others.
    pub delete_damaged: bool,
}

/// Checks the repository, and the restore points of these domains.
///
/// # Errors
/// The store fails, or a stop was requested.
pub(super) fn check(
    shared: &Arc<Shared>,
    domains: &[String],
    deep: bool,
    stop: &Stop,
) -> Result<RepositoryCheck> {
    let mut damage = Vec::new();
    let mut notes = Vec::new();
    check_slots(shared, stop, &mut damage, &mut notes)?;
    for domain in domains {
        let names = shared.names(domain);
        let findings = DomainPart::new(Arc::clone(shared), domain).history()?.findings;
        for finding in findings {
            match finding.code.as_str() {
                // Of the index, which is checked below.
                "index-damaged" => {}
                WRITTEN_BY_A_NEWER_VMSNAP => notes.push(finding),
                _ => damage.push(Damage {
                    object: None,
                    finding,
                    costs: Vec::<Cost>::new(),
                }),
            }
        }
        shared.sealed.forget_others(&names.points(), &[]);
        shared.sealed.forget_others(&names.records(), &[]);
    }
    let points = shared.all_points();
    let mut readable = |stop: &Stop| points.readable(stop);
    let mut check = shared.sealer.inspect(&mut readable, deep, stop)?;
    check.domains = domains.len() as u64;
    damage.append(&mut check.damage);
    notes.append(&mut check.notes);
    Ok(RepositoryCheck {
        damage,
        notes,
        ..check
    })
}

/// Checks the key slots of an encrypted repository.
fn check_slots(
    shared: &Shared,
    stop: &Stop,
    damage: &mut Vec<Damage>,
    notes: &mut Vec<Finding>,
) -> Result<()> {
    let place = &shared.place;
    if place.description.cipher == Cipher::None {
        return Ok(());
    }
    let slots = read_slots(
        place.objects.as_ref(),
        &place.description.id,
        Some(&place.key),
        stop,
    )?;
    for slot in &slots {
        let id = &slot.id;
        let note = |what: &str| Finding::new("key-slot-incomplete", format!("key slot {id} {what}"));
        match &slot.state {
            SlotState::Genuine | SlotState::Complete => {}
            SlotState::Damaged(why) => damage.push(Damage {
                object: Some(format!("{SLOTS}{id}.json")),
                finding: Finding::new("key-slot-damaged", format!("key slot {id} is damaged: {why}")),
                costs: Vec::new(),
            }),
            SlotState::Unfinished => notes.push(note(
                "has no record: `key add` was interrupted, or the record was deleted",
            )),
            SlotState::Removed => notes.push(note(
                "has no key: `key remove` was interrupted, or the key file was deleted",
            )),
            SlotState::OfOther => {
                notes.push(note("belongs to another repository: an `init` was interrupted"))
            }
        }
    }
    if !slots.iter().any(|slot| slot.state == SlotState::Genuine) {
        let what = "no key slot is complete and genuine: add one with `vmsnap key add`";
        damage.push(Damage {
            object: None,
            finding: Finding::new("key-slot-damaged", what),
            costs: Vec::new(),
        });
    }
    Ok(())
}

/// Adds missing packs to the index.
///
/// # Errors
/// The store fails, or a collection is at work.
pub(super) fn rebuild_index(shared: &Shared, how: &Rebuild, stop: &Stop) -> Result<RebuildReport> {
    shared.rebuild_index(how.dry_run, how.delete_damaged, stop)
}
