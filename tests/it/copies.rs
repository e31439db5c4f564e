//! Standalone copies: complete by themselves and in no chain.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmsnap::cli::exit_code::ExitCode;
use vmsnap::cli::report::backup::{kind, plan_document, plan_text};
use vmsnap::cli::report::list as shown_list;
use vmsnap::host::Host;
use vmsnap::model::domain::DomainState;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::backup::{self, Options, Outcome, PruneOutcome};
use vmsnap::ops::compare::compare;
use vmsnap::ops::each::Turn;
use vmsnap::ops::list::list;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{self, Which, verify};
use vmsnap::ops::{Class, Result};

use crate::lab::{CLUSTER, InFolder, Lab, tree};

fn copying() -> Options {
    Options {
        copy: true,
        ..Lab::options()
    }
}

fn copy(lab: &mut Lab) -> Outcome {
    lab.backup_with("vm1", &copying()).expect("a copy")
}

/// A full restore point and an incremental one of a domain with two disks.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 4 * CLUSTER), ("vdb", CLUSTER)]);
    lab.host.set_nvram("vm1", b"variables");
    for round in 1..3u8 {
        writes(&lab, round);
        lab.backup("vm1").expect("a restore point");
    }
    lab
}

fn writes(lab: &Lab, byte: u8) {
    lab.host.disk("vm1", "vda", |disk| {
        disk.write(usize::from(byte % 4) * CLUSTER, &[byte; 3000])
    });
    lab.host.disk("vm1", "vdb", |disk| disk.write(0, &[byte; 700]));
}

/// The domain's checkpoints, then the bitmaps of `vda` and of `vdb`.
fn at_the_host(lab: &Lab) -> (Vec<String>, Vec<String>, Vec<String>) {
    let bitmaps = |target| lab.host.disk("vm1", target, |disk| disk.bitmap_names());
    (checkpoints(lab), bitmaps("vda"), bitmaps("vdb"))
}

fn checkpoints(lab: &Lab) -> Vec<String> {
    let domain = lab.host.domain("vm1").expect("it is there");
    let checkpoints = lab.host.checkpoints(&domain).expect("they are listed");
    checkpoints.into_iter().map(|found| found.name).collect()
}

fn folder(lab: &Lab) -> PathBuf {
    lab.root().join("vm1")
}

/// The files below a folder with their bytes, except those of copies.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let paths = tree(root)
        .into_iter()
        .filter(|path| !path.contains("vmsnap-copy-"));
    let files = paths.filter(|path| root.join(path).is_file());
    files
        .map(|path| (path.clone(), fs::read(root.join(&path)).expect("a file")))
        .collect()
}

fn copies(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(folder(lab)).into_iter().flatten();
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().expect("UTF-8")).collect();
    names.retain(|name| name.starts_with("vmsnap-copy-"));
    names.sort();
    names
}

fn proved(lab: &Lab, which: Which) -> Vec<String> {
    let options = verify::Options {
        which,
        deep: true,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    let outcome = verify("vm1", lab.repo.as_ref(), &options, &Silent, &Stop::default()).expect("verified");
    outcome.all_damage().map(|damage| damage.what.clone()).collect()
}

#[test]
fn a_copy_stands_alone_and_the_chain_goes_on_beside_it() {
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut lab = lab();
        lab.host.change("vm1", |domain| domain.state = state);
        let before = lab.latest("vm1");
        let (chain, domain) = (files(&folder(&lab)), at_the_host(&lab));
        writes(&lab, 7);
        let disks = ["vda", "vdb"].map(|disk| lab.disk("vm1", disk));
        let outcome = copy(&mut lab);

        assert_eq!(at_the_host(&lab), domain, "{state:?}");
        assert!(files(&folder(&lab)) == chain, "no file of the chain has changed");
        let point = &outcome.point;
        assert_eq!(kind(point), "full copy");
        assert_eq!(
            outcome.dir(),
            folder(&lab)
                .join(format!("vmsnap-copy-{}", point.id))
                .join(format!("{}.full", point.id))
        );
        assert_eq!(
            (point.level, &point.parent, &point.checkpoint),
            (Level::Full, &None, &None)
        );
        for disk in &point.disks {
            assert_eq!(disk.reason, "a standalone copy");
            assert_eq!((disk.level, disk.checkpointed), (Level::Full, false));
        }
        assert_eq!(outcome.findings, []);
        assert!(outcome.dir().join("nvram.fd").is_file() && outcome.dir().join("domain.xml").is_file());

        writes(&lab, 2);
        let next = lab.backup("vm1").expect("an increment").point;
        assert_eq!(next.level, Level::Incremental);
        assert_eq!(next.parent.as_ref(), Some(&before));
        assert!(next.sequence > point.sequence);
        lab.assert_gives_back("vm1", "vda");
        for (target, bytes) in ["vda", "vdb"].into_iter().zip(&disks) {
            let restored = lab.restored("vm1", &point.id, target).expect("restored");
            assert!(restored == *bytes, "{target}, {state:?}");
        }
        assert_eq!(proved(&lab, Which::All), [""; 0]);
        assert_eq!(proved(&lab, Which::At(point.id.clone())), [""; 0]);
    }
}

