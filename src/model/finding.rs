//! Something worth reporting that did not stop the work.

use serde::{Deserialize, Serialize};

/// Something worth reporting that did not stop the work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The kind of finding: a stable, lower-case word with hyphens, for programs (`disk-skipped`).
    pub code: String,
    /// The target of the disk that it concerns, if it concerns one disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// One sentence for a person, without a full stop at its end.
    pub message: String,
}

impl Finding {
    /// A finding that does not concern one disk in particular.
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
