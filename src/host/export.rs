//! Opens NBD exports as [`BlockSource`]s and [`BlockSink`]s; no other module of this folder does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{HostError, ReadOptions, Refusal, Result};
use crate::model::block::{BlockSink, BlockSource};
use crate::model::clusters::DiskMap;
use crate::model::stop::{Stop, WaitLimit};
use crate::nbd::{self, Client, ExportSink, ExportSource, Mode, SourceOptions};

/// The export of a disk of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export<'a> {
    /// The unix socket.
    pub socket: &'a Path,
    /// The disk's target, which is also the export's name.
    pub name: &'a str,
    /// The bitmap that marks the changes; `None` if the disk was requested in full.
    pub bitmap: Option<String>,
}

impl Export<'_> {
    /// Returns the disk's size in bytes.
    pub fn size(&self, deadline: Duration, stop: &Stop) -> Result<u64> {
        let limit = WaitLimit {
            deadline,
            stop: stop.clone(),
        };
        let client = Client::connect_unix(self.socket, self.name, &[], &limit);
        Ok(client.map_err(|error| self.error(error))?.size())
    }

    /// Returns the disk's map of data and changes, without reading the disk.
    pub fn map(&self, deadline: Duration, stop: &Stop) -> Result<DiskMap> {
        let limit = WaitLimit {
            deadline,
            stop: stop.clone(),
        };
        let context = self.bitmap_context();
        let map = nbd::disk_map(self.socket, self.name, context.as_deref(), &limit);
        map.map_err(|error| self.error(error))
    }

    fn bitmap_context(&self) -> Option<String> {
        let bitmap = self.bitmap.as_ref()?;
        Some(format!("qemu:dirty-bitmap:{bitmap}"))
    }

    /// Opens the disk for reading.
    pub fn open(&self, options: &ReadOptions) -> Result<Box<dyn BlockSource>> {
        let mode = match (&options.only, self.bitmap_context(), options.changes_only) {
            (Some(clusters), ..) => Mode::Only(Arc::clone(clusters)),
            (None, _, false) => Mode::Full,
            (None, Some(bitmap_context), true) => Mode::Changes { bitmap_context },
            (None, None, true) => {
                return Err(Refusal::RequestedInFull {
                    disk: self.name.to_owned(),
                }
                .into());
            }
        };
        let source = SourceOptions {
            all_from: options.all_from,
            beneath: options.beneath.clone(),
            ..SourceOptions::new(mode, options.pool.clone(), options.deadline, options.stop.clone())
        };
        let opened = ExportSource::open(self.socket, self.name, source);
        Ok(Box::new(opened.map_err(|error| self.error(error))?))
    }

    /// Opens the disk for writing.
    pub fn sink(&self, deadline: Duration, stop: &Stop) -> Result<Box<dyn BlockSink>> {
        let limit = WaitLimit {
            deadline,
            stop: stop.clone(),
        };
        let opened = ExportSink::open(self.socket, self.name, &limit);
        Ok(Box::new(opened.map_err(|error| self.error(error))?))
    }

    fn error(&self, source: nbd::Error) -> HostError {
        match source {
            nbd::Error::Stopped => HostError::Stopped,
            source => HostError::Export {
                disk: self.name.to_owned(),
                source,
            },
        }
    }
}
