//! One domain backed up into two repositories: each works as if the other did not exist.

use std::sync::Arc;
use std::time::Duration;

use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::{Options, Outcome, backup};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::scrub::{self, Means, ScrubType};
use vmsnap::ops::status::{DomainStatus, Subject, status};
use vmsnap::ops::{Cause, Context, Result};
use vmsnap::repo::{FolderRepository, Identity, Repository};

use crate::lab::{CLUSTER, Lab};

/// A domain with one disk, and a second repository next to the lab's.
struct Two {
    lab: Lab,
    other: FolderRepository,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Lab,
    Other,
}

use Which::{Lab as A, Other as B};

impl Two {
    fn new() -> Two {
        let lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", 8 * CLUSTER)]);
        let root = lab.folder.path().join("other");
        let other = FolderRepository::open_or_create(&root, Arc::new(DiskStore)).expect("a new repository");
        Two { lab, other }
    }

    fn repo(&self, which: Which) -> &dyn Repository {
        match which {
            A => self.lab.repo.as_ref(),
            B => &self.other,
        }
    }

    fn context(&self, which: Which) -> Context<'_> {
        Context {
            repo: self.repo(which),
            ..self.lab.context(&Silent)
        }
    }

    /// Writes to the disk and backs it up.
    fn back_up(&mut self, which: Which, options: &Options) -> Outcome {
        let seconds = self.lab.now.timestamp().as_second();
        let place = usize::try_from(seconds / 600 % 8).expect("small") * CLUSTER;
        let byte = seconds.to_le_bytes()[1] | 1;
        self.lab
            .host
            .disk("vm1", "vda", |disk| disk.write(place, &[byte; 700]));
        let outcome = backup("vm1", &self.context(which), options).expect("a backup");
        self.lab.pass(jiff::Span::new().minutes(10));
        outcome
    }

    fn level(&mut self, which: Which) -> Level {
        self.back_up(which, &Lab::options()).point.level
    }

    fn status(&self, which: Which, group_by: GroupBy) -> DomainStatus {
        let subject = Subject {
            repo: Some(self.repo(which)),
            group_by,
            full: vmsnap::model::level::FullRule::Period,
            ..self.lab.subject()
        };
        status("vm1", &subject).expect("a status")
    }

    fn assert_consistent(&self, of_a: GroupBy, of_b: GroupBy) {
        for (which, group_by) in [(A, of_a), (B, of_b)] {
            let status = self.status(which, group_by);
            assert!(status.is_consistent(), "{which:?}: {:?}", status.inconsistencies);
        }
    }

    fn scrub(&self, which: Option<Which>, name: Option<&str>) -> Result<scrub::Outcome> {
        let means = Means {
            host: &self.lab.host,
            repo: which.map(|which| self.repo(which)),
            today: self.lab.now.date(),
            monitor: &Silent,
            stop: self.lab.stop.clone(),
        };
        let options = scrub::Options {
            kind: ScrubType::Both,
            name: name.map(str::to_owned),
            group_by: GroupBy::Month,
            full: FullRule::Period,
            wait: Duration::ZERO,
        };
        scrub::scrub("vm1", &means, &options)
    }

    fn checkpoints(&self) -> Vec<String> {
        let domain = self.lab.host.domain("vm1").expect("it is there");
        let listed = self.lab.host.checkpoints(&domain).expect("they are listed");
        listed.into_iter().map(|checkpoint| checkpoint.name).collect()
    }
}

#[test]
fn two_repositories_stay_incremental_and_consistent() {
    let mut two = Two::new();
    assert_eq!([two.level(A), two.level(B)], [Level::Full; 2]);
    for _ in 0..3 {
        two.assert_consistent(GroupBy::Month, GroupBy::Month);
        assert_eq!(two.level(A), Level::Incremental);
        two.assert_consistent(GroupBy::Month, GroupBy::Month);
        assert_eq!(two.level(B), Level::Incremental);
    }
    two.lab.at("2026-12-01T02:00:00+01:00[Europe/Berlin]");
    two.assert_consistent(GroupBy::Month, GroupBy::Month);
    // `A` begins the new period first. The checkpoints of `B`'s old period stay until `B` does so
    // too.
    assert_eq!([two.level(A), two.level(A)], [Level::Full, Level::Incremental]);
    assert_eq!([two.level(B), two.level(B)], [Level::Full, Level::Incremental]);
    two.assert_consistent(GroupBy::Month, GroupBy::Month);
    assert_eq!(two.checkpoints().len(), 4, "those of the old period are retired");
    two.level(A);
    two.lab.assert_gives_back("vm1", "vda");
}

