//! libvirt's QEMU driver inside this process, with a root folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use virt::connect::Connect;

use super::{Error, Result};
use crate::host::libvirt::LibvirtHost;

/// Works in containers and without any daemon: QEMU runs as we do, logs to plain files, and no security driver, namespace or cgroup is needed.
const QEMU_CONF: &str = r#"stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
"#;

/// As root libvirt would run QEMU as another user, who may lack /dev/kvm.
const QEMU_CONF_ROOT: &str = r#"user = "+0"
group = "+0"
dynamic_ownership = 0
remember_owner = 0
"#;

/// The driver's root folder and a connection to it. libvirt allows one root per process.
pub struct Embed {
    uri: String,
    connection: Connect,
    host: LibvirtHost,
    folder: TempDir,
}

impl Embed {
    /// Makes a folder below `parent` and starts the driver in it. The folder goes when this is dropped; machines have to be dropped before.
    pub fn start(parent: &Path) -> Result<Embed> {
        let folder = tempfile::Builder::new()
            .prefix("vmsnap-demo-")
            .tempdir_in(parent)
            .map_err(Error::io("create a folder in", parent))?;
        let root = folder.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(Error::io("prepare", root))?;
        let etc = root.join("libvirt/etc");
        fs::create_dir_all(&etc).map_err(Error::io("create", &etc))?;
        let mut conf = QEMU_CONF.to_owned();
        if rustix::process::geteuid().is_root() {
            conf.push_str(QEMU_CONF_ROOT);
        }
        let path = etc.join("qemu.conf");
        fs::write(&path, conf).map_err(Error::io("write", &path))?;
        let uri = format!("qemu:///embed?root={}", root.join("libvirt").display());
        let host = LibvirtHost::connect(Some(&uri)).map_err(|error| Error::Libvirt {
            operation: "start its driver in this process",
            message: error.to_string(),
        })?;
        let connection =
            Connect::open(Some(&uri)).map_err(Error::libvirt("start its driver in this process"))?;
        Ok(Embed {
            uri,
            connection,
            host,
            folder,
        })
    }

    /// The URI under which this process reaches the driver.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The hypervisor.
    pub fn host(&self) -> &LibvirtHost {
        &self.host
    }

    /// The connection itself.
    pub fn connection(&self) -> &Connect {
        &self.connection
    }

    /// The throw-away folder, with room for disks and repositories.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}
