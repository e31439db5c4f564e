//! Feeds arbitrary bytes to the reply decoder. The first byte chooses simple or structured replies,
//! the second one the length of the pieces in which the stream arrives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::nbd::fuzzing::decode_script;

fuzz_target!(|bytes: &[u8]| {
    if let [kind, piece, stream @ ..] = bytes {
        let _ = decode_script(stream, kind % 2 == 1, usize::from(*piece) + 1);
    }
});
