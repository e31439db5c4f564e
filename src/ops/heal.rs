//! Ends what an unfinished run left: its job, its checkpoint, its sockets and scratch files, its partial folder.
//!
//! A run notes down what it is about to begin before it begins it. Whoever holds the domain's lock knows that the run which wrote the
//! note is dead.

use serde::{Deserialize, Serialize};

use super::monitor::Event;
use super::{Context, Error, Result};
use crate::host::{HostError, Places};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::repo::{Leftover, LockedDomain};

/// What a run notes down before it begins a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// The domain's UUID.
    pub uuid: String,
    /// The run's mark, which its checkpoint carries in its description.
    pub mark: String,
    /// The checkpoint that it is about to make.
    pub checkpoint: Option<String>,
    /// Where its socket and scratch files are.
    pub places: Places,
}

/// Ends what unfinished runs left. Each thing that was done is a finding.
pub fn heal(
    domain: &Domain,
    locked: &LockedDomain,
    leftovers: &[Leftover],
    context: &Context,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for leftover in leftovers {
        let folder = leftover.dir.display();
        let intent = leftover
            .intent
            .as_deref()
            .and_then(|bytes| serde_json::from_slice::<Intent>(bytes).ok());
        if let Some(intent) = intent {
            undo(domain, &intent, context)?;
        }
        locked
            .remove_leftover(leftover)
            .map_err(|error| Error::of(&domain.name, error))?;
        findings.push(Finding::new(
            "healed-partial",
            format!("removed {folder}, left by a run that did not finish"),
        ));
    }
    for finding in &findings {
        let domain = &domain.name;
        context.monitor.event(Event::Found { domain, finding });
    }
    Ok(findings)
}

fn undo(domain: &Domain, intent: &Intent, context: &Context) -> Result<()> {
    let failed = |error: HostError| Error::of(&domain.name, error);
    // A domain made anew under the same name has nothing of that run.
    if intent.uuid == domain.uuid {
        if let Some(job) = context.host.active_job(domain).map_err(failed)?
            && job
                .socket
                .is_some_and(|socket| intent.places.sockets.contains(&socket))
        {
            context.host.abort_job(domain).map_err(failed)?;
        }
        if let Some(name) = &intent.checkpoint {
            remove_own_checkpoint(domain, name, &intent.mark, context)?;
        }
    }
    context.host.clear_places(&intent.places).map_err(failed)
}

/// Removes the checkpoint of a dead run, known by its mark: the name alone could be another's by now.
fn remove_own_checkpoint(domain: &Domain, name: &str, mark: &str, context: &Context) -> Result<()> {
    let failed = |error: HostError| Error::of(&domain.name, error);
    let checkpoints = context.host.checkpoints(domain).map_err(failed)?;
    match checkpoints.iter().find(|checkpoint| checkpoint.name == name) {
        Some(checkpoint) if checkpoint.mark.as_deref() == Some(mark) => {
            context.host.delete_checkpoint(domain, name).map_err(failed)
        }
        Some(_) => Ok(()),
        None => context.host.delete_bitmap(domain, name).map_err(failed),
    }
}
