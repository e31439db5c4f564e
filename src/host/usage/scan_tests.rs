//! Tests of the scan on a simulated `/proc` and `/sys`.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A simulated machine: a folder with the subfolders `proc` and `sys`.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine {
            folder: tempfile::tempdir().expect("a folder"),
        };
        for folder in ["proc", "sys/dev/block", "sys/block"] {
            fs::create_dir_all(machine.path(folder)).expect("new");
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn kernel(&self) -> Kernel {
        Kernel {
            proc: self.path("proc"),
            sys: self.path("sys"),
            own_pid: 4242,
        }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// Adds a block device at `sys/devices/NAME`. The name of a partition is `DISK/PARTITION`.
    fn device(&self, name: &str, number: &str) {
        self.write(&format!("sys/devices/{name}/dev"), &format!("{number}\n"));
        let folder = self.path(&format!("sys/devices/{name}"));
        for inner in ["holders", "slaves"] {
            fs::create_dir(folder.join(inner)).expect("new");
        }
        symlink(&folder, self.path(&format!("sys/dev/block/{number}"))).expect("new");
        match name.contains('/') {
            true => self.write(&format!("sys/devices/{name}/partition"), "1\n"),
            false => symlink(&folder, self.path(&format!("sys/block/{name}"))).expect("new"),
        }
    }

    fn build(&self, upper: &str, lower: &str) {
        let folder = |name: &str| self.path(&format!("sys/devices/{name}"));
        let name = |path: &str| path.rsplit('/').next().expect("a name").to_owned();
        symlink(folder(upper), folder(lower).join("holders").join(name(upper))).expect("new");
        symlink(folder(lower), folder(upper).join("slaves").join(name(lower))).expect("new");
    }

    fn users(&self, number: &str) -> Vec<String> {
        let number = parse::number(number.as_bytes()).expect("a number");
        let kernel = self.kernel();
        let subject = kernel.subject_of(Identity::Device(number));
        let (users, _) = kernel.users(&subject);
        let mut users: Vec<String> = users.iter().map(Usage::to_string).collect();
        users.sort();
        users
    }

    fn parts(&self, number: &str) -> Vec<String> {
        let number = parse::number(number.as_bytes()).expect("a number");
        let subject = self.kernel().subject_of(Identity::Device(number));
        let names = subject.parts.iter().filter_map(|part| part.name.clone());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// `sda` (8:0) with `sda1` (8:1) and `sda2` (8:2); a volume `dm-0` (253:0) on `sda2`.
fn disk() -> Machine {
    let machine = Machine::new();
    machine.device("sda", "8:0");
    machine.device("sda/sda1", "8:1");
    machine.device("sda/sda2", "8:2");
    machine.device("dm-0", "253:0");
    machine.write("sys/devices/dm-0/dm/name", "vg-lv\n");
    machine.build("dm-0", "sda/sda2");
    machine
}

#[test]
fn a_volume_on_a_partition_uses_the_disk() {
    let machine = disk();
    assert_eq!(machine.users("8:2"), ["dm-0 (vg-lv) is built on it"]);
    assert_eq!(machine.users("8:0"), ["dm-0 (vg-lv) is built on partition sda2"]);
    assert_eq!(machine.users("8:1"), [""; 0]);
    assert_eq!(
        machine.users("253:0"),
        [""; 0],
        "what it stands on is no use of it"
    );
}

#[test]
fn partitions_disks_and_lower_devices_belong_together() {
    let machine = disk();
    assert_eq!(machine.parts("8:0"), ["partition sda1", "partition sda2"]);
    assert_eq!(machine.parts("8:1"), ["the whole disk sda"]);
    assert_eq!(
        machine.parts("253:0"),
        ["the underlying device sda", "the underlying device sda2"]
    );
}

#[test]
fn mounts_in_any_namespace_and_swap_are_uses() {
    let machine = disk();
    machine.write(
        "proc/7/mountinfo",
        "1 2 8:1 / /srv\\040x rw - ext4 /dev/sda1 rw\n",
    );
    fs::create_dir(machine.path("proc/7/ns")).expect("new");
    symlink("mnt:[1]", machine.path("proc/7/ns/mnt")).expect("new");
    assert_eq!(machine.users("8:1"), ["it is mounted on /srv x"]);
    assert_eq!(
        machine.users("8:0"),
        [
            "dm-0 (vg-lv) is built on partition sda2",
            "partition sda1 is mounted on /srv x"
        ]
    );
    assert_eq!(machine.users("8:2"), ["dm-0 (vg-lv) is built on it"]);
}

#[test]
fn open_descriptors_of_others_are_uses_and_own_ones_are_not() {
    let machine = Machine::new();
    let (file, other) = (machine.path("a.img"), machine.path("other"));
    for path in [&file, &other] {
        fs::write(path, "x").expect("written");
    }
    fs::hard_link(&file, machine.path("linked")).expect("linked");
    for (pid, target) in [(7, machine.path("linked")), (8, other), (4242, file.clone())] {
        machine.write(&format!("proc/{pid}/comm"), "qemu\u{1b}[31m\n");
        fs::create_dir(machine.path(&format!("proc/{pid}/fd"))).expect("new");
        symlink(target, machine.path(&format!("proc/{pid}/fd/3"))).expect("new");
        symlink("socket:[5]", machine.path(&format!("proc/{pid}/fd/4"))).expect("new");
    }
    // A process that ended during the scan.
    fs::create_dir(machine.path("proc/9")).expect("new");
    let kernel = machine.kernel();
    let (users, unseen) = kernel.users(&kernel.subject(&file).expect("it is there"));
    let texts: Vec<String> = users.iter().map(Usage::to_string).collect();
    assert_eq!(texts, ["process 7 (qemu\\u{1b}[31m) has it open"]);
    assert_eq!(unseen, 0);
}

#[test]
fn loop_devices_share_their_backing_file() {
    let machine = Machine::new();
    let file = machine.path("a.img");
    fs::write(&file, "x").expect("written");
    for (name, number) in [("loop0", "7:0"), ("loop1", "7:1")] {
        machine.device(name, number);
        let text = format!("{}\n", file.display());
        machine.write(&format!("sys/devices/{name}/loop/backing_file"), &text);
    }
    let backing = format!("the underlying file {}", file.display());
    assert_eq!(machine.users("7:0"), [format!("loop1 is attached to {backing}")]);
    fs::write(
        machine.path("proc/swaps"),
        format!("Filename\n{} file 1 0 -2\n", file.display()),
    )
    .expect("written");
    let users = machine.users("7:1");
    assert_eq!(users[0], format!("loop0 is attached to {backing}"));
    assert_eq!(users[1], format!("{backing} is used as swap"));
}

#[test]
fn a_devices_size_is_in_sectors() {
    let machine = disk();
    machine.write("sys/devices/sda/size", "16383\n");
    assert_eq!(
        machine.kernel().size(&machine.path("proc")),
        None,
        "a folder has none"
    );
    let folder = machine.kernel().folder(Number { major: 8, minor: 0 });
    assert_eq!(folder, Some(machine.path("sys/devices/sda")));
}

#[test]
fn devices_that_contain_each_other_end_the_search() {
    let machine = Machine::new();
    machine.device("dm-1", "253:1");
    machine.device("dm-2", "253:2");
    machine.build("dm-1", "dm-2");
    machine.build("dm-2", "dm-1");
    assert_eq!(machine.parts("253:1"), ["the underlying device dm-2"]);
}
