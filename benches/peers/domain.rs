//! A paused domain with one disk. The bench writes to the disk through its QEMU.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

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
        let domain = TestDomain::new(daemon, label);
        let source = Source { domain, size };
        disk::make(&source.image(), size, fill);
        let sockets = source.sockets();
        fs::create_dir(&sockets).expect("the folder is ours");
        // QEMU creates its socket and scratch file there, and runs as its own user.
        fs::set_permissions(&sockets, Permissions::from_mode(0o777)).expect("the folder is ours");
        let disk = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>",
            source.image().display()
        );
        let xml = source.domain.xml(daemon.virt_type(), 64, "", &disk);
        source.domain.define(&xml);
        source
    }

    /// Defines a domain with a disk and starts it paused.
    pub fn start(daemon: &Daemon, label: &str, size: u64, fill: Fill) -> Source {
        let source = Source::define(daemon, label, size, fill);
        // virtlogd may have ended after the last domain.
        daemon.start();
        source.domain.start_paused();
        source
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
        let connection = Connect::open(Some(URI)).expect("the daemon answers");
        let domain = Domain::lookup_by_name(&connection, self.name()).expect("the domain is there");
        for offset in offsets {
            let command = format!(
                "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"write -q -P {byte} {offset} {length}\""
            );
            let answer = domain
                .qemu_monitor_command(&command, VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
                .expect("QEMU accepts it");
            assert!(answer.trim().is_empty(), "{command}: {answer}");
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
