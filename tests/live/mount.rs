//! Small file systems of one test, unmounted with it.

use std::fs;
use std::path::Path;

use crate::embed::{run, run_ok};
use crate::owner;

/// A folder with a file system of this many bytes in memory, unmounted when dropped, even after a
/// panic.
pub struct Mount {
    dir: tempfile::TempDir,
    /// A second mount of the same file system, which keeps it alive after [`Mount::vanish`].
    kept: tempfile::TempDir,
}

impl Mount {
    pub fn of(bytes: u64) -> Mount {
        Mount::of_kind("tmpfs", &format!("size={bytes},mode=0777"))
    }

    /// A file system that does not support direct I/O.
    pub fn without_direct_io() -> Mount {
        Mount::of_kind("ramfs", "mode=0777")
    }

    fn of_kind(kind: &str, options: &str) -> Mount {
        let mount = Mount {
            dir: folder(),
            kept: folder(),
        };
        let kept = mount.kept.path();
        run_ok("mount", [&"-t", &kind, &"-o", &options, &"vmsnap-test", &kept]);
        mount.come_back();
        mount
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves this many bytes free.
    pub fn leave(&self, bytes: u64) {
        let filler = self.make_room();
        let free = rustix::fs::statvfs(self.path()).expect("it is mounted");
        let taken = (free.f_bavail * free.f_frsize).checked_sub(bytes);
        let taken = taken.expect("at least this much is free");
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(filler, flags, 0, taken).expect("the file fits");
    }

    /// Frees the space that [`Mount::leave`] took. The file stays, empty: a removed one would keep
    /// its space while a process that was forked in another test still has it open.
    pub fn make_room(&self) -> fs::File {
        fs::File::create(self.path().join("filler")).expect("an empty file needs no space")
    }

    pub fn make_read_only(&self) {
        run_ok("mount", [&"-o", &"remount,ro", &self.kept.path()]);
    }

    pub fn make_writable(&self) {
        run_ok("mount", [&"-o", &"remount,rw", &self.kept.path()]);
    }

    /// Unmounts it while in use. Open files stay open, and the empty folder beneath becomes
    /// visible.
    pub fn vanish(&self) {
        run_ok("umount", [&"--lazy", &self.path()]);
    }

    /// Mounts it again with its content.
    pub fn come_back(&self) {
        run_ok("mount", [&"--bind", &self.kept.path(), &self.path()]);
    }
}

fn folder() -> tempfile::TempDir {
    // Accessible to all users, because QEMU may run as another user.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    let folder = owner::folder_on_disk("mount ");
    fs::set_permissions(folder.path(), open).expect("the folder is ours");
    folder
}

impl Drop for Mount {
    fn drop(&mut self) {
        for dir in [self.dir.path(), self.kept.path()] {
            // The file system may have vanished already.
            run("umount", &["--lazy".as_ref(), dir.as_os_str()]);
        }
    }
}
