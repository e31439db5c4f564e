//! libvirtd is killed and restarted at random moments of a run.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{Chaos, DISKS, Rounds};
use crate::daemon::Daemon;
use crate::process::{is_alive, wait_until};

const ROUNDS: usize = 12;

/// The time for a daemon to come back and for a run to notice.
const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn daemon_killed_or_restarted_fails_at_most_that_run() {
    let daemon = Daemon::exclusive();
    let mut chaos = Chaos::new(&daemon, "killed-daemon");
    // A test must not kill the machine's own daemon.
    let number = if daemon.is_ours() { ROUNDS } else { 0 };
    let mut rounds = Rounds::new(&daemon);
    for number in 0..number {
        rounds.run(&mut chaos, |chaos| round(&daemon, chaos, number));
    }
    chaos.assert_no_strange_bitmaps();
}

fn round(daemon: &Daemon, chaos: &mut Chaos, number: usize) {
    chaos.scribble_and_sync();
    let run = chaos.repo.begin_backup(&[chaos.machine.name()], &[]);
    chaos.wait_a_moment();
    match number % 2 {
        0 => daemon.kill(),
        _ => daemon.stop(),
    }
    daemon.start();
    let finished = run.wait(DEADLINE);
    // A run that begins without a daemon ends with code 3.
    assert!(matches!(finished.code, Some(0 | 3 | 9)), "{finished:#?}");
    chaos.take_stock();
    if let Some(lost) = chaos.machine.domain.lost_qemu() {
        println!("libvirt has lost its QEMU in round {number}");
        do_what_is_said_of_a_lost_qemu(chaos, lost);
    } else if has_lost_its_job(chaos) {
        assert_tells_what_to_do(chaos);
        chaos.machine.pull_the_plug();
        daemon.restart();
        chaos.machine.domain.start_paused();
    }
    chaos.scribble_and_sync();
    chaos.run_well();
    chaos.assert_clean();
    chaos.prove();
}

/// A daemon that is killed or crashes at a bad moment loses its QEMU: libvirt shows the domain as
/// shut off, and the images are in use.
#[test]
fn qemu_lost_by_libvirt_is_named_until_it_is_ended() {
    let daemon = Daemon::exclusive();
    let mut chaos = Chaos::new(&daemon, "lost-qemu");
    if !daemon.is_ours() {
        // A test must not stop the machine's own daemon.
        chaos.assert_clean();
        return;
    }
    for is_mid_run in [false, true] {
        chaos.scribble_and_sync();
        if is_mid_run {
            let mut run = chaos.repo.begin_backup(&[chaos.machine.name()], &[]);
            wait_until(DEADLINE, || chaos.is_copying() || !run.is_running());
            run.signal(Signal::KILL);
            run.wait(DEADLINE);
            chaos.take_stock();
        }
        chaos.machine.domain.lose_qemu();
        let lost = chaos.machine.domain.lost_qemu().expect("it was lost on purpose");
        do_what_is_said_of_a_lost_qemu(&mut chaos, lost);
        chaos.scribble_and_sync();
        chaos.run_well();
        chaos.assert_clean();
        chaos.prove();
    }
    chaos.assert_no_strange_bitmaps();
}

/// Checks that a backup fails, names the process and a remedy, and damages nothing. Then applies
/// the remedy.
fn do_what_is_said_of_a_lost_qemu(chaos: &mut Chaos, lost: u32) {
    let name = chaos.machine.name().to_owned();
    let refused = chaos.repo.backup(&[&name], &[]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    let users = format!(
        "is in use: process {lost} (qemu-system-x86, guest {}) has it open",
        name
    );
    for words in [
        users.as_str(),
        "libvirtd has lost it",
        "end the QEMU process with `kill`",
    ] {
        assert!(refused.stderr.contains(words), "{words}: {refused:#?}");
    }
    chaos.take_stock();
    let process = Pid::from_raw(lost as i32).expect("a process id is not zero");
    kill_process(process, Signal::TERM).expect("it is there");
    assert!(wait_until(DEADLINE, || !is_alive(lost)), "the lost QEMU ends");
    for disk in 0..DISKS.len() {
        let before = chaos.machine.disks[disk].clone();
        chaos.machine.learn(disk);
        assert!(
            before == chaos.machine.disks[disk],
            "the lost QEMU has written its images"
        );
    }
    chaos.machine.domain.start_paused();
}

/// Whether libvirtd was killed after it recorded that a job starts, but before it recorded which
/// one. Such a job cannot be ended.
fn has_lost_its_job(chaos: &Chaos) -> bool {
    let told = chaos.machine.domain.try_virsh(&["domjobinfo"]);
    told.stderr.contains("backup job data missing")
}

fn assert_tells_what_to_do(chaos: &Chaos) {
    let refused = chaos.repo.backup(&[chaos.machine.name()], &[]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("then restart libvirtd"), "{refused:#?}");
}
