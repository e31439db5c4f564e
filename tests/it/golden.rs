//! Repositories that earlier versions wrote: each released format is kept in `tests/data`, and
//! every verb works on it.

use std::fs;
use std::time::Duration;

use vmsnap::host::Host;
use vmsnap::model::domain::{DomainState, Source};
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::backup::{Options as BackupOptions, PruneOutcome};
use vmsnap::ops::compare::compare;
use vmsnap::ops::list::list;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::pin;
use vmsnap::ops::restore::{self, DefineOptions};
use vmsnap::ops::retention::{Policy, Quota, Rule};
use vmsnap::ops::scrub::{self, Means, ScrubType};
use vmsnap::ops::verify::{Options, Which, verify};

use crate::lab::{InFolder, Lab, tree};

mod data;
mod pack;

use data::{FORMAT_1, FORMAT_2, Golden};

const DOMAIN: &str = "golden";
const UUID: &str = "6f0c2f7e-9d7b-4e0c-8a51-2d8f4f0a1b11";
const TARGETS: [&str; 2] = ["vda", "vdb"];
const KIB: usize = 1024;

/// Makes a test of each of these functions for every format.
macro_rules! for_every_format {
    ($($name:ident),* $(,)?) => {
        mod format_1 {
            $(#[test]
            fn $name() {
                super::$name(&super::FORMAT_1);
            })*
        }

        mod format_2 {
            $(#[test]
            fn $name() {
                super::$name(&super::FORMAT_2);
            })*
        }
    };
}

for_every_format! {
    points_are_listed_whole,
    points_are_verified,
    damage_is_found,
    points_give_back_their_bytes,
    domain_is_defined_with_its_nvram,
    chain_goes_on,
    period_is_pruned_and_its_copy_stays,
    policy_removes_the_old_chain_unless_pinned,
    repository_takes_another_copy,
    bitmaps_are_scrubbed,
}

/// A lab with the golden repository, a few days after its last backup.
fn lab(golden: &Golden) -> Lab {
    let mut lab = Lab::new();
    golden.unpack(&lab.root());
    lab.at("2026-11-29T02:00:00+01:00[Europe/Berlin]");
    lab
}

/// Adds the golden domain, shut off, as it was after its last backup.
fn add_domain(lab: &Lab, golden: &Golden) {
    let [.., last] = (golden.disks)();
    let sizes: Vec<(&str, usize)> = TARGETS.into_iter().zip(last.iter().map(Vec::len)).collect();
    lab.host.add_domain(DOMAIN, &sizes);
    let kept = lab.history(DOMAIN).kept;
    let names = kept
        .iter()
        .filter_map(|kept| kept.manifest.point.checkpoint.as_ref());
    let names: Vec<String> = names.map(|checkpoint| checkpoint.name.clone()).collect();
    for (target, bytes) in TARGETS.into_iter().zip(last) {
        lab.host.disk(DOMAIN, target, |disk| {
            disk.write(0, &bytes);
            // Added after the write, so the bitmaps mark nothing that the last backup already
            // holds.
            for name in &names {
                disk.add_bitmap(name).expect("a new name");
            }
        });
    }
    lab.host.change(DOMAIN, |domain| {
        domain.uuid = UUID.to_owned();
        domain.state = DomainState::ShutOff;
        for disk in &mut domain.disks {
            disk.source = Source::File(format!("/srv/golden/{}.qcow2", disk.target).into());
        }
    });
}

fn verification(lab: &Lab) -> Options {
    Options {
        which: Which::All,
        deep: true,
        verified_since: None,
        now: lab.now.timestamp(),
    }
}

fn points_are_listed_whole(golden: &Golden) {
    let lab = lab(golden);
    assert_eq!(lab.repo.domains().expect("readable"), [DOMAIN]);
    let listed = list(lab.repo.as_ref(), &[DOMAIN.to_owned()]).expect("readable");
    let points = &listed[0].points;
    let found: Vec<_> = points
        .iter()
        .map(|listed| (listed.point.id.as_str(), listed.point.level))
        .collect();
    assert_eq!(found, golden.points.map(|(id, level, _)| (id, level)));
    let kept = lab.history(DOMAIN).kept;
    let formats: Vec<u32> = kept.iter().map(|kept| kept.manifest.format).collect();
    assert_eq!(formats, golden.points.map(|(.., format)| format));
    assert!(points.iter().all(|listed| listed.is_whole()), "{points:?}");
    let proof = points[2]
        .proof
        .as_ref()
        .expect("it was verified by the program that made it");
    assert!(proof.deep && proof.is_sound());
    assert!(listed[0].findings.is_empty(), "{:?}", listed[0].findings);
}

