//! Carries out repairs: ends what an unfinished run left, its job, its checkpoint, its sockets and scratch files, its partial folder.
//!
//! A run notes down what it is about to begin before it begins it. Whoever holds the domain's lock knows that the run which wrote the
//! note is dead.

use super::journal::JournalEntry;
use super::monitor::Event;
use super::reconcile::{self, Repair};
use super::survey::{self, Survey};
use super::{Cause, Context, Error, Result};
use crate::host::{Host, HostError};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::text::with_sources;
use crate::repo::{DomainRepository, DomainWriter, History, Leftover};

/// How often a domain is looked at and repaired. One round does, unless something comes up meanwhile; a repair that changes nothing must not
/// be tried for ever.
const ROUNDS: usize = 5;

/// A domain with nothing left to repair.
pub struct HealedDomain {
    /// How it stands now.
    pub survey: Survey,
    /// What the repository holds of it.
    pub history: History,
    /// What was repaired.
    pub findings: Vec<Finding>,
}

/// Looks at the domain and repairs what has to be repaired, until nothing is left.
///
/// `repairs` decides what has to be repaired.
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
        let repairs = repairs(&survey, &history);
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
            &mut missing,
        )?);
        // What was looked for in vain is not looked for again; there may be an older one.
        rounds += usize::from(missing.len() == known_missing);
        unfinished = repairs;
    }
    let unfinished: Vec<String> = unfinished.iter().map(Repair::to_string).collect();
    let what = format!(
        "what a run that did not finish had left ({})",
        unfinished.join("; ")
    );
    Err(Error::of(name, Cause::StillThere(what)))
}

/// Carries the repairs out, in their order. Each run that was ended is a finding, with what there was to end. The names of lost checkpoints whose
/// bitmaps are gone as well are added to `missing`.
fn carry_out(
    repairs: &[Repair],
    domain: &Domain,
    locked: &dyn DomainWriter,
    context: &Context,
    missing: &mut Vec<String>,
) -> Result<Vec<Finding>> {
    let failed = |error| Error::of(&domain.name, error);
    let mut findings = Vec::new();
    let mut ended = Vec::new();
    for repair in repairs {
        match repair {
            Repair::FinishRemoval(removal) => {
                locked.finish_removal(removal).map_err(failed)?;
                let what = format!(
                    "removed what an interrupted removal had left of {}",
                    removal.location
                );
                findings.push(Finding::new("removal-finished", what));
            }
            Repair::RemovePartial(leftover) => {
                locked.remove_leftover(leftover).map_err(failed)?;
                findings.push(healed(leftover, &std::mem::take(&mut ended)));
            }
            Repair::Register(lost) => match context.host.register_checkpoint(domain, lost) {
                Ok(true) => findings.push(Finding::new(
                    "checkpoint-known-again",
                    format!(
                        "libvirt had lost checkpoint {}, whose bitmaps are there: it knows it again",
                        lost.name
                    ),
                )),
                Ok(false) => missing.push(lost.name.clone()),
                // A full backup does not need it.
                Err(error) => {
                    missing.push(lost.name.clone());
                    findings.push(Finding::new(
                        "checkpoint-not-known-again",
                        format!(
                            "checkpoint {}, which libvirt has lost: {}",
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
        [.., _] => format!(
            "removed {dir}, left by a run that did not finish, and ended {}",
            ended.join(" and ")
        ),
    };
    Finding::new("healed-partial", what)
}

/// Carries out what concerns the hypervisor, and tells what was ended, if that is worth telling.
fn carry_out_at_host(repair: &Repair, domain: &Domain, context: &Context) -> Result<Option<String>> {
    let host = context.host;
    let (done, told) = match repair {
        Repair::AbortJob => (host.abort_job(domain), Some("its backup job".to_owned())),
        Repair::Thaw => (host.thaw(domain), None),
        Repair::ClearPlaces(places) => (host.clear_places(places), None),
        Repair::DeleteCheckpoint(name) => (
            host.delete_checkpoint(domain, name),
            Some(format!("its checkpoint {name}")),
        ),
        Repair::DeleteBitmaps(name) => match remove_orphaned_bitmaps(host, domain, name) {
            // Bitmaps of a shut-off domain elsewhere: that is no reason not to go on, and whether there are any nobody knows.
            Err(HostError::NotHere { .. }) => (Ok(()), None),
            done => (done, None),
        },
        // Those of the repository; a failed run sees to them itself.
        Repair::FinishRemoval(_) | Repair::RemovePartial(_) | Repair::Register(_) => (Ok(()), None),
    };
    done.map(|()| told)
        .map_err(|error| Error::of(&domain.name, error))
}

/// Ends what this run noted down, when it fails.
pub(super) fn undo(domain: &Domain, entry: &JournalEntry, context: &Context) -> Result<()> {
    let failed = |error: HostError| Error::of(&domain.name, error);
    let job = context.host.active_job(domain).map_err(failed)?;
    let checkpoints = context.host.checkpoints(domain).map_err(failed)?;
    reconcile::ending(entry, &domain.uuid, job.as_ref(), &checkpoints)
        .iter()
        .try_for_each(|repair| carry_out_at_host(repair, domain, context).map(drop))
}
/// Removes the bitmaps of that name from all disks, unless a checkpoint owns them. None there is no error.
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
