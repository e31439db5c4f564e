//! Chooses, creates and removes the socket, scratch files and folders of a job.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use virt::domain::Domain as Handle;

use super::inspect;
use super::link::Link;
use super::{HostError, PlaceWishes, Places, Refusal, Result};
use crate::host::{libvirt::link, qemu};
use crate::model::domain::{Domain, Source};
use crate::model::finding::Finding;
use crate::model::text::with_sources;

/// The longest path for a socket in libvirt's folder, in bytes. The kernel allows 107; the rest is
/// room for a suffix.
const LONGEST_SOCKET: usize = 100;

/// The prefix of vmsnap's names for folders, sockets and, after a dot, scratch files.
const PREFIX: &str = "vmsnap-";

/// The folder for large temporary files, which survive a restart of the machine.
const TEMPORARY: &str = "/var/tmp";

pub fn choose(
    link: &Link,
    domain: &Domain,
    targets: &[String],
    wishes: &PlaceWishes,
    run: &str,
) -> Result<Places> {
    if !link.location().is_local {
        return Err(inspect::not_here("its disks"));
    }
    link::check_name(&domain.name)?;
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !(1..=36).contains(&run.len()) || !run.bytes().all(safe) {
        return Err(Refusal::ImpossibleRunName { run: run.to_owned() }.into());
    }
    let handle = link.find(domain)?;
    if !inspect::is_active(&handle)? {
        return for_readers(targets, run);
    }
    let mut scratch = Vec::with_capacity(targets.len());
    for target in targets {
        scratch.push((target.clone(), scratch_file(domain, target, wishes, run)?));
    }
    let private = || private_folder(link, &handle).map(|folder| folder.join(format!("{PREFIX}{run}")));
    let mut own_dirs = Vec::new();
    let socket = match &wishes.socket {
        Some(socket) => socket.clone(),
        None => match private().filter(|socket| socket.as_os_str().len() <= LONGEST_SOCKET) {
            Some(socket) => socket,
            None => {
                let folder = own_folder(&handle, run)?;
                own_dirs.push(folder.clone());
                folder.join("nbd")
            }
        },
    };
    check_socket(&socket)?;
    Ok(Places {
        sockets: vec![socket],
        scratch,
        own_dirs,
    })
}

/// Chooses the places for the readers of a shut-off domain.
///
/// The readers are child processes of vmsnap, so no other user needs access to the folder. A socket
/// path from the user is for QEMU and does not apply here.
fn for_readers(targets: &[String], run: &str) -> Result<Places> {
    let runtime = [Path::new("/run"), Path::new(TEMPORARY)];
    let may_write = |parent: &&Path| access(*parent, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let parent = runtime.into_iter().find(may_write);
    let parent = parent.ok_or(Refusal::NoSocketFolder)?;
    let folder = parent.join(format!("{PREFIX}{run}"));
    Ok(Places {
        sockets: targets
            .iter()
            .map(|target| reader_socket(&folder, target))
            .collect(),
        scratch: Vec::new(),
        own_dirs: vec![folder],
    })
}

/// Returns the path of the socket on which a run's qemu-nbd serves this disk.
pub(crate) fn reader_socket(folder: &Path, target: &str) -> PathBuf {
    folder.join(format!("{target}.sock"))
}

/// Finds the folder that libvirt creates for the sockets of a running domain.
///
/// QEMU may write there under every security driver.
fn private_folder(link: &Link, handle: &Handle) -> Option<PathBuf> {
    let prefix = format!("domain-{}-", handle.get_id()?);
    let entries = fs::read_dir(link.location().state_dir.as_ref()?).ok()?;
    let is_it = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
    };
    let folder = entries.flatten().find(is_it)?.path();
    // A folder that this user cannot list cannot be used either.
    fs::read_dir(&folder).ok()?;
    Some(folder)
}

/// Returns the path of a new folder.
fn own_folder(handle: &Handle, run: &str) -> Result<PathBuf> {
    let user = rustix::process::geteuid();
    if !user.is_root() {
        check_owner(user.as_raw(), inspect::live(handle)?.owner)?;
    }
    let mut name = format!("{PREFIX}{run}");
    if is_open_to_all(qemu_user(handle)?) {
        // All users may enter the folder, so its name must be hard to guess.
        name = format!("{name}-{}", uuid::Uuid::new_v4().simple());
    }
    Ok(Path::new(TEMPORARY).join(name))
}