fn points_are_verified(golden: &Golden) {
    let lab = lab(golden);
    let outcome = verify(
        DOMAIN,
        lab.repo.as_ref(),
        &verification(&lab),
        &Silent,
        &Stop::default(),
    );
    let outcome = outcome.expect("verified");
    assert!(outcome.is_sound(), "{outcome:?}");
    assert_eq!(outcome.points.len(), golden.points.len());
}

fn damage_is_found(golden: &Golden) {
    let lab = lab(golden);
    let image = lab.history(DOMAIN).kept[0].dir().join("vda.qcow2");
    let mut bytes = fs::read(&image).expect("readable");
    // In the first stored cluster.
    bytes[64 * KIB + 8] ^= 1;
    fs::write(&image, bytes).expect("written");
    let outcome = verify(
        DOMAIN,
        lab.repo.as_ref(),
        &verification(&lab),
        &Silent,
        &Stop::default(),
    );
    let outcome = outcome.expect("verified");
    assert!(!outcome.is_sound());
    lab.restored(DOMAIN, golden.points[2].0, "vda")
        .expect_err("its full is damaged");
    lab.restored(DOMAIN, golden.points[2].0, "vdb")
        .expect("another disk");
}

fn points_give_back_their_bytes(golden: &Golden) {
    let lab = lab(golden);
    for ((id, ..), disks) in golden.points.iter().zip((golden.disks)()) {
        for (target, bytes) in TARGETS.iter().zip(disks) {
            let restored = lab.restored(DOMAIN, id, target).expect("restored");
            assert!(restored == bytes, "{id} {target}");
        }
    }
}

fn domain_is_defined_with_its_nvram(golden: &Golden) {
    let lab = lab(golden);
    let options = restore::Options {
        define: Some(DefineOptions {
            name: Some("golden-2".to_owned()),
        }),
        ..lab.restoring()
    };
    let stop = Stop::default();
    let plan = restore::plan(DOMAIN, lab.repo.as_ref(), Some(&lab.host), &options).expect("a plan");
    let means = restore::Means {
        host: Some(&lab.host),
        ..lab.means(&Silent, &stop)
    };
    let restored = restore::restore(DOMAIN, plan, &means);
    restored.expect("restored");
    lab.host.domain("golden-2").expect("it is defined");
    let files = tree(&options.to);
    let nvram = files
        .iter()
        .find(|name| name.ends_with(".fd"))
        .expect("the UEFI variables");
    assert_eq!(
        fs::read(options.to.join(nvram)).expect("readable"),
        vec![b'V'; 4096]
    );
}

fn chain_goes_on(golden: &Golden) {
    let mut lab = lab(golden);
    add_domain(&lab, golden);
    let status = lab.status(DOMAIN);
    assert_eq!(
        status.latest.as_ref().map(|(id, _)| id.as_str()),
        Some(golden.points[2].0)
    );
    let next = status.next.expect("it is known");
    assert_eq!(
        next.backup.level(),
        Level::Incremental,
        "{}",
        next.backup.reason()
    );
    lab.host
        .disk(DOMAIN, "vda", |disk| disk.write(70 * KIB, &[0x15; 3000]));
    let outcome = lab.backup(DOMAIN).expect("a backup");
    assert_eq!(
        outcome.point.level,
        Level::Incremental,
        "{:?}",
        outcome.point.disks
    );
    assert_eq!(outcome.point.parent.as_deref(), Some(golden.points[2].0));
    for target in TARGETS {
        lab.assert_gives_back(DOMAIN, target);
    }
    let verified = verify(
        DOMAIN,
        lab.repo.as_ref(),
        &verification(&lab),
        &Silent,
        &Stop::default(),
    );
    let verified = verified.expect("verified");
    assert!(verified.is_sound(), "{verified:?}");
    assert_eq!(verified.points.len(), golden.points.len() + 1);
    let same = compare(DOMAIN, &lab.context(&Silent), &Lab::comparing()).expect("compared");
    assert!(same.is_same(), "{:?}", same.disks);
}

