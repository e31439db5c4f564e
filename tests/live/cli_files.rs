//! `vmsnap files`: single files of a guest, read by libguestfs.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::embed::run_ok;
use crate::guest::{GuestImage, boots_with_kvm};
use crate::owner;
use crate::process::{Finished, command, end, processes_with, run, try_run, wait_until};

/// The time for a command that starts a virtual machine, also without KVM, and builds it first.
const DEADLINE: Duration = Duration::from_secs(600);

const MIB: usize = 1 << 20;

const PAGE: &str = include_str!("../../docs/recovery.md");

/// Names of files in the guest's folder /odd, each with its own name as content.
const ODD_NAMES: [&[u8]; 8] = [
    b"a b",
    b"q\"uo'te`",
    b"new\nline",
    b"-dash",
    b"caf\xe9\xff",
    b"$(touch x);|&*?[~",
    b"back\\slash\\n",
    b": :",
];

/// A folder with two domains, which are shut off, and a repository.
///
/// The disks of `vm1` hold an operating system as far as libguestfs looks: a root with /etc/fstab
/// on a partition, a volume of LVM that needs both disks, and a partition that seems to be
/// encrypted. The disk of `vm2` holds NTFS and XFS, and no operating system.
struct Stage {
    folder: tempfile::TempDir,
    noise: Vec<u8>,
}

impl Stage {
    fn new() -> Stage {
        let mut noise = vec![0; 3 * MIB + 777];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let stage = Stage {
            folder: owner::folder_on_disk("files "),
            noise,
        };
        for name in ["tmp", "backups", "home", "out"] {
            fs::create_dir(stage.path(name)).expect("it is made");
        }
        stage
    }

    fn with_domains() -> Stage {
        let stage = Stage::new();
        stage.lay_files();
        stage.make_disks();
        let domains: String = [("vm1", &["a", "b"][..]), ("vm2", &["c"])]
            .iter()
            .map(|(name, disks)| stage.domain(name, disks))
            .collect();
        fs::write(stage.path("node.xml"), format!("<node>{domains}</node>")).expect("written");
        let uri = format!("test://{}", stage.word("node.xml").replace(' ', "%20"));
        let backups = stage.word("backups");
        let words = [
            "backup",
            "*",
            "--output",
            &backups,
            "--connect",
            &uri,
            "--compress",
            "none",
        ];
        run(command(env!("CARGO_BIN_EXE_vmsnap"), &words));
        stage
    }

