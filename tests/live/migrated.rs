//! A domain that migrates between two hosts, each with its own libvirtd, with backups from both
//! into one repository.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::cli_lab::{codes, json, text_of};
use crate::cli_remote::Elsewhere;
use crate::owner;
use crate::process::{command, run};

const NAME: &str = "on the move";
const SIZE: usize = 8 << 20;
const DEVICE: &str = "/machine/peripheral/virtio-disk0/virtio-backend";

/// Two hosts, a folder that both see, and a domain on one of them. All are removed when dropped.
struct Moving {
    hosts: [Elsewhere; 2],
    /// The index of the host that has the domain.
    at: usize,
    folder: tempfile::TempDir,
    /// The content of the disk.
    disk: Vec<u8>,
}

impl Moving {
    /// Starts a domain without a guest system on the first host.
    fn start() -> Moving {
        let folder = owner::folder_on_disk("migrated-");
        let moving = Moving {
            hosts: [Elsewhere::start("first"), Elsewhere::start("second")],
            at: 0,
            folder,
            disk: vec![0; SIZE],
        };
        let image = moving.path("vda.qcow2");
        let size = SIZE.to_string();
        run(command(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", &image, &size],
        ));
        let xml = format!(
            "<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
             <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='{image}'/>\
             <target dev='vda' bus='virtio'/></disk><memballoon model='none'/></devices></domain>"
        );
        fs::write(moving.path("domain.xml"), xml).expect("it is written");
        moving.host().virsh(&["define", &moving.path("domain.xml")]);
        moving.host().virsh(&["start", NAME]);
        moving
    }

    fn host(&self) -> &Elsewhere {
        &self.hosts[self.at]
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Writes to the disk as the guest would.
    fn write(&mut self, offset: usize, length: usize, byte: u8) {
        let words = format!("qemu-io -d {DEVICE} \"write -P {byte} {offset} {length}\"");
        let said = self
            .host()
            .virsh(&["qemu-monitor-command", NAME, "--hmp", &words]);
        assert_eq!(said.trim(), "", "{words}");
        self.disk[offset..offset + length].fill(byte);
    }

    /// Whether QEMU has bitmaps of the disk's image.
    fn has_bitmaps(&self) -> bool {
        let asked = r#"{"execute": "query-named-block-nodes"}"#;
        let said = self.host().virsh(&["qemu-monitor-command", NAME, asked]);
        let said: Value = serde_json::from_str(&said).expect("it is JSON");
        let nodes = said["return"].as_array().expect("a list of nodes");
        let bitmaps = nodes.iter().filter_map(|node| node["dirty-bitmaps"].as_array());
        bitmaps.flatten().next().is_some()
    }

    /// Migrates the domain to the other host, whose libvirt does not know the domain.
    fn migrate(&mut self) {
        let there = &self.hosts[1 - self.at];
        let socket = format!("unix://{}", self.path("migration"));
        // The hosts share a local folder, but libvirt does not know that it is shared.
        let how = ["--live", "--persistent", "--undefinesource", "--unsafe"];
        let words = [&["migrate", NAME, there.uri(), "--migrateuri", &socket], &how[..]].concat();
        self.host().virsh(&words);
        self.at = 1 - self.at;
    }

    /// Backs up the domain on its host. Checks the level and that every byte is restored. Returns
    /// the JSON about the domain.
    fn back_up(&self, level: &str) -> Value {
        let root = self.path("backups");
        let words = ["backup", NAME, "--output", &root, "--json"];
        let finished = self.host().run_there(env!("CARGO_BIN_EXE_vmsnap"), &words);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        let outcome = json(&finished)["domains"][0].clone();
        let point = &outcome["restorePoint"];
        assert_eq!(point["level"], level, "{outcome:#}");
        let id = text_of(&point["id"]);
        let to = self.path(id);
        let words = [
            "restore",
            NAME,
            "--repository",
            &root,
            "--at",
            id,
            "--format",
            "raw",
            "--to",
            &to,
        ];
        let restored = self.host().run_there(env!("CARGO_BIN_EXE_vmsnap"), &words);
        assert_eq!(restored.code, Some(0), "{restored:#?}");
        let found = fs::read(PathBuf::from(to).join("vda.raw")).expect("it was restored");
        assert!(found == self.disk, "{id} gives back the disk");
        outcome
    }
}

#[test]
fn a_domain_migrated_there_and_back_stays_incremental() {
    let mut moving = Moving::start();
    moving.write(0, SIZE / 2, 0x41);
    moving.back_up("full");
    for round in 1..4 {
        let at = round * (1 << 20);
        moving.write(at, 65536, 0x50 + round as u8);
        moving.migrate();
        moving.write(at + 65536, 512, 0x60 + round as u8);
        let outcome = moving.back_up("incremental");
        assert_eq!(codes(&outcome), ["checkpoint-known-again"]);
        moving.write(at + (1 << 19), 512, 0x70 + round as u8);
        assert_eq!(codes(&moving.back_up("incremental")), [""; 0]);
    }
}

/// After a migration while paused, QEMU 7.2 keeps the images inactive, without bitmaps, until the
/// domain resumes. QEMU 10.0 has the bitmaps at once.
#[test]
fn a_domain_migrated_while_paused_is_saved_with_the_reason() {
    let mut moving = Moving::start();
    moving.write(0, SIZE / 2, 0x41);
    moving.back_up("full");
    moving.write(1 << 20, 65536, 0x42);
    moving.host().virsh(&["suspend", NAME]);
    moving.migrate();
    if moving.has_bitmaps() {
        let outcome = moving.back_up("incremental");
        assert_eq!(codes(&outcome), ["checkpoint-known-again"]);
    } else {
        let outcome = moving.back_up("full");
        let reason = text_of(&outcome["restorePoint"]["disks"][0]["reason"]);
        assert!(reason.contains("is gone"), "{reason}");
    }
    moving.host().virsh(&["resume", NAME]);
    moving.write(5 << 20, 512, 0x43);
    moving.back_up("incremental");
}
