//! QEMU is killed, and the domain destroyed, at random moments of a run.

use rustix::process::{Pid, Signal, kill_process};
use vmsnap::model::restore_point::Consistency;

use super::{Chaos, DISKS, Rounds};
use crate::cli_lab::STOP_DEADLINE;
use crate::daemon::Daemon;
use crate::process::wait_until;

const ROUNDS: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Destroyed,
}

/// A run during which the domain ends, and an ordinary run after it; the domain is alternately shut
/// off and started in between.
fn round(chaos: &mut Chaos, number: usize, end: End) {
    chaos.scribble();
    let mut run = chaos.repo.begin_backup(&[chaos.machine.name()], &[]);
    if end == End::Destroyed {
        // libvirt 9.0 hangs if a domain is destroyed while it makes a job's scratch files, until
        // the daemon is restarted.
        wait_until(STOP_DEADLINE, || chaos.is_copying() || !run.is_running());
    }
    chaos.wait_a_moment();
    match end {
        End::Killed => kill_qemu(chaos),
        End::Destroyed => destroy(chaos),
    }
    let finished = run.wait(STOP_DEADLINE * 8);
    assert!(matches!(finished.code, Some(0 | 9)), "{finished:#?}");
    // Writes that QEMU had not finished are lost. That also affects a later run that finds the
    // domain shut off.
    let history = chaos.history();
    let newest = &history.chains.latest().expect("there are some").point;
    if newest.consistency != Consistency::Offline {
        chaos.take_stock();
    }
    for disk in 0..DISKS.len() {
        chaos.machine.learn(disk);
    }
    chaos.take_stock();
    if number.is_multiple_of(2) {
        chaos.scribble();
        chaos.run_well();
        chaos.machine.domain.start_paused();
    } else {
        chaos.machine.domain.start_paused();
        chaos.scribble();
        chaos.run_well();
    }
    chaos.assert_clean();
    chaos.prove();
}

/// Destroys the domain. libvirt may answer that it is not running if QEMU ends at the same time.
fn destroy(chaos: &Chaos) {
    let domain = &chaos.machine.domain;
    let said = domain.try_virsh(&["destroy"]);
    let is_off = || domain.state() == "shut off";
    assert!(wait_until(STOP_DEADLINE, is_off), "{said:#?}");
    domain.settle();
}

fn kill_qemu(chaos: &Chaos) {
    let pid = chaos.qemu().expect("it runs");
    let pid = Pid::from_raw(pid as i32).expect("a process id is not zero");
    kill_process(pid, Signal::KILL).expect("it is there");
    let domain = &chaos.machine.domain;
    let is_off = || domain.state() == "shut off";
    assert!(wait_until(STOP_DEADLINE, is_off), "libvirt notices");
    domain.settle();
}

#[test]
fn a_qemu_killed_in_any_moment_of_a_run_costs_that_run_at_most() {
    let daemon = Daemon::acquire();
    let mut chaos = Chaos::new(&daemon, "killed-qemu");
    let mut rounds = Rounds::new(&daemon);
    for number in 0..ROUNDS {
        rounds.run(&mut chaos, |chaos| round(chaos, number, End::Killed));
    }
    chaos.assert_no_strange_bitmaps();
}

#[test]
fn domain_destroyed_at_any_moment_fails_at_most_that_run() {
    let daemon = Daemon::acquire();
    let mut chaos = Chaos::new(&daemon, "destroyed");
    let mut rounds = Rounds::new(&daemon);
    for number in 0..ROUNDS {
        rounds.run(&mut chaos, |chaos| round(chaos, number, End::Destroyed));
    }
    chaos.assert_no_strange_bitmaps();
}
