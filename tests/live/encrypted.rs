//! Encrypted disks of real domains: refused without the switch, saved as plain text with it,
//! restored as plain disks.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, codes, outcome_of};
use crate::daemon::{Daemon, TestDomain};
use crate::kinds_lab::{Secret, bring_back, create_encrypted};

const MIB: usize = 1 << 20;

/// Defines a domain with an encrypted qcow2 disk `vda` and a raw LUKS disk `vdb`.
fn define(domain: &TestDomain, daemon: &Daemon, secret: &Secret<'_>) {
    let (qcow2, luks) = (domain.path("a.qcow2"), domain.path("b.luks"));
    create_encrypted(&qcow2, "qcow2", "2M");
    create_encrypted(&luks, "raw", "2M");
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

fn assert_nothing_stored(repo: &Repo) {
    let tree = repo.tree();
    let is_image = |path: &Path| path.extension().is_some_and(|end| end == "qcow2");
    assert!(!tree.iter().any(|(path, _)| is_image(path)), "{tree:?}");
}

fn id_of(outcome: &Value) -> String {
    outcome["restorePoint"]["id"].as_str().expect("an id").to_owned()
}

#[test]
fn encrypted_disks_are_refused_or_saved_as_plain_text() {
    let daemon = Daemon::acquire();
    let domain = TestDomain::new(&daemon, "luks");
    let secret = Secret::new(&daemon, domain.dir(), false);
    define(&domain, &daemon, &secret);
    domain.start_paused();
    let repo = Repo::new();
    let mut machine = Machine {
        domain,
        disks: vec![vec![0; 2 * MIB]; 2],
    };
    machine.change(0, 0, MIB, Change::Data(0x11));
    // Unwritten parts of a raw LUKS disk read as noise, so all of it is written.
    machine.change(1, 0, MIB, Change::Data(0x12));
    machine.change(1, MIB, MIB, Change::Data(0x13));

    let refused = repo.backup(&[machine.name()], &["--raw", "--json"]);
    let outcome = outcome_of(&refused, machine.name());
    assert_eq!(
        codes(&outcome),
        ["disk-encrypted", "disk-encrypted"],
        "{refused:#?}"
    );
    assert_eq!(outcome["outcome"], "failed");
    assert_nothing_stored(&repo);

    let both = ["--raw", "--store-decrypted"];
    let full = repo.back_up(machine.name(), &both);
    assert_eq!(codes(&full), ["stored-decrypted", "stored-decrypted"]);
    let first = machine.disks.clone();
    machine.change(0, MIB, MIB, Change::Data(0x21));
    machine.change(1, MIB, MIB, Change::Data(0x22));
    let next = repo.back_up(machine.name(), &both);
    let of_disk = |disk: usize| next["restorePoint"]["disks"][disk].clone();
    assert_eq!(
        (&of_disk(0)["level"], &of_disk(1)["level"]),
        (&"incremental".into(), &"full".into())
    );
    assert_eq!(
        (&of_disk(0)["decrypted"], &of_disk(1)["decrypted"]),
        (&true.into(), &true.into())
    );
    machine.assert_restored(&repo.restore(machine.name(), &id_of(&full), "raw"), &first);
    machine.assert_restored(
        &repo.restore(machine.name(), &id_of(&next), "raw"),
        &machine.disks,
    );

    // QEMU exports the disks of the defined domain as its guest sees them.
    let back = TestDomain::new(&daemon, "luks-back");
    let document = bring_back(&repo, machine.name(), &back.path("disks"), back.name());
    assert_eq!(codes(&document), ["restored-decrypted", "restored-decrypted"]);
    assert!(
        !back
            .virsh(&["dumpxml", "--security-info"])
            .contains("<encryption")
    );
    back.start_paused();
    let again = Repo::new();
    again.back_up(back.name(), &[]);
    machine.assert_restored(&again.restore(back.name(), "latest", "raw"), &machine.disks);
}

#[test]
fn the_cipher_text_of_a_shut_off_domain_is_never_stored() {
    let daemon = Daemon::acquire();
    let domain = TestDomain::new(&daemon, "luks-off");
    let secret = Secret::new(&daemon, domain.dir(), false);
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
