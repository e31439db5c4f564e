//! Any bytes as the replies of a server in transmission. The first byte chooses between simple and structured replies, the second one how the stream is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnap::nbd::fuzzing::decode_script;

fuzz_target!(|bytes: &[u8]| {
    if let [kind, piece, stream @ ..] = bytes {
        let _ = decode_script(stream, kind % 2 == 1, usize::from(*piece) + 1);
    }
});
