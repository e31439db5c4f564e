//! Restores in place: the disks of a shut-off domain go back to a restore point.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmsnap::model::compression::Compression;
use vmsnap::model::domain::{DiskFormat, DomainState};
use vmsnap::model::in_place::InPlaceRefusal;
use vmsnap::model::level::FullRule;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::Options as BackupOptions;
use vmsnap::ops::in_place::{Basis, Options, Outcome, abandon, preview, restore_in_place};
use vmsnap::ops::{Cause, Class, Error, Event, Monitor, Result};

use crate::lab::{CLUSTER, Lab};

const SIZE: usize = 8 * CLUSTER + 1536;

pub fn options(at: &str) -> Options {
    Options {
        at: at.to_owned(),
        disks: Vec::new(),
        mapping: None,
        discard_current: false,
        full: FullRule::Period,
        compression: Compression::None,
        wait: Duration::ZERO,
    }
}

fn discarding(at: &str) -> Options {
    Options {
        discard_current: true,
        ..options(at)
    }
}

/// Random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// A shut-off domain with two disks and three restore points. Returns their ids, oldest first, and
/// the content of the first disk in each of them.
fn lab() -> (Lab, Vec<String>, Vec<Vec<u8>>) {
    let mut lab = Lab::in_memory();
    lab.host.add_domain("vm1", &[("vda", SIZE), ("vdb", SIZE)]);
    let (mut ids, mut disks) = (Vec::new(), Vec::new());
    for round in 0..3u8 {
        write(&lab, "vda", usize::from(round), round + 1);
        write(&lab, "vdb", 7, round + 1);
        let made = lab.backup_with("vm1", &Lab::plain());
        ids.push(made.expect("a restore point").point.id);
        disks.push(lab.disk("vm1", "vda"));
    }
    write(&lab, "vda", 5, 9);
    shut_off(&lab);
    (lab, ids, disks)
}

pub fn shut_off(lab: &Lab) {
    lab.host.change("vm1", |domain| {
        domain.state = DomainState::ShutOff;
        domain.id = None;
    });
}

fn write(lab: &Lab, disk: &str, cluster: usize, byte: u8) {
    lab.host
        .disk("vm1", disk, |disk| disk.write(cluster * CLUSTER, &[byte; 3000]));
}

fn restore(lab: &mut Lab, options: &Options) -> Result<Outcome> {
    let outcome = restore_in_place("vm1", &lab.context(&lab.recorder), options);
    lab.pass(jiff::Span::new().minutes(10));
    outcome
}

fn refused(error: &Error) -> &InPlaceRefusal {
    match &error.cause {
        Cause::InPlaceRefusal(refused) => refused,
        other => panic!("{other}"),
    }
}

fn level_of(lab: &mut Lab, disk: &str) -> (Level, String) {
    let outcome = lab.backup("vm1").expect("a restore point");
    let disk = outcome.point.disk(disk).expect("it is saved");
    (disk.level, disk.reason.clone())
}

#[test]
fn disks_come_back_and_only_differences_are_written() {
    let (mut lab, ids, disks) = lab();
    let before = lab.disk("vm1", "vda");
    let outcome = restore(&mut lab, &options(&ids[0])).expect("restored");
    assert!(lab.disk("vm1", "vda") == disks[0]);

    // Clusters 1, 2 and 5 differ, and hold nothing in the restore point.
    let vda = &outcome.disks[0];
    assert_eq!(
        (vda.written.data_bytes, vda.written.zero_bytes),
        (0, 3 * CLUSTER as u64)
    );
    assert_eq!(
        vda.compared_bytes,
        3 * CLUSTER as u64,
        "nothing else is looked at"
    );
    let vdb = &outcome.disks[1];
    assert_eq!(
        (vdb.written.data_bytes, vdb.written.zero_bytes),
        (CLUSTER as u64, 0)
    );

    // The state before is a restore point.
    let saved = outcome.saved.expect("it was saved");
    assert_eq!(lab.latest("vm1"), saved);
    assert!(lab.restored("vm1", &saved, "vda").expect("restored") == before);
    let status = lab.status("vm1");
    assert!(status.is_consistent(), "{:?}", status.inconsistencies);

    // The bitmaps have recorded the writes.
    let (level, _) = level_of(&mut lab, "vda");
    assert_eq!(level, Level::Incremental);
    for disk in ["vda", "vdb"] {
        lab.assert_gives_back("vm1", disk);
    }
    lab.assert_verified("vm1");
}

