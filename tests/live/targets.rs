//! Restores onto block devices: devices in use are refused before the first write, and others stay
//! reserved until the end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::cli_lab::{Change, Machine, Repo, Running};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::loops::{Attached, Loop, OLD};
use crate::process::{Finished, command, end, run, try_run};

const MIB: usize = 1 << 20;
const SIZE: usize = 4 * MIB;
const DEADLINE: Duration = Duration::from_secs(60);

/// A repository with a restore point of a shut-off domain.
struct Kept {
    repo: Repo,
    machine: Machine,
}

impl Kept {
    fn new(daemon: &Daemon, size: usize) -> Kept {
        let mut machine = Machine::define(daemon, "kept", &[size]);
        machine.change(0, 0, 3 * MIB, Change::Data(7));
        let repo = Repo::new();
        repo.back_up(machine.name(), &[]);
        Kept { repo, machine }
    }

    fn args<'a>(&'a self, root: &'a str, to: &'a str) -> Vec<&'a str> {
        let name = self.machine.name();
        vec![
            "restore",
            name,
            "--repository",
            root,
            "--to",
            to,
            "--connect",
            URI,
        ]
    }

    fn restore(&self, to: &Path, more: &[&str]) -> Finished {
        let (root, to) = (self.repo.root().display().to_string(), to.display().to_string());
        self.repo.run(&[&self.args(&root, &to)[..], more].concat())
    }

    /// Asserts that a restore and its dry run are refused with these words and that nothing is
    /// written.
    fn assert_refused(&self, to: &Path, device: &Loop, words: &[&str]) {
        let before = device.bytes();
        for more in [&["--dry-run"][..], &[]] {
            let finished = self.restore(to, more);
            assert_eq!(finished.code, Some(3), "{finished:#?}");
            assert_eq!(finished.stdout, "", "{finished:#?}");
            for word in words {
                assert!(finished.stderr.contains(word), "{word}: {finished:#?}");
            }
        }
        assert!(device.bytes() == before, "{} is unchanged", device.word());
    }

    /// Asserts that a restore succeeds, and that the device then holds the disk and is unchanged
    /// after it.
    fn assert_restored(&self, device: &Loop) {
        let finished = self.restore(device.device(), &[]);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        let (bytes, disk) = (device.bytes(), &self.machine.disks[0]);
        assert!(bytes[..disk.len()] == disk[..], "the device holds the disk");
        assert!(
            bytes[disk.len()..].iter().all(|&byte| byte == OLD),
            "the rest of the device is unchanged"
        );
        let is_larger = bytes.len() > disk.len();
        let is_said = finished.stderr.contains("the rest of the device stays as it is");
        assert_eq!(is_said, is_larger, "{finished:#?}");
    }
}

fn block_disk(device: &Path, format: &str) -> String {
    format!(
        "<disk type='block' device='disk'><driver name='qemu' type='{format}'/><source dev='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        device.display()
    )
}

fn define(daemon: &Daemon, label: &str, devices: &str) -> TestDomain {
    let domain = TestDomain::new(daemon, label);
    domain.define(&domain.xml(daemon.virt_type(), 32, "", devices));
    domain
}

/// Creates another node of a device.
fn node_of(device: &Path, node: PathBuf) -> PathBuf {
    let found = fs::metadata(device).expect("it is there");
    let number = std::os::unix::fs::MetadataExt::rdev(&found);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &node,
        rustix::fs::FileType::BlockDevice,
        mode,
        number,
    )
    .expect("new");
    node
}

#[test]
fn a_device_of_a_running_domain_is_refused_by_any_name() {
    let daemon = Daemon::acquire();
    let kept = Kept::new(&daemon, SIZE);
    for format in ["raw", "qcow2"] {
        let device = Loop::of(2 * SIZE);
        if format == "qcow2" {
            run(command(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", &device.word(), "4M"],
            ));
        }
        let user = define(&daemon, "user", &block_disk(device.device(), format));
        user.start_paused();
        let words = [
            "because it is in use",
            &format!("active domain '{}' has it as disk vda", user.name()),
            "(qemu-system-x86) has it open",
            "hint: restore to another place",
        ];
        kept.assert_refused(device.device(), &device, &words);
        let link = device.path("by-id");
        std::os::unix::fs::symlink(device.device(), &link).expect("new");
        kept.assert_refused(&link, &device, &words);
        kept.assert_refused(&node_of(device.device(), device.path("node")), &device, &words);
        // The backing file, through another loop device.
        let second = Attached::to(&device.backing());
        kept.assert_refused(second.device(), &device, &["is attached to the underlying file"]);
        user.destroy();
    }
}

