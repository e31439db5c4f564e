//! Reconciliation: a plan from a given state. A backup does what its dry run announces.

use std::fs;
use std::path::Path;

use vmsnap::host::{ActiveJob, Host, Places};
use vmsnap::model::checkpoint::{Checkpoint, REMOVAL_MARK};
use vmsnap::model::domain::DomainState;
use vmsnap::model::eligibility::Allowed;
use vmsnap::model::level::FullRule;
use vmsnap::model::restore_point::{FileId, Level};
use vmsnap::ops::journal::JournalEntry;
use vmsnap::ops::reconcile::{Reconciliation, Repair, Retired, Wishes, reconcile};
use vmsnap::ops::survey::{LeftoverRun, Survey, survey};
use vmsnap::repo::Leftover;

use crate::lab::{CLUSTER, Lab, NAMES};

const PERIOD: &str = "vmsnap-backup-monthly-2026-11";

fn lab_with_points(count: usize) -> Lab {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 4 * CLUSTER), ("vdb", CLUSTER)]);
    for number in 0..count {
        let byte = number as u8 + 1;
        lab.host
            .disk("vm1", "vda", |disk| disk.write(number * CLUSTER, &[byte; 100]));
        lab.backup("vm1").expect("a restore point");
    }
    lab
}

/// A survey of the domain, for the test to change.
fn seen(lab: &Lab) -> Survey {
    let repository = lab.repo.domain("vm1").expect("a name");
    let domain = lab.host.domain("vm1").expect("it is there");
    survey(domain, repository.as_ref(), &lab.history("vm1"), &lab.host).expect("it can be surveyed")
}

fn planned(lab: &Lab, survey: &Survey) -> Reconciliation {
    let wishes = Wishes {
        period: PERIOD,
        current: &[PERIOD.to_owned()],
        full: FullRule::Period,
        allowed: Allowed::default(),
        exclude: &[],
        keep_checkpoints: 32,
    };
    reconcile(survey, &lab.history("vm1").chains, &wishes)
}

fn leftover(path: &str) -> Leftover {
    Leftover {
        key: path.rsplit('/').next().expect("a name").to_owned(),
        location: path.to_owned(),
        is_merge: false,
    }
}

#[test]
fn repairs_of_a_merge_and_a_removal_have_their_own_words() {
    let removal = leftover("/b/vm1/.removing-old");
    let merge = Leftover {
        is_merge: true,
        ..leftover("/b/vm1/period/id.inc/merging")
    };
    assert_eq!(
        Repair::FinishRemoval(removal).to_string(),
        "finish the removal of /b/vm1/.removing-old"
    );
    assert_eq!(
        Repair::FinishRemoval(merge).to_string(),
        "complete or undo the merge recorded in /b/vm1/period/id.inc/merging"
    );
}

fn dead_run(uuid: &str) -> (LeftoverRun, Checkpoint) {
    let intent = JournalEntry {
        uuid: uuid.to_owned(),
        mark: "vmsnap run 1".to_owned(),
        checkpoint: Some(NAMES[2].to_owned()),
        places: Places {
            sockets: vec!["/run/dead.sock".into()],
            scratch: vec![("vda".to_owned(), "/run/dead.scratch".into())],
            own_dirs: vec![],
        },
        freezes: true,
    };
    let run = LeftoverRun {
        leftover: leftover("/backups/vm1/x.partial"),
        journal_entry: Some(intent),
    };
    let checkpoint = Checkpoint {
        name: NAMES[2].to_owned(),
        created: 99,
        mark: Some("vmsnap run 1".to_owned()),
        disks: vec![],
    };
    (run, checkpoint)
}

fn job(socket: &str) -> ActiveJob {
    ActiveJob {
        operation: "backup".to_owned(),
        socket: Some(socket.into()),
    }
}

#[test]
fn sound_state_needs_no_repair() {
    let lab = lab_with_points(2);
    let plan = planned(&lab, &seen(&lab));
    assert_eq!(plan.repairs, []);
    assert_eq!(plan.retired, []);
    assert_eq!(plan.obstacle, None);
    assert_eq!(plan.backup.level(), Level::Incremental);
    assert!(plan.backup.checkpoint);
}

#[test]
fn dead_run_is_cleared_guest_first_and_folder_last() {
    let lab = lab_with_points(2);
    let mut survey = seen(&lab);
    let (run, checkpoint) = dead_run(&survey.domain.uuid);
    let places = run
        .journal_entry
        .as_ref()
        .expect("it wrote a journal entry")
        .places
        .clone();
    survey.leftovers.push(run);
    survey.checkpoints.push(checkpoint);
    survey.job = Some(job("/run/dead.sock"));
    survey.removals.push(leftover("/backups/vm1/.removing-x"));
    let plan = planned(&lab, &survey);
    assert_eq!(
        plan.repairs,
        [
            Repair::FinishRemoval(leftover("/backups/vm1/.removing-x")),
            Repair::AbortJob,
            Repair::Thaw,
            Repair::ClearPlaces(places),
            Repair::DeleteCheckpoint(NAMES[2].to_owned()),
            Repair::RemovePartial(leftover("/backups/vm1/x.partial")),
        ]
    );
    assert_eq!(plan.obstacle, None);
    assert_eq!(plan.backup.level(), Level::Incremental);
    for repair in &plan.repairs {
        assert!(!repair.to_string().is_empty());
    }
}

