//! `vmsnap mount` beside loop devices, other users and `fusermount3`: what needs root to be tried.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::embed::{run, run_ok};
use crate::owner;
use crate::process::{COMMAND_DEADLINE, Finished, command, end, run as run_command, try_run, wait_until};

/// A user without rights.
const NOBODY: u32 = 65534;

const DEADLINE: Duration = Duration::from_secs(120);

/// A file in the guest's file system.
const LETTER: &str = "a letter from the guest\n";

/// A domain whose only disk is an ext4 file system, backed up into a folder that all users can
/// read.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Stage {
        let stage = Stage {
            folder: owner::folder_on_disk("mounted "),
        };
        for name in ["", "files", "files/home", "backups", "point"] {
            fs::create_dir_all(stage.path(name)).expect("it is made");
            open_to_all(&stage.path(name), 0o755);
        }
        fs::write(stage.path("files/home/letter"), LETTER).expect("written");
        let mut noise = vec![0; 3 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        fs::write(stage.path("files/noise"), noise).expect("written");
        let (raw, qcow2) = (stage.path("disk.raw"), stage.path("disk.qcow2"));
        run_ok(
            "mke2fs",
            [&"-q", &"-t", &"ext4", &"-d", &stage.path("files"), &raw, &"32M"],
        );
        run_ok("qemu-img", [&"convert", &"-q", &"-O", &"qcow2", &raw, &qcow2]);
        let disk = qcow2.display();
        let node = format!(
            "<node><domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
             <name>vm1</name><memory>8192</memory><os><type>hvm</type></os><devices>\
             <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>\
             <target dev='vda' bus='virtio'/></disk></devices><test:runstate>5</test:runstate></domain></node>"
        );
        fs::write(stage.path("node.xml"), node).expect("written");
        let uri = format!("test://{}", stage.word("node.xml").replace(' ', "%20"));
        let backups = stage.word("backups");
        run_command(stage.program(&["backup", "vm1", "--output", &backups, "--connect", &uri]));
        run_ok("chmod", [&"-R", &"a+rX", &stage.path("backups")]);
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.path("disk.raw")).expect("it was made")
    }

    fn program(&self, words: &[&str]) -> Command {
        let mut program = command(env!("CARGO_BIN_EXE_vmsnap"), words);
        program
            .current_dir(self.folder.path())
            .env("HOME", self.path("home"));
        program
    }

    fn mounting(&self, more: &[&str]) -> Command {
        let (point, backups) = (self.word("point"), self.word("backups"));
        let words = ["mount", "vm1", &point, "--repository", &backups];
        self.program(&[&words[..], more].concat())
    }

    /// Starts a program that mounts, and waits until it says so.
    fn start(&self, mut command: Command) -> Running<'_> {
        let out = File::create(self.path("stdout")).expect("the folder is ours");
        let errors = File::create(self.path("stderr")).expect("the folder is ours");
        let child = command.stdout(out).stderr(errors).stdin(Stdio::null()).spawn();
        let mut running = Running {
            stage: self,
            child: child.expect("the program starts"),
        };
        let is_ready = wait_until(DEADLINE, || {
            let has_ended = running.child.try_wait().expect("it is ours").is_some();
            has_ended || running.said().contains("to end, press Ctrl-C")
        });
        assert!(
            is_ready && running.said().contains("to end"),
            "{}",
            running.said()
        );
        running
    }
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
}

/// A program that mounts, which is killed and unmounted when this is dropped.
struct Running<'a> {
    stage: &'a Stage,
    child: Child,
}

impl Running<'_> {
    fn said(&self) -> String {
        let read = |name| fs::read_to_string(self.stage.path(name)).unwrap_or_default();
        read("stdout") + &read("stderr")
    }

    /// Ends the program, which has to succeed and to unmount.
    fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it runs");
        let ended = wait_until(DEADLINE, || self.child.try_wait().expect("it is ours").is_some());
        assert!(ended, "{}", self.said());
        let code = self.child.wait().expect("it is ours").code();
        assert_eq!(code, Some(0), "{}", self.said());
        assert_eq!(
            fs::read_dir(self.stage.path("point")).expect("unmounted").count(),
            0
        );
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        end(&mut self.child);
        run(
            "umount",
            &["--lazy".as_ref(), self.stage.path("point").as_os_str()],
        );
    }
}

/// A loop device, or a mount, that is removed even after a panic.
struct Undo<'a>(&'a str, Vec<&'a str>);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        try_run(command(self.0, &self.1), COMMAND_DEADLINE);
    }
}

