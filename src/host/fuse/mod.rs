//! Mounts FUSE file systems and removes them: the kernel's side of `vmsnap mount`.
//!
//! Root calls `mount(2)` itself. For other users `fusermount3` does it (package fuse3). Mounts are
//! found in `/proc/self/mountinfo`, so that no request goes to a file system that may be dead.

mod fusermount;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{getegid, geteuid};

use super::usage::{Number, mounts};
use crate::model::text::shell_word;

/// The device over which a program serves FUSE requests.
const DEVICE: &str = "/dev/fuse";

/// The source of the mounts, as `findmnt` shows it.
const NAME: &str = "vmsnap";

/// Why a file system could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The folder cannot be examined.
    #[error("cannot mount on {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The path does not lead to a folder.
    #[error("cannot mount on {}: it is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// The folder has entries, which a mount would hide.
    #[error("cannot mount on {}: the folder is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// A file system is mounted on the folder.
    #[error("cannot mount on {}: a file system is already mounted there", .0.display())]
    Taken(PathBuf),
    /// A file system is mounted on the folder, and the program that served it has ended.
    #[error("cannot mount on {}: a file system whose program has ended is still mounted there", .0.display())]
    Dead(PathBuf),
    /// `/dev/fuse` is missing.
    #[error("cannot mount: {DEVICE} is missing")]
    NoDevice,
    /// `fusermount3` is missing, without which only root can mount.
    #[error("cannot mount: the program fusermount3 is missing")]
    NoProgram,
    /// The kernel or `fusermount3` failed; the text is the reason.
    #[error("cannot {operation} {}: {message}", path.display())]
    Failed {
        /// The operation, as a verb phrase that the path completes.
        operation: &'static str,
        /// The folder.
        path: PathBuf,
        /// The reason.
        message: String,
    },
}

impl MountError {
    fn failed(operation: &'static str, path: &Path, message: impl ToString) -> MountError {
        MountError::Failed {
            operation,
            path: path.to_owned(),
            message: message.to_string(),
        }
    }

    /// Returns the missing program or device, if that is the cause.
    pub fn missing(&self) -> Option<&str> {
        match self {
            MountError::NoDevice => Some(DEVICE),
            MountError::NoProgram => Some(fusermount::PROGRAM),
            _ => None,
        }
    }

    /// Whether the error is about the given folder, so that another folder may work.
    pub fn is_usage(&self) -> bool {
        match self {
            MountError::Folder { .. }
            | MountError::NotAFolder(_)
            | MountError::NotEmpty(_)
            | MountError::Taken(_)
            | MountError::Dead(_) => true,
            MountError::NoDevice | MountError::NoProgram | MountError::Failed { .. } => false,
        }
    }

