//! What the lab promises about its daemon and domains.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use super::start::LAB_DIR;
use super::{Daemon, TestDomain, home};
use crate::process::{command, processes_with, run};

/// A disk without a system on it; the domain is never run.
fn paused_domain(daemon: &Daemon, label: &str) -> TestDomain {
    let domain = TestDomain::new(daemon, label);
    let disk = domain.path("vda.qcow2").display().to_string();
    run(command(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &disk, "64M"],
    ));
    let devices = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
    );
    domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
    domain.start_paused();
    domain
}

fn is_listed(daemon: &Daemon, name: &str) -> bool {
    daemon
        .virsh(&["list", "--all", "--name"])
        .lines()
        .any(|line| line == name)
}

fn add_checkpoint(domain: &TestDomain, name: &str) {
    domain.virsh(&[
        "checkpoint-create-as",
        "--name",
        name,
        "--diskspec",
        "vda,checkpoint=bitmap",
    ]);
}

#[test]
fn a_domain_is_gone_with_its_checkpoints_its_process_and_its_folder() {
    let daemon = Daemon::acquire();
    let domain = paused_domain(&daemon, "a name with 'quotes' & blanks");
    assert_eq!(domain.state(), "paused");
    add_checkpoint(&domain, "c0");
    let (name, dir) = (domain.name().to_owned(), domain.dir().to_owned());
    assert!(is_listed(&daemon, &name));
    assert_eq!(processes_with(&format!("guest={name},")).len(), 1);

    drop(domain);

    assert!(!is_listed(&daemon, &name));
    assert_eq!(processes_with(&name), [], "QEMU has ended");
    assert!(!dir.exists());
}

#[test]
fn a_test_that_panics_leaves_nothing() {
    let daemon = Daemon::acquire();
    let mut left = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let domain = paused_domain(&daemon, "panics");
        left = Some((domain.name().to_owned(), domain.dir().to_owned()));
        panic!("as a failed assertion does");
    }));
    assert!(panicked.is_err());
    let (name, dir) = left.expect("the domain was made before the panic");
    assert!(!is_listed(&daemon, &name));
    assert_eq!(processes_with(&name), []);
    assert!(!dir.exists());
}

#[test]
fn a_running_domain_outlives_a_restart_of_the_daemon() {
    let daemon = Daemon::exclusive();
    if !daemon.is_ours() {
        // The machine's own daemon is not for a test to restart.
        assert!(catch_unwind(AssertUnwindSafe(|| daemon.stop())).is_err());
        return;
    }
    let domain = paused_domain(&daemon, "restart");
    add_checkpoint(&domain, "c0");
    daemon.restart();
    assert_eq!(domain.state(), "paused");
    assert_eq!(domain.virsh(&["checkpoint-list", "--name"]).trim(), "c0");
}

#[test]
fn a_daemon_that_the_lab_started_is_stopped_without_a_trace_and_starts_again() {
    let daemon = Daemon::exclusive();
    if !daemon.is_ours() {
        assert!(catch_unwind(AssertUnwindSafe(|| daemon.stop())).is_err());
        return;
    }
    let ours = format!("--pid-file {LAB_DIR}/");
    assert_eq!(processes_with(&ours).len(), 2, "libvirtd and virtlogd");

    daemon.stop();
    assert_eq!(processes_with(&ours), []);
    assert!(!daemon.try_virsh(&["version"]).ok());

    daemon.start();
    daemon.virsh(&["version"]);
}

#[test]
fn what_a_killed_test_run_left_is_removed_by_the_next() {
    let daemon = Daemon::acquire();
    // A process that has ended, and whose number is not given away so soon.
    let mut child = Command::new("true").spawn().expect("true can be run");
    let pid = child.id();
    child.wait().expect("true ends");
    let name = format!("vmsnap-test-{pid}-1-killed");
    let file = std::env::temp_dir().join(&name);
    let dir = std::path::Path::new("/var/tmp").join(&name);
    let xml = daemon_xml(&name, daemon.virt_type());
    std::fs::write(&file, xml).expect("there is a folder for temporary files");
    std::fs::create_dir(&dir).expect("there is a folder for temporary files");
    daemon.virsh(&["create", "--paused", &file.display().to_string()]);
    std::fs::remove_file(&file).expect("it is ours");

    super::domain::sweep(&daemon);

    assert!(!is_listed(&daemon, &name));
    assert!(!dir.exists());
}

fn daemon_xml(name: &str, virt_type: &str) -> String {
    format!(
        "<domain type='{virt_type}'><name>{name}</name><memory unit='MiB'>32</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
}

#[test]
fn only_what_a_dead_process_made_is_an_orphan() {
    assert!(!home::is_orphan(&format!("vmsnap-test-{}-1", std::process::id())));
    assert!(home::is_orphan("vmsnap-test-999999999-1-x"));
    for name in [
        "vmsnap-test-",
        "vmsnap-test-x-1",
        "vmsnap-test",
        "web",
        "a vmsnap-test-999999999-1",
    ] {
        assert!(!home::is_orphan(name), "{name}");
    }
}
