//! The output of the verbs: lines for people and documents for programs.

pub mod backup;
pub mod compare;
pub mod document;
pub mod lines;
pub mod list;
#[cfg(test)]
mod page;
mod parts;
pub mod restore;
#[cfg(test)]
mod samples;
pub mod scrub;
pub mod status;
pub mod status_document;
pub mod verify;
