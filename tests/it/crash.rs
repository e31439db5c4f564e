//! A process is killed, or a machine loses power, at every step of a backup, comparison, prune,
//! repair, restore or boot.

mod backup;
mod boot;
mod boot_proof;
mod compare;
mod in_place;
mod merge;
mod pools;
mod power;
mod prune;
mod restore;
pub(crate) mod world;
