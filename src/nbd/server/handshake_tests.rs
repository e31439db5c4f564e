//! Tests of the server's handshake, by options and by whole scripts.

use proptest::prelude::*;

use super::*;
use crate::nbd::options::{encode_go, encode_option, encode_set_meta_context};
use crate::nbd::server::serve_script;

fn offers() -> Vec<Offer> {
    let offer = |name: &str, size| Offer {
        name: name.to_owned(),
        size,
    };
    vec![offer("vda", 1 << 30), offer("vdb", 512)]
}

fn handshake(offers: &[Offer]) -> Handshake<'_> {
    Handshake::new(offers, 3).expect("valid flags")
}

fn answer(next: Next) -> Vec<u8> {
    match next {
        Next::Answer(bytes) => bytes,
        other => panic!("not an answer: {other:?}"),
    }
}

/// The kinds of the replies in an answer to this option, with their payloads.
fn replies(option: u32, mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let mut fields = Fields(bytes);
        assert_eq!(fields.u64().expect("a magic"), OPTION_REPLY_MAGIC);
        assert_eq!(fields.u32().expect("the option"), option);
        let kind = fields.u32().expect("a kind");
        let length = fields.u32().expect("a length") as usize;
        found.push((kind, fields.0[..length].to_vec()));
        bytes = &fields.0[length..];
    }
    found
}

fn kinds(option: u32, next: Next) -> Vec<u32> {
    let replies = replies(option, &answer(next));
    replies.into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn exports_are_listed_described_and_chosen() {
    let offers = offers();
    let mut handshake = handshake(&offers);
    let listed = replies(OPT_LIST, &answer(handshake.option(OPT_LIST, &[])));
    let names: Vec<_> = listed
        .iter()
        .map(|(kind, payload)| (*kind, payload.as_slice()))
        .collect();
    assert_eq!(
        names,
        [
            (REP_SERVER, &b"\0\0\0\x03vda"[..]),
            (REP_SERVER, b"\0\0\0\x03vdb"),
            (REP_ACK, b"")
        ]
    );
    let info = kinds(OPT_INFO, handshake.option(OPT_INFO, &encode_go("vdb")));
    assert_eq!(info, [REP_INFO, REP_INFO, REP_ACK]);
    let Next::Begin(bytes, agreement) = handshake.option(OPT_GO, &encode_go("vdb")) else {
        panic!("it does not begin");
    };
    let replies = replies(OPT_GO, &bytes);
    assert_eq!(
        replies[0].1[..10],
        [0, 0, 0, 0, 0, 0, 0, 0, 2, 0],
        "the size of vdb"
    );
    let expected = Agreement {
        export: 1,
        structured: false,
        allocation: false,
    };
    assert_eq!(agreement, expected);
}

#[test]
fn unknown_exports_and_options_are_refused() {
    let offers = offers();
    let mut handshake = handshake(&offers);
    for name in ["vdc", ""] {
        let next = handshake.option(OPT_GO, &encode_go(name));
        assert_eq!(kinds(OPT_GO, next), [REP_ERR_UNKNOWN]);
        let next = handshake.option(OPT_EXPORT_NAME, name.as_bytes());
        assert_eq!(next, Next::End(Vec::new()));
    }
    // TLS, extended headers, and an unknown one.
    for option in [5, 11, 4711] {
        assert_eq!(kinds(option, handshake.option(option, &[])), [REP_ERR_UNSUP]);
    }
    let wrong = encode_go("vda");
    for data in [&wrong[..wrong.len() - 1], &[], &[255; 8]] {
        assert_eq!(kinds(OPT_GO, handshake.option(OPT_GO, data)), [REP_ERR_INVALID]);
    }
    assert_eq!(
        kinds(OPT_LIST, handshake.option(OPT_LIST, &[0])),
        [REP_ERR_INVALID]
    );
    let next = handshake.option(OPT_ABORT, &[]);
    assert!(matches!(next, Next::End(bytes) if replies(OPT_ABORT, &bytes)[0].0 == REP_ACK));
}

#[test]
fn an_empty_name_stands_for_the_only_export() {
    let offers = offers();
    let mut handshake = handshake(&offers[..1]);
    let Next::Begin(bytes, agreement) = handshake.option(OPT_EXPORT_NAME, b"") else {
        panic!("it does not begin");
    };
    assert_eq!((bytes.len(), agreement.export), (10, 0), "no zeroes");
    let mut old = Handshake::new(&offers, 1).expect("valid flags");
    let Next::Begin(bytes, _) = old.option(OPT_EXPORT_NAME, b"vda") else {
        panic!("it does not begin");
    };
    assert_eq!(bytes.len(), 134);
    for flags in [0, 2, 4, 7, u32::MAX] {
        assert!(Handshake::new(&offers, flags).is_err(), "{flags}");
    }
}

#[test]
fn a_context_belongs_to_its_export_and_needs_structure() {
    let offers = offers();
    let mut handshake = handshake(&offers);
    let set = |export: &str, contexts: &[&str]| encode_set_meta_context(export, contexts);
    let option = OPT_SET_META_CONTEXT;
    let next = handshake.option(option, &set("vda", &[BASE_ALLOCATION]));
    assert_eq!(
        kinds(option, next),
        [REP_ERR_INVALID],
        "no structured replies yet"
    );
    let next = handshake.option(OPT_STRUCTURED_REPLY, &[]);
    assert_eq!(kinds(OPT_STRUCTURED_REPLY, next), [REP_ACK]);
    let next = handshake.option(option, &set("vda", &["qemu:dirty-bitmap:b", BASE_ALLOCATION]));
    assert_eq!(kinds(option, next), [REP_META_CONTEXT, REP_ACK]);
    let allocation =
        |handshake: &mut Handshake<'_>, export| match handshake.option(OPT_GO, &encode_go(export)) {
            Next::Begin(_, agreement) => agreement.allocation,
            other => panic!("it does not begin: {other:?}"),
        };
    assert!(allocation(&mut handshake, "vda"));
    assert!(!allocation(&mut handshake, "vdb"), "another export");
    let next = handshake.option(option, &set("vda", &["qemu:dirty-bitmap:b"]));
    assert_eq!(kinds(option, next), [REP_ACK]);
    assert!(!allocation(&mut handshake, "vda"), "it was taken back");
    let list = OPT_LIST_META_CONTEXT;
    for queries in [&[][..], &["base:"], &[BASE_ALLOCATION]] {
        let next = handshake.option(list, &set("vda", queries));
        assert_eq!(kinds(list, next), [REP_META_CONTEXT, REP_ACK], "{queries:?}");
    }
    let next = handshake.option(list, &set("vda", &["base:other"]));
    assert_eq!(kinds(list, next), [REP_ACK]);
    let next = handshake.option(option, &set("vdc", &[BASE_ALLOCATION]));
    assert_eq!(kinds(option, next), [REP_ERR_UNKNOWN]);
    // More queries than data.
    let mut wrong = set("vda", &[]);
    let end = wrong.len();
    wrong[end - 4..].fill(255);
    assert_eq!(kinds(option, handshake.option(option, &wrong)), [REP_ERR_INVALID]);
}

