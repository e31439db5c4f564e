//! libvirtd is killed and restarted at random moments of a run.

use std::time::Duration;

use super::Chaos;
use crate::daemon::Daemon;

const ROUNDS: usize = 12;

/// As long as a daemon may take to come back, and a run to notice.
const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn a_daemon_killed_or_restarted_in_any_moment_of_a_run_costs_that_run_at_most() {
    let daemon = Daemon::exclusive();
    let mut chaos = Chaos::new(&daemon, "killed-daemon");
    // The machine's own daemon is not for a test to kill.
    let rounds = if daemon.is_ours() { ROUNDS } else { 0 };
    for number in 0..rounds {
        chaos.scribble();
        let run = chaos.repo.begin_backup(&[chaos.machine.name()], &[]);
        chaos.wait_a_moment();
        match number % 2 {
            0 => daemon.kill(),
            _ => daemon.stop(),
        }
        daemon.start();
        let finished = run.wait(DEADLINE);
        // Who begins while there is no daemon cannot begin at all (3).
        assert!(matches!(finished.code, Some(0 | 3 | 9)), "{finished:#?}");
        chaos.take_stock();
        if has_lost_its_job(&chaos) {
            assert_tells_what_to_do(&chaos);
            chaos.machine.domain.destroy();
            daemon.restart();
            chaos.machine.domain.start_paused();
        }
        chaos.scribble();
        chaos.run_well();
        chaos.assert_clean();
        chaos.prove();
    }
    chaos.assert_no_strange_bitmaps();
}

/// Whether libvirtd was killed after it had noted that a job begins, and before it had noted which: nobody can end that one.
fn has_lost_its_job(chaos: &Chaos) -> bool {
    let told = chaos.machine.domain.try_virsh(&["domjobinfo"]);
    told.stderr.contains("backup job data missing")
}

fn assert_tells_what_to_do(chaos: &Chaos) {
    let refused = chaos.repo.backup(&[chaos.machine.name()], &[]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    assert!(
        refused.stderr.contains("libvirtd has been restarted after that"),
        "{refused:#?}"
    );
}
