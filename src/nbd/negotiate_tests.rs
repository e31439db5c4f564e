//! Tests of the handshake against scripted servers.

use super::wire::*;
use super::*;
use proptest::prelude::*;

const OK_FLAGS: u16 = FLAG_HAS_FLAGS | FLAG_READ_ONLY | FLAG_SEND_DF;

fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = Vec::from(INIT_MAGIC.to_be_bytes());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes
}

fn reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn info_export(size: u64, flags: u16) -> Vec<u8> {
    let mut payload = Vec::from(INFO_EXPORT.to_be_bytes());
    payload.extend(size.to_be_bytes());
    payload.extend(flags.to_be_bytes());
    reply(OPT_GO, REP_INFO, &payload)
}

fn info_block_size(sizes: [u32; 3]) -> Vec<u8> {
    let mut payload = Vec::from(INFO_BLOCK_SIZE.to_be_bytes());
    payload.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    reply(OPT_GO, REP_INFO, &payload)
}

fn meta(id: u32, name: &str) -> Vec<u8> {
    let mut payload = Vec::from(id.to_be_bytes());
    payload.extend(name.as_bytes());
    reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &payload)
}

fn ack(option: u32) -> Vec<u8> {
    reply(option, REP_ACK, &[])
}

fn begun() -> Vec<u8> {
    [greeting(3), ack(OPT_STRUCTURED_REPLY)].concat()
}

fn valid() -> Vec<u8> {
    [
        begun(),
        meta(1, BASE_ALLOCATION),
        meta(7, "qemu:dirty-bitmap:b"),
        ack(OPT_SET_META_CONTEXT),
        info_export(1 << 30, OK_FLAGS),
        info_block_size([1, 4096, 32 << 20]),
        reply(OPT_GO, REP_INFO, &[0, 1, b'x']),
        ack(OPT_GO),
    ]
    .concat()
}

const CONTEXTS: [&str; 2] = [BASE_ALLOCATION, "qemu:dirty-bitmap:b"];

fn run(script: &[u8]) -> Result<Export> {
    negotiate_with_script(script, "vda", &CONTEXTS)
}

#[test]
fn an_export_is_opened_with_its_contexts_and_block_sizes() {
    let export = run(&valid()).expect("a valid handshake");
    assert_eq!(export.size, 1 << 30);
    assert!(export.structured);
    assert_eq!(export.block_sizes.preferred, 4096);
    let contexts: Vec<(u32, &str)> = export.contexts.iter().map(|c| (c.id, c.name.as_str())).collect();
    assert_eq!(contexts, [(1, BASE_ALLOCATION), (7, "qemu:dirty-bitmap:b")]);
}

#[test]
fn a_server_without_structured_replies_grants_no_contexts() {
    let script = [
        greeting(3),
        reply(OPT_STRUCTURED_REPLY, REP_ERR_UNSUP, b"no"),
        info_export(4096, OK_FLAGS),
        ack(OPT_GO),
    ]
    .concat();
    let export = run(&script).expect("a valid handshake");
    assert!(!export.structured);
    assert!(export.contexts.is_empty());
    assert_eq!(export.block_sizes, BlockSizes::default());
}

#[test]
fn a_server_that_refuses_contexts_grants_none() {
    let script = [
        begun(),
        reply(OPT_SET_META_CONTEXT, REP_ERR_UNSUP, &[]),
        info_export(4096, OK_FLAGS),
        ack(OPT_GO),
    ]
    .concat();
    assert!(run(&script).expect("a valid handshake").contexts.is_empty());
}

#[test]
fn a_server_without_go_is_asked_the_old_way() {
    for (flags, zeroes) in [(3, 0), (1, 124)] {
        let mut script = [
            greeting(flags),
            ack(OPT_STRUCTURED_REPLY),
            ack(OPT_SET_META_CONTEXT),
            reply(OPT_GO, REP_ERR_UNSUP, &[]),
        ]
        .concat();
        script.extend(8192u64.to_be_bytes());
        script.extend(OK_FLAGS.to_be_bytes());
        script.extend(vec![0; zeroes]);
        assert_eq!(run(&script).expect("a valid handshake").size, 8192);
        script.pop();
        assert!(matches!(run(&script), Err(Error::Disconnected { .. })));
    }
}