fn valid_script() -> Vec<u8> {
    let request = |command, length| Request {
        flags: 0,
        command,
        cookie: 7,
        offset: 512,
        length,
    };
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(encode_option(OPT_STRUCTURED_REPLY, &[]));
    let contexts = encode_set_meta_context("vda", &[BASE_ALLOCATION]);
    bytes.extend(encode_option(OPT_SET_META_CONTEXT, &contexts));
    bytes.extend(encode_option(4711, &vec![0; MAX_OPTION as usize + 1]));
    bytes.extend(encode_option(OPT_GO, &encode_go("vda")));
    bytes.extend(request(CMD_READ, 512).encode());
    bytes.extend(request(CMD_WRITE, 100).encode());
    bytes.extend([1; 100]);
    bytes.extend(request(CMD_BLOCK_STATUS, 512).encode());
    bytes.extend(request(CMD_DISC, 0).encode());
    bytes
}

#[test]
fn a_whole_script_is_followed_to_its_goodbye() {
    assert_eq!(serve_script(&valid_script()), 4);
    let mut endless = vec![0, 0, 0, 3];
    for _ in 0..10_000 {
        endless.extend(encode_option(OPT_LIST, &[]));
    }
    assert_eq!(serve_script(&endless), 0);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        serve_script(&bytes);
        let offers = offers();
        let mut handshake = handshake(&offers);
        handshake.option(OPT_STRUCTURED_REPLY, &[]);
        for option in 0..12 {
            handshake.option(option, &bytes);
        }
    }

    #[test]
    fn a_changed_script_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut script = valid_script();
        for (place, byte) in changes {
            let place = place.index(script.len());
            script[place] = byte;
        }
        serve_script(&script[..end.index(script.len())]);
    }
}