#[test]
fn a_first_copy_begins_no_chain() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    let first = copy(&mut lab);
    assert_eq!(checkpoints(&lab), [""; 0]);
    assert_eq!(lab.host.disk("vm1", "vda", |disk| disk.bitmap_names()), [""; 0]);
    assert_eq!(lab.repo.domains().expect("listed"), ["vm1"]);
    assert_eq!(lab.status("vm1").latest, None);
    let next = lab.backup("vm1").expect("a full").point;
    assert_eq!(
        (next.level, next.disks[0].reason.as_str()),
        (Level::Full, "first of the period")
    );
    assert!(next.sequence > first.point.sequence);
}

#[test]
fn copies_and_backups_of_one_second_have_ids_of_their_own() {
    let mut lab = lab();
    let now = lab.now.clone();
    let mut ids = Vec::new();
    for options in [copying(), copying(), Lab::options(), copying()] {
        lab.now = now.clone();
        ids.push(lab.backup_with("vm1", &options).expect("saved").point.id);
    }
    let stem = ids[0].clone();
    let numbered = [2, 3, 4].map(|number| format!("{stem}-{number}"));
    assert_eq!(ids[1..], numbered);
    assert_eq!(
        copies(&lab),
        [&ids[0], &ids[1], &ids[3]].map(|id| format!("vmsnap-copy-{id}"))
    );
}

#[test]
fn copy_removed_by_hand_is_not_damage() {
    let mut lab = lab();
    let first = copy(&mut lab);
    let second = copy(&mut lab);
    assert_eq!(proved(&lab, Which::All), [""; 0]);
    fs::remove_dir_all(first.dir().parent().expect("a folder")).expect("removed");
    let history = lab.history("vm1");
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    assert_eq!(proved(&lab, Which::All), [""; 0]);
    assert_eq!(lab.status("vm1").findings, []);
    let next = lab.backup("vm1").expect("an increment");
    assert_eq!((next.point.level, next.findings), (Level::Incremental, vec![]));

    // A copy whose folder is missing while its period is still there is damage.
    fs::remove_dir_all(second.dir()).expect("removed");
    let damage = proved(&lab, Which::All);
    assert!(
        damage.len() == 1 && damage[0].contains("is missing"),
        "{damage:?}"
    );
}

#[test]
fn a_damaged_copy_is_found_and_the_chain_goes_on() {
    let mut lab = lab();
    let saved = copy(&mut lab);
    let image = saved.dir().join("vda.qcow2");
    let mut bytes = fs::read(&image).expect("an image");
    bytes[70_000] ^= 1;
    fs::write(&image, bytes).expect("written");
    let damage = proved(&lab, Which::All);
    assert!(
        !damage.is_empty() && damage[0].contains("vmsnap-copy-"),
        "{damage:?}"
    );
    let status = lab.status("vm1");
    assert!(
        status.is_consistent() && status.suspected_damage.is_none(),
        "{status:#?}"
    );
    let next = lab.backup("vm1").expect("an increment").point;
    assert_eq!(next.level, Level::Incremental);
    assert!(lab.restored("vm1", &saved.point.id, "vda").is_err());
}

#[test]
fn pruning_leaves_copies_alone_and_a_copy_cannot_prune() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.at("2026-10-20T02:00:00+02:00[Europe/Berlin]");
    lab.backup("vm1").expect("October's full");
    let october = copy(&mut lab);
    lab.at("2026-11-20T02:00:00+01:00[Europe/Berlin]");
    let pruning_copy = Options {
        prune: true,
        ..copying()
    };
    let refused = lab
        .backup_with("vm1", &pruning_copy)
        .expect_err("a contradiction");
    assert!(refused.to_string().contains("--copy and --prune"), "{refused}");
    let november = copy(&mut lab);
    assert!(folder(&lab).join("vmsnap-backup-monthly-2026-10").is_dir());
    let next = lab.backup_with("vm1", &Lab::pruning()).expect("a full");
    assert_eq!(next.point.level, Level::Full);
    assert_eq!(
        next.prune,
        Some(PruneOutcome::Deleted("vmsnap-backup-monthly-2026-10".to_owned()))
    );
    assert_eq!(
        copies(&lab),
        [&october, &november].map(|copy| format!("vmsnap-copy-{}", copy.point.id))
    );
    assert_eq!(proved(&lab, Which::All), [""; 0]);
}

