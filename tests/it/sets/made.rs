//! Sets in the folders that VMSnap used, and runs that follow one another in odd ways.

use std::fs;

use vmsnap::model::restore_point::Level;
use vmsnap::repo::{Repository, SetsRepository, WrittenStream};

use super::{KIB, MadeSet, ids, open, part, read};

#[test]
fn each_spelling_of_a_set_gives_back_its_disks() {
    for (compressed, sums) in [
        (None, true),
        (None, false),
        (Some(1 << 20), true),
        (Some(10 * KIB), false),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let set = MadeSet::write(folder.path(), compressed, sums);
        let (part, history) = part(&open(folder.path()), "vm1");
        for (id, content) in ids(&history).iter().zip(&set.contents) {
            assert!(
                read(part.as_ref(), id, "vda").expect("it is sound") == *content,
                "{compressed:?} {id}"
            );
        }
    }
}

#[test]
fn domains_and_periods_are_found_below_a_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let october = folder.path().join("vm1/vmsnap-backup-monthly-2024-10");
    let november = folder.path().join("vm1/vmsnap-backup-monthly-2024-11");
    MadeSet::write(&october, None, true);
    MadeSet::write(&november, None, true);
    // A set without a definition is named by its list of checkpoints, or by its folder.
    let other = folder.path().join("vm2");
    MadeSet::write(&other, None, true);
    for number in 0..3 {
        fs::remove_file(other.join(format!("vmconfig.virtnbdbackup.{number}.xml"))).expect("removed");
    }
    fs::rename(other.join("vm1.cpt"), other.join("vm2.cpt")).expect("renamed");
    let repository = open(folder.path());
    assert_eq!(repository.domains().expect("it lists"), ["vm1", "vm2"]);
    let (_, history) = part(&repository, "vm1");
    let point = |number: usize| &history.chains.points()[number].point;
    let found: Vec<&str> = (0..6).map(|number| point(number).period.as_str()).collect();
    assert!(
        found.contains(&"vmsnap-backup-monthly-2024-10") && found.contains(&"vmsnap-backup-monthly-2024-11")
    );
    let mut all = ids(&history);
    all.dedup();
    assert_eq!(all.len(), 6, "each restore point has an id of its own");
    let (_, history) = part(&repository, "vm2");
    assert_eq!(history.chains.points()[0].point.period, "vmsnap-backup-set-vm2");
    assert!(history.chains.faults(&ids(&history)[0])[0].contains("has no definition of the domain"));
    for one in [&october, &folder.path().join("vm1")] {
        assert_eq!(open(one).domains().expect("it lists"), ["vm1"]);
    }
    assert!(SetsRepository::open(&folder.path().join("empty"), jiff::tz::TimeZone::UTC).is_err());
}

#[test]
fn differential_backups_depend_on_the_last_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = MadeSet::write(folder.path(), None, true);
    let mut content = set.contents[2].clone();
    for (time, byte) in [(1_732_837_463, 7), (1_732_923_863, 8)] {
        content[..10 * KIB].fill(byte);
        let stream = WrittenStream {
            checkpoint: "virtnbdbackup.3".to_owned(),
            parent: "virtnbdbackup.2".to_owned(),
            date: format!("2024-11-{}T02:00:00", 20 + byte),
            ..WrittenStream::incremental("vda", 3, &content, &[(0, 10 * KIB)])
        };
        fs::write(
            folder.path().join(format!("vda.diff.{time}.data")),
            stream.bytes(),
        )
        .expect("written");
        fs::write(
            folder.path().join(format!("vmconfig.{}.xml", time + 5)),
            super::DEFINITION,
        )
        .expect("written");
    }
    let (part, history) = part(&open(folder.path()), "vm1");
    let ids = ids(&history);
    assert_eq!(ids.len(), 5);
    for (number, byte) in [(3, 7), (4, 8)] {
        let point = &history.chains.points()[number].point;
        assert_eq!(
            (point.parent.as_ref(), point.level),
            (Some(&ids[2]), Level::Incremental)
        );
        let bytes = read(part.as_ref(), &ids[number], "vda").expect("it is sound");
        assert!(bytes[..10 * KIB].iter().all(|found| *found == byte));
        assert!(bytes[10 * KIB..] == content[10 * KIB..]);
    }
}

/// A run while the domain is shut off writes the file of its parent's checkpoint again, so nothing
/// holds the disk at that checkpoint.
#[test]
fn overwritten_increment_breaks_the_chain_visibly() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = MadeSet::write(folder.path(), None, false);
    let stream = WrittenStream {
        parent: "virtnbdbackup.1".to_owned(),
        ..WrittenStream::incremental("vda", 1, &set.contents[2], &[(0, KIB)])
    };
    fs::write(folder.path().join("vda.inc.virtnbdbackup.1.data"), stream.bytes()).expect("written");
    let (part, history) = part(&open(folder.path()), "vm1");
    let ids = ids(&history);
    assert!(read(part.as_ref(), &ids[0], "vda").is_ok());
    for id in &ids[1..] {
        let faults = history.chains.faults(id);
        assert!(
            faults[0].contains("no backup of disk vda with this checkpoint"),
            "{faults:?}"
        );
        assert!(read(part.as_ref(), id, "vda").is_err());
    }
}

/// Newer versions make a full backup under the name of an incremental one if a checkpoint is
/// invalid.
#[test]
fn full_backup_with_the_name_of_an_increment_is_full() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = MadeSet::write(folder.path(), None, false);
    let mut content = set.contents[2].clone();
    content[..64 * KIB].fill(0);
    let stream = WrittenStream {
        checkpoint: "virtnbdbackup.2".to_owned(),
        date: "2024-11-20T02:00:00".to_owned(),
        ..WrittenStream::full("vda", &content, 64 * KIB)
    };
    fs::write(folder.path().join("vda.inc.virtnbdbackup.2.data"), stream.bytes()).expect("written");
    let (part, history) = part(&open(folder.path()), "vm1");
    let id = &ids(&history)[2];
    assert_eq!(
        history.get(id).expect("it is there").manifest.point.level,
        Level::Full
    );
    assert!(read(part.as_ref(), id, "vda").expect("it is sound") == content);
}

#[test]
fn raw_image_of_a_qcow2_disk_is_read_if_its_size_is_recorded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = MadeSet::write(folder.path(), None, false);
    fs::write(folder.path().join("vda.full.data"), &set.contents[0]).expect("written");
    let info = folder.path().join("vda.virtnbdbackup.0.qcow.json");
    fs::write(&info, format!("{{\"virtual-size\": {}}}", 300 * KIB)).expect("written");
    let (whole, history) = part(&open(folder.path()), "vm1");
    for (id, content) in ids(&history).iter().zip(&set.contents) {
        assert!(read(whole.as_ref(), id, "vda").expect("it is sound") == *content);
    }
    fs::remove_file(info).expect("removed");
    let (_, history) = part(&open(folder.path()), "vm1");
    assert!(
        !history.chains.faults(&ids(&history)[2]).is_empty(),
        "it may be a damaged stream"
    );
}
