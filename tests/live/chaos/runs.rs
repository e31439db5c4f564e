//! The program is killed at random moments, again and again.

use rustix::process::Signal;

use super::Chaos;
use crate::cli_lab::STOP_DEADLINE;
use crate::daemon::Daemon;

/// How often a run is killed, and after how many of them an ordinary one has to put everything right.
const ROUNDS: usize = 200;
const EACH: usize = 10;

#[test]
fn a_program_killed_two_hundred_times_loses_nothing_and_leaves_nothing() {
    let daemon = Daemon::acquire();
    let mut chaos = Chaos::new(&daemon, "killed-runs");
    let mut committed = 0;
    for round in 1..=ROUNDS {
        // Now and then the next run follows at once.
        if !round.is_multiple_of(3) {
            chaos.scribble();
        }
        let run = chaos.repo.begin_backup(&[chaos.machine.name()], &[]);
        chaos.wait_a_moment();
        run.signal(Signal::KILL);
        committed += usize::from(run.wait(STOP_DEADLINE).code == Some(0));
        chaos.take_stock();
        if round % EACH == 0 {
            // A dead run is in nobody's way: the domain starts and stops before the next one as well.
            if round % (2 * EACH) == 0 {
                turn(&chaos);
                chaos.scribble();
            }
            chaos.run_well();
            chaos.prove();
            chaos.assert_clean();
        }
    }
    println!("{committed} of {ROUNDS} runs were done before they were killed");
    chaos.assert_no_strange_bitmaps();
}

/// Starts a domain that is shut off, and the other way round.
fn turn(chaos: &Chaos) {
    let machine = &chaos.machine;
    if chaos.is_active() {
        machine.domain.destroy();
    } else {
        machine.wait_for_readers_to_end();
        machine.domain.start_paused();
    }
}
