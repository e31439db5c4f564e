//! Backups into pack repositories, and what becomes of them.

use std::sync::Arc;

use vmsnap::model::restore_point::Level;
use vmsnap::ops::retention::{self, Policy, Quota, Rule};
use vmsnap::repo::{ObjectErrorKind, RepoError, Repository};
use vmsnap::testkit::{MemoryObjects, ObjectTrouble};

use super::WHERE;
use super::world::{DOMAIN, World, open, other_host};
use crate::lab::CLUSTER;
use crate::repositories::kinds::{Maker, PERIOD, data, moment, read_through};

fn bytes_of_packs(objects: &MemoryObjects) -> usize {
    let names = objects
        .names()
        .into_iter()
        .filter(|name| name.starts_with("packs/"));
    names
        .map(|name| objects.content(&name).expect("it is there").len())
        .sum()
}

fn points(objects: &MemoryObjects) -> Vec<String> {
    let names = objects.names().into_iter();
    names.filter(|name| name.starts_with("points/")).collect()
}

#[test]
fn every_point_gives_back_its_disks_after_any_removal() {
    let mut world = World::new();
    let levels: Vec<Level> = (0..5).map(|_| world.backup().point.level).collect();
    assert_eq!(levels[..2], [Level::Full, Level::Incremental]);
    world.assert_kept();
    // The oldest, and one in the middle.
    for place in [0, 1] {
        let (id, _) = world.moments.remove(place);
        let domain = world.lab.repo.domain(DOMAIN).expect("a name");
        let writer = domain.try_lock().expect("nobody else writes");
        let history = writer.history().expect("it can be read");
        writer
            .remove_point(&history, &id, moment(9))
            .expect("it is removed");
    }
    world.assert_kept();
    world.lab.assert_verified(DOMAIN);
    assert_eq!(world.backup().point.level, Level::Incremental);
    world.assert_kept();
    assert!(world.lab.status(DOMAIN).is_consistent());
}

#[test]
fn policy_removes_points_in_the_middle_without_merges() {
    let mut world = World::new();
    for _ in 0..4 {
        world.backup();
    }
    world.reopen();
    let policy = Policy::default().with(Rule::Last, Quota::AtMost(1));
    let means = retention::Means {
        repo: world.lab.repo.as_ref(),
        now: world.lab.now.clone(),
        monitor: &world.lab.recorder,
        stop: &world.lab.stop,
    };
    let options = retention::Options {
        policy,
        wait: std::time::Duration::ZERO,
    };
    let outcome = retention::prune(DOMAIN, &means, &options).expect("it is pruned");
    let removed = outcome.removed.expect("it was carried out");
    assert_eq!(removed.ids.len(), 3, "{:?}", outcome.plan);
    assert!(outcome.plan.merges().is_empty());
    world.moments.drain(..3);
    world.assert_kept();
    world.assert_next_backup_heals();
}

#[test]
fn two_domains_share_their_blocks() {
    let mut world = World::new();
    world.backup();
    let before = bytes_of_packs(&world.objects);
    let content = world.disks();
    let sizes: Vec<(&str, usize)> = content.iter().map(|(disk, bytes)| (*disk, bytes.len())).collect();
    world.lab.host.add_domain("clone", &sizes);
    for (disk, bytes) in &world.moments[0].1 {
        world.lab.host.disk("clone", disk, |disk| disk.write(0, bytes));
    }
    world.lab.backup("clone").expect("a restore point");
    let added = bytes_of_packs(&world.objects) - before;
    // Its XML is its own, and so is the pack that holds it.
    assert!(added < 8 << 10, "{added} bytes were added to {before}");
    world.reopen();
    assert_eq!(
        world.lab.repo.domains().expect("they are listed"),
        ["clone", DOMAIN]
    );
    for disk in ["vda", "vdb"] {
        world.lab.assert_gives_back("clone", disk);
    }
}

