//! The check of a copy of a guest's disk: its file system, and every file on it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use super::{SerialLog, plain};
use crate::process::{COMMAND_DEADLINE, Finished, command, run, try_run};

/// The time limit of a verifying guest, even without KVM.
const VERIFY_DEADLINE: Duration = Duration::from_secs(240);

/// The state in which the copy was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// While the file systems were frozen: the journal must be empty.
    Frozen,
    /// As after a power cut: the journal is replayed first.
    Crash,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The number of files whose digest was compared.
    pub files: u64,
    /// The number of files whose content does not match their digest.
    pub bad: u64,
    /// The round of the newest file: at least the last round on the console when the copy was
    /// taken.
    pub last_round: u64,
    /// Whether the superblock of the copy says that the journal must be replayed.
    pub needs_recovery: bool,
}

/// Checks a copy of a guest's data disk, of any format and with any backing files, without changing
/// it. Panics if the file system is damaged, or if it was frozen but needs recovery.
pub fn check_disk(copy: &Path, expect: Expect) -> CheckReport {
    // On a separate disk, so that the guest can write and e2fsck can read without an overlay.
    let work = crate::owner::folder_on_disk("check-");
    let raw = work.path().join("disk.raw");
    run(command(
        "qemu-img",
        &[
            Path::new("convert"),
            Path::new("-O"),
            Path::new("raw"),
            copy,
            &raw,
        ],
    ));
    let needs_recovery = needs_recovery(&raw);
    let mount = match expect {
        Expect::Frozen => {
            assert!(
                !needs_recovery,
                "the file system was not frozen: its journal holds changes"
            );
            check_structure(&raw);
            "ro,noload"
        }
        Expect::Crash => "rw",
    };
    let console = boot_verifier(work.path(), &raw, mount);
    check_structure(&raw);
    let (files, bad, last_round) =
        verdict(&console).unwrap_or_else(|| panic!("no verdict on the console:\n{console}"));
    if bad > 0 {
        eprintln!("{console}");
    }
    CheckReport {
        files,
        bad,
        last_round,
        needs_recovery,
    }
}

/// Whether ext4's superblock says that the journal holds changes: `EXT4_FEATURE_INCOMPAT_RECOVER`
/// in `s_feature_incompat` (the kernel's `Documentation/filesystems/ext4/super.rst`).
fn needs_recovery(raw: &Path) -> bool {
    let mut superblock = [0; 1024];
    let file = File::open(raw).expect("the raw copy is ours");
    file.read_exact_at(&mut superblock, 1024)
        .expect("a disk holds a superblock");
    assert_eq!(
        superblock[0x38..0x3a],
        [0x53, 0xef],
        "there is no ext file system on the disk"
    );
    let incompat = u32::from_le_bytes(superblock[0x60..0x64].try_into().unwrap());
    incompat & 0x4 != 0
}

fn check_structure(raw: &Path) {
    let found: Finished = try_run(command("e2fsck", &[Path::new("-fn"), raw]), COMMAND_DEADLINE);
    assert!(found.ok(), "the file system is damaged: {found:#?}");
}

/// Boots the guest in its verifying mode and returns its console. Only mounting writes to the
/// image.
fn boot_verifier(work: &Path, raw: &Path, mount: &str) -> String {
    let serial = SerialLog::new(work.join("serial.log"));
    let options = format!("vmsnap.mode=verify vmsnap.mount={mount}");
    let accelerator = if plain::boots_with_kvm() { "kvm" } else { "tcg" };
    let finished = plain::boot(accelerator, &options, Some(raw), serial.path(), VERIFY_DEADLINE);
    let console = serial.text();
    assert!(
        finished.is_some_and(|finished| finished.ok()),
        "the guest that verifies has failed:\n{console}"
    );
    console
}

/// The files, bad files and last round from the last line on the console.
fn verdict(console: &str) -> Option<(u64, u64, u64)> {
    let line = console
        .lines()
        .find_map(|line| line.trim().strip_prefix("verified "))?;
    let (files, rest) = line.split_once(" files, bad ")?;
    let (bad, last_round) = rest.split_once(", last round ")?;
    Some((files.parse().ok()?, bad.parse().ok()?, last_round.parse().ok()?))
}

#[test]
fn the_verdict_is_read_from_the_console() {
    let console = "booting\r\nbad: x\r\nverified 23 files, bad 1, last round 40\r\n";
    assert_eq!(verdict(console), Some((23, 1, 40)));
    assert_eq!(verdict("FAILED: cannot mount"), None);
    assert_eq!(verdict("verified many files, bad 1, last round 40"), None);
}