#[test]
fn retiring_and_pruning_leave_what_the_other_needs() {
    let mut two = Two::new();
    let yearly = Options {
        group_by: GroupBy::Year,
        ..Lab::options()
    };
    let monthly = Options {
        keep_checkpoints: 1,
        ..Lab::pruning()
    };
    assert_eq!(two.back_up(B, &yearly).point.level, Level::Full);
    for day in ["2026-11-05", "2026-11-20", "2026-12-05", "2026-12-20"] {
        two.lab.at(&format!("{day}T02:00:00+01:00[Europe/Berlin]"));
        for _ in 0..3 {
            two.back_up(A, &monthly);
            two.assert_consistent(GroupBy::Month, GroupBy::Year);
        }
        assert_eq!(two.back_up(B, &yearly).point.level, Level::Incremental, "{day}");
        two.assert_consistent(GroupBy::Month, GroupBy::Year);
    }
    let periods = two
        .lab
        .repo
        .domain("vm1")
        .and_then(|repository| repository.used_periods());
    assert_eq!(
        periods.expect("readable"),
        ["vmsnap-backup-monthly-2026-12"],
        "November is pruned"
    );
}

#[test]
fn scrub_with_a_repository_leaves_the_others_checkpoints() {
    let mut two = Two::new();
    two.level(A);
    let others = two
        .back_up(B, &Lab::options())
        .point
        .checkpoint
        .expect("it made one")
        .name;
    let scrubbed = two.scrub(Some(A), None).expect("it begins");
    assert!(scrubbed.failure.is_none(), "{:?}", scrubbed.failure);
    assert_eq!(scrubbed.checkpoints.len(), 1);
    let codes: Vec<&str> = scrubbed
        .findings
        .iter()
        .map(|finding| finding.code.as_str())
        .collect();
    assert_eq!(codes, ["left-to-other-repository"]);
    assert_eq!(two.checkpoints(), [others.as_str()]);
    let refused = two.scrub(Some(A), Some(&others)).expect_err("it is the other's");
    assert!(
        matches!(refused.cause, Cause::OtherRepository { .. }),
        "{refused}"
    );
    assert!(two.status(B, GroupBy::Month).is_consistent());
    assert_eq!([two.level(B), two.level(A)], [Level::Incremental, Level::Full]);
    two.assert_consistent(GroupBy::Month, GroupBy::Month);
    let scrubbed = two.scrub(None, None).expect("it begins");
    assert_eq!(
        scrubbed.checkpoints.len(),
        3,
        "without a repository a scrub removes all"
    );
    assert_eq!([two.level(A), two.level(B)], [Level::Full; 2]);
}

#[test]
fn scrub_with_a_repository_leaves_bitmaps_of_unknown_origin() {
    let mut two = Two::new();
    two.level(A);
    two.level(B);
    let domain = two.lab.host.domain("vm1").expect("it is there");
    for name in two.checkpoints() {
        two.lab
            .host
            .forget_checkpoint(&domain, &name)
            .expect("it was there");
    }
    two.lab.host.change("vm1", |domain| {
        domain.state = vmsnap::model::domain::DomainState::ShutOff;
    });
    let scrubbed = two.scrub(Some(A), None).expect("it begins");
    assert_eq!(
        scrubbed.bitmaps.len(),
        1,
        "the checkpoint that its own restore point recorded"
    );
    assert_eq!([two.level(B), two.level(A)], [Level::Incremental, Level::Full]);
    two.assert_consistent(GroupBy::Month, GroupBy::Month);
}

#[test]
fn two_groupings_of_one_repository_are_consistent() {
    let mut two = Two::new();
    let by = |group_by| Options {
        group_by,
        force: true,
        ..Lab::options()
    };
    for day in ["2026-11-05", "2026-12-05", "2026-12-06"] {
        two.lab.at(&format!("{day}T02:00:00+01:00[Europe/Berlin]"));
        for group_by in [GroupBy::Month, GroupBy::Year] {
            two.back_up(A, &by(group_by));
            for seen in [GroupBy::Month, GroupBy::Year] {
                let status = two.status(A, seen);
                assert!(
                    status.is_consistent(),
                    "{day} {seen:?}: {:?}",
                    status.inconsistencies
                );
            }
        }
    }
}

#[test]
fn checkpoints_of_nobody_are_still_inconsistent() {
    let mut two = Two::new();
    two.level(A);
    let stray = "virtnbdbackup.1793667600999999999999999";
    two.lab.host.make_foreign_checkpoint("vm1", stray);
    let status = two.status(A, GroupBy::Month);
    assert_eq!(
        status.inconsistencies,
        [format!(
            "checkpoint {stray} is not used by any restore point in this chain"
        )]
    );
}

#[test]
fn a_damaged_id_stops_no_backup_and_is_reported() {
    let mut two = Two::new();
    two.level(A);
    let file = two.lab.root().join(".vmsnap-repository.json");
    std::fs::write(&file, b"torn").expect("written");
    assert!(matches!(two.lab.repo.identity(), Identity::Unusable(_)));
    let outcome = two.back_up(A, &Lab::options());
    assert_eq!(outcome.point.level, Level::Incremental);
    let codes = |status: DomainStatus| -> Vec<String> {
        status.findings.into_iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(two.status(A, GroupBy::Month)), ["repository-id-unusable"]);
    assert!(two.status(A, GroupBy::Month).is_consistent());
    std::fs::remove_file(&file).expect("removed");
    assert_eq!(two.level(A), Level::Incremental);
    assert!(two.lab.repo.identity().id().is_some(), "it has a new one");
    assert!(codes(two.status(A, GroupBy::Month)).is_empty());
}
