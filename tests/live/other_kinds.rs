//! A volume of a storage pool and an image on a server: saved while the domain runs, and restored
//! as files.

use std::fs;

use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo};
use crate::daemon::{Daemon, TestDomain};
use crate::kinds_lab::{Pool, Server, bring_back, make, text};
use crate::process::{command, run};

const MIB: usize = 1 << 20;

fn levels(outcome: &Value) -> Vec<&str> {
    let disks = outcome["restorePoint"]["disks"].as_array().expect("a list");
    disks.iter().filter_map(|disk| disk["level"].as_str()).collect()
}

#[test]
fn volume_and_network_disks_are_incremental_and_restorable() {
    let daemon = Daemon::acquire();
    let domain = TestDomain::new(&daemon, "kinds");
    let (folder, image) = (domain.path("pool"), domain.path("b.img"));
    fs::create_dir(&folder).expect("it is new");
    make(&folder, 0o755);
    // Not created by libvirt, which would make a qcow2 image of version 2.
    for image in [&folder.join("a.qcow2"), &image] {
        let size = (2 * MIB).to_string();
        run(command(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", text(image), &size],
        ));
    }
    let _pool = Pool::new(&daemon, domain.name(), &folder);
    let socket = domain.path("nbd.sock");
    let _server = Server::start(&image, &socket);
    let devices = format!(
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='{}' volume='a.qcow2'/>\
         <target dev='vda' bus='virtio'/></disk>\n\
         <disk type='network' device='disk'><driver name='qemu' type='qcow2'/>{}<target dev='vdb' bus='virtio'/></disk>",
        domain.name(),
        Server::source(&socket)
    );
    domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
    domain.start_paused();

    let repo = Repo::new();
    let mut machine = Machine {
        domain,
        disks: vec![vec![0; 2 * MIB]; 2],
    };
    for disk in 0..2 {
        machine.change(disk, 0, MIB, Change::Data(0x31 + disk as u8));
    }
    let full = repo.back_up(machine.name(), &[]);
    assert_eq!(levels(&full), ["full", "full"]);
    let first = machine.disks.clone();
    for disk in 0..2 {
        machine.change(disk, MIB, MIB, Change::Data(0x41 + disk as u8));
    }
    let next = repo.back_up(machine.name(), &[]);
    assert_eq!(levels(&next), ["incremental", "incremental"]);
    let id = full["restorePoint"]["id"].as_str().expect("an id");
    machine.assert_restored(&repo.restore(machine.name(), id, "raw"), &first);
    machine.assert_restored(&repo.restore(machine.name(), "latest", "raw"), &machine.disks);

    let back = TestDomain::new(&daemon, "kinds-back");
    bring_back(&repo, machine.name(), &back.path("disks"), back.name());
    let xml = back.virsh(&["dumpxml"]);
    assert!(!xml.contains("pool=") && !xml.contains("protocol="), "{xml}");
    back.start_paused();
    let again = Repo::new();
    again.back_up(back.name(), &[]);
    machine.assert_restored(&again.restore(back.name(), "latest", "raw"), &machine.disks);
}
