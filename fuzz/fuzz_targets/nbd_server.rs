//! Feeds arbitrary bytes to the NBD server as a client's handshake and requests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::nbd::fuzzing::serve_script;

fuzz_target!(|bytes: &[u8]| {
    serve_script(bytes);
});
