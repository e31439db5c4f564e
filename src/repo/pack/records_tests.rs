//! Tests of the records about restore points.

use super::*;
use crate::model::guest::BootLevel;
use crate::model::restore_point::{Consistency, Level, RestorePoint};
use crate::repo::pack::keys::MasterKey;
use crate::repo::proof::DamageNote;

const ID: &str = "2026-11-01T02-00-03Z";

fn names() -> DomainNames {
    let key = MasterKey::from_hex(&"01".repeat(32)).expect("valid");
    DomainNames::of(&std::sync::Arc::new(key), "vm1")
}

fn moment(second: i64) -> Timestamp {
    Timestamp::from_second(1_793_667_600 + second).expect("in range")
}

fn manifest() -> Manifest {
    let disk = serde_json::json!({
        "target": "vda", "level": "full", "reason": "", "parent": null, "checkpointed": false,
        "virtualSize": 1, "source": "/x", "sourceFormat": "qcow2", "image": "vda.map",
        "dataBytes": 0, "zeroBytes": 0,
    });
    let point = RestorePoint {
        id: ID.to_owned(),
        sequence: 1,
        domain: "vm1".to_owned(),
        uuid: String::new(),
        time: moment(0),
        period: "vmsnap-backup-monthly-2026-11".to_owned(),
        level: Level::Full,
        parent: None,
        checkpoint: None,
        consistency: Consistency::Crash,
        disks: vec![serde_json::from_value(disk).expect("a disk")],
        findings: Vec::new(),
        left_out: Vec::new(),
        merged: None,
        copied_from: None,
        guest: None,
    };
    Manifest::new("", point, Vec::new(), None)
}

fn proof(second: i64, damage: &[&str]) -> Proof {
    let note = |what: &&str| DamageNote {
        what: (*what).to_owned(),
        concerns: Concern::Files,
    };
    Proof {
        id: ID.to_owned(),
        manifest: manifest().digest,
        time: moment(second),
        deep: true,
        deep_time: None,
        damage: damage.iter().map(note).collect(),
    }
}

/// Adds a record, and returns its name.
fn add(records: &mut Records, kind: Kind, content: &impl Serialize, replaces: &[String]) -> String {
    let name = RecordName::new(kind, &names(), ID);
    let text = to_text(content, replaces).expect("it serialises");
    records.take(name.clone(), Ok(&text));
    name.segment
}

#[test]
fn only_names_of_records_are_read() {
    for kind in Kind::ALL {
        let name = RecordName::new(kind, &names(), ID);
        assert_eq!(RecordName::parse(&name.segment), Some(name.clone()));
        assert_ne!(RecordName::new(kind, &names(), ID), name, "it is random");
        for wrong in [
            name.segment.to_uppercase(),
            format!("{}0", name.segment),
            name.segment.replace('-', "_"),
            format!("x{}", name.segment),
        ] {
            assert_eq!(RecordName::parse(&wrong), None, "{wrong}");
        }
    }
}

#[test]
fn damage_counts_until_a_proof_that_knew_of_it() {
    let mut records = Records::default();
    let damaged = add(&mut records, Kind::Damaged, &proof(1, &["torn"]), &[]);
    add(&mut records, Kind::Sound, &proof(2, &[]), &[]);
    records.settle();
    assert_eq!(records.proof(&manifest()), Some(proof(1, &["torn"])));
    // The old record is still there: this host may not delete.
    add(&mut records, Kind::Sound, &proof(3, &[]), &[damaged]);
    records.settle();
    assert_eq!(records.proof(&manifest()), Some(proof(3, &[])));
    assert_eq!(records.proof_names(&names().tag(ID)).len(), 3);
    assert!(records.proof_names(&names().tag("another")).is_empty());
}

