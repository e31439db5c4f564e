//! Restore points: made, listed, removed, damaged, verified.

use vmsnap::model::block::BlockErrorKind;
use vmsnap::model::chain::{Concern, MissedWrite};
use vmsnap::model::guest::BootLevel;
use vmsnap::model::pin::Pin;
use vmsnap::model::stop::Stop;
use vmsnap::repo::{
    BootProof, DamageNote, DomainRepository, FileWatch, Identity, Leftover, MissedWriteRecord, Note, Proof,
    RepoError, SmallFile,
};

use super::kinds::{DEFINITION, Kind, Maker, PERIOD, data, is_damage, moment, read_through, reading, zero};
use crate::lab::CLUSTER;

pub(super) const SIZE: u64 = 4 * CLUSTER as u64;

pub(super) fn domain(kind: &dyn Kind) -> Box<dyn DomainRepository> {
    kind.repository().domain("vm1").expect("a name that fits")
}

/// A full restore point and one that depends on it, with the disk of each.
pub(super) fn two_points(domain: &dyn DomainRepository) -> [(String, Vec<u8>); 2] {
    let first = Maker::new(domain, 0).make(SIZE, vec![data(0, &[1; 2 * CLUSTER])], None);
    let changed = vec![data(1, &[2; CLUSTER]), zero(2, CLUSTER), data(3, &[3; CLUSTER])];
    let second = Maker::new(domain, 1).make(SIZE, changed, Some(&first));
    let mut disk = vec![0; SIZE as usize];
    disk[..2 * CLUSTER].fill(1);
    let full = disk.clone();
    disk[CLUSTER..2 * CLUSTER].fill(2);
    disk[3 * CLUSTER..].fill(3);
    [(first, full), (second, disk)]
}

pub(super) fn ids(domain: &dyn DomainRepository) -> Vec<String> {
    let history = domain.history().expect("it can be read");
    let points = history.chains.points().iter();
    let ids: Vec<String> = points.map(|kept| kept.point.id.clone()).collect();
    let kept: Vec<&String> = history.kept.iter().map(|kept| &kept.manifest.point.id).collect();
    assert_eq!(ids.iter().collect::<Vec<_>>(), kept, "both in the same order");
    ids
}

pub fn id_is_given_once(kind: &dyn Kind) {
    let repository = kind.repository();
    assert_eq!(repository.identity() != Identity::None, kind.is_complete());
    let given = repository.ensure_identity().expect("it is given");
    assert!(given.id().is_some(), "{given:?}");
    let again = kind.repository();
    assert_eq!(again.ensure_identity().expect("it is kept"), given);
    assert_eq!(again.identity(), given);
    assert_eq!(domain(kind).identity(), given);
}

pub fn what_is_committed_reads_back(kind: &dyn Kind) {
    let domain = domain(kind);
    assert_eq!(ids(domain.as_ref()), [""; 0]);
    let points = two_points(domain.as_ref());
    // A second handle on the same repository reads them.
    let again = self::domain(kind);
    for (id, disk) in &points {
        let read = read_through(again.as_ref(), id).expect("it is sound");
        assert!(read == *disk, "{id}");
    }
    assert_eq!(kind.repository().domains().expect("they are listed"), ["vm1"]);
    assert_eq!(again.used_periods().expect("they are listed"), [PERIOD]);
    let usage = again.period_usage(PERIOD);
    assert!(usage.exists && usage.files >= 4 && usage.bytes > 0, "{usage:?}");
    assert!(!again.period_usage("vmsnap-backup-monthly-2026-10").exists);
    let history = again.history().expect("it can be read");
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    assert_eq!(history.chains.faults(&points[1].0), [""; 0]);
}

