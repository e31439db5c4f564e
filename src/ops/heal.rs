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
use crate::repo::history::Note;
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
    /// Whether the guest's file systems may have been frozen.
    #[serde(default)]
    pub freezes: bool,
}

impl Intent {
    /// Whether the domain was shut off: then nothing needs scratch space.
    fn is_offline(&self) -> bool {
        self.places.scratch.is_empty()
    }
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
        let note = leftover.intent();
        match note.map_err(|error| Error::of(&domain.name, error))? {
            Note::None => {}
            // The intent is on the disk before anything is begun: one that is not whole is of a run that began nothing.
            Note::Text(bytes) => {
                if let Ok(intent) = serde_json::from_slice::<Intent>(&bytes) {
                    undo(domain, &intent, context)?;
                }
            }
            Note::Unusable(what) => findings.push(Finding::new("note-unusable", what)),
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

/// Ends what a run noted down. The guest comes first, and whatever holds the images goes before what changes them.
pub(super) fn undo(domain: &Domain, intent: &Intent, context: &Context) -> Result<()> {
    let host = context.host;
    let failed = |error: HostError| Error::of(&domain.name, error);
    // A domain made anew under the same name has nothing of that run.
    let is_same = intent.uuid == domain.uuid;
    if is_same {
        if let Some(job) = host.active_job(domain).map_err(failed)?
            && job
                .socket
                .is_some_and(|socket| intent.places.sockets.contains(&socket))
        {
            host.abort_job(domain).map_err(failed)?;
        }
        if intent.freezes {
            host.thaw(domain).map_err(failed)?;
        }
    }
    host.clear_places(&intent.places).map_err(failed)?;
    match &intent.checkpoint {
        Some(name) if is_same => remove_own_checkpoint(domain, name, intent, context),
        _ => Ok(()),
    }
}

/// Removes the checkpoint of a dead run, known by its mark: the name alone could be another's by now.
fn remove_own_checkpoint(domain: &Domain, name: &str, intent: &Intent, context: &Context) -> Result<()> {
    let failed = |error: HostError| Error::of(&domain.name, error);
    let checkpoints = context.host.checkpoints(domain).map_err(failed)?;
    match checkpoints.iter().find(|checkpoint| checkpoint.name == name) {
        Some(checkpoint) if checkpoint.mark.as_deref() == Some(&intent.mark) => {
            context.host.delete_checkpoint(domain, name).map_err(failed)
        }
        Some(_) => Ok(()),
        // Only the checkpoint of a shut-off domain is made in two steps, bitmaps first.
        None if intent.is_offline() => context.host.delete_bitmap(domain, name).map_err(failed),
        None => Ok(()),
    }
}