#[test]
fn status_judges_the_chain_and_not_the_copy() {
    let mut lab = lab();
    let before = lab.status("vm1");
    copy(&mut lab);
    let after = lab.status("vm1");
    assert_eq!((after.latest, after.dir), (before.latest, before.dir));
    assert_eq!(after.inconsistencies, [""; 0]);
    let next = after.next.expect("it is known").backup;
    assert_eq!(next.level(), Level::Incremental);
}

#[test]
fn a_comparison_takes_the_chain_and_not_the_copy() {
    let run = |lab: &Lab| compare("vm1", &lab.context(&Silent), &Lab::comparing());
    let mut lab = lab();
    let chain = lab.latest("vm1");
    copy(&mut lab);
    let outcome = run(&lab).expect("compared");
    assert!(outcome.is_same());
    assert!(
        outcome.disks.iter().all(|disk| disk.point == chain),
        "{:?}",
        outcome.disks
    );

    // A copy does not make up for a write that the bitmap missed.
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(0, &[9; CLUSTER]));
    assert!(!run(&lab).expect("compared").is_same());
    copy(&mut lab);
    assert_eq!(lab.status("vm1").missed_writes.len(), 1);
    let next = lab.backup("vm1").expect("saved").point;
    assert_eq!(next.disk("vda").map(|disk| disk.level), Some(Level::Full));

    let mut alone = Lab::new();
    alone.host.add_domain("vm1", &[("vda", CLUSTER)]);
    copy(&mut alone);
    let refused = run(&alone).expect_err("there is no chain");
    assert_eq!(refused.class(), Class::NotFound, "{refused}");
}

#[test]
fn a_failed_copy_leaves_nothing() {
    let mut lab = lab();
    let (before, domain) = (tree(&folder(&lab)), at_the_host(&lab));
    lab.host.fail_reads_after(Some(0));
    let failed: Result<Outcome> = lab.backup_with("vm1", &copying());
    failed.expect_err("it cannot be read");
    lab.host.fail_reads_after(None);
    assert_eq!((tree(&folder(&lab)), at_the_host(&lab)), (before, domain));
    assert!(!lab.host.has_job("vm1"));
}

#[test]
fn a_dry_run_of_a_copy_says_so_and_does_nothing() {
    let lab = lab();
    let before = tree(&lab.root());
    let preview = backup::preview("vm1", &lab.context(&Silent), &copying()).expect("a preview");
    let text = plan_text("vm1", &preview);
    let id = "2026-11-03T01-20-00Z";
    assert_eq!(
        text,
        format!(
            "vm1: a full copy into vmsnap-copy-{id}\n  \
             disk vda: full, a standalone copy\n  disk vdb: full, a standalone copy\n"
        )
    );
    let plans = [Turn::new("vm1", Duration::ZERO, Ok(preview))];
    let json = serde_json::to_value(plan_document(&plans, &[], ExitCode::Ok)).expect("JSON");
    assert_eq!(json["domains"][0]["copy"], true);
    assert_eq!(json["domains"][0]["checkpoint"], false);
    assert_eq!(tree(&lab.root()), before);
}

#[test]
fn a_list_shows_a_copy_as_a_copy() {
    let mut lab = lab();
    let saved = copy(&mut lab);
    let listed = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("listed");
    let text = shown_list::text(&listed, &lab.repo.location(), shown_list::Columns::Wide);
    let row = text
        .lines()
        .find(|line| line.contains(&saved.point.id))
        .expect("a row");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[..2], [saved.point.id.as_str(), "copy"], "{text}");
    assert!(row.ends_with(&format!("vmsnap-copy-{}", saved.point.id)), "{row}");
    let json = serde_json::to_value(shown_list::document(&listed)).expect("JSON");
    let points = json["domains"][0]["restorePoints"].as_array().expect("a list");
    let flags: Vec<bool> = points.iter().map(|point| point["copy"] == true).collect();
    assert_eq!(flags, [false, false, true]);
}
