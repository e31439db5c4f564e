//! Starts libvirtd without a service manager, and stops what was started.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::virsh;
use crate::leftovers::LAB_DIR;
use crate::process::{COMMAND_DEADLINE, command, command_line, is_alive, try_run, wait_until};

/// Seconds without a client and without a running domain after which a daemon ends by itself, in
/// case no process is left to stop it.
const IDLE_TIMEOUT: &str = "300";

const LIBVIRTD: &str = "libvirtd";
const VIRTLOGD: &str = "virtlogd";

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Runs the daemon and records how it ended, which only its parent learns. $1 is the log, $2 the
/// record, then the daemon's command line follows. Closes files inherited from the tests, such as a
/// lock around their whole run.
const KEEPER: &str = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec >>\"$1\" 2>&1 </dev/null; record=$2; shift 2; cd /; \
    \"$@\" & pid=$!; wait $pid; echo \"$pid $?\" >>\"$record\"";

/// Executes a program without files inherited from the tests: $0 is the program, then its
/// arguments.
const CLOSED: &str = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec \"$0\" \"$@\"";

/// The time for the keeper to record an end.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);

/// Mounts a device node that all users may open over `/dev/kvm` and executes a program. $1 is an
/// empty folder, $2 and $3 are the node's numbers, then the program follows.
const WITH_OPEN_KVM: &str = "set -e; dir=$1 major=$2 minor=$3; shift 3; \
    mount -t tmpfs -o mode=0755 vmsnap-lab \"$dir\"; mknod -m 0666 \"$dir/kvm\" c \"$major\" \"$minor\"; \
    mount --bind \"$dir/kvm\" /dev/kvm; exec \"$@\"";

/// Whether the lab started the daemon that is running.
pub fn is_ours() -> bool {
    our_pid(LIBVIRTD).is_some()
}

/// Starts the daemon unless one answers. Panics if it does not come up.
pub fn ensure_running() {
    let answered = answers();
    if answered && !is_ours() {
        return;
    }
    // libvirtd sends the domains' consoles and logs to virtlogd, and does not start it when it runs
    // as root. virtlogd may have ended by its timeout while no domain was running.
    if UnixStream::connect("/run/libvirt/virtlogd-sock").is_err() {
        start(VIRTLOGD, virtlogd());
    }
    if answered {
        return;
    }
    start(LIBVIRTD, kept(with_kvm().unwrap_or_default()));
    assert!(
        wait_until(START_DEADLINE, answers),
        "libvirtd was started and does not answer. Its log, {}, ends with:\n{}",
        log().display(),
        end_of_log()
    );
}

/// A death of libvirtd by a signal that the lab has not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The process that died.
    pub pid: u32,
    /// The signal's number.
    pub signal: i32,
}

/// All crashes since the lab was set up. Waits for the record of one that has just happened.
pub fn crashes() -> Vec<Crash> {
    let ends = || pairs(ENDS);
    let last = fs::read_to_string(pid_file(LIBVIRTD)).ok();
    let last: Option<u32> = last.and_then(|text| text.trim().parse().ok());
    // A daemon that ends regularly removes its pid file.
    if let Some(pid) = last.filter(|pid| !is_alive(*pid)) {
        wait_until(RECORD_DEADLINE, || ends().iter().any(|(ended, _)| *ended == pid));
    }
    let sent = pairs(SENT);
    // A shell reports a death by a signal as 128 plus the signal.
    let by_signal = |(pid, status): (u32, i32)| (status > 128).then_some((pid, status - 128));
    let deaths = ends().into_iter().filter_map(by_signal);
    let deaths = deaths.filter(|death| !sent.contains(death));
    deaths.map(|(pid, signal)| Crash { pid, signal }).collect()
}

/// The file in which the keeper records ends of libvirtd: process id and the status in a shell.
const ENDS: &str = "ends";

/// The file in which the lab records the signals it sends: process id and signal.
const SENT: &str = "sent";

