//! The program on a libvirtd: stopped, killed, and left without its daemon in the middle of a copy.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_lab::{Begun, Change, Machine, Repo, STOP_DEADLINE, codes, has_job, outcome_of, text_of};
use crate::daemon::Daemon;
use crate::process::Finished;

const MIB: usize = 1 << 20;

/// Enough to copy for a process that was caught at the beginning not to be done before it sees a signal.
const BIG: usize = 256 * MIB;

/// A backup that is stopped by a signal in the middle of its copy.
fn stopped_by(repo: &Repo, machine: &Machine, more: &[&str], signal: Signal) -> (Begun, Finished) {
    let mut run = repo.begin_backup(&[machine.name()], &[&["--json"], more].concat());
    let begun = run.hold_in_mid_copy();
    assert!(machine.checkpoints().contains(&begun.checkpoint));
    run.signal(signal);
    run.go_on();
    (begun, run.wait(STOP_DEADLINE))
}

/// A backup that is killed in the middle of its copy.
fn killed(repo: &Repo, machine: &Machine) -> Begun {
    let mut run = repo.begin_backup(&[machine.name()], &[]);
    let begun = run.hold_in_mid_copy();
    run.signal(Signal::KILL);
    assert_eq!(run.wait(STOP_DEADLINE).code, None);
    assert_eq!(repo.partials().len(), 1);
    assert!(machine.checkpoints().contains(&begun.checkpoint));
    assert!(begun.places.iter().any(|place| place.exists()));
    begun
}

/// The next ordinary backup: it ends what is left, and its restore point gives back the disks.
fn assert_heals(repo: &Repo, machine: &Machine, begun: &Begun, level: &str) {
    let outcome = assert_next_is_right(repo, machine, begun, level);
    assert_eq!(codes(&outcome), ["healed-partial"], "{outcome:#}");
}

fn assert_next_is_right(repo: &Repo, machine: &Machine, begun: &Begun, level: &str) -> Value {
    let before = repo.list(machine.name()).len();
    let outcome = repo.back_up(machine.name(), &[]);
    assert_eq!(outcome["restorePoint"]["level"], level, "{outcome:#}");
    machine.assert_nothing_left(repo, begun);
    // The one that the dead run has made is gone, and every other one belongs to a restore point.
    let listed = repo.list(machine.name());
    let recorded: Vec<&str> = listed.iter().map(|point| text_of(&point["checkpoint"])).collect();
    assert_eq!(machine.checkpoints(), recorded);
    assert_eq!(recorded.len(), before + 1);
    let id = text_of(&outcome["restorePoint"]["id"]);
    machine.assert_restored(&repo.restore(machine.name(), id, "raw"), &machine.disks);
    outcome
}

#[test]
fn ctrl_c_and_sigterm_end_the_job_and_leave_nothing() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "stopped", &[BIG, MIB]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let (begun, interrupted) = stopped_by(&repo, &machine, &[], Signal::INT);
    assert_eq!(interrupted.code, Some(130), "{interrupted:#?}");
    let outcome = outcome_of(&interrupted, machine.name());
    assert_eq!(
        (&outcome["outcome"], &outcome["restorePoint"].is_null()),
        (&"failed".into(), &true)
    );
    machine.assert_nothing_left(&repo, &begun);
    assert_eq!(machine.checkpoints(), [""; 0]);
    assert_eq!(machine.domain.state(), "paused");

    let first = repo.back_up(machine.name(), &[]);
    assert_eq!(
        (first["restorePoint"]["level"].as_str(), codes(&first)),
        (Some("full"), vec![])
    );

    machine.fill(0, 2);
    let (begun, terminated) = stopped_by(&repo, &machine, &[], Signal::TERM);
    assert_eq!(terminated.code, Some(143), "{terminated:#?}");
    machine.assert_nothing_left(&repo, &begun);
    assert_eq!(
        machine.checkpoints(),
        [text_of(&first["restorePoint"]["checkpoint"])]
    );

    machine.change(0, MIB, MIB, Change::Zero);
    let second = repo.back_up(machine.name(), &[]);
    assert_eq!(second["restorePoint"]["parent"], first["restorePoint"]["id"]);
    assert_eq!(codes(&second), [""; 0]);
    machine.assert_restored(&repo.restore(machine.name(), "latest", "raw"), &machine.disks);
}

#[test]
fn ctrl_c_ends_the_readers_of_a_shut_off_domain_and_no_further_domain_is_begun() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "stopped-off", &[BIG]);
    machine.fill(0, 1);
    let next = Machine::define(&daemon, "not-begun", &[MIB]);
    let repo = Repo::new();
    let (begun, interrupted) = stopped_by(&repo, &machine, &["--domains", next.name()], Signal::INT);
    assert_eq!(interrupted.code, Some(130), "{interrupted:#?}");
    machine.assert_nothing_left(&repo, &begun);
    assert_eq!(
        (machine.checkpoints(), next.checkpoints()),
        (Vec::new(), Vec::new())
    );
    // Nobody holds the image.
    machine.domain.start_paused();
    let first = repo.back_up(machine.name(), &[]);
    assert_eq!(first["restorePoint"]["level"], "full");
}

