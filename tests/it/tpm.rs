//! The state of an emulated TPM: saved with every restore point, and put where the restored domain
//! looks for it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::domain::DomainState;
use vmsnap::model::finding::Finding;
use vmsnap::model::firmware::{Tpm, TpmPlace};
use vmsnap::model::stop::Stop;
use vmsnap::model::tpm_state::{self, SINGLE_FILE, TpmFile, TpmState};
use vmsnap::ops::restore::{self, DefineOptions, Options, Outcome};
use vmsnap::ops::{Cause, Class, Result};
use vmsnap::testkit::{Blow, CrashHost, Fuse};

use crate::forged::rewrite;
use crate::lab::{CLUSTER, InFolder, Lab, tree};

const UUID: &str = "00000000-0000-4000-8000-000000000001";

fn file(name: &str, content: &[u8]) -> TpmFile {
    TpmFile {
        name: name.to_owned(),
        content: content.to_vec(),
        owner: (107, 113),
        changed: 1_793_667_600,
    }
}

fn state(files: &[TpmFile]) -> TpmState {
    TpmState {
        files: files.to_vec(),
        is_whole: true,
    }
}

fn usual() -> TpmState {
    state(&[file("tpm2-00.permall", &[7; 3000])])
}

fn tpm(place: TpmPlace) -> Tpm {
    Tpm {
        version: "2.0".to_owned(),
        place,
        secret: None,
    }
}

/// A lab with the domain `vm1`, which has a TPM.
fn lab_with(tpm: Tpm, state: &TpmState) -> Lab {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 2 * CLUSTER)]);
    lab.host.add_tpm("vm1", tpm);
    lab.host.set_tpm_state("vm1", Ok(Some(state.clone())));
    lab.host.set_nvram("vm1", b"variables");
    lab.host.set_tpm_folder(&root(&lab));
    lab
}

/// libvirt's folder with the states of TPMs.
fn root(lab: &Lab) -> PathBuf {
    lab.folder.path().join("swtpm")
}

fn options(lab: &Lab, name: &str) -> Options {
    Options {
        define: Some(DefineOptions {
            name: Some(name.to_owned()),
        }),
        to: free(lab),
        ..lab.restoring()
    }
}

/// A path at which nothing is, another one each time.
fn free(lab: &Lab) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    lab.folder.path().join(format!("restored-{number}"))
}

fn restored_by(lab: &Lab, host: &dyn Host, options: &Options) -> Result<Outcome> {
    let plan = restore::plan("vm1", lab.repo.as_ref(), Some(host), options)?;
    let stop = Stop::default();
    let means = restore::Means {
        repo: lab.repo.as_ref(),
        store: &DiskStore,
        host: Some(host),
        monitor: &lab.recorder,
        stop: &stop,
    };
    restore::restore("vm1", plan, &means)
}

fn restored(lab: &Lab, name: &str) -> Result<Outcome> {
    restored_by(lab, &lab.host, &options(lab, name))
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code.as_str()).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn the_state_of_a_tpm_is_saved_verified_and_restored() {
    for name in ["vm1", "copy"] {
        let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
        let outcome = lab.backup("vm1").expect("a backup");
        assert!(outcome.findings.is_empty(), "{:?}", outcome.findings);
        let archive = fs::read(outcome.dir().join("tpm.tar")).expect("it is saved");
        assert_eq!(tpm_state::unpack(&archive).expect("readable"), usual().files);
        lab.assert_verified("vm1");

        // Under its old name the domain also gets its old UUID.
        if name == "vm1" {
            lab.host.remove_domain("vm1");
        }
        let outcome = restored(&lab, name).expect("restored");
        assert!(outcome.plan.findings.is_empty(), "{:?}", outcome.plan.findings);
        let define = outcome.plan.define.expect("it was defined");
        assert_eq!(define.uuid == UUID, name == "vm1");
        let domain = root(&lab).join(&define.uuid);
        assert_eq!(
            tree(&root(&lab)),
            [
                define.uuid.clone(),
                format!("{}/tpm2", define.uuid),
                format!("{}/tpm2/tpm2-00.permall", define.uuid)
            ]
        );
        let written = domain.join("tpm2/tpm2-00.permall");
        assert_eq!(fs::read(&written).expect("readable"), [7; 3000]);
        let modes = [&root(&lab), &domain, &domain.join("tpm2"), &written].map(|path| mode(path));
        assert_eq!(modes, [0o711, 0o711, 0o700, 0o600]);
    }
}

#[test]
fn an_unreadable_state_is_a_finding_and_the_backup_goes_on() {
    let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
    lab.host
        .set_tpm_state("vm1", Err("/x/link is not a regular file"));
    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(codes(&outcome.findings), ["tpm-state-skipped"]);
    assert!(
        outcome.findings[0]
            .message
            .contains("/x/link is not a regular file")
    );
    assert_eq!(codes(&outcome.point.findings), ["tpm-state-skipped"]);
    assert_eq!(codes(&lab.recorder.findings()), ["tpm-state-skipped"]);
    assert!(!outcome.dir().join("tpm.tar").exists());

    let outcome = restored(&lab, "copy").expect("restored");
    assert_eq!(codes(&outcome.plan.findings), ["tpm-fresh"]);
    assert!(!root(&lab).exists());
}

