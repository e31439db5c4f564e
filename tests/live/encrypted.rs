//! Encrypted disks of real domains: refused without the switch, saved as the guest's bytes with it, and brought back as plain disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::cli_lab::{Repo, codes, outcome_of};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::process::{command, run};

const MIB: usize = 1 << 20;
const PASSPHRASE: &str = "open sesame";

/// One of libvirt's secrets; removed when it is dropped.
struct Secret<'a> {
    daemon: &'a Daemon,
    uuid: String,
}

impl<'a> Secret<'a> {
    fn new(daemon: &'a Daemon, folder: &Path) -> Secret<'a> {
        let uuid = uuid::Uuid::new_v4().to_string();
        let (xml, value) = (folder.join("secret.xml"), folder.join("secret.value"));
        fs::write(
            &xml,
            format!("<secret ephemeral='no' private='no'><uuid>{uuid}</uuid></secret>"),
        )
        .expect("the folder is ours");
        fs::write(&value, PASSPHRASE).expect("the folder is ours");
        daemon.virsh(&["secret-define", &xml.display().to_string()]);
        let secret = Secret { daemon, uuid };
        let value = value.display().to_string();
        daemon.virsh(&["secret-set-value", &secret.uuid, "--file", &value, "--plain"]);
        secret
    }

    fn encryption(&self) -> String {
        format!(
            "<encryption format='luks'><secret type='passphrase' uuid='{}'/></encryption>",
            self.uuid
        )
    }
}

impl Drop for Secret<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.try_virsh(&["secret-undefine", &self.uuid]);
    }
}

fn create_encrypted(path: &Path, format: &str, options: &str) {
    let object = format!("secret,id=s,data={PASSPHRASE}");
    let path = path.display().to_string();
    let size = (2 * MIB).to_string();
    // Few rounds: the passphrase is no secret.
    run(command(
        "qemu-img",
        &[
            "create", "-q", "--object", &object, "-f", format, "-o", options, &path, &size,
        ],
    ));
}

/// Defines a domain with an encrypted qcow2 disk `vda` and a raw LUKS disk `vdb`.
fn define(domain: &TestDomain, daemon: &Daemon, secret: &Secret<'_>) {
    let (qcow2, luks) = (domain.path("a.qcow2"), domain.path("b.luks"));
    create_encrypted(
        &qcow2,
        "qcow2",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    );
    create_encrypted(&luks, "luks", "key-secret=s,iter-time=10");
    let disk = |format: &str, path: &Path, target: &str, in_source: bool| {
        let encryption = secret.encryption();
        let (inner, outer) = match in_source {
            true => (encryption.as_str(), ""),
            false => ("", encryption.as_str()),
        };
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
             <source file='{}'>{inner}</source>{outer}<target dev='{target}' bus='virtio'/></disk>\n",
            path.display()
        )
    };
    let devices = disk("qcow2", &qcow2, "vda", true) + &disk("raw", &luks, "vdb", false);
    domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
}

/// Writes to a disk of a running domain as its guest does.
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
        assert_eq!(found.len(), expected.len(), "{target}");
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{target} differs at this offset");
    }
}

fn assert_nothing_stored(repo: &Repo) {
    let tree = repo.tree();
    let is_image = |path: &Path| path.extension().is_some_and(|end| end == "qcow2");
    assert!(!tree.iter().any(|(path, _)| is_image(path)), "{tree:?}");
}

fn id_of(outcome: &Value) -> String {
    outcome["restorePoint"]["id"].as_str().expect("an id").to_owned()
}

#[test]
fn encrypted_disks_are_refused_or_saved_and_defined_as_plain_text() {
    let daemon = Daemon::acquire();
    let domain = TestDomain::new(&daemon, "luks");
    let secret = Secret::new(&daemon, domain.dir());
    define(&domain, &daemon, &secret);
    domain.start_paused();
    let repo = Repo::new();
    let mut disks = [vec![0; 2 * MIB], vec![0; 2 * MIB]];
    write(&domain, &mut disks, 0, 0, 0x11);
    // What was never written to a raw LUKS disk reads as garbage.
    write(&domain, &mut disks, 1, 0, 0x12);
    write(&domain, &mut disks, 1, MIB, 0x13);

    let refused = repo.backup(&[domain.name()], &["--raw", "--json"]);
    let outcome = outcome_of(&refused, domain.name());
    assert_eq!(
        codes(&outcome),
        ["disk-encrypted", "disk-encrypted"],
        "{refused:#?}"
    );
    assert_eq!(outcome["outcome"], "failed");
    assert_nothing_stored(&repo);

    let both = ["--raw", "--store-decrypted"];
    let full = repo.back_up(domain.name(), &both);
    assert_eq!(codes(&full), ["stored-decrypted", "stored-decrypted"]);
    let first = disks.clone();
    write(&domain, &mut disks, 0, MIB, 0x21);
    write(&domain, &mut disks, 1, MIB, 0x22);
    let next = repo.back_up(domain.name(), &both);
    let of_disk = |disk: usize| next["restorePoint"]["disks"][disk].clone();
    assert_eq!(
        (&of_disk(0)["level"], &of_disk(1)["level"]),
        (&"incremental".into(), &"full".into())
    );
    assert_eq!(
        (&of_disk(0)["decrypted"], &of_disk(1)["decrypted"]),
        (&true.into(), &true.into())
    );
    assert_holds(&repo.restore(domain.name(), &id_of(&full), "raw"), &first);
    assert_holds(&repo.restore(domain.name(), &id_of(&next), "raw"), &disks);

    // What the guest of the defined domain sees is what QEMU exports of its disks.
    let back = TestDomain::new(&daemon, "luks-back");
    let to = back.path("disks");
    let root = repo.root().display().to_string();
    let finished = repo.run(&[
        "restore",
        domain.name(),
        "--repository",
        &root,
        "--to",
        &to.display().to_string(),
        "--define",
        "--name",
        back.name(),
        "--connect",
        URI,
        "--json",
    ]);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let document: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(codes(&document), ["restored-decrypted", "restored-decrypted"]);
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("it is ours");
    assert!(
        !back
            .virsh(&["dumpxml", "--security-info"])
            .contains("<encryption")
    );
    back.start_paused();
    let again = Repo::new();
    again.back_up(back.name(), &[]);
    assert_holds(&again.restore(back.name(), "latest", "raw"), &disks);
}

#[test]
fn the_cipher_text_of_a_shut_off_domain_is_never_stored() {
    let daemon = Daemon::acquire();
    let domain = TestDomain::new(&daemon, "luks-off");
    let secret = Secret::new(&daemon, domain.dir());
    define(&domain, &daemon, &secret);
    let repo = Repo::new();
    let refused = repo.backup(&[domain.name()], &["--raw", "--json"]);
    let outcome = outcome_of(&refused, domain.name());
    assert_eq!(codes(&outcome), ["disk-encrypted", "disk-encrypted"]);
    assert_nothing_stored(&repo);

    let saved = repo.back_up(domain.name(), &["--raw", "--store-decrypted"]);
    assert_eq!(codes(&saved), ["stored-decrypted", "stored-decrypted"]);
    let folder = repo.restore(domain.name(), &id_of(&saved), "raw");
    for disk in ["vda.raw", "vdb.raw"] {
        let bytes = fs::read(folder.join(disk)).expect("it was restored");
        assert!(bytes.len() == 2 * MIB && !bytes.starts_with(b"LUKS"), "{disk}");
    }
}
