//! Random disks in a chain, compared with plain bytes.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use vmsnap::model::block::Block;
use vmsnap::model::stop::Stop;
use vmsnap::repo::{DomainRepository, Stored};

use super::kinds::{Kind, Maker, data, read_through, zero};
use crate::lab::CLUSTER;

#[derive(Clone, Debug)]
enum Act {
    Write { at: usize, length: usize, byte: u8 },
    Zero { at: usize, length: usize },
    Resize(usize),
    Keep { is_full: bool },
}

const LARGEST: usize = 9 * CLUSTER;

fn act() -> impl Strategy<Value = Act> {
    let at = 0..LARGEST;
    prop_oneof![
        5 => (at.clone(), 1..2 * CLUSTER, 1..=255u8).prop_map(|(at, length, byte)| Act::Write { at, length, byte }),
        2 => (at, 1..3 * CLUSTER).prop_map(|(at, length)| Act::Zero { at, length }),
        2 => (1..LARGEST / 512).prop_map(|sectors| Act::Resize(512 * sectors)),
        4 => any::<bool>().prop_map(|is_full| Act::Keep { is_full }),
    ]
}

/// The clusters of a disk that an incremental restore point has to hold; all of them if there is no
/// `before`.
pub(super) fn blocks(disk: &[u8], before: Option<&[u8]>) -> Vec<Block> {
    let chunks = disk.chunks(CLUSTER).enumerate();
    let is_changed = |number: usize, now: &[u8]| {
        let Some(before) = before else { return true };
        let start = (number * CLUSTER).min(before.len());
        let end = (number * CLUSTER + now.len()).min(before.len());
        // Bytes beyond the old end count as zero before.
        let then = &before[start..end];
        now[..then.len()] != *then || now[then.len()..].iter().any(|byte| *byte != 0)
    };
    let changed = chunks.filter(|(number, now)| is_changed(*number, now));
    changed
        .map(|(number, now)| match now.iter().all(|byte| *byte == 0) {
            true => zero(number, now.len()),
            false => data(number, now),
        })
        .collect()
}

pub fn sources_and_readers_agree_with_a_plain_disk(kind: &dyn Kind) {
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let mut domains = 0;
    let stories = (prop::collection::vec(act(), 1..25), any::<u64>());
    let domains = std::cell::RefCell::new(&mut domains);
    let ran = runner.run(&stories, |(story, seed)| {
        let mut number = domains.borrow_mut();
        **number += 1;
        let repository = kind.repository();
        let domain = repository.domain(&format!("vm{number}")).expect("a name");
        tell(domain.as_ref(), &story, seed)
    });
    ran.unwrap_or_else(|failed| panic!("{failed}"));
}

fn tell(domain: &dyn DomainRepository, story: &[Act], seed: u64) -> Result<(), TestCaseError> {
    let mut disk = vec![0; 5 * CLUSTER];
    let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
    for act in story {
        match act {
            Act::Write { at, length, byte } => {
                let start = (*at).min(disk.len());
                let end = (start + length).min(disk.len());
                disk[start..end].fill(*byte);
            }
            Act::Zero { at, length } => {
                let start = (*at).min(disk.len());
                let end = (start + length).min(disk.len());
                disk[start..end].fill(0);
            }
            Act::Resize(size) => disk.resize(*size, 0),
            Act::Keep { is_full } => {
                let before = kept.last().filter(|_| !is_full);
                let changed = blocks(&disk, before.map(|(_, disk)| disk.as_slice()));
                let parent = before.map(|(id, _)| id.as_str());
                let maker = Maker::new(domain, kept.len() as i64);
                let id = maker.make(disk.len() as u64, changed, parent);
                kept.push((id, disk.clone()));
            }
        }
    }
    for (id, disk) in &kept {
        let read = read_through(domain, id);
        prop_assert!(read.expect("it is sound") == *disk, "{} from front to back", id);
        agrees(domain, id, disk, seed)?;
    }
    Ok(())
}

/// Reads the disk at random places and compares.
fn agrees(domain: &dyn DomainRepository, id: &str, disk: &[u8], seed: u64) -> Result<(), TestCaseError> {
    let history = domain.history().expect("it can be read");
    let reader = domain
        .open_disk(&history, id, "vda", &Stop::default())
        .expect("it opens");
    prop_assert_eq!(reader.size(), disk.len() as u64);
    let mut at = 0;
    for extent in reader.extents(0..reader.size()) {
        let extent = extent.expect("the extent is known");
        prop_assert!(extent.offset == at && extent.length > 0, "{:?}", extent);
        let range = at as usize..(at + extent.length) as usize;
        if extent.stored == Stored::Zero {
            prop_assert!(disk[range].iter().all(|byte| *byte == 0), "{:?}", extent);
        }
        at += extent.length;
    }
    prop_assert_eq!(at, reader.size());
    let mut number = seed;
    for _ in 0..12 {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let start = (number >> 20) as usize % (disk.len() + 1000);
        let length = (number >> 8) as usize % (2 * CLUSTER) + 1;
        let mut expected = disk.get(start..).unwrap_or_default().to_vec();
        expected.resize(length, 0);
        let mut out = vec![0xee; length];
        reader.read_at(&mut out, start as u64).expect("it is sound");
        prop_assert!(out == expected, "{} bytes at {} of {}", length, start, id);
        prop_assert!(reader.holds(&expected, start as u64).expect("it is compared"));
        expected[length / 2] ^= 0x55;
        prop_assert!(!reader.holds(&expected, start as u64).expect("it is compared"));
    }
    Ok(())
}
