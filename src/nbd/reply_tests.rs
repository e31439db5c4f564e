//! Tests of the reply decoder.

use super::super::open_request::{Body, MAX_RUNS};
use super::wire::*;
use super::*;
use crate::model::extents::Run;
use proptest::prelude::*;

fn chunk(done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes.extend(u16::from(done).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn data(done: bool, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(
        done,
        REPLY_OFFSET_DATA,
        cookie,
        &[&offset.to_be_bytes(), bytes].concat(),
    )
}

fn hole(done: bool, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let payload = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    chunk(done, REPLY_OFFSET_HOLE, cookie, &payload)
}

fn status(done: bool, cookie: u64, context: u32, runs: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = Vec::from(context.to_be_bytes());
    for (length, flags) in runs {
        payload.extend(length.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    chunk(done, REPLY_BLOCK_STATUS, cookie, &payload)
}

fn error(done: bool, kind: u16, cookie: u64, errno: u32, message: &str, tail: &[u8]) -> Vec<u8> {
    let length = (message.len() as u16).to_be_bytes();
    let payload = [&errno.to_be_bytes()[..], &length, message.as_bytes(), tail].concat();
    chunk(done, kind, cookie, &payload)
}

fn simple(errno: u32, cookie: u64, bytes: &[u8]) -> Vec<u8> {
    let head = [SIMPLE_REPLY_MAGIC.to_be_bytes(), errno.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), bytes].concat()
}

/// A decoder that waits for a read of 16 bytes at 4096 (cookie 1), a read of 8 bytes at 0
/// (cookie 2) and a status of 1 GiB at 0 (cookie 3). Buffers are filled with 0xee.
fn decoder(structured: bool) -> Decoder {
    let mut decoder = Decoder::new(structured, vec![5, 6]);
    for (cookie, offset, length) in [(1, 4096, 16), (2, 0, 8)] {
        let mut buffer = Buffer::alone(4096);
        buffer.fill(0xee);
        decoder.expect(cookie, offset, length, Asked::Read(buffer));
    }
    decoder.expect(3, 0, 1 << 30, Asked::Status);
    decoder
}

fn fed(structured: bool, bytes: &[Vec<u8>]) -> Result<Vec<Answer>> {
    let mut decoder = decoder(structured);
    decoder.feed(&bytes.concat())?;
    Ok(std::iter::from_fn(|| decoder.answer()).collect())
}

fn read_bytes(answer: Answer) -> Vec<u8> {
    let length = answer.length as usize;
    match answer.into_body().expect("no error") {
        Body::Read(buffer) => buffer[..length].to_vec(),
        Body::Status(_) | Body::Done(_) => panic!("not a read"),
    }
}

fn runs_of(answer: Answer) -> Vec<Vec<(u64, u32)>> {
    match answer.into_body().expect("no error") {
        Body::Read(_) | Body::Done(_) => panic!("not a status"),
        Body::Status(contexts) => {
            let pairs = |runs: Vec<Run>| runs.iter().map(|run| (run.length, run.flags)).collect();
            contexts.into_iter().map(pairs).collect()
        }
    }
}

#[test]
fn replies_come_in_any_order_with_their_chunks_mixed() {
    let mut answers = fed(
        true,
        &[
            data(false, 1, 4104, b"BBBB"),
            data(true, 2, 0, b"second!!"),
            hole(false, 1, 4108, 4),
            data(false, 1, 4096, b"AAAAAAAA"),
            chunk(true, REPLY_NONE, 1, &[]),
        ],
    )
    .expect("valid replies");
    assert_eq!(
        answers.iter().map(|answer| answer.cookie).collect::<Vec<_>>(),
        [2, 1]
    );
    assert_eq!(read_bytes(answers.remove(0)), b"second!!");
    assert_eq!(read_bytes(answers.remove(0)), b"AAAAAAAABBBB\0\0\0\0");
}

#[test]
fn simple_replies_bring_data_when_structured_ones_were_refused() {
    let mut answers = fed(
        false,
        &[simple(0, 2, b"12345678"), simple(5, 1, b""), simple(95, 3, b"")],
    )
    .expect("valid replies");
    assert_eq!(read_bytes(answers.remove(0)), b"12345678");
    let error = answers.remove(0).into_body().expect_err("an error");
    assert!(
        matches!(
            error,
            Error::Server {
                errno: 5,
                offset: 4096,
                length: 16,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(matches!(
        answers.remove(0).into_body(),
        Err(Error::Server { errno: 95, .. })
    ));
}

#[test]
fn error_chunk_says_where_and_why() {
    let answers = fed(
        true,
        &[
            data(false, 1, 4096, &[1; 16]),
            error(
                false,
                REPLY_ERROR_OFFSET,
                1,
                5,
                "bad sector",
                &4100u64.to_be_bytes(),
            ),
            chunk(true, REPLY_NONE, 1, &[]),
        ],
    );
    let error = answers
        .expect("a valid reply")
        .remove(0)
        .into_body()
        .expect_err("an error");
    assert_eq!(
        error.to_string(),
        "the NBD server could not read 16 bytes at offset 4096 (error at offset 4100): bad sector: \
         input/output error (EIO)"
    );
}

#[test]
fn an_error_of_an_unknown_kind_is_an_error() {
    let answers = fed(
        true,
        &[error(true, REPLY_ERROR_BIT | 77, 3, 22, "odd", b"and more")],
    );
    let error = answers.expect("a valid reply").remove(0).into_body();
    assert!(matches!(error, Err(Error::Server { errno: 22, .. })), "{error:?}");
}

#[test]
fn each_context_has_its_own_runs_and_equal_neighbours_merge() {
    let mut answers = fed(
        true,
        &[
            status(false, 3, 6, &[(4096, 1), (4096, 1), (512, 0)]),
            status(true, 3, 5, &[(1 << 30, 3)]),
        ],
    )
    .expect("a valid reply");
    assert_eq!(
        runs_of(answers.remove(0)),
        [vec![(1 << 30, 3)], vec![(8192, 1), (512, 0)]]
    );
}

#[test]
fn status_beyond_the_request_is_left_out() {
    let mut answers = fed(
        true,
        &[
            status(false, 3, 5, &[(1 << 20, 0), (u32::MAX, 3), (4096, 0)]),
            status(true, 3, 6, &[(1 << 30, 0), (1 << 30, 1)]),
        ],
    )
    .expect("a valid reply");
    let rest = (1 << 30) - (1 << 20);
    assert_eq!(
        runs_of(answers.remove(0)),
        [vec![(1 << 20, 0), (rest, 3)], vec![(1 << 30, 0)]]
    );
}

#[test]
fn more_runs_than_are_kept_are_cut_off() {
    let many: Vec<(u32, u32)> = (0..MAX_RUNS as u32 + 10).map(|index| (512, index % 2)).collect();
    let mut answers = fed(
        true,
        &[status(false, 3, 5, &many), status(true, 3, 6, &[(512, 0)])],
    )
    .expect("valid");
    let runs = runs_of(answers.remove(0));
    assert_eq!(runs[0].len(), MAX_RUNS);
}

#[test]
fn what_the_protocol_forbids_is_refused() {
    let cases = [
        ("an unknown magic", true, vec![vec![0; 4]]),
        ("an unknown cookie", true, vec![data(true, 99, 0, &[0; 8])]),
        (
            "an unknown cookie of a simple reply",
            false,
            vec![simple(0, 99, b"")],
        ),
        (
            "a chunk that was not negotiated",
            false,
            vec![data(true, 2, 0, &[0; 8])],
        ),
        (
            "a simple reply to a structured read",
            true,
            vec![simple(0, 2, &[0; 8])],
        ),
        ("a simple success of a status", false, vec![simple(0, 3, &[])]),
        ("a part missing", true, vec![data(true, 2, 0, &[0; 7])]),
        ("nothing at all", true, vec![chunk(true, REPLY_NONE, 2, &[])]),
        (
            "data twice",
            true,
            vec![data(false, 2, 0, &[0; 8]), data(true, 2, 4, &[0; 1])],
        ),
        (
            "data before the request",
            true,
            vec![data(true, 1, 4095, &[0; 16])],
        ),
        (
            "data after the request",
            true,
            vec![data(true, 1, 4097, &[0; 16])],
        ),
        ("data far away", true, vec![data(true, 1, u64::MAX, &[0; 16])]),
        ("a hole of nothing", true, vec![hole(false, 1, 4096, 0)]),
        ("a hole of 4 GiB", true, vec![hole(true, 1, 4096, u32::MAX)]),
        ("a status of a read", true, vec![status(true, 1, 5, &[(16, 0)])]),
        ("data of a status", true, vec![data(true, 3, 0, &[0; 8])]),
        ("a context missing", true, vec![status(true, 3, 5, &[(512, 0)])]),
        (
            "a context twice",
            true,
            vec![status(false, 3, 5, &[(512, 0)]), status(true, 3, 5, &[(512, 0)])],
        ),
        ("an unknown context", true, vec![status(true, 3, 7, &[(512, 0)])]),
        ("a run of nothing", true, vec![status(true, 3, 5, &[(0, 0)])]),
        (
            "an error without error",
            true,
            vec![error(true, REPLY_ERROR, 1, 0, "", &[])],
        ),
        (
            "an answer twice",
            true,
            vec![data(true, 2, 0, &[0; 8]), data(true, 2, 0, &[0; 8])],
        ),
    ];
    for (what, structured, bytes) in cases {
        let outcome = fed(structured, &bytes);
        assert!(
            matches!(outcome, Err(Error::Protocol { .. })),
            "{what}: {outcome:?}"
        );
    }
}

#[test]
fn a_length_of_4_gib_is_refused_before_its_bytes_come() {
    for kind in [REPLY_OFFSET_DATA, REPLY_BLOCK_STATUS, REPLY_ERROR] {
        let mut bytes = chunk(true, kind, if kind == REPLY_BLOCK_STATUS { 3 } else { 1 }, &[]);
        bytes[16..20].copy_from_slice(&0xffff_fffcu32.to_be_bytes());
        bytes.extend(4096u64.to_be_bytes());
        let mut decoder = decoder(true);
        assert!(
            matches!(decoder.feed(&bytes), Err(Error::Protocol { .. })),
            "kind {kind}"
        );
    }
}

fn valid_stream() -> Vec<u8> {
    [
        data(false, 1, 0, &[7; 5000]),
        status(false, 3, 1, &[(65536, 3), (1 << 20, 0)]),
        hole(false, 1, 5000, 3192),
        data(true, 2, 8192, &[9; 100]),
        chunk(true, REPLY_NONE, 1, &[]),
        status(true, 3, 2, &[(4096, 1)]),
    ]
    .concat()
}

proptest! {
    #[test]
    fn it_does_not_matter_how_the_stream_is_cut(piece in 1usize..6000) {
        prop_assert_eq!(decode_script(&valid_stream(), true, piece).expect("valid"), 3);
    }

    #[test]
    fn payload_received_in_place_is_the_same(take in 1usize..5000) {
        let stream = valid_stream();
        let mut decoder = Decoder::new(true, vec![1, 2]);
        decoder.expect(1, 0, 8192, Asked::Read(Buffer::alone(8192)));
        decoder.expect(2, 8192, 100, Asked::Read(Buffer::alone(100)));
        decoder.expect(3, 0, 1 << 30, Asked::Status);
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let count = take.min(rest.len());
            match decoder.direct() {
                Some(room) => {
                    let count = count.min(room.len());
                    room[..count].copy_from_slice(&rest[..count]);
                    decoder.advance(count).expect("valid");
                    rest = &rest[count..];
                }
                None => {
                    decoder.feed(&rest[..1]).expect("valid");
                    rest = &rest[1..];
                }
            }
        }
        let first = decoder.answer().expect("the second read");
        prop_assert_eq!(read_bytes(first), vec![9; 100]);
        let second = decoder.answer().expect("the first read");
        prop_assert_eq!(read_bytes(second), [vec![7; 5000], vec![0; 3192]].concat());
    }

    #[test]
    fn a_damaged_stream_never_panics(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        piece in 1usize..300,
        structured: bool,
    ) {
        let mut stream = valid_stream();
        for (place, byte) in damage {
            let place = place.index(stream.len());
            stream[place] = byte;
        }
        if let Ok(answered) = decode_script(&stream, structured, piece) {
            prop_assert!(answered <= 3);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), structured: bool) {
        if let Ok(answered) = decode_script(&bytes, structured, 7) {
            prop_assert!(answered <= 3);
        }
    }
}
