//! Random stories of writes, zeroes, resizes, restarts and backups: every restore point gives back
//! the bytes of its moment.

use proptest::prelude::*;

use vmsnap::host::Host;
use vmsnap::ops::reconcile::Retired;

use crate::lab::{CLUSTER, Lab};

#[derive(Clone, Debug)]
enum Act {
    Write { at: usize, length: usize, byte: u8 },
    Zero { at: usize, length: usize },
    Grow(usize),
    LoseBitmap(usize),
    FailAfter(usize),
    NextMonth,
    Backup,
}

const SIZE: usize = 12 * CLUSTER + 1536;

fn act() -> impl Strategy<Value = Act> {
    let at = 0..SIZE - 1;
    prop_oneof![
        6 => (at.clone(), 1..3 * CLUSTER, 1..=255u8).prop_map(|(at, length, byte)| Act::Write { at, length, byte }),
        3 => (at, 1..4 * CLUSTER).prop_map(|(at, length)| Act::Zero { at, length }),
        1 => (1..5usize).prop_map(|sectors| Act::Grow(sectors * 512 * 77)),
        1 => (0..4usize).prop_map(Act::LoseBitmap),
        1 => (0..12usize).prop_map(|clusters| Act::FailAfter(clusters * CLUSTER)),
        1 => Just(Act::NextMonth),
        6 => Just(Act::Backup),
    ]
}

fn checkpoints(lab: &Lab) -> Vec<String> {
    let domain = lab.host.domain("vm1").expect("it is there");
    let listed = lab.host.checkpoints(&domain).expect("they are listed");
    listed.into_iter().map(|checkpoint| checkpoint.name).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_restore_point_gives_back_its_moment(story in prop::collection::vec(act(), 1..40)) {
        let mut lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", SIZE)]);
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        for act in story {
            match act {
                Act::Write { at, length, byte } => lab.host.disk("vm1", "vda", |disk| {
                    let length = length.min(disk.bytes().len() - at);
                    disk.write(at, &vec![byte; length]);
                }),
                Act::Zero { at, length } => lab.host.disk("vm1", "vda", |disk| {
                    disk.zero(at, length.min(disk.bytes().len() - at));
                }),
                Act::Grow(by) => lab.host.disk("vm1", "vda", |disk| disk.resize(disk.bytes().len() + by)),
                Act::LoseBitmap(number) => lab.host.disk("vm1", "vda", |disk| {
                    if let Some(name) = disk.bitmap_names().get(number) {
                        disk.remove_bitmap(name);
                    }
                }),
                Act::NextMonth => lab.pass(jiff::Span::new().months(1)),
                Act::FailAfter(bytes) => {
                    lab.host.fail_reads_after(Some(bytes as u64));
                    // The backup succeeds if no data lies beyond the place where reading fails.
                    if let Ok(outcome) = lab.backup("vm1") {
                        kept.push((outcome.point.id, lab.disk("vm1", "vda")));
                    }
                    lab.host.fail_reads_after(None);
                }
                Act::Backup => {
                    let announced = lab.preview("vm1").expect("a plan").planned;
                    let before = checkpoints(&lab);
                    let outcome = lab.backup("vm1").expect("a backup");
                    prop_assert_eq!(announced.backup.level(), outcome.point.level);
                    let made = outcome.point.checkpoint.as_ref().map(|made| made.name.clone());
                    prop_assert_eq!(announced.backup.checkpoint, made.is_some());
                    let mut expected = before;
                    expected.retain(|name| !announced.retired.contains(&Retired::Checkpoint(name.clone())));
                    expected.extend(made);
                    prop_assert_eq!(checkpoints(&lab), expected);
                    kept.push((outcome.point.id, lab.disk("vm1", "vda")));
                }
            }
        }
        prop_assert_eq!(lab.history("vm1").kept.len(), kept.len());
        for (id, bytes) in kept {
            prop_assert!(lab.restored("vm1", &id, "vda").expect("restored") == bytes, "{}", id);
        }
    }
}
