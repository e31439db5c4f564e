//! The program is stopped or killed in mid-copy, or loses its daemon.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_lab::{
    Begun, Change, Machine, Repo, Running, STOP_DEADLINE, codes, has_job, outcome_of, text_of,
};
use crate::daemon::Daemon;
use crate::process::{Finished, wait_until};

const MIB: usize = 1 << 20;

/// Large enough that a process held at the start of its copy cannot finish before it handles a
/// signal.
const BIG: usize = 256 * MIB;

/// Sends a signal to a backup in the middle of its copy.
fn stopped_by(repo: &Repo, machine: &Machine, more: &[&str], signal: Signal) -> (Begun, Finished) {
    let mut run = repo.begin_backup(&[machine.name()], &[&["--json"], more].concat());
    let begun = run.hold_in_mid_copy();
    assert!(machine.checkpoints().contains(&begun.checkpoint));
    run.signal(signal);
    run.go_on();
    (begun, run.wait(STOP_DEADLINE))
}

/// Kills a backup in the middle of its copy.
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

/// The possible levels of the next backup after QEMU has ended: it closed its images, or it
/// crashed.
fn level_after(closed_well: bool) -> &'static [&'static str] {
    match closed_well {
        true => &["incremental"],
        false => &["full", "incremental"],
    }
}

/// The next ordinary backup removes what is left, and its restore point gives back the disks.
fn assert_heals(repo: &Repo, machine: &Machine, begun: &Begun, levels: &[&str]) {
    let outcome = assert_next_is_right(repo, machine, begun, levels);
    assert_eq!(codes(&outcome), ["healed-partial"], "{outcome:#}");
}

fn assert_next_is_right(repo: &Repo, machine: &Machine, begun: &Begun, levels: &[&str]) -> Value {
    let before = repo.list(machine.name()).len();
    let outcome = repo.back_up(machine.name(), &[]);
    let level = text_of(&outcome["restorePoint"]["level"]);
    assert!(levels.contains(&level), "{outcome:#}");
    machine.assert_nothing_left(repo, begun);
    // The dead run's checkpoint is gone, and every other one belongs to a restore point.
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
fn ctrl_c_ends_offline_readers_and_starts_no_more_domains() {
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
    // No process holds the image, so the domain can start.
    machine.domain.start_paused();
    let first = repo.back_up(machine.name(), &[]);
    assert_eq!(first["restorePoint"]["level"], "full");
}

#[test]
fn next_run_clears_a_killed_run() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "killed", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let begun = killed(&repo, &machine);
    assert!(has_job(&machine.domain));
    assert_heals(&repo, &machine, &begun, &["full"]);

    machine.fill(0, 2);
    let begun = killed(&repo, &machine);
    // The guest's writes during the dead run's job are saved too.
    machine.change(0, 3 * MIB, MIB, Change::Zero);
    machine.change(0, 7 * MIB, 512, Change::Data(0xee));
    assert_heals(&repo, &machine, &begun, &["incremental"]);

    machine.fill(0, 3);
    let begun = killed(&repo, &machine);
    let level = level_after(machine.pull_the_plug());
    machine.change(0, 5 * MIB, MIB, Change::Zero);
    machine.domain.start_paused();
    assert_heals(&repo, &machine, &begun, level);
}

#[test]
fn next_run_clears_a_killed_run_of_a_shut_off_domain() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "killed-off", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let begun = killed(&repo, &machine);
    assert_heals(&repo, &machine, &begun, &["full"]);
    machine.domain.start_paused();
}

/// The dead run's readers hold the images, and nothing would end them before the next backup.
#[test]
fn shut_off_domain_can_start_after_a_killed_run() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "killed-start", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let begun = killed(&repo, &machine);
    machine.wait_for_readers_to_end();
    machine.domain.start_paused();
    machine.change(0, 3 * MIB, MIB, Change::Zero);
    assert_heals(&repo, &machine, &begun, &["full"]);
}

