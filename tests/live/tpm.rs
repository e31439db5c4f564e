//! The state of a TPM under the system's libvirtd, where swtpm has a user of its own.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli_lab::{Machine, Repo, codes, json};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::process::{command, run};

const MIB: usize = 1 << 20;
const TPM: &str = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>";

fn folder(uuid: &str) -> PathBuf {
    Path::new("/var/lib/libvirt/swtpm").join(uuid).join("tpm2")
}

fn uuid_of(domain: &TestDomain) -> String {
    domain.virsh(&["domuuid"]).trim().to_owned()
}

/// Owner, group and mode of a file.
fn rights(path: &Path) -> (u32, u32, u32) {
    let found = path.metadata().expect("it is there");
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

#[test]
fn libvirt_gives_a_restored_state_to_the_user_of_swtpm() {
    let daemon = Daemon::acquire();
    let machine = Machine::define(&daemon, "tpm", &[MIB]);
    let xml = machine.domain.virsh(&["dumpxml", "--inactive"]);
    machine.domain.define(&xml.replace("</devices>", TPM));
    let home = folder(&uuid_of(&machine.domain));
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o711);
    builder.create(&home).expect("it is made");
    let path = home.display().to_string();
    run(command(
        "swtpm_setup",
        &["--tpm2", "--tpm-state", &path, "--createek", "--overwrite"],
    ));
    machine.domain.start_paused();
    let permanent = home.join("tpm2-00.permall");
    let (saved, expected) = (fs::read(&permanent).expect("a state"), rights(&permanent));

    let repo = Repo::new();
    let outcome = repo.back_up(machine.name(), &[]);
    assert_eq!(codes(&outcome), [""; 0], "{outcome}");
    let copy = TestDomain::new(&daemon, "tpm-copy");
    let (root, to) = (repo.root().display().to_string(), copy.path("restored"));
    let restored = repo.run(&[
        "restore",
        machine.name(),
        "--repository",
        &root,
        "--to",
        &to.display().to_string(),
        "--define",
        "--name",
        copy.name(),
        "--connect",
        URI,
        "--json",
    ]);
    assert_eq!(restored.code, Some(0), "{restored:#?}");
    assert_eq!(json(&restored)["findings"], Value::Array(Vec::new()));

    let place = folder(&uuid_of(&copy));
    let state = place.join("tpm2-00.permall");
    assert!(
        fs::read(&state).expect("it is restored") == saved,
        "byte for byte"
    );
    copy.start_paused();
    assert_eq!(copy.state(), "paused");
    assert_eq!(rights(&state), expected);
    for (restored, original) in [(&*place, &*home), (parent(&place), parent(&home))] {
        assert_eq!(rights(restored), rights(original), "{}", restored.display());
    }
    copy.destroy();
    machine.domain.destroy();
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("it has one")
}
