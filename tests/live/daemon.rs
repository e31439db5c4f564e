//! A running system libvirtd for the tests: the machine's own if it answers, else one that lives as long as its users.
//!
//! Users are counted by file locks, so that test threads and test processes share one daemon, and a test
//! process that is killed takes its share with it. There are three files: who holds the lease file's lock
//! (shared, or alone) may use the daemon; who holds the gate file's lock may start and stop it; who holds the turn
//! file's lock is the next to get a lease, so that one who wants it alone is not overtaken for ever. The lease
//! is always taken before the gate, and no process waits for a lease while it holds the gate. The last user removes the
//! files with their folder, so a lock counts only if its file is still the one of that name.

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

/// How long one user may wait for others: longer than any test runs.
const LEASE_DEADLINE: Duration = Duration::from_secs(1200);

/// How long one virsh call may take. The first call that looks into QEMU takes many seconds.
const VIRSH_DEADLINE: Duration = Duration::from_secs(180);

/// The right to use the daemon. The last one that is dropped, over all test processes, stops the daemon if the lab has started it.
#[derive(Clone)]
pub struct Daemon {
    lease: Arc<Lease>,
}

struct Lease {
    file: File,
    exclusive: bool,
}

impl Daemon {
    /// A daemon to be shared with other tests. Panics when none can be had. One lease is enough for a test: a second one would wait for
    /// whoever waits for the first one to end.
    pub fn acquire() -> Daemon {
        Daemon::lease(false)
    }

    /// A daemon that no other test uses, for those that restart or stop it; waits for the others to end.
    /// A test that holds another lease waits for itself.
    pub fn exclusive() -> Daemon {
        Daemon::lease(true)
    }

    /// Whether the lab has started the daemon: only then may it be restarted and stopped.
    pub fn is_ours(&self) -> bool {
        start::is_ours()
    }

    /// Stops the daemon and starts it again. Domains and their jobs go on. Panics without an exclusive lease or when the
    /// daemon is not the lab's.
    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    /// Starts it after [`Daemon::stop`].
    pub fn start(&self) {
        let _gate = gate();
        start::ensure_running();
    }

    /// Stops the daemon. Panics as [`Daemon::restart`] does.
    pub fn stop(&self) {
        assert!(self.lease.exclusive, "other tests may be using the daemon");
        let _gate = gate();
        assert!(
            start::is_ours(),
            "the libvirtd of this machine is not the lab's to stop"
        );
        start::stop().expect("the daemon stops");
    }

    /// Kills the daemon. Panics as [`Daemon::restart`] does.
    pub fn kill(&self) {
        assert!(self.lease.exclusive, "other tests may be using the daemon");
        let _gate = gate();
        assert!(
            start::is_ours(),
            "the libvirtd of this machine is not the lab's to kill"
        );
        start::kill();
    }

    /// The deaths of libvirtd by signals that the lab has not sent, in the order in which they happened.
    pub fn crashes(&self) -> Vec<Crash> {
        start::crashes()
    }

    /// Starts the daemon if it has died.
    pub fn revive(&self) {
        self.start();
    }

    /// `kvm` where the QEMU of this daemon can use it, else `qemu` (TCG): the `type` of a domain.
    pub fn virt_type(&self) -> &'static str {
        static VIRT_TYPE: OnceLock<&str> = OnceLock::new();
        VIRT_TYPE.get_or_init(|| if domain::kvm_works(self) { "kvm" } else { "qemu" })
    }

    /// Runs virsh on this daemon, whatever comes of it.
    pub fn try_virsh<A: AsRef<str>>(&self, args: &[A]) -> Finished {
        virsh(args)
    }

    /// Runs virsh on this daemon and gives its output; panics when it fails.
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
        // From here on a panic gives the lease back.
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
        // An open file has one lock: this makes our shared lock exclusive if no other process has one.
        let last = self.file.unlock().is_ok() && self.file.try_lock().is_ok();
        if !last {
            return;
        }
        let stopped = if start::is_ours() { start::stop() } else { Ok(()) };
        match stopped {
            // Who waits for a lock in it looks again.
            Ok(()) => drop(std::fs::remove_dir_all(LAB_DIR)),
            // Not a panic: this may run while a test panics. The daemon ends by its own timeout.
            Err(message) => eprintln!("the lab's daemon could not be stopped: {message}"),
        }
    }
}

fn virsh<A: AsRef<str>>(args: &[A]) -> Finished {
    let mut words = vec!["--connect", URI];
    words.extend(args.iter().map(AsRef::as_ref));
    try_run(command("virsh", &words), VIRSH_DEADLINE)
}

/// Tries until it is there; panics at the deadline.
fn wait_for_lock(mut attempt: impl FnMut() -> Result<(), TryLockError>) {
    let got = wait_until(LEASE_DEADLINE, || match attempt() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => panic!("cannot lock the lab: {error}"),
    });
    assert!(got, "another test run has kept the lab for {LEASE_DEADLINE:?}");
}

/// The right to start and stop; given back when the file is closed.
pub fn gate() -> File {
    loop {
        let file = lock_file("gate");
        file.lock().expect("the gate can be locked");
        if is_current(&file, "gate") {
            return file;
        }
    }
}

/// Whether the lab's file of that name still is this one.
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
