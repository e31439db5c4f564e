//! Tests of the lab's daemon and domains.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{Crash, Daemon, TestDomain};
use crate::leftovers::LAB_DIR;
use crate::process::{command, is_alive, processes_with, run, wait_until};

/// A paused domain with an empty disk. It never runs.
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
fn removed_domain_leaves_no_checkpoint_process_or_folder() {
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
        // A test must not restart the machine's own daemon.
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
fn lab_daemon_stops_without_a_trace_and_starts_again() {
    let daemon = Daemon::exclusive();
    if !daemon.is_ours() {
        assert!(catch_unwind(AssertUnwindSafe(|| daemon.stop())).is_err());
        return;
    }
    let ours = format!("--pid-file {LAB_DIR}/");
    let daemons = || {
        let mut found = processes_with(&ours);
        found.retain(|(_, line)| line.starts_with("/usr/sbin/"));
        found
    };
    assert_eq!(daemons().len(), 2, "libvirtd and virtlogd");

    daemon.stop();
    assert_eq!(daemons(), []);
    assert!(!daemon.try_virsh(&["version"]).ok());

    daemon.start();
    daemon.virsh(&["version"]);
}

#[test]
fn a_qemu_that_libvirt_has_lost_is_noticed_and_ended() {
    let daemon = Daemon::exclusive();
    if !daemon.is_ours() {
        assert!(catch_unwind(AssertUnwindSafe(|| daemon.stop())).is_err());
        return;
    }
    for is_panicking in [false, true] {
        let mut name = String::new();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let domain = paused_domain(&daemon, "lost");
            domain.name().clone_into(&mut name);
            domain.lose_qemu();
            assert_eq!(domain.state(), "shut off");
            assert!(domain.lost_qemu().is_some());
            assert!(!is_panicking, "as a failed assertion does");
        }));
        let panic = panicked.expect_err("the drop panics about the lost QEMU");
        let said = panic.downcast_ref::<String>().map_or("", String::as_str);
        assert_eq!(
            said.contains("libvirt had lost its QEMU"),
            !is_panicking,
            "{said}"
        );
        assert_eq!(processes_with(&name), [], "it is ended");
        assert!(!is_listed(&daemon, &name));
    }
}

#[test]
fn panicking_test_with_stopped_daemon_leaves_nothing() {
    let daemon = Daemon::exclusive();
    if !daemon.is_ours() {
        assert!(catch_unwind(AssertUnwindSafe(|| daemon.stop())).is_err());
        return;
    }
    let mut name = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let domain = paused_domain(&daemon, "without-daemon");
        domain.name().clone_into(&mut name);
        daemon.kill();
        panic!("as a failed assertion does");
    }));
    assert!(panicked.is_err());
    assert!(!is_listed(&daemon, &name));
    assert_eq!(processes_with(&name), []);
}

/// Only a death by a signal that the lab has not sent is a crash.
#[test]
fn daemon_crash_is_distinguished_from_stop_and_kill() {
    let daemon = Daemon::exclusive();
    if !daemon.is_ours() {
        assert_eq!(daemon.crashes(), []);
        return;
    }
    let before = daemon.crashes();
    daemon.restart();
    daemon.kill();
    assert_eq!(daemon.crashes(), before);
    daemon.start();

    let [(pid, _)] = processes_with("libvirtd --timeout")
        .into_iter()
        .filter(|(_, line)| line.starts_with("/usr/sbin/"))
        .collect::<Vec<_>>()[..]
    else {
        panic!("there is one libvirtd");
    };
    let process = Pid::from_raw(pid as i32).expect("a process id is not zero");
    kill_process(process, Signal::SEGV).expect("it is ours");
    assert!(wait_until(Duration::from_secs(20), || !is_alive(pid)), "it dies");
    let crashes = daemon.crashes();
    assert_eq!(crashes[..before.len()], before);
    assert_eq!(crashes[before.len()..], [Crash { pid, signal: 11 }]);
    daemon.revive();
    daemon.virsh(&["version"]);
}
