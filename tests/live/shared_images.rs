//! Images that several definitions, hosts and repositories use, domains whose checkpoints libvirt
//! has lost, and internal snapshots.

use std::fs;
use std::path::Path;

use crate::cli_lab::{Change, Machine, Repo, codes, json, text_of};
use crate::daemon::Daemon;
use crate::process::{Finished, command, try_run};

const MIB: usize = 1 << 20;

/// The settings of a hypervisor without a daemon, which is a second host for the same images.
const QEMU_CONF: &str = "user = \"+0\"\ngroup = \"+0\"\ndynamic_ownership = 0\nremember_owner = 0\n\
    stdio_handler = \"file\"\nsecurity_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n";

fn virsh(uri: &str, words: &[&str]) -> Finished {
    let words = [&["--connect", uri][..], words].concat();
    let finished = try_run(command("virsh", &words), std::time::Duration::from_secs(60));
    assert!(finished.ok(), "virsh {words:?}: {finished:#?}");
    finished
}

/// Backs up the machine, checks the level and that the restore point gives back the disks.
fn back_up(machine: &Machine, repo: &Repo, level: &str) -> serde_json::Value {
    let outcome = repo.back_up(machine.name(), &[]);
    assert_eq!(outcome["restorePoint"]["level"], level, "{outcome:#}");
    let id = text_of(&outcome["restorePoint"]["id"]).to_owned();
    machine.assert_restored(&repo.restore(machine.name(), &id, "raw"), &machine.disks);
    outcome
}

/// Writes the machine's changed definition into a file and returns its path.
fn definition(machine: &Machine, folder: &Path, change: impl Fn(String) -> String) -> String {
    let xml = machine.domain.virsh(&["dumpxml", "--inactive"]);
    let file = folder.join(format!("{}.xml", machine.name()));
    fs::write(&file, change(xml)).expect("it is written");
    file.display().to_string()
}

/// Another user of the image removes our bitmaps and backs it up into another repository. Checks
/// that the next backup of the machine is full.
fn used_by_others(label: &str, use_it: impl Fn(&Machine, &dyn Fn(&str, &[&str]))) {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, label, &[4 * MIB]);
    let (repo, theirs) = (Repo::new(), Repo::new());
    machine.fill(0, 1);
    back_up(&machine, &repo, "full");
    machine.change(0, 0, 65536, Change::Data(0x31));
    let image = machine.image(0).display().to_string();
    use_it(&machine, &|name, connect| {
        let scrub = [&["scrub", name, "--scrub-type", "both"], connect].concat();
        let scrubbed = theirs.run(&scrub);
        assert_eq!(scrubbed.code, Some(0), "{scrubbed:#?}");
        assert!(scrubbed.stdout.contains("1 bitmap\n"), "{scrubbed:#?}");
        let write = ["-f", "qcow2", "-c", "write -P 0x77 2M 512", &image];
        assert!(try_run(command("qemu-io", &write), std::time::Duration::from_secs(60)).ok());
        let root = theirs.root().display().to_string();
        let made = theirs.run(&[&["backup", name, "--output", &root], connect].concat());
        assert_eq!(made.code, Some(0), "{made:#?}");
    });
    machine.learn(0);
    machine.change(0, MIB, 512, Change::Data(0x32));
    let outcome = back_up(&machine, &repo, "full");
    let reason = text_of(&outcome["restorePoint"]["disks"][0]["reason"]).to_owned();
    assert!(
        reason.contains("is gone") || reason.contains("is missing"),
        "{reason}"
    );
    machine.change(0, MIB, 512, Change::Data(0x33));
    back_up(&machine, &repo, "incremental");
}

