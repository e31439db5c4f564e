//! A real domain backed up alternately into two repositories over two periods, and with two
//! groupings into one repository.

use serde_json::Value;

use crate::cli_lab::{Change, Machine, json, text_of};
use crate::cli_user::User;
use crate::daemon::Daemon;

const MIB: usize = 1 << 20;

/// Backs up on that day with this grouping, and returns the level.
fn back_up(user: &User, machine: &Machine, day: &str, group_by: &str) -> String {
    let name = machine.name();
    let words = [
        "backup",
        name,
        "--output=OUT",
        "--group-by",
        group_by,
        "--force",
        "--json",
    ];
    let finished = user.on(day, &words);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let point = &json(&finished)["domains"][0]["restorePoint"];
    let restored = user.repo.restore(name, text_of(&point["id"]), "raw");
    machine.assert_restored(&restored, &machine.disks);
    std::fs::remove_dir_all(restored).expect("it is removed");
    text_of(&point["level"]).to_owned()
}

fn assert_consistent(user: &User, machine: &Machine, day: &str, group_by: &str) {
    let name = machine.name();
    let words = [
        "status",
        name,
        "--output=OUT",
        "--group-by",
        group_by,
        "--json",
        "--machine",
    ];
    let finished = user.on(day, &words);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let status = &json(&finished)[name];
    assert_eq!(status["inconsistencies"], Value::Array(Vec::new()), "{status:#}");
    assert_eq!(status["overallStatus"], 0, "{status:#}");
}

#[test]
fn two_repositories_by_turns_stay_incremental() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "two-repositories", &[4 * MIB]);
    let users = [User::new(), User::new()];
    machine.fill(0, 1);
    let days = ["2026-11-28", "2026-11-29", "2026-12-01", "2026-12-02"];
    for (round, day) in days.into_iter().enumerate() {
        for (which, user) in users.iter().enumerate() {
            let byte = (8 * round + which + 1) as u8;
            machine.change(0, (2 * round + which) * 65536, 3000, Change::Data(byte));
            let expected = ["full", "incremental"][round % 2];
            assert_eq!(
                back_up(user, &machine, day, "month"),
                expected,
                "{which} on {day}"
            );
            users
                .iter()
                .for_each(|user| assert_consistent(user, &machine, day, "month"));
        }
    }
    // Each repository has retired its own checkpoints of November and no others.
    assert_eq!(machine.checkpoints().len(), 4);

    let scrub = ["scrub", machine.name(), "--scrub-type", "both", "--output=OUT"];
    let scrubbed = users[0].on("2026-12-03", &scrub);
    assert_eq!(scrubbed.code, Some(0), "{scrubbed:#?}");
    assert_eq!(machine.checkpoints().len(), 2, "{scrubbed:#?}");
    assert_eq!(back_up(&users[1], &machine, "2026-12-03", "month"), "incremental");
    assert_eq!(back_up(&users[0], &machine, "2026-12-03", "month"), "full");
}

#[test]
fn two_groupings_of_one_repository_are_consistent() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "two-groupings", &[MIB]);
    let user = User::new();
    machine.fill(0, 1);
    for (round, day) in ["2026-11-29", "2026-11-30", "2026-12-01"].into_iter().enumerate() {
        for group_by in ["month", "year"] {
            machine.change(0, round * 65536, 512, Change::Data(round as u8 + 7));
            let is_first = round == 0 || (round == 2 && group_by == "month");
            let expected = if is_first { "full" } else { "incremental" };
            assert_eq!(
                back_up(&user, &machine, day, group_by),
                expected,
                "{group_by} on {day}"
            );
            for seen in ["month", "year"] {
                assert_consistent(&user, &machine, day, seen);
            }
        }
    }
}
