//! Death at every step: of a backup, a prune, a healing, a restore; of the process, and of the machine.

mod backup;
mod power;
mod restore;
mod world;
