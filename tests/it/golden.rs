//! Repositories that earlier versions wrote: each released format is kept in `tests/data`, and
//! every verb works on it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vmsnap::host::Host;
use vmsnap::model::domain::{DomainState, Source};
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::backup::{Options as BackupOptions, PruneOutcome};
use vmsnap::ops::compare::compare;
use vmsnap::ops::list::list;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::restore::{self, DefineOptions};
use vmsnap::ops::scrub::{self, Means, ScrubType};
use vmsnap::ops::verify::{Options, Which, verify};

use crate::lab::{InFolder, Lab, tree};

const DOMAIN: &str = "golden";
const UUID: &str = "6f0c2f7e-9d7b-4e0c-8a51-2d8f4f0a1b11";
const KIB: usize = 1024;

/// The restore points of the golden repository, with id and level. They hold what
/// `tests/data/make.sh` had written by then.
const POINTS: [(&str, Level); 4] = [
    ("2026-11-27T18-31-37Z", Level::Full),
    ("2026-11-27T18-31-41Z", Level::Incremental),
    ("2026-11-27T18-31-45Z", Level::Incremental),
    // The standalone copy, with the same disks as the point before it.
    ("2026-11-27T18-31-55Z", Level::Full),
];

/// The content of `vda` and `vdb` at each restore point.
fn expected() -> [[Vec<u8>; 2]; 4] {
    let mut vda = vec![0; 256 * KIB];
    let mut vdb = vec![0; 150 * KIB];
    vda[..64 * KIB].fill(0x11);
    vda[130 * KIB..135 * KIB].fill(0x12);
    vdb[64 * KIB..].fill(0x21);
    let first = [vda.clone(), vdb.clone()];
    vda[60 * KIB..70 * KIB].fill(0x13);
    vda[128 * KIB..192 * KIB].fill(0);
    let second = [vda.clone(), vdb.clone()];
    vda[192 * KIB..].fill(0x14);
    vdb[64 * KIB..128 * KIB].fill(0);
    vdb[..KIB].fill(0x22);
    let third = [vda, vdb];
    [first, second, third.clone(), third]
}

/// Unpacks a file that `tests/data/make.sh` wrote as runs of equal bytes.
fn unpacked(text: &str) -> Vec<u8> {
    let number = |word: &str| word.parse::<usize>().expect("a number");
    let lines: Vec<Vec<usize>> = text
        .lines()
        .map(|line| line.split(' ').map(number).collect())
        .collect();
    let (length, runs) = lines.split_last().expect("the length comes last");
    let mut bytes = vec![0; length[0]];
    for run in runs {
        let byte = u8::try_from(run[2]).expect("a byte");
        bytes[run[0]..run[0] + run[1]].fill(byte);
    }
    bytes
}

fn unpack(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            unpack(&path, &target);
        } else if path.extension().is_some_and(|ending| ending == "runs") {
            let text = fs::read_to_string(&path).expect("readable");
            fs::write(target.with_extension(""), unpacked(&text)).expect("written");
        } else {
            fs::copy(&path, target).expect("copied");
        }
    }
}

/// A lab with the golden repository, a few days after its last backup.
fn lab() -> Lab {
    let mut lab = Lab::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-1");
    unpack(&data, &lab.root());
    lab.at("2026-11-29T02:00:00+01:00[Europe/Berlin]");
    lab
}

/// Adds the golden domain, shut off, as it was after its last backup.
fn add_domain(lab: &Lab) {
    let disks = [("vda", 256 * KIB), ("vdb", 150 * KIB)];
    lab.host.add_domain(DOMAIN, &disks);
    let kept = lab.history(DOMAIN).kept;
    let names = kept
        .iter()
        .filter_map(|kept| kept.manifest.point.checkpoint.as_ref());
    let names: Vec<String> = names.map(|checkpoint| checkpoint.name.clone()).collect();
    let [_, _, last, _] = expected();
    for ((target, _), bytes) in disks.iter().zip(last) {
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
        not_since: None,
        now: lab.now.timestamp(),
    }
}

