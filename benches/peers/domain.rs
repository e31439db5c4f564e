//! A paused domain with one disk. The bench writes to the disk through its QEMU.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys::VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP;

use crate::daemon::{Daemon, TestDomain, URI};
use crate::disk::{self, Fill};
use crate::process::{COMMAND_DEADLINE, wait_until};

/// A domain and the folder with its files. Both are removed when it is dropped.
pub struct Source {
    domain: TestDomain,
    /// Size of the disk, in bytes.
    pub size: u64,
}

impl Source {
    /// Defines a domain with a disk and does not start it.
    pub fn define(daemon: &Daemon, label: &str, size: u64, fill: Fill) -> Source {
        Source::define_cached(daemon, label, size, fill, "default")
    }

    /// The same with this cache mode of the disk, in libvirt's words.
    fn define_cached(daemon: &Daemon, label: &str, size: u64, fill: Fill, cache: &str) -> Source {
        let domain = TestDomain::new(daemon, label);
        let source = Source { domain, size };
        disk::make(&source.image(), size, fill);
        let sockets = source.sockets();
        fs::create_dir(&sockets).expect("the folder is ours");
        // QEMU creates its socket and scratch file there, and runs as its own user.
        fs::set_permissions(&sockets, Permissions::from_mode(0o777)).expect("the folder is ours");
        let disk = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap' cache='{cache}'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>",
            source.image().display()
        );
        let xml = source.domain.xml(daemon.virt_type(), 64, "", &disk);
        source.domain.define(&xml);
        source
    }

    /// Defines a domain with a disk and starts it paused.
    pub fn start(daemon: &Daemon, label: &str, size: u64, fill: Fill) -> Source {
        Source::define(daemon, label, size, fill).started(daemon)
    }

    /// The same with a disk that QEMU reads and writes past the page cache, as most installations
    /// configure it.
    pub fn start_uncached(daemon: &Daemon, label: &str, size: u64, fill: Fill) -> Source {
        Source::define_cached(daemon, label, size, fill, "none").started(daemon)
    }

    fn started(self, daemon: &Daemon) -> Source {
        // virtlogd may have ended after the last domain.
        daemon.start();
        self.domain.start_paused();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.domain.name()
    }

    /// The image of its disk.
    pub fn image(&self) -> PathBuf {
        self.domain.path("disk.qcow2")
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.domain.dir()
    }

    fn sockets(&self) -> PathBuf {
        self.domain.path("job")
    }

    /// The process id of its QEMU.
    pub fn qemu(&self) -> u32 {
        let path = format!("/run/libvirt/qemu/{}.pid", self.name());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        text.trim().parse().expect("a process id")
    }

    /// Fills ranges of `length` bytes at these offsets with `byte`, as a write of the guest.
    pub fn write(&self, offsets: impl Iterator<Item = u64>, length: u64, byte: u8) {
        let device = self.device();
        for offset in offsets {
            device.run(&format!("write -q -P {byte} {offset} {length}"));
        }
    }

    /// Fills ranges of `length` bytes at these offsets with bytes that occur nowhere else, as a
    /// write of the guest. Other seeds give other bytes.
    pub fn write_unique(&self, offsets: impl Iterator<Item = u64>, length: u64, seed: u8) {
        let device = self.device();
        let mut random = blake3::Hasher::new().update(&[seed]).finalize_xof();
        let mut bytes = vec![0; usize::try_from(length).expect("it fits into memory")];
        let file = self.dir().join("bytes");
        for offset in offsets {
            random.fill(&mut bytes);
            fs::write(&file, &bytes).expect("the folder is ours");
            device.run(&format!("write -q -s {} {offset} {length}", file.display()));
        }
    }

    /// The device of its disk, for commands of this thread.
    pub fn device(&self) -> Device {
        let connection = Connect::open(Some(URI)).expect("the daemon answers");
        let domain = Domain::lookup_by_name(&connection, self.name()).expect("the domain is there");
        Device {
            domain,
            _connection: connection,
        }
    }

    /// Starts a job that exports the whole disk. Only this benchmark uses the domain.
    pub fn begin_job(&self) -> Job<'_> {
        self.domain.virsh(&["backup-begin", &self.job_document()]);
        Job { source: self }
    }

    /// Waits until no job is active: some programs exit before the job that they ended has
    /// disappeared.
    pub fn wait_until_idle(&self) {
        let idle = || self.domain.virsh(&["domjobinfo"]).contains("None");
        assert!(wait_until(COMMAND_DEADLINE, idle), "a job does not end");
    }

    /// Writes the XML of such a job to a file and returns its path.
    pub fn job_document(&self) -> String {
        let (sockets, file) = (self.sockets(), self.domain.path("job.xml"));
        let xml = format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks>\
             <disk name='vda' backup='yes' type='file'><scratch file='{}'/></disk></disks></domainbackup>",
            sockets.join("nbd").display(),
            sockets.join("scratch").display()
        );
        fs::write(&file, xml).expect("the folder is ours");
        file.display().to_string()
    }
}

/// The device of a domain's disk. Its writes take the way of the guest's writes: through the
/// filters that a backup job puts beneath the device.
pub struct Device {
    domain: Domain,
    _connection: Connect,
}

impl Device {
    /// The device's path in QEMU's tree of objects.
    pub const PATH: &str = "/machine/peripheral/virtio-disk0/virtio-backend";

    /// Runs a command of `qemu-io` that prints nothing.
    pub fn run(&self, command: &str) {
        let command = format!("qemu-io -d {} \"{command}\"", Device::PATH);
        let answer = self
            .domain
            .qemu_monitor_command(&command, VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
            .expect("QEMU accepts it");
        assert!(answer.trim().is_empty(), "{command}: {answer}");
    }

    /// Runs a command of QEMU's monitor protocol and returns the value in its answer.
    pub fn ask(&self, command: &Value) -> Value {
        let answer = self.domain.qemu_monitor_command(&command.to_string(), 0);
        let answer = answer.expect("QEMU accepts it");
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(answer.get("return").is_some(), "{command}: {answer}");
        answer["return"].take()
    }
}

/// An active job, which is ended when it is dropped.
pub struct Job<'a> {
    source: &'a Source,
}

impl Job<'_> {
    /// The NBD URI of the disk.
    pub fn uri(&self) -> String {
        format!(
            "nbd+unix:///vda?socket={}",
            self.source.sockets().join("nbd").display()
        )
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        // A failed job has already ended.
        let _ = self.source.domain.try_virsh(&["domjobabort"]);
        if !std::thread::panicking() {
            self.source.wait_until_idle();
        }
    }
}
