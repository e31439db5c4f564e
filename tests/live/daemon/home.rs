//! A folder for a test's images that QEMU's user can reach.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::owner;

/// On a disk and not in a tmpfs, because images are opened with O_DIRECT; every user may pass.
const PARENT: &str = "/var/tmp";

/// A folder with a name that no other test has; removed with all it holds when dropped.
pub struct Home {
    name: String,
    path: PathBuf,
}

impl Home {
    /// Makes the folder.
    pub fn new() -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", owner::stem());
        let path = Path::new(PARENT).join(&name);
        fs::create_dir(&path).expect("the test's folder is new");
        // libvirt gives the images to QEMU's user; the folder has to let it in, whatever the umask.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("the folder is ours");
        Home { name, path }
    }

    /// Its name, with the number of this process: the stem of domain names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} could not be removed: {error}", self.path.display());
        }
    }
}
