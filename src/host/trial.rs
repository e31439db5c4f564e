//! Trial domains: domains that are started from a restore point.
//!
//! They have overlays over disks that vmsnap serves, so they need vmsnap until their disks have
//! been pulled, or until they end.

use std::path::Path;
use std::time::Duration;

use super::Result;
use crate::model::guest::GuestFacts;

/// Starts and finds trial domains.
pub trait Trials: Send + Sync {
    /// Returns the user and the group as which QEMU will run; `None` if they are unknown, or the
    /// same as those of this process. They need access to sockets and images.
    ///
    /// # Errors
    /// [`super::HostError::NotHere`] if the hypervisor is on another machine, and a refusal if this
    /// process cannot give that user access.
    fn owner(&self) -> Result<Option<(u32, u32)>>;

    /// Starts a new transient domain.
    ///
    /// # Errors
    /// A domain of that name or UUID exists, or the hypervisor refuses the domain. Then nothing
    /// runs.
    fn start(&self, xml: &str, life: TrialLife) -> Result<Box<dyn Trial>>;

    /// Finds the running trial domain with this UUID.
    fn find(&self, uuid: &str) -> Result<Option<Box<dyn Trial>>>;
}

/// When a trial domain ends at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialLife {
    /// With the connection that started it: when this process dies, the hypervisor ends the domain.
    OfProcess,
    /// When it is ended.
    OfItself,
}

/// A trial domain that has been started.
pub trait Trial: Send + Sync {
    /// Returns its present state.
    fn state(&self) -> Result<TrialState>;

    /// Begins to pull a disk: to copy all data into its overlay that the overlay lacks. The guest
    /// goes on.
    fn begin_pull(&self, target: &str) -> Result<()>;

    /// Returns how far the pull of a disk into this overlay is.
    fn pull(&self, target: &str, overlay: &Path) -> Result<Pull>;

    /// Brings everything that QEMU has written to the disks to stable storage. Returns false if
    /// that is not possible now, because the guest is paused.
    fn flush(&self) -> Result<bool>;

    /// Makes the domain persistent, with this definition for its next start. A domain that is
    /// persistent already stays as it is.
    fn keep(&self, xml: &str) -> Result<()>;

    /// Ends the domain at once, without asking the guest. A domain that has ended is no error.
    fn end(&self) -> Result<()>;

    /// Whether the guest agent answers within this time. No agent, or one that is not connected
    /// yet, is no error.
    fn agent_answers(&self, limit: Duration) -> Result<bool>;

    /// Returns what the guest agent reports; `None` if it does not answer within this time.
    fn guest_facts(&self, limit: Duration) -> Result<Option<GuestFacts>>;

    /// Starts a program in the guest: its path and its arguments. Returns the number by which
    /// [`Trial::guest_exit`] knows it.
    ///
    /// # Errors
    /// The agent does not answer within this time, or it refuses.
    fn run_in_guest(&self, command: &[String], limit: Duration) -> Result<u64>;

    /// Returns how a program in the guest has ended; `None` if it still runs.
    fn guest_exit(&self, number: u64, limit: Duration) -> Result<Option<GuestExit>>;

    /// Returns a picture of the first screen, in the format that the hypervisor uses (PPM or PNG).
    ///
    /// # Errors
    /// The domain has no screen, or the picture cannot be read.
    fn screenshot(&self) -> Result<Vec<u8>>;
}

/// How a program in a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// With this code.
    Code(i64),
    /// By this signal, or by an exception of Windows.
    Signal(i64),
}

/// The state of a trial domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialState {
    /// The guest runs, or is paused by somebody.
    Running,
    /// A disk error has paused the guest.
    Stuck,
    /// It has ended.
    Ended,
}

/// How far the pull of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// At work.
    Active {
        /// The number of bytes that are done.
        done: u64,
        /// The number of bytes at the end.
        total: u64,
    },
    /// The overlay is an image of its own now.
    Done,
    /// No pull is at work, and the overlay still needs the served disk.
    Failed,
}