#[test]
fn plan_says_what_would_be_compared() {
    let (lab, ids, _) = lab();
    let planned = |at: &str| preview("vm1", &lab.context(&lab.recorder), &options(at)).expect("planned");
    let plan = planned(&ids[0]);
    assert!(plan.saves && plan.ends.is_none());
    let Basis::Changes { since, between } = &plan.disks[0].basis else {
        panic!("{:?}", plan.disks[0].basis);
    };
    let part = between.as_ref().expect("there are restore points between");
    assert_eq!((since.id.as_str(), part.steps), (ids[2].as_str(), 2));
    assert_eq!((&part.newer, &part.older), (&ids[2], &ids[0]));
    assert!(
        plan.disks[0]
            .basis
            .sentence()
            .contains("the data of 2 restore points")
    );
    let plan = planned("latest");
    assert!(matches!(&plan.disks[0].basis, Basis::Changes { since, between: None } if since.id == ids[2]));
    // Without the newest bitmap, the next older one is used.
    lab.host
        .disk("vm1", "vda", |disk| disk.remove_bitmap(&lab.made[2]));
    let plan = planned(&ids[0]);
    assert_eq!(plan.disks[0].basis.checkpoint(), Some(lab.made[1].as_str()));
    assert_eq!(plan.disks[1].basis.checkpoint(), Some(lab.made[2].as_str()));
}

#[test]
fn a_second_restore_finds_nothing_to_write() {
    let (mut lab, ids, disks) = lab();
    restore(&mut lab, &discarding(&ids[1])).expect("restored");
    let again = restore(&mut lab, &discarding(&ids[1])).expect("restored");
    assert!(
        again
            .disks
            .iter()
            .all(|disk| disk.written.zero_bytes + disk.written.data_bytes == 0)
    );
    assert!(lab.disk("vm1", "vda") == disks[1]);
    assert_eq!(again.saved, None);
    assert_eq!(lab.latest("vm1"), ids[2], "no restore point was made");
}

