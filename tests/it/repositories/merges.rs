//! Merges of restore points into the one that depends on them.

use std::collections::BTreeMap;

use vmsnap::model::block::Content;
use vmsnap::model::guest::BootLevel;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::repo::{BootProof, DomainRepository, Merge, Merged, MissedWriteRecord, RepoError};

use super::kinds::{Kind, Maker, data, is_damage, moment, read_through, reading, zero};
use super::model::blocks;
use crate::lab::CLUSTER;

const SIZE: usize = 6 * CLUSTER;

fn domain(kind: &dyn Kind) -> Box<dyn DomainRepository> {
    kind.repository().domain("vm1").expect("a name that fits")
}

/// A chain of restore points, each with its disk.
fn chain(domain: &dyn DomainRepository, length: usize) -> Vec<(String, Vec<u8>)> {
    let mut disk = vec![0; SIZE];
    let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
    for number in 0..length {
        let before = disk.clone();
        let byte = number as u8 + 1;
        disk[number % 6 * CLUSTER..][..CLUSTER / 2].fill(byte);
        disk[(number + 3) % 6 * CLUSTER..][..CLUSTER].fill(0);
        disk[SIZE - 600..].fill(byte);
        let parent = kept.last().map(|(id, _)| id.as_str());
        let changed = blocks(&disk, parent.map(|_| before.as_slice()));
        let id = Maker::new(domain, number as i64).make(SIZE as u64, changed, parent);
        kept.push((id, disk.clone()));
    }
    kept
}

fn merge(domain: &dyn DomainRepository, run: &[&str], into: &str, stop: &Stop) -> Result<Merged, RepoError> {
    let run: Vec<String> = run.iter().map(|id| (*id).to_owned()).collect();
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let wish = Merge {
        run: &run,
        into,
        now: moment(99),
        stop,
        watch: &(),
    };
    writer.merge_points(&history, &wish)
}

fn merged(domain: &dyn DomainRepository, run: &[&str], into: &str) {
    let done = merge(domain, run, into, &Stop::default()).expect("merged");
    assert_eq!(done, Merged::Completely);
}

/// These restore points are there and no others, and each has its disk.
fn assert_there(domain: &dyn DomainRepository, expected: &[(String, Vec<u8>)]) {
    let history = domain.history().expect("it can be read");
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    assert!(history.damage().is_empty(), "{:?}", history.damage());
    assert_eq!(history.leftovers, []);
    assert_eq!(domain.interrupted_removals().expect("they are listed"), []);
    let ids: Vec<&str> = history
        .chains
        .points()
        .iter()
        .map(|kept| kept.point.id.as_str())
        .collect();
    let expected_ids: Vec<&str> = expected.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, expected_ids);
    for (id, disk) in expected {
        assert_eq!(history.chains.faults(id), [""; 0]);
        assert!(read_through(domain, id).expect("it is sound") == *disk, "{id}");
    }
}

pub fn a_run_goes_into_the_point_that_depends_on_it(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = chain(domain.as_ref(), 5);
    let ids: Vec<&str> = points.iter().map(|(id, _)| id.as_str()).collect();
    merged(domain.as_ref(), &ids[..3], ids[3]);
    assert_there(domain.as_ref(), &points[3..]);
    let history = domain.history().expect("it can be read");
    let first = &history.kept[0].manifest.point;
    assert_eq!(
        (first.level, &first.parent, first.merges()),
        (Level::Full, &None, 1)
    );
    assert_eq!(first.disks[0].parent, None);
    let removed: Vec<&str> = history.chains.removed().map(|point| point.id.as_str()).collect();
    assert_eq!(removed, ids[..3]);
    drop(history);
    // The next one still knows its parent, and another merge follows.
    merged(domain.as_ref(), &[ids[3]], ids[4]);
    assert_there(domain.as_ref(), &points[4..]);
}

