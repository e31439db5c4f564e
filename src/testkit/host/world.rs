//! Creates and changes domains and their disks for a test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::SimHost;
use super::domain::SimDomain;
use crate::model::domain::{Agent, Disk, DiskFormat, Domain, DomainState, Source};
use crate::model::firmware::{Tpm, TpmPlace};
use crate::model::guest::GuestFacts;
use crate::model::restore_point::FileId;
use crate::model::tpm_state::TpmState;
use crate::testkit::disk::MemDisk;

impl SimHost {
    /// Gives a domain UEFI variables.
    pub fn set_nvram(&self, name: &str, bytes: &[u8]) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.nvram = Some(bytes.to_owned());
        }
    }

    /// Gives a domain an emulated TPM, also in its definition.
    pub fn add_tpm(&self, name: &str, tpm: Tpm) {
        self.change(name, |domain| {
            let source = match &tpm.place {
                TpmPlace::Usual => String::new(),
                TpmPlace::Folder(path) => format!("<source type='dir' path='{}'/>", path.display()),
                TpmPlace::File(path) => format!("<source type='file' path='{}'/>", path.display()),
            };
            let secret = tpm.secret.as_ref();
            let encryption = secret.map(|secret| format!("<encryption secret='{secret}'/>"));
            let xml = format!(
                "<tpm model='tpm-crb'><backend type='emulator' version='{}'>{source}{}</backend></tpm></devices>",
                tpm.version,
                encryption.unwrap_or_default()
            );
            domain.inactive_xml = domain.inactive_xml.replacen("</devices>", &xml, 1);
            domain.tpm = Some(tpm);
        });
    }

    /// Connects the guest agent of a domain, which reports this; `None` for an agent that does not
    /// answer.
    pub fn set_guest(&self, name: &str, facts: Option<GuestFacts>) {
        self.change(name, |domain| domain.agent = Agent::Connected);
        let guests = &mut self.state().guests;
        match facts {
            Some(facts) => drop(guests.insert(name.to_owned(), facts)),
            None => drop(guests.remove(name)),
        }
    }

    /// Sets the state of a domain's TPM, or the reason why it cannot be read.
    pub fn set_tpm_state(&self, name: &str, state: std::result::Result<Option<TpmState>, &str>) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.tpm = state.map_err(str::to_owned);
        }
    }

    /// Sets the folder with the states of TPMs.
    pub fn set_tpm_folder(&self, folder: &Path) {
        self.state().tpm_folder = Some(folder.to_owned());
    }

    /// Adds a running domain with disks of these targets and sizes in bytes.
    pub fn add_domain(&self, name: &str, disks: &[(&str, usize)]) {
        let mut state = self.state();
        let uuid = format!("00000000-0000-4000-8000-{:012}", state.domains.len() + 1);
        let domain = Domain {
            name: name.to_owned(),
            uuid,
            state: DomainState::Running,
            persistent: true,
            id: Some(1),
            disks: disks.iter().map(|(target, _)| sim_disk(target)).collect(),
            nvram: None,
            excluded: Vec::new(),
            tpm: None,
            agent: Agent::None,
            inactive_xml: String::new(),
        };
        let domain = Domain {
            inactive_xml: sim_xml(&domain),
            ..domain
        };
        let disks = disks
            .iter()
            .map(|(target, size)| ((*target).to_owned(), MemDisk::new(*size)));
        let domain = SimDomain {
            domain,
            nvram: None,
            tpm: Ok(None),
            disks: disks.collect(),
            checkpoints: Vec::new(),
            stored: BTreeMap::new(),
            job: None,
            is_rewritten: false,
        };
        state.domains.insert(name.to_owned(), domain);
    }

    /// Removes a domain with its disks and its job, as if it was undefined or migrated to another
    /// machine.
    pub fn remove_domain(&self, name: &str) {
        self.state().domains.remove(name);
    }

    /// Renames a domain, which keeps its UUID, disks and checkpoints.
    pub fn rename_domain(&self, name: &str, new: &str) {
        let mut state = self.state();
        if let Some(mut found) = state.domains.remove(name) {
            found.domain.name = new.to_owned();
            state.domains.insert(new.to_owned(), found);
        }
    }

    /// Changes a domain: its state, its drives, its UUID. Shutting it off stores its bitmaps in its
    /// images.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Domain)) {
        if let Some(found) = self.state().domains.get_mut(name) {
            change(&mut found.domain);
            if !found.domain.state.is_active() {
                let names = |(target, disk): (&String, &MemDisk)| (target.clone(), disk.bitmap_names());
                found.stored = found.disks.iter().map(names).collect();
            }
        }
    }

    /// Adds a disk to a domain, as hot-plugging does.
    pub fn attach(&self, name: &str, target: &str, size: usize) {
        if let Some(found) = self.state().domains.get_mut(name) {
            found.domain.disks.push(sim_disk(target));
            found.disks.insert(target.to_owned(), MemDisk::new(size));
        }
    }

    /// Works on a disk as its guest does.
    ///
    /// # Panics
    /// If there is no such disk: a bug in the test.
    pub fn disk<T>(&self, name: &str, target: &str, work: impl FnOnce(&mut MemDisk) -> T) -> T {
        let mut state = self.state();
        let disk = state
            .domains
            .get_mut(name)
            .and_then(|found| found.disks.get_mut(target));
        work(disk.expect("the test has made this disk"))
    }

    /// Takes an internal snapshot of a domain.
    pub fn take_snapshot(&self, domain: &str, name: &str) {
        let mut state = self.state();
        let taken = state.snapshots.entry(domain.to_owned()).or_default();
        taken.push(name.to_owned());
    }

    /// Sets the identity of the image file of every disk with this target; without it the identity
    /// is unknown.
    pub fn set_file(&self, target: &str, file: FileId) {
        self.state().files.insert(sim_path(target), file);
    }

    /// Whether a domain has an active job.
    pub fn has_job(&self, name: &str) -> bool {
        self.state()
            .domains
            .get(name)
            .is_some_and(|found| found.job.is_some())
    }
}

fn sim_path(target: &str) -> PathBuf {
    format!("/images/{target}.qcow2").into()
}

/// The definition of a domain, as far as a restore reads it. It always names a file for UEFI
/// variables, even if the domain has none.
fn sim_xml(domain: &Domain) -> String {
    let disk = |disk: &Disk| {
        format!(
            "    <disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2'/>\n      \
             <source file='/images/{target}.qcow2'/>\n      <target dev='{target}' bus='virtio'/>\n    </disk>\n",
            target = disk.target
        )
    };
    let disks: String = domain.disks.iter().map(disk).collect();
    format!(
        "<domain type='kvm'>\n  <name>{}</name>\n  <uuid>{}</uuid>\n  <os>\n    <nvram>/nvram/VARS.fd</nvram>\n  </os>\n  \
         <devices>\n{disks}  </devices>\n</domain>\n",
        domain.name, domain.uuid
    )
}

fn sim_disk(target: &str) -> Disk {
    Disk::new(target, Source::File(sim_path(target)), DiskFormat::Qcow2)
}
