//! Carries out repairs: cleans up after unfinished runs, finishes interrupted removals and merges,
//! and registers lost checkpoints again.
//!
//! A run writes a journal entry before it begins anything outside the repository. A process that
//! holds the domain's lock knows that the run which wrote the entry is dead.

use super::journal::JournalEntry;
use super::monitor::Event;
use super::reconcile::{self, Repair};
use super::retention;
use super::survey::{self, Survey};
use super::{Cause, Context, Error, Result};
use crate::host::{Host, HostError};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::text::with_sources;
use crate::repo::{DomainRepository, DomainWriter, History, Leftover};

/// The largest number of rounds of surveying and repairing a domain. One round is enough unless
/// something new happens during it. The limit ends repairs that change nothing.
const ROUNDS: usize = 5;

/// A domain after its repairs. Only removals that have to wait may remain.
pub(crate) struct HealedDomain {
    /// Its current state.
    pub survey: Survey,
    /// Its restore points and leftovers in the repository.
    pub history: History,
    /// The findings of the surveys and of the repairs.
    pub findings: Vec<Finding>,
}

/// Surveys the domain and repairs it, until nothing is left to repair now.
///
/// `repairs` decides which repairs are needed.
///
/// # Errors
/// A survey or a repair fails, or several rounds of repairs were not enough.
pub(super) fn heal(
    repository: &dyn DomainRepository,
    locked: &dyn DomainWriter,
    context: &Context,
    repairs: impl Fn(&Survey, &History) -> Vec<Repair>,
) -> Result<HealedDomain> {
    let name = repository.name();
    let mut findings = Vec::new();
    let mut unfinished = Vec::new();
    let mut missing = Vec::new();
    let mut waiting: Vec<Leftover> = Vec::new();
    let mut rounds = 0;
    while rounds < ROUNDS {
        let history = locked.history().map_err(|error| Error::of(name, error))?;
        let look = |domain| survey::survey(domain, repository, &history, context.host);
        let mut survey = survey::steadily(name, context.host, look)?;
        survey.missing.clone_from(&missing);
        for finding in &survey.findings {
            if !findings.contains(finding) {
                context.monitor.event(Event::Found {
                    domain: name,
                    finding,
                });
                findings.push(finding.clone());
            }
        }
        let mut repairs = repairs(&survey, &history);
        let waits =
            |repair: &Repair| matches!(repair, Repair::FinishRemoval(removal) if waiting.contains(removal));
        repairs.retain(|repair| !waits(repair));
        if repairs.is_empty() {
            return Ok(HealedDomain {
                survey,
                history,
                findings,
            });
        }
        let known_missing = missing.len();
        findings.extend(carry_out(
            &repairs,
            &survey.domain,
            locked,
            context,
            (&mut missing, &mut waiting),
        )?);
        // A checkpoint that was not found is not looked for again, so this round does not count:
        // there may be an older one.
        rounds += usize::from(missing.len() == known_missing);
        unfinished = repairs;
    }
    let unfinished: Vec<String> = unfinished.iter().map(Repair::to_string).collect();
    Err(Error::of(name, Cause::NotCleanedUp(unfinished.join("; "))))
}

