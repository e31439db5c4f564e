//! A small Linux guest that keeps writing files with digests, and the check of a copy of its disk.
//!
//! `init.sh` is its whole user space and describes the protocol of the files.

mod check;
mod cpio;
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
use crate::process::{command, run, wait_until};

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
    image: GuestImage,
    /// The data disk: qcow2 with an ext4 file system and no partitions. The guest mounts its first
    /// virtio disk.
    pub disk: PathBuf,
    /// The guest's console.
    pub serial: SerialLog,
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
        let disk = dir.join("data.qcow2");
        make_disk(dir, &disk);
        GuestFiles {
            image,
            disk,
            serial: SerialLog::new(dir.join("serial.log")),
        }
    }

    /// The XML within `<os>` after `<type>`: kernel, initramfs, command line.
    pub fn os_xml(&self, agent: Agent) -> String {
        let agent = match agent {
            Agent::Answering => "answering",
            Agent::Deaf => "deaf",
            Agent::Absent => "none",
        };
        format!(
            "<kernel>{}</kernel><initrd>{}</initrd><cmdline>{} vmsnap.mode=write vmsnap.agent={agent}</cmdline>",
            self.image.kernel.display(),
            self.image.initrd.display(),
            plain::KERNEL_OPTIONS
        )
    }

    /// The XML of the data disk as `vda`.
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
    /// Defines and starts a guest with one disk, `vda`. It is still booting: wait for its first
    /// round.
    pub fn start(daemon: &Daemon, label: &str, agent: Agent) -> Guest {
        let domain = TestDomain::new(daemon, label);
        let files = GuestFiles::lay(domain.dir());
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

    /// Waits until the guest agent answers; panics at the deadline.
    pub fn wait_for_agent(&self, deadline: Duration) {
        let ping = r#"{"execute":"guest-ping"}"#;
        let answered = wait_until(deadline, || {
            self.domain.try_virsh(&["qemu-agent-command", "--cmd", ping]).ok()
        });
        assert!(
            answered,
            "the agent did not answer in {deadline:?}:\n{}",
            self.files.serial.text()
        );
    }

    /// Whether libvirt sees a connected agent, even one that never answers.
    pub fn agent_is_connected(&self) -> bool {
        self.domain.virsh(&["dumpxml"]).contains("state='connected'")
    }

    /// The last round that the guest has reported.
    pub fn last_round(&self) -> u64 {
        self.files.serial.last_round()
    }
}

/// A qcow2 image with an empty ext4 file system.
fn make_disk(dir: &Path, disk: &Path) {
    let raw = dir.join("data.raw");
    let file = std::fs::File::create(&raw).expect("the folder is ours");
    file.set_len(u64::from(DISK_MIB) << 20)
        .expect("a file can be sparse");
    // All tables are written now, so that the guest does not write them later.
    let tables = "lazy_itable_init=0,lazy_journal_init=0";
    run(command(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-E",
            tables,
            &raw.display().to_string(),
        ],
    ));
    let words = ["convert", "-f", "raw", "-O", "qcow2"].map(Path::new);
    run(command("qemu-img", &[&words[..], &[&raw, disk]].concat()));
    std::fs::remove_file(raw).expect("it is ours");
}