fn pairs(file: &str) -> Vec<(u32, i32)> {
    let text = fs::read_to_string(Path::new(LAB_DIR).join(file)).unwrap_or_default();
    let pair = |line: &str| {
        let (pid, number) = line.split_once(' ')?;
        Some((pid.parse().ok()?, number.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// Sends a signal and records that the lab sent it.
fn send(pid: u32, signal: Signal) {
    let file = File::options()
        .create(true)
        .append(true)
        .open(Path::new(LAB_DIR).join(SENT));
    let mut file = file.expect("the lab's folder is ours");
    writeln!(file, "{pid} {}", signal.as_raw()).expect("the lab's folder is ours");
    // The daemon may have just ended by its timeout.
    let _ = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, signal));
}

/// Stops the lab's daemons and waits until they are gone.
pub fn stop() -> Result<(), String> {
    for name in [LIBVIRTD, VIRTLOGD] {
        let Some(pid) = our_pid(name) else { continue };
        for signal in [Signal::TERM, Signal::KILL] {
            send(pid, signal);
            if wait_until(STOP_DEADLINE, || !is_alive(pid)) {
                break;
            }
        }
        if is_alive(pid) {
            return Err(format!("{name}, process {pid}, does not end"));
        }
        // The daemon removes this file, unless it was killed.
        let _ = fs::remove_file(pid_file(name));
    }
    Ok(())
}

/// Kills libvirtd, as the kernel does when memory is short, and waits until it is gone.
pub fn kill() {
    let pid = our_pid(LIBVIRTD).expect("it is ours");
    send(pid, Signal::KILL);
    assert!(
        wait_until(STOP_DEADLINE, || !is_alive(pid)),
        "a killed process ends"
    );
    fs::remove_file(pid_file(LIBVIRTD)).expect("it is ours");
}

fn answers() -> bool {
    virsh(&["version"]).ok()
}

fn start(name: &str, command: Command) {
    let finished = try_run(command, COMMAND_DEADLINE);
    // Another user of this machine may have started it first, so only the answer counts.
    if !finished.ok() {
        eprintln!("{name} said: {finished:#?}");
    }
}

fn virtlogd() -> Command {
    let (program, pid_file) = (format!("/usr/sbin/{VIRTLOGD}"), pid_file(VIRTLOGD));
    let mut words = vec!["-c", CLOSED, &program, "--daemon", "--timeout", IDLE_TIMEOUT];
    let pid_file = pid_file.display().to_string();
    words.extend(["--pid-file", &pid_file]);
    command("sh", &words)
}

/// libvirtd under the keeper, in its own session, so that Ctrl-C does not reach them. `before` is
/// the command line of a program that executes it.
fn kept(before: Vec<String>) -> Command {
    let record = Path::new(LAB_DIR).join(ENDS).display().to_string();
    let log = log().display().to_string();
    let mut words: Vec<String> = ["--fork", "sh", "-c", KEEPER, "vmsnap-lab-keeper", &log, &record]
        .map(String::from)
        .to_vec();
    words.extend(before);
    words.push(format!("/usr/sbin/{LIBVIRTD}"));
    words.extend(["--timeout", IDLE_TIMEOUT, "--pid-file"].map(String::from));
    words.push(pid_file(LIBVIRTD).display().to_string());
    command("setsid", &words)
}

/// The log file of libvirtd.
fn log() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirtd.log")
}

fn end_of_log() -> String {
    let text = fs::read(log()).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
}

/// The command line that runs libvirtd in its own mount namespace, where QEMU's user may open
/// `/dev/kvm`. `None` if that is not needed.
///
/// Without udev the node often belongs to root alone. libvirt, which is root, then considers KVM
/// usable, but its QEMU reports the opposite, so libvirt probes again at every call. A test must
/// not change the node itself.
fn with_kvm() -> Option<Vec<String>> {
    let kvm = fs::metadata("/dev/kvm").ok()?;
    let as_qemu = [
        "-u",
        "libvirt-qemu",
        "--",
        "test",
        "-r",
        "/dev/kvm",
        "-a",
        "-w",
        "/dev/kvm",
    ];
    if try_run(command("runuser", &as_qemu), COMMAND_DEADLINE).ok() {
        return None;
    }
    let dir = Path::new(LAB_DIR).join("dev");
    fs::create_dir_all(&dir).expect("the lab's folder is ours");
    let (major, minor) = (rustix::fs::major(kvm.rdev()), rustix::fs::minor(kvm.rdev()));
    // QEMU must also see later mounts.
    let mut words: Vec<String> = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        WITH_OPEN_KVM,
        "sh",
    ]
    .map(String::from)
    .to_vec();
    words.extend([dir.display().to_string(), major.to_string(), minor.to_string()]);
    Some(words)
}

/// The living process with this name that the lab started.
fn our_pid(name: &str) -> Option<u32> {
    let pid = fs::read_to_string(pid_file(name)).ok()?.trim().parse().ok()?;
    // The process id may have been reused.
    (is_alive(pid) && command_line(pid)?.contains(name)).then_some(pid)
}

fn pid_file(name: &str) -> PathBuf {
    Path::new(LAB_DIR).join(format!("{name}.pid"))
}
