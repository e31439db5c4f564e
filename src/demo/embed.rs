//! libvirt's QEMU driver inside this process, with a root folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use virt::connect::Connect;

use super::nobody::Nobody;
use super::{Error, Result, parts};
use crate::host::libvirt::LibvirtHost;

/// The driver's configuration for containers, without any daemon. QEMU runs as our own user and
/// logs to plain files; no security driver, namespace or cgroup is needed.
const QEMU_CONF: &str = r#"stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
"#;

/// The additional configuration for root: otherwise libvirt would run QEMU as another user, who may
/// lack access to /dev/kvm.
const QEMU_CONF_ROOT: &str = r#"user = "+0"
group = "+0"
dynamic_ownership = 0
remember_owner = 0
"#;

const START_DRIVER: &str = "start its driver in this process";

/// An embedded driver with its root folder and a connection. libvirt allows one root per process.
pub struct Embed {
    uri: String,
    // The fields are dropped in this order.
    connection: Connect,
    host: LibvirtHost,
    nobody: Option<Nobody>,
    folder: TempDir,
}

impl Embed {
    /// Makes `folder`, which must not exist, and starts the driver in it.
    ///
    /// The folder is removed when this is dropped. Drop all machines before it.
    ///
    /// As root, the driver needs libvirt's own user for QEMU, whatever the configuration says
    /// (libvirt 9.0). On some systems no package of the demo creates that user. There this thread
    /// and the threads that it starts work as the user `nobody` until this is dropped.
    pub fn start(folder: &Path) -> Result<Embed> {
        let folder = make_folder(folder)?;
        let is_root = rustix::process::geteuid().is_root();
        let as_root = is_root && qemu_user_exists(Path::new("/etc/passwd"));
        let nobody = match is_root && !as_root {
            true => Some(Nobody::become_with(folder.path())?),
            false => None,
        };
        let root = folder.path().join("libvirt");
        let etc = root.join("etc");
        fs::create_dir_all(&etc).map_err(Error::io("create", &etc))?;
        let conf = format!("{QEMU_CONF}{}", if as_root { QEMU_CONF_ROOT } else { "" });
        let path = etc.join("qemu.conf");
        fs::write(&path, conf).map_err(Error::io("write", &path))?;
        let uri = format!("qemu:///embed?root={}", root.display());
        let host = LibvirtHost::connect(Some(&uri));
        let parts = parts::missing(&uri);
        if !parts.is_empty() {
            return Err(Error::Missing { parts });
        }
        let host = host.map_err(|error| Error::Libvirt {
            operation: START_DRIVER,
            message: error.to_string(),
        })?;
        let connection = Connect::open(Some(&uri)).map_err(Error::libvirt(START_DRIVER))?;
        Ok(Embed {
            uri,
            connection,
            host,
            nobody,
            folder,
        })
    }

    /// Whether the driver and its QEMU processes run as the user `nobody`, because libvirt's own
    /// user does not exist.
    pub(crate) fn is_nobody(&self) -> bool {
        self.nobody.is_some()
    }

    /// The URI under which this process reaches the driver.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The host interface to the driver.
    pub fn host(&self) -> &LibvirtHost {
        &self.host
    }

    /// libvirt's connection to the driver.
    pub fn connection(&self) -> &Connect {
        &self.connection
    }

    /// The temporary folder, which also has room for disks and repositories.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

/// Makes the folder, which is removed when the result is dropped.
fn make_folder(folder: &Path) -> Result<TempDir> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        let source = std::io::ErrorKind::InvalidInput.into();
        return Err(Error::io("create", folder)(source));
    };
    let made = tempfile::Builder::new()
        .prefix(name)
        .rand_bytes(0)
        .tempdir_in(parent)
        .map_err(Error::io("create", folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(Error::io("prepare", folder))?;
    Ok(made)
}

/// Whether libvirt's user for QEMU exists, under its name on Debian and Ubuntu or that on Fedora
/// and others.
fn qemu_user_exists(passwd: &Path) -> bool {
    let users = fs::read_to_string(passwd).unwrap_or_default();
    users
        .lines()
        .filter_map(|line| line.split(':').next())
        .any(|name| name == "libvirt-qemu" || name == "qemu")
}
