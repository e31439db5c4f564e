//! Domains without a guest system whose disks' content is known.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Begun, Repo, STOP_DEADLINE, names_in};
use crate::daemon::{Daemon, TestDomain};
use crate::process::{command, processes_with, run, wait_until};

/// A change of a disk.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    Data(u8),
    Zero,
    Discard,
}

/// A domain and the content of its disks. No guest system runs.
pub struct Machine {
    pub domain: TestDomain,
    /// The content of each disk: `vda`, `vdb` …
    pub disks: Vec<Vec<u8>>,
}

impl Machine {
    /// Defines a domain with disks of these sizes in bytes, shut off.
    pub fn define(daemon: &Daemon, label: &str, sizes: &[usize]) -> Machine {
        Machine::of(TestDomain::new(daemon, label), daemon, sizes)
    }

    /// Defines `domain`, which is not defined yet, with disks of these sizes.
    pub fn of(domain: TestDomain, daemon: &Daemon, sizes: &[usize]) -> Machine {
        let mut devices = String::new();
        for (disk, size) in sizes.iter().enumerate() {
            let image = domain.path(&format!("{}.qcow2", target(disk)));
            let image = image.display().to_string();
            run(command(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", &image, &size.to_string()],
            ));
            devices.push_str(&format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>\
                 <source file='{image}'/><target dev='{}' bus='virtio'/></disk>\n",
                target(disk)
            ));
        }
        domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
        Machine {
            domain,
            disks: sizes.iter().map(|&size| vec![0; size]).collect(),
        }
    }

    /// Defines a domain and starts it paused, because no guest is needed.
    pub fn paused(daemon: &Daemon, label: &str, sizes: &[usize]) -> Machine {
        let machine = Machine::define(daemon, label, sizes);
        machine.domain.start_paused();
        machine
    }

    pub fn name(&self) -> &str {
        self.domain.name()
    }

    pub fn image(&self, disk: usize) -> PathBuf {
        self.domain.path(&format!("{}.qcow2", target(disk)))
    }

    /// Changes a disk as its guest would; offset and length are in bytes. A discard covers whole
    /// clusters of 64 KiB, which then read as zero. It is not allowed during a backup job, when
    /// QEMU ignores discards.
    pub fn change(&mut self, disk: usize, offset: usize, length: usize, change: Change) {
        let (words, byte) = match change {
            Change::Data(byte) => (format!("write -P {byte} {offset} {length}"), byte),
            Change::Zero => (format!("write -z {offset} {length}"), 0),
            Change::Discard => (format!("discard {offset} {length}"), 0),
        };
        if self.domain.state() == "shut off" {
            let image = self.image(disk).display().to_string();
            run(command(
                "qemu-io",
                &["-f", "qcow2", "-d", "unmap", "-c", &words, &image],
            ));
        } else {
            let command =
                format!("qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"{words}\"");
            let said = self
                .domain
                .virsh(&["qemu-monitor-command", "--hmp", "--cmd", &command]);
            assert_eq!(said.trim(), "", "{words}");
        }
        self.disks[disk][offset..offset + length].fill(byte);
    }

    /// Flushes the writes of a running domain to stable storage, as `sync` does in a guest. A QEMU
    /// that dies afterwards loses none of them.
    pub fn sync(&self) {
        if self.domain.state() == "shut off" {
            return;
        }
        for disk in 0..self.disks.len() {
            let command = format!("qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend flush");
            let said = self
                .domain
                .virsh(&["qemu-monitor-command", "--hmp", "--cmd", &command]);
            assert_eq!(said.trim(), "", "flush of disk {disk}");
        }
    }

    /// Fills a whole disk with data that differs between its pieces and between rounds.
    pub fn fill(&mut self, disk: usize, round: u8) {
        const PIECE: usize = 32 << 20;
        let size = self.disks[disk].len();
        for (piece, offset) in (0..size).step_by(PIECE).enumerate() {
            let byte = 1 + (piece as u8).wrapping_mul(7).wrapping_add(round) % 255;
            self.change(disk, offset, PIECE.min(size - offset), Change::Data(byte));
        }
    }

    /// Makes a few changes at scattered places, the same ones for the same seed.
    pub fn scatter(&mut self, disk: usize, seed: u64) {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = |below: usize| {
            // Constants of Knuth's MMIX. The low bits are poor.
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        let size = self.disks[disk].len();
        for _ in 0..6 {
            let (kind, byte) = (next(5), 1 + next(255) as u8);
            let unit = if kind == 0 { 65536 } else { 512 };
            let offset = next(size / unit) * unit;
            let length = (unit + next(4) * 65536).min(size - offset);
            let change = match kind {
                0 => Change::Discard,
                1 => Change::Zero,
                _ => Change::Data(byte),
            };
            self.change(disk, offset, length, change);
        }
    }

    /// Asserts that a folder of restored raw disks holds exactly these disks.
    pub fn assert_restored(&self, folder: &Path, expected: &[Vec<u8>]) {
        for (disk, expected) in expected.iter().enumerate() {
            let path = folder.join(format!("{}.raw", target(disk)));
            let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(found.len(), expected.len(), "{}", path.display());
            let differs = found.iter().zip(expected).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{} differs at this offset", path.display());
        }
    }

    /// The domain's checkpoints.
    pub fn checkpoints(&self) -> Vec<String> {
        checkpoints(&self.domain)
    }

    /// Takes the present content of a disk as known. The domain must not write at the same time.
    pub fn learn(&mut self, disk: usize) {
        let raw = self.domain.path("learnt.raw");
        let (image, to) = (self.image(disk).display().to_string(), raw.display().to_string());
        run(command(
            "qemu-img",
            &["convert", "-U", "-f", "qcow2", "-O", "raw", &image, &to],
        ));
        self.disks[disk] = fs::read(&raw).expect("it was made");
        fs::remove_file(raw).expect("it was made");
    }

    /// Destroys the domain, which may have a backup job. Returns whether its QEMU has closed the
    /// images (see [`Machine::closed_well_since`]).
    pub fn pull_the_plug(&mut self) -> bool {
        let crashes = self.domain.qemu_crashes();
        self.domain.destroy();
        self.closed_well_since(crashes)
    }

    /// Whether the QEMU that has ended closed its images. `crashes` is the number of crashes
    /// before.
    ///
    /// QEMU 7.2 may crash if it ends during the job of a killed run. As after a power cut, writes
    /// are then lost and bitmaps are broken; the disks' new content is taken as known. Any other
    /// loss is a failure.
    pub fn closed_well_since(&mut self, crashes: usize) -> bool {
        let before = self.disks.clone();
        for disk in 0..before.len() {
            self.learn(disk);
        }
        let lost = before != self.disks;
        let deadline = if lost { STOP_DEADLINE } else { Duration::ZERO };
        let has_crashed = wait_until(deadline, || self.domain.qemu_crashes() > crashes);
        assert!(has_crashed || !lost, "writes are lost, and QEMU has not crashed");
        if has_crashed {
            println!(
                "QEMU has crashed while {} was ended; writes were lost: {lost}",
                self.name()
            );
        }
        !has_crashed
    }

    /// Waits until no process uses the images of a shut-off domain. The kernel ends the readers of
    /// a killed run, and a change of a bitmap takes only a moment.
    pub fn wait_for_readers_to_end(&self) {
        wait_for_readers_to_end(&self.domain);
    }

    /// Asserts that nothing of any run is left: no job, reader, partial folder or scratch file, and
    /// no place that the run recorded.
    pub fn assert_nothing_left(&self, repo: &Repo, begun: &Begun) {
        assert_nothing_left(&self.domain, repo, begun);
    }

    /// Asserts that no reader and no file of any run is left: none of these places, no partial
    /// folder, no scratch file. A job may be active.
    pub fn assert_no_files_left(&self, repo: &Repo, places: &[PathBuf]) {
        assert_no_files_left(&self.domain, repo, places);
    }
}

