//! Resource limits of this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::log::{self, Entry, Level};

/// The number of open files that is enough for any realistic chain: a disk needs one per restore
/// point of its chain, and few disks are read at once. The hard limit may be huge, and some child
/// processes, which inherit the limit, close every possible file.
const ENOUGH_FILES: u64 = 64 * 1024;

/// Raises the soft limit of open files to the hard limit or [`ENOUGH_FILES`]. The usual soft limit
/// of 1024 protects programs that call `select()` (select(2)); vmsnap does not, and its child
/// processes open few files. If raising fails, long chains may fail.
pub(super) fn raise_open_files() {
    let limits = getrlimit(Resource::Nofile);
    let Some(wanted) = wanted(&limits) else {
        return;
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        let what = format!("cannot raise the limit of open files: {error}");
        log::tell(&Entry::new(Level::Debug, &what));
    }
}

/// Forbids core dumps of this process and its children, because passphrases, keys and the content
/// of disks are in their memory. A program that receives core dumps may ignore the limit.
pub(super) fn forbid_core_dumps() {
    let limits = Rlimit {
        current: Some(0),
        maximum: getrlimit(Resource::Core).maximum,
    };
    if let Err(error) = setrlimit(Resource::Core, limits) {
        let what = format!("cannot forbid core dumps: {error}");
        log::tell(&Entry::new(Level::Debug, &what));
    }
}

/// The limits to set, if they differ from the present ones; `None` in a limit means no limit.
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
