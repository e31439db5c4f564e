//! The connection to libvirt, and the lookup of domains.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use virt::connect::Connect;
use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::{CallError, HostError, Refusal, Result, failed, ffi};
use crate::host::no_connection::{NoConnection, Places};
use crate::model::domain::Domain;

/// A connection to libvirt.
///
/// It is opened again after a restart of the daemon, because jobs and checkpoints survive the
/// restart.
pub(crate) struct Link {
    uri: Option<String>,
    full_uri: String,
    is_read_only: bool,
    connection: Mutex<Connect>,
    location: Location,
}

impl Link {
    /// Opens the connection.
    pub fn open(uri: Option<&str>) -> Result<Link> {
        Link::begin(uri, false)
    }

    /// Opens a read-only connection, which more users are allowed to open.
    pub(crate) fn open_read_only(uri: Option<&str>) -> Result<Link> {
        Link::begin(uri, true)
    }

    fn begin(uri: Option<&str>, is_read_only: bool) -> Result<Link> {
        let connection = open(uri, is_read_only)?;
        let full_uri = connection.get_uri().map_err(failed("report its URI"))?;
        Ok(Link {
            uri: uri.map(str::to_owned),
            is_read_only,
            connection: Mutex::new(connection),
            location: Location::of(&full_uri),
            full_uri,
        })
    }

    /// Returns the connection's URI, as completed by libvirt.
    pub(crate) fn full_uri(&self) -> &str {
        &self.full_uri
    }

    /// Returns where the hypervisor runs.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Returns the connection, and opens it again if it was lost.
    pub fn connection(&self) -> Result<Connect> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_alive().unwrap_or(false) {
            *connection = open(self.uri.as_deref(), self.is_read_only)?;
        }
        Ok(connection.clone())
    }

    /// Looks up the domain with this name.
    pub(crate) fn by_name(&self, name: &str) -> Result<Option<Handle>> {
        check_name(name)?;
        found(
            Handle::lookup_by_name(&self.connection()?, name),
            "look up the domain",
        )
    }

    /// Looks up the domain with this UUID.
    pub(crate) fn by_uuid(&self, uuid: &str) -> Result<Option<Handle>> {
        ffi::c_string(uuid).map_err(failed("look up the domain"))?;
        found(
            Handle::lookup_by_uuid_string(&self.connection()?, uuid),
            "look up the domain",
        )
    }

    /// Finds a known domain again by its UUID, because it may have been renamed.
    pub fn find(&self, domain: &Domain) -> Result<Handle> {
        self.by_uuid(&domain.uuid)?
            .ok_or_else(|| HostError::NoSuchDomain {
                name: domain.name.clone(),
            })
    }
}

fn open(uri: Option<&str>, is_read_only: bool) -> Result<Connect> {
    let refused = |error: CallError| HostError::Connect {
        uri: uri.unwrap_or("the default hypervisor").to_owned(),
        why: why_refused(uri, error.number),
        message: error.message,
    };
    ffi::prepare().map_err(refused)?;
    if let Some(uri) = uri {
        ffi::c_string(uri).map_err(refused)?;
    }
    let opened = match is_read_only {
        true => Connect::open_read_only(uri),
        false => Connect::open(uri),
    };
    let connection = opened.map_err(|error| refused(error.into()))?;
    // Detects a daemon that hangs. The embedded driver does not support this and does not need it.
    let _ = connection.set_keep_alive(5, 6);
    Ok(connection)
}

fn why_refused(uri: Option<&str>, number: ErrorNumber) -> NoConnection {
    let by_environment = env::var("LIBVIRT_DEFAULT_URI").ok().filter(|uri| !uri.is_empty());
    let uri = uri.map(str::to_owned).or(by_environment);
    let is_local = uri.as_deref().is_none_or(|uri| {
        let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
        matches!(scheme, "qemu" | "qemu+unix") && rest.starts_with("///") && Location::of(uri).is_local
    });
    match number {
        ErrorNumber::AuthFailed | ErrorNumber::AuthCancelled | ErrorNumber::AuthUnavailable if is_local => {
            NoConnection::NotAllowed
        }
        // Other errors, such as an invalid URI, show nothing about the daemons.
        ErrorNumber::SystemError | ErrorNumber::NoConnect if is_local => {
            let is_root = rustix::process::geteuid().is_root();
            NoConnection::on_this_machine(&Places::of(uri.as_deref(), is_root))
        }
        _ => NoConnection::Other,
    }
}

