//! The sockets on which a server listens, and the URIs under which clients reach it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, getsockname, listen,
    socket_with, sockopt,
};

use crate::wait;

/// The number of connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 64;
/// How long another process may take to begin to listen in the same folder.
const LOCK_WAITS: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// How long a TCP connection may be idle until the kernel asks whether the client is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// An error of a socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on the socket.
    #[error("another process listens on {}", .0.display())]
    InUse(PathBuf),
    /// The path exists, and is not a socket.
    #[error("{} exists and is not a socket; it was not replaced", .0.display())]
    NotASocket(PathBuf),
    /// Others may change the folder for the socket.
    #[error("{} does not belong to this user alone, so it cannot hold the socket", .0.display())]
    NotPrivate(PathBuf),
    /// A call failed.
    #[error("cannot {operation} {place}")]
    Io {
        /// The operation, as a verb phrase that the place completes.
        operation: &'static str,
        /// The path or address.
        place: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A socket that listens for clients.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    place: Place,
}

/// Where a listener is.
#[derive(Debug)]
enum Place {
    /// A unix socket, with its device and inode.
    Unix { path: PathBuf, file: (u64, u64) },
    /// A TCP address.
    Tcp(SocketAddr),
}

impl Listener {
    /// Listens on a new unix socket, to which only this user and root can connect. The socket of a
    /// server that no longer runs is replaced.
    ///
    /// # Errors
    /// Another process listens there, the path is taken, or a call failed.
    pub fn unix(path: &Path) -> Result<Listener, ListenError> {
        let failed = |operation| io_error(operation, path.display());
        let address = SocketAddrUnix::new(path).map_err(|errno| failed("listen on")(errno.into()))?;
        // Two servers must not replace each other's socket.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let _lock = lock(folder.unwrap_or(Path::new(".")))?;
        match path.symlink_metadata() {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            Ok(_) if is_alive(&address) => return Err(ListenError::InUse(path.to_owned())),
            Ok(_) => fs::remove_file(path).map_err(failed("replace"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("examine")(error)),
        }
        let listening = || -> rustix::io::Result<OwnedFd> {
            let socket = new_socket(AddressFamily::UNIX)?;
            // The file of the socket gets the mode that the socket has before it is bound.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &address)?;
            listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let socket = listening().map_err(|errno| failed("listen on")(errno.into()))?;
        let file = path.symlink_metadata().map_err(failed("examine"))?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Listener {
            socket,
            place: Place::Unix {
                path,
                file: (file.dev(), file.ino()),
            },
        })
    }

    /// Listens on a TCP address. Port 0 stands for any free port.
    ///
    /// # Errors
    /// The address is in use, or a call failed.
    pub fn tcp(address: SocketAddr) -> Result<Listener, ListenError> {
        let listening = || -> rustix::io::Result<(OwnedFd, SocketAddr)> {
            let family = match address {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            };
            let socket = new_socket(family)?;
            // Connections of an earlier server may still be closing.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &address)?;
            listen(&socket, BACKLOG)?;
            let bound = SocketAddr::try_from(getsockname(&socket)?)?;
            Ok((socket, bound))
        };
        let listening = listening();
        let (socket, bound) = listening.map_err(|errno| io_error("listen on", address)(errno.into()))?;
        Ok(Listener {
            socket,
            place: Place::Tcp(bound),
        })
    }

    /// The URI of an export (`doc/uri.md` of the NBD project).
    pub fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export.as_bytes(), b"");
        match &self.place {
            Place::Unix { path, .. } => {
                let path = percent_encoded(path.as_os_str().as_bytes(), b"/");
                format!("nbd+unix:///{export}?socket={path}")
            }
            Place::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }

    /// The path of the unix socket; `None` for TCP.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Unix { path, .. } => Some(path),
            Place::Tcp(_) => None,
        }
    }

    /// Accepts a connection. The sockets do not block.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        let accepted = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        if let Place::Tcp(_) = &self.place {
            // Without these the connection only is slower, or stays longer when a client vanishes.
            let _ = sockopt::set_tcp_nodelay(&accepted, true);
            let _ = sockopt::set_socket_keepalive(&accepted, true);
            let _ = sockopt::set_tcp_keepidle(&accepted, KEEP_ALIVE);
        }
        Ok(accepted)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    /// Removes the file of the socket, unless another one has taken its place.
    fn drop(&mut self) {
        if let Place::Unix { path, file } = &self.place {
            let found = path.symlink_metadata();
            if found.is_ok_and(|found| (found.dev(), found.ino()) == *file) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Creates a folder that only this user can use, or checks an existing one.
///
/// # Errors
/// The path is taken, belongs to another user, or cannot be created.
pub fn private_folder(path: &Path) -> Result<(), ListenError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("create", path.display())(error)),
    }
    let found = path
        .symlink_metadata()
        .map_err(io_error("examine", path.display()))?;
    let own = rustix::process::geteuid().as_raw();
    match found.is_dir() && found.uid() == own && found.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(ListenError::NotPrivate(path.to_owned())),
    }
}