    fn domain(&self, name: &str, disks: &[&str]) -> String {
        let disks: String = disks
            .iter()
            .zip(["vda", "vdb"])
            .map(|(disk, target)| {
                let file = self.word(&format!("{disk}.qcow2"));
                format!(
                    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{file}'/>\
                     <target dev='{target}' bus='virtio'/></disk>"
                )
            })
            .collect();
        format!(
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>{name}</name>\
             <memory>8192</memory><os><type>hvm</type></os><devices>{disks}</devices>\
             <test:runstate>5</test:runstate></domain>"
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The files of the guest's root, packed by tar.
    fn lay_files(&self) {
        let root = self.path("root");
        for folder in ["etc", "bin", "data", "secret", "odd/deep/er"] {
            fs::create_dir_all(root.join(folder)).expect("it is made");
        }
        let fstab = "LABEL=system / ext4 defaults 0 1\n/dev/vg/data /data ext4 defaults 0 2\n\
                     /dev/sda3 /secret ext4 defaults 0 2\n";
        fs::write(root.join("etc/fstab"), fstab).expect("written");
        fs::write(
            root.join("etc/os-release"),
            "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"A Test 12\"\n",
        )
        .expect("written");
        let odd = root.join("odd");
        for name in ODD_NAMES {
            fs::write(odd.join(OsStr::from_bytes(name)), name).expect("written");
        }
        fs::write(odd.join("deep/er/noise"), &self.noise).expect("written");
        fs::hard_link(odd.join("deep/er/noise"), odd.join("second")).expect("linked");
        symlink("/etc", odd.join("out")).expect("linked");
        symlink("../../../../etc/passwd", odd.join("passwd")).expect("linked");
        symlink("/odd/deep", root.join("link")).expect("linked");
        let program = odd.join("program");
        fs::write(&program, "x").expect("written");
        std::os::unix::fs::chown(&program, Some(4321), Some(1234)).expect("root may");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("it is ours");
        mknodat(CWD, odd.join("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
        run_ok(
            "tar",
            [
                &"--numeric-owner",
                &"-C",
                &root,
                &"-cf",
                &self.path("root.tar"),
                &".",
            ],
        );
        let mut luks = vec![0; 4096];
        luks[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        luks[168..204].copy_from_slice(b"01234567-89ab-cdef-0123-456789abcdef");
        fs::write(self.path("luks"), luks).expect("written");
    }

    /// Makes the disks with guestfish.
    fn make_disks(&self) {
        for (name, size) in [("a", 160 * MIB), ("b", 64 * MIB), ("c", 400 * MIB)] {
            let file = File::create(self.path(&format!("{name}.raw"))).expect("made");
            file.set_len(size as u64).expect("sparse");
        }
        let script = format!(
            "run\n\
             part-init /dev/sda gpt\n\
             part-add /dev/sda p 2048 133119\n\
             part-add /dev/sda p 133120 264191\n\
             part-add /dev/sda p 264192 325631\n\
             mkfs ext4 /dev/sda1 label:system\n\
             pvcreate /dev/sda2\n\
             pvcreate /dev/sdb\n\
             vgcreate vg \"/dev/sda2 /dev/sdb\"\n\
             lvcreate-free data vg 100\n\
             mkfs ext4 /dev/vg/data label:data\n\
             upload '{luks}' /dev/sda3\n\
             part-init /dev/sdc mbr\n\
             part-add /dev/sdc p 2048 67583\n\
             part-add /dev/sdc p 67584 -64\n\
             mkfs ntfs /dev/sdc1\n\
             mkfs xfs /dev/sdc2 label:numbers\n\
             mount /dev/sda1 /\n\
             tar-in '{tar}' /\n\
             mount /dev/vg/data /data\n\
             upload '{noise}' /data/noise\n\
             umount-all\n\
             mount /dev/sdc1 /\n\
             write '/A report.txt' 'from NTFS'\n\
             umount-all\n\
             mount /dev/sdc2 /\n\
             write /one 'from XFS'\n",
            luks = self.word("luks"),
            tar = self.word("root.tar"),
            noise = self.word("root/odd/deep/er/noise"),
        );
        fs::write(self.path("script"), script).expect("written");
        let mut words: Vec<String> = Vec::new();
        for name in ["a", "b", "c"] {
            words.extend([
                "--format=raw".to_owned(),
                "-a".to_owned(),
                self.word(&format!("{name}.raw")),
            ]);
        }
        words.extend(["-f".to_owned(), self.word("script")]);
        let mut prepare = self.inside("guestfish", &words);
        // It leaves its history of commands in its home folder.
        prepare
            .env("LIBGUESTFS_BACKEND", "direct")
            .env("HOME", self.folder.path());
        let finished = try_run(prepare, DEADLINE);
        assert!(finished.ok(), "{finished:#?}");
        for name in ["a", "b", "c"] {
            let [raw, qcow2] = ["raw", "qcow2"].map(|end| self.path(&format!("{name}.{end}")));
            run_ok(
                "qemu-img",
                [&"convert", &"-q", &"-f", &"raw", &"-O", &"qcow2", &raw, &qcow2],
            );
        }
    }

    /// A command that sees a folder of this stage as /tmp, so that it is seen what it leaves there.
    /// libguestfs builds its machine from the kernel of the test guest.
    fn inside<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, words: &[A]) -> Command {
        let script = "mount --bind \"$1\" /tmp && shift && exec \"$@\"";
        let mut all: Vec<OsString> = ["--mount", "sh", "-c", script, "sh"].map(OsString::from).to_vec();
        all.push(self.path("tmp").into());
        all.push(program.as_ref().to_owned());
        all.extend(words.iter().map(|word| word.as_ref().to_owned()));
        let image = GuestImage::build_or_cached();
        let modules = image.modules();
        let cache = image.kernel.with_file_name("appliance");
        fs::create_dir_all(&cache).expect("it is made");
        let mut command = command("unshare", &all);
        command
            .current_dir(self.path("home"))
            .env("HOME", self.path("home"))
            .env_remove("TMPDIR")
            .env("LIBGUESTFS_CACHEDIR", cache)
            .env("SUPERMIN_KERNEL", &image.kernel)
            .env("SUPERMIN_KERNEL_VERSION", modules.file_name().expect("a version"))
            .env("SUPERMIN_MODULES", &modules);
        if !boots_with_kvm() {
            command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
        }
        command
    }

    fn files<A: AsRef<OsStr>>(&self, domain: &str, words: &[A]) -> Command {
        let mut all: Vec<OsString> = ["files", domain, "--repository"].map(OsString::from).to_vec();
        all.push(self.path("backups").into());
        all.extend(words.iter().map(|word| word.as_ref().to_owned()));
        self.inside(env!("CARGO_BIN_EXE_vmsnap"), &all)
    }

    /// Runs `vmsnap files`, which must not leave anything.
    fn run<A: AsRef<OsStr>>(&self, domain: &str, words: &[A]) -> Finished {
        let finished = try_run(self.files(domain, words), DEADLINE);
        self.assert_nothing_left();
        finished
    }

    fn json(&self, domain: &str, words: &[&str]) -> Value {
        let finished = self.run(domain, &[words, &["--json"]].concat());
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        serde_json::from_str(&finished.stdout).expect("a document")
    }

    /// Runs it, and returns its output as bytes.
    fn output<A: AsRef<OsStr>>(&self, domain: &str, words: &[A]) -> Vec<u8> {
        let path = self.path("stdout");
        let mut command = self.files(domain, words);
        let out = File::create(&path).expect("made");
        // The shell of `inside` passes its output on.
        let child = command.stdout(out).stderr(Stdio::piped()).spawn();
        let child = child.expect("it starts").wait_with_output().expect("it ends");
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stderr)
        );
        self.assert_nothing_left();
        fs::read(path).expect("there")
    }

    /// Nothing is left in /tmp or in the home folder, and no process.
    fn assert_nothing_left(&self) {
        for name in ["tmp", "home"] {
            let left: Vec<_> = fs::read_dir(self.path(name)).expect("there").flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let left = processes_with(&self.word("backups"));
        assert!(left.is_empty(), "{left:?}");
    }
}

fn odd(name: &[u8]) -> OsString {
    OsStr::from_bytes(&[b"/odd/", name].concat()).to_owned()
}

/// Several checks share a repository, because each start of the virtual machine takes seconds.
#[test]
fn files_of_a_guest_are_listed_and_copied() {
    let stage = Stage::with_domains();
    devices_and_file_systems_are_listed(&stage);
    folders_are_listed(&stage);
    content_is_printed(&stage);
    copies_stay_within_their_folder(&stage);
    a_tar_stream_has_everything(&stage);
    a_file_system_is_chosen(&stage);
    the_page_brings_a_file_back(&stage);
    other_repositories_work_too(&stage);
    a_signal_leaves_nothing(&stage);
    damage_is_an_error(&stage);
}

/// The walk-through of docs/recovery.md, with other places.
fn the_page_brings_a_file_back(stage: &Stage) {
    let (_, section) = PAGE.split_once("\n## A file was deleted\n").expect("a heading");
    let (_, block) = section.split_once("\n```sh\n").expect("commands");
    let block = block.split("\n```").next().unwrap_or_default();
    let found = stage.path("found again");
    for line in block.lines() {
        let words = line.split_whitespace().map(|word| match word {
            "/backups" => stage.word("backups"),
            "/tmp/found" => found.display().to_string(),
            word => word.to_owned(),
        });
        let words: Vec<String> = words.skip(1).collect();
        let finished = try_run(stage.inside(env!("CARGO_BIN_EXE_vmsnap"), &words), DEADLINE);
        assert_eq!(finished.code, Some(0), "{line}: {finished:#?}");
    }
    let there = fs::read(stage.path("root/etc/fstab")).expect("it was laid");
    assert_eq!(fs::read(found.join("fstab")).expect("it was copied"), there);
    stage.assert_nothing_left();
}

fn devices_and_file_systems_are_listed(stage: &Stage) {
    let found = stage.json("vm1", &[]);
    let disks: Vec<_> = found["disks"].as_array().expect("a list").iter().collect();
    assert_eq!(disks.len(), 2, "{found:#}");
    assert_eq!(
        (&disks[1]["disk"], &disks[1]["device"]),
        (&"vdb".into(), &"/dev/sdb".into())
    );
    let system = |device: &str| {
        let mut all = found["fileSystems"].as_array().expect("a list").iter();
        all.find(|system| system["device"] == device)
            .unwrap_or_else(|| panic!("{device}: {found:#}"))
    };
    let root = system("/dev/sda1");
    assert_eq!(
        (&root["type"], &root["label"]),
        (&"ext4".into(), &"system".into())
    );
    assert_eq!(root["mountPoints"][0], "/", "{found:#}");
    assert_eq!(root["size"], 64 * MIB);
    assert_eq!(system("/dev/vg/data")["mountPoints"][0], "/data", "{found:#}");
    assert_eq!(system("/dev/sda3")["type"], "crypto_LUKS");
    assert_eq!(found["operatingSystems"][0]["root"], "/dev/sda1", "{found:#}");
    let finished = stage.run("vm2", &[""; 0]);
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let is_listed = |words: &[&str]| {
        lines
            .iter()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(is_listed(&["/dev/sda1", "ntfs"]), "{finished:#?}");
    assert!(is_listed(&["/dev/sda2", "xfs", "numbers"]), "{finished:#?}");
}

fn folders_are_listed(stage: &Stage) {
    // Through a link whose target begins at the guest's root.
    let found = stage.json("vm1", &["ls", "/link/.."]);
    let files = found["files"].as_array().expect("a list");
    assert_eq!(files.len(), ODD_NAMES.len() + 6, "{found:#}");
    let named = |name: &str| {
        let mut named = files.iter().filter(|file| file["name"] == name);
        named.next().unwrap_or_else(|| panic!("{name:?}: {found:#}"))
    };
    assert_eq!(named("new\nline")["size"], "new\nline".len());
    let program = named("program");
    assert_eq!(
        (&program["mode"], &program["user"]),
        (&"4755".into(), &4321.into())
    );
    assert_eq!(named("out")["link"], "/etc");
    assert_eq!(named("pipe")["kind"], "pipe");
    assert_eq!(named("deep")["kind"], "folder");
    assert_eq!(named("second")["size"], stage.noise.len());
    let raw = files.iter().find_map(|file| file["rawName"].as_str());
    assert_eq!(raw, Some("636166e9ff"));
    // A file system of the guest is missing, which is said.
    assert_eq!(
        found["findings"][0]["code"], "file-system-not-mounted",
        "{found:#}"
    );
}

fn content_is_printed(stage: &Stage) {
    let mut words: Vec<OsString> = vec!["cat".into()];
    words.extend(ODD_NAMES.map(odd));
    words.push("/data/noise".into());
    words.push("/link/er/noise".into());
    let expected = [&ODD_NAMES.concat(), &stage.noise, &stage.noise]
        .map(|part| &part[..])
        .concat();
    assert!(stage.output("vm1", &words) == expected);
    for (path, code, said) in [
        ("/missing", 1, "there is no file /missing"),
        ("/odd/pipe", 64, "a device, pipe or socket"),
    ] {
        let finished = stage.run("vm1", &["cat", path]);
        assert_eq!(finished.code, Some(code), "{finished:#?}");
        assert!(finished.stderr.contains(said), "{finished:#?}");
    }
}

fn copies_stay_within_their_folder(stage: &Stage) {
    let out = stage.word("out");
    let copied = stage.json("vm1", &["get", "/odd", "/data/noise", "/link", &out]);
    let odd = stage.path("out/odd");
    for name in ODD_NAMES {
        assert_eq!(fs::read(odd.join(OsStr::from_bytes(name))).expect("copied"), name);
    }
    for name in [
        "out/noise",
        "out/odd/deep/er/noise",
        "out/odd/second",
        "out/link/er/noise",
    ] {
        assert!(
            fs::read(stage.path(name)).expect("copied") == stage.noise,
            "{name}"
        );
    }
    assert_eq!(odd.join("second").metadata().expect("there").nlink(), 2);
    assert_eq!(fs::read_link(odd.join("out")).expect("a link"), Path::new("/etc"));
    assert!(odd.join("passwd").symlink_metadata().expect("there").is_symlink());
    let program = odd.join("program").metadata().expect("copied");
    assert_eq!(
        (program.uid(), program.gid(), program.mode() & 0o7777),
        (4321, 1234, 0o755)
    );
    let there = fs::metadata(stage.path("root/odd/program")).expect("there");
    assert_eq!(program.mtime(), there.mtime());
    // The pipe is left out.
    assert!(!odd.join("pipe").exists());
    assert_eq!(copied["copies"][0]["leftOut"], 1, "{copied:#}");
    let codes: Vec<_> = copied["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|found| &found["code"])
        .collect();
    assert!(codes.contains(&&"special-files-left-out".into()), "{copied:#}");
    let names = fs::read_dir(stage.path("out")).expect("there").count();
    assert_eq!(names, 3, "temporary folders are removed");
    // Nothing is overwritten.
    let finished = stage.run("vm1", &["get", "/etc/fstab", "/data/noise", &out]);
    assert_eq!(finished.code, Some(3), "{finished:#?}");
    assert!(finished.stderr.contains("already exists"), "{finished:#?}");
    assert_eq!(fs::read_dir(stage.path("out")).expect("there").count(), 3);
    fs::remove_dir_all(stage.path("out")).expect("it is ours");
}

fn a_tar_stream_has_everything(stage: &Stage) {
    let stream = stage.output("vm1", &["tar", "/link/.."]);
    let (tar, to) = (stage.path("odd.tar"), stage.path("untarred"));
    fs::write(&tar, stream).expect("written");
    fs::create_dir(&to).expect("made");
    run_ok("tar", [&"-C", &to, &"-xpf", &tar]);
    for name in ODD_NAMES {
        assert_eq!(fs::read(to.join(OsStr::from_bytes(name))).expect("there"), name);
    }
    assert_eq!(
        to.join("program").metadata().expect("there").mode() & 0o7777,
        0o4755
    );
    assert!(
        to.join("pipe")
            .symlink_metadata()
            .expect("there")
            .file_type()
            .is_fifo()
    );
    let finished = stage.run("vm1", &["tar", "/"]);
    assert_eq!(finished.code, Some(3), "{finished:#?}");
    assert!(
        finished.stderr.contains("cannot be mounted on /secret"),
        "{finished:#?}"
    );
}

fn a_file_system_is_chosen(stage: &Stage) {
    let finished = stage.run("vm2", &["ls"]);
    assert_eq!(finished.code, Some(64), "{finished:#?}");
    let said = "there are several file systems: /dev/sda1 (ntfs), /dev/sda2 (xfs)";
    assert!(finished.stderr.contains(said), "{finished:#?}");
    assert!(finished.stderr.contains("--device"), "{finished:#?}");
    let words = ["cat", "/A report.txt", "--device", "/dev/sda1"];
    assert_eq!(stage.output("vm2", &words), b"from NTFS");
    let finished = stage.run("vm2", &["ls", "/one", "--device", "/dev/sda2", "--disk", "vda"]);
    assert!(
        finished.ok() && finished.stdout.ends_with("  /one\n"),
        "{finished:#?}"
    );
    let finished = stage.run("vm1", &["ls", "/", "--device", "/dev/sda3"]);
    assert_eq!(finished.code, Some(3), "{finished:#?}");
    assert!(
        finished.stderr.contains("/dev/sda3 is encrypted (LUKS)"),
        "{finished:#?}"
    );
}

fn other_repositories_work_too(stage: &Stage) {
    let (from, to) = (stage.word("backups"), format!("pack:{}", stage.word("pack")));
    let program = |words: &[&str]| {
        let mut program = command(env!("CARGO_BIN_EXE_vmsnap"), words);
        for (name, folder) in [("STATE", "state"), ("CACHE", "cache")] {
            program.env(format!("VMSNAP_{name}"), stage.path(folder));
        }
        program
    };
    run(program(&["init", &to, "--no-encryption"]));
    run(program(&["copy", "vm1", "--from", &from, "--to", &to]));
    let words = ["files", "vm1", "cat", "/etc/fstab", "--repository", &to];
    let mut command = stage.inside(env!("CARGO_BIN_EXE_vmsnap"), &words);
    for (name, folder) in [("STATE", "state"), ("CACHE", "cache")] {
        command.env(format!("VMSNAP_{name}"), stage.path(folder));
    }
    let finished = try_run(command, DEADLINE);
    assert!(finished.stdout.starts_with("LABEL=system"), "{finished:#?}");
    stage.assert_nothing_left();
}

/// A signal while the virtual machine runs ends it, and everything else.
fn a_signal_leaves_nothing(stage: &Stage) {
    let mut command = stage.files("vm1", &["cat", "/data/noise"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("it starts");
    // Its arguments name the socket in this stage's /tmp, as all programs there do. The process of
    // the machine has the folder of the program in its environment.
    let runs = wait_until(DEADLINE, || {
        let started = machines_of(child.id());
        !started.is_empty() || child.try_wait().expect("it is ours").is_some()
    });
    let machines = machines_of(child.id());
    let signalled = kill_process(Pid::from_child(&child), Signal::INT);
    let ended = wait_until(DEADLINE, || child.try_wait().expect("it is ours").is_some());
    if !ended {
        end(&mut child);
    }
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        runs && ended && signalled.is_ok() && !machines.is_empty(),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(130), "{said}");
    stage.assert_nothing_left();
    for machine in machines {
        assert!(!crate::process::is_alive(machine), "{machine} is alive");
    }
}

/// The virtual machines that this process has started, at any depth.
fn machines_of(ancestor: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let is_below = |mut pid: u32| {
        while let Some(above) = parent(pid).filter(|above| *above > 1) {
            if above == ancestor {
                return true;
            }
            pid = above;
        }
        false
    };
    let machines = processes_with("guestfsd.sock").into_iter().map(|(pid, _)| pid);
    machines.filter(|pid| is_below(*pid)).collect()
}

/// A changed byte in the data of a file makes its copy fail, and other files can be read.
fn damage_is_an_error(stage: &Stage) {
    let image = find(&stage.path("backups/vm1"), "vda.qcow2").expect("an image");
    let mut bytes = fs::read(&image).expect("it is there");
    // A piece in the middle of the file that is on the first disk only.
    let piece = &stage.noise[MIB..MIB + 512];
    let place = bytes
        .windows(512)
        .position(|window| window == piece)
        .expect("it is stored");
    bytes[place + 100] ^= 1;
    fs::write(&image, bytes).expect("written");
    let out = stage.word("out");
    for words in [&["cat", "/odd/-dash", "/odd/second"][..], &["get", "/odd", &out]] {
        let finished = stage.run("vm1", words);
        assert_eq!(finished.code, Some(11), "{words:?}: {}", finished.stderr);
        assert!(
            finished.stderr.contains("vda.qcow2"),
            "{words:?}: {}",
            finished.stderr
        );
        assert!(
            finished.stderr.contains("reads of the disks failed"),
            "{}",
            finished.stderr
        );
        // Another file is read in spite of it.
        assert_eq!(finished.stdout.starts_with("-dash"), words[0] == "cat");
    }
    assert_eq!(fs::read_dir(&out).expect("made").count(), 0);
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find_map(|path| match path.is_dir() {
            true => find(&path, name),
            false => path.ends_with(name).then_some(path),
        })
}

#[test]
fn a_missing_guestfish_or_kernel_is_named() {
    let stage = Stage::new();
    run_ok("mke2fs", [&"-q", &"-t", &"ext4", &stage.path("a.raw"), &"8M"]);
    run_ok(
        "qemu-img",
        [
            &"convert",
            &"-q",
            &"-O",
            &"qcow2",
            &stage.path("a.raw"),
            &stage.path("a.qcow2"),
        ],
    );
    fs::write(
        stage.path("node.xml"),
        format!("<node>{}</node>", stage.domain("vm1", &["a"])),
    )
    .expect("written");
    let uri = format!("test://{}", stage.word("node.xml").replace(' ', "%20"));
    let backups = stage.word("backups");
    let words = ["backup", "vm1", "--output", &backups, "--connect", &uri];
    run(command(env!("CARGO_BIN_EXE_vmsnap"), &words));

    let mut command = command(
        env!("CARGO_BIN_EXE_vmsnap"),
        &["files", "vm1", "ls", "--repository", &backups],
    );
    command.env("PATH", "/nonexistent");
    let finished = try_run(command, DEADLINE);
    assert_eq!(finished.code, Some(4), "{finished:#?}");
    assert!(
        finished.stderr.contains("Missing dependencies (guestfish)"),
        "{finished:#?}"
    );
    assert!(
        finished.stderr.contains("libguestfs-tools (Debian)"),
        "{finished:#?}"
    );

    let empty = stage.path("empty");
    fs::create_dir(&empty).expect("made");
    let mut command = stage.files("vm1", &["ls"]);
    command
        .env("LIBGUESTFS_CACHEDIR", &empty)
        .env("SUPERMIN_KERNEL", stage.path("no kernel"))
        .env("SUPERMIN_MODULES", &empty);
    let finished = try_run(command, DEADLINE);
    assert_eq!(finished.code, Some(3), "{finished:#?}");
    assert!(
        finished.stderr.contains("could not start its virtual machine"),
        "{finished:#?}"
    );
    assert!(finished.stderr.contains("libguestfs-test-tool"), "{finished:#?}");
    stage.assert_nothing_left();
}
