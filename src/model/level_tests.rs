//! Tests of the choice of level and parent: each reason by itself, and random histories against a
//! naive model.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::model::chain::{Concern, FileFault, MissedWrite, SuspectedDamage};
use crate::model::checkpoint::{Bitmap, CheckpointDisk, CheckpointId, new_name};
use crate::model::restore_point::{Consistency, DiskPoint, RestorePoint};

const UUID: &str = "6f1b2a3c-0000-4000-8000-000000000001";
const PERIOD: &str = "vmsnap-backup-monthly-2026-11";
const SIZE: u64 = 1 << 20;

/// The only fault of a restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    OtherPeriod,
    OtherDomain,
    NoDisk,
    Moved,
    OtherFile,
    NotCovered,
    CountedName,
    Larger,
    CheckpointGone,
    MadeAnew,
    Unknown,
    Broken,
    FileMissing,
    Damaged,
    MissedWrite,
    /// The restore point names another digest than that of its parent's manifest.
    OtherParent,
}

const DEFECTS: [Defect; 17] = [
    Defect::None,
    Defect::OtherPeriod,
    Defect::OtherDomain,
    Defect::NoDisk,
    Defect::Moved,
    Defect::OtherFile,
    Defect::NotCovered,
    Defect::CountedName,
    Defect::Larger,
    Defect::CheckpointGone,
    Defect::MadeAnew,
    Defect::Unknown,
    Defect::Broken,
    Defect::FileMissing,
    Defect::Damaged,
    Defect::MissedWrite,
    Defect::OtherParent,
];

/// A restore point to be constructed.
#[derive(Clone, Copy, Debug)]
struct Made {
    defect: Defect,
    is_full: bool,
}

fn id(index: usize) -> String {
    format!("2026-11-{:02}T00-00-00Z", index + 1)
}

fn file(inode: u64) -> FileId {
    let born = Timestamp::UNIX_EPOCH;
    FileId { inode, born }
}

fn checkpoint_name(index: usize, made: Made) -> String {
    match made.defect {
        Defect::CountedName => format!("virtnbdbackup.{index}"),
        _ => new_name(1_793_000_000, index as u64),
    }
}

fn disk_point(index: usize, made: Made) -> DiskPoint {
    let parent = (!made.is_full).then(|| id(index - 1));
    let right = format!("digest {}", index.wrapping_sub(1));
    let parent_manifest = match made.defect {
        Defect::OtherParent => "another digest".to_owned(),
        _ => right,
    };
    DiskPoint {
        target: "vda".into(),
        level: if made.is_full {
            Level::Full
        } else {
            Level::Incremental
        },
        reason: String::new(),
        parent_manifest: parent.is_some().then_some(parent_manifest),
        parent,
        checkpointed: made.defect != Defect::NotCovered,
        virtual_size: if made.defect == Defect::Larger {
            2 * SIZE
        } else {
            SIZE
        },
        source: if made.defect == Defect::Moved {
            "/elsewhere"
        } else {
            "/i/vda"
        }
        .into(),
        source_file: Some(file(if made.defect == Defect::OtherFile { 2 } else { 1 })),
        source_format: "qcow2".into(),
        decrypted: None,
        image: "vda.qcow2".into(),
        data_bytes: 0,
        zero_bytes: 0,
        compression: None,
    }
}

fn kept(index: usize, made: Made) -> KeptPoint {
    let defect = made.defect;
    let disk = disk_point(index, made);
    let point = RestorePoint {
        id: id(index),
        sequence: index as u64 + 1,
        domain: "vm1".into(),
        uuid: if defect == Defect::OtherDomain {
            "another"
        } else {
            UUID
        }
        .into(),
        time: Timestamp::UNIX_EPOCH,
        period: if defect == Defect::OtherPeriod {
            "another"
        } else {
            PERIOD
        }
        .into(),
        level: disk.level,
        parent: disk.parent.clone(),
        checkpoint: Some(CheckpointId {
            name: checkpoint_name(index, made),
            created: index as i64,
        }),
        consistency: Consistency::Offline,
        disks: if defect == Defect::NoDisk {
            Vec::new()
        } else {
            vec![disk]
        },
        findings: Vec::new(),
        left_out: Vec::new(),
        merged: None,
        copied_from: None,
        guest: None,
    };
    let fault = FileFault {
        file: "vda.qcow2".into(),
        what: "vda.qcow2 is missing".into(),
    };
    let damage = SuspectedDamage {
        what: "vda.qcow2 is damaged".into(),
        concerns: Concern::Disk("vda".into()),
    };
    let missed = MissedWrite {
        disk: "vda".into(),
        found: Timestamp::UNIX_EPOCH,
    };
    KeptPoint {
        point,
        manifest: format!("digest {index}"),
        faults: Vec::from_iter((defect == Defect::FileMissing).then_some(fault)),
        suspected_damage: Vec::from_iter((defect == Defect::Damaged).then_some(damage)),
        missed_writes: Vec::from_iter((defect == Defect::MissedWrite).then_some(missed)),
        pin: None,
        needs_parents: true,
    }
}