#[test]
fn forward_and_back_again() {
    let (mut lab, ids, disks) = lab();
    let mut saved = Vec::new();
    for index in [0, 2, 1, 0, 2] {
        let before = lab.disk("vm1", "vda");
        let outcome = restore(&mut lab, &options(&ids[index])).expect("restored");
        saved.push((outcome.saved.expect("it was saved"), before));
        assert!(lab.disk("vm1", "vda") == disks[index], "to {index}");
    }
    for (id, before) in saved {
        assert!(lab.restored("vm1", &id, "vda").expect("restored") == before);
    }
    level_of(&mut lab, "vda");
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn without_bitmaps_the_whole_disk_is_compared() {
    let (mut lab, ids, disks) = lab();
    let names = lab.made.clone();
    for name in &names {
        lab.host.disk("vm1", "vda", |disk| disk.remove_bitmap(name));
    }
    let outcome = restore(&mut lab, &discarding(&ids[0])).expect("restored");
    assert!(lab.disk("vm1", "vda") == disks[0]);
    let Basis::Whole(why) = &outcome.disks[0].disk.basis else {
        panic!("{:?}", outcome.disks[0].disk.basis);
    };
    assert!(why.contains("missing or inconsistent"), "{why}");
    assert_eq!(
        outcome.disks[0].compared_bytes,
        4 * CLUSTER as u64,
        "all of the data"
    );
    assert!(matches!(outcome.disks[1].disk.basis, Basis::Changes { .. }));
    let (level, reason) = level_of(&mut lab, "vda");
    assert_eq!(level, Level::Full, "{reason}");
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn zeroes_that_no_bitmap_recorded_are_found() {
    let (mut lab, ids, disks) = lab();
    // As a disk that is shrunk and grown again.
    lab.host
        .disk("vm1", "vda", |disk| disk.shrink_and_grow(2 * CLUSTER));
    lab.host.disk("vm1", "vda", |disk| disk.shrink_and_grow(CLUSTER));
    restore(&mut lab, &discarding(&ids[2])).expect("restored");
    assert!(lab.disk("vm1", "vda") == disks[2]);
}

#[test]
fn a_missed_write_makes_the_comparison_whole() {
    let (mut lab, ids, disks) = lab();
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(CLUSTER, &[77; 10]));
    let compared = vmsnap::ops::compare::compare("vm1", &lab.context(&lab.recorder), &Lab::comparing());
    assert!(!compared.expect("compared").is_same());
    let outcome = restore(&mut lab, &discarding(&ids[1])).expect("restored");
    assert!(matches!(&outcome.disks[0].disk.basis, Basis::Whole(why) if why.contains("missed")));
    assert!(lab.disk("vm1", "vda") == disks[1]);
}

#[test]
fn raw_disks_come_back() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", SIZE)]);
    lab.host
        .change("vm1", |domain| domain.disks[0].format = DiskFormat::Raw);
    write(&lab, "vda", 1, 1);
    let raw = BackupOptions {
        raw: true,
        ..Lab::options()
    };
    let id = lab.backup_with("vm1", &raw).expect("a restore point").point.id;
    let then = lab.disk("vm1", "vda");
    write(&lab, "vda", 3, 3);
    let before = lab.disk("vm1", "vda");
    shut_off(&lab);
    let outcome = restore(&mut lab, &options("latest")).expect("restored");
    assert_eq!(
        outcome.point.id, id,
        "latest is the newest point before the state was saved"
    );
    assert!(lab.disk("vm1", "vda") == then);
    let saved = outcome.saved.expect("it was saved");
    assert!(lab.restored("vm1", &saved, "vda").expect("restored") == before);
}

#[test]
fn only_the_chosen_disk_is_touched() {
    let (mut lab, ids, disks) = lab();
    let before = lab.disk("vm1", "vdb");
    let chosen = Options {
        disks: vec!["vda".to_owned()],
        ..discarding(&ids[0])
    };
    let outcome = restore(&mut lab, &chosen).expect("restored");
    assert!(lab.disk("vm1", "vda") == disks[0] && lab.disk("vm1", "vdb") == before);
    let left: Vec<&str> = outcome
        .findings
        .iter()
        .filter_map(|found| found.disk.as_deref())
        .collect();
    assert_eq!(left, ["vdb"]);
}

#[test]
fn refusals_change_nothing() {
    let (lab, ids, _) = lab();
    let run = |change: &dyn Fn(&Lab), options: &Options| {
        let mut lab = lab.fork();
        change(&lab);
        let before = [lab.disk("vm1", "vda"), lab.disk("vm1", "vdb")];
        let error = restore(&mut lab, options).expect_err("refused");
        assert!(before == [lab.disk("vm1", "vda"), lab.disk("vm1", "vdb")]);
        assert_eq!(
            lab.latest("vm1"),
            ids[2],
            "nothing is saved for a refused restore"
        );
        assert!(lab.status("vm1").is_consistent());
        assert!(preview("vm1", &lab.context(&lab.recorder), options).is_err());
        error
    };
    let at = options(&ids[0]);
    let start = |lab: &Lab| {
        lab.host
            .change("vm1", |domain| domain.state = DomainState::Running)
    };
    assert!(matches!(refused(&run(&start, &at)), InPlaceRefusal::Active(_)));
    let save = |lab: &Lab| lab.host.save_memory("vm1");
    assert_eq!(refused(&run(&save, &at)), &InPlaceRefusal::SavedMemory);
    let grow = |lab: &Lab| lab.host.disk("vm1", "vdb", |disk| disk.resize(2 * SIZE));
    assert!(matches!(
        refused(&run(&grow, &at)),
        InPlaceRefusal::OtherSize { .. }
    ));
    let remake = |lab: &Lab| {
        lab.host
            .change("vm1", |domain| domain.uuid = "another".to_owned())
    };
    assert!(matches!(
        refused(&run(&remake, &at)),
        InPlaceRefusal::OtherDomain { .. }
    ));
    let detach = |lab: &Lab| lab.host.change("vm1", |domain| drop(domain.disks.pop()));
    assert_eq!(
        refused(&run(&detach, &at)),
        &InPlaceRefusal::NoDisk("vdb".to_owned())
    );
    let nothing = |_: &Lab| {};
    assert_eq!(run(&nothing, &options("no such point")).class(), Class::NotFound);
}