/// The names of a domain's checkpoints.
pub fn checkpoints(domain: &TestDomain) -> Vec<String> {
    let names = domain.virsh(&["checkpoint-list", "--name"]);
    let names = names.lines().map(str::trim).filter(|name| !name.is_empty());
    names.map(String::from).collect()
}

/// Whether a backup job holds a running domain.
pub fn has_job(domain: &TestDomain) -> bool {
    !domain.virsh(&["domjobinfo"]).contains("None")
}

/// Does the work of [`Machine::assert_nothing_left`].
pub fn assert_nothing_left(domain: &TestDomain, repo: &Repo, begun: &Begun) {
    if domain.state() != "shut off" {
        assert!(!has_job(domain), "a job is left");
    }
    assert_no_files_left(domain, repo, &begun.places);
}

fn assert_no_files_left(domain: &TestDomain, repo: &Repo, places: &[PathBuf]) {
    assert_eq!(repo.partials(), [] as [PathBuf; 0]);
    for place in places {
        assert!(!place.exists(), "{} is left", place.display());
    }
    let hidden = names_in(domain.dir())
        .into_iter()
        .filter(|name| name.starts_with('.'));
    assert_eq!(hidden.collect::<Vec<_>>(), [""; 0]);
    assert_eq!(readers_of(domain), []);
}

/// Does the work of [`Machine::wait_for_readers_to_end`].
pub fn wait_for_readers_to_end(domain: &TestDomain) {
    let ended = wait_until(STOP_DEADLINE, || readers_of(domain).is_empty());
    assert!(ended, "{:?} are left", readers_of(domain));
}

/// The programs that a run uses to read a shut-off domain's images.
fn readers_of(domain: &TestDomain) -> Vec<(u32, String)> {
    // With the slash: another domain's folder may begin with the same characters.
    let mut found = processes_with(&format!("{}/", domain.dir().display()));
    found.retain(|(_, line)| line.starts_with("qemu-nbd") || line.starts_with("qemu-img"));
    found
}

fn target(disk: usize) -> String {
    format!("vd{}", char::from(b'a' + u8::try_from(disk).expect("few disks")))
}