pub fn an_uncommitted_point_is_invisible(kind: &dyn Kind) {
    let domain = domain(kind);
    let writer = domain.try_lock().expect("nobody else writes");
    let maker = Maker::new(domain.as_ref(), 0);
    let mut pending = writer.begin(PERIOD, moment(0)).expect("it begins");
    let history = writer.history().expect("it can be read");
    let blocks = vec![data(0, &[7; CLUSTER])];
    let manifest = maker.fill(pending.as_ref(), SIZE, blocks, (&history, None));
    assert_eq!(ids(domain.as_ref()), [""; 0]);
    let leftovers = domain.history().expect("it can be read").leftovers;
    assert_eq!(leftovers.len(), 1, "{leftovers:?}");
    let location = pending.commit(&manifest).expect("it is committed");
    assert_eq!(ids(domain.as_ref()), [pending.id()]);
    let history = domain.history().expect("it can be read");
    assert_eq!(history.kept[0].location, location);
    assert_eq!(history.leftovers, []);
}

pub fn a_dropped_point_leaves_nothing(kind: &dyn Kind) {
    let domain = domain(kind);
    let writer = domain.try_lock().expect("nobody else writes");
    let maker = Maker::new(domain.as_ref(), 0);
    let pending = writer.begin(PERIOD, moment(0)).expect("it begins");
    pending.write_note(b"a note").expect("it is noted");
    let history = writer.history().expect("it can be read");
    maker.fill(
        pending.as_ref(),
        SIZE,
        vec![data(0, &[7; CLUSTER])],
        (&history, None),
    );
    drop(pending);
    let history = domain.history().expect("it can be read");
    assert!(history.kept.is_empty() && history.leftovers.is_empty() && history.findings.is_empty());
    assert!(!domain.period_usage(PERIOD).exists);
}

pub fn a_left_point_keeps_its_note(kind: &dyn Kind) {
    let domain = domain(kind);
    let writer = domain.try_lock().expect("nobody else writes");
    let pending = writer.begin(PERIOD, moment(0)).expect("it begins");
    let note_of = |leftover: &Leftover| domain.note(leftover).expect("it can be read");
    let leftover = || domain.history().expect("it can be read").leftovers.remove(0);
    assert_eq!(note_of(&leftover()), Note::None);
    pending.write_note(b"what was begun").expect("it is noted");
    let location = pending.leave();
    let leftover = leftover();
    assert_eq!(leftover.location, location);
    assert_eq!(note_of(&leftover), Note::Text(b"what was begun".to_vec()));
    assert!(domain.has_leftover(&leftover));
    writer.remove_leftover(&leftover).expect("it is removed");
    assert!(!domain.has_leftover(&leftover));
    assert_eq!(domain.history().expect("it can be read").leftovers, []);
}

pub fn a_disk_can_be_begun_again(kind: &dyn Kind) {
    let domain = domain(kind);
    let writer = domain.try_lock().expect("nobody else writes");
    let maker = Maker::new(domain.as_ref(), 0);
    let mut pending = writer.begin(PERIOD, moment(0)).expect("it begins");
    let history = writer.history().expect("it can be read");
    let disk = vmsnap::repo::NewDisk {
        target: "vda",
        size: SIZE,
        parent: None,
        compression: vmsnap::model::compression::Compression::default(),
        stop: Stop::default(),
    };
    let mut given_up = pending.sink(&disk).expect("it begins");
    given_up
        .write(data(0, &[9; CLUSTER]))
        .expect("it takes the block");
    drop(given_up);
    let manifest = maker.fill(
        pending.as_ref(),
        SIZE,
        vec![data(1, &[7; CLUSTER])],
        (&history, None),
    );
    pending.commit(&manifest).expect("it is committed");
    let read = read_through(domain.as_ref(), pending.id()).expect("it is sound");
    assert!(read[..CLUSTER].iter().all(|byte| *byte == 0));
    assert!(read[CLUSTER..2 * CLUSTER].iter().all(|byte| *byte == 7));
}

pub fn the_lock_excludes_and_names_its_holder(kind: &dyn Kind) {
    let domain = domain(kind);
    assert_eq!(domain.writer(), None);
    let writer = domain.try_lock().expect("nobody else writes");
    let own = format!("process {}", std::process::id());
    assert_eq!(domain.writer().as_ref(), Some(&own));
    match self::domain(kind).try_lock().map(|_| ()) {
        Err(RepoError::Locked { holder, .. }) => assert_eq!(holder, own),
        other => panic!("{other:?}"),
    }
    let other = kind.repository().domain("vm2").expect("a name that fits");
    other.try_lock().expect("another domain is free");
    drop(writer);
    assert_eq!(domain.writer(), None);
    domain.try_lock().expect("it is free again");
}

