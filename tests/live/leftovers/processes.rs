//! Processes and sockets.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{LAB_DIR, Leftover};
use crate::owner::{PREFIX, owners_in};
use crate::process::{command_line, is_alive, start_time, wait_until};

/// The programs that tests start and that may outlive them. A user's shell or editor in a folder of
/// the tests is not one of them.
const PROGRAMS: [&str; 11] = [
    "libvirtd",
    "nbdkit",
    "qemu-img",
    "qemu-io",
    "qemu-nbd",
    "qemu-storage-daemon",
    "qemu-system-x86_64",
    "swtpm",
    "unshare",
    "virtlogd",
    "vmsnap",
];

/// The programs among them that serve all test processes.
const DAEMONS: [&str; 2] = ["libvirtd", "virtlogd"];

const END_DEADLINE: Duration = Duration::from_secs(20);

/// The processes that these test processes started, and the lab's unused daemons.
pub fn find(is_left: &dyn Fn(u32) -> bool) -> Vec<Leftover> {
    // A lab in a container has its own daemons with the same command lines.
    let daemons = if lab_is_unused() { recorded() } else { Vec::new() };
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = namespace("self");
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let leftover = |pid: u32| {
        // In a container the ids of test processes belong to other processes.
        let program = program(pid)?;
        let is_here = is_alive(pid) && namespace(&pid.to_string()) == ours;
        if !is_here || !PROGRAMS.contains(&program.as_str()) {
            return None;
        }
        let line = command_line(pid)?;
        // The machine's virtlogd also has logs of test domains open; only the lab's record
        // identifies the lab's.
        let is_ours = match DAEMONS.contains(&program.as_str()) {
            true => line.contains("--pid-file") && daemons.contains(&pid),
            false => names_in(pid, &line).iter().any(|pid| is_left(*pid)),
        };
        is_ours.then_some(Leftover::Process {
            pid,
            started: start_time(pid)?,
            line,
        })
    };
    pids.filter_map(leftover).collect()
}

/// The process ids in the files of the lab's daemons. Other programs may have them by now.
fn recorded() -> Vec<u32> {
    let files = fs::read_dir(LAB_DIR).into_iter().flatten().flatten();
    let files = files.map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "pid"));
    let texts = files.filter_map(|path| fs::read_to_string(path).ok());
    texts.filter_map(|text| text.trim().parse().ok()).collect()
}

/// The test processes that a process's command line, working folder or open files name.
fn names_in(pid: u32, line: &str) -> Vec<u32> {
    let proc = Path::new("/proc").join(pid.to_string());
    let mut text = line.to_owned();
    let links = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
    let links = links.map(|entry| entry.path()).chain([proc.join("cwd")]);
    for path in links.filter_map(|link| fs::read_link(link).ok()) {
        text.push('\n');
        text.push_str(&path.to_string_lossy());
    }
    owners_in(&text)
}

fn program(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.to_str()?;
    Some(name.trim_end_matches(" (deleted)").to_owned())
}

/// Whether no test process has a lease of the lab's daemon.
pub fn lab_is_unused() -> bool {
    let lease = File::open(Path::new(LAB_DIR).join("lease"));
    lease.is_ok_and(|lease| lease.try_lock().is_ok())
}

/// Ends the process that was found, if it is still the same one.
pub fn end(pid: u32, started: u64) {
    let is_it = || is_alive(pid) && start_time(pid) == Some(started);
    for signal in [Signal::TERM, Signal::KILL] {
        if !is_it() {
            return;
        }
        let _ = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, signal));
        if signal == Signal::TERM {
            // A daemon cleans up. Other programs have nothing to do.
            wait_until(Duration::from_secs(5), || !is_it());
        }
    }
    wait_until(END_DEADLINE, || !is_it());
}

/// The bound Unix sockets of these test processes.
pub fn sockets(is_left: &dyn Fn(u32) -> bool) -> Vec<Leftover> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let paths = text.lines().filter(|line| line.contains(PREFIX));
    let paths = paths.filter_map(|line| line.find('/').map(|at| line[at..].to_owned()));
    let mut paths: Vec<String> = paths
        .filter(|path| owners_in(path).iter().any(|pid| is_left(*pid)))
        .collect();
    paths.sort();
    // The file has a line for the listener and one for each connection to it.
    paths.dedup();
    paths.into_iter().map(Leftover::Socket).collect()
}