fn period_is_pruned_and_its_copy_stays(golden: &Golden) {
    let mut lab = lab(golden);
    add_domain(&lab, golden);
    lab.at("2026-12-17T02:00:00+01:00[Europe/Berlin]");
    let preview = lab.preview(DOMAIN).expect("a dry run");
    assert_eq!(preview.planned.backup.level(), Level::Full);
    let outcome = lab.backup_with(DOMAIN, &Lab::pruning()).expect("a backup");
    let period = "vmsnap-backup-monthly-2026-11".to_owned();
    assert_eq!(outcome.prune, Some(PruneOutcome::Deleted(period)));
    let listed = list(lab.repo.as_ref(), &[DOMAIN.to_owned()]).expect("readable");
    let ids: Vec<&str> = listed[0]
        .points
        .iter()
        .map(|listed| listed.point.id.as_str())
        .collect();
    assert_eq!(ids, [golden.points[3].0, outcome.point.id.as_str()]);
    let [.., copy] = (golden.disks)();
    assert!(lab.restored(DOMAIN, golden.points[3].0, "vda").expect("restored") == copy[0]);
}

fn policy_removes_the_old_chain_unless_pinned(golden: &Golden) {
    let mut lab = lab(golden);
    add_domain(&lab, golden);
    lab.at("2026-12-17T02:00:00+01:00[Europe/Berlin]");
    let ids = |lab: &Lab| -> Vec<String> {
        let kept = lab.history(DOMAIN).kept.into_iter();
        kept.map(|kept| kept.manifest.point.id).collect()
    };
    let pinning = pin::Means {
        repo: lab.repo.as_ref(),
        wait: Duration::ZERO,
        monitor: &Silent,
        stop: &lab.stop,
    };
    let request = pin::PinRequest::Pin {
        note: String::new(),
        now: lab.now.timestamp(),
    };
    pin::change_pin(DOMAIN, golden.points[1].0, &request, &pinning).expect("pinned");
    let options = BackupOptions {
        keep: Some(Policy::default().with(Rule::Last, Quota::AtMost(1))),
        ..Lab::options()
    };
    let new = lab.backup_with(DOMAIN, &options).expect("a backup").point.id;
    // The full is merged into the pinned restore point.
    let kept = [1, 3].map(|index| golden.points[index].0);
    assert_eq!(ids(&lab), [kept[0], kept[1], &new]);
    let second = &(golden.disks)()[1];
    for (target, bytes) in ["vda", "vdb"].into_iter().zip(second) {
        assert!(lab.restored(DOMAIN, kept[0], target).expect("restored") == *bytes);
    }
}

fn repository_takes_another_copy(golden: &Golden) {
    let mut lab = lab(golden);
    add_domain(&lab, golden);
    let options = BackupOptions {
        copy: true,
        ..Lab::options()
    };
    let outcome = lab.backup_with(DOMAIN, &options).expect("a copy");
    assert!(outcome.point.is_copy());
    let [.., last] = (golden.disks)();
    assert!(lab.restored(DOMAIN, &outcome.point.id, "vdb").expect("restored") == last[1]);
}

fn bitmaps_are_scrubbed(golden: &Golden) {
    let lab = lab(golden);
    add_domain(&lab, golden);
    let means = Means {
        host: &lab.host,
        repo: Some(lab.repo.as_ref()),
        today: lab.now.date(),
        monitor: &Silent,
        stop: Stop::default(),
    };
    let options = scrub::Options {
        kind: ScrubType::Both,
        name: None,
        group_by: GroupBy::Month,
        full: FullRule::Period,
        wait: Duration::ZERO,
    };
    let outcome = scrub::scrub(DOMAIN, &means, &options).expect("it begins");
    assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
    assert_eq!(outcome.bitmaps.len(), 6, "three of two disks");
    assert_eq!(outcome.next.level, Some(Level::Full));
}
