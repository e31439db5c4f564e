//! Any bytes as records of sessions and of condemned packs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::fuzzing::sessions;

fuzz_target!(|bytes: &[u8]| sessions(bytes));
