//! Lets the current thread work as the user `nobody` for a while.

use std::fs;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::{Error, Result};

/// `nobody` and `nogroup`: the kernel uses these numbers for owners that it cannot map.
const NOBODY: u32 = 65534;

/// Makes its thread, and the threads that this thread starts, work as the user `nobody`.
///
/// When this value is dropped, its thread is root again.
pub(crate) struct Nobody {
    groups: Vec<Gid>,
    /// Not `Send`, because only the thread that has changed its user can change back.
    _stays: PhantomData<*const ()>,
}

impl Nobody {
    /// Changes from root to `nobody`, with the right to use KVM if a group has it. `folder` will
    /// belong to `nobody`.
    pub(crate) fn become_with(folder: &Path) -> Result<Nobody> {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        let failed = |error: rustix::io::Errno| Error::Nobody(error.into());
        rustix::fs::chown(folder, Some(uid), Some(gid)).map_err(failed)?;
        let groups = rustix::process::getgroups().map_err(failed)?;
        let nobody = Nobody {
            groups,
            _stays: PhantomData,
        };
        let node = fs::metadata("/dev/kvm").ok();
        let kvm = node.map(|node| Gid::from_raw(node.gid()));
        let kvm: Vec<Gid> = kvm.into_iter().filter(|group| !group.is_root()).collect();
        set_thread_groups(&kvm).map_err(failed)?;
        set_thread_res_gid(gid, gid, Gid::ROOT).map_err(failed)?;
        // Root stays the saved user, so that this thread can change back.
        set_thread_res_uid(uid, uid, Uid::ROOT).map_err(failed)?;
        match fs::read_dir(folder) {
            Ok(_) => Ok(nobody),
            Err(source) => Err(Error::Unreachable {
                path: folder.to_owned(),
                source,
            }),
        }
    }
}

impl Drop for Nobody {
    fn drop(&mut self) {
        // These calls cannot fail for a thread whose saved user is root.
        let _ = set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT);
        let _ = set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT);
        let _ = set_thread_groups(&self.groups);
    }
}