#[test]
fn devices_that_a_shut_off_domain_names_are_refused() {
    let daemon = Daemon::acquire();
    let kept = Kept::new(&daemon, SIZE);
    let device = Loop::of(SIZE);
    let link = device.path("link");
    std::os::unix::fs::symlink(device.device(), &link).expect("new");
    let user = define(&daemon, "off", &block_disk(&link, "raw"));
    let words = [
        &format!("shut-off domain '{}' has it as disk vda", user.name())[..],
        "virsh undefine",
    ];
    kept.assert_refused(device.device(), &device, &words);
    drop(user);

    // The definition names only the overlay, whose header names the device.
    let user = TestDomain::new(&daemon, "overlay");
    let top = user.path("top.qcow2").display().to_string();
    run(command(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            &device.word(),
            "-F",
            "raw",
            &top,
        ],
    ));
    let disk = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{top}'/><target dev='vda'/></disk>"
    );
    user.define(&user.xml(daemon.virt_type(), 32, "", &disk));
    let words = format!(
        "shut-off domain '{}' has it as an image beneath disk vda",
        user.name()
    );
    kept.assert_refused(device.device(), &device, &[&words]);
    drop(user);
    kept.assert_restored(&device);
}

#[test]
fn partitions_and_their_disk_are_one_device() {
    let daemon = Daemon::acquire();
    let kept = Kept::new(&daemon, SIZE);
    let device = Loop::of(4 * SIZE);
    let partition = device.add_partition(2048, (2 * SIZE / 512) as u64);
    let user = define(&daemon, "partition", &block_disk(&partition, "raw"));
    let words = format!("'{}' has partition", user.name());
    kept.assert_refused(device.device(), &device, &[&words]);
    drop(user);
    let user = define(&daemon, "disk", &block_disk(device.device(), "raw"));
    let words = format!("'{}' has the whole disk", user.name());
    kept.assert_refused(&partition, &device, &[&words]);
}

#[test]
fn mounts_swap_and_open_descriptors_are_refused() {
    let daemon = Daemon::acquire();
    let kept = Kept::new(&daemon, SIZE);
    let device = Loop::of(SIZE);
    run(command("mkfs.ext4", &["-q", &device.word()]));
    let point = device.path("mount point");
    fs::create_dir(&point).expect("new");
    // Read-only, because ext4 may write to a device without a request.
    let words = ["-o", "ro", &device.word(), &point.display().to_string()].map(str::to_owned);
    run(command("mount", &words));
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let words = format!("it is mounted on {}", point.display());
        kept.assert_refused(device.device(), &device, &[&words, "unmount the device first"]);
    }));
    run(command("umount", &[&point]));
    refused.expect("it is refused");

    // A mount namespace that another test made meanwhile may still have the first device mounted.
    let device = Loop::of(SIZE);
    run(command("mkswap", &["-q", &device.word()]));
    run(command("swapon", &[device.word()]));
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        kept.assert_refused(device.device(), &device, &["it is used as swap"]);
    }));
    run(command("swapoff", &[device.word()]));
    refused.expect("it is refused");

    let mut reader = command("sleep", &["1000"])
        .stdin(Stdio::from(File::open(device.device()).expect("attached")))
        .spawn()
        .expect("it starts");
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let words = format!("process {} (sleep) has it open", reader.id());
        kept.assert_refused(device.device(), &device, &[&words]);
    }));
    end(&mut reader);
    refused.expect("it is refused");
    kept.assert_restored(&device);
}

