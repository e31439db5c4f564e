//! The verbs on real domains: every restore point gives back its disks, whatever happens between
//! backups.

mod broken;
mod by_hand;
mod compare;
mod compressed;
mod define;
mod disks;
mod firmware;
mod forever;
mod in_place;
mod interrupted;
mod kinds;
mod names;
mod places_full;
mod random;
mod restarts;
pub mod rng;
mod story;