/// The commands of docs/recovery.md on a disk without partitions.
#[test]
fn loop_device_over_a_mounted_disk_shows_the_guests_files() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recovery.md"));
    let page = page.expect("it is there");
    let stage = Stage::new();
    let mounted = stage.start(stage.mounting(&[]));
    let vda = stage.word("point/vda.raw");
    assert!(fs::read(&vda).expect("it reads") == stage.disk());
    // Runs a line of the page with the names of this test.
    let guest = stage.word("guest");
    let letter = stage.word("guest/home/letter");
    let folder = stage.folder.path().display().to_string();
    let tried = |line: &str, device: &str| {
        assert!(
            page.contains(&format!("\n{line}\n")),
            "the page has no line {line}"
        );
        let names = [
            ("/mnt/point/vda.raw", vda.as_str()),
            ("/mnt/guest/etc/fstab", letter.as_str()),
            ("/mnt/guest", guest.as_str()),
            ("/dev/loop0p1", device),
            ("/dev/loop0", device),
            ("/tmp", folder.as_str()),
        ];
        let renamed = |word: &str| {
            let name = names.iter().find(|(from, _)| *from == word);
            name.map_or(word, |(_, to)| to).to_owned()
        };
        let words: Vec<String> = line.split(' ').map(renamed).collect();
        run_command(command(&words[0], &words[1..]))
    };
    let device = tried(
        "losetup --read-only --partscan --find --show /mnt/point/vda.raw",
        "",
    );
    let device = device.trim();
    let detach = Undo("losetup", vec!["--detach", device]);
    assert!(fs::read(device).expect("it reads") == stage.disk());
    let listed = tried("lsblk --output NAME,FSTYPE,SIZE /dev/loop0", device);
    assert!(listed.contains("32M"), "{listed}");
    tried("mkdir /mnt/guest", device);
    let unmount = Undo("umount", vec!["--lazy", &guest]);
    let mount = "mount --options ro,nosuid,nodev,noexec /dev/loop0p1 /mnt/guest";
    tried(mount, device);
    tried("cp /mnt/guest/etc/fstab /tmp", device);
    assert_eq!(fs::read_to_string(stage.path("letter")).expect("copied"), LETTER);
    let noise = stage.path("guest/noise");
    assert!(fs::read(noise).expect("it reads") == fs::read(stage.path("files/noise")).expect("it reads"));
    tried("umount /mnt/guest", device);
    tried("losetup --detach /dev/loop0", device);
    std::mem::forget((detach, unmount));
    mounted.end();
}

/// As docs/recovery.md says: a copy without holes, and a check of the file system.
#[test]
fn other_programs_read_a_mounted_disk() {
    let stage = Stage::new();
    let mounted = stage.start(stage.mounting(&[]));
    let vda = stage.path("point/vda.raw");
    run_ok("e2fsck", [&"-fn", &vda]);
    let copy = stage.path("copy.raw");
    run_ok("cp", [&"--sparse=auto", &vda, &copy]);
    assert!(fs::read(&copy).expect("it reads") == stage.disk());
    let taken =
        |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).expect("there")) * 512;
    assert!(taken(&copy) < 16 << 20, "{} bytes", taken(&copy));
    let compared = run_ok(
        "qemu-img",
        [&"compare", &"-f", &"raw", &"-F", &"raw", &vda, &copy],
    );
    assert!(compared.contains("identical"), "{compared}");
    let map = run_ok("qemu-img", [&"map", &"--output=json", &"-f", &"raw", &vda]);
    assert!(
        map.contains("\"zero\": true") && map.contains("\"data\": true"),
        "{map}"
    );
    let rescued = stage.path("rescued.raw");
    let (input, output) = (
        format!("if={}", vda.display()),
        format!("of={}", rescued.display()),
    );
    run_ok(
        "dd",
        [&input, &output, &"bs=4096", &"conv=noerror,sync", &"status=none"],
    );
    assert!(fs::read(&rescued).expect("it reads") == stage.disk());
    mounted.end();
}

/// Runs a program as a user without rights.
fn as_nobody(program: &str, words: &[&str]) -> Finished {
    let mut command = command(program, words);
    command.uid(NOBODY).gid(NOBODY);
    try_run(command, COMMAND_DEADLINE)
}