#[test]
fn a_refusal_carries_the_servers_words() {
    let script = [
        begun(),
        ack(OPT_SET_META_CONTEXT),
        reply(OPT_GO, REP_ERROR_BIT | 6, b"not vda"),
    ]
    .concat();
    let error = run(&script).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "the NBD server refused export 'vda': there is no such export (not vda)"
    );
    let script = [greeting(3), reply(OPT_STRUCTURED_REPLY, REP_ERR_TLS_REQD, &[])].concat();
    assert!(matches!(run(&script), Err(Error::Refused { .. })));
}

#[test]
fn what_the_protocol_forbids_is_refused() {
    let size = |size, flags| {
        [
            begun(),
            ack(OPT_SET_META_CONTEXT),
            info_export(size, flags),
            ack(OPT_GO),
        ]
        .concat()
    };
    let mut long = [begun(), reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &[])].concat();
    let end = long.len();
    long[end - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
    let cases = [
        ("a wrong magic", vec![0; 18]),
        ("the wrong option", [greeting(3), ack(OPT_GO)].concat()),
        (
            "an unknown reply",
            [greeting(3), reply(OPT_STRUCTURED_REPLY, 2, &[])].concat(),
        ),
        (
            "a foreign context",
            [begun(), meta(1, "qemu:allocation-depth")].concat(),
        ),
        (
            "an id used twice",
            [begun(), meta(1, CONTEXTS[0]), meta(1, CONTEXTS[1])].concat(),
        ),
        (
            "a context granted twice",
            [begun(), meta(1, CONTEXTS[0]), meta(2, CONTEXTS[0])].concat(),
        ),
        ("a reply of 4 GiB", long),
        (
            "no size",
            [begun(), ack(OPT_SET_META_CONTEXT), ack(OPT_GO)].concat(),
        ),
        ("flags without flags", size(4096, 0)),
        (
            "endless information",
            [
                begun(),
                ack(OPT_SET_META_CONTEXT),
                reply(OPT_GO, REP_INFO, &[0, 9]).repeat(100),
            ]
            .concat(),
        ),
        (
            "block sizes out of order",
            [
                begun(),
                ack(OPT_SET_META_CONTEXT),
                info_block_size([4096, 512, 1 << 20]),
            ]
            .concat(),
        ),
    ];
    for (what, script) in cases {
        let outcome = run(&script);
        assert!(
            matches!(outcome, Err(Error::Protocol { .. })),
            "{what}: {outcome:?}"
        );
    }
}

#[test]
fn an_export_larger_than_any_file_offset_cannot_be_used() {
    let script = [
        begun(),
        ack(OPT_SET_META_CONTEXT),
        info_export(u64::MAX, OK_FLAGS),
        ack(OPT_GO),
    ]
    .concat();
    let error = run(&script).expect_err("it is too large");
    assert_eq!(
        error.to_string(),
        "the NBD server cannot be used: its export has 18446744073709551615 bytes, but QEMU and Linux \
         support at most 2^63 - 1 bytes"
    );
}

#[test]
fn a_server_that_is_not_fixed_newstyle_cannot_be_used() {
    assert!(matches!(run(&greeting(0)), Err(Error::Unsupported { .. })));
}

#[test]
fn a_handshake_that_breaks_off_anywhere_is_a_lost_server() {
    let script = valid();
    for end in 0..script.len() {
        let outcome = run(&script[..end]);
        assert!(
            matches!(outcome, Err(Error::Disconnected { .. })),
            "cut at {end}: {outcome:?}"
        );
    }
}

proptest! {
    #[test]
    fn a_damaged_handshake_never_panics(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut script = valid();
        for (place, byte) in damage {
            let place = place.index(script.len());
            script[place] = byte;
        }
        script.extend(tail);
        if let Ok(export) = run(&script) {
            prop_assert!(export.contexts.len() <= CONTEXTS.len());
        }
    }
}
