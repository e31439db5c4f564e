//! Any bytes as the stored form of a block and of a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::fuzzing::sealed;

fuzz_target!(|bytes: &[u8]| sealed(bytes));
