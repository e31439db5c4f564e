//! A random story of backups, prunes and transfers.

use std::sync::Arc;

use jiff::Span;
use vmsnap::io::DiskStore;
use vmsnap::model::level::FullRule;
use vmsnap::ops::backup::Options as BackupOptions;
use vmsnap::ops::each::Judged;
use vmsnap::ops::retention::{Policy, Quota, Rule};
use vmsnap::ops::transfer::Wanted;
use vmsnap::repo::Repository;
use vmsnap::testkit::MemoryRepository;

use super::{all, beside, copy, ids, keeping_last, wanting};
use crate::lab::{CLUSTER, Lab};
use crate::repositories::kinds::{Kind, read_through};
use crate::repositories::pack::PackFolder;

#[test]
fn a_story_of_backups_prunes_and_transfers_agrees() {
    let mut lab = Lab::in_memory();
    lab.host.add_domain("vm1", &[("vda", 6 * CLUSTER + 512)]);
    let folder = beside(&lab, Arc::new(DiskStore));
    let memory = MemoryRepository::default();
    let kind = PackFolder::default();
    let pack = kind.repository();
    let targets: [&dyn Repository; 3] = [&folder, &memory, pack.as_ref()];
    let forever = BackupOptions {
        full: FullRule::Never,
        ..Lab::options()
    };
    let mut disks: Vec<(String, Vec<u8>)> = Vec::new();
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for round in 0..150 {
        let (place, byte) = (next(6) * CLUSTER, next(255) as u8);
        match next(6) {
            0..=2 => {
                lab.host
                    .disk("vm1", "vda", |disk| disk.write(place, &[byte; 4000]));
                let id = lab
                    .backup_with("vm1", &forever)
                    .expect("a restore point")
                    .point
                    .id;
                disks.push((id, lab.disk("vm1", "vda")));
            }
            3 => lab.pass(Span::new().hours(20)),
            4 if !disks.is_empty() => {
                let policy = Policy::default().with(Rule::Last, Quota::AtMost(3));
                let policy = policy.with(Rule::Daily, Quota::AtMost(3));
                let keep = BackupOptions {
                    keep: Some(policy),
                    ..forever.clone()
                };
                let id = lab.backup_with("vm1", &keep).expect("a restore point").point.id;
                disks.push((id, lab.disk("vm1", "vda")));
            }
            _ if !disks.is_empty() => {
                let options = match next(3) {
                    0 => all(),
                    1 => keeping_last(4),
                    _ => wanting(Wanted::Newest),
                };
                let outcome = copy(&lab, targets[next(3)], &options).expect("copied");
                assert!(outcome.error().is_none(), "round {round}: {:?}", outcome.error());
            }
            _ => {}
        }
    }
    for target in targets {
        let there = ids(target);
        assert!(there.len() > 3, "{there:?}");
        let domain = target.domain("vm1").expect("a name that fits");
        for id in there {
            let (_, disk) = disks.iter().find(|(of, _)| *of == id).expect("it was made");
            let read = read_through(domain.as_ref(), &id).expect("it is sound");
            assert!(read == *disk, "{id}");
        }
    }
}
