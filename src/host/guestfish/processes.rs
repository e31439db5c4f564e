//! Ends `guestfish` with everything that it has started. All of it is in the process group of
//! `guestfish`.

use std::fs;
use std::io;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

use crate::wait;

/// How long `guestfish` may take to notice that its machine has ended, and to remove its temporary
/// files. It gets this time twice.
const NOTICE: Duration = Duration::from_secs(1);

/// How long killed processes may take to end.
const GONE: Duration = Duration::from_secs(2);

const STEP: Duration = Duration::from_millis(5);

/// Whether `guestfish` has ended. It stays a zombie, so the number of its process group is not used
/// again.
pub(super) fn has_ended(guestfish: &Child) -> bool {
    let pid = WaitId::Pid(Pid::from_child(guestfish));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(pid, options), Ok(None))
}

/// Ends `guestfish` and all processes that it started, even if `guestfish` has already ended. Must
/// be called exactly once.
///
/// First its children are killed: the virtual machine, or the program that builds the appliance.
/// Then `guestfish` fails, and removes its temporary files. A killed `guestfish` would leave them.
pub(super) fn end(guestfish: &mut Child) -> io::Result<ExitStatus> {
    let group = Pid::from_child(guestfish);
    for _ in 0..2 {
        if has_ended(guestfish) {
            break;
        }
        for child in members(group).into_iter().filter(|pid| *pid != group) {
            // It may just have ended.
            let _ = kill_process(child, Signal::KILL);
        }
        wait::until(NOTICE, STEP, || has_ended(guestfish).then_some(()));
    }
    // Nothing may be left of it.
    let _ = kill_process_group(group, Signal::KILL);
    let status = guestfish.wait();
    wait::until(GONE, STEP, || members(group).is_empty().then_some(()));
    status
}

/// The living processes of a group.
pub(super) fn members(group: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Pid::from_raw(pid)
    });
    pids.filter(|pid| group_of(*pid) == Some(group.as_raw_nonzero().get()))
        .collect()
}

/// The group of a living process.
fn group_of(pid: Pid) -> Option<i32> {
    let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    group_in(&String::from_utf8_lossy(&stat))
}

/// Reads state and group from a line of `/proc/PID/stat`: the third and the fifth field. The second
/// is the name in parentheses, which may contain any character.
fn group_in(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(1)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_follows_its_name() {
        assert_eq!(group_in("7 (a) b) c) S 1 42 42 0 -1"), Some(42));
        assert_eq!(group_in("7 (guestfish) Z 1 42 42 0 -1"), None);
        assert_eq!(group_in("7 (x"), None);
        let own = rustix::process::getpgid(None).expect("a group");
        let this = rustix::process::getpid();
        assert!(members(own).contains(&this));
    }
}