pub fn history_is_in_the_order_of_the_commits(kind: &dyn Kind) {
    let domain = domain(kind);
    // The clock goes back, and the period changes.
    let made = [(5, PERIOD), (1, "vmsnap-backup-monthly-2026-10"), (3, PERIOD)].map(|(number, period)| {
        let maker = Maker {
            period,
            ..Maker::new(domain.as_ref(), number)
        };
        maker.make(SIZE, vec![data(0, &[1; CLUSTER])], None)
    });
    assert_eq!(ids(domain.as_ref()), made);
}

pub fn two_points_of_one_second_have_two_ids(kind: &dyn Kind) {
    let domain = domain(kind);
    let make = || Maker::new(domain.as_ref(), 0).make(SIZE, vec![data(0, &[1; CLUSTER])], None);
    let made = [make(), make()];
    assert_eq!(made[1], format!("{}-2", made[0]));
    let copies = [0, 1].map(|number| domain.copy_period(moment(number)).expect("it is named"));
    assert_ne!(copies[0], copies[1]);
}

pub fn a_given_id_is_used_once(kind: &dyn Kind) {
    const ID: &str = "2026-11-01T02-00-03Z";
    let domain = domain(kind);
    let writer = domain.try_lock().expect("nobody else writes");
    let is_taken = || matches!(writer.begin_with_id(PERIOD, ID), Err(RepoError::IdTaken { id }) if id == ID);
    let maker = Maker::new(domain.as_ref(), 0);
    let mut pending = writer.begin_with_id(PERIOD, ID).expect("it begins");
    assert_eq!(pending.id(), ID);
    assert!(is_taken(), "an unfinished one has it");
    let history = writer.history().expect("it can be read");
    let blocks = vec![data(0, &[7; CLUSTER])];
    let manifest = maker.fill(pending.as_ref(), SIZE, blocks, (&history, None));
    pending.commit(&manifest).expect("it is committed");
    assert_eq!(ids(domain.as_ref()), [ID]);
    assert!(is_taken(), "a finished one has it");
    let history = writer.history().expect("it can be read");
    writer
        .remove_point(&history, ID, moment(1))
        .expect("nothing depends on it");
    let again = writer
        .begin_with_id(PERIOD, ID)
        .expect("the removed one has gone");
    drop(again);
    assert_eq!(ids(domain.as_ref()), [""; 0]);
}

pub fn a_removed_period_is_gone_and_no_damage(kind: &dyn Kind) {
    let domain = domain(kind);
    let old = "vmsnap-backup-monthly-2026-10";
    let maker = Maker {
        period: old,
        ..Maker::new(domain.as_ref(), 0)
    };
    maker.make(SIZE, vec![data(0, &[1; CLUSTER])], None);
    let stays = Maker::new(domain.as_ref(), 1).make(SIZE, vec![data(0, &[2; CLUSTER])], None);
    let before = domain.history().expect("it can be read");
    let writer = domain.try_lock().expect("nobody else writes");
    writer.remember_committed(&before).expect("it is remembered");
    let removed = |number: usize| {
        domain
            .is_removed(&before.kept[number])
            .expect("its period can be read")
    };
    assert!(!removed(0));
    writer.remove_period(old, moment(9)).expect("it is removed");
    assert!(removed(0) && !removed(1));
    assert_eq!(ids(domain.as_ref()), [stays]);
    assert!(!domain.period_usage(old).exists);
    let after = domain.history().expect("it can be read");
    assert!(after.findings.is_empty(), "{:?}", after.findings);
    assert_eq!(domain.interrupted_removals().expect("they are listed"), []);
}

