//! A monitor that records findings.

use std::sync::{Mutex, PoisonError};

use crate::model::finding::Finding;
use crate::ops::{Event, Monitor};

/// Records the reported findings, in order.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Finding>>);

impl Recorder {
    /// The findings so far.
    pub fn findings(&self) -> Vec<Finding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Monitor for Recorder {
    fn event(&self, event: Event<'_>) {
        if let Event::Found { finding, .. } = event {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(finding.clone());
        }
    }
}
