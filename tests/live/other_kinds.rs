//! A volume of a storage pool and an image that a server provides: saved while their domain runs, and brought back as files.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use crate::cli_lab::Repo;
use crate::daemon::{Daemon, TestDomain, URI};
use crate::process::{command, end, run, wait_until};

const MIB: usize = 1 << 20;

/// A storage pool in a folder; gone when it is dropped.
struct Pool<'a> {
    daemon: &'a Daemon,
    name: String,
}

impl<'a> Pool<'a> {
    fn new(daemon: &'a Daemon, name: &str, folder: &Path) -> Pool<'a> {
        fs::create_dir(folder).expect("it is new");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let path = folder.display().to_string();
        daemon.virsh(&["pool-create-as", name, "dir", "--target", &path]);
        Pool {
            daemon,
            name: name.to_owned(),
        }
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.try_virsh(&["pool-destroy", &self.name]);
    }
}

/// An NBD server of a file's bytes; ended when it is dropped.
struct Server(Child);

impl Server {
    fn start(image: &Path, socket: &Path) -> Server {
        let (image, socket_text) = (image.display().to_string(), socket.display().to_string());
        let arguments = [
            "--persistent",
            "--shared=0",
            "--format=raw",
            "--discard=unmap",
            "--export-name=disk",
            "--socket",
            &socket_text,
            &image,
        ];
        let server = Server(command("qemu-nbd", &arguments).spawn().expect("it starts"));
        let deadline = Duration::from_secs(30);
        assert!(wait_until(deadline, || socket.exists()), "it listens");
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).expect("it is ours");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn write(domain: &TestDomain, disks: &mut [Vec<u8>; 2], disk: usize, offset: usize, byte: u8) {
    let words = format!(
        "qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"write -P {byte} {offset} {MIB}\""
    );
    let said = domain.virsh(&["qemu-monitor-command", "--hmp", "--cmd", &words]);
    assert_eq!(said.trim(), "", "{words}");
    disks[disk][offset..offset + MIB].fill(byte);
}

fn assert_holds(folder: &Path, disks: &[Vec<u8>; 2]) {
    for (target, expected) in ["vda", "vdb"].iter().zip(disks) {
        let found = fs::read(folder.join(format!("{target}.raw"))).expect("it was restored");
        assert!(found == *expected, "{target} differs");
    }
}

fn levels(outcome: &Value) -> Vec<&str> {
    let disks = outcome["restorePoint"]["disks"].as_array().expect("a list");
    disks.iter().filter_map(|disk| disk["level"].as_str()).collect()
}

#[test]
fn volume_and_network_disks_are_incremental_and_come_back_as_files() {
    let daemon = Daemon::acquire();
    let domain = TestDomain::new(&daemon, "kinds");
    let pool = Pool::new(&daemon, domain.name(), &domain.path("pool"));
    let size = (2 * MIB).to_string();
    // libvirt would make a qcow2 image of version 2.
    let volume = domain.path("pool").join("a.qcow2").display().to_string();
    run(command(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &volume, &size],
    ));
    daemon.virsh(&["pool-refresh", &pool.name]);
    let (image, socket) = (domain.path("b.img"), domain.path("nbd.sock"));
    let path = image.display().to_string();
    run(command(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &path, &size],
    ));
    // An export does not grow, as the image in it does.
    let file = File::options().write(true).open(&image).expect("it is ours");
    file.set_len(8 * MIB as u64).expect("it grows");
    let _server = Server::start(&image, &socket);
    let devices = format!(
        "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='{}' volume='a.qcow2'/>\
         <target dev='vda' bus='virtio'/></disk>\n\
         <disk type='network' device='disk'><driver name='qemu' type='qcow2'/><source protocol='nbd' name='disk'>\
         <host transport='unix' socket='{}'/></source><target dev='vdb' bus='virtio'/></disk>",
        pool.name,
        socket.display()
    );
    domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
    domain.start_paused();

    let repo = Repo::new();
    let mut disks = [vec![0; 2 * MIB], vec![0; 2 * MIB]];
    for disk in 0..2 {
        write(&domain, &mut disks, disk, 0, 0x31 + disk as u8);
    }
    let full = repo.back_up(domain.name(), &[]);
    assert_eq!(levels(&full), ["full", "full"]);
    let first = disks.clone();
    for disk in 0..2 {
        write(&domain, &mut disks, disk, MIB, 0x41 + disk as u8);
    }
    let next = repo.back_up(domain.name(), &[]);
    assert_eq!(levels(&next), ["incremental", "incremental"]);
    let id = full["restorePoint"]["id"].as_str().expect("an id");
    assert_holds(&repo.restore(domain.name(), id, "raw"), &first);
    assert_holds(&repo.restore(domain.name(), "latest", "raw"), &disks);

    let back = TestDomain::new(&daemon, "kinds-back");
    let to = back.path("disks");
    let (root, to_text) = (repo.root().display().to_string(), to.display().to_string());
    let finished = repo.run(&[
        "restore",
        domain.name(),
        "--repository",
        &root,
        "--to",
        &to_text,
        "--define",
        "--name",
        back.name(),
        "--connect",
        URI,
    ]);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let xml = back.virsh(&["dumpxml"]);
    assert!(!xml.contains("pool=") && !xml.contains("protocol="), "{xml}");
    back.start_paused();
    let again = Repo::new();
    again.back_up(back.name(), &[]);
    assert_holds(&again.restore(back.name(), "latest", "raw"), &disks);
}