pub fn a_removed_point_is_gone_and_no_damage(kind: &dyn Kind) {
    let domain = domain(kind);
    let [(first, full), (second, _)] = two_points(domain.as_ref());
    let before = domain.history().expect("it can be read");
    let writer = domain.try_lock().expect("nobody else writes");
    writer.remember_committed(&before).expect("it is remembered");
    let removed = |number: usize| domain.is_removed(&before.kept[number]).expect("it can be told");
    writer.remove_point(&before, &second, moment(9)).expect("it goes");
    assert!(removed(1) && !removed(0));
    assert_eq!(ids(domain.as_ref()), std::slice::from_ref(&first));
    let after = domain.history().expect("it can be read");
    assert!(after.findings.is_empty(), "{:?}", after.findings);
    let known: Vec<_> = after
        .chains
        .removed()
        .map(|point| (point.id.clone(), point.removed))
        .collect();
    assert_eq!(known, [(second.clone(), moment(9))]);
    assert_eq!(domain.interrupted_removals().expect("they are listed"), []);
    let read = read_through(domain.as_ref(), &first).expect("it is sound");
    assert!(read == full);
    let gone = read_through(domain.as_ref(), &second).expect_err("it is gone");
    assert!(gone.to_string().contains("was removed on"), "{gone}");
    writer
        .remove_point(&after, &second, moment(9))
        .expect_err("it is gone");
    drop(writer);
    // Its id is not given again.
    let third = Maker::new(domain.as_ref(), 1).make(SIZE, vec![data(0, &[9; CLUSTER])], Some(&first));
    assert_ne!(third, second);
}

pub fn a_point_that_another_needs_is_not_removed(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = two_points(domain.as_ref());
    let [(first, _), (second, _)] = &points;
    let history = domain.history().expect("it can be read");
    let writer = domain.try_lock().expect("nobody else writes");
    let error = writer
        .remove_point(&history, first, moment(9))
        .expect_err("refused");
    assert!(matches!(error, RepoError::Needed { .. }), "{error}");
    for (id, disk) in &points {
        assert!(read_through(domain.as_ref(), id).expect("it is sound") == *disk);
    }
    for id in [second, first] {
        writer
            .remove_point(&history, id, moment(9))
            .expect("nothing needs it now");
    }
    assert_eq!(ids(domain.as_ref()), [""; 0]);
    assert!(!domain.period_usage(PERIOD).exists);
}

pub fn a_pin_is_kept_replaced_and_removed(kind: &dyn Kind) {
    let domain = domain(kind);
    two_points(domain.as_ref());
    let pin = |note: &str| Pin {
        since: Some(moment(7)),
        note: note.to_owned(),
    };
    let pins = || -> Vec<Option<Pin>> {
        let history = domain.history().expect("it can be read");
        let points = history.chains.points().iter();
        points.map(|kept| kept.pin.clone()).collect()
    };
    let usage = domain.period_usage(PERIOD);
    let history = domain.history().expect("it can be read");
    let writer = domain.try_lock().expect("nobody else writes");
    for note in ["", "before the upgrade"] {
        writer.pin(&history.kept[0], &pin(note)).expect("pinned");
        assert_eq!(pins(), [Some(pin(note)), None]);
    }
    assert_eq!(
        domain.period_usage(PERIOD),
        usage,
        "a pin is no part of what is stored"
    );
    assert!(writer.unpin(&history.kept[0]).expect("unpinned"));
    assert!(!writer.unpin(&history.kept[1]).expect("nothing to do"));
    assert_eq!(pins(), [None, None]);
}