#[test]
fn the_newest_boot_proof_counts() {
    let proof = |second, manifest: &str| BootProof {
        id: ID.to_owned(),
        manifest: manifest.to_owned(),
        time: moment(second),
        reached: BootLevel::Agent,
        wanted: BootLevel::Agent,
        pattern: None,
        command: Vec::new(),
        shortfall: None,
        seconds: 5,
    };
    let digest = manifest().digest;
    let mut records = Records::default();
    let newest = add(&mut records, Kind::Booted, &proof(3, &digest), &[]);
    add(&mut records, Kind::Booted, &proof(2, &digest), &[]);
    add(&mut records, Kind::Booted, &proof(9, &"1".repeat(64)), &[]);
    records.settle();
    assert_eq!(records.boot_proof(&manifest()), Some(proof(3, &digest)));
    assert_eq!(records.boot_names(&names().tag(ID)).len(), 3);
    assert!(records.proof_names(&names().tag(ID)).is_empty());
    // The clock was set back. The old record is still there: this host may not delete.
    add(&mut records, Kind::Booted, &proof(1, &digest), &[newest]);
    records.settle();
    assert_eq!(records.boot_proof(&manifest()), Some(proof(2, &digest)));
}

#[test]
fn the_newest_pin_counts() {
    let mut records = Records::default();
    for (second, note) in [(5, "new"), (1, "old")] {
        let pin = Pin {
            since: Some(moment(second)),
            note: note.to_owned(),
        };
        add(&mut records, Kind::Pin, &WrittenPin::new(ID, &pin), &[]);
    }
    records.settle();
    let tag = names().tag(ID);
    assert_eq!(records.pin(ID, &tag).map(|pin| pin.note), Some("new".to_owned()));
    assert_eq!(records.pin("another", &names().tag("another")), None);
}

#[test]
fn hostile_records_count_as_the_worst() {
    let deep = "[".repeat(200_000);
    let texts = [
        "",
        "{}",
        "null",
        "{\"format\": 2}",
        "{\"format\": 1}",
        deep.as_str(),
    ];
    for text in texts {
        let mut records = Records::default();
        for kind in Kind::ALL {
            records.take(RecordName::new(kind, &names(), ID), Ok(text.as_bytes()));
        }
        records.settle();
        let tag = names().tag(ID);
        assert_eq!(records.pin(ID, &tag), Some(Pin::default()), "{text:.20}");
        assert!(records.unreadable_pin(&tag).is_some());
        assert_eq!(records.suspected_damage(&manifest(), &tag).len(), 1);
        assert_eq!(records.missed_writes(&manifest(), &tag).len(), 1);
        let found = records.findings(|_| Some("1".to_owned()), |name| format!("records/x/{name}"));
        assert_eq!(found.len(), Kind::ALL.len(), "{found:?}");
        assert!(found.iter().any(|finding| finding.code == REMOVALS_UNREADABLE));
        assert!(found.iter().all(|finding| finding.message.contains("records/x/")));
        // Those of restore points that are gone do not matter, except removals.
        assert_eq!(records.findings(|_| None, str::to_owned).len(), 1);
    }
}

#[test]
fn proof_of_damage_cannot_be_renamed_to_a_sound_one() {
    let mut records = Records::default();
    add(&mut records, Kind::Sound, &proof(1, &["torn"]), &[]);
    records.settle();
    assert_eq!(records.proof(&manifest()), None);
}

#[test]
fn removals_are_known_once_each_in_order() {
    let removal = |number: u64, removed: i64| WrittenRemoval {
        id: format!("point {number}"),
        name: format!("name {number}"),
        run: String::new(),
        sequence: number,
        uuid: "a uuid".to_owned(),
        checkpoint: None,
        removed: moment(removed),
    };
    let mut records = Records::default();
    for removals in [vec![removal(2, 7)], vec![removal(1, 5), removal(2, 9)]] {
        add(&mut records, Kind::Removed, &WrittenRemovals { removals }, &[]);
    }
    records.settle();
    let known: Vec<WrittenRemoval> = records.removals().into_iter().cloned().collect();
    assert_eq!(known, [removal(1, 5), removal(2, 9)]);
    assert_eq!(known[0].point().id, "point 1");
}
