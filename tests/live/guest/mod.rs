//! A small Linux guest that keeps writing files with digests, and the check of a copy of its disk.
//!
//! `init.sh` is its whole user space and describes the protocol of the files.

mod agent;
mod check;
mod cpio;
mod disks;
mod image;
mod plain;
#[cfg(test)]
mod proofs;
mod serial;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::{CheckReport, Expect, check_disk};
pub use image::GuestImage;
pub use plain::boots_with_kvm;
pub use serial::SerialLog;

use crate::daemon::{Daemon, TestDomain};

/// Memory of a guest, in MiB.
pub const MEMORY_MIB: u32 = 256;

/// Size of a guest's data disk, in MiB. Its files take at most 24 MiB, so that the rest can be
/// trimmed and rewritten.
pub const DISK_MIB: u32 = 256;

/// The time for a guest to boot and write its first files, even without KVM.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(180);

/// The program at the guest agent's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// qemu-ga.
    Answering,
    /// A program that opens the port, so that libvirt sees a connected agent, but never answers.
    Deaf,
    /// No program: libvirt sees no connected agent.
    Absent,
}

/// The guest's files in a test's folder, and the parts of domain XML that use them.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    boot: Boot,
    /// Its disk in qcow2, which must be the first virtio disk. It has an ext4 file system: on the
    /// whole disk, or in the second partition of a disk from which the guest boots.
    pub disk: PathBuf,
    /// The guest's console.
    pub serial: SerialLog,
}

/// What QEMU loads to start the guest.
#[derive(Clone, Debug)]
enum Boot {
    /// A kernel and an initramfs of the host.
    Image(GuestImage),
    /// The boot loader on the disk.
    Disk,
}

impl GuestFiles {
    /// Puts a kernel, an initramfs and a fresh data disk into a folder that QEMU's user can enter.
    pub fn lay(dir: &Path) -> GuestFiles {
        let kept = GuestImage::build_or_cached();
        // Copies, because libvirt gives the files to QEMU's user, who cannot enter cargo's folders
        // on every machine.
        let image = GuestImage {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd"),
        };
        std::fs::copy(&kept.kernel, &image.kernel).expect("the kernel can be copied");
        std::fs::copy(&kept.initrd, &image.initrd).expect("the initramfs can be copied");
        let files = GuestFiles::of(dir, Boot::Image(image));
        disks::make_data_disk(dir, &files.disk);
        files
    }

    /// Puts a fresh disk, from which the guest boots with this host name, into a folder that QEMU's
    /// user can enter. Its agent always answers.
    pub fn lay_bootable(dir: &Path, host_name: &str) -> GuestFiles {
        let files = GuestFiles::of(dir, Boot::Disk);
        let options = format!(
            "{} vmsnap.disk={} vmsnap.hostname={host_name}",
            write_options(Agent::Answering),
            disks::DATA_PARTITION
        );
        disks::make_bootable_disk(dir, &files.disk, &GuestImage::build_or_cached(), &options);
        files
    }

    fn of(dir: &Path, boot: Boot) -> GuestFiles {
        GuestFiles {
            boot,
            disk: dir.join("data.qcow2"),
            serial: SerialLog::new(dir.join("serial.log")),
        }
    }

    /// The XML within `<os>` after `<type>`: kernel, initramfs and command line, or the order to
    /// boot from the disk, where the command line is. There `agent` has no effect.
    pub fn os_xml(&self, agent: Agent) -> String {
        match &self.boot {
            Boot::Image(image) => format!(
                "<kernel>{}</kernel><initrd>{}</initrd><cmdline>{}</cmdline>",
                image.kernel.display(),
                image.initrd.display(),
                write_options(agent)
            ),
            Boot::Disk => "<boot dev='hd'/>".to_owned(),
        }
    }

    /// The XML of the disk as `vda`.
    pub fn disk_xml(&self) -> String {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>\n",
            self.disk.display()
        )
    }

    /// The XML of the console, the agent's port and a random number generator.
    pub fn devices_xml(&self) -> String {
        format!(
            "<serial type='file'><source path='{}' append='on'/><target port='0'/></serial>\n\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n",
            self.serial.path().display()
        )
    }
}

/// The kernel command line of a guest that writes.
fn write_options(agent: Agent) -> String {
    let agent = match agent {
        Agent::Answering => "answering",
        Agent::Deaf => "deaf",
        Agent::Absent => "none",
    };
    format!("{} vmsnap.mode=write vmsnap.agent={agent}", plain::KERNEL_OPTIONS)
}

/// The `type` of a domain in which the guest boots on this daemon: `kvm` or `qemu`.
///
/// On some hosts KVM runs a firmware or starts a paused domain, but no Linux kernel. So the
/// daemon's own type is not enough.
pub fn virt_type(daemon: &Daemon) -> &'static str {
    if daemon.virt_type() == "kvm" && plain::boots_with_kvm() {
        "kvm"
    } else {
        "qemu"
    }
}

/// A guest on the lab's daemon, removed when dropped.
pub struct Guest {
    /// Its domain.
    pub domain: TestDomain,
    /// Its files, including the console's log.
    pub files: GuestFiles,
}

impl Guest {
    /// Defines and starts a guest with one disk, `vda`, and a kernel and an initramfs of the host.
    /// It is still booting: wait for its first round.
    pub fn start(daemon: &Daemon, label: &str, agent: Agent) -> Guest {
        let domain = TestDomain::new(daemon, label);
        let files = GuestFiles::lay(domain.dir());
        Guest::start_with(daemon, domain, files, agent)
    }

    /// Like [`Guest::start`], but everything is on the disk: boot loader, kernel, initramfs and
    /// data. Its agent answers. The label is also its host name.
    pub fn start_from_disk(daemon: &Daemon, label: &str) -> Guest {
        let domain = TestDomain::new(daemon, label);
        let files = GuestFiles::lay_bootable(domain.dir(), label);
        Guest::start_with(daemon, domain, files, Agent::Answering)
    }

    fn start_with(daemon: &Daemon, domain: TestDomain, files: GuestFiles, agent: Agent) -> Guest {
        let devices = files.disk_xml() + &files.devices_xml();
        domain.define(&domain.xml(virt_type(daemon), MEMORY_MIB, &files.os_xml(agent), &devices));
        domain.start();
        Guest { domain, files }
    }

    /// Waits until the guest has written this many files since its disk was made; panics at the
    /// deadline.
    pub fn wait_for_round(&self, round: u64, deadline: Duration) {
        self.files.serial.wait_for_round(round, deadline);
    }

    /// The last round that the guest has reported.
    pub fn last_round(&self) -> u64 {
        self.files.serial.last_round()
    }
}
