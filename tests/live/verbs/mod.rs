//! The verbs on real domains: whatever happens between the backups, every restore point gives back its moment.

mod broken;
mod by_hand;
mod compare;
mod define;
mod disks;
mod interrupted;
mod kinds;
mod names;
mod places_full;
mod random;
mod restarts;
pub mod rng;
mod story;