#[test]
fn golden_points_are_listed_whole() {
    let lab = lab();
    assert_eq!(lab.repo.domains().expect("readable"), [DOMAIN]);
    let listed = list(lab.repo.as_ref(), &[DOMAIN.to_owned()]).expect("readable");
    let points = &listed[0].points;
    let found: Vec<_> = points
        .iter()
        .map(|listed| (listed.point.id.as_str(), listed.point.level))
        .collect();
    assert_eq!(found, POINTS);
    assert!(points.iter().all(|listed| listed.is_whole()), "{points:?}");
    let proof = points[2]
        .proof
        .as_ref()
        .expect("it was verified by the program that made it");
    assert!(proof.deep && proof.is_sound());
    assert!(listed[0].findings.is_empty(), "{:?}", listed[0].findings);
}

#[test]
fn golden_points_are_verified() {
    let lab = lab();
    let outcome = verify(
        DOMAIN,
        lab.repo.as_ref(),
        &verification(&lab),
        &Silent,
        &Stop::default(),
    );
    let outcome = outcome.expect("verified");
    assert!(outcome.is_sound(), "{outcome:?}");
    assert_eq!(outcome.points.len(), POINTS.len());
}

#[test]
fn golden_damage_is_found() {
    let lab = lab();
    let image = lab.history(DOMAIN).kept[0].dir().join("vda.qcow2");
    let mut bytes = fs::read(&image).expect("readable");
    *bytes
        .iter_mut()
        .find(|byte| **byte == 0x11)
        .expect("the guest wrote it") = 0x10;
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
    lab.restored(DOMAIN, POINTS[2].0, "vda")
        .expect_err("its full is damaged");
    lab.restored(DOMAIN, POINTS[2].0, "vdb").expect("another disk");
}

#[test]
fn golden_points_give_back_their_bytes() {
    let lab = lab();
    for ((id, _), disks) in POINTS.iter().zip(expected()) {
        for (target, bytes) in ["vda", "vdb"].iter().zip(disks) {
            let restored = lab.restored(DOMAIN, id, target).expect("restored");
            assert!(restored == bytes, "{id} {target}");
        }
    }
}

#[test]
fn golden_domain_is_defined_with_its_nvram() {
    let lab = lab();
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

#[test]
fn golden_chain_goes_on() {
    let mut lab = lab();
    add_domain(&lab);
    let status = lab.status(DOMAIN);
    assert_eq!(
        status.latest.as_ref().map(|(id, _)| id.as_str()),
        Some(POINTS[2].0)
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
    assert_eq!(outcome.point.parent.as_deref(), Some(POINTS[2].0));
    for target in ["vda", "vdb"] {
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
    assert_eq!(verified.points.len(), POINTS.len() + 1);
    let same = compare(DOMAIN, &lab.context(&Silent), &Lab::comparing()).expect("compared");
    assert!(same.is_same(), "{:?}", same.disks);
}

#[test]
fn golden_period_is_pruned_and_its_copy_stays() {
    let mut lab = lab();
    add_domain(&lab);
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
    assert_eq!(ids, [POINTS[3].0, outcome.point.id.as_str()]);
    let [.., copy] = expected();
    assert!(lab.restored(DOMAIN, POINTS[3].0, "vda").expect("restored") == copy[0]);
}

#[test]
fn golden_repository_takes_another_copy() {
    let mut lab = lab();
    add_domain(&lab);
    let options = BackupOptions {
        copy: true,
        ..Lab::options()
    };
    let outcome = lab.backup_with(DOMAIN, &options).expect("a copy");
    assert!(outcome.point.is_copy());
    let [.., last] = expected();
    assert!(lab.restored(DOMAIN, &outcome.point.id, "vdb").expect("restored") == last[1]);
}

#[test]
fn golden_bitmaps_are_scrubbed() {
    let lab = lab();
    add_domain(&lab);
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
        wait: Duration::ZERO,
    };
    let outcome = scrub::scrub(DOMAIN, &means, &options).expect("it begins");
    assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
    assert_eq!(outcome.bitmaps.len(), 6, "three of two disks");
    assert_eq!(outcome.next.level, Some(Level::Full));
}
