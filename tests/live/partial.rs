//! Disks left out of backups of real domains: excluded with `virsh metadata`, or unsupported.

use std::fs::File;

use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, codes, json, outcome_of};
use crate::daemon::{Daemon, URI};
use crate::process::Finished;

const MIB: usize = 1 << 20;

const KEY: [&str; 5] = ["metadata", "--uri", "urn:vmsnap:domain:1", "--key", "vmsnap"];
const MARK: [&str; 2] = ["--set", "<backup><exclude disk=\"vdb\"/></backup>"];

/// A shut-off domain with a disk `vda` that can be saved and a shareable disk `vdb`.
fn machine(daemon: &Daemon, label: &str) -> Machine {
    let machine = Machine::define(daemon, label, &[2 * MIB]);
    let image = machine.domain.path("shared.img");
    let file = File::create(&image).expect("the folder is ours");
    file.set_len(MIB as u64).expect("it grows");
    let xml = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='{}'/>\
         <target dev='vdb' bus='virtio'/><shareable/></disk>",
        image.display()
    );
    let disk = machine.domain.path("disk.xml");
    std::fs::write(&disk, xml).expect("the folder is ours");
    let disk = disk.display().to_string();
    machine
        .domain
        .virsh(&["attach-device", "--file", &disk, "--config"]);
    machine
}

fn json_of(repo: &Repo, machine: &Machine) -> (Finished, Value) {
    let finished = repo.backup(&[machine.name()], &["--json"]);
    let outcome = outcome_of(&finished, machine.name());
    (finished, outcome)
}

#[test]
fn a_domain_with_a_shareable_disk_is_saved_in_part() {
    let daemon = Daemon::acquire();
    let mut machine = machine(&daemon, "partial");
    let repo = Repo::new();
    for round in 1..=3u8 {
        match round {
            1 => {}
            2 => machine.domain.start_paused(),
            _ => machine.domain.destroy(),
        }
        machine.change(0, MIB, MIB / 2, Change::Data(round));
        let (finished, outcome) = json_of(&repo, &machine);
        assert_eq!(finished.code, Some(9), "{finished:#?}");
        assert_eq!(json(&finished)["exitCode"], 9);
        assert_eq!(outcome["outcome"], "partial");
        assert_eq!(codes(&outcome), ["disk-skipped"]);
        assert_eq!(outcome["restorePoint"]["leftOut"][0]["disk"], "vdb");
        assert_eq!(finished.stderr.matches("vdb").count(), 1, "{finished:#?}");
    }
    let points = repo.list(machine.name());
    assert!(points.iter().all(|point| point["partial"] == true), "{points:#?}");
    assert_eq!(points[2]["level"], "incremental");
    let moment = machine.disks.clone();
    machine.assert_restored(&repo.restore(machine.name(), "latest", "raw"), &moment);
}

#[test]
fn a_mark_set_by_virsh_leaves_a_disk_out_in_every_state() {
    let daemon = Daemon::acquire();
    let machine = machine(&daemon, "marked");
    let repo = Repo::new();
    let marked = |flag: &str| {
        machine.domain.virsh(&[&KEY[..], &MARK, &[flag]].concat());
        let (finished, outcome) = json_of(&repo, &machine);
        assert_eq!(finished.code, Some(0), "{flag}: {finished:#?}");
        assert_eq!(outcome["outcome"], "ok");
        assert_eq!(codes(&outcome), ["disk-excluded"], "{flag}");
    };
    let unmarked = |flags: &[&str]| {
        machine.domain.virsh(&[&KEY[..3], &["--remove"], flags].concat());
        let (finished, outcome) = json_of(&repo, &machine);
        assert_eq!(
            (finished.code, codes(&outcome)),
            (Some(9), vec!["disk-skipped"]),
            "{finished:#?}"
        );
    };
    marked("--config");
    // The mark survives a new definition, such as one by a migration or a restore.
    let xml = machine
        .domain
        .virsh(&["dumpxml", "--inactive", "--security-info"]);
    assert!(xml.contains("urn:vmsnap:domain:1"), "{xml}");
    machine.domain.define(&xml);
    marked("--config");

    machine.domain.start_paused();
    let status = repo.run(&["status", machine.name(), "--connect", URI]);
    let line = "  Left out: vdb, the domain's metadata excludes it\n";
    assert!(status.stdout.contains(line), "{status:#?}");
    assert!(status.stdout.contains("  Overall status: OK\n"), "{status:#?}");
    unmarked(&["--config", "--live"]);
    // A mark of the running domain alone, then of its definition alone.
    marked("--live");
    unmarked(&["--live"]);
    marked("--config");
}

#[test]
fn uefi_variables_lost_while_running_are_reported() {
    let daemon = Daemon::acquire();
    let machine = Machine::define(&daemon, "nvram", &[MIB]);
    // No guest runs, so the firmware may have any content.
    let path = |name: &str| machine.domain.path(name);
    for name in ["code.fd", "template.fd"] {
        let file = File::create(path(name)).expect("the folder is ours");
        file.set_len(MIB as u64).expect("it grows");
    }
    let variables = path("VARS.fd");
    let xml = machine.domain.virsh(&["dumpxml", "--inactive"]);
    let firmware = format!(
        "</type><loader readonly='yes' type='pflash'>{}</loader><nvram template='{}'>{}</nvram>",
        path("code.fd").display(),
        path("template.fd").display(),
        variables.display(),
    );
    machine.domain.define(&xml.replace("</type>", &firmware));
    let repo = Repo::new();
    let codes_now = || {
        let outcome = repo.back_up(machine.name(), &[]);
        codes(&outcome)
            .iter()
            .map(|code| (*code).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(codes_now(), [""; 0], "before the first start");
    machine.domain.start_paused();
    assert_eq!(codes_now(), [""; 0], "libvirt made them at the start");
    std::fs::remove_file(&variables).expect("they are there");
    assert_eq!(codes_now(), ["nvram-missing"]);
    machine.domain.destroy();
    assert_eq!(codes_now(), ["nvram-missing"], "after the first start");
}
