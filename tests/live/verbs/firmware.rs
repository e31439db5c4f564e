//! UEFI variables and TPMs of real domains: saved with each restore point, and back in place.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vmsnap::model::domain::DomainState;
use vmsnap::model::finding::Finding;
use vmsnap::ops::restore::Format;

use super::define::bring_back;
use super::story::Story;
use crate::embed::{Kind, Lab, Shape, TestDomain, escape, run_ok};

const DISKS: [(Kind, u64); 1] = [(Kind::Qcow2, 1 << 20)];
const TPM: &str = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";

/// The files of a state, by name.
type State = BTreeMap<String, Vec<u8>>;

/// libvirt's folder for the state of a domain's TPM.
fn folder(uuid: &str) -> PathBuf {
    Lab::get().root().join("lib/swtpm").join(uuid).join("tpm2")
}

fn state(folder: &Path) -> State {
    let entries = fs::read_dir(folder).expect("it is there").flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let names = entries.map(name).filter(|name| name != ".lock");
    names
        .map(|name| {
            let content = fs::read(folder.join(&name)).expect("readable");
            (name, content)
        })
        .collect()
}

/// Makes a new TPM, with keys that no other one has.
fn new_tpm(folder: &Path) -> State {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).expect("it is made");
    run_ok(
        "swtpm_setup",
        [&"--tpm2", &"--tpm-state", &folder, &"--createek", &"--overwrite"],
    );
    state(folder)
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code.as_str()).collect()
}

/// A state is saved from a running and from a shut-off domain, replaced by another one, and comes
/// back under a new UUID and under the old one. swtpm accepts it.
#[test]
fn a_domain_comes_back_with_the_state_of_its_tpm() {
    let shape = Shape {
        disks: &DISKS,
        devices: TPM,
        ..Shape::default()
    };
    let mut story = Story::of(TestDomain::shaped("tpm ", &shape));
    let uuid = story.domain.seen().uuid;
    assert_eq!(codes(&story.back_up().findings), [""; 0], "it has never run");
    let home = folder(&uuid);
    assert!(!home.exists());

    let first = new_tpm(&home);
    assert!(first.contains_key("tpm2-00.permall"), "{:?}", first.keys());
    story.domain.start();
    let running = story.back_up();
    assert_eq!(codes(&running.findings), [""; 0]);
    let first = state(&home);
    story.domain.destroy();
    let second = new_tpm(&home);
    let shut_off = story.back_up();
    assert_eq!(codes(&shut_off.findings), [""; 0]);
    let third = new_tpm(&home);
    assert!(first != second && second != third);

    for (number, (point, saved)) in [(running, &first), (shut_off, &second)].into_iter().enumerate() {
        let name = format!("clone {number} of {}", story.domain.name);
        let (outcome, clone) = bring_back(&story, &point.point.id, Format::Qcow2, Some(&name));
        assert_eq!(codes(&outcome.plan.findings), [""; 0]);
        let new = clone.seen().uuid;
        assert_ne!(new, uuid);
        assert!(state(&folder(&new)) == *saved, "byte for byte");
        clone.start();
        assert_eq!(clone.seen().state, DomainState::Paused);
        clone.destroy();
        assert_eq!(state(&home), third, "the other domain keeps its own");
        drop(clone);
        assert!(!folder(&new).exists(), "libvirt removes it with its domain");
    }

    // The old UUID is free, but its state is still there.
    let flags = virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
    let kept = story.folder.path().join("kept");
    fs::rename(home.parent().expect("it has one"), &kept).expect("moved away");
    let handle = story.domain.handle();
    handle.undefine_flags(flags).expect("it is undefined");
    fs::rename(&kept, home.parent().expect("it has one")).expect("moved back");
    let to = story.folder.path().join("back");
    let define = || Some(vmsnap::ops::restore::DefineOptions::default());
    let refused = story.restore("latest", &to, Format::Qcow2, define());
    let refused = refused.expect_err("it exists").to_string();
    assert!(refused.contains(&home.display().to_string()), "{refused}");
    assert!(state(&home) == third);
    fs::remove_dir_all(home.parent().expect("it has one")).expect("the user removes it");
    let (_, back) = bring_back(&story, "latest", Format::Qcow2, None);
    assert_eq!(back.seen().uuid, uuid);
    assert!(state(&home) == second, "byte for byte");
    back.start();
    back.destroy();
}

