//! The reasons for which the hypervisor's side refuses a request.

use std::path::PathBuf;

use crate::model::text::shown;

/// The reason why a request cannot be carried out with this domain or hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The domain has no disk with this target.
    #[error("the domain has no disk {disk}")]
    NoSuchDisk {
        /// The requested target.
        disk: String,
    },
    /// A disk is not part of the job.
    #[error("the job has no disk {disk}")]
    NotInJob {
        /// The requested target.
        disk: String,
    },
    /// A disk cannot be read in the domain's present state.
    #[error("disk {disk}: {why}")]
    UnreadableDisk {
        /// The disk's target.
        disk: String,
        /// The reason, from the domain's description.
        why: String,
    },
    /// A disk's image or an image of its backing chain cannot be read.
    #[error("{why}")]
    UnreadableImage {
        /// The reason.
        why: String,
    },
    /// The backing chain of a disk is too long for a description on QEMU's command line.
    #[error("the backing chain of {image} is too long for QEMU's command line")]
    ChainTooLong {
        /// The topmost image, as messages name it.
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
    #[error("the image format of disk {disk} does not support bitmaps")]
    NoBitmapInFormat {
        /// The disk's target.
        disk: String,
    },
    /// The domain was shut off when its backup was planned, and is running now.
    #[error("the domain was started after its backup was planned: run again")]
    StartedMeanwhile,
    /// The changes of a disk were to be read, but the disk was requested in full.
    #[error("cannot read the changes of disk {disk} alone: the job was started for the whole disk")]
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
    /// The domain name is empty, `.` or `..`, or contains `/` or a NUL byte.
    #[error("invalid domain name {name:?}")]
    ImpossibleDomainName {
        /// The name.
        name: String,
    },
    /// The value of a secret that opens an encrypted image cannot be read.
    #[error(
        "cannot read the value of the {secret} that opens the image: {message}; start the domain, or give the secret a value \
         and define the secret without private='yes'"
    )]
    SecretUnavailable {
        /// The secret, as messages name it.
        secret: String,
        /// libvirt's message.
        message: String,
    },
    /// libvirtd died while it started a job. It has lost its record of the job, but the domain is
    /// still busy with it.
    #[error(
        "libvirtd was killed while it started a backup job, and now it can neither continue nor end the job: \
         shut off the domain (`virsh destroy`), then restart libvirtd"
    )]
    JobForgotten,
    /// The path of the UEFI variables is not a regular file.
    #[error("{} is not a regular file", path.display())]
    NvramNotAFile {
        /// Their path.
        path: PathBuf,
    },
    /// The file of the UEFI variables is larger than any valid one.
    #[error("{} is larger than {most_mib} MiB", path.display())]
    NvramTooLarge {
        /// Their path.
        path: PathBuf,
        /// The largest accepted size, in MiB.
        most_mib: u64,
    },
    /// The UEFI variables are not in a file of their own that is complete by itself.
    #[error("vmsnap saves UEFI variables only from a single, complete file, but they are in {what}")]
    NvramElsewhere {
        /// The place of the variables; for a qcow2 image also the reason.
        what: String,
    },
    /// The state of the TPM cannot be read, or is not what swtpm writes.
    #[error("{why}")]
    TpmState {
        /// The reason.
        why: String,
    },
    /// A path cannot be written in XML: it is not UTF-8 or has control characters.
    #[error(
        "the path of the {what} cannot be passed to libvirt because it is not UTF-8 or has control characters: {}",
        path.display()
    )]
    ImpossiblePath {
        /// The purpose of the path, for example `socket`.
        what: String,
        /// The path.
        path: PathBuf,
    },
    /// The name of a run is not safe as a part of file names.
    #[error("invalid run name {run:?}")]
    ImpossibleRunName {
        /// The name of the run.
        run: String,
    },
    /// vmsnap may not write to any of the folders for sockets.
    #[error("cannot create a socket: no write permission for /run and /var/tmp: run as root")]
    NoSocketFolder,
    /// QEMU runs as another user, which can use no socket of this user.
    #[error(
        "the domain's QEMU runs as another user (UID {uid}) and cannot create its socket in a folder of this user: run as root"
    )]
    QemuOfAnotherUser {
        /// The user of QEMU.
        uid: u32,
    },
    /// The request for a shut-off domain's job has no folder for the readers, or several.
    #[error("the request for a shut-off domain must name exactly one folder for the qemu-nbd sockets")]
    NoReaderFolder,
    /// The request for an active domain's job has no socket, or several.
    #[error("the request for an active domain must name exactly one socket")]
    NotOneSocket,
    /// The request has no scratch file for a disk of the job.
    #[error("the request names no scratch file for disk {disk}")]
    NoScratchFile {
        /// The disk's target.
        disk: String,
    },
    /// The path given for scratch files is not a folder with an absolute path.
    #[error("--scratch-dir must be the absolute path of an existing folder: {}", path.display())]
    NotAScratchFolder {
        /// The path.
        path: PathBuf,
    },
    /// The path of a new scratch file already exists.
    #[error("the scratch file {} already exists: run again, because each run chooses a new name", path.display())]
    ScratchFileTaken {
        /// The path.
        path: PathBuf,
    },
    /// No storage pool has this name.
    #[error(
        "there is no storage pool named '{}' (`virsh pool-list --all` shows the pools)",
        shown(name)
    )]
    NoSuchPool {
        /// The name.
        name: String,
    },
    /// The storage pool is not active.
    #[error(
        "the storage pool '{0}' is not active: start it with `virsh pool-start {0}`",
        shown(name)
    )]
    PoolNotActive {
        /// Its name.
        name: String,
    },
    /// vmsnap cannot restore into this kind of pool.
    #[error(
        "the storage pool '{}' is of the kind '{}': vmsnap restores into pools of the kinds dir, fs, netfs and logical; \
         restore to files with --to",
        shown(name),
        shown(kind)
    )]
    UnsuitablePool {
        /// Its name.
        name: String,
        /// libvirt's word for its kind.
        kind: String,
    },
    /// The storage pool has no folder.
    #[error("the storage pool '{}' has no path", shown(name))]
    PoolWithoutPath {
        /// Its name.
        name: String,
    },
    /// A volume has another path than expected.
    #[error("libvirt created the volume '{}' at {}, not in the folder of its pool", shown(name), path.display())]
    VolumeElsewhere {
        /// The volume's name.
        name: String,
        /// Its path.
        path: PathBuf,
    },
    /// The path of the socket is relative.
    #[error("the path of the socket is not absolute: {}", path.display())]
    SocketNotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// The path of the socket is longer than the kernel allows.
    #[error("the path of the socket is longer than 107 bytes: {}", path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The path of the new socket exists and is not a socket.
    #[error("cannot create the socket {}: another file has this path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket exists, and a process may be listening on it.
    #[error("the socket {} exists, and another process may be listening on it", path.display())]
    SocketInUse {
        /// The path.
        path: PathBuf,
    },
}

#[cfg(feature = "libvirt")]
impl Refusal {
    /// Creates the refusal for a domain that has no disk with this target.
    pub(super) fn no_such_disk(disk: &str) -> Refusal {
        let disk = disk.to_owned();
        Refusal::NoSuchDisk { disk }
    }
}
