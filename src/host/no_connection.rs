//! Finds out why vmsnap cannot connect to libvirt, and what the user can do.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The reason why a connection to libvirt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConnection {
    /// No libvirt daemon was found on this machine.
    NotInstalled,
    /// A daemon is installed, but none is listening.
    NotRunning(Daemons),
    /// This user may not connect.
    NotAllowed,
    /// The socket that the URI names does not exist.
    NoSuchSocket,
    /// Any other reason: another machine, a URI that libvirt does not know, or a cause that only
    /// libvirt's message shows.
    Other,
}

/// The libvirt daemons for QEMU that were found on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Daemons {
    /// Whether `libvirtd` was found, the daemon for all hypervisors (Debian).
    pub libvirtd: bool,
    /// Whether `virtqemud` was found, the daemon for QEMU only (Fedora).
    pub virtqemud: bool,
}

/// The folders and sockets where vmsnap looks for libvirt's daemons.
#[derive(Clone, Debug)]
pub struct Places {
    /// Folders that can hold the daemons' programs.
    pub programs: Vec<PathBuf>,
    /// The sockets on which a daemon of this machine may listen.
    pub sockets: Sockets,
}

/// The sockets on which a daemon of this machine may listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// The sockets of the system's daemons.
    System(Vec<PathBuf>),
    /// The socket that the URI names.
    Named(PathBuf),
    /// The socket of the user's own daemon, which libvirt's library starts itself.
    Session,
}

impl Sockets {
    fn paths(&self) -> &[PathBuf] {
        match self {
            Sockets::System(paths) => paths,
            Sockets::Named(path) => std::slice::from_ref(path),
            Sockets::Session => &[],
        }
    }
}

impl Places {
    /// Returns the usual folders and sockets; a socket that the URI names replaces the usual ones.
    /// Without a URI, libvirt opens a session for a user other than root.
    pub fn of(uri: Option<&str>, is_root: bool) -> Places {
        let is_session = !is_root && uri.is_none_or(is_session);
        let usual = || match is_session {
            true => Sockets::Session,
            false => {
                let names = ["libvirt-sock", "virtqemud-sock"];
                Sockets::System(names.map(|name| Path::new("/run/libvirt").join(name)).to_vec())
            }
        };
        Places {
            programs: ["/usr/sbin", "/usr/bin", "/usr/local/sbin"]
                .map(PathBuf::from)
                .to_vec(),
            sockets: uri.and_then(socket_of).map_or_else(usual, Sockets::Named),
        }
    }

    fn daemons(&self) -> Daemons {
        let is_installed = |name| self.programs.iter().any(|folder| folder.join(name).is_file());
        Daemons {
            libvirtd: is_installed("libvirtd"),
            virtqemud: is_installed("virtqemud"),
        }
    }
}

/// Whether a URI names the hypervisor of a user's session.
fn is_session(uri: &str) -> bool {
    let path = uri.split_once('?').map_or(uri, |(path, _)| path);
    path.ends_with("/session")
}

/// Returns the value of `socket=` in a URI.
fn socket_of(uri: &str) -> Option<PathBuf> {
    let (_, query) = uri.split_once('?')?;
    let value = query.split('&').find_map(|pair| pair.strip_prefix("socket="))?;
    Some(PathBuf::from(value))
}

impl NoConnection {
    /// Finds out why the connection to QEMU's hypervisor on this machine failed.
    pub(crate) fn on_this_machine(places: &Places) -> NoConnection {
        let sockets = places.sockets.paths();
        let refusals: Vec<ErrorKind> = sockets
            .iter()
            .filter_map(|socket| UnixStream::connect(socket).err())
            .map(|error| error.kind())
            .collect();
        if refusals.contains(&ErrorKind::PermissionDenied) {
            return NoConnection::NotAllowed;
        }
        if refusals.len() < sockets.len() {
            // A daemon is listening, so libvirt's message gives the reason.
            return NoConnection::Other;
        }
        match (places.daemons(), &places.sockets) {
            (
                Daemons {
                    libvirtd: false,
                    virtqemud: false,
                },
                _,
            ) => NoConnection::NotInstalled,
            (_, Sockets::Named(_)) if refusals == [ErrorKind::NotFound] => NoConnection::NoSuchSocket,
            (_, Sockets::Session) => NoConnection::Other,
            (daemons, _) => NoConnection::NotRunning(daemons),
        }
    }