fn io_error(operation: &'static str, place: impl ToString) -> impl Fn(io::Error) -> ListenError {
    let place = place.to_string();
    move |source| ListenError::Io {
        operation,
        place: place.clone(),
        source,
    }
}

fn new_socket(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::STREAM, flags, None)
}

/// Whether a process listens at this address.
fn is_alive(address: &SocketAddrUnix) -> bool {
    let connected = new_socket(AddressFamily::UNIX).and_then(|socket| connect(&socket, address));
    // Everything else, such as a full queue or a missing right, may hide a live server.
    !matches!(connected, Err(Errno::CONNREFUSED | Errno::NOENT))
}

/// Locks a folder against other servers until the result is dropped. Without locks in its file
/// system there is nothing to hold.
fn lock(folder: &Path) -> Result<Option<File>, ListenError> {
    let failed = io_error("open", folder.display());
    let file = File::open(folder).map_err(failed)?;
    let locked = wait::until(LOCK_WAITS, PAUSE, || match file.try_lock() {
        Err(TryLockError::WouldBlock) => None,
        locked => Some(locked),
    });
    match locked {
        Some(Ok(())) => Ok(Some(file)),
        Some(Err(_)) => Ok(None),
        None => Err(io_error("lock", folder.display())(io::ErrorKind::TimedOut.into())),
    }
}

/// Encodes bytes for a URI: all except letters, digits, `-._~` and these.
fn percent_encoded(bytes: &[u8], others: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || others.contains(byte) {
            true => text.push(char::from(*byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let folder = folder();
        let path = folder.path().join("a b?.sock");
        let listener = Listener::unix(&path).expect("it is free");
        let mode = path.symlink_metadata().expect("a socket").mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = Listener::unix(&path).expect_err("it is live");
        assert!(matches!(refused, ListenError::InUse(_)), "{refused}");
        drop(listener);
        // As after a kill: the file stays, and nobody listens.
        drop(UnixListener::bind(&path).expect("it is free"));
        assert!(path.exists());
        drop(Listener::unix(&path).expect("the stale socket is replaced"));
        assert!(!path.exists());
    }

    #[test]
    fn uris_of_exports_are_encoded() {
        let folder = folder();
        let path = folder.path().join("a b?.sock");
        let listener = Listener::unix(&path).expect("it is free");
        let uri = listener.uri("vd a");
        assert!(uri.starts_with("nbd+unix:///vd%20a?socket=/"), "{uri}");
        assert!(uri.ends_with("/a%20b%3F.sock"), "{uri}");
        let listener = Listener::tcp("[::1]:0".parse().expect("an address"));
        // A machine may have no IPv6.
        let listener = listener.or_else(|_| Listener::tcp("127.0.0.1:0".parse().expect("an address")));
        let uri = listener.expect("a free port").uri("vda");
        assert!(uri.ends_with("/vda") && !uri.contains(":0/"), "{uri}");
    }

    #[test]
    fn a_folder_that_others_may_use_is_refused() {
        let folder = folder();
        let path = folder.path().join("private");
        private_folder(&path).expect("it is new");
        private_folder(&path).expect("it is private");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("changed");
        let refused = private_folder(&path).expect_err("it is not private");
        assert!(matches!(refused, ListenError::NotPrivate(_)), "{refused}");
    }

    #[test]
    fn only_its_own_socket_is_removed() {
        let folder = folder();
        let path = folder.path().join("s");
        let listener = Listener::unix(&path).expect("it is free");
        fs::remove_file(&path).expect("removed by hand");
        fs::write(&path, "x").expect("written");
        drop(listener);
        assert_eq!(fs::read_to_string(&path).expect("it stays"), "x");
        let refused = Listener::unix(&path).expect_err("it is a file");
        assert!(matches!(refused, ListenError::NotASocket(_)), "{refused}");
        fs::remove_file(&path).expect("removed by hand");
        drop(Listener::unix(&path).expect("it is free"));
        assert!(!path.exists());
    }
}