#[test]
fn foreign_job_and_checkpoint_are_left_alone() {
    let lab = lab_with_points(2);
    let mut survey = seen(&lab);
    let (run, mut checkpoint) = dead_run(&survey.domain.uuid);
    checkpoint.mark = Some("vmsnap run 2".to_owned());
    survey.leftovers.push(run);
    survey.checkpoints.push(checkpoint);
    survey.job = Some(job("/run/another.sock"));
    let plan = planned(&lab, &survey);
    assert_eq!(plan.obstacle.as_deref(), Some("backup"));
    assert!(!plan.repairs.contains(&Repair::AbortJob));
    let deletes = |repair: &Repair| matches!(repair, Repair::DeleteCheckpoint(_) | Repair::DeleteBitmaps(_));
    assert!(!plan.repairs.iter().any(deletes), "{:?}", plan.repairs);
}

#[test]
fn half_a_checkpoint_is_removed_by_its_bitmaps() {
    let lab = lab_with_points(2);
    let mut survey = seen(&lab);
    survey.leftovers.push(dead_run(&survey.domain.uuid).0);
    let plan = planned(&lab, &survey);
    let repair = Repair::DeleteBitmaps(NAMES[2].to_owned());
    assert!(plan.repairs.contains(&repair), "{:?}", plan.repairs);
}

#[test]
fn a_removal_of_bitmaps_that_was_interrupted_is_finished() {
    let lab = lab_with_points(2);
    let mut survey = seen(&lab);
    let (run, mut checkpoint) = dead_run(&survey.domain.uuid);
    checkpoint.mark = Some(REMOVAL_MARK.to_owned());
    survey.leftovers.push(run);
    survey.checkpoints.push(checkpoint);
    let plan = planned(&lab, &survey);
    let repair = Repair::DeleteCheckpoint(NAMES[2].to_owned());
    assert!(plan.repairs.contains(&repair), "{:?}", plan.repairs);
}

#[test]
fn recreated_domain_gets_files_cleared_and_a_full_backup() {
    let lab = lab_with_points(2);
    let mut survey = seen(&lab);
    let (run, checkpoint) = dead_run(&survey.domain.uuid);
    survey.leftovers.push(run);
    survey.checkpoints.push(checkpoint);
    survey.domain.uuid = "00000000-0000-4000-8000-00000000ffff".to_owned();
    let plan = planned(&lab, &survey);
    assert!(matches!(
        plan.repairs[..],
        [Repair::ClearPlaces(_), Repair::RemovePartial(_)]
    ));
    assert_eq!(plan.backup.level(), Level::Full);
    assert!(plan.backup.reason().contains("another domain with the same name"));
    assert_eq!(
        plan.retired,
        [],
        "checkpoints of another domain are not ours to remove"
    );
}

#[test]
fn a_run_that_noted_nothing_had_begun_nothing() {
    let mut lab = lab_with_points(1);
    let partial = lab
        .root()
        .join("vm1")
        .join(PERIOD)
        .join("2026-11-03T05-00-00Z.partial");
    fs::create_dir(&partial).expect("new");
    fs::write(partial.join("intent.json"), b"{\"uuid\": \"0").expect("half a note");
    let survey = seen(&lab);
    assert_eq!(
        planned(&lab, &survey).repairs,
        [Repair::RemovePartial(Leftover {
            key: format!("{PERIOD}/2026-11-03T05-00-00Z.partial"),
            location: partial.display().to_string(),
            is_merge: false,
        })]
    );
    lab.backup("vm1").expect("repaired and backed up");
    assert!(!partial.exists());
    assert_eq!(
        planned(&lab, &seen(&lab)).repairs,
        [],
        "nothing is left to repair"
    );
}

