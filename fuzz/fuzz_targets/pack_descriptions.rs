//! Any bytes as the description of a pack repository and of its key slots.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::fuzzing::descriptions;

fuzz_target!(|bytes: &[u8]| descriptions(bytes));
