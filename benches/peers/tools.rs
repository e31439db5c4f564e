//! The programs that are compared.

use std::path::Path;
use std::process::Command;

use crate::daemon::URI;
use crate::domain::Source;
use crate::process::{command, run};

/// The programs beside vmsnap, by their names in `BENCH_TOOLS`.
pub const PEERS: [&str; 6] = [
    "virtnbdbackup",
    "qemu-img",
    "nbdcopy",
    "virsh",
    "restic",
    "rclone",
];

/// A program, and how it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    Vmsnap,
    /// The same without compression.
    VmsnapPlain,
    /// The same with a higher level than the default one.
    VmsnapLevel3,
    /// The same to an encrypted pack repository in a folder.
    VmsnapPack,
    /// The same without encryption.
    VmsnapOpenPack,
    /// A backup of a raw copy of the disk.
    Restic,
    /// A copy of vmsnap's folder repository.
    Rclone,
    Virtnbdbackup,
    /// The same with lz4.
    VirtnbdbackupCompressed,
    QemuImg,
    /// The same with compressed clusters.
    QemuImgCompressed,
    Nbdcopy,
    /// nbdcopy reading in the disk's order, as the writer of an image must.
    NbdcopyInOrder,
    /// No peer: receives the bytes and discards them.
    Receiving,
    /// No peer: computes the digest of bytes that are in the processor's cache.
    Digesting,
    /// No peer: receives a file from a socket, computes its digest, and writes it past the page
    /// cache, without NBD, QEMU and qcow2.
    Copying,
    /// No peer: only calls of `virsh`, and of `qemu-img` for a status.
    Virsh,
}

impl Tool {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Vmsnap => "vmsnap",
            Tool::VmsnapPlain => "vmsnap --compress none",
            Tool::VmsnapLevel3 => "vmsnap --compress zstd:3",
            Tool::VmsnapPack => "vmsnap, pack:",
            Tool::VmsnapOpenPack => "vmsnap, pack: without encryption",
            Tool::Restic => "restic of a raw file",
            Tool::Rclone => "rclone copy of the folder repository",
            Tool::Virtnbdbackup => "virtnbdbackup",
            Tool::VirtnbdbackupCompressed => "virtnbdbackup --compress (lz4)",
            Tool::QemuImg => "qemu-img convert -W -m 16 -t none",
            Tool::QemuImgCompressed => "qemu-img convert -c (zstd)",
            Tool::Nbdcopy => "nbdcopy, 4 × 64 × 1 MiB",
            Tool::NbdcopyInOrder => "nbdcopy in the disk's order, 1 × 16 × 1 MiB",
            Tool::Receiving => "receiving alone (nbdcopy to nowhere, 1 × 16 × 1 MiB)",
            Tool::Digesting => "the digest alone (BLAKE3 of cached bytes)",
            Tool::Copying => "socket, digest and disk alone (of a file, without NBD)",
            Tool::Virsh => "virsh",
        }
    }

    /// The tools that are installed.
    pub fn installed<const N: usize>(tools: [Tool; N]) -> Vec<Tool> {
        tools.into_iter().filter(|tool| tool.is_installed()).collect()
    }

    /// The program that it needs, other than vmsnap and this bench.
    fn program(self) -> Option<&'static str> {
        match self {
            Tool::Vmsnap
            | Tool::VmsnapPlain
            | Tool::VmsnapLevel3
            | Tool::VmsnapPack
            | Tool::VmsnapOpenPack
            | Tool::Digesting
            | Tool::Copying => None,
            Tool::Restic => Some("restic"),
            Tool::Rclone => Some("rclone"),
            Tool::Virtnbdbackup | Tool::VirtnbdbackupCompressed => Some("virtnbdbackup"),
            Tool::QemuImg | Tool::QemuImgCompressed => Some("qemu-img"),
            Tool::Nbdcopy | Tool::NbdcopyInOrder | Tool::Receiving => Some("nbdcopy"),
            Tool::Virsh => Some("virsh"),
        }
    }

    /// Whether it is installed, and not excluded by `BENCH_TOOLS`.
    fn is_installed(self) -> bool {
        let Some(program) = self.program() else {
            return true;
        };
        let wanted = std::env::var("BENCH_TOOLS").unwrap_or_default();
        if !wanted.is_empty() && !wanted.split(',').any(|name| name == program) {
            return false;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        if !found {
            eprintln!("  {program} is left out: not installed");
        }
        found
    }
}

