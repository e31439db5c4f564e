//! The program is killed at random moments, again and again.

use rustix::process::Signal;

use super::{Chaos, Rounds};
use crate::cli_lab::STOP_DEADLINE;
use crate::daemon::Daemon;

/// The number of runs that are killed, and of those after which an ordinary run has to repair
/// everything.
const ROUNDS: usize = 200;
const EACH: usize = 10;

#[test]
fn program_killed_200_times_loses_and_leaves_nothing() {
    let daemon = Daemon::acquire();
    let mut chaos = Chaos::new(&daemon, "killed-runs");
    let mut committed = 0;
    let mut rounds = Rounds::new(&daemon);
    for number in 1..=ROUNDS {
        rounds.run(&mut chaos, |chaos| committed += usize::from(round(chaos, number)));
    }
    println!("{committed} of {ROUNDS} runs were done before they were killed");
    chaos.assert_no_strange_bitmaps();
}

/// A run that is killed, and sometimes an ordinary one after it. Returns whether the first one
/// finished before it was killed.
fn round(chaos: &mut Chaos, number: usize) -> bool {
    // In some rounds nothing is written before the next run.
    if !number.is_multiple_of(3) {
        chaos.scribble_and_sync();
    }
    let run = chaos.repo.begin_backup(&[chaos.machine.name()], &[]);
    chaos.wait_a_moment();
    run.signal(Signal::KILL);
    let is_done = run.wait(STOP_DEADLINE).code == Some(0);
    chaos.take_stock();
    if number.is_multiple_of(EACH) {
        // A dead run blocks nothing: the domain can start and stop before the next run.
        if number.is_multiple_of(2 * EACH) {
            turn(chaos);
            chaos.scribble_and_sync();
        }
        chaos.run_well();
        chaos.prove();
        chaos.assert_clean();
    }
    is_done
}

/// Starts the domain if it is shut off, and shuts it off otherwise.
fn turn(chaos: &mut Chaos) {
    let is_active = chaos.is_active();
    let machine = &mut chaos.machine;
    if is_active {
        machine.pull_the_plug();
    } else {
        machine.wait_for_readers_to_end();
        machine.domain.start_paused();
    }
}
