//! A running system libvirtd for the tests: the machine's own if it answers, otherwise one that
//! lives as long as its users.
//!
//! File locks count the users. Test threads and test processes share one daemon, and a killed test
//! process loses its lease. There are three lock files. A process that holds the lease file's lock,
//! shared or exclusive, may use the daemon. The holder of the gate file's lock may start and stop
//! it. The holder of the turn file's lock is the next to get a lease, so that an exclusive one is
//! not overtaken for ever. The lease is always taken before the gate, and no process waits for a
//! lease while it holds the gate. The last user removes the files with their folder, so a lock
//! counts only if its file still has its name.

mod domain;
mod home;
#[cfg(test)]
mod proofs;
mod start;

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

pub use domain::TestDomain;
pub use start::Crash;

use crate::leftovers::{self, LAB_DIR};
use crate::process::{Finished, command, try_run, wait_until};

/// The connection to the daemon.
pub const URI: &str = "qemu:///system";

/// The time that one user may wait for others: longer than any test runs.
const LEASE_DEADLINE: Duration = Duration::from_secs(1200);

/// The limit for one virsh call. The first call that probes QEMU takes many seconds.
const VIRSH_DEADLINE: Duration = Duration::from_secs(180);

/// The right to use the daemon. If the lab has started the daemon, it stops when the last lease of
/// all test processes is dropped.
#[derive(Clone)]
pub struct Daemon {
    lease: Arc<Lease>,
}

struct Lease {
    file: File,
    exclusive: bool,
}

impl Daemon {
    /// A lease that is shared with other tests. Panics if there is no daemon. A test takes only one
    /// lease: a second one could wait for a process that waits for the end of the first one.
    pub fn acquire() -> Daemon {
        Daemon::lease(false)
    }

    /// An exclusive lease for tests that restart or stop the daemon; waits for other tests to end.
    /// A test that holds another lease would wait for itself.
    pub fn exclusive() -> Daemon {
        Daemon::lease(true)
    }

    /// Whether the lab has started the daemon, which is required to restart or stop it.
    pub fn is_ours(&self) -> bool {
        start::is_ours()
    }

    /// Stops the daemon and starts it again. Domains and their jobs continue. Panics without an
    /// exclusive lease or if the daemon is not the lab's.
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// Starts the daemon after [`Daemon::stop`].
    pub fn start(&self) {
        let _gate = gate();
        start::ensure_running();
    }

    /// Stops the daemon. Panics like [`Daemon::restart`].
    pub fn stop(&self) {
        assert!(self.lease.exclusive, "other tests may be using the daemon");
        let _gate = gate();
        assert!(
            start::is_ours(),
            "the libvirtd of this machine was not started by the lab, which must not stop it"
        );
        start::stop().expect("the daemon stops");
    }

    /// Kills the daemon. Panics like [`Daemon::restart`].
    pub fn kill(&self) {
        assert!(self.lease.exclusive, "other tests may be using the daemon");
        let _gate = gate();
        assert!(
            start::is_ours(),
            "the libvirtd of this machine was not started by the lab, which must not kill it"
        );
        start::kill();
    }

    /// The deaths of libvirtd by signals that the lab has not sent, oldest first.
    pub fn crashes(&self) -> Vec<Crash> {
        start::crashes()
    }

    /// Starts the daemon if it has died.
    pub fn revive(&self) {
        self.start();
    }

    /// The `type` of a domain: `kvm` if QEMU under this daemon can use it, otherwise `qemu` (TCG).
    pub fn virt_type(&self) -> &'static str {
        static VIRT_TYPE: OnceLock<&str> = OnceLock::new();
        VIRT_TYPE.get_or_init(|| if domain::kvm_works(self) { "kvm" } else { "qemu" })
    }

    /// Runs virsh on this daemon and returns the result, even of a failure.
    pub fn try_virsh<A: AsRef<str>>(&self, args: &[A]) -> Finished {
        virsh(args)
    }

    /// Runs virsh on this daemon and returns its output; panics if it fails.
    pub fn virsh<A: AsRef<str> + std::fmt::Debug>(&self, args: &[A]) -> String {
        let finished = virsh(args);
        assert!(finished.ok(), "virsh {args:?} failed: {finished:#?}");
        finished.stdout
    }

    fn lease(exclusive: bool) -> Daemon {
        static SWEPT: Once = Once::new();
        let turn = lock_file("turn");
        wait_for_lock(|| turn.try_lock());
        let file = loop {
            let file = lock_file("lease");
            match exclusive {
                true => wait_for_lock(|| file.try_lock()),
                false => wait_for_lock(|| file.try_lock_shared()),
            }
            if is_current(&file, "lease") {
                break file;
            }
        };
        drop(turn);
        // From here on a panic releases the lease.
        let daemon = Daemon {
            lease: Arc::new(Lease { file, exclusive }),
        };
        let gate = gate();
        start::ensure_running();
        SWEPT.call_once(|| leftovers::end(&leftovers::of_the_gone()));
        drop(gate);
        daemon
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _gate = gate();
        // An open file has one lock: this makes our shared lock exclusive if no other process has
        // one.
        let last = self.file.unlock().is_ok() && self.file.try_lock().is_ok();
        if !last {
            return;
        }
        let stopped = if start::is_ours() { start::stop() } else { Ok(()) };
        match stopped {
            // A process that waits for a lock in this folder opens the file again.
            Ok(()) => drop(std::fs::remove_dir_all(LAB_DIR)),
            // No panic, because the test may be panicking already. The daemon ends by its own
            // timeout.
            Err(message) => eprintln!("the lab's daemon could not be stopped: {message}"),
        }
    }
}

fn virsh<A: AsRef<str>>(args: &[A]) -> Finished {
    let mut words = vec!["--connect", URI];
    words.extend(args.iter().map(AsRef::as_ref));
    try_run(command("virsh", &words), VIRSH_DEADLINE)
}

/// Tries until the lock is acquired; panics at the deadline.
fn wait_for_lock(mut attempt: impl FnMut() -> Result<(), TryLockError>) {
    let got = wait_until(LEASE_DEADLINE, || match attempt() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => panic!("cannot lock the lab: {error}"),
    });
    assert!(got, "another test run has kept the lab for {LEASE_DEADLINE:?}");
}

/// The right to start and stop the daemon; released when the file is closed.
pub fn gate() -> File {
    loop {
        let file = lock_file("gate");
        file.lock().expect("the gate can be locked");
        if is_current(&file, "gate") {
            return file;
        }
    }
}

/// Whether the lab's file with this name is still the same file.
fn is_current(file: &File, name: &str) -> bool {
    let ours = file.metadata().expect("an open file can be looked at");
    std::fs::metadata(Path::new(LAB_DIR).join(name)).is_ok_and(|now| now.ino() == ours.ino())
}

fn lock_file(name: &str) -> File {
    assert!(
        rustix::process::getuid().is_root(),
        "the live tests on libvirtd have to be run by root"
    );
    let dir = Path::new(LAB_DIR);
    loop {
        std::fs::create_dir_all(dir).expect("the lab's folder can be made");
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        match options.open(dir.join(name)) {
            Ok(file) => return file,
            // The last user has just removed the folder.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => panic!("the lab's lock file cannot be opened: {error}"),
        }
    }
}
