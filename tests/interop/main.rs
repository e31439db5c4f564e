//! Our readers and writers beside those of the peers.
#![allow(clippy::disallowed_methods, reason = "tests start the peers' programs")]

mod qcow2;
mod qcow2_memory;
