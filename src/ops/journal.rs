//! The journal entry of a run, which records what the run is about to begin outside the repository.

use serde::{Deserialize, Serialize};

use crate::host::Places;

/// A record that a run writes before it starts a job in libvirt. If the run dies, a later run uses
/// it to abort the job that is still active.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalEntry {
    /// The domain's UUID.
    pub uuid: String,
    /// The run's mark, which is also the description of its checkpoint.
    pub mark: String,
    /// The name of the checkpoint that the run is about to make, if it makes one.
    pub checkpoint: Option<String>,
    /// The paths of its socket and scratch files.
    pub places: Places,
    /// Whether the guest's file systems may have been frozen.
    #[serde(default)]
    pub freezes: bool,
}
