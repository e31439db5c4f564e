//! Images of real domains that are put back: an older copy with its bitmaps, and a restored image.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, text_of};
use crate::daemon::Daemon;

const MIB: usize = 1 << 20;

/// Three restore points of two disks with writes in between. A file holds the image of `vda` after
/// the second one, with its bitmaps.
struct Past {
    machine: Machine,
    repo: Repo,
    ids: Vec<String>,
    /// The content of the disks at each restore point.
    moments: Vec<Vec<Vec<u8>>>,
    old: std::path::PathBuf,
}

impl Past {
    fn new(daemon: &Daemon, label: &str) -> Past {
        let mut machine = Machine::define(daemon, label, &[4 * MIB, 2 * MIB]);
        machine.fill(0, 1);
        machine.fill(1, 2);
        let old = machine.domain.path("older.qcow2");
        let mut past = Past {
            machine,
            repo: Repo::new(),
            ids: Vec::new(),
            moments: Vec::new(),
            old,
        };
        for round in 1..=3u8 {
            past.write(0x10 + round);
            past.back_up();
            if round == 2 {
                fs::copy(past.machine.image(0), &past.old).expect("it is copied");
            }
        }
        // Data that neither a restore point nor the older image has.
        past.write(0x20);
        past
    }

    fn write(&mut self, byte: u8) {
        for disk in 0..2 {
            let offset = usize::from(byte % 16) * 65536;
            self.machine.change(disk, offset, 512, Change::Data(byte));
        }
    }

    /// Backs up both disks and checks that all restore points give back their disks.
    fn back_up(&mut self) -> Value {
        let outcome = self.repo.back_up(self.machine.name(), &[]);
        let point = outcome["restorePoint"].clone();
        self.ids.push(text_of(&point["id"]).to_owned());
        self.moments.push(self.machine.disks.clone());
        point
    }

    fn prove(&self) {
        for (id, moment) in self.ids.iter().zip(&self.moments) {
            let restored = self.repo.restore(self.machine.name(), id, "raw");
            self.machine.assert_restored(&restored, moment);
        }
    }

    /// The backups after the image of `vda` was replaced. `check` examines `vda` in the first one,
    /// where `vdb` stays incremental; in the next one both are incremental.
    fn goes_on(mut self, is_active: bool, check: impl FnOnce(&Past, &Value)) {
        self.machine.learn(0);
        if is_active {
            self.machine.domain.start_paused();
        }
        self.write(0x31);
        let newest = self.ids[2].clone();
        let point = self.back_up();
        let [vda, vdb] = &point["disks"].as_array().expect("disks")[..] else {
            panic!("{point:#}");
        };
        check(&self, vda);
        assert_eq!(
            (&vdb["level"], &vdb["parent"]),
            (&"incremental".into(), &newest.into()),
            "{vdb:#}"
        );
        self.write(0x42);
        let next = self.back_up();
        for disk in next["disks"].as_array().expect("disks") {
            assert_eq!(
                (&disk["level"], &disk["parent"]),
                (&"incremental".into(), &point["id"]),
                "{disk:#}"
            );
        }
        self.prove();
        if is_active {
            self.machine.domain.destroy();
        }
    }
}

/// Whether the domain is started before the next backup.
const STATES: [bool; 2] = [false, true];

/// The file stays the same, and its bitmaps came back with its content.
#[test]
fn older_image_copied_back_continues_from_its_own_point() {
    let daemon = Daemon::acquire();
    for is_active in STATES {
        let past = Past::new(&daemon, "copied-back");
        fs::copy(&past.old, past.machine.image(0)).expect("it is copied");
        past.goes_on(is_active, |past, vda| {
            assert_eq!(vda["level"], "incremental", "{vda:#}");
            assert_eq!(vda["parent"], past.ids[1].as_str(), "{vda:#}");
        });
    }
}

/// Replaces the image by this file.
fn replace(from: &Path, image: &Path) {
    fs::rename(from, image).expect("it is moved");
}

#[test]
fn an_older_image_as_a_new_file_gets_a_full_with_the_reason() {
    let daemon = Daemon::acquire();
    for is_active in STATES {
        let past = Past::new(&daemon, "moved-back");
        let image = past.machine.image(0);
        replace(&past.old, &image);
        past.goes_on(is_active, |_, vda| {
            assert_eq!(vda["level"], "full", "{vda:#}");
            let reason = text_of(&vda["reason"]);
            let expected = format!("{} is not the same file as when", image.display());
            assert!(reason.contains(&expected), "{reason}");
        });
    }
}

/// A restored image has no bitmaps, although libvirt still has the checkpoints.
#[test]
fn a_restored_image_as_a_new_file_gets_a_full_with_the_reason() {
    let daemon = Daemon::acquire();
    for is_active in STATES {
        for at in [0, 2] {
            let past = Past::new(&daemon, "restored-back");
            let restored = past.repo.restore(past.machine.name(), &past.ids[at], "qcow2");
            let image = past.machine.image(0);
            fs::remove_file(&image).expect("it was lost");
            fs::copy(restored.join("vda.qcow2"), &image).expect("it is copied");
            let moment = past.moments[at][0].clone();
            past.goes_on(is_active, |past, vda| {
                assert_eq!(
                    past.moments[3][0][3 * 65536..],
                    moment[3 * 65536..],
                    "as it was restored"
                );
                assert_eq!(vda["level"], "full", "{vda:#}");
                let reason = text_of(&vda["reason"]);
                assert!(
                    reason.contains("is gone") || reason.contains("is not the same file as when"),
                    "{reason}"
                );
            });
        }
    }
}