#[test]
fn what_a_killed_run_leaves_the_next_one_ends() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "killed", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let begun = killed(&repo, &machine);
    assert!(has_job(&machine.domain));
    assert_heals(&repo, &machine, &begun, "full");

    machine.fill(0, 2);
    let begun = killed(&repo, &machine);
    // What the guest writes while the dead run's job goes on counts.
    machine.change(0, 3 * MIB, MIB, Change::Zero);
    machine.change(0, 7 * MIB, 512, Change::Data(0xee));
    assert_heals(&repo, &machine, &begun, "incremental");

    machine.fill(0, 3);
    let begun = killed(&repo, &machine);
    machine.domain.destroy();
    machine.change(0, 5 * MIB, MIB, Change::Zero);
    machine.domain.start_paused();
    assert_heals(&repo, &machine, &begun, "incremental");
}

#[test]
fn what_a_killed_run_leaves_of_a_shut_off_domain_the_next_one_ends() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "killed-off", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let begun = killed(&repo, &machine);
    assert_heals(&repo, &machine, &begun, "full");
    machine.domain.start_paused();
}

/// Its readers hold the images, and nobody would come to end them before the next backup.
#[test]
fn a_killed_run_does_not_keep_a_shut_off_domain_from_starting() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "killed-start", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let begun = killed(&repo, &machine);
    machine.wait_for_readers_to_end();
    machine.domain.start_paused();
    machine.change(0, 3 * MIB, MIB, Change::Zero);
    assert_heals(&repo, &machine, &begun, "full");
}

#[test]
fn a_domain_that_is_stopped_in_mid_copy_costs_this_run_and_no_more() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "pulled", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    repo.back_up(machine.name(), &[]);
    for starts_again in [false, true] {
        machine.fill(0, 2 + u8::from(starts_again));
        let mut run = repo.begin_backup(&[machine.name()], &["--json"]);
        let begun = run.hold_in_mid_copy();
        thread::scope(|scope| {
            scope.spawn(|| machine.domain.destroy());
            // QEMU ends when it has sent what was asked for. A reader that stands still would keep it until it is killed, and its
            // bitmaps would be lost.
            thread::sleep(Duration::from_secs(1));
            run.go_on();
        });
        if starts_again {
            machine.domain.start_paused();
        }
        let failed = run.wait(Duration::from_secs(60));
        assert_eq!(failed.code, Some(9), "{failed:#?}");
        assert_eq!(outcome_of(&failed, machine.name())["outcome"], "failed");
        // How much could be cleaned up depends on how far the domain was in its ending.
        assert_next_is_right(&repo, &machine, &begun, "incremental");
        if !starts_again {
            machine.domain.start_paused();
        }
    }
}

#[test]
fn a_daemon_that_is_restarted_in_mid_copy_costs_nothing() {
    let daemon = Daemon::exclusive();
    let mut machine = Machine::paused(&daemon, "restarted", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    if !daemon.is_ours() {
        // The machine's own daemon is not for a test to restart.
        repo.back_up(machine.name(), &[]);
        return;
    }
    let mut run = repo.begin_backup(&[machine.name()], &["--json"]);
    let begun = run.hold_in_mid_copy();
    daemon.restart();
    run.go_on();
    let finished = run.wait(Duration::from_secs(60));
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    machine.assert_nothing_left(&repo, &begun);
    machine.assert_restored(&repo.restore(machine.name(), "latest", "raw"), &machine.disks);

    // One that is away when the copy is done, and comes back later.
    machine.fill(0, 2);
    let mut run = repo.begin_backup(&[machine.name()], &["--json"]);
    let begun = run.hold_in_mid_copy();
    daemon.stop();
    run.go_on();
    let failed = run.wait(Duration::from_secs(60));
    daemon.start();
    assert_eq!(failed.code, Some(9), "{failed:#?}");
    assert_eq!(repo.list(machine.name()).len(), 1, "what was kept is still there");
    assert_heals(&repo, &machine, &begun, "incremental");

    // The same with Ctrl-C.
    machine.fill(0, 3);
    let mut run = repo.begin_backup(&[machine.name()], &["--json"]);
    let begun = run.hold_in_mid_copy();
    daemon.stop();
    run.signal(Signal::INT);
    run.go_on();
    let interrupted = run.wait(STOP_DEADLINE);
    daemon.start();
    assert_eq!(interrupted.code, Some(130), "{interrupted:#?}");
    assert_heals(&repo, &machine, &begun, "incremental");
}
