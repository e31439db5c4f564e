//! Restore targets that are in use: the plan refuses them before anything is written.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use vmsnap::host::Host;
use vmsnap::model::domain::{Backing, DomainState, Source};
use vmsnap::model::stop::Stop;
use vmsnap::ops::restore::{self, Format, Options, RestorePlan};
use vmsnap::ops::{Cause, Class, Error, Result};

use crate::lab::{CLUSTER, Lab, read_qcow2};
use crate::no_rights::without_rights;

/// A device node without a device: its number is reserved for local and experimental use.
fn node(path: PathBuf) -> PathBuf {
    let made = mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR, makedev(60, 17));
    made.expect("this test has to run as root, outside of a user namespace");
    path
}

fn plan(lab: &Lab, to: &Path, format: Option<Format>, host: Option<&dyn Host>) -> Result<RestorePlan> {
    let options = Options {
        at: "latest".into(),
        to: to.to_owned(),
        pool: None,
        disks: Vec::new(),
        format,
        define: None,
    };
    restore::plan("vm1", lab.repo.as_ref(), host, &options)
}

fn refused(lab: &Lab, to: &Path) -> (Error, String) {
    let error = plan(lab, to, None, Some(&lab.host)).expect_err("it is in use");
    assert!(matches!(error.cause, Cause::InUse { .. }), "{error}");
    assert_eq!(error.class(), Class::Failed);
    let told = error.to_string();
    (error, told)
}

/// A lab in which another domain has this file or device as its disk.
fn lab_with_user(state: DomainState, source: Source) -> Lab {
    let lab = Lab::with_three_points();
    lab.host.add_domain("user", &[("vdb", CLUSTER)]);
    lab.host.change("user", |domain| {
        domain.state = state;
        domain.disks[0].source = source;
    });
    lab
}

#[test]
fn a_device_of_a_domain_is_refused_by_any_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (
        node(folder.path().join("ours")),
        node(folder.path().join("theirs")),
    );
    let link = folder.path().join("link");
    symlink(&ours, &link).expect("new");
    for (state, words) in [
        (DomainState::Running, "active"),
        (DomainState::ShutOff, "shut-off"),
    ] {
        let lab = lab_with_user(state, Source::Block(theirs.clone()));
        for to in [&ours, &theirs, &link] {
            let (error, told) = refused(&lab, to);
            let expected = format!(
                "nothing was written to {}, because it is in use: {words} domain 'user' has it as disk vdb",
                to.display()
            );
            assert!(told.contains(&expected), "{told}");
            let hint = error.hint().expect("a hint");
            assert_eq!(
                hint.contains("virsh undefine 'user'"),
                state == DomainState::ShutOff,
                "{hint}"
            );
        }
    }
}

#[test]
fn a_device_beneath_a_domains_disk_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = node(folder.path().join("device"));
    let lab = lab_with_user(DomainState::Running, Source::File("/images/top.qcow2".into()));
    lab.host.change("user", |domain| {
        let mut below = domain.disks[0].image();
        below.source = Source::Block(device.clone());
        domain.disks[0].backing = Backing::Layer(Box::new(below));
    });
    let (_, told) = refused(&lab, &device);
    assert!(told.contains("has it as the backing file of disk vdb"), "{told}");
}

#[test]
fn without_libvirt_a_finding_says_what_was_not_checked() {
    let lab = Lab::with_three_points();
    let device = node(lab.folder.path().join("device"));
    let found = plan(&lab, &device, None, None).expect("nobody is known to use it");
    let codes: Vec<&str> = found.findings.iter().map(|found| found.code.as_str()).collect();
    assert_eq!(codes, ["domains-not-known"]);
    let asked = plan(&lab, &device, None, Some(&lab.host)).expect("nobody uses it");
    assert_eq!(asked.findings, []);
}

/// A process of another user than root, killed when dropped.
struct Stranger(Child);

impl Stranger {
    fn new() -> Stranger {
        let mut sleep = Command::new("sleep");
        let child = sleep.arg("600").uid(65534).spawn();
        Stranger(child.expect("root may start it"))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_of_others_that_cannot_be_looked_at_are_a_finding() {
    let lab = Lab::with_three_points();
    let device = node(lab.folder.path().join("device"));
    let stranger = Stranger::new();
    let seen = plan(&lab, &device, None, Some(&lab.host)).expect("nobody uses it");
    assert_eq!(seen.findings, [], "root sees every process");
    let found =
        without_rights(|| plan(&lab, &device, None, Some(&lab.host))).expect("nobody is known to use it");
    let [finding] = &found.findings[..] else {
        panic!("{:?}", found.findings);
    };
    assert_eq!(finding.code, "processes-not-seen");
    for words in ["could not be examined", "run as root"] {
        assert!(finding.message.contains(words), "{}", finding.message);
    }
    drop(stranger);
}

#[test]
fn qcow2_is_not_written_onto_a_device() {
    let lab = Lab::with_three_points();
    let device = node(lab.folder.path().join("device"));
    let error = plan(&lab, &device, Some(Format::Qcow2), None).expect_err("it is no device's format");
    assert_eq!(error.class(), Class::Usage);
    assert!(error.to_string().contains("use --format raw"), "{error}");
    let raw = plan(&lab, &device, Some(Format::Raw), None).expect("the raw format is accepted");
    assert_eq!(raw.disks[0].format, Format::Raw);
}

#[test]
fn a_lost_image_comes_back_unless_its_domain_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let linked = folder.path().join("linked");
    symlink(folder.path(), &linked).expect("new");
    let to = folder.path().join("lost.qcow2");
    let lab = lab_with_user(DomainState::Running, Source::File(linked.join("lost.qcow2")));
    let (_, told) = refused(&lab, &to);
    assert!(told.contains("active domain 'user' has it as disk vdb"), "{told}");

    lab.host
        .change("user", |domain| domain.state = DomainState::ShutOff);
    let plan = plan(&lab, &to, None, Some(&lab.host)).expect("nothing is there");
    assert_eq!(plan.findings[0].code, "file-of-a-domain");
    assert!(
        plan.findings[0].message.contains("'user' names"),
        "{:?}",
        plan.findings
    );
    restore::restore(
        "vm1",
        plan,
        &restore::Means {
            host: Some(&lab.host),
            ..lab.means(&lab.recorder, &Stop::default())
        },
    )
    .expect("restored");
    assert_eq!(read_qcow2(&to), lab.disk("vm1", "vda"));
}

#[test]
fn existing_file_is_never_overwritten_even_through_links() {
    let folder = tempfile::tempdir().expect("a folder");
    let (image, to) = (folder.path().join("image.raw"), folder.path().join("to.raw"));
    fs::write(&image, "a disk").expect("written");
    fs::hard_link(&image, &to).expect("linked");
    let lab = lab_with_user(DomainState::Running, Source::File(image.clone()));
    let error = plan(&lab, &to, None, Some(&lab.host)).expect_err("it is there");
    assert!(matches!(error.cause, Cause::Exists(_)), "{error}");
    assert_eq!(fs::read(&image).expect("there"), b"a disk");
}
