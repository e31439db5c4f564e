//! Tests of the decisions about requests.

use proptest::prelude::*;

use super::*;
use crate::nbd::error::errno::*;

const SIZE: u64 = 100 << 20;
const ALL: Agreement = Agreement {
    export: 0,
    structured: true,
    allocation: true,
};
const PLAIN: Agreement = Agreement {
    export: 0,
    structured: false,
    allocation: false,
};

fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
    Request {
        flags,
        command,
        cookie: 9,
        offset,
        length,
    }
}

/// The error number of the refusal, or 0 if the request is carried out.
fn refused(request: Request, agreement: &Agreement) -> u32 {
    match judge(&request, SIZE, agreement) {
        Verdict::Do(Task::Refuse { cookie: 9, errno }, _) => errno,
        Verdict::Do(Task::Read { .. } | Task::Status { .. }, 0) => 0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_stay_within_the_disk_and_the_limits() {
    for (offset, length, errno) in [
        (0, 1, 0),
        (SIZE - 1, 1, 0),
        (SIZE - 1, 2, EINVAL),
        (SIZE, 1, EINVAL),
        (u64::MAX, u32::MAX, EINVAL),
        (0, 0, EINVAL),
        (0, MAX_READ, 0),
        (0, MAX_READ + 1, EINVAL),
    ] {
        let request = request(CMD_READ, 0, offset, length);
        assert_eq!(refused(request, &ALL), errno, "{offset} {length}");
        assert_eq!(refused(request, &PLAIN), errno, "{offset} {length}");
    }
    assert_eq!(refused(request(CMD_READ, CMD_FLAG_DF, 0, PIECE), &ALL), 0);
    assert_eq!(
        refused(request(CMD_READ, CMD_FLAG_DF, 0, PIECE + 1), &ALL),
        EOVERFLOW
    );
    assert_eq!(refused(request(CMD_READ, CMD_FLAG_DF, 0, 512), &PLAIN), EINVAL);
    assert_eq!(refused(request(CMD_READ, 1, 0, 512), &ALL), EINVAL);
}

#[test]
fn changes_are_refused_with_eperm() {
    for command in [CMD_TRIM, CMD_WRITE_ZEROES] {
        assert_eq!(refused(request(command, 1, 0, 512), &ALL), EPERM);
    }
    // The data of a write follow its request.
    let verdict = judge(&request(CMD_WRITE, 0, SIZE, 512), SIZE, &PLAIN);
    let task = Task::Refuse {
        cookie: 9,
        errno: EPERM,
    };
    assert_eq!(verdict, Verdict::Do(task, 512));
    let verdict = judge(&request(CMD_WRITE, 0, 0, MAX_READ + 1), SIZE, &ALL);
    assert_eq!(verdict, Verdict::HangUp);
    // Flush, cache, resize, and an unknown one.
    for command in [3, 5, 8, 4711] {
        assert_eq!(refused(request(command, 0, 0, 512), &ALL), EINVAL);
    }
    assert_eq!(judge(&request(CMD_DISC, 0, 0, 0), SIZE, &ALL), Verdict::Goodbye);
}

#[test]
fn a_status_needs_its_context() {
    let status = request(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 0, 512);
    assert_eq!(refused(status, &ALL), 0);
    assert_eq!(refused(status, &PLAIN), EINVAL);
    assert_eq!(
        refused(request(CMD_BLOCK_STATUS, CMD_FLAG_DF, 0, 512), &ALL),
        EINVAL
    );
    assert_eq!(refused(request(CMD_BLOCK_STATUS, 0, SIZE, 512), &ALL), EINVAL);
    assert_eq!(refused(request(CMD_BLOCK_STATUS, 0, 0, 0), &ALL), EINVAL);
}

/// The chunk at the front, as the client parses it, with its payload.
fn parsed(bytes: &[u8]) -> (Chunk, &[u8]) {
    let (magic, rest) = bytes.split_at(4);
    assert_eq!(magic, STRUCTURED_REPLY_MAGIC.to_be_bytes());
    let (head, payload) = rest.split_at(16);
    (parse_chunk(head).expect("a valid chunk"), payload)
}

#[test]
fn replies_are_what_the_client_understands() {
    let bytes = [&data_head(5, 4096, 3, false)[..], b"abc"].concat();
    let (chunk, payload) = parsed(&bytes);
    assert_eq!(
        (chunk.kind, chunk.done, chunk.cookie, chunk.length),
        (REPLY_OFFSET_DATA, false, 5, 11)
    );
    assert_eq!(parse_offset(payload).expect("an offset"), 4096);
    let bytes = hole(5, 4096, 1 << 31, true);
    let (chunk, payload) = parsed(&bytes);
    assert!(chunk.done);
    assert_eq!(parse_hole(payload).expect("a hole"), (4096, 1 << 31));
    let bytes = status(5, &[(512, true), (1024, false)]);
    let (chunk, payload) = parsed(&bytes);
    assert_eq!(
        (chunk.kind, chunk.length as usize),
        (REPLY_BLOCK_STATUS, payload.len())
    );
    assert_eq!(parse_context_id(payload).expect("an id"), CONTEXT_ID);
    let descriptors: Vec<_> = payload[4..]
        .chunks(8)
        .map(|bytes| parse_descriptor(bytes).expect("valid"))
        .collect();
    assert_eq!(descriptors, [(512, 3), (1024, 0)]);
    for errno in [EPERM, EIO, EINVAL, EOVERFLOW, ESHUTDOWN] {
        let bytes = error(5, errno, true);
        let (chunk, payload) = parsed(&bytes);
        assert!(chunk.done);
        let found = parse_error_chunk(chunk.kind, payload).expect("an error");
        assert_eq!(found.errno, errno);
        assert!(!found.message.is_empty());
        let bytes = error(5, errno, false);
        let found = parse_simple_reply(&bytes[4..]).expect("a reply");
        assert_eq!(found, SimpleReply { errno, cookie: 5 });
    }
}

proptest! {
    #[test]
    fn a_request_survives_its_encoding(
        (flags, command, cookie) in any::<(u16, u16, u64)>(),
        (offset, length) in any::<(u64, u32)>(),
    ) {
        let request = Request { flags, command, cookie, offset, length };
        let bytes = request.encode();
        prop_assert_eq!(Request::parse(&bytes).expect("valid"), request);
        prop_assert!(Request::parse(&bytes[1..]).is_err());
        prop_assert!(Request::parse(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn whatever_is_done_lies_within_the_disk(
        (flags, command) in (0u16..32, 0u16..10),
        (offset, length) in any::<(u64, u32)>(),
        size in any::<u64>(),
        (structured, allocation) in any::<(bool, bool)>(),
    ) {
        let agreement = Agreement { export: 0, structured, allocation };
        let request = Request { flags, command, cookie: 0, offset, length };
        if let Verdict::Do(Task::Read { offset, length, .. } | Task::Status { offset, length, .. }, dropped)
            = judge(&request, size, &agreement)
        {
            prop_assert!(length > 0 && u128::from(offset) + u128::from(length) <= u128::from(size));
            prop_assert_eq!(dropped, 0);
        }
    }
}