    /// Returns a hint on what the user can do, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            MountError::Folder { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "create an empty folder there, or give the path of another one"
            }
            MountError::NotAFolder(_) | MountError::NotEmpty(_) => "give the path of an empty folder",
            MountError::Taken(path) => {
                return Some(format!(
                    "give the path of another folder; `findmnt {}` shows what is mounted",
                    shell_word(&path.to_string_lossy())
                ));
            }
            MountError::Dead(path) => {
                return Some(format!(
                    "remove it with `fusermount3 -u {0}`, or as root with `umount {0}`",
                    shell_word(&path.to_string_lossy())
                ));
            }
            MountError::NoDevice => {
                "load the kernel module with `modprobe fuse`; a container needs the device /dev/fuse and the right to mount"
            }
            MountError::NoProgram => "install the package fuse3, or run vmsnap as root",
            MountError::Failed { message, .. } if message.contains("user_allow_other") => {
                "add the line user_allow_other to /etc/fuse.conf, which --allow-other needs for users other than root; or run as root"
            }
            MountError::Folder { .. } | MountError::Failed { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// The result of functions that fail with a [`MountError`].
pub type MountResult<T> = Result<T, MountError>;

/// An empty folder on which a file system can be mounted. The folder stays open, so that a link
/// that later replaces its path is not followed.
#[derive(Debug)]
pub struct MountFolder {
    path: PathBuf,
    folder: OwnedFd,
}

impl MountFolder {
    /// Examines a folder.
    ///
    /// # Errors
    /// The folder is missing, is not a folder, is not empty, or a file system is mounted on it.
    pub fn of(dir: &Path) -> MountResult<MountFolder> {
        let failed = |source: io::Error| match Errno::from_io_error(&source) {
            // What the kernel answers for a file system without its program.
            Some(Errno::NOTCONN) => MountError::Dead(dir.to_owned()),
            Some(Errno::NOTDIR) => MountError::NotAFolder(dir.to_owned()),
            _ => MountError::Folder {
                path: dir.to_owned(),
                source,
            },
        };
        if !fs::metadata(dir).map_err(failed)?.is_dir() {
            return Err(MountError::NotAFolder(dir.to_owned()));
        }
        let path = fs::canonicalize(dir).map_err(failed)?;
        if device_at(&path).map_err(failed)?.is_some() {
            return Err(MountError::Taken(dir.to_owned()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = open(&path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        match fs::read_dir(&path).map_err(failed)?.next() {
            None => Ok(MountFolder { path, folder }),
            Some(Ok(_)) => Err(MountError::NotEmpty(dir.to_owned())),
            Some(Err(error)) => Err(failed(error)),
        }
    }

    /// Its absolute path without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts a read-only file system on the folder. Returns the mount, and the open device from
    /// which its requests are read. Every access to the mount blocks until its request is read and
    /// answered.
    ///
    /// With `allow_other`, other users may access the file system, as far as the modes of its files
    /// allow.
    ///
    /// # Errors
    /// A part of FUSE is missing, or the kernel or `fusermount3` refuses.
    pub fn mount(self, allow_other: bool) -> MountResult<(FuseMount, OwnedFd)> {
        if !Path::new(DEVICE).exists() {
            return Err(MountError::NoDevice);
        }
        let fd = match self.mount_as_root(allow_other)? {
            Some(fd) => fd,
            None => fusermount::mount(&self.path, allow_other)?,
        };
        let device = match device_at(&self.path) {
            Ok(Some(device)) => device,
            Ok(None) => {
                self.unmount_moved();
                let what = "the folder was moved, or the mount was removed at once";
                return Err(MountError::failed("mount on", &self.path, what));
            }
            Err(error) => {
                self.unmount_moved();
                return Err(MountError::failed("mount on", &self.path, error));
            }
        };
        let path = self.path;
        Ok((FuseMount { path, device }, fd))
    }

    /// The path under which this process reaches the folder that was examined, wherever it is now.
    fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.folder.as_raw_fd())
    }

    /// Removes the mount from the folder that was examined.
    fn unmount_moved(&self) {
        // Best effort: without it, the mount stays and fails every access, and `findmnt` shows it.
        if let Ok(path) = fs::read_link(self.link()) {
            let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }

    /// Mounts without a helper; `None` if this process may not.
    fn mount_as_root(&self, allow_other: bool) -> MountResult<Option<OwnedFd>> {
        let path = self.path.as_path();
        if !geteuid().is_root() {
            return Ok(None);
        }
        let failed = |error: io::Error| MountError::failed("mount on", path, error);
        let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
        let device = opened.map_err(|error| MountError::failed("open", Path::new(DEVICE), error))?;
        let mut data = format!(
            "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
            device.as_raw_fd(),
            geteuid().as_raw(),
            getegid().as_raw()
        );
        if allow_other {
            data.push_str(",allow_other");
        }
        let data = CString::new(data).map_err(|error| failed(error.into()))?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        match mount(NAME, self.link(), "fuse.vmsnap", flags, data.as_c_str()) {
            Ok(()) => Ok(Some(device.into())),
            // In a container: a helper with more rights may be there.
            Err(Errno::PERM) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// The device number of the file system that is mounted on a folder; the topmost one counts.
///
/// # Errors
/// The list of mounts cannot be read.
fn device_at(path: &Path) -> io::Result<Option<Number>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let here = mounts(&text).into_iter().rfind(|mount| mount.point == path);
    Ok(here.map(|mount| mount.device))
}

/// A mounted file system. Dropping it leaves it mounted.
#[derive(Debug)]
pub struct FuseMount {
    path: PathBuf,
    device: Number,
}

impl FuseMount {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is mounted on its folder, and nothing is mounted on top of it.
    fn is_visible(&self) -> io::Result<bool> {
        Ok(device_at(&self.path)? == Some(self.device))
    }

    /// Removes the mount even if files in it are open, and ends the connection to the kernel, so
    /// that reads of these files fail. If the mount no longer exists, nothing is done, because
    /// another file system may be mounted there.
    ///
    /// # Errors
    /// The kernel or `fusermount3` refuses, or another file system is mounted on top of the mount.
    pub fn unmount(&self) -> MountResult<()> {
        let failed = |error: io::Error| MountError::failed("unmount", &self.path, error);
        if !self.is_visible().map_err(failed)? {
            self.abort();
            return match self.is_mounted().map_err(failed)? {
                true => {
                    let what = "another file system is mounted on top of it";
                    Err(MountError::failed("unmount", &self.path, what))
                }
                false => Ok(()),
            };
        }
        // FORCE ends the connection.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match unmount(self.path.as_path(), flags) {
            Ok(()) => return Ok(()),
            Err(Errno::PERM) => fusermount::unmount(&self.path)?,
            Err(error) => return Err(failed(error.into())),
        }
        self.abort();
        Ok(())
    }

    /// Whether it is mounted anywhere.
    fn is_mounted(&self) -> io::Result<bool> {
        let text = fs::read("/proc/self/mountinfo")?;
        Ok(mounts(&text).iter().any(|mount| mount.device == self.device))
    }

    /// Ends the connection to the kernel through the kernel's control files, which need not be
    /// there.
    fn abort(&self) {
        let control = format!("/sys/fs/fuse/connections/{}/abort", self.device.minor);
        let aborted = File::options().write(true).open(control);
        let aborted = aborted.and_then(|mut file| io::Write::write_all(&mut file, b"1"));
        // Without it, reads of open files fail when this process ends.
        drop(aborted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(dir: &Path) -> (String, String) {
        let error = MountFolder::of(dir).expect_err("it is refused");
        assert!(error.is_usage() && error.missing().is_none());
        (error.to_string(), error.hint().unwrap_or_default())
    }

    #[test]
    fn only_an_empty_folder_is_accepted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        let accepted = MountFolder::of(path).expect("it is empty");
        assert_eq!(accepted.path(), fs::canonicalize(path).expect("there"));
        let (what, hint) = refusal(&path.join("missing"));
        assert!(
            what.contains("missing") && hint.contains("create an empty folder"),
            "{what}"
        );
        fs::write(path.join("file"), "x").expect("written");
        let (what, hint) = refusal(path);
        assert!(
            what.contains("not empty") && hint.contains("empty folder"),
            "{what}"
        );
        for file in [path.join("file"), path.join("file/below")] {
            let (what, _) = refusal(&file);
            assert!(what.contains("not a folder"), "{what}");
        }
        let (what, hint) = refusal(Path::new("/proc"));
        assert!(what.contains("already mounted"), "{what}");
        assert!(hint.contains("findmnt /proc"), "{hint}");
    }

    #[test]
    fn missing_parts_are_named_with_what_helps() {
        let device = MountError::NoDevice;
        assert_eq!(device.missing(), Some("/dev/fuse"));
        assert!(device.hint().expect("a hint").contains("modprobe fuse"));
        let program = MountError::NoProgram;
        assert_eq!(program.missing(), Some("fusermount3"));
        assert!(program.hint().expect("a hint").contains("package fuse3"));
        let dead = MountError::Dead("/mnt/x".into());
        assert!(dead.hint().expect("a hint").contains("fusermount3 -u /mnt/x"));
        let others = MountError::failed("mount on", Path::new("/x"), "needs 'user_allow_other'");
        assert!(others.hint().expect("a hint").contains("/etc/fuse.conf"));
    }

    /// Root would else mount where a link leads that another user puts there.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "nothing durable is renamed")]
    fn a_folder_stays_the_one_that_was_examined() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let (path, moved) = (place.path().join("m"), place.path().join("moved"));
        fs::create_dir(&path).expect("a folder");
        let folder = MountFolder::of(&path).expect("it is empty");
        fs::rename(&path, &moved).expect("it is moved");
        std::os::unix::fs::symlink("/etc", &path).expect("a link");
        assert_eq!(fs::read_link(folder.link()).expect("it is open"), moved);
    }
}
