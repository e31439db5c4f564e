//! The death of the process, or of the machine, at any durable step.
//!
//! * `fuse`: counts the steps and blows at one of them.
//! * `store`: a [`crate::io::Store`] that dies with it.
//! * `host`: a [`crate::host::Host`] that dies with it, together with its jobs.
//! * `disk`: what of the files would survive a power cut.

mod disk;
mod fuse;
mod host;
mod store;

pub use fuse::{Blow, Fuse};
pub use host::CrashHost;
pub use store::CrashStore;