/// Refuses a folder of a user other than root if QEMU, whose user and group are in `owner`, runs as
/// another user.
///
/// QEMU could not create its socket there. A folder for all users would not help: this user may not
/// connect to a socket of QEMU's.
fn check_owner(user: u32, owner: Option<(u32, u32)>) -> Result<()> {
    match owner {
        Some((uid, _)) if uid != user => Err(Refusal::QemuOfAnotherUser { uid }.into()),
        _ => Ok(()),
    }
}

/// Returns QEMU's user and group if they are known and this process may change the owner of a
/// folder.
fn qemu_user(handle: &Handle) -> Result<Option<(u32, u32)>> {
    match rustix::process::geteuid().is_root() {
        true => Ok(inspect::live(handle)?.owner),
        false => Ok(None),
    }
}

/// Returns whether all users need access to the folder, because QEMU's user is unknown.
fn is_open_to_all(owner: Option<(u32, u32)>) -> bool {
    rustix::process::geteuid().is_root() && owner.is_none()
}

/// Creates the folders of an active domain's job and, as root, gives QEMU access to them. No other
/// user can list them.
pub(crate) fn make_for_qemu(places: &Places, handle: &Handle) -> Result<()> {
    if places.own_dirs.is_empty() {
        return Ok(());
    }
    let owner = qemu_user(handle)?;
    places.own_dirs.iter().try_for_each(|folder| {
        make_own(folder)?;
        let opened = match owner {
            Some((user, group)) => chown(folder, Some(user), Some(group)),
            None if is_open_to_all(owner) => fs::set_permissions(folder, fs::Permissions::from_mode(0o733)),
            None => Ok(()),
        };
        opened.map_err(|error| HostError::io("give QEMU access to the folder", folder, error))
    })
}

/// Creates the folders for the readers of a shut-off domain, accessible only to this user.
pub(crate) fn make_for_readers(places: &Places) -> Result<()> {
    places.own_dirs.iter().try_for_each(|folder| make_own(folder))
}

fn make_own(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.map_err(|error| HostError::io("create the folder", folder, error))
}

/// Chooses the path of a scratch file: beside the image by default, as libvirt does.
///
/// The image's folder has the right permissions and usually enough space.
fn scratch_file(domain: &Domain, target: &str, wishes: &PlaceWishes, run: &str) -> Result<PathBuf> {
    let disk = domain.disk(target);
    let disk = disk.ok_or_else(|| Refusal::no_such_disk(target))?;
    let folder = match (&wishes.scratch_dir, &disk.source) {
        (Some(folder), _) => {
            let meta = fs::metadata(folder)
                .map_err(|error| HostError::io("use the scratch folder", folder, error))?;
            if !meta.is_dir() || !folder.is_absolute() {
                return Err(Refusal::NotAScratchFolder { path: folder.clone() }.into());
            }
            folder
        }
        (None, source) => image_folder(source).unwrap_or(Path::new(TEMPORARY)),
    };
    Ok(folder.join(format!(".{PREFIX}{target}-{run}.scratch")))
}

/// Returns the folder of a source's file; `None` for other kinds of sources.
fn image_folder(source: &Source) -> Option<&Path> {
    match source {
        Source::File(image) => image.parent(),
        Source::Volume(volume) => image_folder(volume.place.as_deref()?),
        _ => None,
    }
}

/// Checks that QEMU may create its socket at this path.
///
/// QEMU removes any existing file at the path. Only a socket without a listener may be lost.
pub(crate) fn check_socket(socket: &Path) -> Result<()> {
    if !socket.is_absolute() {
        return Err(Refusal::SocketNotAbsolute {
            path: socket.to_owned(),
        }
        .into());
    }
    if socket.as_os_str().len() > 107 {
        return Err(Refusal::SocketPathTooLong {
            path: socket.to_owned(),
        }
        .into());
    }
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(HostError::io("use the socket", socket, error)),
        Ok(meta) if !meta.file_type().is_socket() => Err(Refusal::NotASocket {
            path: socket.to_owned(),
        }
        .into()),
        Ok(_) => match UnixStream::connect(socket) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            _ => Err(Refusal::SocketInUse {
                path: socket.to_owned(),
            }
            .into()),
        },
    }
}

