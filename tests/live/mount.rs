//! Small file systems of a test's own, gone with it.

use std::path::Path;

use crate::embed::{run, run_ok};

/// A folder with a file system in memory of so many bytes. Unmounted when dropped, also by a panic.
pub struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    pub fn of(bytes: u64) -> Mount {
        // Everybody may pass: QEMU may run as somebody else.
        let dir = tempfile::Builder::new()
            .prefix("vmsnap mount ")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in("/var/tmp")
            .expect("a folder");
        let options = format!("size={bytes},mode=0777");
        run_ok(
            "mount",
            [&"-t", &"tmpfs", &"-o", &options, &"vmsnap-test", &dir.path()],
        );
        Mount { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives it another size, in bytes.
    pub fn resize(&self, bytes: u64) {
        self.remount(&format!("size={bytes}"));
    }

    pub fn make_read_only(&self) {
        self.remount("ro");
    }

    pub fn make_writable(&self) {
        self.remount("rw");
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        run_ok("mount", [&"-o", &options, &self.path()]);
    }

    /// Takes it away while it is used: who has files open keeps them, and the empty folder beneath shows.
    pub fn vanish(&self) {
        run_ok("umount", [&"--lazy", &self.path()]);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It may have vanished already.
        run("umount", &["--lazy".as_ref(), self.dir.path().as_os_str()]);
    }
}
