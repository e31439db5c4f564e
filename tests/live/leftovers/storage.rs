//! Mounts and loop devices.

use std::fs;
use std::path::Path;

use super::Leftover;
use crate::owner::owners_in;
use crate::process::{COMMAND_DEADLINE, command, run_within};

/// The mounts within folders of these test processes, newest first.
pub fn mounts(is_left: &dyn Fn(u32) -> bool) -> Vec<Leftover> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let points = points.map(unescaped);
    let points = points.filter(|point| owners_in(point).iter().any(|pid| is_left(*pid)));
    let mut found: Vec<Leftover> = points.map(|point| Leftover::Mount(point.into())).collect();
    found.reverse();
    found
}

/// The kernel writes blanks as `\040`.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\134", "\\")
}

/// The loop devices over files of these test processes.
pub fn loops(is_left: &dyn Fn(u32) -> bool) -> Vec<Leftover> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let leftover = |entry: fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        // A loop device over a file in a container is visible here too.
        let is_here = super::parents()
            .iter()
            .any(|parent| Path::new(&backing).starts_with(parent));
        let is_ours = is_here && owners_in(&backing).iter().any(|pid| is_left(*pid));
        is_ours.then(|| Leftover::Loop {
            device: Path::new("/dev").join(entry.file_name()),
            backing: backing.trim_end().to_owned(),
        })
    };
    entries.filter_map(leftover).collect()
}

pub fn unmount(point: &Path) {
    quietly("umount", &["--lazy", &point.display().to_string()]);
}

/// Removes the device and everything that the kernel has built on it.
pub fn detach(device: &Path) {
    let device = device.display().to_string();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().any(|line| line.split(' ').next() == Some(&device)) {
        quietly("swapoff", &[&device]);
    }
    quietly("losetup", &["--detach", &device]);
}

fn quietly(program: &str, words: &[&str]) {
    // The next search finds anything that remains.
    run_within(command(program, words), COMMAND_DEADLINE);
}