/// Checks that the scratch file does not exist, because libvirt's error does not say what to do.
pub(crate) fn check_scratch(file: &Path) -> Result<()> {
    match fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(HostError::io("use the scratch file", file, error)),
        Ok(_) => Err(Refusal::ScratchFileTaken {
            path: file.to_owned(),
        }
        .into()),
    }
}

/// Removes the files of a successful job. A failure is only a finding.
pub(crate) fn clear_finding(places: &Places) -> Vec<Finding> {
    let trouble = clear(places).err();
    trouble
        .map(|error| Finding::new("files-not-removed", with_sources(&error)))
        .into_iter()
        .collect()
}

/// Removes the files and folders that a run has left at these places.
///
/// The list of places may come from a file, so only paths with vmsnap's names are removed.
pub fn clear(places: &Places) -> Result<()> {
    for socket in places.sockets.iter().filter(|socket| is_socket_name(socket)) {
        qemu::end_stray_reader(socket)?;
        remove_if(socket, |meta| meta.file_type().is_socket())?;
        remove_if(&qemu::pid_file(socket), fs::Metadata::is_file)?;
    }
    for (_, file) in &places.scratch {
        if is_scratch_name(file) {
            remove_if(file, fs::Metadata::is_file)?;
        }
    }
    for folder in &places.own_dirs {
        let name = folder.file_name().unwrap_or_default();
        if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        match fs::remove_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HostError::io("remove the folder", folder, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns whether the name of the socket or of its folder is one of vmsnap's names.
///
/// QEMU removes a socket whose path the user has chosen.
fn is_socket_name(socket: &Path) -> bool {
    let is_ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    let folder = socket.parent().and_then(Path::file_name);
    socket.file_name().is_some_and(is_ours) || folder.is_some_and(is_ours)
}

fn is_scratch_name(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(format!(".{PREFIX}").as_bytes()) && name.ends_with(b".scratch")
}

fn remove_if(path: &Path, is_ours: impl Fn(&fs::Metadata) -> bool) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if is_ours(&meta) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::io("remove", path, error))
            }
            _ => Ok(()),
        },
        Ok(_) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(HostError::io("examine", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::no_connection::dead_socket;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_folder_that_another_users_qemu_cannot_use_is_refused() {
        let error = check_owner(1000, Some((64055, 108))).expect_err("another user");
        let words = error.to_string();
        assert!(
            words.contains("UID 64055") && words.ends_with("run as root"),
            "{words}"
        );
        check_owner(1000, Some((1000, 1000))).expect("the same user");
        check_owner(1000, None).expect("nothing is known");
    }

    #[test]
    fn only_a_dead_socket_may_be_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("s");
        check_socket(&socket).expect("nothing is there");
        let listener = UnixListener::bind(&socket).expect("it binds");
        assert!(check_socket(&socket).is_err(), "a process is listening");
        drop(listener);
        fs::remove_file(&socket).expect("it is there");
        dead_socket(&socket).expect("it binds");
        check_socket(&socket).expect("nobody listens");
        let file = dir.path().join("precious");
        fs::write(&file, "data").expect("it is written");
        assert!(check_socket(&file).is_err());
        assert!(check_socket(Path::new("relative")).is_err());
        assert!(check_socket(&dir.path().join("x".repeat(107))).is_err());
    }

    #[test]
    fn clearing_removes_what_is_ours_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let own = dir.path().join("vmsnap-run");
        let foreign = dir.path().join("precious");
        fs::create_dir(&own)
            .and_then(|()| fs::create_dir(&foreign))
            .expect("they are made");
        let scratch = dir.path().join(".vmsnap-vda-run.scratch");
        let file = dir.path().join("disk.qcow2");
        fs::write(&scratch, "s")
            .and_then(|()| fs::write(&file, "d"))
            .expect("they are written");
        let socket = own.join("nbd");
        dead_socket(&socket).expect("it binds");
        let places = Places {
            sockets: vec![socket, file.clone(), dir.path().join("never/there")],
            scratch: vec![("vda".into(), scratch.clone()), ("vdb".into(), file.clone())],
            own_dirs: vec![own.clone(), foreign.clone()],
        };
        clear(&places).expect("it is cleared");
        assert!(!own.exists() && !scratch.exists());
        assert!(file.exists() && foreign.exists());
        clear(&places).expect("there is nothing left to do");
    }
}