/// Two hosts back up one domain at the same time.
#[test]
fn of_two_hosts_one_commits() {
    let objects = Arc::new(MemoryObjects::default());
    let world = World::of(Arc::clone(&objects));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let hosts = [world.host(), other_host(&folder)];
    let repositories = hosts.map(|host| open(&objects, host).expect("it opens"));
    let domains = repositories.map(|repository| repository.domain(DOMAIN).expect("a name"));
    let size = 2 * CLUSTER as u64;
    Maker::new(domains[0].as_ref(), 0).make(size, vec![data(0, &[1; CLUSTER])], None);
    let mut results = Vec::new();
    let runs: Vec<_> = domains
        .iter()
        .zip(1..)
        .map(|(domain, number)| {
            let writer = domain.try_lock().expect("a lock of its own");
            let history = writer.history().expect("it can be read");
            let pending = writer.begin(PERIOD, moment(number)).expect("it begins");
            let maker = Maker::new(domain.as_ref(), number);
            let blocks = vec![data(1, &[number as u8; CLUSTER])];
            let manifest = maker.fill(pending.as_ref(), size, blocks, (&history, None));
            (pending, manifest)
        })
        .collect();
    for (mut pending, manifest) in runs {
        results.push(pending.commit(&manifest).map(|_| pending.id().to_owned()));
    }
    let first = results[0].as_ref().expect("the first wins");
    let error = results[1].as_ref().expect_err("the second does not");
    assert!(
        error
            .to_string()
            .contains("another run has committed a restore point"),
        "{error}"
    );
    assert_eq!(points(&objects).len(), 2);
    let read = read_through(domains[1].as_ref(), first).expect("it is sound");
    assert!(read[CLUSTER..].iter().all(|byte| *byte == 1));
    let again = Maker::new(domains[1].as_ref(), 3).make(size, vec![data(1, &[7; CLUSTER])], None);
    assert!(read_through(domains[0].as_ref(), &again).is_ok());
    assert_eq!(domains[0].history().expect("it can be read").findings, []);
}

/// The store answers that its object exists, because it has repeated the request itself.
#[test]
fn repeated_put_of_a_point_is_our_own_commit() {
    let mut world = World::new();
    world.backup();
    for trouble in [
        ObjectTrouble::RepeatsPut,
        ObjectTrouble::AnswerLost(ObjectErrorKind::Failed),
    ] {
        let number = puts_before_the_commit(&world);
        let mut world = world.fork();
        world.reopen();
        world.objects.trouble("put_if_absent", number, trouble.clone());
        let disks = world.disks();
        let outcome = world
            .lab
            .backup(DOMAIN)
            .unwrap_or_else(|error| panic!("{trouble:?}: {error}"));
        world.moments.push((outcome.point.id, disks));
        world.assert_kept();
        assert_eq!(points(&world.objects).len(), 2);
    }
}

/// How many conditional puts a backup makes before it commits.
fn puts_before_the_commit(world: &World) -> usize {
    for number in 0.. {
        let mut world = world.fork();
        world.reopen();
        let trouble = ObjectTrouble::AnswerLost(ObjectErrorKind::Unsupported);
        world.objects.trouble("put_if_absent", number, trouble);
        let before = points(&world.objects).len();
        let _ = world.lab.backup(DOMAIN);
        if points(&world.objects).len() > before {
            return number;
        }
    }
    unreachable!("some put is the commit")
}

#[test]
fn store_that_fails_at_any_call_costs_no_earlier_point() {
    let mut world = World::new();
    world.backup();
    world.backup();
    for number in 0.. {
        let mut world = world.fork();
        let before = world.objects.calls();
        world
            .objects
            .trouble("", number, ObjectTrouble::Fails(ObjectErrorKind::Refused));
        let opened = open(&world.objects, world.host());
        if let Ok(repo) = opened {
            world.lab.repo = Box::new(repo);
            let _ = world.lab.backup(DOMAIN);
        }
        let is_over = world.objects.calls() - before <= number;
        world.objects.calm();
        world.assert_kept();
        world.assert_next_backup_heals();
        if is_over {
            assert!(number > 10, "{number} calls");
            break;
        }
    }
}

#[test]
fn damaged_objects_of_points_are_named() {
    let mut world = World::new();
    for _ in 0..3 {
        world.backup();
    }
    let domain = world.lab.repo.domain(DOMAIN).expect("a name");
    let locations: Vec<String> = domain
        .history()
        .expect("it can be read")
        .kept
        .into_iter()
        .map(|kept| kept.location)
        .collect();
    let name = |place: usize| {
        locations[place]
            .strip_prefix(&format!("{WHERE}/"))
            .expect("below it")
            .to_owned()
    };
    for place in 0..3 {
        for is_gone in [false, true] {
            let mut world = world.fork();
            let mut content = world.objects.content(&name(place)).expect("it is there");
            let middle = content.len() / 2;
            content[middle] ^= 1;
            match is_gone {
                true => world.objects.remove(&name(place)),
                false => world.objects.insert(&name(place), &content),
            }
            world.reopen();
            let history = world.lab.history(DOMAIN);
            assert_eq!(history.kept.len(), 2);
            // The newest one has no follower that would miss it.
            let is_noticed = place < 2 || !is_gone;
            assert_eq!(
                history.findings.len(),
                usize::from(is_noticed),
                "{:?}",
                history.findings
            );
            for finding in &history.findings {
                assert!(finding.message.contains(&name(place)), "{finding:?}");
                let code = match is_gone {
                    true => "restore-point-missing",
                    false => "restore-point-unreadable",
                };
                assert_eq!(finding.code, code);
            }
            let (id, _) = world.moments.remove(place);
            let gone = world
                .lab
                .restored(DOMAIN, &id, "vda")
                .expect_err("it cannot be read");
            assert!(!gone.to_string().is_empty());
            world.assert_all_give_back();
            world.backup();
            world.assert_all_give_back();
        }
    }
}

