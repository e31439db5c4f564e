//! What the kernel allows this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::log::{self, Entry, Level};

/// Open files that are enough for any chains: a disk takes one per restore point of its period, up to 366, and a few disks are read at once.
/// The hard limit can be a thousand million, and children, which inherit what is set here, may try to close each possible one.
const ENOUGH_FILES: u64 = 64 * 1024;

/// Allows this process as many open files as it may allow itself, within reason. The soft limit is 1024 nearly everywhere, for the sake of
/// programs that call `select()` (setrlimit(2), select(2)); this one does not, and what it starts opens few files and so never gets to the
/// numbers that `select()` cannot take. Where it fails, long chains may.
pub(super) fn raise_open_files() {
    let limits = getrlimit(Resource::Nofile);
    let Some(wanted) = wanted(&limits) else {
        return;
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        let what = format!("the limit of open files stays as it is: {error}");
        log::tell(&Entry::new(Level::Debug, &what));
    }
}

/// The limits to set, if others than there are; `None` in a limit is no limit.
fn wanted(limits: &Rlimit) -> Option<Rlimit> {
    let current = limits.current?;
    let reachable = limits.maximum.unwrap_or(u64::MAX).min(ENOUGH_FILES);
    (current < reachable).then_some(Rlimit {
        current: Some(reachable),
        maximum: limits.maximum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_is_raised_within_hard_limit_and_never_lowered() {
        let cases: [(Option<u64>, Option<u64>, Option<u64>); 6] = [
            (Some(1024), Some(4096), Some(4096)),
            (Some(1024), Some(1 << 30), Some(ENOUGH_FILES)),
            (Some(1024), None, Some(ENOUGH_FILES)),
            (Some(4096), Some(4096), None),
            (Some(1 << 20), Some(1 << 20), None),
            (None, None, None),
        ];
        for (current, maximum, expected) in cases {
            let wanted = wanted(&Rlimit { current, maximum });
            assert_eq!(wanted.as_ref().and_then(|limits| limits.current), expected);
            assert!(wanted.is_none_or(|limits| limits.maximum == maximum));
        }
    }
}