#[test]
fn the_archive_of_a_tpm_is_unpacked_by_tar() {
    let shape = Shape {
        disks: &DISKS,
        devices: TPM,
        ..Shape::default()
    };
    let mut story = Story::of(TestDomain::shaped("tar ", &shape));
    let saved = new_tpm(&folder(&story.domain.seen().uuid));
    let point = story.back_up();
    let to = story.folder.path().join("unpacked");
    fs::create_dir(&to).expect("new");
    let archive = Path::new(&point.location).join("tpm.tar");
    run_ok("tar", [&"-xf", &archive, &"-C", &to]);
    assert!(state(&to) == saved);
}

#[test]
fn hostile_files_in_the_state_of_a_tpm_are_a_finding() {
    let shape = Shape {
        disks: &DISKS,
        devices: TPM,
        ..Shape::default()
    };
    let mut story = Story::of(TestDomain::shaped("hostile ", &shape));
    let home = folder(&story.domain.seen().uuid);
    new_tpm(&home);
    std::os::unix::fs::symlink("/etc/shadow", home.join("tpm2-00.extra")).expect("linked");
    let point = story.back_up();
    assert_eq!(codes(&point.findings), ["tpm-state-skipped"]);
    assert!(!Path::new(&point.location).join("tpm.tar").exists());
    fs::remove_file(home.join("tpm2-00.extra")).expect("it is there");
    assert_eq!(codes(&story.back_up().findings), [""; 0]);
}

/// A story of a shut-off domain with `<nvram>` as given, and firmware that never runs.
fn uefi_story(name: &str, nvram: impl Fn(&Path) -> String) -> (Story, tempfile::TempDir) {
    let dir = crate::owner::folder("firmware-");
    let code = dir.path().join("code.fd");
    fs::write(&code, vec![0xf4; 512 * 1024]).expect("it is written");
    let os = format!(
        "<loader readonly='yes' type='pflash'>{}</loader>{}",
        code.display(),
        nvram(dir.path())
    );
    let shape = Shape {
        disks: &DISKS,
        os: &os,
        ..Shape::default()
    };
    (Story::of(TestDomain::shaped(name, &shape)), dir)
}

#[test]
fn variables_in_a_source_element_come_back_byte_for_byte() {
    let (mut story, dir) = uefi_story("source ", |dir| {
        let path = dir.join("it's vars.fd").display().to_string();
        format!("<nvram type='file'><source file='{}'/></nvram>", escape(&path))
    });
    let path = dir.path().join("it's vars.fd");
    let mut saved = vec![0xff; 128 * 1024];
    saved[1000..1010].copy_from_slice(b"BootOrder!");
    fs::write(&path, &saved).expect("written");
    let point = story.back_up();
    assert_eq!(codes(&point.findings), [""; 0]);
    fs::write(&path, vec![0; 128 * 1024]).expect("modified");
    let (_, clone) = bring_back(&story, &point.point.id, Format::Qcow2, Some("uefi copy"));
    let seen = clone.seen();
    let restored = seen.nvram.as_ref().and_then(|nvram| nvram.file());
    let restored = restored.expect("it is a file");
    assert!(restored.starts_with(clone.dir.path()));
    assert!(fs::read(restored).expect("restored") == saved);
    clone.start();
    clone.destroy();
}

#[test]
fn variables_on_a_device_are_a_finding() {
    let (mut story, _dir) = uefi_story("device ", |_| {
        "<nvram type='block'><source dev='/dev/vmsnap-test-none'/></nvram>".to_owned()
    });
    let point = story.back_up();
    assert_eq!(codes(&point.findings), ["nvram-skipped"]);
    assert!(point.findings[0].message.contains("/dev/vmsnap-test-none"));
    let (outcome, clone) = bring_back(&story, &point.point.id, Format::Qcow2, Some("device copy"));
    assert_eq!(codes(&outcome.plan.findings), ["nvram-fresh"]);
    let seen = clone.seen();
    let variables = seen.nvram.as_ref().and_then(|nvram| nvram.file());
    assert!(variables.expect("a file").starts_with(clone.dir.path()));
}
