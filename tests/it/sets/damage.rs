//! Damaged sets: the right bytes, or a named file and what it costs.

use std::fs;

use vmsnap::model::stop::Stop;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Options, Outcome, Which, verify};

use super::{KIB, MadeSet, ids, open, part, read};

fn verified(folder: &std::path::Path, which: Which) -> Outcome {
    let options = Options {
        which,
        deep: false,
        verified_since: None,
        now: "2026-12-01T00:00:00Z".parse().expect("a time"),
    };
    verify("vm1", &open(folder), &options, &Silent, &Stop::default()).expect("it verifies")
}

/// Which restore points are damaged, and the files that are named.
fn damaged(outcome: &Outcome) -> (Vec<bool>, String) {
    let points = outcome
        .points
        .iter()
        .map(|point| !point.damage.is_empty())
        .collect();
    let named = outcome
        .all_damage()
        .map(|damage| damage.what.clone())
        .collect::<Vec<_>>()
        .join("\n");
    (points, named)
}

#[test]
fn changed_byte_costs_what_depends_on_the_file() {
    for compressed in [None, Some(20 * KIB)] {
        for (file, costs) in [
            ("vda.full.data", [true, true, true]),
            ("vda.inc.virtnbdbackup.1.data", [false, true, true]),
            ("vda.inc.virtnbdbackup.2.data", [false, false, true]),
        ] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let set = MadeSet::write(folder.path(), compressed, true);
            let path = folder.path().join(file);
            let mut bytes = fs::read(&path).expect("readable");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).expect("written");
            let (points, named) = damaged(&verified(folder.path(), Which::All));
            assert_eq!(points, costs, "{file}: {named}");
            assert!(named.contains(file), "{named}");
            let (part, history) = part(&open(folder.path()), "vm1");
            for ((id, is_lost), content) in ids(&history).iter().zip(costs).zip(&set.contents) {
                match read(part.as_ref(), id, "vda") {
                    Ok(bytes) => assert!(!is_lost && bytes == *content, "{file} {id}"),
                    Err(error) => assert!(is_lost && error.to_string().contains(file), "{error}"),
                }
            }
        }
    }
}

#[test]
fn cut_file_is_seen_in_the_list() {
    for compressed in [None, Some(20 * KIB)] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        MadeSet::write(folder.path(), compressed, false);
        let path = folder.path().join("vda.inc.virtnbdbackup.1.data");
        let bytes = fs::read(&path).expect("readable");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
        let (_, history) = part(&open(folder.path()), "vm1");
        let ids = ids(&history);
        assert!(history.chains.faults(&ids[0]).is_empty());
        for id in &ids[1..] {
            assert!(history.chains.faults(id)[0].contains("vda.inc.virtnbdbackup.1.data is damaged"));
        }
    }
}

#[test]
fn removed_files_are_missed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = MadeSet::write(folder.path(), None, true);
    fs::remove_file(folder.path().join("vda.inc.virtnbdbackup.1.data")).expect("removed");
    let (part, history) = part(&open(folder.path()), "vm1");
    assert_eq!(history.findings.len(), 1, "{:?}", history.findings);
    assert_eq!(history.findings[0].code, "restore-point-missing");
    assert!(
        history.findings[0]
            .message
            .contains("lists checkpoint virtnbdbackup.1, but has no backup")
    );
    let ids = ids(&history);
    assert!(read(part.as_ref(), &ids[0], "vda").expect("it is sound") == set.contents[0]);
    let faults = history.chains.faults(&ids[1]);
    assert!(
        faults[0].contains("depends on checkpoint virtnbdbackup.1"),
        "{faults:?}"
    );
    let outcome = verified(folder.path(), Which::All);
    assert!(!outcome.is_sound());
}

/// The newest backup is known to be missing, so no older one is taken for it.
#[test]
fn latest_is_refused_if_the_newest_is_missing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    MadeSet::write(folder.path(), None, true);
    fs::remove_file(folder.path().join("vda.inc.virtnbdbackup.2.data")).expect("removed");
    let lab = crate::lab::Lab::new();
    let repository = open(folder.path());
    let error = vmsnap::ops::restore::plan("vm1", &repository, None, &lab.restoring()).expect_err("refused");
    assert!(
        error
            .cause
            .to_string()
            .contains("lists checkpoint virtnbdbackup.2"),
        "{error:?}"
    );
}

