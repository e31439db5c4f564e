//! Helpers for tests of encrypted disks, volumes and network disks.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use crate::cli_lab::{Repo, json};
use crate::daemon::{Daemon, URI};
use crate::process::{command, end, try_run, wait_until};

const PASSPHRASE: &str = "open sesame";

/// The time limit of a helper program on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A libvirt secret with the passphrase of [`create_encrypted`], removed when dropped.
pub struct Secret<'a> {
    daemon: &'a Daemon,
    uuid: String,
}

impl<'a> Secret<'a> {
    /// Defines the secret. libvirt does not reveal the value of a private one.
    pub fn new(daemon: &'a Daemon, folder: &Path, is_private: bool) -> Secret<'a> {
        let uuid = uuid::Uuid::new_v4().to_string();
        let (document, value) = (folder.join("secret.xml"), folder.join("secret.value"));
        let private = if is_private { "yes" } else { "no" };
        let xml = format!("<secret ephemeral='no' private='{private}'><uuid>{uuid}</uuid></secret>");
        fs::write(&document, xml).expect("the folder is ours");
        fs::write(&value, PASSPHRASE).expect("the folder is ours");
        daemon.virsh(&["secret-define", text(&document)]);
        let secret = Secret { daemon, uuid };
        daemon.virsh(&[
            "secret-set-value",
            &secret.uuid,
            "--file",
            text(&value),
            "--plain",
        ]);
        secret
    }

    /// The XML with which a disk's definition names the secret.
    pub fn encryption(&self) -> String {
        format!(
            "<encryption format='luks'><secret type='passphrase' uuid='{}'/></encryption>",
            self.uuid
        )
    }
}

impl Drop for Secret<'_> {
    fn drop(&mut self) {
        self.daemon.try_virsh(&["secret-undefine", &self.uuid]);
    }
}

/// Creates an encrypted image: `qcow2` with LUKS, or `raw` LUKS.
pub fn create_encrypted(image: &Path, format: &str, size: &str) {
    let (format, prefix) = match format {
        "raw" => ("luks", ""),
        other => (other, "encrypt."),
    };
    let luks = if prefix.is_empty() {
        ""
    } else {
        "encrypt.format=luks,"
    };
    // Few iterations, because the passphrase need not be secure.
    let options = format!("{luks}{prefix}key-secret=s,{prefix}iter-time=10");
    let object = format!("secret,id=s,data={PASSPHRASE}");
    let words = [
        "create",
        "-q",
        "--object",
        &object,
        "-f",
        format,
        "-o",
        &options,
        text(image),
        size,
    ];
    // qemu-img measures the key derivation, which sometimes fails on a busy machine.
    let create = || try_run(command("qemu-img", &words), DEADLINE).ok();
    assert!((0..20).any(|_| create()), "qemu-img makes an encrypted image");
}

/// A storage pool over the files in a folder, removed when dropped.
pub struct Pool<'a> {
    daemon: &'a Daemon,
    name: String,
}

impl<'a> Pool<'a> {
    /// Creates a pool with this name over the folder.
    pub fn new(daemon: &'a Daemon, name: &str, folder: &Path) -> Pool<'a> {
        daemon.virsh(&["pool-create-as", name, "dir", "--target", text(folder)]);
        Pool {
            daemon,
            name: name.to_owned(),
        }
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        self.daemon.try_virsh(&["pool-destroy", &self.name]);
    }
}

/// An NBD server of a file's bytes with the export `disk`, ended when dropped.
pub struct Server(Child);

impl Server {
    /// Starts a server on a socket that QEMU's user can open.
    pub fn start(image: &Path, socket: &Path) -> Server {
        // An export cannot grow, but the qcow2 image in it does.
        let file = fs::OpenOptions::new().write(true).open(image);
        let grown = file.and_then(|file| file.set_len(8 << 20));
        grown.expect("the folder is ours");
        let arguments = [
            "--persistent",
            "--shared=0",
            "--format=raw",
            "--discard=unmap",
            "--export-name=disk",
            "--socket",
            text(socket),
            text(image),
        ];
        let server = Server(command("qemu-nbd", &arguments).spawn().expect("it starts"));
        assert!(wait_until(DEADLINE, || socket.exists()), "it listens");
        make(socket, 0o666);
        server
    }

    /// The source XML of a disk on the server with this socket.
    pub fn source(socket: &Path) -> String {
        format!(
            "<source protocol='nbd' name='disk'><host transport='unix' socket='{}'/></source>",
            socket.display()
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// Sets the mode of a file or folder of the test.
pub fn make(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// Restores the newest restore point of a domain into a new folder, which QEMU's user can enter,
/// and defines a domain with this name there. Returns the program's JSON.
pub fn bring_back(repo: &Repo, domain: &str, to: &Path, name: &str) -> Value {
    let root = repo.root();
    let restore = ["restore", domain, "--repository", text(&root), "--to", text(to)];
    let define = ["--define", "--name", name, "--connect", URI, "--json"];
    let finished = repo.run(&[&restore[..], &define].concat());
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    make(to, 0o755);
    json(&finished)
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
