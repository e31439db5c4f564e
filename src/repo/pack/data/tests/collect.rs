//! Writers and collectors at the same time, on a store with a clock.
//!
//! * `clock`: the store, whose clock moves only on request, and which calls back before a call.
//! * `world`: restore points, as a repository keeps them.
//! * `steps`: one collection after another.
//! * `together`: a collector between any two calls of a writer or of another collector.
//! * `trouble`: failures at every call, and what makes a collector refuse.
//! * `check`, `rebuild`: the check of a repository as a whole, and the rebuild of its index.
//! * `random`: random writers, removals, collections and steps of the clock.

mod check;
mod clock;
mod random;
mod rebuild;
mod steps;
mod together;
mod trouble;
mod world;
