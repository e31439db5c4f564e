//! The one place where an NBD export becomes a [`BlockSource`].

use std::path::Path;
use std::time::Duration;

use super::{HostError, ReadOptions, Result};
use crate::model::block::BlockSource;
use crate::model::stop::Stop;

/// Where a disk of a job can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export<'a> {
    /// The unix socket.
    pub socket: &'a Path,
    /// The disk's target, which is also the export's name.
    pub name: &'a str,
    /// The bitmap that tells the changes; `None` if the disk was requested in full.
    pub bitmap: Option<String>,
}

impl Export<'_> {
    /// The disk's size in bytes.
    pub fn size(&self, _deadline: Duration, _stop: &Stop) -> Result<u64> {
        Err(self.not_wired())
    }

    /// Opens the disk for reading.
    pub fn open(&self, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        if options.changes_only && self.bitmap.is_none() {
            return Err(HostError::Unsupported {
                what: format!(
                    "disk {} was requested in full: its changes are not known",
                    self.name
                ),
            });
        }
        Err(self.not_wired())
    }

    fn not_wired(&self) -> HostError {
        HostError::Unsupported {
            what: format!(
                "the export {} on {} cannot be read: no NBD client is built in",
                self.name,
                self.socket.display()
            ),
        }
    }
}