/// Ends the domain in the middle of an incremental backup, which fails. The domain is started again
/// before that run ends, or only before the next one.
fn assert_an_end_costs_one_run(machine: &mut Machine, end: impl Fn(&Machine, &Running)) {
    let repo = Repo::new();
    repo.back_up(machine.name(), &[]);
    for starts_again in [false, true] {
        let place = 8 * MIB * (1 + usize::from(starts_again));
        machine.change(0, place, MIB, Change::Data(0xd1));
        machine.fill(1, 2 + u8::from(starts_again));
        let kept = repo.list(machine.name());
        let mut run = repo.begin_backup(&[machine.name()], &["--json"]);
        let begun = run.hold_in_mid_copy();
        let crashes = machine.domain.qemu_crashes();
        end(machine, &run);
        if starts_again {
            // While the run removes its bitmaps from an image, QEMU's lock blocks other programs
            // for some milliseconds.
            let starts = || machine.domain.try_virsh(&["start", "--paused"]).ok();
            assert!(wait_until(STOP_DEADLINE * 4, starts), "it starts again");
        }
        let failed = run.wait(Duration::from_secs(60));
        assert_eq!(failed.code, Some(9), "{failed:#?}");
        let outcome = outcome_of(&failed, machine.name());
        assert_eq!(
            (&outcome["outcome"], &outcome["restorePoint"].is_null()),
            (&"failed".into(), &true)
        );
        assert_eq!(
            repo.list(machine.name()),
            kept,
            "the kept restore points have not changed"
        );
        // How much the run could clean up depends on how far the domain's end had come.
        let level = level_after(machine.closed_well_since(crashes));
        assert_next_is_right(&repo, machine, &begun, level);
        if !starts_again {
            machine.domain.start_paused();
        }
    }
}

#[test]
fn domain_stopped_mid_copy_fails_only_this_run() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "pulled", &[64 * MIB, BIG]);
    machine.fill(0, 1);
    assert_an_end_costs_one_run(&mut machine, |machine, run| {
        thread::scope(|scope| {
            scope.spawn(|| machine.domain.destroy());
            // QEMU ends after it has sent the requested data. A stopped reader would delay that
            // until QEMU is killed, and then its bitmaps would be lost.
            thread::sleep(Duration::from_secs(1));
            run.go_on();
        });
    });
}

/// A boot sector that switches the machine off as an operating system does: S5 (sleep type 0 and
/// SLP_EN) in the ACPI register PM1a_CNT, which SeaBIOS puts at port 0x604 of a q35.
const POWER_OFF: [u8; 10] = [
    0xba, 0x04, 0x06, // mov dx, 0x604
    0xb8, 0x00, 0x20, // mov ax, 0x2000
    0xef, // out dx, ax
    0xf4, 0xeb, 0xfd, // hlt, again and again
];

/// The time for the firmware to start the boot sector on a busy host.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);

#[test]
fn domain_shut_down_by_guest_mid_copy_fails_only_this_run() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "powers-off", &[64 * MIB, BIG]);
    machine.fill(0, 1);
    let signature = [(510, 0x55), (511, 0xaa)];
    for (offset, byte) in POWER_OFF.into_iter().enumerate().chain(signature) {
        machine.change(0, offset, 1, Change::Data(byte));
    }
    assert_an_end_costs_one_run(&mut machine, |machine, run| {
        machine.domain.virsh(&["resume"]);
        let is = |state: &str| machine.domain.state() == state;
        let begins_to_end = wait_until(BOOT_DEADLINE, || is("in shutdown") || is("shut off"));
        assert!(begins_to_end, "the guest still runs: {}", machine.domain.state());
        run.go_on();
        assert!(
            wait_until(STOP_DEADLINE * 4, || is("shut off")),
            "the domain is shut off"
        );
        let why = machine.domain.virsh(&["domstate", "--reason"]);
        assert_eq!(why.trim(), "shut off (shutdown)", "shut down by its guest");
    });
}

#[test]
fn a_daemon_that_is_restarted_in_mid_copy_costs_nothing() {
    let daemon = Daemon::exclusive();
    let mut machine = Machine::paused(&daemon, "restarted", &[BIG]);
    machine.fill(0, 1);
    let repo = Repo::new();
    if !daemon.is_ours() {
        // A test must not restart the machine's own daemon.
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

    // The daemon is gone when the copy ends, and comes back later.
    machine.fill(0, 2);
    let mut run = repo.begin_backup(&[machine.name()], &["--json"]);
    let begun = run.hold_in_mid_copy();
    daemon.stop();
    run.go_on();
    let failed = run.wait(Duration::from_secs(60));
    daemon.start();
    assert_eq!(failed.code, Some(9), "{failed:#?}");
    assert_eq!(
        repo.list(machine.name()).len(),
        1,
        "the kept restore point is still listed"
    );
    assert_heals(&repo, &machine, &begun, &["incremental"]);

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
    assert_heals(&repo, &machine, &begun, &["incremental"]);
}