/// Flips a bit of the data.
fn change_data(image: &mut [u8]) {
    image[CLUSTER + 10] ^= 1;
}

/// Makes all clusters look unused: the table then reads as zero, as after the loss of a sector.
fn lose_table(image: &mut [u8]) {
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().expect("eight bytes"));
    let second = (word(word(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    assert!(second > 0, "the image has a second table");
    image[second..second + 512].fill(0);
}

#[test]
fn damage_is_found_before_the_first_write() {
    for damage in [change_data, lose_table] {
        let (mut lab, ids, _) = lab();
        assert_damage_is_found(&mut lab, &ids, damage);
    }
}

fn assert_damage_is_found(lab: &mut Lab, ids: &[String], damage: fn(&mut [u8])) {
    let kept = lab
        .history("vm1")
        .get(&ids[0])
        .expect("it is kept")
        .location
        .clone();
    let path = std::path::Path::new(&kept).join("vdb.qcow2");
    let mut image = std::fs::read(&path).expect("an image");
    damage(&mut image);
    std::fs::write(&path, image).expect("written");
    // The first disk is sound, but nothing is written before the second one was read.
    let before = lab.disk("vm1", "vda");
    let error = restore(lab, &discarding(&ids[0])).expect_err("it is damaged");
    assert_eq!(
        (error.class(), error.disk.as_deref()),
        (Class::Damaged, Some("vdb")),
        "{error}"
    );
    assert!(lab.disk("vm1", "vda") == before);
    assert!(lab.status("vm1").is_consistent(), "nothing is in between");
    assert!(!lab.host.has_job("vm1"));
}

/// A user goes back because the newest restore point is bad, too.
#[test]
fn damage_of_another_restore_point_costs_only_time() {
    let (mut lab, ids, disks) = lab();
    let kept = lab
        .history("vm1")
        .get(&ids[2])
        .expect("it is kept")
        .location
        .clone();
    let path = std::path::Path::new(&kept).join("vda.qcow2");
    let mut image = std::fs::read(&path).expect("an image");
    lose_table(&mut image);
    std::fs::write(&path, image).expect("written");
    let outcome = restore(&mut lab, &discarding(&ids[0])).expect("restored");
    assert!(lab.disk("vm1", "vda") == disks[0]);
    let codes: Vec<&str> = outcome
        .findings
        .iter()
        .map(|finding| finding.code.as_str())
        .collect();
    assert!(codes.contains(&"compared-as-a-whole"), "{codes:?}");
}

/// A bitmap that missed a range which became zero may have missed other writes.
#[test]
fn a_bitmap_that_missed_zeroes_is_not_trusted() {
    let (mut lab, ids, disks) = lab();
    lab.host.disk("vm1", "vda", |disk| {
        disk.swap_content(CLUSTER, &[77; 100]);
        disk.shrink_and_grow(2 * CLUSTER);
    });
    restore(&mut lab, &discarding(&ids[1])).expect("restored");
    assert!(lab.disk("vm1", "vda") == disks[1]);
}

/// A monitor that asks to stop when a disk is being written.
struct Stopper<'a>(&'a Lab, AtomicBool);

impl Monitor for Stopper<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::DiskBegins {
            disk: "vdb",
            level: None,
            ..
        } = event
        {
            self.1.store(true, Ordering::Relaxed);
            self.0.stop.request(vmsnap::model::stop::StopReason::Interrupted);
        }
    }
}

