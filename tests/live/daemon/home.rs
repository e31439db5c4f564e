//! A folder for a test's images that QEMU's user can reach.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::is_alive;

/// On a disk and not in a tmpfs, because images are opened with O_DIRECT; every user may pass.
const PARENT: &str = "/var/tmp";

/// What begins the name of every domain and folder of the tests; the number of their process follows.
const PREFIX: &str = "vmsnap-test-";

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
        let name = format!("{PREFIX}{}-{number}", std::process::id());
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

/// Whether a domain or folder of that name was made by a test process that is gone.
pub fn is_orphan(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.and_then(|pid| pid.parse().ok())
        .is_some_and(|pid| !is_alive(pid))
}

/// Removes the folders of test processes that were killed.
pub fn sweep() {
    let entries = fs::read_dir(PARENT).expect("the parent of the folders is there");
    let orphans = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_orphan));
    for orphan in orphans {
        // Two runs may sweep at the same time.
        let _ = fs::remove_dir_all(orphan.path());
    }
}
