//! Any bytes as a name, header, definition or log of virtnbdbackup.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::set_fuzzing::texts;

fuzz_target!(|bytes: &[u8]| texts(bytes));
