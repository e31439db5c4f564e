//! Lookups of restore points by id, and the condition of each of their disks.
//!
//! The condition of a disk follows from that of its parent, so one pass from the oldest restore
//! point to the newest finds all of them, however long the chains are.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::{Chains, KeptPoint};

/// The positions of the restore points in the order of [`Chains`], and the condition of their
/// disks.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    places: HashMap<String, usize>,
    /// For each restore point, the conditions of its disks. Computed when the first is needed.
    conditions: OnceLock<Vec<Vec<Condition>>>,
}

/// Whether a disk can be read at a restore point.
#[derive(Clone, Debug, Default)]
pub(super) struct Condition {
    /// The fault that breaks its chain, if one does.
    pub(super) fault: Option<Arc<str>>,
    /// The damage of the newest damaged image in its chain. `None` also if the chain is broken.
    pub(super) damage: Option<Arc<str>>,
}

impl Index {
    /// Indexes the restore points. If several have the same id, the first one counts.
    pub(super) fn new(points: &[KeptPoint]) -> Index {
        let mut places = HashMap::with_capacity(points.len());
        for (place, kept) in points.iter().enumerate() {
            places.entry(kept.point.id.clone()).or_insert(place);
        }
        Index {
            places,
            conditions: OnceLock::new(),
        }
    }

    /// The same positions, without the conditions, which may have changed.
    pub(super) fn without_conditions(self) -> Index {
        Index {
            conditions: OnceLock::new(),
            ..self
        }
    }

    /// The place of the restore point with this id.
    pub(super) fn place(&self, id: &str) -> Option<usize> {
        self.places.get(id).copied()
    }

    /// The condition of a disk; `None` if there is no such restore point, or it lacks the disk.
    pub(super) fn condition(&self, chains: &Chains, id: &str, target: &str) -> Option<&Condition> {
        let all = self.conditions.get_or_init(|| conditions(chains));
        find(chains, all, self.place(id)?, target)
    }
}

fn conditions(chains: &Chains) -> Vec<Vec<Condition>> {
    let mut all = Vec::with_capacity(chains.points.len());
    for kept in &chains.points {
        let disks = kept.point.disks.iter();
        let of_point = disks.map(|disk| condition(chains, &all, kept, &disk.target));
        let of_point = of_point.collect();
        all.push(of_point);
    }
    all
}

/// The condition of a disk of `kept`, given those of all restore points with lower sequence
/// numbers. A parent is one of them, or there is a fault.
fn condition(chains: &Chains, earlier: &[Vec<Condition>], kept: &KeptPoint, target: &str) -> Condition {
    let fault = |what: String| Condition {
        fault: Some(what.into()),
        damage: None,
    };
    let beneath = match chains.parent_of(kept, target) {
        Err(what) => return fault(what),
        Ok(None) => Condition::default(),
        Ok(Some(parent)) => {
            let id = &parent.point.id;
            let place = chains.index.place(id);
            let known = place.and_then(|place| find(chains, earlier, place, target));
            match known {
                Some(known) => known.clone(),
                None => return fault(format!("restore point {id} does not hold disk {target}")),
            }
        }
    };
    let mut damage = kept.suspected_damage.iter();
    match damage.find(|damage| damage.concerns.is_of_disk(target)) {
        Some(own) if beneath.fault.is_none() => Condition {
            damage: Some(own.what.as_str().into()),
            ..beneath
        },
        _ => beneath,
    }
}

