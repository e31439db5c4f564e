//! Any bytes as the pages of a disk's map.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::repo::fuzzing::pages;

fuzz_target!(|bytes: &[u8]| pages(bytes));
