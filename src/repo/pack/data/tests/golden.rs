//! The format: encodings that must never change.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::lab::{C, noise};
use crate::model::compression::Compression;
use crate::repo::pack::data::id::{BlockId, PackId};
use crate::repo::pack::data::leaf::LeafDraft;
use crate::repo::pack::data::page::{encode_branch, encode_root};
use crate::repo::pack::data::sealer::{Sealer, compressor};
use crate::repo::pack::data::table::{Entry, PackEntry, encode_index, encode_table, encode_trailer};
use crate::repo::pack::description::Cipher;
use crate::repo::pack::keys::MasterKey;
use crate::repo::pack::objects::ObjectName;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn sealer(cipher: Cipher) -> Sealer {
    let key = MasterKey::from_hex(&"01".repeat(32)).expect("valid");
    Sealer::with_nonces(&key, cipher, |nonce| {
        nonce.fill(0x24);
        Ok(())
    })
}

/// What is encoded, and its form in hexadecimal digits. Long forms are replaced by their BLAKE3.
fn encodings() -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::new();
    let mut add = |what, bytes: Vec<u8>| {
        let text = match bytes.len() > 160 {
            true => format!("{} bytes, {}", bytes.len(), blake3::hash(&bytes).to_hex()),
            false => hex(&bytes),
        };
        all.insert(what, text);
    };
    let name = ObjectName::new("index/0123456789abcdef0123456789abcdef").expect("valid");
    for (cipher, block, record) in [
        (Cipher::XChaCha20Poly1305, "block", "record"),
        (Cipher::None, "open block", "open record"),
    ] {
        let sealer = sealer(cipher);
        let id = sealer.id(b"text");
        let sealed = sealer.seal_block(&id, b"text", None).expect("it is sealed");
        assert_eq!(
            sealer.open_block(&id, sealed.bytes.clone(), 4).as_deref(),
            Ok(&b"text"[..])
        );
        add(block, sealed.bytes);
        let sealed = sealer.seal_record(&name, b"text").expect("it is sealed");
        assert_eq!(
            sealer.open_record(&name, sealed.clone(), 4).as_deref(),
            Ok(&b"text"[..])
        );
        add(record, sealed);
        add("id", id.bytes().to_vec());
    }
    let sealer = sealer(Cipher::XChaCha20Poly1305);
    let ids: Vec<BlockId> = (0..4).map(|n| sealer.id(&noise(n, 10))).collect();
    let mut leaf = LeafDraft::new(None);
    leaf.set(3, 16, ids[1], 0);
    leaf.set(5, 2, ids[0], 7);
    leaf.clear(12, 2);
    leaf.set(2047, 1, ids[2], 255);
    add("leaf", leaf.finish().expect("not empty").encode());
    add(
        "branch",
        encode_branch(&vec![None, Some(ids[0]), Some(ids[3]), None]),
    );
    add(
        "root",
        encode_root(300 << 30, &vec![Some(ids[2]), None, Some(ids[1]), None]),
    );
    let entries: Vec<Entry> = ids
        .iter()
        .zip(1..)
        .map(|(id, stored)| Entry {
            id: *id,
            stored,
            plain: stored * 1000,
        })
        .collect();
    add("table", encode_table(&entries));
    let pack = PackEntry {
        id: PackId::from_bytes([0xcd; 16]),
        size: 4000,
        entries,
    };
    add("index", encode_index(&[pack]));
    add("trailer", encode_trailer(1234, &blake3::hash(b"text")).to_vec());
    all
}

#[test]
fn encodings_stay_as_they_are() {
    let expected = BTreeMap::from(EXPECTED.map(|(what, text)| (what, text.to_owned())));
    assert_eq!(encodings(), expected);
}

const EXPECTED: [(&str, &str); 11] = [
    (
        "block",
        "2424242424242424242424242424242424242424242424247486e1c2ddb3b09c57ffd86c7be86f065c963cacc1",
    ),
    (
        "branch",
        "0102030000000000000000000000000000000000000000000000000000000000000000006741be03301d834879af6162f247922d9fe252c8bff0e4c9ddd3be164bf5e6029cedab023c511f23106496a6af10fbb50120bf5ab8eb070ca0cda720d253bb1f",
    ),
    (
        "id",
        "051044a0b74678a90fcaeb27e97ae8f591681dc9f46622a7c55dab097a3c69c0",
    ),
    (
        "index",
        "193 bytes, c5ac24b2f4958d7c4b086e2dfa40dd38a44e62422a6f2f0c77956eed993e191a",
    ),
    (
        "leaf",
        "010103000500f7ec25157a1c7c085f84a5f098c2aa1de622b74b6ba352dc8b0859fe060d25f16741be03301d834879af6162f247922d9fe252c8bff0e4c9ddd3be164bf5e60200dbf5f31ce0d6d79be0e61f323f7d4e0e105683bf2684009eb55d86406efce00300020000000000050002000100070007000500000004000e00050000000b00ff0701000200ff00",
    ),
    ("open block", "0074657874"),
    (
        "open record",
        "7822c24d8f219af2672ff405f26e7f2f08c782e04d0869b4fdd31babe475347f000400000074657874",
    ),
    (
        "record",
        "24242424242424242424242424242424242424242424242474f684baa96d0e974eed224db54d218b8151a046bb1574414f",
    ),
    (
        "root",
        "01030300000000004b00000000dbf5f31ce0d6d79be0e61f323f7d4e0e105683bf2684009eb55d86406efce00000000000000000000000000000000000000000000000000000000000000000f7ec25157a1c7c085f84a5f098c2aa1de622b74b6ba352dc8b0859fe060d25f1",
    ),
    (
        "table",
        "165 bytes, c0b588b5f3003c3e6601a97780f5bc77b767f06d56d9a5e9da680adef208d5d9",
    ),
    (
        "trailer",
        "766d736e5041434b01000000d2040000831c6831fdc9a309a4c66cc3cb2fa3740a100da8b86d6fe86e9ba40deb50aa19",
    ),
];

#[test]
fn compressed_blocks_have_exactly_their_length() {
    let sealer = sealer(Cipher::None);
    let bytes = vec![7; C];
    let id = sealer.id(&bytes);
    let mut zstd = compressor(Compression::default()).expect("it begins");
    let sealed = sealer
        .seal_block(&id, &bytes, zstd.as_mut())
        .expect("it is sealed");
    assert!(sealed.is_compressed && sealed.bytes.len() < 100);
    assert_eq!(sealer.open_block(&id, sealed.bytes, C), Ok(bytes.clone()));
    assert!(sealer.open_block(&id, vec![1, 2, 3], C).is_err());
    for length in [C - 1, C + 1, 1] {
        let mut zstd = compressor(Compression::default()).expect("it begins");
        let sealed = sealer
            .seal_block(&id, &bytes, zstd.as_mut())
            .expect("it is sealed");
        assert!(sealer.open_block(&id, sealed.bytes, length).is_err(), "{length}");
    }
}
