//! A folder for a test's images that QEMU's user can reach.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::owner;

/// On a disk and not in a tmpfs, because images are opened with O_DIRECT. Every user may enter it.
const PARENT: &str = "/var/tmp";

/// A folder with a unique name, removed with its content when dropped.
pub struct Home {
    name: String,
    path: PathBuf,
}

impl Home {
    /// Creates the folder.
    pub fn new() -> Home {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", owner::stem());
        let path = Path::new(PARENT).join(&name);
        fs::create_dir(&path).expect("the test's folder is new");
        // libvirt gives the images to QEMU's user, who must be able to enter the folder, whatever
        // the umask.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("the folder is ours");
        Home { name, path }
    }

    /// Its name, with the number of this process. The names of domains begin with it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of the folder.
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
