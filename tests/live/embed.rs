//! A hypervisor inside the test process (`qemu:///embed`), and temporary domains without a guest
//! system.
//!
//! libvirt allows one root folder per process, so all tests share it. A watcher removes what is
//! left when the process ends, however it ends.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use virt::connect::Connect;
use virt::domain::Domain as Handle;
use virt_sys as sys;
use vmsnap::host::Host;
use vmsnap::host::libvirt::LibvirtHost;
use vmsnap::model::domain::Domain;

use crate::owner;

/// Size of every disk, in bytes.
pub const DISK: u64 = 32 << 20;

/// Settings with which QEMU runs as the test's user, even in a container, and without a libvirt
/// daemon.
const QEMU_CONF: &str =
    "stdio_handler = \"file\"\nsecurity_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n";
const AS_ROOT: &str = "user = \"+0\"\ngroup = \"+0\"\ndynamic_ownership = 0\nremember_owner = 0\n\
                       swtpm_user = \"+0\"\nswtpm_group = \"+0\"\n";

/// Waits until the process $0 is gone, ends its QEMUs, and removes its root $1. A recorded process
/// id may have been reused, so the command line must name the root.
const WATCHER: &str = "tail --pid=\"$0\" -f /dev/null; \
    for file in \"$1\"/run/qemu/*.pid; do \
        [ -f \"$file\" ] && pid=$(cat \"$file\") && grep -qsF \"$1\" \"/proc/$pid/cmdline\" && kill -9 \"$pid\"; \
    done; rm -rf \"$1\"";

/// The hypervisor of this process.
pub struct Lab {
    pub host: LibvirtHost,
    pub uri: String,
    pub connection: Connect,
    root: PathBuf,
    _watcher: Child,
}

