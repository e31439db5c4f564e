//! A process killed, or a machine without power, at every step of a backup, comparison, prune, repair or restore.

mod backup;
mod compare;
mod power;
mod prune;
mod restore;
mod world;