#[test]
fn other_users_read_a_mount_only_if_it_is_allowed() {
    let stage = Stage::new();
    let vda = stage.word("point/vda.raw");
    let read = || as_nobody("dd", &[&format!("if={vda}"), "bs=1M", "count=1", "status=none"]);
    let mounted = stage.start(stage.mounting(&[]));
    let refused = read();
    assert!(
        !refused.ok() && refused.stderr.contains("Permission denied"),
        "{}",
        refused.stderr
    );
    mounted.end();
    let mounted = stage.start(stage.mounting(&["--allow-other"]));
    let finished = as_nobody("cmp", &[&vda, &stage.word("disk.raw")]);
    assert!(finished.ok(), "{finished:?}");
    mounted.end();
}

/// The commands in a private view of the machine's mounts in which all users may open /dev/fuse, as
/// on a machine with udev.
fn in_own_mounts(stage: &Stage, words: &[&str]) -> Command {
    let node = stage.word("fuse");
    if !Path::new(&node).exists() {
        run_ok("mknod", [&"--mode=0666", &node, &"c", &"10", &"229"]);
    }
    let script = "mount --bind \"$1\" /dev/fuse && shift && \
                  exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let own = [
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        &node,
        env!("CARGO_BIN_EXE_vmsnap"),
    ];
    let mut command = command("unshare", &[&own[..], words].concat());
    command
        .current_dir(stage.folder.path())
        .env("HOME", stage.path("home"));
    command
}

#[test]
fn a_user_without_rights_mounts_with_fusermount3() {
    let stage = Stage::new();
    std::os::unix::fs::chown(stage.path("point"), Some(NOBODY), Some(NOBODY)).expect("it is ours");
    let (point, backups) = (stage.word("point"), stage.word("backups"));
    let words = ["mount", "vm1", &point, "--repository", &backups];
    let mounted = stage.start(in_own_mounts(&stage, &words));
    assert!(mounted.said().contains("fusermount3 -u"), "{}", mounted.said());
    let pid = mounted.child.id().to_string();
    let within = |program: &[&str], user: &str| {
        let enter = [
            "--mount",
            "--target",
            &pid,
            "setpriv",
            "--reuid",
            user,
            "--regid",
            user,
            "--clear-groups",
        ];
        try_run(
            command("nsenter", &[&enter[..], program].concat()),
            COMMAND_DEADLINE,
        )
    };
    let vda = stage.word("point/vda.raw");
    let compare = ["cmp", &vda, &stage.word("disk.raw")];
    let same = within(&compare, "65534");
    assert!(same.ok(), "{same:?}");
    let refused = within(&compare, "0");
    assert!(
        !refused.ok() && refused.stderr.contains("Permission denied"),
        "{refused:?}"
    );
    mounted.end();
    // Unmounted from outside.
    let mut mounted = stage.start(in_own_mounts(&stage, &words));
    let pid = mounted.child.id().to_string();
    let enter = [
        "--mount",
        "--target",
        &pid,
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    let unmount = ["fusermount3", "-u", &point];
    run_command(command("nsenter", &[&enter[..], &unmount[..]].concat()));
    let ended = wait_until(DEADLINE, || {
        mounted.child.try_wait().expect("it is ours").is_some()
    });
    assert!(ended, "{}", mounted.said());
    assert_eq!(
        mounted.child.wait().expect("it is ours").code(),
        Some(0),
        "{}",
        mounted.said()
    );
}

#[test]
fn missing_parts_of_fuse_are_named() {
    let stage = Stage::new();
    std::os::unix::fs::chown(stage.path("point"), Some(NOBODY), Some(NOBODY)).expect("it is ours");
    let mut command = stage.mounting(&[]);
    command.uid(NOBODY).gid(NOBODY).env("PATH", "/nonexistent");
    let finished = try_run(command, COMMAND_DEADLINE);
    assert_eq!(finished.code, Some(4), "{finished:?}");
    assert!(
        finished.stderr.contains("Missing dependencies (fusermount3)"),
        "{finished:?}"
    );
    assert!(
        finished.stderr.contains("install the package fuse3"),
        "{finished:?}"
    );
    // An empty /dev hides the device.
    let (point, backups) = (stage.word("point"), stage.word("backups"));
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    let own = ["--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_vmsnap")];
    let words = ["mount", "vm1", &point, "--repository", &backups];
    let hidden = crate::process::command("unshare", &[&own[..], &words].concat());
    let finished = try_run(hidden, COMMAND_DEADLINE);
    assert_eq!(finished.code, Some(4), "{finished:?}");
    assert!(
        finished.stderr.contains("Missing dependencies (/dev/fuse)"),
        "{finished:?}"
    );
    assert!(finished.stderr.contains("modprobe fuse"), "{finished:?}");
}
