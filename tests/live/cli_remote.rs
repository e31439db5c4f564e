//! A simulated remote hypervisor: reached over TCP, with its own files under paths that also exist
//! on this machine.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::fs::inotify;
use serde_json::json;

use crate::owner;
use crate::process::{COMMAND_DEADLINE, Finished, command, end, run, try_run, wait_until};

const NAME: &str = "far away";
const THEIR_SIZE: u64 = 64 << 20;

/// Starts libvirtd with all its files in separate folders, where a disk's path leads to another
/// file than outside. $1 is the folder of the test, $2 a cache for later tests, $3 the name of the
/// host. The shell stays as the first process of the PID namespace: libvirt waits until it has
/// reaped orphans.
const ELSEWHERE: &str = "set -e; dir=$1 cache=$2; \
    echo \"$3\" >/proc/sys/kernel/hostname; \
    mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; \
    for at in /run/libvirt /var/lib/libvirt /var/log/libvirt; do mount -t tmpfs elsewhere $at; done; \
    mount --bind \"$cache\" /var/cache/libvirt; mount --bind \"$dir/etc\" /etc/libvirt; \
    mount --bind \"$dir/theirs\" \"$dir/images\"; \
    /usr/sbin/libvirtd --listen --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirt/libvirtd.pid & wait";

const QEMU_CONF: &str = "user = \"+0\"\ngroup = \"+0\"\ndynamic_ownership = 0\nremember_owner = 0\n\
    stdio_handler = \"file\"\nsecurity_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n";

/// The simulated remote machine. Ended when dropped, with all its processes.
pub struct Elsewhere {
    daemon: Child,
    folder: tempfile::TempDir,
    uri: String,
}

impl Elsewhere {
    /// Starts a machine with its own name and identity, and without domains.
    pub fn start(host_name: &str) -> Elsewhere {
        let folder = owner::folder_on_disk("elsewhere-");
        let path = folder.path();
        for name in ["etc", "images", "theirs"] {
            fs::create_dir(path.join(name)).expect("it is new");
        }
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        let conf = format!(
            "listen_tls = 0\nlisten_tcp = 1\nlisten_addr = \"127.0.0.1\"\ntcp_port = \"{port}\"\n\
             auth_tcp = \"none\"\nauth_unix_rw = \"none\"\nhost_uuid = \"{}\"\n",
            uuid::Uuid::new_v4()
        );
        fs::write(path.join("etc/libvirtd.conf"), conf).expect("it is written");
        fs::write(path.join("etc/qemu.conf"), QEMU_CONF).expect("it is written");
        // libvirt needs seconds to probe each QEMU's capabilities, and keeps the results here.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("elsewhere-cache");
        fs::create_dir_all(&cache).expect("it is made");
        let words = [
            "--mount",
            "--pid",
            "--uts",
            "--mount-proc",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ELSEWHERE,
            "sh",
        ];
        let mut unshare = command("unshare", &words);
        unshare
            .arg(path)
            .arg(cache)
            .arg(host_name)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let elsewhere = Elsewhere {
            daemon: unshare.spawn().expect("unshare is there"),
            folder,
            uri: format!("qemu+tcp://127.0.0.1:{port}/system"),
        };
        let answers = wait_until(Duration::from_secs(60), || elsewhere.try_virsh(&["version"]).ok());
        assert!(
            answers,
            "libvirtd does not answer: {:#?}",
            elsewhere.try_virsh(&["version"])
        );
        elsewhere
    }