pub fn the_mark_of_a_restore_is_kept_and_removed(kind: &dyn Kind) {
    let domain = domain(kind);
    assert_eq!(domain.restore_mark().expect("readable"), Note::None);
    two_points(domain.as_ref());
    let before = (ids(domain.as_ref()), domain.period_usage(PERIOD));
    let writer = domain.try_lock().expect("nobody else writes");
    for text in ["{}", "another"] {
        writer.write_restore_mark(text.as_bytes()).expect("written");
        let again = kind.repository().domain("vm1").expect("a name that fits");
        assert_eq!(again.restore_mark().expect("readable"), Note::Text(text.into()));
        let other = kind.repository().domain("vm2").expect("a name that fits");
        assert_eq!(other.restore_mark().expect("readable"), Note::None);
    }
    assert!(!domain.restore_mark_location().is_empty());
    assert_eq!(
        (ids(domain.as_ref()), domain.period_usage(PERIOD)),
        before,
        "it is no part of what is stored"
    );
    assert!(domain.history().expect("it can be read").findings.is_empty());
    for _ in 0..2 {
        writer.remove_restore_mark().expect("removed");
        assert_eq!(domain.restore_mark().expect("readable"), Note::None);
    }
}

pub fn two_domains_do_not_see_each_other(kind: &dyn Kind) {
    let repository = kind.repository();
    let [one, other] = ["vm1", "a/b: %"].map(|name| repository.domain(name).expect("a name that fits"));
    let made = Maker::new(one.as_ref(), 0).make(SIZE, vec![data(0, &[1; CLUSTER])], None);
    assert_eq!(ids(other.as_ref()), [""; 0]);
    let others = Maker::new(other.as_ref(), 0).make(SIZE, vec![data(0, &[2; CLUSTER])], None);
    assert_eq!(made, others, "the same time");
    for (domain, byte) in [(&one, 1), (&other, 2)] {
        let read = read_through(domain.as_ref(), &made).expect("it is sound");
        assert!(read[..CLUSTER].iter().all(|held| *held == byte));
    }
    let writer = one.try_lock().expect("nobody else writes");
    writer.remove_period(PERIOD, moment(9)).expect("it is removed");
    assert_eq!(ids(one.as_ref()), [""; 0]);
    assert_eq!(ids(other.as_ref()), [others]);
}

/// Counts the events that it receives.
#[derive(Default)]
struct Watch {
    files: usize,
    ended: usize,
}

impl FileWatch for Watch {
    fn begins(&mut self, _file: &str, _size: u64) {
        self.files += 1;
    }

    fn at(&mut self, _file: &str, _position: u64) {}

    fn ends(&mut self, _file: &str) {
        self.ended += 1;
    }
}

