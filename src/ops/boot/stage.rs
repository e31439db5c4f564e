//! The files of a trial domain: they are made before it starts, and removed when it has ended.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use super::leftovers::{self, io_cause};
use super::record::MadeFile;
use super::{BootPlan, Means, Overlay, Record, Records};
use crate::image::qcow2::{Qcow2Options, Qcow2Writer};
use crate::io::Claim;
use crate::model::block::{BlockError, BlockSink};
use crate::model::finding::Finding;
use crate::model::stop::Stop;
use crate::ops::monitor::Event;
use crate::ops::restore::NewState;
use crate::ops::serve::DiskServer;
use crate::ops::{Cause, Error, Result};

/// The files of a trial domain. Dropping this value ends the domain and removes them, unless they
/// stay.
pub(super) struct Stage<'a> {
    means: Means<'a>,
    record: Record,
    /// The files that were made.
    made: Vec<MadeFile>,
    /// Whether the domain and its disks stay.
    stays: bool,
    /// Dropped last: until then nobody takes the record for that of a dead process.
    _claim: Claim,
}

impl<'a> Stage<'a> {
    /// Records what will be made, and makes the folder for it.
    pub(super) fn begin(domain: &str, plan: &BootPlan, means: &Means<'a>) -> Result<Stage<'a>> {
        let failed = |cause: Cause| Error::of(domain, cause);
        let mut record = Record::new(domain, &plan.name, &plan.uuid, means.host.uri(), &plan.folder);
        record.files = plan.disks.iter().map(|disk| disk.path.clone()).collect();
        let nvram = plan.define.nvram.as_ref();
        record.files.extend(nvram.map(|nvram| nvram.path.clone()));
        record.new_dir = plan
            .keep
            .as_ref()
            .filter(|(_, is_new)| *is_new)
            .map(|(dir, _)| dir.clone());
        record.tpm = plan.define.tpm.as_ref().map(|tpm| tpm.path.clone());
        let records = Records {
            store: means.store,
            state: means.state,
        };
        let claim = records.write(&record).map_err(failed)?;
        let stage = Stage {
            means: *means,
            record,
            made: Vec::new(),
            stays: false,
            _claim: claim,
        };
        let made = means.store.create_passage(&plan.folder);
        made.map_err(|source| failed(io_cause("create the folder", &plan.folder, source)))?;
        if let Some(dir) = &stage.record.new_dir {
            let made = means.store.create_open_dir(dir);
            made.map_err(|source| failed(io_cause("create the folder", dir, source)))?;
        }
        Ok(stage)
    }

    /// Makes the overlays and the small files.
    pub(super) fn fill(
        &mut self,
        domain: &str,
        plan: &BootPlan,
        server: &DiskServer,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let store = self.means.store;
        let owner = self.means.host.trials().owner();
        let owner = owner.map_err(|error| Error::of(domain, error))?;
        if let Some(tpm) = &plan.define.tpm {
            let state = NewState::write(store, tpm, findings);
            let mut state = state.map_err(|cause| Error::of(domain, cause))?;
            state.place().map_err(|cause| Error::of(domain, cause))?;
            // From here on the record is what removes it.
            state.keep();
            let files = match tpm.path.is_dir() {
                true => tpm.files.iter().map(|file| tpm.path.join(&file.name)).collect(),
                false => vec![tpm.path.clone()],
            };
            self.made
                .extend(files.iter().filter_map(|file| MadeFile::at(file)));
        }
        let places: Vec<(PathBuf, PathBuf)> = self
            .record
            .temporary()
            .map(|(path, temporary)| (path.to_owned(), temporary))
            .collect();
        for (overlay, (place, path)) in plan.disks.iter().zip(&places) {
            let mut served = server.served().disks.iter();
            let disk = served.find(|disk| disk.target == overlay.target);
            let uri = disk.map(|disk| disk.uri.clone());
            let made = self.overlay(overlay, path, uri, owner);
            made.map_err(|cause| Error::of_disk(domain, &overlay.target, cause))?;
            self.made.extend(MadeFile::to_be(place, path));
        }
        // The record lists the UEFI variables after the disks.
        if let Some((_, content)) = plan.define.nvram_content()
            && let Some((place, path)) = places.get(plan.disks.len())
        {
            let written = store.create_file(path, content);
            let written = written.and_then(|()| give(path, owner));
            written.map_err(|source| Error::of(domain, io_cause("write", place, source)))?;
            self.made.extend(MadeFile::to_be(place, path));
        }
        let identified = self.records().identify(&self.record.uuid, &self.made);
        identified.map_err(|cause| Error::of(domain, cause))?;
        for (place, temporary) in places.iter().filter(|(_, temporary)| temporary.exists()) {
            let placed = store.rename(temporary, place);
            placed.map_err(|source| {
                let cause = match source.kind() {
                    io::ErrorKind::AlreadyExists => Cause::Exists(place.clone()),
                    _ => io_cause("create", place, source),
                };
                Error::of(domain, cause)
            })?;
        }
        let folders: BTreeSet<&Path> = places.iter().filter_map(|(place, _)| place.parent()).collect();
        for folder in folders {
            let synced = store.sync_dir(folder);
            synced.map_err(|source| Error::of(domain, io_cause("sync", folder, source)))?;
        }
        Ok(())
    }

    fn overlay(
        &self,
        overlay: &Overlay,
        path: &Path,
        backing: Option<String>,
        owner: Option<(u32, u32)>,
    ) -> std::result::Result<(), Cause> {
        let file = self.means.store.create_image(path);
        let file = file.map_err(|source| io_cause("create", &overlay.path, source))?;
        let options = Qcow2Options {
            path: overlay.path.clone(),
            size: overlay.size,
            backing,
            detect_zeroes: false,
            stop: Stop::default(),
        };
        let writer = Qcow2Writer::new(file, options).map_err(BlockError::from)?;
        writer.over_raw().finish()?;
        give(path, owner).map_err(|source| io_cause("give QEMU access to", &overlay.path, source))
    }

    /// Records that the domain and its files stay, whatever happens from here on.
    pub(super) fn stay(&mut self, xml: &str) -> std::result::Result<(), Cause> {
        self.records().stay(&self.record.uuid, xml)?;
        self.stays = true;
        Ok(())
    }

    /// Makes the domain persistent, also if its guest has just ended.
    pub(super) fn keep(&self, xml: &str) -> std::result::Result<(), Cause> {
        leftovers::keep(self.means.host, &self.record, xml)
    }

    /// Leaves everything as it is to the next run.
    pub(super) fn leave(mut self) {
        self.record.folder = PathBuf::new();
    }

    /// Removes what does not stay, after the server has ended.
    pub(super) fn end(mut self) -> Vec<Finding> {
        self.remove()
    }

    fn records(&self) -> Records<'a> {
        Records {
            store: self.means.store,
            state: self.means.state,
        }
    }

    fn remove(&mut self) -> Vec<Finding> {
        let removed = match self.stays {
            true => leftovers::remove_folder(self.means.store, &self.record),
            false => {
                leftovers::remove_all(self.means.host, self.means.store, &self.record, &self.made).map(drop)
            }
        };
        let removed = removed.and_then(|()| self.records().remove(&self.record.uuid));
        // The drop has nothing left to do; what stayed is left to the next run.
        self.record.folder = PathBuf::new();
        let found = removed
            .err()
            .map(|cause| leftovers::not_removed(&self.record, &cause));
        found.into_iter().collect()
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if self.record.folder.as_os_str().is_empty() {
            return;
        }
        for finding in self.remove() {
            self.means.monitor.event(Event::Found {
                domain: &self.record.domain,
                finding: &finding,
            });
        }
    }
}

pub(super) fn give(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match owner {
        Some((user, group)) => chown(path, Some(user), Some(group)),
        None => Ok(()),
    }
}
