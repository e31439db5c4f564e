//! Starting libvirtd where there is no service manager, and stopping what was started.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::virsh;
use crate::process::{COMMAND_DEADLINE, command, command_line, is_alive, try_run, wait_until};

/// Lock files and process ids of the lab.
pub const LAB_DIR: &str = "/run/vmsnap-lab";

/// Seconds without a client and without a running domain after which a daemon ends by itself, should nobody
/// be left to stop it.
const IDLE_TIMEOUT: &str = "300";

const LIBVIRTD: &str = "libvirtd";
const VIRTLOGD: &str = "virtlogd";

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Mounts a device node that everybody may use over `/dev/kvm` and becomes the given program: $1 an empty folder,
/// $2 and $3 the node's numbers, then the program.
const WITH_OPEN_KVM: &str = "set -e; dir=$1 major=$2 minor=$3; shift 3; \
    mount -t tmpfs -o mode=0755 vmsnap-lab \"$dir\"; mknod -m 0666 \"$dir/kvm\" c \"$major\" \"$minor\"; \
    mount --bind \"$dir/kvm\" /dev/kvm; exec \"$@\"";

/// Whether the lab has started the daemon that runs now.
pub fn is_ours() -> bool {
    our_pid(LIBVIRTD).is_some()
}

/// Starts the daemon unless one answers. Panics when it does not come up.
pub fn ensure_running() {
    let answered = answers();
    if answered && !is_ours() {
        return;
    }
    // libvirtd gives it the consoles and logs of the domains, and starts none itself when it runs as root. It may have
    // ended by its timeout while no domain was running.
    if UnixStream::connect("/run/libvirt/virtlogd-sock").is_err() {
        start(VIRTLOGD, daemon(VIRTLOGD));
    }
    if answered {
        return;
    }
    start(LIBVIRTD, daemon_with_kvm().unwrap_or_else(|| daemon(LIBVIRTD)));
    assert!(
        wait_until(START_DEADLINE, answers),
        "libvirtd was started and does not answer"
    );
}

/// Ends the daemons of the lab and waits until they are gone.
pub fn stop() -> Result<(), String> {
    for name in [LIBVIRTD, VIRTLOGD] {
        let Some(pid) = our_pid(name) else { continue };
        for signal in [Signal::TERM, Signal::KILL] {
            // It may have ended by its own timeout just now.
            let _ = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, signal));
            if wait_until(STOP_DEADLINE, || !is_alive(pid)) {
                break;
            }
        }
        if is_alive(pid) {
            return Err(format!("{name}, process {pid}, does not end"));
        }
        // The daemon removes it, unless it was killed.
        let _ = fs::remove_file(pid_file(name));
    }
    Ok(())
}

/// Kills libvirtd, as the kernel does when memory is short, and waits until it is gone.
pub fn kill() {
    let pid = our_pid(LIBVIRTD).expect("it is ours");
    let process = Pid::from_raw(pid as i32).expect("a process id is not zero");
    kill_process(process, Signal::KILL).expect("it is ours");
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
    // Another user of this machine may have been faster: what counts is whether it answers.
    if !finished.ok() {
        eprintln!("{name} said: {finished:#?}");
    }
}

fn daemon(name: &str) -> Command {
    command(format!("/usr/sbin/{name}"), &daemon_args(name))
}

fn daemon_args(name: &str) -> Vec<String> {
    let words = ["--daemon", "--timeout", IDLE_TIMEOUT, "--pid-file"];
    let mut args: Vec<String> = words.map(String::from).to_vec();
    args.push(pid_file(name).display().to_string());
    args
}

/// The libvirtd in a mount namespace of its own, in which QEMU's user may open `/dev/kvm`; `None` where that is not needed.
///
/// Without udev the node often belongs to root alone. libvirt, which is root, then holds KVM to be usable, its QEMU
/// tells otherwise, and they start anew to find out with every single call. The node itself is not for a test to change.
fn daemon_with_kvm() -> Option<Command> {
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
    // What is mounted later is to be seen by QEMU too.
    let mut words: Vec<String> = [
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
    words.push(format!("/usr/sbin/{LIBVIRTD}"));
    words.extend(daemon_args(LIBVIRTD));
    Some(command("unshare", &words))
}

/// The living process of that name which the lab has started.
fn our_pid(name: &str) -> Option<u32> {
    let pid = fs::read_to_string(pid_file(name)).ok()?.trim().parse().ok()?;
    // The number may have been given to another program meanwhile.
    (is_alive(pid) && command_line(pid)?.contains(name)).then_some(pid)
}

fn pid_file(name: &str) -> PathBuf {
    Path::new(LAB_DIR).join(format!("{name}.pid"))
}