fn checkpoint(index: usize, made: Made) -> Option<Checkpoint> {
    let bitmap = match made.defect {
        Defect::CheckpointGone => return None,
        Defect::Unknown => Bitmap::Unknown,
        Defect::Broken => Bitmap::Broken,
        _ => Bitmap::Sound,
    };
    Some(Checkpoint {
        name: checkpoint_name(index, made),
        created: index as i64 + i64::from(made.defect == Defect::MadeAnew),
        mark: None,
        disks: vec![CheckpointDisk {
            target: "vda".into(),
            bitmap,
            dirty_bytes: None,
        }],
    })
}

fn now() -> DiskNow {
    DiskNow {
        target: "vda".into(),
        full_only: None,
        virtual_size: Some(SIZE),
        sources: vec![SourceNow {
            path: "/i/vda".into(),
            file: Some(file(1)),
        }],
    }
}

fn decided(history: &[Made]) -> DiskLevel {
    let made = || history.iter().copied().enumerate();
    let chains = Chains::new(made().map(|(index, made)| kept(index, made)).collect());
    let checkpoints: Vec<Checkpoint> = made()
        .filter_map(|(index, made)| checkpoint(index, made))
        .collect();
    decide(&now(), UUID, (PERIOD, FullRule::Period), &chains, &checkpoints)
}

/// The reason for the next level after a full restore point with one defect.
fn reason(defect: Defect) -> String {
    let made = Made {
        defect,
        is_full: true,
    };
    let level = decided(&[made]);
    assert_eq!(level.parent, None, "{defect:?}");
    level.reason.to_string()
}

#[test]
fn a_sound_restore_point_is_the_parent() {
    let defect = Defect::None;
    let level = decided(&[
        Made {
            defect,
            is_full: true,
        },
        Made {
            defect,
            is_full: false,
        },
    ]);
    let parent = level.parent.clone().expect("the newest is the parent");
    assert_eq!(parent.id, id(1));
    assert_eq!(parent.checkpoint, new_name(1_793_000_000, 1));
    assert_eq!(parent.virtual_size, SIZE);
    assert_eq!(level.reason.to_string(), "changes since 2026-11-02T00-00-00Z");
    assert_eq!(level.level(), Level::Incremental);
}

#[test]
fn each_defect_has_its_own_reason() {
    let first = "2026-11-01T00-00-00Z";
    let made = new_name(1_793_000_000, 0);
    let expected = [
        (Defect::OtherPeriod, "first of the period".to_owned()),
        (
            Defect::OtherDomain,
            format!("restore point {first} belongs to another domain with the same name (UUID another)"),
        ),
        (
            Defect::NoDisk,
            format!("disk vda is not in restore point {first}"),
        ),
        (
            Defect::Moved,
            format!("disk vda was at /elsewhere when restore point {first} was made, but is elsewhere now"),
        ),
        (
            Defect::OtherFile,
            format!("/i/vda is not the same file as when restore point {first} was made"),
        ),
        (
            Defect::NotCovered,
            format!("restore point {first} has no checkpoint that covers disk vda"),
        ),
        (
            Defect::CountedName,
            format!(
                "the name of checkpoint virtnbdbackup.0 of restore point {first} may have been reused for another bitmap"
            ),
        ),
        (Defect::Larger, format!("disk vda has shrunk since {first}")),
        (Defect::CheckpointGone, format!("checkpoint {made} is gone")),
        (
            Defect::MadeAnew,
            format!("checkpoint {made} has been replaced by another one of the same name"),
        ),
        (
            Defect::Unknown,
            format!("bitmap {made} of disk vda cannot be examined now"),
        ),
        (
            Defect::Broken,
            format!("bitmap {made} of disk vda is missing or inconsistent"),
        ),
        (
            Defect::FileMissing,
            format!("the chain of {first} is not whole: vda.qcow2 is missing"),
        ),
        (
            Defect::Damaged,
            format!("the chain of {first} is damaged: vda.qcow2 is damaged"),
        ),
        (
            Defect::MissedWrite,
            format!("a comparison made after {first} found a write that a bitmap of disk vda had missed"),
        ),
    ];
    for (defect, text) in expected {
        assert_eq!(reason(defect), text, "{defect:?}");
    }
}

#[test]
fn an_older_parent_is_named_with_the_trouble_of_the_newest() {
    let full = |defect| Made {
        defect,
        is_full: true,
    };
    let level = decided(&[full(Defect::None), full(Defect::Moved), full(Defect::Broken)]);
    let broken = format!(
        "bitmap {} of disk vda is missing or inconsistent",
        new_name(1_793_000_000, 2)
    );
    assert_eq!(
        level.reason.to_string(),
        format!("changes since {} ({broken})", id(0))
    );
}