#[test]
fn a_second_definition_of_an_image_leads_no_backup_astray() {
    let daemon = Daemon::acquire();
    used_by_others("defined-twice", |machine, work| {
        let folder = crate::owner::folder("shared-");
        let other = format!("{}-too", machine.name());
        let uuid = machine.domain.virsh(&["domuuid"]).trim().to_owned();
        let file = definition(machine, folder.path(), |xml| {
            let named = xml.replace(&format!("<name>{}<", machine.name()), &format!("<name>{other}<"));
            named.replace(&uuid, &uuid::Uuid::new_v4().to_string())
        });
        daemon.virsh(&["define", file.as_str()]);
        work(&other, &["--connect", "qemu:///system"]);
        daemon.virsh(&["undefine", other.as_str(), "--checkpoints-metadata"]);
    });
}

#[test]
fn a_second_host_with_the_same_image_leads_no_backup_astray() {
    used_by_others("two-hosts", |machine, work| {
        let root = crate::owner::folder("shared-");
        fs::create_dir(root.path().join("etc")).expect("it is new");
        fs::write(root.path().join("etc/qemu.conf"), QEMU_CONF).expect("it is written");
        let uri = format!("qemu:///embed?root={}", root.path().display());
        let file = definition(machine, root.path(), |xml| xml);
        virsh(&uri, &["define", &file]);
        work(machine.name(), &["--connect", &uri]);
    });
}

#[test]
fn a_second_repository_leads_no_backup_astray() {
    used_by_others("two-repositories", |machine, work| {
        work(machine.name(), &["--connect", "qemu:///system"]);
    });
}

/// libvirt keeps no record of a transient domain. Its bitmaps are in its image.
#[test]
fn a_transient_domain_made_again_stays_incremental() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "transient", &[2 * MIB, MIB]);
    let folder = crate::owner::folder("shared-");
    let file = definition(&machine, folder.path(), |xml| xml);
    machine.domain.virsh(&["undefine"]);
    let create = || daemon.virsh(&["create", &file, "--paused"]);
    let repo = Repo::new();
    create();
    machine.fill(0, 1);
    machine.fill(1, 2);
    back_up(&machine, &repo, "full");
    for round in 3..6u8 {
        let offset = usize::from(round) * 65536;
        machine.change(0, offset, 512, Change::Data(round));
        machine.domain.destroy();
        create();
        machine.change(1, offset, 512, Change::Data(round));
        let outcome = back_up(&machine, &repo, "incremental");
        assert_eq!(codes(&outcome), ["checkpoint-known-again"]);
        for disk in outcome["restorePoint"]["disks"].as_array().expect("disks") {
            assert_eq!(disk["level"], "incremental", "{outcome:#}");
        }
    }
    machine.domain.destroy();
}

/// QEMU does not revert a disk with bitmaps, and libvirt shuts the domain off. The documented
/// remedy works.
#[test]
fn an_internal_snapshot_is_reverted_to_after_a_scrub() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "reverted", &[2 * MIB]);
    let repo = Repo::new();
    machine.fill(0, 1);
    machine.domain.virsh(&["snapshot-create-as", "early"]);
    machine.change(0, 0, MIB, Change::Data(9));
    back_up(&machine, &repo, "full");
    let (name, root) = (machine.name().to_owned(), repo.root().display().to_string());
    let connect = ["--connect", "qemu:///system"];
    let status = ["status", &name, "--output", &root, "--json", "--machine"];
    let status = [&status[..], &connect].concat();
    let found = json(&repo.run(&status))[&name]["findings"].clone();
    assert_eq!(found[0]["code"], "internal-snapshots", "{found:#}");

    let revert = ["snapshot-revert", name.as_str(), "early"];
    assert!(!daemon.try_virsh(&revert).ok(), "QEMU refuses");
    let scrub = [&["scrub", &name, "--scrub-type", "both"][..], &connect].concat();
    let scrubbed = repo.run(&scrub);
    assert_eq!(scrubbed.code, Some(0), "{scrubbed:#?}");
    daemon.virsh(&revert);
    machine.learn(0);
    assert!(machine.disks[0][..MIB].iter().all(|byte| *byte != 9), "reverted");
    back_up(&machine, &repo, "full");
    machine.change(0, 0, 512, Change::Data(3));
    back_up(&machine, &repo, "incremental");
    machine.domain.virsh(&["snapshot-delete", "early"]);
}
