//! Tests of the messages of the transmission.

use super::*;
use proptest::prelude::*;

#[test]
fn a_request_is_laid_out_as_the_protocol_says() {
    let request = Request {
        flags: CMD_FLAG_DF,
        command: CMD_BLOCK_STATUS,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1112_1314_1516_1718,
        length: 0x2122_2324,
    };
    assert_eq!(
        request.encode(),
        [
            0x25, 0x60, 0x95, 0x13, 0, 4, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16,
            0x17, 0x18, 0x21, 0x22, 0x23, 0x24
        ]
    );
}

fn chunk(flags: u16, kind: u16, length: u32) -> Vec<u8> {
    let mut bytes = Vec::from(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(7u64.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

#[test]
fn a_chunk_has_a_length_that_fits_its_kind() {
    for (flags, kind, length) in [
        (1, REPLY_NONE, 0),
        (0, REPLY_OFFSET_DATA, 9),
        (1, REPLY_OFFSET_HOLE, 12),
        (0, REPLY_BLOCK_STATUS, 12),
        (0, REPLY_BLOCK_STATUS, 4 + 8 * 131_072),
        (0, REPLY_ERROR, 6),
        (0, REPLY_ERROR_OFFSET, 14),
        (0, REPLY_ERROR_BIT | 99, 6),
    ] {
        assert!(
            parse_chunk(&chunk(flags, kind, length)).is_ok(),
            "{kind} {length}"
        );
    }
    for (flags, kind, length) in [
        (0, REPLY_NONE, 0),
        (1, REPLY_NONE, 1),
        (0, REPLY_OFFSET_DATA, 8),
        (0, REPLY_OFFSET_HOLE, 13),
        (0, REPLY_BLOCK_STATUS, 4),
        (0, REPLY_BLOCK_STATUS, 13),
        (0, REPLY_BLOCK_STATUS, u32::MAX - 3),
        (0, REPLY_ERROR, 5),
        (0, REPLY_ERROR, u32::MAX),
        (0, REPLY_ERROR_OFFSET, 13),
        (0, 3, 8),
    ] {
        assert!(
            parse_chunk(&chunk(flags, kind, length)).is_err(),
            "{kind} {length}"
        );
    }
}

#[test]
fn an_error_message_is_cut_where_its_length_says() {
    let mut payload = vec![0, 0, 0, 5, 0, 3];
    payload.extend(b"bad");
    payload.extend(4096u64.to_be_bytes());
    let error = parse_error_chunk(REPLY_ERROR_OFFSET, &payload).expect("a valid error");
    assert_eq!(
        (error.errno, error.message.as_str(), error.offset),
        (5, "bad", Some(4096))
    );
    payload[5] = 200;
    assert!(parse_error_chunk(REPLY_ERROR_OFFSET, &payload).is_err());
}

#[test]
fn a_servers_words_cannot_steer_the_terminal() {
    assert_eq!(printable(b"\x1b[2Jgone\n\xff"), "[2Jgone \u{fffd}");
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind: u16) {
        let _ = parse_simple_reply(&bytes);
        let _ = parse_offset(&bytes);
        let _ = parse_hole(&bytes);
        let _ = parse_context_id(&bytes);
        let _ = parse_descriptor(&bytes);
        if let Ok(chunk) = parse_chunk(&bytes) {
            prop_assert!(chunk.kind == REPLY_OFFSET_DATA || chunk.length <= MAX_STATUS_PAYLOAD + 4);
        }
        if let Ok(error) = parse_error_chunk(kind, &bytes) {
            prop_assert!(error.errno != 0 && error.message.chars().count() <= 512);
        }
    }
}
