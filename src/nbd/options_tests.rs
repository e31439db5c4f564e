//! Tests of the messages of the handshake.

use super::*;
use proptest::prelude::*;

#[test]
fn oldstyle_server_is_recognised() {
    let mut greeting = Vec::from(INIT_MAGIC.to_be_bytes());
    greeting.extend(OLDSTYLE_MAGIC.to_be_bytes());
    greeting.extend([0, 3]);
    assert!(matches!(
        parse_greeting(&greeting),
        Err(Error::Unsupported { .. })
    ));
}

#[test]
fn block_sizes_that_make_no_sense_are_refused() {
    let sizes = |minimum, preferred, maximum| {
        BlockSizes {
            minimum,
            preferred,
            maximum,
        }
        .checked()
    };
    assert!(sizes(1, 4096, 32 << 20).is_ok());
    assert!(sizes(65536, 65536, 65536).is_ok());
    assert!(matches!(sizes(0, 4096, 1 << 20), Err(Error::Protocol { .. })));
    assert!(matches!(sizes(3, 4096, 1 << 20), Err(Error::Protocol { .. })));
    assert!(matches!(
        sizes(131_072, 131_072, 1 << 20),
        Err(Error::Protocol { .. })
    ));
    assert!(matches!(sizes(4096, 512, 1 << 20), Err(Error::Protocol { .. })));
    assert!(matches!(sizes(512, 4096, 4096), Err(Error::Unsupported { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), reply: u32) {
        let _ = parse_greeting(&bytes);
        let _ = parse_option_reply(&bytes);
        let _ = parse_info(&bytes);
        let _ = parse_meta_context(&bytes);
        let _ = parse_export_name_reply(&bytes);
        prop_assert!(option_error_words(reply, &bytes).chars().count() < 600);
    }
}
