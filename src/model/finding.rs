//! Something worth telling that did not stop the work.

use serde::{Deserialize, Serialize};

/// Something worth telling that did not stop the work: told, counted, kept in the manifest and in the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What kind of thing was found: a stable, lower-case word with hyphens, for programs (`disk-skipped`).
    pub code: String,
    /// The target name of the disk it concerns, if it is one disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// One sentence for a person, without a full stop at its end.
    pub message: String,
}

impl Finding {
    /// A finding about the domain as a whole.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Finding {
            code: code.to_owned(),
            disk: None,
            message: message.into(),
        }
    }

    /// A finding about one disk.
    pub fn of_disk(code: &str, disk: &str, message: impl Into<String>) -> Self {
        Finding {
            disk: Some(disk.to_owned()),
            ..Finding::new(code, message)
        }
    }
}