    /// Returns a hint for the user.
    pub fn hint(self) -> &'static str {
        match self {
            NoConnection::NotInstalled => {
                "libvirt is not installed on this host: \
                 `apt install libvirt-daemon-system qemu-system-x86 qemu-utils` (Debian, Ubuntu), or \
                 `dnf install libvirt-daemon-kvm qemu-img` and `systemctl enable --now virtqemud.socket` \
                 (Fedora, RHEL); --connect URI uses another host"
            }
            NoConnection::NotRunning(Daemons { virtqemud: false, .. }) => {
                "libvirt is not running; start it as root: `systemctl start libvirtd.socket`"
            }
            NoConnection::NotRunning(Daemons { libvirtd: false, .. }) => {
                "libvirt is not running; start it as root: `systemctl start virtqemud.socket`"
            }
            NoConnection::NotRunning(_) => {
                "libvirt is not running; start it as root: `systemctl start virtqemud.socket`, \
                 or libvirtd.socket if this host uses libvirtd"
            }
            NoConnection::NotAllowed => {
                "this user may not connect: run as root, or add the user to the group libvirt \
                 (`usermod -aG libvirt USER`) and log in again"
            }
            NoConnection::NoSuchSocket => {
                "the socket that the URI names does not exist: correct `socket=` in the URI, or start the daemon that listens on this socket"
            }
            NoConnection::Other => {
                "check that `virsh --connect URI list` works with the same URI; the usual URI is qemu:///system"
            }
        }
    }
}

/// Creates a socket that refuses connections, like the one that a killed daemon leaves. The socket
/// never listens, because a closed listener still accepts connections while a process that was just
/// forked has it open.
#[cfg(test)]
pub(super) fn dead_socket(path: &Path) -> std::io::Result<()> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    Ok(bind(&socket, &SocketAddrUnix::new(path)?)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn places(folder: &Path) -> Places {
        Places {
            programs: vec![folder.join("none"), folder.to_owned()],
            sockets: Sockets::System(vec![folder.join("first"), folder.join("second")]),
        }
    }

    #[test]
    fn a_host_without_daemons_needs_packages() {
        let folder = tempfile::tempdir().expect("a folder");
        let why = NoConnection::on_this_machine(&places(folder.path()));
        assert_eq!(why, NoConnection::NotInstalled);
        let hint = why.hint();
        assert!(hint.contains("apt install libvirt-daemon-system"), "{hint}");
        assert!(hint.contains("dnf install libvirt-daemon-kvm"), "{hint}");
    }

    #[test]
    fn a_stopped_daemon_is_started_by_its_own_socket() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = places(folder.path());
        // The socket of a killed daemon stays, and refuses connections.
        dead_socket(&places.sockets.paths()[0]).expect("a socket");
        let hint_with = |daemon: &str| {
            fs::write(folder.path().join(daemon), b"").expect("a file");
            NoConnection::on_this_machine(&places).hint()
        };
        let hint = hint_with("virtqemud");
        assert!(hint.contains("systemctl start virtqemud.socket`"), "{hint}");
        assert!(!hint.contains("libvirtd"), "{hint}");
        let hint = hint_with("libvirtd");
        assert!(
            hint.contains("virtqemud.socket") && hint.contains("libvirtd.socket"),
            "{hint}"
        );
        fs::remove_file(folder.path().join("virtqemud")).expect("it is there");
        let hint = NoConnection::on_this_machine(&places).hint();
        assert!(hint.contains("systemctl start libvirtd.socket`"), "{hint}");
        assert!(!hint.contains("virtqemud"), "{hint}");
    }

    #[test]
    fn a_daemon_that_listens_is_not_called_stopped() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = places(folder.path());
        let _listens = UnixListener::bind(&places.sockets.paths()[1]).expect("a socket");
        assert_eq!(NoConnection::on_this_machine(&places), NoConnection::Other);
    }

    #[test]
    fn a_missing_socket_of_the_uri_blames_no_daemon() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("libvirtd"), b"").expect("a file");
        let socket = folder.path().join("named");
        let places = Places {
            sockets: Sockets::Named(socket.clone()),
            ..places(folder.path())
        };
        assert_eq!(NoConnection::on_this_machine(&places), NoConnection::NoSuchSocket);
        // The socket of a daemon that was killed stays.
        dead_socket(&socket).expect("a socket");
        let why = NoConnection::on_this_machine(&places);
        assert!(matches!(why, NoConnection::NotRunning(_)), "{why:?}");
    }

    #[test]
    fn a_session_needs_no_daemon_of_the_system() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = Places {
            sockets: Sockets::Session,
            ..places(folder.path())
        };
        assert_eq!(NoConnection::on_this_machine(&places), NoConnection::NotInstalled);
        fs::write(folder.path().join("virtqemud"), b"").expect("a file");
        assert_eq!(NoConnection::on_this_machine(&places), NoConnection::Other);
    }

    #[test]
    fn the_uri_and_the_user_decide_the_sockets() {
        let sockets = |uri, is_root| Places::of(uri, is_root).sockets;
        let usual = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"].map(PathBuf::from);
        let usual = Sockets::System(usual.to_vec());
        for is_root in [true, false] {
            let named = Some("qemu+unix:///system?mode=direct&socket=/run/x");
            assert_eq!(sockets(named, is_root), Sockets::Named("/run/x".into()));
            assert_eq!(sockets(Some("qemu:///system"), is_root), usual);
        }
        for session in [None, Some("qemu:///session"), Some("qemu+unix:///session?a=b")] {
            assert_eq!(sockets(session, false), Sockets::Session);
            assert_eq!(sockets(session, true), usual, "root has the system's daemon");
        }
    }
}
