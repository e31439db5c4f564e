//! The journal entry of a run: what it is about to begin outside the repository.

use serde::{Deserialize, Serialize};

use crate::host::Places;

/// What a run writes down before it begins a job, so that a later run can end that job if this one dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JournalEntry {
    /// The domain's UUID.
    pub uuid: String,
    /// The run's mark, which is the description of its checkpoint.
    pub mark: String,
    /// The name of the checkpoint that the run is about to make, if it makes one.
    pub checkpoint: Option<String>,
    /// Where its socket and scratch files are.
    pub places: Places,
    /// Whether the guest's file systems may have been frozen.
    #[serde(default)]
    pub freezes: bool,
}
