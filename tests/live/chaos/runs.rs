//! The program is killed at random moments, again and again.

use rustix::process::Signal;

use super::{Chaos, Rounds};
use crate::cli_lab::STOP_DEADLINE;
use crate::daemon::Daemon;

/// How often a run is killed, and after how many of them an ordinary one has to put everything right.
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

/// A run that is killed, and sometimes an ordinary one after it. Whether the first was done before.
fn round(chaos: &mut Chaos, number: usize) -> bool {
    // Now and then the next run follows at once.
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

/// Starts a domain that is shut off, and the other way round.
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
