//! What the tests of encrypted disks, volumes and network disks share.

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

/// How long a helper program may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// One of libvirt's secrets, with the passphrase of [`create_encrypted`]; removed when it is dropped.
pub struct Secret<'a> {
    daemon: &'a Daemon,
    uuid: String,
}

impl<'a> Secret<'a> {
    /// Defines it. libvirt does not give the value of a private one.
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

    /// How a definition names it.
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

/// Makes an encrypted image: `qcow2` with LUKS, or `raw` LUKS.
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
    // Few rounds: the passphrase is no secret.
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
    // Key derivation is measured, and fails now and then on a busy machine.
    let create = || try_run(command("qemu-img", &words), DEADLINE).ok();
    assert!((0..20).any(|_| create()), "qemu-img makes an encrypted image");
}

/// A storage pool of a folder's files; removed when dropped.
pub struct Pool<'a> {
    daemon: &'a Daemon,
    name: String,
}

impl<'a> Pool<'a> {
    /// Makes a pool of this name of what is in the folder.
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

/// An NBD server of a file's bytes, as the export `disk`; ended when it is dropped.
pub struct Server(Child);

impl Server {
    /// Starts it on a socket that QEMU's user can open.
    pub fn start(image: &Path, socket: &Path) -> Server {
        // An export does not grow, as the qcow2 image in it does.
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

    /// The disk that it serves, as a definition's source.
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

/// Gives a file or folder of ours this mode.
pub fn make(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// Restores the newest restore point of a domain into a new folder, which QEMU's user can reach, and defines a domain of this name there: what
/// the program says of it.
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