    /// The URI under which the machine is reached from outside.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Runs a program in the machine's namespaces, so with its processes, its `/run` and its name.
    pub fn run_there(&self, program: &str, words: &[&str]) -> Finished {
        let shim = self.daemon.id();
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"));
        let children = children.expect("it runs");
        let first = children.trim();
        let enter = ["--mount", "--pid", "--uts", "--target", first, "--", program];
        try_run(
            command("nsenter", &[&enter[..], words].concat()),
            COMMAND_DEADLINE,
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs virsh on the machine's daemon and returns the result, even of a failure.
    pub fn try_virsh(&self, words: &[&str]) -> Finished {
        let words = [&["--connect", self.uri.as_str()], words].concat();
        try_run(command("virsh", &words), COMMAND_DEADLINE)
    }

    /// Runs virsh on the machine's daemon; panics if it fails.
    pub fn virsh(&self, words: &[&str]) -> String {
        let finished = self.try_virsh(words);
        assert!(finished.ok(), "virsh {words:?}: {finished:#?}");
        finished.stdout
    }

    /// Defines the domain. Its disk is on the machine; another file has the same path outside.
    fn define(&self) {
        image(&self.path("theirs/vda.qcow2"), THEIR_SIZE, &[], "write -P 1 0 3M");
        image(
            &self.path("images/vda.qcow2"),
            7 << 20,
            &["virtnbdbackup.9", "not theirs"],
            "write -P 2 0 1M",
        );
        let xml = format!(
            "<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
             <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>\
             <target dev='vda' bus='virtio'/></disk><memballoon model='none'/></devices></domain>",
            self.path("images/vda.qcow2").display()
        );
        fs::write(self.path("domain.xml"), xml).expect("it is written");
        self.virsh(&["define", &self.path("domain.xml").display().to_string()]);
    }

    fn vmsnap(&self, words: &[&str]) -> Finished {
        let out = self.path("backups").display().to_string();
        let words: Vec<String> = words.iter().map(|word| word.replace("OUT", &out)).collect();
        let mut program = command(env!("CARGO_BIN_EXE_vmsnap"), &words);
        program
            .arg("--connect")
            .arg(&self.uri)
            .env_remove("VMSNAP_REPOSITORY");
        try_run(program, COMMAND_DEADLINE)
    }

    /// The JSON status of the domain.
    fn status(&self) -> serde_json::Value {
        let finished = self.vmsnap(&["--json", "--machine", "--output=OUT"]);
        assert_eq!(
            (finished.code, finished.stderr.as_str()),
            (Some(0), ""),
            "{finished:#?}"
        );
        let mut document: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
        document[NAME].take()
    }

    /// The allocation of the disk on the machine, according to libvirt.
    fn allocation(&self) -> u64 {
        let told = self.virsh(&["domblkinfo", NAME, "vda"]);
        let line = told.lines().find_map(|line| line.strip_prefix("Allocation:"));
        line.expect("a line").trim().parse().expect("a number")
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        end(&mut self.daemon);
    }
}

fn image(path: &Path, size: u64, bitmaps: &[&str], write: &str) {
    let path = path.display().to_string();
    run(command(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &path, &size.to_string()],
    ));
    run(command("qemu-io", &["-f", "qcow2", "-c", write, &path]));
    for bitmap in bitmaps {
        run(command("qemu-img", &["bitmap", "--add", &path, bitmap]));
    }
}

/// Notices when any process opens or changes a file in a folder.
struct Watch {
    events: std::os::fd::OwnedFd,
}

impl Watch {
    fn over(folder: &Path) -> Watch {
        let events = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let events = events.expect("inotify is there");
        let kinds = inotify::WatchFlags::OPEN
            | inotify::WatchFlags::ACCESS
            | inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE;
        inotify::add_watch(&events, folder, kinds).expect("the folder is there");
        Watch { events }
    }

    /// The names of the files with events since the last call.
    fn seen(&self) -> Vec<String> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            seen.push(name.unwrap_or_default());
        }
        seen
    }
}

/// Fault 8: with a remote `--connect`, status runs qemu-img on the local path of the same name.
#[test]
fn no_local_file_is_read_for_a_remote_domain() {
    let there = Elsewhere::start("far-away");
    there.define();
    let watch = Watch::over(&there.path("images"));
    fs::read(there.path("images/vda.qcow2")).expect("it is here");
    assert!(
        watch.seen().contains(&"vda.qcow2".to_owned()),
        "the watch notices opened files"
    );

    let off = there.status();
    assert_eq!(off["state"], "shut off");
    assert_eq!(off["disks"][0]["virtualSize"], THEIR_SIZE);
    assert_eq!(off["disks"][0]["actualSize"], there.allocation());
    assert_eq!(
        (&off["disks"][0]["bitmaps"], &off["disks"][0]["bitmapsKnown"]),
        (&json!([]), &json!(false))
    );
    assert_eq!(
        (&off["overallStatus"], &off["nextBackup"]),
        (&json!(0), &json!(null))
    );
    assert_eq!(off["findings"][0]["code"], "bitmaps-not-seen");

    let name = format!("--domains={NAME}");
    for words in [
        &["--backup", &name, "--output=OUT"][..],
        &["--scrub", &name, "--scrubType=both"],
    ] {
        let refused = there.vmsnap(words);
        assert_ne!(refused.code, Some(0), "{refused:#?}");
        assert!(refused.stderr.contains("another machine"), "{refused:#?}");
    }

    there.virsh(&["start", NAME, "--paused"]);
    there.virsh(&["checkpoint-create-as", NAME, "virtnbdbackup.0"]);
    let active = there.status();
    assert_eq!(active["state"], "paused");
    assert_eq!(active["checkpoints"], json!(["virtnbdbackup.0"]));
    assert_eq!(active["disks"][0]["virtualSize"], THEIR_SIZE);
    assert_eq!(active["disks"][0]["actualSize"], there.allocation());
    assert_eq!(active["disks"][0]["bitmaps"], json!(["virtnbdbackup.0"]));
    assert_eq!(
        (&active["overallStatus"], &active["changedBytes"]),
        (&json!(0), &json!(0))
    );

    let refused = there.vmsnap(&["--backup", &name, "--output=OUT"]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("another machine"), "{refused:#?}");
    let scrubbed = there.vmsnap(&["--scrub", &name, "--scrubType=both"]);
    assert_eq!(scrubbed.code, Some(0), "{scrubbed:#?}");
    assert_eq!(there.virsh(&["checkpoint-list", NAME, "--name"]).trim(), "");

    assert_eq!(watch.seen(), [""; 0], "the local file of that name was opened");
}