/// A lab whose restore to the first restore point was stopped after the first disk.
fn stopped() -> (Lab, Vec<String>, Vec<Vec<u8>>) {
    let (mut lab, ids, disks) = lab();
    let monitor = Stopper(&lab, AtomicBool::default());
    let error = restore_in_place("vm1", &lab.context(&monitor), &options(&ids[0])).expect_err("stopped");
    assert!(error.is_stopped(), "{error}");
    assert!(monitor.1.load(Ordering::Relaxed));
    lab.stop = vmsnap::model::stop::Stop::default();
    lab.pass(jiff::Span::new().minutes(10));
    (lab, ids, disks)
}

#[test]
fn disks_in_between_are_shown_and_never_saved() {
    let (mut lab, ids, _) = stopped();
    let status = lab.status("vm1");
    assert!(
        status
            .inconsistencies
            .iter()
            .any(|what| what.contains("disks vda, vdb is only partly restored") && what.contains(&ids[0])),
        "{:?}",
        status.inconsistencies
    );
    assert!(status.next.is_none(), "no backup is predicted");
    let points = lab.history("vm1").kept.len();
    let error = lab.backup("vm1").expect_err("refused");
    assert!(matches!(error.cause, Cause::InBetween(_)), "{error}");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("vmsnap restore vm1 --in-place"))
    );
    assert!(matches!(
        lab.preview("vm1").expect_err("refused").cause,
        Cause::InBetween(_)
    ));
    assert_eq!(lab.history("vm1").kept.len(), points);
}

#[test]
fn same_or_another_restore_point_ends_it() {
    for target in [0, 2] {
        let (mut lab, ids, disks) = stopped();
        let saved = lab.latest("vm1");
        let planned = preview("vm1", &lab.context(&lab.recorder), &options(&ids[target])).expect("planned");
        assert!(!planned.saves && planned.ends.is_some());
        let outcome = restore(&mut lab, &options(&ids[target])).expect("restored");
        assert_eq!(
            outcome.saved.as_ref(),
            Some(&saved),
            "the state before the first try"
        );
        assert_eq!(lab.latest("vm1"), saved, "the state in between is not saved");
        assert!(lab.disk("vm1", "vda") == disks[target]);
        assert!(lab.status("vm1").is_consistent());
        let (level, reason) = level_of(&mut lab, "vda");
        assert_eq!(level, Level::Incremental, "{reason}");
        for disk in ["vda", "vdb"] {
            lab.assert_gives_back("vm1", disk);
        }
    }
}

#[test]
fn a_part_of_the_disks_does_not_end_it() {
    let (mut lab, ids, _) = stopped();
    let part = Options {
        disks: vec!["vdb".to_owned()],
        ..options(&ids[0])
    };
    let error = restore(&mut lab, &part).expect_err("refused");
    assert!(matches!(refused(&error), InPlaceRefusal::AlsoInBetween { disk, .. } if disk == "vda"));
    assert!(!lab.status("vm1").is_consistent());
}

#[test]
fn a_restore_that_is_given_up_leaves_the_disks() {
    let (mut lab, _, _) = stopped();
    let before = lab.disk("vm1", "vda");
    let found = abandon("vm1", &lab.context(&lab.recorder), Duration::ZERO).expect("abandoned");
    assert!(found.is_some());
    assert!(lab.disk("vm1", "vda") == before);
    let again = abandon("vm1", &lab.context(&lab.recorder), Duration::ZERO).expect("nothing to do");
    assert_eq!(again, None);
    let (level, reason) = level_of(&mut lab, "vda");
    assert_eq!(level, Level::Incremental, "{reason}");
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn an_unreadable_mark_still_marks() {
    let (mut lab, ids, disks) = stopped();
    let path = lab.root().join("vm1/.restoring.json");
    for bad in ["", "{}", "[1]", "{\"uuid\": 1}"] {
        std::fs::write(&path, bad).expect("written");
        let error = lab.backup("vm1").expect_err("refused");
        assert!(error.to_string().contains(".restoring.json"), "{error}");
        assert!(!lab.status("vm1").is_consistent());
        let one = Options {
            disks: vec!["vda".to_owned()],
            ..options(&ids[1])
        };
        let error = restore(&mut lab, &one).expect_err("the other disk may be in between");
        assert_eq!(
            refused(&error),
            &InPlaceRefusal::PerhapsInBetween("vdb".to_owned())
        );
    }
    restore(&mut lab, &options(&ids[1])).expect("restored");
    assert!(!path.exists() && lab.disk("vm1", "vda") == disks[1]);
}

/// A guest that runs for a moment after its state was saved.
struct Guest<'a>(&'a Lab);

