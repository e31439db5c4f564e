//! A process killed, or a machine without power, at every step of a backup, prune, repair or restore.

mod backup;
mod power;
mod restore;
mod world;