/// vmsnap with these arguments.
pub fn vmsnap(words: &[&str]) -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_vmsnap"), words);
    for name in [
        "VMSNAP_CONNECT",
        "VMSNAP_REPOSITORY",
        "VMSNAP_COMPRESS",
        "LIBVIRT_DEFAULT_URI",
    ] {
        command.env_remove(name);
    }
    command
}

/// A backup of a domain into a repository.
pub fn vmsnap_backup(source: &Source, repository: &Path) -> Command {
    let repository = repository.display().to_string();
    vmsnap(&[
        "backup",
        source.name(),
        "--output",
        &repository,
        "--connect",
        URI,
        "--quiet",
    ])
}

/// A restore of the newest restore point.
pub fn vmsnap_restore(source: &Source, repository: &Path, output: &Path) -> Command {
    let (from, to) = (repository.display().to_string(), output.display().to_string());
    vmsnap(&[
        "restore",
        source.name(),
        "--repository",
        &from,
        "--to",
        &to,
        "--quiet",
    ])
}

/// Removes vmsnap's checkpoints and bitmaps from a domain, so that the next backup is full.
pub fn vmsnap_scrub(source: &Source) {
    let words = [
        "scrub",
        source.name(),
        "--scrub-type",
        "*",
        "--connect",
        URI,
        "--quiet",
    ];
    run(vmsnap(&words));
}

/// A backup of a domain by virtnbdbackup; `level` is the value of its switch `-l`.
pub fn virtnbdbackup(source: &Source, level: &str, output: &Path) -> Command {
    let output = output.display().to_string();
    let scratch = source.dir().display().to_string();
    let words = [
        "-U",
        URI,
        "-d",
        source.name(),
        "-l",
        level,
        "-o",
        &output,
        "-S",
        &scratch,
        "-n",
    ];
    let mut command = command("virtnbdbackup", &words);
    command.env("HOME", source.dir()).current_dir(source.dir());
    command
}

/// A restore of all backups that virtnbdbackup made.
pub fn virtnbdrestore(source: &Source, input: &Path, output: &Path) -> Command {
    let (input, output) = (input.display().to_string(), output.display().to_string());
    let log = source.dir().join("virtnbdrestore.log").display().to_string();
    let words = [
        "-U", URI, "-a", "restore", "-i", &input, "-o", &output, "-n", "-L", &log,
    ];
    let mut command = command("virtnbdrestore", &words);
    command.env("HOME", source.dir()).current_dir(source.dir());
    command
}

/// A copy to a qcow2 image by `qemu-img`; `format` is the input's.
pub fn qemu_img(format: &str, input: &str, output: &Path) -> Command {
    let output = output.display().to_string();
    let words = [
        "convert", "-W", "-m", "16", "-t", "none", "-f", format, "-O", "qcow2", input, &output,
    ];
    command("qemu-img", &words)
}

/// The same with clusters compressed by zstd, which `qemu-img` writes in the disk's order only.
pub fn qemu_img_compressed(input: &str, output: &Path) -> Command {
    let output = output.display().to_string();
    let option = "compression_type=zstd";
    let words = [
        "convert", "-c", "-m", "16", "-t", "none", "-f", "raw", "-O", "qcow2", "-o", option, input, &output,
    ];
    command("qemu-img", &words)
}

/// A copy to a raw file by `nbdcopy`, in the disk's order or with the settings that are fastest for
/// a disk that is not in the page cache: four threads that read 128 MiB apart.
pub fn nbdcopy(tool: Tool, uri: &str, output: &Path) -> Command {
    let output = match tool {
        Tool::Receiving => "null:".to_owned(),
        _ => output.display().to_string(),
    };
    let (connections, threads, requests) = match tool {
        Tool::NbdcopyInOrder | Tool::Receiving => ("--connections=1", "--threads=1", "--requests=16"),
        _ => ("--connections=4", "--threads=4", "--requests=64"),
    };
    let words = [
        connections,
        threads,
        requests,
        "--request-size=1048576",
        "--flush",
        uri,
        &output,
    ];
    command("nbdcopy", &words)
}