/// Carries out the repairs in order. Each unfinished run becomes one finding, which says what was
/// ended and removed. Adds to `missing` the names of lost checkpoints that cannot be registered
/// again, and to `waiting` the removals and merges that cannot be finished now.
fn carry_out(
    repairs: &[Repair],
    domain: &Domain,
    locked: &dyn DomainWriter,
    context: &Context,
    (missing, waiting): (&mut Vec<String>, &mut Vec<Leftover>),
) -> Result<Vec<Finding>> {
    let failed = |error| Error::of(&domain.name, error);
    let mut findings = Vec::new();
    let mut ended = Vec::new();
    for repair in repairs {
        match repair {
            Repair::FinishRemoval(removal) => {
                if locked.finish_removal(removal).map_err(failed)? {
                    findings.push(retention::finished(removal));
                } else {
                    findings.push(retention::not_finished(removal));
                    waiting.push(removal.clone());
                }
            }
            Repair::RemovePartial(leftover) => {
                locked.remove_leftover(leftover).map_err(failed)?;
                findings.push(healed(leftover, &std::mem::take(&mut ended)));
            }
            Repair::Register(lost) => match context.host.register_checkpoint(domain, lost) {
                Ok(true) => findings.push(Finding::new(
                    "checkpoint-known-again",
                    format!(
                        "registered checkpoint {} with libvirt again: libvirt had lost the checkpoint's record, but the bitmaps still exist",
                        lost.name
                    ),
                )),
                Ok(false) => missing.push(lost.name.clone()),
                // The backup goes on: a full backup does not need the checkpoint.
                Err(error) => {
                    missing.push(lost.name.clone());
                    findings.push(Finding::new(
                        "checkpoint-not-known-again",
                        format!(
                            "checkpoint {}, which libvirt has lost, cannot be registered again: {}",
                            lost.name,
                            with_sources(&error)
                        ),
                    ));
                }
            },
            of_host => ended.extend(carry_out_at_host(of_host, domain, context)?),
        }
    }
    for finding in &findings {
        let domain = &domain.name;
        context.monitor.event(Event::Found { domain, finding });
    }
    Ok(findings)
}

fn healed(leftover: &Leftover, ended: &[String]) -> Finding {
    let dir = &leftover.location;
    let what = match ended {
        [] => format!("removed {dir}, left by a run that did not finish"),
        done => format!(
            "removed {dir}, left by a run that did not finish; also {}",
            done.join(", and ")
        ),
    };
    Finding::new("healed-partial", what)
}

/// Carries out a repair at the hypervisor. Describes what was done, if that is worth reporting.
fn carry_out_at_host(repair: &Repair, domain: &Domain, context: &Context) -> Result<Option<String>> {
    let host = context.host;
    let (done, report) = match repair {
        Repair::AbortJob => (
            host.abort_job(domain),
            Some("ended the backup job of that run".to_owned()),
        ),
        Repair::Thaw => (host.thaw(domain), None),
        Repair::ClearPlaces(places) => (host.clear_places(places), None),
        Repair::DeleteCheckpoint(name) => (
            host.delete_checkpoint(domain, name),
            Some(format!("removed that run's checkpoint {name}")),
        ),
        Repair::DeleteBitmaps(name) => match remove_orphaned_bitmaps(host, domain, name) {
            // The bitmaps of a shut-off domain on another machine cannot be seen. That does not
            // stop the backup.
            Err(HostError::NotHere { .. }) => (Ok(()), None),
            done => (done, None),
        },
        // These concern the repository: `carry_out` handles them, and a failed run handles them
        // itself.
        Repair::FinishRemoval(_) | Repair::RemovePartial(_) | Repair::Register(_) => (Ok(()), None),
    };
    done.map(|()| report)
        .map_err(|error| Error::of(&domain.name, error))
}

/// Undoes what a failed run began, by its journal entry.
pub(super) fn undo(domain: &Domain, entry: &JournalEntry, context: &Context) -> Result<()> {
    let failed = |error: HostError| Error::of(&domain.name, error);
    let job = context.host.active_job(domain).map_err(failed)?;
    let checkpoints = context.host.checkpoints(domain).map_err(failed)?;
    reconcile::ending(entry, &domain.uuid, job.as_ref(), &checkpoints)
        .iter()
        .try_for_each(|repair| carry_out_at_host(repair, domain, context).map(drop))
}

/// Removes the bitmaps named `name` from all disks, unless a checkpoint owns them. Missing bitmaps
/// are not an error.
pub(super) fn remove_orphaned_bitmaps(
    host: &dyn Host,
    domain: &Domain,
    name: &str,
) -> std::result::Result<(), HostError> {
    let checkpoints = host.checkpoints(domain)?;
    if checkpoints.iter().any(|owner| owner.name == name) {
        return Ok(());
    }
    host.remove_bitmaps(domain, name).map(drop)
}
