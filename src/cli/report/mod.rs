//! The output of the verbs: lines for people and documents for programs.

pub mod backup;
pub mod boot;
pub mod boot_proof;
pub mod collect;
pub mod compare;
pub(crate) mod copy;
pub mod document;
pub mod files;
pub mod in_place;
pub mod integrity;
pub mod lines;
pub mod list;
pub mod mount;
pub mod pack;
#[cfg(test)]
mod page;
mod parts;
pub mod pin;
pub mod prune;
pub mod restore;
#[cfg(test)]
mod samples;
pub mod scrub;
pub mod serve;
pub mod status;
pub mod status_document;
pub mod verify;
