//! Feeds arbitrary bytes to the NBD handshake as a server's answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::nbd::fuzzing::negotiate_with_script;

fuzz_target!(|bytes: &[u8]| {
    let _ = negotiate_with_script(bytes, "vda", &["base:allocation", "qemu:dirty-bitmap:b"]);
});
