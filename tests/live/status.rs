//! The status of real domains.

use std::path::Path;
use std::sync::Arc;

use vmsnap::io::DiskStore;
use vmsnap::model::left_out::NOTHING_EXCLUDED;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::Context;
use vmsnap::ops::backup::{Options, backup};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::status::{DomainStatus, Subject, status};
use vmsnap::repo::FolderRepository;

use crate::embed::{Kind, Lab, TestDomain, random};

fn repository(folder: &Path) -> FolderRepository {
    FolderRepository::open_or_create(&folder.join("backups"), Arc::new(DiskStore)).expect("a new repository")
}

fn now() -> jiff::Zoned {
    "2026-11-03T02:00:00+01:00[Europe/Berlin]"
        .parse()
        .expect("a time")
}

fn ask(domain: &TestDomain, repo: &FolderRepository) -> DomainStatus {
    let subject = Subject {
        store_decrypted: false,
        exclude: &NOTHING_EXCLUDED,
        host: &Lab::get().host,
        repo: Some(repo),
        group_by: GroupBy::Month,
        full: vmsnap::model::level::FullRule::Period,
        today: now().date(),
    };
    status(&domain.name, &subject).expect("a status")
}

/// Fault 5: the disk of a running domain is missing from the status, because its image is locked,
/// and the status says OK.
#[test]
fn a_running_domain_shows_its_disks_bitmaps_and_changes() {
    let domain = TestDomain::paused("status", &[Kind::Qcow2, Kind::Raw]);
    let folder = crate::owner::folder("status-");
    let repo = repository(folder.path());
    let before = ask(&domain, &repo);
    assert!(before.is_consistent() && before.checkpoints.is_empty());
    let targets: Vec<&str> = before.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vda", "vdb"]);

    let context = Context {
        host: &Lab::get().host,
        repo: &repo,
        now: now(),
        monitor: &Silent,
        stop: Stop::default(),
        random: &random,
    };
    let options = Options {
        freeze: None,
        ..Options::default()
    };
    let point = backup(&domain.name, &context, &options).expect("a full").point;
    let made = point.checkpoint.as_ref().expect("it was made").name.clone();
    domain.io("vda", "write -P 0x41 0 1M");
    let running = ask(&domain, &repo);
    assert!(running.is_consistent(), "{:?}", running.inconsistencies);
    assert_eq!(running.checkpoints, [made.as_str()]);
    assert_eq!(running.disks[0].bitmaps, [made.as_str()]);
    assert!(running.disks[1].bitmaps.is_empty());
    assert_eq!(running.changed_bytes(), Some(1 << 20));
    let next = running.next.expect("there is a repository").backup;
    assert_eq!(
        (next.level(), next.reason()),
        (Level::Incremental, format!("changes since {}", point.id))
    );

    domain.destroy();
    let off = ask(&domain, &repo);
    assert!(off.is_consistent(), "{:?}", off.inconsistencies);
    assert_eq!(off.disks[0].bitmaps, [made.as_str()]);
    assert_eq!(
        off.changed_bytes(),
        None,
        "not counted while the domain is shut off"
    );

    domain.start();
    domain.kill();
    let killed = ask(&domain, &repo);
    assert!(!killed.is_consistent(), "a bitmap that was in use is broken");
    let next = killed.next.expect("there is a repository").backup;
    assert_eq!(next.level(), Level::Full, "{}", next.reason());
}