fn find<'a>(
    chains: &Chains,
    conditions: &'a [Vec<Condition>],
    place: usize,
    target: &str,
) -> Option<&'a Condition> {
    let mut disks = chains.points.get(place)?.point.disks.iter();
    let disk = disks.position(|disk| disk.target == target)?;
    conditions.get(place)?.get(disk)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::model::chain::{Concern, FileFault, LostPoint, SuspectedDamage};
    use crate::model::restore_point::{Consistency, DiskPoint, Level, RestorePoint};

    /// A disk of a restore point.
    #[derive(Clone, Copy, Debug)]
    struct Disk {
        level: Level,
        /// How many restore points back its parent is. None has this id before the first.
        parent: Option<usize>,
        is_of_another_parent: bool,
        is_missing: bool,
        is_damaged: bool,
    }

    #[derive(Clone, Debug)]
    struct Made {
        disks: [Option<Disk>; 2],
        is_renumbered: bool,
        is_damaged: bool,
        is_lost: bool,
    }

    fn disk() -> impl Strategy<Value = Option<Disk>> {
        let rarely = || prop::bool::weighted(0.1);
        let parent = prop_oneof![8 => Just(Some(1)), 2 => (0..4usize).prop_map(Some), 1 => Just(None)];
        let disk = (rarely(), parent, rarely(), rarely(), rarely());
        let disk = disk.prop_map(
            |(is_full, parent, is_of_another_parent, is_missing, is_damaged)| {
                let (level, parent) = match is_full {
                    true => (Level::Full, parent.filter(|back| *back == 3)),
                    false => (Level::Incremental, parent),
                };
                Disk {
                    level,
                    parent,
                    is_of_another_parent,
                    is_missing,
                    is_damaged,
                }
            },
        );
        prop::option::weighted(0.95, disk)
    }

    fn made() -> impl Strategy<Value = Made> {
        let rarely = || prop::bool::weighted(0.05);
        (disk(), disk(), rarely(), rarely(), rarely()).prop_map(
            |(vda, vdb, is_renumbered, is_damaged, is_lost)| Made {
                disks: [vda, vdb],
                is_renumbered,
                is_damaged,
                is_lost,
            },
        )
    }

    fn id(number: usize) -> String {
        format!("point {number}")
    }

    fn disk_point(number: usize, target: &str, disk: Disk) -> DiskPoint {
        let parent = disk.parent.map(|back| number.wrapping_sub(back));
        let made_on = match disk.is_of_another_parent {
            true => "another".to_owned(),
            false => format!("digest {}", parent.unwrap_or_default()),
        };
        DiskPoint {
            target: target.to_owned(),
            level: disk.level,
            reason: String::new(),
            parent: parent.map(id),
            parent_manifest: parent.map(|_| made_on),
            checkpointed: true,
            virtual_size: 1,
            source: String::new(),
            source_file: None,
            source_format: String::new(),
            decrypted: None,
            image: format!("{target}.qcow2"),
            data_bytes: 0,
            zero_bytes: 0,
            compression: None,
        }
    }

    fn kept(number: usize, made: &Made) -> KeptPoint {
        let disks = || ["vda", "vdb"].into_iter().zip(made.disks);
        let disks = || disks().filter_map(|(target, disk)| Some((target, disk?)));
        let damage = disks().filter(|(_, disk)| disk.is_damaged);
        let damage = damage.map(|(target, _)| SuspectedDamage {
            what: format!("{target} of {number} is damaged"),
            concerns: Concern::Disk(target.to_owned()),
        });
        let of_all = made.is_damaged.then(|| SuspectedDamage {
            what: format!("{number} is damaged"),
            concerns: Concern::All,
        });
        let missing = disks().filter(|(_, disk)| disk.is_missing);
        KeptPoint {
            point: RestorePoint {
                id: id(number),
                sequence: if made.is_renumbered { 1 } else { number as u64 + 1 },
                domain: "vm1".to_owned(),
                uuid: String::new(),
                time: Timestamp::UNIX_EPOCH,
                period: String::new(),
                level: Level::Full,
                parent: None,
                checkpoint: None,
                consistency: Consistency::Crash,
                disks: disks()
                    .map(|(target, disk)| disk_point(number, target, disk))
                    .collect(),
                findings: Vec::new(),
                left_out: Vec::new(),
                merged: None,
                copied_from: None,
                guest: None,
            },
            manifest: format!("digest {number}"),
            faults: missing
                .map(|(target, _)| FileFault {
                    file: format!("{target}.qcow2"),
                    what: format!("{target} of {number} is missing"),
                })
                .collect(),
            suspected_damage: damage.chain(of_all).collect(),
            missed_writes: Vec::new(),
            pin: None,
            needs_parents: true,
        }
    }

    /// The first damage in the images of a disk, looked up in each of them.
    fn damage_in_line(chains: &Chains, id: &str, target: &str) -> Option<String> {
        let line = chains.lineage(id, target).ok()?;
        let mut damage = line.into_iter().flat_map(|kept| &kept.suspected_damage);
        let found = damage.find(|damage| damage.concerns.is_of_disk(target));
        found.map(|damage| damage.what.clone())
    }

    proptest! {
        #[test]
        fn conditions_are_what_walks_along_the_chains_find(
            points in proptest::collection::vec(made(), 1..12),
        ) {
            let there = points.iter().enumerate().filter(|(_, made)| !made.is_lost);
            let kept = there.map(|(number, made)| kept(number, made)).collect();
            let lost = points.iter().enumerate().filter(|(_, made)| made.is_lost);
            let lost = lost.map(|(number, _)| LostPoint {
                id: id(number),
                what: format!("{number} is lost"),
                is_newer: false,
                is_gone: false,
            });
            let chains = Chains::new(kept);
            // Conditions that are known already follow from what is lost.
            chains.faults(&id(0));
            let chains = chains.beside(lost.collect());
            for kept in chains.points() {
                let id = &kept.point.id;
                let mut faults: Vec<String> = kept.faults.iter().map(|fault| fault.what.clone()).collect();
                for disk in &kept.point.disks {
                    if let Err(fault) = chains.lineage(id, &disk.target)
                        && !faults.contains(&fault)
                    {
                        faults.push(fault);
                    }
                    let damage = chains.suspected_damage(id, &disk.target);
                    prop_assert_eq!(damage, damage_in_line(&chains, id, &disk.target));
                }
                prop_assert_eq!(chains.faults(id), faults);
            }
        }
    }

    /// An incremental restore point whose parent is `back` restore points before it.
    fn incremental(back: usize, is_damaged: bool, is_of_another_parent: bool) -> Made {
        let disk = Disk {
            level: Level::Incremental,
            parent: Some(back),
            is_of_another_parent,
            is_missing: false,
            is_damaged,
        };
        Made {
            disks: [Some(disk), None],
            is_renumbered: false,
            is_damaged: false,
            is_lost: false,
        }
    }

    /// Its parent may be missing, damaged or replaced.
    #[test]
    fn complete_points_do_not_depend_on_parents() {
        let made = [incremental(9, true, false), incremental(1, false, true)];
        let complete = |(number, made): (usize, &Made)| KeptPoint {
            needs_parents: false,
            ..kept(number, made)
        };
        let chains = Chains::new(made.iter().enumerate().map(complete).collect());
        for number in [0, 1] {
            let line = chains.lineage(&id(number), "vda").expect("it needs no other");
            assert_eq!(line.len(), 1, "{number}");
            assert!(chains.faults(&id(number)).is_empty(), "{number}");
            assert_eq!(chains.replaced_ancestor(&id(number), "vda"), None);
            let point = &chains.get(&id(number)).expect("it is there").point;
            assert_eq!(chains.parents(point).count(), 0);
        }
        assert!(chains.suspected_damage(&id(0), "vda").is_some());
        assert_eq!(chains.suspected_damage(&id(1), "vda"), None);
        assert!(chains.lineage(&id(0), "vdb").is_err(), "it lacks the disk");
        let chain = Chains::new(
            made.iter()
                .enumerate()
                .map(|(number, made)| kept(number, made))
                .collect(),
        );
        let point = &chain.get(&id(1)).expect("it is there").point;
        assert_eq!(
            chain.parents(point).collect::<Vec<_>>(),
            [("vda", id(0).as_str())]
        );
    }
}