#[test]
fn objects_that_were_swapped_are_damage() {
    let mut world = World::new();
    world.backup();
    world.backup();
    let names = points(&world.objects);
    let content = world.objects.content(&names[0]).expect("it is there");
    world.objects.insert(&names[1], &content);
    world.reopen();
    let history = world.lab.history(DOMAIN);
    assert_eq!(history.kept.len(), 1, "{:?}", history.findings);
    assert!(
        history
            .findings
            .iter()
            .any(|finding| finding.message.contains(&names[1]))
    );
}

/// A store that ignores the condition of a put. No point replaces another.
#[test]
fn stores_without_conditions_keep_all_points() {
    let objects = Arc::new(MemoryObjects::default());
    objects.ignore_conditions();
    let mut world = World::of(Arc::clone(&objects));
    for _ in 0..3 {
        world.backup();
    }
    world.assert_kept();
    assert!(
        points(&objects).iter().all(|name| name.contains('-')),
        "names have a suffix"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = open(&objects, other_host(&folder)).expect("it opens");
    let (here, there) = (
        world.lab.repo.domain(DOMAIN).expect("a name"),
        other.domain(DOMAIN).expect("a name"),
    );
    let size = CLUSTER as u64;
    let writer = there.try_lock().expect("a lock of its own");
    let history = writer.history().expect("it can be read");
    let mut pending = writer.begin(PERIOD, moment(500)).expect("it begins");
    let maker = Maker::new(there.as_ref(), 500);
    let manifest = maker.fill(
        pending.as_ref(),
        size,
        vec![data(0, &[9; CLUSTER])],
        (&history, None),
    );
    let faster = Maker::new(here.as_ref(), 600).make(size, vec![data(0, &[8; CLUSTER])], None);
    let error = pending.commit(&manifest).expect_err("it is too late");
    assert!(matches!(error, RepoError::Pack(_)), "{error}");
    assert_eq!(points(&objects).len(), 4);
    assert!(read_through(here.as_ref(), &faster).is_ok());
}

/// The names of objects and what lies in them tell nothing about domains.
#[test]
fn nothing_of_a_domain_is_in_the_clear() {
    let kind = crate::repositories::pack::PackFolder::default();
    let repository = crate::repositories::kinds::Kind::repository(&kind);
    let domain = repository.domain("the-secret-name").expect("a name");
    let size = 2 * CLUSTER as u64;
    Maker::new(domain.as_ref(), 0).make(
        size,
        vec![data(
            0,
            b"the guest's own words"
                .repeat(3200)
                .get(..CLUSTER)
                .expect("enough"),
        )],
        None,
    );
    for (name, content) in kind.files() {
        for secret in ["secret", "domain type", "monthly", "guest"] {
            let is_inside = content
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!name.contains(secret) && !is_inside, "{name} contains {secret}");
        }
    }
}

/// A killed run of another host leaves blocks that the next run finds.
#[test]
fn uploaded_blocks_of_a_failed_run_are_used_again() {
    let mut world = World::new();
    let number = puts_before_the_commit(&world);
    world.reopen();
    let refused = ObjectTrouble::Fails(ObjectErrorKind::Refused);
    world.objects.trouble("put_if_absent", number, refused);
    world.lab.backup(DOMAIN).expect_err("the commit is refused");
    assert_eq!(points(&world.objects), [""; 0]);
    let before = bytes_of_packs(&world.objects);
    world.backup();
    let added = bytes_of_packs(&world.objects) - before;
    assert!(
        before > 0 && added < 8 << 10,
        "{added} bytes were added to {before}"
    );
    world.assert_kept();
}

#[test]
fn lists_that_fail_are_no_short_history() {
    let mut world = World::new();
    world.backup();
    for number in 0..2 {
        world.reopen();
        let domain = world.lab.repo.domain(DOMAIN).expect("a name");
        let refused = ObjectTrouble::Fails(ObjectErrorKind::Refused);
        world.objects.trouble("list", number, refused);
        domain.history().map(drop).expect_err("it is not complete");
    }
}