pub fn a_merge_in_the_middle_keeps_the_parent(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = chain(domain.as_ref(), 5);
    let ids: Vec<&str> = points.iter().map(|(id, _)| id.as_str()).collect();
    merged(domain.as_ref(), &ids[1..3], ids[3]);
    let left = [&points[..1], &points[3..]].concat();
    assert_there(domain.as_ref(), &left);
    let history = domain.history().expect("it can be read");
    let merged_one = &history.get(ids[3]).expect("it is kept").manifest.point;
    assert_eq!(merged_one.level, Level::Incremental);
    assert_eq!(merged_one.parent.as_deref(), Some(ids[0]));
    drop(history);
    merged(domain.as_ref(), &ids[..1], ids[3]);
    assert_there(domain.as_ref(), &points[3..]);
    let third = Maker::new(domain.as_ref(), 7).make(SIZE as u64, vec![data(0, &[9; CLUSTER])], Some(ids[4]));
    merged(domain.as_ref(), &ids[3..], &third);
    let mut disk = points[4].1.clone();
    disk[..CLUSTER].fill(9);
    assert_there(domain.as_ref(), &[(third, disk)]);
}

pub fn a_merge_that_costs_another_point_is_refused(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = chain(domain.as_ref(), 3);
    let ids: Vec<&str> = points.iter().map(|(id, _)| id.as_str()).collect();
    let branch = Maker::new(domain.as_ref(), 8).make(SIZE as u64, vec![zero(0, CLUSTER)], Some(ids[0]));
    let refused = merge(domain.as_ref(), &ids[..2], ids[2], &Stop::default()).expect_err("refused");
    assert!(
        matches!(&refused, RepoError::Needed { by, .. } if *by == branch),
        "{refused}"
    );
    let mut of_branch = points[0].1.clone();
    of_branch[..CLUSTER].fill(0);
    let all = [points.as_slice(), &[(branch, of_branch)]].concat();
    assert_there(domain.as_ref(), &all);
    merged(domain.as_ref(), &ids[1..2], ids[2]);
    let smaller = Maker::new(domain.as_ref(), 9).make(512, vec![data(0, &[4; 512])], Some(ids[2]));
    let refused = merge(domain.as_ref(), &ids[2..], &smaller, &Stop::default()).expect_err("refused");
    assert!(refused.to_string().contains("smaller"), "{refused}");
    for missing in [vec![ids[1]], vec!["nothing"]] {
        let refused = merge(domain.as_ref(), &missing, ids[2], &Stop::default()).expect_err("refused");
        assert!(matches!(refused, RepoError::NotWhole { .. }), "{refused}");
    }
}

pub fn a_stopped_merge_changes_nothing(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = chain(domain.as_ref(), 3);
    let stop = Stop::default();
    stop.request(StopReason::Terminated);
    merge(domain.as_ref(), &[points[0].0.as_str()], &points[1].0, &stop).expect_err("it stops");
    assert_there(domain.as_ref(), &points);
}

pub fn damage_is_not_merged(kind: &dyn Kind) {
    for damaged in 0..3 {
        let domain = kind.repository().domain(&format!("vm{damaged}")).expect("a name");
        let points = chain(domain.as_ref(), 4);
        let ids: Vec<&str> = points.iter().map(|(id, _)| id.as_str()).collect();
        kind.damage(&format!("vm{damaged}"), ids[damaged], "vda");
        let error = merge(domain.as_ref(), &ids[..2], ids[2], &Stop::default()).expect_err("damaged");
        assert!(is_damage(&error), "{error}");
        let history = domain.history().expect("it can be read");
        assert_eq!(history.kept.len(), 4, "nothing is removed");
        assert_eq!(domain.interrupted_removals().expect("they are listed"), []);
    }
}

pub fn missed_writes_are_remembered_after_a_merge(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = chain(domain.as_ref(), 2);
    let (first, second) = (&points[0].0, &points[1].0);
    let history = domain.history().expect("it can be read");
    let missed = MissedWriteRecord {
        id: second.clone(),
        manifest: history.get(second).expect("it is kept").manifest.digest.clone(),
        time: moment(50),
        disks: vec!["vda".to_owned()],
    };
    domain.keep_missed_writes(&missed).expect("kept");
    let booted = BootProof {
        id: second.clone(),
        manifest: missed.manifest.clone(),
        time: moment(51),
        reached: BootLevel::Agent,
        wanted: BootLevel::Agent,
        pattern: None,
        command: Vec::new(),
        shortfall: None,
        seconds: 7,
    };
    domain.keep_boot_proof(&booted).expect("kept");
    drop(history);
    merged(domain.as_ref(), &[first.as_str()], second);
    let history = domain.history().expect("it can be read");
    assert_eq!(history.chains.standing_missed_writes().count(), 1);
    let kept = history.get(second).expect("it is kept");
    assert_eq!(kept.boot_proof, Some(booted), "a guest reads the same as before");
}