impl Lab {
    pub fn get() -> &'static Lab {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(Lab::start)
    }

    fn start() -> Lab {
        let root = owner::folder("live-").keep();
        let watcher = watch(&root);
        fs::create_dir(root.join("etc")).expect("it is made");
        // libvirt needs seconds to probe each QEMU's capabilities, and keeps the results here. It
        // knows when they are stale.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
        fs::create_dir_all(&cache)
            .and_then(|()| symlink(&cache, root.join("cache")))
            .expect("it is made");
        let is_root = rustix::process::geteuid().is_root();
        let conf = format!("{QEMU_CONF}{}", if is_root { AS_ROOT } else { "" });
        fs::write(root.join("etc/qemu.conf"), conf).expect("it is written");
        let uri = format!("qemu:///embed?root={}", root.display());
        let host = LibvirtHost::connect(Some(&uri)).expect("the embedded driver opens");
        let connection = Connect::open(Some(&uri)).expect("it opens again");
        Lab {
            host,
            uri,
            connection,
            root,
            _watcher: watcher,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn watch(root: &Path) -> Child {
    let pid = std::process::id().to_string();
    #[allow(clippy::disallowed_methods, reason = "tests start programs")]
    let mut watcher = Command::new("sh");
    watcher.args(["-c", WATCHER, &pid]).arg(root).process_group(0);
    watcher
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    watcher.spawn().expect("the watcher starts")
}

/// Runs a program to its end.
pub fn run(program: &str, arguments: &[&OsStr]) -> Output {
    #[allow(clippy::disallowed_methods, reason = "tests start programs")]
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a program, which has to succeed, and returns its output.
pub fn run_ok<const N: usize>(program: &str, arguments: [&dyn AsRef<OsStr>; N]) -> String {
    let arguments = arguments.map(AsRef::as_ref);
    let output = run(program, &arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The format of a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Qcow2,
    Qcow2Version2,
    Raw,
}

impl Kind {
    fn format(self) -> &'static str {
        match self {
            Kind::Qcow2 | Kind::Qcow2Version2 => "qcow2",
            Kind::Raw => "raw",
        }
    }
}

/// The properties in which a domain differs from the default.
#[derive(Clone, Copy, Default)]
pub struct Shape<'a> {
    /// Its disks `vda`, `vdb` …, each with its size in bytes.
    pub disks: &'a [(Kind, u64)],
    /// XML after the domain's name.
    pub head: &'a str,
    /// XML within `<os>`.
    pub os: &'a str,
    /// XML of further devices.
    pub devices: &'a str,
}

/// A domain with disks `vda`, `vdb` …, destroyed and undefined when dropped.
pub struct TestDomain {
    pub name: String,
    pub dir: tempfile::TempDir,
    handle: Handle,
}

impl TestDomain {
    /// Defines a domain, shut off. A number makes the name unique.
    pub fn define(name: &str, disks: &[Kind]) -> TestDomain {
        let disks: Vec<(Kind, u64)> = disks.iter().map(|kind| (*kind, DISK)).collect();
        TestDomain::shaped(
            name,
            &Shape {
                disks: &disks,
                ..Shape::default()
            },
        )
    }

    /// Defines a domain with these properties, shut off. A number makes the name unique.
    pub fn shaped(name: &str, shape: &Shape) -> TestDomain {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("{name}{}", NUMBER.fetch_add(1, Ordering::SeqCst));
        let dir = owner::folder("disks ");
        let mut devices = String::new();
        for (index, (kind, size)) in shape.disks.iter().enumerate() {
            let target = target(index);
            create(&image_in(dir.path(), &target), *kind, *size);
            devices.push_str(&disk_xml(dir.path(), &target, *kind));
        }
        let virt = if Path::new("/dev/kvm").exists() {
            "kvm"
        } else {
            "qemu"
        };
        let xml = format!(
            "<domain type='{virt}'><name>{}</name>{}<memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64'>hvm</type>{}</os><features><acpi/></features>\
             <devices>{devices}{}<interface type='user'><mac address='52:54:00:aa:bb:cc'/></interface></devices>\
             <seclabel type='none'/></domain>",
            escape(&name),
            shape.head,
            shape.os,
            shape.devices,
        );
        let handle = Handle::define_xml(&Lab::get().connection, &xml).expect("libvirt takes it");
        TestDomain { name, dir, handle }
    }

    /// A domain that is already defined, with images in this folder.
    pub fn adopted(name: &str, dir: tempfile::TempDir) -> TestDomain {
        let handle = Handle::lookup_by_name(&Lab::get().connection, name).expect("it is there");
        let name = name.to_owned();
        TestDomain { name, dir, handle }
    }

    /// Defines a domain and starts it paused: without a guest system it would only use CPU time.
    pub fn paused(name: &str, disks: &[Kind]) -> TestDomain {
        let domain = TestDomain::define(name, disks);
        domain.start();
        domain
    }

    pub fn start(&self) {
        self.handle
            .create_with_flags(sys::VIR_DOMAIN_START_PAUSED)
            .expect("it starts");
    }

    pub fn destroy(&self) {
        self.handle.destroy().expect("it ends");
    }

    /// Looks up the domain that has the name now.
    pub fn look_again(&mut self) {
        self.handle = Handle::lookup_by_name(&Lab::get().connection, &self.name).expect("it is there");
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The domain as the host under test sees it.
    pub fn seen(&self) -> Domain {
        Lab::get().host.domain(&self.name).expect("it is there")
    }

    pub fn image(&self, target: &str) -> PathBuf {
        image_in(self.dir.path(), target)
    }

    /// The current image of a disk: an overlay, or the path in the domain's definition.
    pub fn image_now(&self, target: &str) -> PathBuf {
        let seen = self.seen();
        let path = seen.disk(target).and_then(|disk| disk.source.path());
        path.expect("it has an image").clone()
    }

    /// Attaches another disk.
    pub fn attach(&self, target: &str) {
        create(&self.image(target), Kind::Qcow2, DISK);
        self.handle
            .attach_device(&self.disk_xml(target))
            .expect("it is plugged in");
    }

    /// The XML of a qcow2 disk whose image has its usual path.
    pub fn disk_xml(&self, target: &str) -> String {
        disk_xml(self.dir.path(), target, Kind::Qcow2)
    }

    /// Runs a qemu-io command on a disk, as if the guest did it (`write -P 0x41 0 1M`, `write -z
    /// …`, `discard …`).
    pub fn io(&self, target: &str, command: &str) {
        if !self.handle.is_active().expect("it is known") {
            let (image, format) = (self.image_now(target), self.format(target));
            run_ok(
                "qemu-io",
                [&"-d", &"unmap", &"-f", &format, &"-c", &command, &image],
            );
            return;
        }
        let index = u32::from(*target.as_bytes().last().expect("a letter") - b'a');
        let device = format!("/machine/peripheral/virtio-disk{index}/virtio-backend");
        let said = self.monitor(&format!("qemu-io -d {device} \"{command}\""));
        assert_eq!(said.trim(), "", "qemu-io {command}");
    }

    /// The format of a disk's image, detected from its first bytes.
    pub fn format(&self, target: &str) -> &'static str {
        let mut magic = [0; 4];
        let image = fs::File::open(self.image_now(target)).expect("it is there");
        let read = std::os::unix::fs::FileExt::read_at(&image, &mut magic, 0).expect("it is readable");
        match read == 4 && magic == *b"QFI\xfb" {
            true => "qcow2",
            false => "raw",
        }
    }

    /// Runs a human monitor command.
    pub fn monitor(&self, command: &str) -> String {
        let hmp = sys::VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP;
        self.handle
            .qemu_monitor_command(command, hmp)
            .expect("the monitor answers")
    }

    /// Kills QEMU, as a power cut would.
    pub fn kill(&self) {
        let files = fs::read_dir(Lab::get().root().join("run/qemu")).expect("libvirt keeps ids there");
        let file = files.flatten().map(|file| file.path());
        let file = file
            .into_iter()
            .find(|file| file.file_name() == Some(OsStr::new(&format!("{}.pid", self.name))));
        let pid = fs::read_to_string(file.expect("it runs")).expect("it is readable");
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a number")).expect("not zero");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is killed");
        wait_for("libvirt to notice", || {
            !self.handle.is_active().expect("it is known")
        });
    }

    /// The names of files in the images' folder that are not images.
    pub fn strangers(&self) -> Vec<OsString> {
        let entries = fs::read_dir(self.dir.path()).expect("it is readable").flatten();
        let name = |entry: fs::DirEntry| entry.file_name();
        entries
            .map(name)
            .filter(|name| !name.as_encoded_bytes().ends_with(b".img"))
            .collect()
    }
}

impl Drop for TestDomain {
    fn drop(&mut self) {
        // The domain may be running or not, defined or not.
        let _ = self.handle.destroy();
        let flags = sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE;
        let _ = self.handle.undefine_flags(flags);
    }
}

/// Waits until something happens, at most 30 seconds.
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !happened() {
        assert!(started.elapsed().as_secs() < 30, "timed out waiting for {what}");
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
}

fn target(index: usize) -> String {
    format!("vd{}", char::from(b'a' + u8::try_from(index).expect("few disks")))
}

fn image_in(dir: &Path, target: &str) -> PathBuf {
    dir.join(format!("{target} it's.img"))
}

fn create(image: &Path, kind: Kind, size: u64) {
    let (format, size) = (kind.format(), size.to_string());
    let compat = match kind {
        Kind::Qcow2 => "compat=1.1",
        Kind::Qcow2Version2 => "compat=0.10",
        Kind::Raw => "preallocation=off",
    };
    run_ok(
        "qemu-img",
        [&"create", &"-q", &"-f", &format, &"-o", &compat, &image, &size],
    );
}

fn disk_xml(dir: &Path, target: &str, kind: Kind) -> String {
    let image = image_in(dir, target);
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{}' discard='unmap'/>\
         <source file='{}'/><target dev='{target}' bus='virtio'/></disk>",
        kind.format(),
        escape(&image.display().to_string())
    )
}

/// Escapes for XML text and attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

/// A random number from the same source as the program's.
pub fn random() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