impl Monitor for Guest<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::DiskEnds { disk: "vda", .. } = event {
            write(self.0, "vda", 6, 66);
        }
    }
}

#[test]
fn a_write_after_the_state_was_saved_is_not_lost() {
    let (lab, ids, _) = lab();
    let monitor = Guest(&lab);
    let error = restore_in_place("vm1", &lab.context(&monitor), &options(&ids[0])).expect_err("refused");
    assert_eq!(
        refused(&error),
        &InPlaceRefusal::ChangedSinceSaved("vda".to_owned())
    );
    assert_eq!(lab.disk("vm1", "vda")[6 * CLUSTER], 66);
    assert!(lab.status("vm1").is_consistent());
}

/// The same when the backup of the present state is full, so that the comparison uses no bitmap of
/// it, or an older one.
#[test]
fn a_write_after_a_full_backup_of_the_state_is_not_lost() {
    for at in [0, 2] {
        let (mut lab, ids, _) = lab();
        // The next backup begins a new period.
        lab.at("2026-12-03T02:00:00+01:00[Europe/Berlin]");
        let monitor = Guest(&lab);
        let error = restore_in_place("vm1", &lab.context(&monitor), &options(&ids[at])).expect_err("refused");
        assert_eq!(
            refused(&error),
            &InPlaceRefusal::ChangedSinceSaved("vda".to_owned())
        );
        assert_eq!(lab.disk("vm1", "vda")[6 * CLUSTER], 66);
        assert!(lab.status("vm1").is_consistent());
    }
}

/// QEMU is killed while the guest runs for a moment after its state was saved.
struct KilledGuest<'a>(&'a Lab);

impl Monitor for KilledGuest<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::DiskEnds { disk: "vda", .. } = event {
            write(self.0, "vda", 6, 66);
            self.0.host.disk("vm1", "vda", |disk| {
                for name in disk.bitmap_names() {
                    disk.remove_bitmap(&name);
                }
            });
        }
    }
}

#[test]
fn a_state_whose_new_bitmap_broke_is_not_overwritten() {
    let (lab, ids, _) = lab();
    let monitor = KilledGuest(&lab);
    let error = restore_in_place("vm1", &lab.context(&monitor), &options(&ids[0])).expect_err("refused");
    assert_eq!(
        refused(&error),
        &InPlaceRefusal::UnknownSinceSaved("vda".to_owned())
    );
    assert_eq!(lab.disk("vm1", "vda")[6 * CLUSTER], 66);
    let status = lab.status("vm1");
    let is_in_between = |what: &String| what.contains("only partly restored");
    assert!(!status.inconsistencies.iter().any(is_in_between));
}

/// The backup of the present state finds that the newest bitmap has missed something. An older
/// bitmap may have missed the same.
#[test]
fn older_bitmaps_than_a_distrusted_one_are_not_relied_on() {
    let (mut lab, ids, disks) = lab();
    lab.host.disk("vm1", "vda", |disk| {
        disk.swap_content(0, &[77; 100]);
        disk.shrink_and_grow(2 * CLUSTER);
    });
    let outcome = restore(&mut lab, &options(&ids[0])).expect("restored");
    let saved = outcome.saved.as_ref().expect("it was saved");
    let point = lab
        .history("vm1")
        .get(saved)
        .expect("it is kept")
        .manifest
        .point
        .clone();
    assert_eq!(point.disk("vda").expect("it is saved").level, Level::Full);
    assert!(lab.disk("vm1", "vda") == disks[0]);
    assert!(matches!(outcome.disks[0].disk.basis, Basis::Whole(_)));
}

