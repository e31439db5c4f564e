//! Test doubles: a simulated hypervisor with disks in memory, a repository and an object store in
//! memory, a monitor that records findings, and the death of the process or of the machine at any
//! step.

mod cached;
mod crash;
mod disk;
mod host;
mod memory;
mod objects;
mod recorder;

pub use cached::{cached_bytes, forget_cached};
pub use crash::{Blow, CrashHost, CrashStore, Fuse, clone_by_copying};
pub use disk::MemDisk;
pub use host::{SimGuest, SimHost};
pub use memory::MemoryRepository;
pub use objects::{MemoryObjects, ObjectTrouble};
#[cfg(feature = "object-store")]
pub use objects::{bucket, bucket_with};
pub use recorder::Recorder;

pub use crate::repo::SimulatedMap;