#[test]
fn swapped_files_are_noticed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    MadeSet::write(folder.path(), None, false);
    let [one, two] = [1, 2].map(|number| folder.path().join(format!("vda.inc.virtnbdbackup.{number}.data")));
    let between = folder.path().join("x");
    for (from, to) in [(&one, &between), (&two, &one), (&between, &two)] {
        fs::rename(from, to).expect("renamed");
    }
    let (_, history) = part(&open(folder.path()), "vm1");
    for id in &ids(&history)[1..] {
        assert!(
            history.chains.faults(id)[0].contains("confused with another one"),
            "{id}"
        );
    }
    // The file of another disk, and that of a later set.
    let stream = vmsnap::repo::WrittenStream::full("vdb", &[1; 4096], 4096);
    fs::write(folder.path().join("vda.full.data"), stream.bytes()).expect("written");
    let (_, history) = part(&open(folder.path()), "vm1");
    let faults = ids(&history)
        .iter()
        .flat_map(|id| history.chains.faults(id))
        .collect::<Vec<_>>();
    assert!(
        faults
            .iter()
            .any(|fault| fault.contains("holds a different disk")),
        "{faults:?}"
    );
    let later = vmsnap::repo::WrittenStream {
        date: "2025-01-12T02:00:00".to_owned(),
        ..vmsnap::repo::WrittenStream::full("vda", &vec![1; 300 * KIB], 64 * KIB)
    };
    let other = tempfile::tempdir().expect("a temporary folder");
    MadeSet::write(other.path(), None, false);
    fs::write(other.path().join("vda.full.data"), later.bytes()).expect("written");
    let (_, history) = part(&open(other.path()), "vm1");
    let faults = ids(&history)
        .iter()
        .flat_map(|id| history.chains.faults(id))
        .collect::<Vec<_>>();
    assert!(
        faults
            .iter()
            .any(|fault| fault.contains("belongs to another set")),
        "{faults:?}"
    );
}

#[test]
fn damaged_checksum_file_is_named_and_can_be_removed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = MadeSet::write(folder.path(), None, true);
    let sum = folder.path().join("vda.inc.virtnbdbackup.2.data.chksum");
    for text in ["", "x", "12345678901234567890", "-1", "1"] {
        fs::write(&sum, text).expect("written");
        let (points, named) = damaged(&verified(folder.path(), Which::All));
        assert_eq!(points, [false, false, true], "{text:?}");
        assert!(named.contains("vda.inc.virtnbdbackup.2.data"), "{named}");
        let (part, history) = part(&open(folder.path()), "vm1");
        assert!(read(part.as_ref(), &ids(&history)[2], "vda").is_err(), "{text:?}");
    }
    fs::remove_file(sum).expect("removed");
    let (part, history) = part(&open(folder.path()), "vm1");
    assert!(read(part.as_ref(), &ids(&history)[2], "vda").expect("it is sound") == set.contents[2]);
}

#[test]
fn definitions_that_are_damaged_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    MadeSet::write(folder.path(), None, true);
    fs::write(folder.path().join("vmconfig.virtnbdbackup.1.xml"), "<domain").expect("written");
    let (_, history) = part(&open(folder.path()), "vm1");
    // Another definition of the set is used in its place.
    assert!(history.chains.faults(&ids(&history)[1]).is_empty());
    for number in [0, 2] {
        let path = folder.path().join(format!("vmconfig.virtnbdbackup.{number}.xml"));
        fs::write(path, "<domain").expect("written");
    }
    let (part, history) = part(&open(folder.path()), "vm1");
    let id = &ids(&history)[1];
    assert!(history.chains.faults(id)[0].contains("is not the definition of a domain"));
    assert!(read(part.as_ref(), id, "vda").is_ok(), "the disk can be restored");
}

/// A hostile guest cannot make its raw disk look like a stream.
#[test]
fn raw_disk_that_looks_like_a_stream_is_raw() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut disk = vmsnap::repo::WrittenStream::full("vdb", &[1; 4096], 4096).bytes();
    disk.resize(8192, 0);
    fs::write(folder.path().join("vdb.copy.data"), &disk).expect("written");
    let raw = super::DEFINITION.replace("qcow2", "raw").replace("vda", "vdb");
    fs::write(folder.path().join("vmconfig.copy.xml"), raw).expect("written");
    let (part, history) = part(&open(folder.path()), "vm1");
    let id = &ids(&history)[0];
    assert!(read(part.as_ref(), id, "vdb").expect("it is sound") == disk);
    assert_eq!(super::codes(&history, id), ["checksum-missing"]);
}

/// Whoever may write to a set must not show root's files to readers of the set.
#[test]
fn link_in_a_set_is_not_followed() {
    let (folder, outside) = (
        tempfile::tempdir().expect("a temporary folder"),
        tempfile::tempdir().expect("a temporary folder"),
    );
    let secret = outside.path().join("secret");
    fs::write(&secret, [7; 4096]).expect("written");
    std::os::unix::fs::symlink(&secret, folder.path().join("vdb.copy.data")).expect("a link");
    let raw = super::DEFINITION.replace("qcow2", "raw").replace("vda", "vdb");
    fs::write(folder.path().join("vmconfig.copy.xml"), raw).expect("written");
    let (part, history) = part(&open(folder.path()), "vm1");
    let id = &ids(&history)[0];
    let faults = history.chains.faults(id);
    assert!(faults[0].contains("it is a link, not a file"), "{faults:?}");
    assert!(read(part.as_ref(), id, "vdb").is_err());
}