#[test]
fn a_replaced_parent_is_not_relied_on() {
    let full = Made {
        defect: Defect::None,
        is_full: true,
    };
    let child = Made {
        defect: Defect::OtherParent,
        is_full: false,
    };
    let fault = format!(
        "disk vda of {} depends on restore point {}, which has been replaced by another one",
        id(1),
        id(0)
    );
    let level = decided(&[full, child]);
    assert_eq!(
        level.reason.to_string(),
        format!("the chain of {} is not whole: {fault}", id(1))
    );
    // The parent is not usable either.
    let gone = Made {
        defect: Defect::OtherParent,
        is_full: false,
    };
    assert_eq!(decided(&[full, gone]).parent, None);
}

#[test]
fn a_disk_that_is_full_only_says_why() {
    let disk = DiskNow {
        full_only: Some("a raw disk cannot carry a dirty bitmap".into()),
        ..now()
    };
    let level = decide(&disk, UUID, (PERIOD, FullRule::Period), &Chains::default(), &[]);
    assert_eq!((level.level(), level.parent.clone()), (Level::Full, None));
    assert_eq!(level.reason.to_string(), "a raw disk cannot carry a dirty bitmap");
}

#[test]
fn unknown_sizes_and_files_are_no_hindrance() {
    let disk = DiskNow {
        virtual_size: None,
        sources: vec![SourceNow {
            path: "/i/vda".into(),
            file: None,
        }],
        ..now()
    };
    let made = Made {
        defect: Defect::Larger,
        is_full: true,
    };
    let chains = Chains::new(vec![kept(0, made)]);
    let checkpoints: Vec<Checkpoint> = checkpoint(0, made).into_iter().collect();
    let level = decide(&disk, UUID, (PERIOD, FullRule::Period), &chains, &checkpoints);
    assert_eq!(level.parent.expect("it is the parent").id, id(0));
}

/// The indexes of the chain of a restore point, newest first; `None` if it does not fit together.
fn naive_chain(history: &[Made], index: usize) -> Option<Vec<usize>> {
    let mut chain = Vec::new();
    for at in (0..=index).rev() {
        let made = history[at];
        if matches!(made.defect, Defect::NoDisk | Defect::FileMissing) {
            return None;
        }
        chain.push(at);
        match (made.is_full, made.defect) {
            (true, _) => return Some(chain),
            (false, Defect::OtherParent) => return None,
            (false, _) => {}
        }
    }
    None
}

fn naive_is_usable(history: &[Made], index: usize) -> bool {
    let own = [
        Defect::None,
        // These defects affect the chain and are checked below.
        Defect::FileMissing,
        Defect::Damaged,
        Defect::OtherParent,
    ];
    let Some(chain) = naive_chain(history, index) else {
        return false;
    };
    let is_replaced = |at: &usize| {
        let child = history.get(at + 1);
        child.is_some_and(|child| child.defect == Defect::OtherParent && !child.is_full)
    };
    own.contains(&history[index].defect)
        && chain.iter().all(|at| history[*at].defect != Defect::Damaged)
        && !chain.iter().any(is_replaced)
}

/// The index of the parent, found by trying each restore point, newest first.
fn naive_parent(history: &[Made]) -> Option<usize> {
    for index in (0..history.len()).rev() {
        match history[index].defect {
            Defect::OtherPeriod => {}
            Defect::MissedWrite => return None,
            _ if naive_is_usable(history, index) => return Some(index),
            _ => {}
        }
    }
    None
}

fn histories() -> impl Strategy<Value = Vec<Made>> {
    // At least half of them are sound, so that chains grow.
    let defect = prop_oneof![
        1 => Just(Defect::None),
        1 => proptest::sample::select(&DEFECTS[..]),
    ];
    let made = (defect, any::<bool>()).prop_map(|(defect, is_full)| Made { defect, is_full });
    proptest::collection::vec(made, 0..8).prop_map(|mut history| {
        if let Some(first) = history.first_mut() {
            first.is_full = true;
        }
        history
    })
}

proptest! {
    #[test]
    fn the_parent_is_the_one_of_the_naive_model(history in histories()) {
        let level = decided(&history);
        let expected = naive_parent(&history);
        prop_assert_eq!(level.parent.as_ref().map(|parent| parent.id.clone()), expected.map(id));
        let in_period = |made: &&Made| made.defect != Defect::OtherPeriod;
        match level.reason {
            LevelReason::FirstOfPeriod => prop_assert!(!history.iter().any(|made| in_period(&made))),
            LevelReason::ChangesSince { instead_of, .. } => {
                let newest = history.iter().rposition(|made| in_period(&made));
                prop_assert_eq!(instead_of.is_some(), newest != expected);
            }
            LevelReason::MissedWrite { .. } | LevelReason::NoParent(_) => prop_assert_eq!(expected, None),
            LevelReason::FirstOfDomain => prop_assert!(false, "each period begins with a full"),
            LevelReason::StandaloneCopy => prop_assert!(false, "nobody asked for a copy"),
            LevelReason::FullOnly(why) => prop_assert!(false, "{}", why),
        }
    }
}
