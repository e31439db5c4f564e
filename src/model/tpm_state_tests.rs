//! Tests of the archive of a TPM's state.

use proptest::prelude::*;

use super::*;

fn file(name: &str, content: &[u8]) -> TpmFile {
    TpmFile {
        name: name.to_owned(),
        content: content.to_vec(),
        owner: (107, 113),
        changed: 1_793_667_600,
    }
}

/// An archive with one entry of this kind and name, written without any check of ours.
fn archive(kind: EntryType, name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).expect("memory takes it");
    builder.into_inner().expect("memory takes it")
}

#[test]
fn the_archive_gives_back_every_file() {
    let files = [
        file("tpm2-00.permall", &[7; 5000]),
        file("tpm2-00.savestate", b""),
        TpmFile {
            owner: (u32::MAX - 1, 3_000_000_000),
            ..file("x_y-z.bak", &[0; 512])
        },
    ];
    let packed = pack(&files).expect("they are packed");
    assert_eq!(unpack(&packed).expect("they are unpacked"), files);
    assert_eq!(&packed[257..263], b"ustar\0");
}

#[test]
fn entries_that_are_no_plain_files_are_refused() {
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::Directory,
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::GNUSparse,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
        EntryType::Continuous,
        EntryType::new(b'Z'),
    ] {
        let refused = unpack(&archive(kind, "tpm2-00.permall", b"")).expect_err("no plain file");
        assert!(refused.contains("is not a plain file"), "{kind:?}: {refused}");
    }
    let mut old = archive(EntryType::Regular, "tpm2-00.permall", b"x");
    old[257..265].fill(0);
    assert!(
        unpack(&old).is_err(),
        "without the magic, or with a wrong checksum"
    );
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let long = "x".repeat(65);
    for name in [
        "../tpm2-00.permall",
        "/etc/shadow",
        "tpm2/tpm2-00.permall",
        "a/../../b",
        "..",
        ".",
        ".lock",
        ".hidden",
        "TMP2-00.permall",
        "tpm2-00.volatilestate",
        "a b",
        "a\nb",
        "\u{e4}",
        &long,
    ] {
        let refused = unpack(&archive(EntryType::Regular, name, b"x")).expect_err("it is invalid");
        assert!(refused.contains("invalid name"), "{name:?}: {refused}");
        assert!(pack(&[file(name, b"x")]).is_err(), "{name:?}");
    }
    assert!(pack(&[file("", b"x")]).is_err());
}

#[test]
fn a_state_that_is_empty_doubled_or_huge_is_refused() {
    assert!(pack(&[]).is_err());
    assert!(unpack(&[0; 1024]).is_err(), "an empty archive");
    assert!(pack(&[file("a", b"1"), file("a", b"2")]).is_err());
    let mut twice = archive(EntryType::Regular, "a", b"1");
    twice.truncate(1024);
    twice.extend(archive(EntryType::Regular, "a", b"2"));
    assert!(unpack(&twice).expect_err("twice").contains("two files"));

    let many: Vec<TpmFile> = (0..=MOST_FILES).map(|n| file(&format!("f{n}"), b"")).collect();
    assert!(pack(&many).is_err());
    let huge = vec![0; usize::try_from(LARGEST_STATE).expect("it fits") + 1];
    assert!(pack(&[file("a", &huge)]).is_err());
    assert!(
        unpack(&archive(EntryType::Regular, "a", &huge))
            .expect_err("too large")
            .contains("16 MiB")
    );
}

#[test]
fn a_size_beyond_the_archive_is_refused() {
    let mut bytes = archive(EntryType::Regular, "a", &[1; 700]);
    bytes.truncate(512 + 300);
    assert!(unpack(&bytes).is_err());
    let mut header = Header::new_ustar();
    header.set_path("a").expect("it fits");
    header.set_size(u64::MAX);
    header.set_cksum();
    assert!(unpack(header.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn any_state_comes_back(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 1..6)) {
        let named = contents.iter().enumerate();
        let files: Vec<TpmFile> = named.map(|(n, content)| file(&format!("tpm2-{n}"), content)).collect();
        prop_assert_eq!(unpack(&pack(&files).expect("packed")).expect("unpacked"), files);
    }

    #[test]
    fn damaged_archives_never_panic(at in 0usize..2048, byte: u8, length in 0usize..3072) {
        let mut bytes = pack(&[file("tpm2-00.permall", &[9; 600])]).expect("packed");
        bytes.truncate(length);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        if let Ok(files) = unpack(&bytes) {
            prop_assert!(check(&files).is_ok());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = unpack(&bytes);
    }
}
