//! Why the hypervisor's side refuses what it is asked.

use std::path::PathBuf;

/// Why something cannot be done with this domain or hypervisor. A refusal means that nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The domain has no disk of that target.
    #[error("the domain has no disk {disk}")]
    NoSuchDisk {
        /// The target asked for.
        disk: String,
    },
    /// A disk is not part of the job.
    #[error("the job has no disk {disk}")]
    NotInJob {
        /// The target asked for.
        disk: String,
    },
    /// A disk cannot be read in the domain's present state.
    #[error("disk {disk}: {why}")]
    UnreadableDisk {
        /// The disk's target.
        disk: String,
        /// Why not, as the domain's description has it.
        why: String,
    },
    /// An image of a disk, or one beneath it, cannot be read.
    #[error("{why}")]
    UnreadableImage {
        /// Why not; names the image.
        why: String,
    },
    /// The images of a disk are too many for the description that QEMU takes.
    #[error("the backing chain of {image} is too long to be described to QEMU")]
    ChainTooLong {
        /// The topmost image, as it is shown.
        image: String,
    },
    /// The bitmap that an incremental read needs cannot be used.
    #[error("the bitmap {name} of disk {disk} is missing or broken")]
    BitmapUnusable {
        /// The bitmap's name.
        name: String,
        /// The disk's target.
        disk: String,
    },
    /// The format of a disk's image has no bitmaps.
    #[error("disk {disk} cannot carry a bitmap")]
    NoBitmapInFormat {
        /// The disk's target.
        disk: String,
    },
    /// The domain was shut off when its backup was planned, and now it runs.
    #[error("the domain was started meanwhile")]
    StartedMeanwhile,
    /// Changes were wanted of a disk that was requested in full.
    #[error("disk {disk} was requested in full: its changes are not known")]
    RequestedInFull {
        /// The disk's target.
        disk: String,
    },
    /// The name of the new checkpoint is taken.
    #[error("a checkpoint named '{name}' exists already")]
    CheckpointExists {
        /// The name.
        name: String,
    },
    /// The name of the new domain is taken.
    #[error("a domain named '{name}' exists already")]
    DomainNameTaken {
        /// The name.
        name: String,
    },
    /// The UUID of the new domain is taken.
    #[error("a domain with the UUID {uuid} exists already")]
    DomainUuidTaken {
        /// The UUID.
        uuid: String,
    },
    /// libvirt allows no domain of that name.
    #[error("no domain can have the name {name:?}")]
    ImpossibleDomainName {
        /// The name.
        name: String,
    },
    /// A secret that opens an encrypted image has no value that can be read.
    #[error(
        "libvirt does not give the value of the {secret} that opens the image: {message}; start the domain, or give the secret a value \
         and define it without private='yes'"
    )]
    SecretUnavailable {
        /// The secret, as it is shown.
        secret: String,
        /// libvirt's words.
        message: String,
    },
    /// libvirtd died while it began a job and has forgotten that job, which still holds the domain.
    #[error(
        "libvirtd was killed while it began a backup job, and now can neither go on with it nor end it, \
         until the domain has been shut off (`virsh destroy`) and libvirtd has been restarted after that"
    )]
    JobForgotten,
    /// The UEFI variables are not a file.
    #[error("the UEFI variables in {} cannot be taken: it is no file", path.display())]
    NvramNotAFile {
        /// Their path.
        path: PathBuf,
    },
    /// The UEFI variables are larger than any that are known.
    #[error("the UEFI variables in {} cannot be taken: it has more than {most_mib} MiB", path.display())]
    NvramTooLarge {
        /// Their path.
        path: PathBuf,
        /// The largest size that is taken, in MiB.
        most_mib: u64,
    },
    /// A path cannot stand in libvirt's documents.
    #[error("the path of the {what} cannot be passed to libvirt: {}", path.display())]
    ImpossiblePath {
        /// What lies there (`socket`).
        what: String,
        /// The path.
        path: PathBuf,
    },
    /// The word for a run cannot stand in names of files.
    #[error("{run:?} cannot be the name of a run")]
    ImpossibleRunName {
        /// The word.
        run: String,
    },
    /// This machine has no folder that takes sockets.
    #[error("there is no folder for sockets")]
    NoSocketFolder,
    /// The job of a shut-off domain was given no folder for its readers.
    #[error("a shut-off domain needs a folder for its readers")]
    NoReaderFolder,
    /// The job of an active domain was given no socket, or several.
    #[error("an active domain needs one socket")]
    NotOneSocket,
    /// A disk of the job was given no scratch file.
    #[error("disk {disk} has no scratch file")]
    NoScratchFile {
        /// The disk's target.
        disk: String,
    },
    /// What was named as the folder for scratch files is not one.
    #[error("{} is no folder with an absolute path", path.display())]
    NotAScratchFolder {
        /// The path.
        path: PathBuf,
    },
    /// Something lies where a scratch file is to be made.
    #[error("something lies at the place of the scratch file {}", path.display())]
    ScratchFileTaken {
        /// The path.
        path: PathBuf,
    },
    /// The path of the socket is relative.
    #[error("the path of the socket is not absolute: {}", path.display())]
    SocketNotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// The path of the socket is longer than the kernel takes.
    #[error("the path of the socket has more than 107 bytes: {}", path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something else lies where the socket is to be made.
    #[error("something that is no socket lies at {}", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A process uses the socket.
    #[error("somebody listens on the socket {}", path.display())]
    SocketInUse {
        /// The path.
        path: PathBuf,
    },
}

#[cfg(feature = "libvirt")]
impl Refusal {
    /// The domain has no disk of that target.
    pub(super) fn no_such_disk(disk: &str) -> Refusal {
        let disk = disk.to_owned();
        Refusal::NoSuchDisk { disk }
    }
}