pub fn damage_is_reported_and_never_handed_out(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = two_points(domain.as_ref());
    let history = domain.history().expect("it can be read");
    let check = |id: &str| {
        let (mut watch, mut damage) = (Watch::default(), Vec::new());
        let kept = history.get(id).expect("it is kept");
        let stop = Stop::default();
        domain
            .check_files(&history, kept, &mut watch, &stop, &mut damage)
            .expect("it can be read");
        assert!(watch.files > 0 && watch.files == watch.ended);
        damage
    };
    assert_eq!(check(&points[0].0), []);
    // Damages the oldest image, on which both points depend.
    kind.damage("vm1", &points[0].0, "vda");
    let found = check(&points[0].0);
    assert!(!found.is_empty() && found.iter().all(|damage| damage.disk.as_deref() == Some("vda")));
    assert_eq!(check(&points[1].0), [], "its own files are sound");
    for (id, disk) in &points {
        let error = read_through(domain.as_ref(), id).expect_err("it is damaged");
        assert!(is_damage(&error), "{error}");
        let reader = domain
            .open_disk(&history, id, "vda", &Stop::default())
            .expect("it opens");
        let mut refused = 0;
        for offset in (0..disk.len()).step_by(CLUSTER / 2) {
            let mut out = vec![0; CLUSTER / 2];
            match reader.read_at(&mut out, offset as u64) {
                Ok(()) => assert!(
                    out == disk[offset..offset + out.len()],
                    "{id}: wrong bytes at {offset}"
                ),
                Err(error) => {
                    assert_eq!(error.kind, BlockErrorKind::Damaged, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{id}: the damage was not noticed");
        assert!(!reader.holds(&disk[..CLUSTER], 0).expect("it can be compared"));
    }
}

pub fn small_files_are_checked(kind: &dyn Kind) {
    let domain = domain(kind);
    let made = Maker::new(domain.as_ref(), 0).make(SIZE, vec![data(0, &[1; CLUSTER])], None);
    let mut history = domain.history().expect("it can be read");
    let kept = history.get(&made).expect("it is kept");
    let read = domain.read_file(kept, SmallFile::Definition);
    assert_eq!(read.as_deref(), Ok(DEFINITION));
    domain.read_file(kept, SmallFile::Nvram).expect_err("it has none");
    // As if the manifest recorded other content.
    let files = &mut history.kept[0].manifest.files;
    let entry = files
        .iter_mut()
        .find(|file| file.name == SmallFile::Definition.name());
    entry.expect("it is listed").blake3 = "00".repeat(32);
    let refused = domain.read_file(&history.kept[0], SmallFile::Definition);
    assert!(refused.is_err_and(|what| what.contains("is damaged")));
}

pub fn proofs_and_missed_writes_are_remembered(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = two_points(domain.as_ref());
    let history = || domain.history().expect("it can be read");
    let before = history();
    let kept = before.get(&points[0].0).expect("it is kept");
    let proof = |number: i64, damage: &[&str]| Proof {
        id: kept.manifest.point.id.clone(),
        manifest: kept.manifest.digest.clone(),
        time: moment(number),
        deep: true,
        deep_time: None,
        damage: damage
            .iter()
            .map(|what| DamageNote {
                what: (*what).to_owned(),
                concerns: Concern::Disk("vda".to_owned()),
            })
            .collect(),
    };
    let known = || history().get(&points[0].0).expect("it is kept").records.clone();
    domain
        .keep_proof(&proof(10, &[]), &known())
        .expect("it is remembered");
    assert_eq!(history().kept[0].proof, Some(proof(10, &[])));
    domain
        .keep_proof(&proof(11, &["it is torn"]), &known())
        .expect("it is remembered");
    let now = history();
    assert_eq!(now.kept[0].proof, Some(proof(11, &["it is torn"])));
    let damaged = match kind.is_complete() {
        true => &points[0].0,
        false => &points[1].0,
    };
    let damage = now
        .chains
        .suspected_damage(damaged, "vda")
        .expect("it is damaged, or its parent is");
    assert!(damage.contains("it is torn"), "{damage}");
    // A verification that did not know of the damage does not disprove it.
    domain.keep_proof(&proof(12, &[]), &[]).expect("it is remembered");
    assert!(!history().kept[0].proof.as_ref().expect("there is one").is_sound());
    domain
        .keep_proof(&proof(13, &[]), &known())
        .expect("it is remembered");
    assert_eq!(history().chains.suspected_damage(damaged, "vda"), None);
    let missed = MissedWriteRecord {
        id: points[1].0.clone(),
        manifest: before.kept[1].manifest.digest.clone(),
        time: moment(14),
        disks: vec!["vda".to_owned()],
    };
    domain.keep_missed_writes(&missed).expect("it is remembered");
    domain.forget_removed().expect("nothing was removed");
    let now = history();
    assert_eq!(
        now.chains.points()[1].missed_writes,
        [MissedWrite {
            disk: "vda".to_owned(),
            found: moment(14)
        }]
    );
    assert_eq!(now.kept[0].proof, Some(proof(13, &[])));
    assert_eq!(now.kept[1].proof, None);
}

pub fn the_newest_boot_proof_is_remembered(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = two_points(domain.as_ref());
    let history = || domain.history().expect("it can be read");
    let digests: Vec<String> = history()
        .kept
        .iter()
        .map(|kept| kept.manifest.digest.clone())
        .collect();
    let proof = |place: usize, number: i64, shortfall: Option<&str>| BootProof {
        id: points[place].0.clone(),
        manifest: digests[place].clone(),
        time: moment(number),
        reached: BootLevel::Read,
        wanted: BootLevel::Agent,
        pattern: None,
        command: Vec::new(),
        shortfall: shortfall.map(str::to_owned),
        seconds: 7,
    };
    let kept = |place: usize| history().kept[place].boot_proof.clone();
    let keep = |proof: &BootProof| domain.keep_boot_proof(proof).expect("it is remembered");
    assert_eq!((kept(0), kept(1)), (None, None));
    keep(&proof(0, 10, Some("it did not answer")));
    keep(&proof(1, 11, None));
    assert_eq!(kept(0), Some(proof(0, 10, Some("it did not answer"))));
    keep(&proof(0, 12, None));
    assert_eq!(kept(0), Some(proof(0, 12, None)));
    // The clock was set back: the earlier boot proof is replaced, too.
    keep(&proof(0, 9, Some("it is stuck")));
    assert_eq!(kept(0), Some(proof(0, 9, Some("it is stuck"))));
    // Verifications and boot proofs do not replace each other.
    let verified = Proof {
        id: points[0].0.clone(),
        manifest: digests[0].clone(),
        time: moment(13),
        deep: true,
        deep_time: None,
        damage: Vec::new(),
    };
    let records = || history().kept[0].records.clone();
    assert_eq!(records(), [""; 0]);
    domain
        .keep_proof(&verified, &records())
        .expect("it is remembered");
    assert_eq!(records().len(), 1);
    domain
        .keep_proof(&verified, &records())
        .expect("it is remembered");
    assert_eq!(kept(0), Some(proof(0, 9, Some("it is stuck"))));
    keep(&proof(0, 14, None));
    domain.forget_removed().expect("nothing was removed");
    let now = history();
    assert_eq!(now.kept[0].proof, Some(verified));
    assert_eq!(now.kept[0].boot_proof, Some(proof(0, 14, None)));
    assert_eq!(now.kept[1].boot_proof, Some(proof(1, 11, None)));
    // One of another restore point that had this id does not count.
    let foreign = BootProof {
        manifest: "0".repeat(64),
        ..proof(1, 20, None)
    };
    keep(&foreign);
    assert_eq!(kept(1), None);
}

pub fn a_wish_to_stop_ends_every_read(kind: &dyn Kind) {
    let domain = domain(kind);
    let [_, (id, disk)] = two_points(domain.as_ref());
    let history = domain.history().expect("it can be read");
    let stop = Stop::default();
    let reader = domain.open_disk(&history, &id, "vda", &stop).expect("it opens");
    let mut source = domain
        .open_source(&history, &id, "vda", &reading(&stop))
        .expect("it opens");
    stop.request(vmsnap::model::stop::StopReason::Terminated);
    let stopped = [
        reader.read_at(&mut [0; 100], 0).err(),
        reader.extent_at(0).err(),
        reader.holds(&disk[..100], 0).err(),
        source.next_block().err(),
    ];
    for error in stopped {
        assert_eq!(error.expect("it was asked to stop").kind, BlockErrorKind::Stopped);
    }
    let (mut watch, mut damage) = (Watch::default(), Vec::new());
    let kept = history.get(&id).expect("it is kept");
    let checked = domain.check_files(&history, kept, &mut watch, &stop, &mut damage);
    assert!(checked.is_err() && damage.is_empty());
}

pub fn a_missing_parent_is_told(kind: &dyn Kind) {
    let domain = domain(kind);
    let old = "vmsnap-backup-monthly-2026-10";
    let maker = Maker {
        period: old,
        ..Maker::new(domain.as_ref(), 0)
    };
    let parent = maker.make(SIZE, vec![data(0, &[1; CLUSTER])], None);
    let child = Maker::new(domain.as_ref(), 1).make(SIZE, vec![data(1, &[2; CLUSTER])], Some(&parent));
    let writer = domain.try_lock().expect("nobody else writes");
    writer.remove_period(old, moment(9)).expect("it is removed");
    let history = domain.history().expect("it can be read");
    let opened = domain.open_disk(&history, &child, "vda", &Stop::default());
    match opened.map(|_| ()) {
        Err(RepoError::NotWhole { id, fault }) => {
            assert_eq!(id, child);
            assert!(fault.contains(&parent), "{fault}");
        }
        other => panic!("{other:?}"),
    }
}