fn found(
    looked_up: std::result::Result<Handle, virt::error::Error>,
    operation: &str,
) -> Result<Option<Handle>> {
    match looked_up {
        Ok(handle) => Ok(Some(handle)),
        Err(error) if error.code() == ErrorNumber::NoDomain => Ok(None),
        Err(error) => Err(failed(operation)(error)),
    }
}

/// Refuses invalid domain names.
///
/// libvirt 9.0 deletes the state of **all** domains when a domain named `.` or `..` is defined.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(Refusal::ImpossibleDomainName {
            name: name.to_owned(),
        }
        .into());
    }
    Ok(())
}

/// Whether the hypervisor of a URI runs on this machine, and its folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Whether it runs on this machine. Only then are its images, sockets and scratch files
    /// accessible.
    pub is_local: bool,
    /// The folder in which libvirt creates a private folder for each running domain
    /// (`domain-<id>-<name>`).
    pub state_dir: Option<PathBuf>,
    /// The folder with the states of emulated TPMs, in a folder per domain, named by its UUID
    /// (`swtpmStorageDir` in libvirt's `src/qemu/qemu_conf.c`).
    pub tpm_dir: Option<PathBuf>,
}

impl Location {
    /// Reads a full URI; <https://libvirt.org/uri.html> describes the format.
    pub fn of(uri: &str) -> Location {
        let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
        let transport = scheme.split_once('+').map(|(_, transport)| transport);
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let is_local = matches!(transport, None | Some("unix")) && authority.is_empty();
        // For root, libvirt opens the system's hypervisor instead of a session (remoteConnectOpen
        // in src/remote/remote_driver.c).
        let we_are_root = rustix::process::geteuid().is_root();
        let folders = match path {
            "/session" if !we_are_root => {
                let home = config_home().map(|home| home.join("libvirt/qemu"));
                home.map(|home| (home.join("lib"), home.join("swtpm")))
            }
            "/system" | "/session" => {
                let lib = Path::new("/var/lib/libvirt");
                Some((lib.join("qemu"), lib.join("swtpm")))
            }
            "/embed" => {
                let root = query.split('&').find_map(|pair| pair.strip_prefix("root="));
                let lib = root.map(|root| Path::new(&unescape(root)).join("lib"));
                lib.map(|lib| (lib.join("qemu"), lib.join("swtpm")))
            }
            _ => None,
        };
        let (state_dir, tpm_dir) = folders.filter(|_| is_local).unzip();
        Location {
            is_local,
            state_dir,
            tpm_dir,
        }
    }
}

fn config_home() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))
}

/// Decodes `%XX`; other percent signs stay unchanged.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped =
            digits.filter(|digits| first == b'%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let value = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(value.unwrap_or(first));
        rest = if value.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_harm_libvirt_never_reach_it() {
        for name in ["", ".", "..", "a/b", "/", "a\0b"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["...", " ", "-rf", "a b", "\u{e4}\u{1f600}", "it's \"x\" <&>", "*"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn uri_shows_where_the_hypervisor_is() {
        let local = |uri: &str| Location::of(uri).is_local;
        assert!(local("qemu:///system") && local("qemu+unix:///system") && local("qemu:///embed?root=/r"));
        for remote in [
            "qemu+ssh://host/system",
            "qemu://host/system",
            "qemu+tls:///system",
            "qemu+ssh:///system",
        ] {
            assert!(!local(remote), "{remote}");
            assert_eq!(Location::of(remote).state_dir, None);
            assert_eq!(Location::of(remote).tpm_dir, None);
        }
    }

    #[test]
    fn uri_shows_where_running_domains_keep_their_folders() {
        let state = |uri: &str| Location::of(uri).state_dir;
        assert_eq!(state("qemu:///system"), Some("/var/lib/libvirt/qemu".into()));
        assert_eq!(
            state("qemu:///embed?a=b&root=/a%20b%zz"),
            Some("/a b%zz/lib/qemu".into())
        );
        assert_eq!(state("qemu:///embed"), None);
        assert_eq!(state("test:///default"), None);
    }

    #[test]
    fn uri_shows_where_the_states_of_tpms_are() {
        let folder = |uri: &str| Location::of(uri).tpm_dir;
        assert_eq!(folder("qemu:///system"), Some("/var/lib/libvirt/swtpm".into()));
        assert_eq!(folder("qemu:///embed?root=/a%20b"), Some("/a b/lib/swtpm".into()));
        let session = folder("qemu:///session").expect("there is one");
        match rustix::process::geteuid().is_root() {
            true => assert_eq!(session, Path::new("/var/lib/libvirt/swtpm")),
            false => assert!(session.ends_with("libvirt/qemu/swtpm")),
        }
    }
}