#[test]
fn hostile_states_are_not_saved() {
    let many: Vec<TpmFile> = (0..40).map(|n| file(&format!("f{n}"), b"x")).collect();
    let huge = file("huge", &vec![0; 17 << 20]);
    let hostile = [
        vec![file("../../etc/cron.d/x", b"x")],
        vec![file("/etc/shadow", b"x")],
        vec![file("a", b"1"), file("a", b"2")],
        vec![huge],
        many,
    ];
    for files in hostile {
        let mut lab = lab_with(tpm(TpmPlace::Usual), &state(&files));
        let outcome = lab.backup("vm1").expect("a backup");
        assert_eq!(codes(&outcome.findings), ["tpm-state-skipped"]);
    }
}

#[test]
fn a_lost_state_is_a_finding_and_a_fresh_tpm_is_not() {
    let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
    let run = |state: DomainState| move |domain: &mut vmsnap::model::domain::Domain| domain.state = state;
    lab.host.set_tpm_state("vm1", Ok(None));
    lab.host.change("vm1", run(DomainState::ShutOff));
    assert_eq!(
        codes(&lab.backup("vm1").expect("never started").findings),
        [""; 0]
    );
    lab.host.change("vm1", run(DomainState::Running));
    let running = lab.backup("vm1").expect("a backup");
    assert_eq!(codes(&running.findings), ["tpm-state-missing"]);
    lab.host.change("vm1", run(DomainState::ShutOff));
    let off = lab.backup("vm1").expect("a backup");
    assert_eq!(codes(&off.findings), ["tpm-state-missing"], "it has run");
    lab.host.set_tpm_state("vm1", Ok(Some(usual())));
    assert_eq!(codes(&lab.backup("vm1").expect("it is back").findings), [""; 0]);
}

#[test]
fn an_encrypted_state_is_saved_with_the_secret_it_needs() {
    let secret = "6dd3e4a5-1d76-44ce-961f-f119f5aad935";
    let encrypted = Tpm {
        secret: Some(secret.to_owned()),
        ..tpm(TpmPlace::Usual)
    };
    let mut lab = lab_with(encrypted, &usual());
    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(codes(&outcome.findings), ["tpm-state-encrypted"]);
    assert!(outcome.findings[0].message.contains(secret));
    assert!(outcome.dir().join("tpm.tar").exists());
    let outcome = restored(&lab, "copy").expect("restored");
    assert_eq!(codes(&outcome.plan.findings), ["tpm-state-encrypted"]);
}

#[test]
fn a_state_that_exists_is_never_overwritten() {
    let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
    lab.backup("vm1").expect("a backup");
    lab.host.remove_domain("vm1");
    let folder = root(&lab).join(UUID).join("tpm2");
    fs::create_dir_all(&folder).expect("new");
    // An empty folder and the rest of a dead restore are in nobody's way.
    let dead = folder.join(".vmsnap-restore-00000000000000000000000000000000.partial");
    fs::write(&dead, "half").expect("written");
    for name in ["tpm2-00.permall", ".lock"] {
        fs::write(folder.join(name), "precious").expect("written");
        let options = options(&lab, "vm1");
        let error = restored_by(&lab, &lab.host, &options).expect_err("it exists");
        assert!(
            matches!(&error.cause, Cause::TpmStateExists(path) if *path == folder),
            "{error}"
        );
        assert!(error.hint().is_some());
        assert!(!options.to.exists(), "nothing was begun");
        assert_eq!(fs::read(folder.join(name)).expect("readable"), b"precious");
        fs::remove_file(folder.join(name)).expect("the user moves it away");
    }
    let outcome = restored(&lab, "vm1").expect("restored");
    assert_eq!(codes(&outcome.plan.findings), ["healed-restore"]);
    assert_eq!(
        fs::read(folder.join("tpm2-00.permall")).expect("restored"),
        [7; 3000]
    );
    assert!(!dead.exists());
}

/// The state and the folders that were made for it go if the domain is not defined, and stay if it
/// may be defined.
#[test]
fn the_state_is_removed_again_if_the_domain_is_not_defined() {
    let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
    lab.backup("vm1").expect("a backup");
    // Defining the domain is the only step of the hypervisor in a restore.
    for (blow, stays) in [(Blow::Fails, false), (Blow::AnswerLost, true)] {
        let fuse = Fuse::at(0, blow);
        let host = CrashHost::new(lab.host.clone(), &fuse);
        restored_by(&lab, &host, &options(&lab, "copy")).expect_err("it is not defined");
        assert_eq!(fuse.steps(), ["define the domain"]);
        assert_eq!(root(&lab).exists(), stays, "{blow:?}");
        assert_eq!(lab.host.domain("copy").is_ok(), stays);
    }
}

