//! Tests of the whole data path, on an object store in memory that can give trouble.
//!
//! * `store`: the object store.
//! * `lab`: a repository, and disks that are written to it and compared.
//! * `writing`: what is written can be read.
//! * `damage`: changed, missing and exchanged objects.
//! * `trouble`: a store that fails.
//! * `local`: the local cache of the index.
//! * `golden`: the format.
//! * `collect`: writers and collectors at the same time.

mod collect;
mod damage;
mod golden;
mod lab;
mod local;
mod store;
mod trouble;
mod writing;
