//! The nouns, and decisions about them: no I/O, no clock, no libvirt.

pub mod block;
pub mod buffer;
pub mod chain;
pub mod checkpoint;
pub mod clusters;
pub mod compression;
pub mod domain;
pub mod eligibility;
pub mod extents;
pub mod file_name;
pub mod files_fault;
pub mod finding;
pub mod firmware;
pub mod in_place;
pub mod left_out;
pub mod level;
pub mod period;
pub mod pin;
pub mod qcow2;
pub(crate) mod random;
pub mod restore_point;
pub mod retention;
pub mod stop;
pub mod storage;
pub mod text;
pub mod tpm_state;