#[test]
fn a_place_that_the_definition_names_moves_beside_the_disks() {
    for (place, files, path) in [
        (TpmPlace::Folder("/states/vm1".into()), usual(), "a%2Fb_TPM"),
        (
            TpmPlace::File("/states/vm1.state".into()),
            state(&[file(SINGLE_FILE, b"linear")]),
            "a%2Fb_TPM.state",
        ),
    ] {
        let mut lab = lab_with(tpm(place.clone()), &files);
        lab.backup("vm1").expect("a backup");
        let options = options(&lab, "a/b");
        let outcome = restored_by(&lab, &lab.host, &options).expect("restored");
        let path = options.to.join(path);
        let define = outcome.plan.define.expect("it was defined");
        assert!(
            define.xml.contains(&format!("path='{}'", path.display())),
            "{}",
            define.xml
        );
        assert!(!define.xml.contains("/states/"));
        assert!(!root(&lab).exists());
        match place {
            TpmPlace::File(_) => {
                assert_eq!(fs::read(&path).expect("restored"), b"linear");
                // libvirt does not change its owner.
                let owner = path.metadata().map(|found| (found.uid(), found.gid()));
                if rustix::process::geteuid().is_root() {
                    assert_eq!(owner.expect("it is there"), (107, 113));
                }
            }
            _ => assert_eq!(tree(&path), ["tpm2-00.permall"]),
        }
        let again = restored_by(&lab, &lab.host, &options).expect_err("it is there");
        assert!(
            matches!(again.cause, Cause::Exists(_) | Cause::Usage(_)),
            "{again}"
        );
    }
}

#[test]
fn a_state_without_a_known_place_is_reported_and_not_restored() {
    let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
    lab.backup("vm1").expect("a backup");
    let elsewhere = vmsnap::testkit::SimHost::default();
    let outcome = restored_by(&lab, &elsewhere, &options(&lab, "copy")).expect("restored");
    assert_eq!(codes(&outcome.plan.findings), ["tpm-state-not-restored"]);
    assert!(outcome.plan.findings[0].message.contains("tpm.tar"));
}

#[test]
fn a_restore_of_disks_alone_writes_no_state() {
    let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
    lab.backup("vm1").expect("a backup");
    let options = lab.restoring();
    restored_by(&lab, &lab.host, &options).expect("restored");
    assert_eq!(tree(&options.to), ["vda.qcow2"]);
    assert!(!root(&lab).exists());
}

#[test]
fn a_state_that_changes_while_it_is_read_is_reported() {
    let changing = TpmState {
        is_whole: false,
        ..state(&[file(SINGLE_FILE, b"half")])
    };
    let mut lab = lab_with(tpm(TpmPlace::File("/states/vm1".into())), &changing);
    let outcome = lab.backup("vm1").expect("a backup");
    assert_eq!(codes(&outcome.findings), ["tpm-state-changing"]);
    assert!(outcome.dir().join("tpm.tar").exists());
}

/// A tar header with this name and type, and its content.
fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Archives with valid digests, as an attacker with access to the repository could write them.
#[test]
fn hostile_archives_define_nothing_and_write_nothing() {
    let mut lab = lab_with(tpm(TpmPlace::Usual), &usual());
    let outcome = lab.backup("vm1").expect("a backup");
    let archive = outcome.dir().join("tpm.tar");
    let plain = |name: &str| entry(name, b'0', "", b"x");
    let hostile = [
        plain("../../../escaped"),
        plain("/tmp/escaped"),
        plain("tpm2/tpm2-00.permall"),
        plain(".lock"),
        plain("tpm2-00.volatilestate"),
        plain(SINGLE_FILE),
        entry("tpm2-00.permall", b'2', "/etc/shadow", b""),
        entry("tpm2-00.permall", b'1', "/etc/shadow", b""),
        entry("tpm2-00.permall", b'3', "", b""),
        entry("tpm2", b'5', "", b""),
        [entry("././@LongLink", b'L', "", b"../../escaped\0"), plain("a")].concat(),
        [entry("x", b'x', "", b"21 path=../../escaped\n"), plain("a")].concat(),
        [plain("a"), plain("a")].concat(),
        (0..40).flat_map(|n| plain(&format!("f{n}"))).collect(),
        entry("huge", b'0', "", &vec![0; 17 << 20]),
        b"no archive".to_vec(),
        Vec::new(),
    ];
    for bytes in hostile {
        fs::write(&archive, &bytes).expect("written");
        rewrite(&lab, 0, |manifest| {
            let mut files = manifest.files.iter_mut();
            let entry = files.find(|file| file.name == "tpm.tar").expect("it is listed");
            entry.size = bytes.len() as u64;
            entry.blake3 = blake3::hash(&bytes).to_hex().to_string();
        });
        let options = options(&lab, "copy");
        let error = restored_by(&lab, &lab.host, &options).expect_err("it is hostile");
        assert_eq!(error.class(), Class::Damaged, "{error}");
        assert!(error.to_string().contains("tpm.tar"), "{error}");
        assert!(!options.to.exists() && !root(&lab).exists());
        assert!(!lab.folder.path().join("escaped").exists());
        // The disks can be restored without the domain.
        let disks = Options {
            to: free(&lab),
            ..lab.restoring()
        };
        restored_by(&lab, &lab.host, &disks).expect("they are sound");
    }
}