#[test]
fn too_small_device_is_refused_with_both_sizes() {
    let daemon = Daemon::acquire();
    let kept = Kept::new(&daemon, SIZE);
    let small = Loop::of(SIZE - 512);
    let words =
        "is too small: the device has 4193792 bytes (4.19 MB), and the disk has 4194304 bytes (4.19 MB)";
    kept.assert_refused(small.device(), &small, &[words]);
    assert!(!kept.restore(small.device(), &[]).stderr.contains("free space"));

    let device = Loop::of(2 * SIZE);
    let finished = kept.restore(device.device(), &["--format", "qcow2"]);
    assert_eq!(finished.code, Some(64), "{finished:#?}");
    assert!(finished.stderr.contains("use --format raw"), "{finished:#?}");
    assert!(device.bytes().iter().all(|&byte| byte == OLD));
    kept.assert_restored(&device);
}

/// A stopped restore that holds its device, and an undefined domain with the device as its disk.
struct Held {
    kept: Kept,
    device: Loop,
    restore: Running,
    user: TestDomain,
}

/// The point at which a restore is stopped.
#[derive(PartialEq)]
enum Moment {
    /// It has locked its device and has written little or nothing.
    Locked,
    /// It has written to its device but is not done.
    Writing,
}

impl Held {
    fn new(daemon: &Daemon, moment: &Moment) -> Held {
        let kept = Kept::new(daemon, 16 * SIZE);
        let device = Loop::of(16 * SIZE);
        let user = define(daemon, "late", &block_disk(device.device(), "raw"));
        user.virsh(&["undefine"]);
        let (root, to) = (kept.repo.root().display().to_string(), device.word());
        let mut restore = kept.repo.begin(&kept.args(&root, &to));
        match moment {
            Moment::Locked => restore.hold_with_locks_on(device.device()),
            Moment::Writing => {
                let is_written = || device.first_byte() != OLD;
                restore.hold_once("the first write", is_written);
                assert!(restore.is_running(), "it is not done");
            }
        }
        Held {
            kept,
            device,
            restore,
            user,
        }
    }
}

#[test]
fn nobody_mounts_or_locks_a_device_during_a_restore() {
    let daemon = Daemon::acquire();
    let held = Held::new(&daemon, &Moment::Locked);
    let (device, point) = (held.device.word(), held.device.path("mount"));
    fs::create_dir(&point).expect("new");
    let mounted = try_run(
        command("mount", &[&device, &point.display().to_string()]),
        DEADLINE,
    );
    assert!(!mounted.ok(), "{mounted:#?}");
    for action in ["read 0 512", "write 0 512"] {
        let opened = try_run(
            command("qemu-io", &["-f", "raw", "-c", action, &device]),
            DEADLINE,
        );
        let said = opened.stdout.clone() + &opened.stderr;
        assert!(said.contains("Failed to get"), "{opened:#?}");
    }
    held.restore.go_on();
    let finished = held.restore.wait(DEADLINE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(
        held.device.bytes() == held.kept.machine.disks[0],
        "it holds the disk"
    );
}

/// libvirt may give QEMU its own node for the device, on which our locks are not visible. The
/// restore then notices the change.
fn start_a_domain_during_a_restore(moment: &Moment) {
    let daemon = Daemon::acquire();
    let held = Held::new(&daemon, moment);
    let xml = held.user.path("domain.xml").display().to_string();
    let started = daemon.try_virsh(&["create", "--paused", &xml]);
    held.restore.go_on();
    let finished = held.restore.wait(DEADLINE);
    if !started.ok() {
        assert!(started.stderr.contains("lock"), "{started:#?}");
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        return;
    }
    assert_eq!(finished.code, Some(3), "{finished:#?}");
    let is_untouched = held.device.bytes().iter().all(|&byte| byte == OLD);
    let claims_it = finished.stderr.contains("nothing was written to");
    assert_eq!(claims_it, is_untouched, "{finished:#?}");
    if *moment == Moment::Writing {
        let words = format!("active domain '{}' has it as disk vda", held.user.name());
        assert!(finished.stderr.contains(&words), "{finished:#?}");
        assert!(!is_untouched, "it was being written");
    }
    held.user.destroy();
}

#[test]
fn a_domain_started_once_a_device_is_locked_is_noticed() {
    start_a_domain_during_a_restore(&Moment::Locked);
}

#[test]
fn a_domain_started_while_a_device_is_written_is_noticed() {
    start_a_domain_during_a_restore(&Moment::Writing);
}
