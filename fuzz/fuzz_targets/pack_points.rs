//! Any bytes as the object of a restore point, and a record about one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::fuzzing::points;

fuzz_target!(|bytes: &[u8]| points(bytes));