/// A reader that has begun before a merge ends well, and its files go after it.
pub fn a_reader_beside_a_merge_reads_the_old_state(kind: &dyn Kind) {
    let domain = domain(kind);
    let points = chain(domain.as_ref(), 4);
    let ids: Vec<&str> = points.iter().map(|(id, _)| id.as_str()).collect();
    let history = domain.history().expect("it can be read");
    let done = merge(domain.as_ref(), &ids[..2], ids[2], &Stop::default()).expect("merged");
    // A second merge waits until the first one's files are gone.
    let next = merge(domain.as_ref(), &ids[2..3], ids[3], &Stop::default()).expect("looked at");
    if done == Merged::Completely {
        // A repository in memory has no files that stay.
        assert_eq!(next, Merged::Completely);
        assert_there(domain.as_ref(), &points[3..]);
        return;
    }
    for (id, disk) in &points {
        let mut source = domain
            .open_source(&history, id, "vda", &reading(&Stop::default()))
            .expect("it opens");
        let mut read = Vec::new();
        while let Some(block) = source.next_block().expect("it is sound") {
            match &block.content {
                Content::Data(bytes) => read.extend_from_slice(bytes),
                Content::Zero(length) => read.resize(read.len() + *length as usize, 0),
            }
        }
        assert!(read == *disk, "{id}");
    }
    assert_eq!((done, next), (Merged::ExceptFiles, Merged::NotYet));
    let now = domain.history().expect("it can be read");
    assert_eq!(now.kept.len(), 2);
    assert!(now.findings.is_empty() && now.damage().is_empty());
    drop((history, now));
    let writer = domain.try_lock().expect("nobody else writes");
    for left in domain.interrupted_removals().expect("they are listed") {
        assert!(writer.finish_removal(&left).expect("finished"));
    }
    assert_there(domain.as_ref(), &points[2..]);
}

/// Numbers that repeat.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Backups of a growing and shrinking disk, and merges of any runs, against the bytes.
pub fn a_story_of_backups_and_merges_loses_nothing(kind: &dyn Kind) {
    for seed in 0..6 {
        let name = format!("vm{seed}");
        let domain = kind.repository().domain(&name).expect("a name");
        tell(domain.as_ref(), &mut Dice(seed));
    }
}

fn tell(domain: &dyn DomainRepository, dice: &mut Dice) {
    let mut disk = vec![0; SIZE];
    let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
    // The parent of each restore point, to choose runs.
    let mut parents: BTreeMap<String, Option<String>> = BTreeMap::new();
    for number in 0..60 {
        for _ in 0..dice.roll(4) {
            let start = dice.roll(disk.len());
            let end = (start + dice.roll(2 * CLUSTER)).min(disk.len());
            let byte = if dice.roll(3) == 0 { 0 } else { number as u8 + 1 };
            disk[start..end].fill(byte);
        }
        if dice.roll(5) == 0 {
            disk.resize(512 * (1 + dice.roll(SIZE / 512)), 0);
        }
        if dice.roll(3) > 0 || kept.len() < 3 {
            // A disk that has shrunk is saved in full.
            let can_follow = |(_, before): &&(String, Vec<u8>)| before.len() <= disk.len();
            let before = kept.last().filter(|_| dice.roll(8) > 0).filter(can_follow);
            let changed = blocks(&disk, before.map(|(_, disk)| disk.as_slice()));
            let parent = before.map(|(id, _)| id.clone());
            let id = Maker::new(domain, number).make(disk.len() as u64, changed, parent.as_deref());
            parents.insert(id.clone(), parent);
            kept.push((id, disk.clone()));
            continue;
        }
        // A run that ends before the last one, as long as it is one chain.
        let last = 1 + dice.roll(kept.len() - 1);
        let mut first = last;
        while first > 0 && last - first < 3 && parents[&kept[first].0].as_ref() == Some(&kept[first - 1].0) {
            first -= 1;
        }
        if first == last {
            continue;
        }
        let run: Vec<&str> = kept[first..last].iter().map(|(id, _)| id.as_str()).collect();
        merged(domain, &run, &kept[last].0);
        let parent = parents[&kept[first].0].clone();
        parents.insert(kept[last].0.clone(), parent);
        kept.drain(first..last);
        assert_there(domain, &kept);
    }
    assert_there(domain, &kept);
}
