//! The program on domains with external snapshots that libvirt takes and commits back.

use crate::cli_lab::{Change, Machine, Repo, text_of};
use crate::daemon::Daemon;

const MIB: usize = 1 << 20;

/// Makes some changes and a backup with this level, which must give back the disks.
fn back_up(machine: &mut Machine, repo: &Repo, byte: u8, level: &str) {
    for disk in 0..machine.disks.len() {
        machine.change(disk, usize::from(byte) * 65536, 70 * 1024, Change::Data(byte));
        machine.change(disk, usize::from(byte) * 32768, 512, Change::Zero);
    }
    let outcome = repo.back_up(machine.name(), &[]);
    assert_eq!(outcome["restorePoint"]["level"], level, "{outcome:#}");
    let id = text_of(&outcome["restorePoint"]["id"]).to_owned();
    machine.assert_restored(&repo.restore(machine.name(), &id, "raw"), &machine.disks);
}

#[test]
fn a_chain_goes_on_over_a_snapshot_that_is_committed_back() {
    let daemon = Daemon::acquire();
    for has_checkpoints in [true, false] {
        let mut machine = Machine::paused(&daemon, "snapshot", &[4 * MIB, MIB + 512]);
        let repo = Repo::new();
        machine.fill(0, 1);
        machine.fill(1, 2);
        if has_checkpoints {
            back_up(&mut machine, &repo, 3, "full");
            back_up(&mut machine, &repo, 4, "incremental");
        }
        let snapshot = [
            "snapshot-create-as",
            "layer",
            "--disk-only",
            "--no-metadata",
            "--atomic",
        ];
        machine.domain.virsh(&snapshot);
        let first = if has_checkpoints { "incremental" } else { "full" };
        back_up(&mut machine, &repo, 5, first);
        back_up(&mut machine, &repo, 6, "incremental");
        for disk in ["vda", "vdb"] {
            machine
                .domain
                .virsh(&["blockcommit", disk, "--active", "--pivot", "--wait"]);
        }
        // The overlays are gone, so points saved only from them cannot be parents. The points
        // before them can.
        back_up(&mut machine, &repo, 7, first);
        back_up(&mut machine, &repo, 8, "incremental");
        machine.domain.destroy();
        back_up(&mut machine, &repo, 9, "incremental");
    }
}
