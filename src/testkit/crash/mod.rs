//! Simulates the death of the process or of the machine at any durable step.
//!
//! * `fuse`: counts the steps and blows at one of them.
//! * `store`: a [`crate::io::Store`] that dies with its process.
//! * `host`: a [`crate::host::Host`] whose client dies. Its jobs survive.
//! * `rewrite`: its jobs that write to disks in place.
//! * `trial`: its domains that were started from a restore point.
//! * `disk`: models what a power cut leaves of the files.

mod disk;
mod fuse;
mod host;
mod rewrite;
mod store;
mod trial;

pub use fuse::{Blow, Fuse};
pub use host::CrashHost;
pub use store::{CrashStore, clone_by_copying};
