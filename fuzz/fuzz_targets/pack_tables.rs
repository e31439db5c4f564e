//! Any bytes as the table and the trailer of a pack, and an index object.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::fuzzing::tables;

fuzz_target!(|bytes: &[u8]| tables(bytes));
