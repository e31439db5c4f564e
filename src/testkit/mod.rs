//! Doubles for the tests: a whole simulated hypervisor whose disks are memory, and a monitor that records.

mod disk;
mod host;
mod recorder;

pub use disk::MemDisk;
pub use host::SimHost;
pub use recorder::Recorder;