#[test]
fn marks_of_a_renamed_domain_are_found() {
    let (mut lab, _, _) = stopped();
    lab.host.rename_domain("vm1", "new");
    let error = lab.backup("new").expect_err("the disks are in between");
    assert!(
        matches!(refused(&error), InPlaceRefusal::Renamed { former, .. } if former == "vm1"),
        "{error}"
    );
    let status = lab.status("new");
    assert!(
        status
            .inconsistencies
            .iter()
            .any(|what| what.contains("was named 'vm1'")),
        "{:?}",
        status.inconsistencies
    );
    abandon("vm1", &lab.context(&lab.recorder), Duration::ZERO)
        .expect("it needs no domain")
        .expect("there was a mark");
    lab.backup("new").expect("a restore point");
    lab.assert_gives_back("new", "vda");
}

#[test]
fn a_mark_of_a_replaced_domain_blocks_until_it_is_removed() {
    let (mut lab, _, _) = stopped();
    let replace = |lab: &Lab| {
        lab.host
            .change("vm1", |domain| domain.uuid = "another".to_owned());
    };
    replace(&lab);
    let error = lab.backup("vm1").expect_err("its disks may be the old ones");
    assert!(
        error.to_string().contains("the same name and another UUID"),
        "{error}"
    );
    abandon("vm1", &lab.context(&lab.recorder), Duration::ZERO).expect("abandoned");
    let id = lab.backup("vm1").expect("a restore point").point.id;
    // The same for a restore in place of the new domain.
    let old = lab.root().join("vm1/.restoring.json");
    std::fs::write(
        &old,
        r#"{"uuid": "u", "restorePoint": "p", "disks": ["vda"], "began": "2026-11-02T03:04:05Z", "saved": null,
            "places": {"sockets": [], "scratch": [], "ownDirs": []}}"#,
    )
    .expect("written");
    let error = restore(&mut lab, &options(&id)).expect_err("refused");
    assert_eq!(
        refused(&error),
        &InPlaceRefusal::MarkOfAnother { uuid: "u".to_owned() }
    );
}

/// Random writes, backups and restores in place. After each restore the disk is that of the restore
/// point, and at the end every restore point gives back its disk.
#[test]
fn random_stories_come_back() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let mut below = |count: u64| random.below(count) as usize;
        let mut lab = Lab::in_memory();
        lab.host.add_domain("vm1", &[("vda", SIZE)]);
        shut_off(&lab);
        let mut points: Vec<(String, Vec<u8>)> = Vec::new();
        for step in 0..20u8 {
            for _ in 0..below(3) {
                let (at, byte) = (below(9) * CLUSTER, below(3) as u8);
                let length = (SIZE - at).min(1 + below(2 * CLUSTER as u64));
                lab.host.disk("vm1", "vda", |disk| match byte {
                    0 => disk.zero(at, length),
                    _ => disk.write(at, &vec![byte * 100 + step; length]),
                });
            }
            if points.is_empty() || below(2) == 0 {
                let id = lab.backup("vm1").expect("a restore point").point.id;
                points.push((id, lab.disk("vm1", "vda")));
                continue;
            }
            let before = lab.disk("vm1", "vda");
            let (id, disk) = points[below(points.len() as u64)].clone();
            let discard = below(2) == 0;
            let options = Options {
                discard_current: discard,
                ..options(&id)
            };
            let outcome = restore(&mut lab, &options).expect("restored");
            assert!(
                lab.disk("vm1", "vda") == disk,
                "seed {seed}, step {step}, to {id}"
            );
            points.extend(outcome.saved.map(|saved| (saved, before)));
        }
        for (id, disk) in &points {
            assert!(
                lab.restored("vm1", id, "vda").expect("restored") == *disk,
                "seed {seed}, {id}"
            );
        }
    }
}