#[test]
fn a_lost_checkpoint_is_known_again_and_older_bitmaps_go() {
    for off in [false, true] {
        let mut lab = lab_with_points(3);
        lab.host.disk("vm1", "vda", |disk| {
            disk.add_bitmap("virtnbdbackup.90").expect("new");
        });
        // After a stop and a start the images hold the bitmaps.
        lab.host
            .change("vm1", |domain| domain.state = DomainState::ShutOff);
        if !off {
            lab.host
                .change("vm1", |domain| domain.state = DomainState::Running);
        }
        let domain = lab.host.domain("vm1").expect("it is there");
        for name in [NAMES[1], NAMES[2]] {
            lab.host.forget_checkpoint(&domain, name).expect("it was there");
        }
        let plan = planned(&lab, &seen(&lab));
        let registered = plan.repairs.iter().map(|repair| match repair {
            Repair::Register(lost) => lost.name.as_str(),
            other => panic!("{other}"),
        });
        assert_eq!(registered.collect::<Vec<_>>(), [NAMES[2]], "off: {off}");
        let retired = Retired::Bitmaps(NAMES[1].to_owned());
        assert_eq!(plan.retired, [retired], "off: {off}");
        let outcome = lab.backup("vm1").expect("a restore point");
        assert_eq!(
            outcome.point.level,
            Level::Incremental,
            "the newest checkpoint is known again"
        );
        assert_eq!(
            outcome.point.disk("vda").expect("it is there").parent,
            Some(lab.history("vm1").kept[2].manifest.point.id.clone()),
        );
        let left = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
        let made = outcome.point.checkpoint.expect("it was made").name;
        assert_eq!(
            left,
            [NAMES[0], NAMES[2], made.as_str(), "virtnbdbackup.90"],
            "off: {off}"
        );
        lab.assert_gives_back("vm1", "vda");
    }
}

#[test]
fn replaced_file_is_noticed_despite_equal_bitmap_names() {
    let file = |inode, born: &str| FileId {
        inode,
        born: born.parse().expect("a time"),
    };
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 4 * CLUSTER), ("vdb", CLUSTER)]);
    lab.host
        .set_file("vda", file(7, "2026-01-01T00:00:00.000000001Z"));
    lab.backup("vm1").expect("full");
    assert_eq!(
        lab.backup("vm1").expect("same file").point.level,
        Level::Incremental
    );
    // An inode number can be reused, but not together with its birth time.
    for other in [
        file(7, "2026-01-01T00:00:00.000000002Z"),
        file(8, "2026-01-01T00:00:00.000000002Z"),
    ] {
        lab.host.set_file("vda", other);
        lab.host
            .disk("vm1", "vda", |disk| disk.swap_content(0, &[7; CLUSTER]));
        let point = lab.backup("vm1").expect("healed").point;
        let level = |target| point.disk(target).expect("it is there").level;
        assert_eq!((level("vda"), level("vdb")), (Level::Full, Level::Incremental));
        let reason = &point.disk("vda").expect("it is there").reason;
        assert!(reason.contains("is not the same file as"), "{reason}");
        lab.assert_gives_back("vm1", "vda");
        assert_eq!(
            lab.backup("vm1").expect("same file").point.level,
            Level::Incremental
        );
    }
}

#[test]
fn dry_run_names_what_will_be_removed_and_does_nothing() {
    let mut lab = lab_with_points(2);
    lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    let before = crate::lab::tree(lab.folder.path());
    let preview = lab.preview("vm1").expect("a plan");
    assert_eq!(
        preview.planned.retired,
        [NAMES[0], NAMES[1]].map(|name| Retired::Checkpoint(name.to_owned()))
    );
    assert_eq!(crate::lab::tree(lab.folder.path()), before);
    let outcome = lab.backup("vm1").expect("a new month");
    assert_eq!(outcome.point.level, Level::Full);
    let names = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    assert_eq!(names, [lab.made[2].as_str()]);
}

#[test]
fn dry_run_during_a_backup_names_the_lock_holder() {
    let lab = lab_with_points(1);
    assert_eq!(lab.preview("vm1").expect("a plan").writer, None);
    let locked = lab.repo.domain("vm1").expect("a name").try_lock().expect("free");
    let writer = lab.preview("vm1").expect("a preview does not wait").writer;
    assert_eq!(writer, Some(format!("process {}", std::process::id())));
    drop(locked);
    assert!(Path::new(&lab.root().join("vm1/.lock")).exists());
}

#[test]
fn a_dry_run_with_nothing_to_back_up_announces_nothing() {
    let mut lab = lab_with_points(3);
    lab.at("2026-12-20T02:00:00+01:00[Europe/Berlin]");
    lab.host.change("vm1", |domain| {
        domain.excluded = vec!["vda".to_owned(), "vdb".to_owned()]
    });
    let preview = lab.preview("vm1").expect("a plan");
    assert_eq!(preview.planned.retired, []);
    assert_eq!(preview.planned.backup.announced_level(), None);
    let text = vmsnap::cli::report::backup::plan_text("vm1", &preview);
    assert!(text.starts_with("vm1: no backup into "), "{text}");
    let before = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
    lab.backup("vm1").expect_err("there is nothing to back up");
    assert_eq!(lab.host.disk("vm1", "vda", |disk| disk.bitmap_names()), before);
}
