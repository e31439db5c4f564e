//! Images, and copies of them, that several hosts, definitions and repositories use. An incremental
//! backup uses the bitmap that its parent's run made; without it the backup is full.

use jiff::{Span, Zoned};
use proptest::prelude::*;
use vmsnap::host::Host;
use vmsnap::model::checkpoint::CheckpointId;
use vmsnap::model::domain::DomainState;
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::Context;
use vmsnap::ops::backup::{Outcome, backup};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::reconcile::Repair;
use vmsnap::ops::scrub::{self, Means, ScrubType};
use vmsnap::testkit::MemDisk;

use crate::forged::rewrite;
use crate::lab::{CLUSTER, InFolder, Lab};

const SIZE: usize = 8 * CLUSTER + 512;

/// A user of the image: a host, a domain defined there, and whether it runs during its backup.
#[derive(Clone, Copy, Debug)]
struct User {
    host: usize,
    domain: &'static str,
    runs: bool,
}

const VM1: User = User {
    host: 0,
    domain: "vm1",
    runs: false,
};

/// Two hosts with two definitions of one disk each, two repositories, the image, and copies of it.
struct World {
    /// One host and one repository per lab; any host can use either repository.
    labs: [Lab; 2],
    now: Zoned,
    image: MemDisk,
    copies: Vec<MemDisk>,
    /// The repository, the domain, the restore point, and the content of the disk.
    kept: Vec<(usize, &'static str, String, Vec<u8>)>,
}

impl World {
    fn new() -> World {
        let lab = || {
            let lab = Lab::in_memory();
            for domain in ["vm1", "vm2"] {
                lab.host.add_domain(domain, &[("vda", SIZE)]);
            }
            lab
        };
        let labs = [lab(), lab()];
        World {
            now: labs[0].now.clone(),
            labs,
            image: MemDisk::new(SIZE),
            copies: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Lends a user the image for the duration of `work`.
    fn with<T>(&mut self, user: User, work: impl FnOnce(&World) -> T) -> T {
        let host = self.labs[user.host].host.clone();
        let image = std::mem::take(&mut self.image);
        host.disk(user.domain, "vda", |disk| *disk = image);
        host.change(user.domain, |domain| domain.state = DomainState::ShutOff);
        if user.runs {
            host.change(user.domain, |domain| domain.state = DomainState::Running);
        }
        let done = work(self);
        self.image = host.disk(user.domain, "vda", std::mem::take);
        done
    }

    fn back_up(&mut self, user: User, repository: usize) -> Outcome {
        let outcome = self.with(user, |world| {
            let context = Context {
                host: &world.labs[user.host].host,
                repo: world.labs[repository].repo.as_ref(),
                now: world.now.clone(),
                monitor: &Silent,
                stop: world.labs[0].stop.clone(),
                random: &*world.labs[0].random,
            };
            backup(user.domain, &context, &Lab::options()).expect("a backup")
        });
        let bytes = self.image.bytes().to_vec();
        self.kept
            .push((repository, user.domain, outcome.point.id.clone(), bytes));
        outcome
    }

    fn scrub(&mut self, user: User, kind: ScrubType) {
        self.with(user, |world| {
            let means = Means {
                monitor: &vmsnap::ops::monitor::Silent,
                host: &world.labs[user.host].host,
                repo: None,
                today: world.now.date(),
                stop: world.labs[0].stop.clone(),
            };
            let options = scrub::Options {
                wait: std::time::Duration::ZERO,
                kind,
                name: None,
                group_by: GroupBy::Month,
                full: FullRule::Period,
            };
            let outcome = scrub::scrub(user.domain, &means, &options).expect("it begins");
            assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
        });
    }

    /// libvirt forgets the domain's checkpoints, as when it is undefined, or is transient and shut
    /// off.
    fn lose_records(&mut self, user: User) {
        let host = &self.labs[user.host].host;
        let domain = host.domain(user.domain).expect("it is there");
        for checkpoint in host.checkpoints(&domain).expect("they are listed") {
            host.forget_checkpoint(&domain, &checkpoint.name)
                .expect("it was there");
        }
    }

    fn pass(&mut self) {
        self.now = self.now.checked_add(Span::new().minutes(7)).expect("in range");
    }

    /// Checks that every restore point gives back its disk.
    fn prove(&self) {
        for (repository, domain, id, bytes) in &self.kept {
            let restored = self.labs[*repository].restored(domain, id, "vda");
            assert!(restored.expect("restored") == *bytes, "{domain} {id}");
        }
    }
}

/// Checkpoints made in the same second on the same image, by two hosts.
#[test]
fn bitmap_of_other_host_definition_or_repository_is_no_parent() {
    let others = [
        (User { host: 1, ..VM1 }, 1),
        (User { domain: "vm2", ..VM1 }, 1),
        (VM1, 1),
        (User { domain: "vm2", ..VM1 }, 0),
    ];
    for (other, repository) in others {
        for runs in [false, true] {
            let mut world = World::new();
            let (first, other) = (User { runs, ..VM1 }, User { runs, ..other });
            world.image.write(0, &[1; CLUSTER]);
            world.back_up(first, 0);
            world.scrub(other, ScrubType::Both);
            world.image.write(2 * CLUSTER, &[2; 512]);
            world.back_up(other, repository);
            world.image.write(4 * CLUSTER, &[3; 512]);
            let point = world.back_up(first, 0).point;
            assert_eq!(point.level, Level::Full, "{other:?}: {}", point.disks[0].reason);
            world.prove();
        }
    }
}

#[test]
fn a_counted_name_proves_nothing_and_gets_a_full() {
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", SIZE)]);
        lab.backup("vm1").expect("a full");
        let made = lab.made[0].clone();
        lab.host.rename_checkpoint("vm1", &made, "virtnbdbackup.3");
        let period = lab.history("vm1").kept[0].dir().with_file_name("checkpoints");
        std::fs::rename(
            period.join(format!("{made}.xml")),
            period.join("virtnbdbackup.3.xml"),
        )
        .expect("renamed");
        rewrite(&lab, 0, |manifest| {
            let created = manifest.point.checkpoint.as_ref().expect("it made one").created;
            manifest.point.checkpoint = Some(CheckpointId {
                name: "virtnbdbackup.3".to_owned(),
                created,
            });
            let file = manifest.checkpoint_file.as_mut().expect("it is listed");
            file.name = "virtnbdbackup.3.xml".to_owned();
        });
        // An earlier version also kept this folder.
        std::fs::create_dir(lab.root().join("vm1/.spent")).expect("new");
        std::fs::write(lab.root().join("vm1/.spent/virtnbdbackup.4"), b"").expect("written");
        lab.host.change("vm1", |domain| domain.state = state);

        let outcome = lab.backup("vm1").expect("a full");
        assert_eq!(outcome.findings, []);
        let disk = &outcome.point.disks[0];
        assert_eq!(disk.level, Level::Full);
        assert!(disk.reason.contains("virtnbdbackup.3"), "{}", disk.reason);
        let left = lab.host.disk("vm1", "vda", |disk| disk.bitmap_names());
        assert_eq!(left, lab.made[1..], "the old checkpoint is retired");
        assert_eq!(
            lab.backup("vm1").expect("the next backup").point.level,
            Level::Incremental
        );
    }
}

#[test]
fn image_put_back_continues_from_newest_point_with_a_bitmap() {
    for runs in [false, true] {
        let user = User { runs, ..VM1 };
        let mut world = World::new();
        world.image.write(0, &[1; CLUSTER]);
        let first = world.back_up(user, 0).point.id;
        world.image.write(CLUSTER, &[2; 512]);
        let copy = world.image.clone();
        world.pass();
        world.back_up(user, 0);
        world.image.write(2 * CLUSTER, &[3; 512]);
        world.pass();
        world.back_up(user, 0);
        world.image = copy;
        world.image.write(3 * CLUSTER, &[4; 512]);
        world.pass();
        let point = world.back_up(user, 0).point;
        assert_eq!(point.parent, Some(first));
        world.prove();
    }
}

fn codes(outcome: &Outcome) -> Vec<&str> {
    let findings = outcome.findings.iter();
    findings.map(|finding| finding.code.as_str()).collect()
}

/// The domain was undefined and defined again, or was transient and created again, or libvirt lost
/// its records.
#[test]
fn lost_checkpoint_is_registered_again_for_an_incremental() {
    for runs in [false, true] {
        let user = User { runs, ..VM1 };
        let mut world = World::new();
        world.image.write(0, &[1; CLUSTER]);
        world.back_up(user, 0);
        world.image.write(CLUSTER, &[2; 512]);
        world.pass();
        let second = world.back_up(user, 0).point;
        world.lose_records(user);
        world.image.write(2 * CLUSTER, &[3; 512]);
        world.pass();
        let outcome = world.back_up(user, 0);
        assert_eq!(outcome.point.parent, Some(second.id), "runs: {runs}");
        assert_eq!(codes(&outcome), ["checkpoint-known-again"]);
        let host = &world.labs[0].host;
        let domain = host.domain("vm1").expect("it is there");
        let listed = host.checkpoints(&domain).expect("they are listed");
        let known = listed
            .iter()
            .find(|listed| second.checkpoint.as_ref().is_some_and(|made| listed.is(made)));
        assert!(known.is_some(), "listed with its name and its time: {listed:?}");
        world.prove();
    }
}

/// QEMU holds the bitmaps only in memory, where only libvirt can check them.
#[test]
fn unseen_lost_checkpoint_is_queried_only_once() {
    for is_gone in [false, true] {
        let mut lab = Lab::new();
        lab.host
            .add_domain("vm1", &[("vda", SIZE), ("vdb", CLUSTER), ("vdc", CLUSTER)]);
        lab.backup("vm1").expect("a full");
        lab.host.disk("vm1", "vda", |disk| disk.write(0, &[1; 100]));
        let domain = lab.host.domain("vm1").expect("it is there");
        if is_gone {
            lab.host
                .delete_checkpoint(&domain, &lab.made[0])
                .expect("it was there");
        } else {
            lab.host
                .forget_checkpoint(&domain, &lab.made[0])
                .expect("it was there");
            lab.host
                .disk("vm1", "vdb", |disk| disk.remove_bitmap(&lab.made[0]));
        }
        let preview = lab.preview("vm1").expect("a plan");
        let announced = &preview.planned.repairs;
        assert!(matches!(&announced[..], [Repair::Register(lost)] if lost.name == lab.made[0]));
        assert_eq!(preview.planned.retired, []);
        assert_eq!(preview.planned.backup.announced_level(), None);
        let text = vmsnap::cli::report::backup::plan_text("vm1", &preview);
        assert!(
            text.starts_with("vm1: a full or incremental backup into "),
            "{text}"
        );
        let line = format!(
            "disk vda: incremental if the bitmap of checkpoint {} still exists, else full\n",
            lab.made[0]
        );
        assert!(text.contains(&line), "{text}");
        let outcome = lab.backup("vm1").expect("a backup");
        let levels: Vec<Level> = outcome.point.disks.iter().map(|disk| disk.level).collect();
        if is_gone {
            assert_eq!((levels, codes(&outcome)), (vec![Level::Full; 3], vec![]));
            let reason = &outcome.point.disks[0].reason;
            assert_eq!(reason, &format!("checkpoint {} is gone", lab.made[0]));
        } else {
            assert_eq!(levels, [Level::Incremental, Level::Full, Level::Incremental]);
            assert_eq!(codes(&outcome), ["checkpoint-known-again"]);
        }
        lab.assert_gives_back("vm1", "vda");
        assert_eq!(lab.preview("vm1").expect("a plan").planned.repairs, []);
    }
}

#[test]
fn a_domain_of_another_uuid_does_not_inherit_a_checkpoint() {
    for state in [DomainState::Running, DomainState::ShutOff] {
        let mut lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", SIZE)]);
        lab.backup("vm1").expect("a full");
        let domain = lab.host.domain("vm1").expect("it is there");
        lab.host
            .forget_checkpoint(&domain, &lab.made[0])
            .expect("it was there");
        lab.host.change("vm1", |domain| {
            domain.uuid = "22222222-0000-4000-8000-000000000001".into();
            domain.state = state;
        });
        let outcome = lab.backup("vm1").expect("a full");
        assert_eq!(
            (outcome.point.level, codes(&outcome)),
            (Level::Full, vec![]),
            "{state:?}"
        );
    }
}

/// Two hosts with shared storage and one repository; the domain moves between them.
#[test]
fn a_domain_that_moves_between_hosts_stays_incremental() {
    for runs in [false, true] {
        let mut world = World::new();
        for round in 0..6u8 {
            let host = usize::from(round) / 2 % 2;
            world.image.write(usize::from(round) * CLUSTER, &[round + 1; 512]);
            let user = User { host, runs, ..VM1 };
            let point = world.back_up(user, 0).point;
            assert_eq!(point.level == Level::Full, round == 0, "round {round}");
            world.pass();
        }
        world.prove();
    }
}

#[derive(Clone, Debug)]
enum Act {
    Write { at: usize, length: usize, byte: u8 },
    Zero { at: usize, length: usize },
    Backup { user: User, repository: usize },
    Scrub { user: User, kind: ScrubType },
    LoseRecords(User),
    Copy,
    PutBack(usize),
    Pass,
}

fn user() -> impl Strategy<Value = User> {
    let domain = prop_oneof![3 => Just("vm1"), 1 => Just("vm2")];
    (0..2usize, domain, any::<bool>()).prop_map(|(host, domain, runs)| User { host, domain, runs })
}

fn act() -> impl Strategy<Value = Act> {
    let at = 0..SIZE - 1;
    let kind = prop::sample::select(&ScrubType::ALL[..]);
    let write = (at.clone(), 1..2 * CLUSTER, 1..=255u8);
    prop_oneof![
        6 => write.prop_map(|(at, length, byte)| Act::Write { at, length, byte }),
        2 => (at, 1..2 * CLUSTER).prop_map(|(at, length)| Act::Zero { at, length }),
        8 => (user(), 0..2usize).prop_map(|(user, repository)| Act::Backup { user, repository }),
        2 => (user(), kind).prop_map(|(user, kind)| Act::Scrub { user, kind }),
        2 => user().prop_map(Act::LoseRecords),
        2 => Just(Act::Copy),
        2 => (0..4usize).prop_map(Act::PutBack),
        3 => Just(Act::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_hosts_and_repositories_restores_exactly(story in prop::collection::vec(act(), 1..40)) {
        let mut world = World::new();
        for act in story {
            match act {
                Act::Write { at, length, byte } => {
                    let length = length.min(SIZE - at);
                    world.image.write(at, &vec![byte; length]);
                }
                Act::Zero { at, length } => world.image.zero(at, length.min(SIZE - at)),
                Act::Backup { user, repository } => {
                    world.back_up(user, repository);
                }
                Act::Scrub { user, kind } => world.scrub(user, kind),
                Act::LoseRecords(user) => world.lose_records(user),
                Act::Copy => world.copies.push(world.image.clone()),
                Act::PutBack(number) => {
                    if let Some(copy) = world.copies.get(number) {
                        world.image = copy.clone();
                    }
                }
                Act::Pass => world.pass(),
            }
        }
        world.prove();
    }
}
