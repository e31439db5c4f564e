//! Restore points that are complete by themselves.

use vmsnap::model::stop::Stop;
use vmsnap::ops::Class;
use vmsnap::ops::verify::Which;
use vmsnap::repo::Merge;

use super::kinds::{Kind, Maker, data, is_damage, moment, read_through};
use super::points::{SIZE, domain, ids, two_points};
use super::verbs::{lab, verified};
use crate::lab::CLUSTER;

pub fn any_point_can_be_removed(kind: &dyn Kind) {
    let domain = domain(kind);
    let [(first, _), (second, _)] = two_points(domain.as_ref());
    let third = Maker::new(domain.as_ref(), 2).make(SIZE, vec![data(0, &[9; CLUSTER])], Some(&second));
    let disk = read_through(domain.as_ref(), &third).expect("it is sound");
    let history = domain.history().expect("it can be read");
    let writer = domain.try_lock().expect("nobody else writes");
    for id in [&second, &first] {
        writer
            .remove_point(&history, id, moment(9))
            .expect("nothing needs it");
    }
    assert_eq!(ids(domain.as_ref()), std::slice::from_ref(&third));
    let history = domain.history().expect("it can be read");
    assert!(history.findings.is_empty(), "{:?}", history.findings);
    assert_eq!(history.chains.faults(&third), [""; 0]);
    assert!(read_through(domain.as_ref(), &third).expect("it is sound") == disk);
}

pub fn a_missing_parent_does_not_matter(kind: &dyn Kind) {
    let domain = domain(kind);
    let old = "vmsnap-backup-monthly-2026-10";
    let maker = Maker {
        period: old,
        ..Maker::new(domain.as_ref(), 0)
    };
    let parent = maker.make(SIZE, vec![data(0, &[1; CLUSTER])], None);
    let child = Maker::new(domain.as_ref(), 1).make(SIZE, vec![data(1, &[2; CLUSTER])], Some(&parent));
    let writer = domain.try_lock().expect("nobody else writes");
    writer.remove_period(old, moment(9)).expect("it is removed");
    let disk = read_through(domain.as_ref(), &child).expect("it is sound");
    assert!(disk[..CLUSTER].iter().all(|byte| *byte == 1));
    assert!(disk[CLUSTER..2 * CLUSTER].iter().all(|byte| *byte == 2));
}

pub fn nothing_is_merged(kind: &dyn Kind) {
    let domain = domain(kind);
    let [(first, _), (second, _)] = two_points(domain.as_ref());
    let history = domain.history().expect("it can be read");
    let writer = domain.try_lock().expect("nobody else writes");
    let merge = Merge {
        run: std::slice::from_ref(&first),
        into: &second,
        now: moment(9),
        stop: &Stop::default(),
        watch: &(),
    };
    let error = writer.merge_points(&history, &merge).expect_err("refused");
    assert!(error.to_string().contains("cannot be merged"), "{error}");
    assert_eq!(ids(domain.as_ref()), [first, second]);
}

pub fn damage_is_never_handed_out(kind: &dyn Kind) {
    let [(first, full), (second, disk)] = two_points(domain(kind).as_ref());
    kind.damage("vm1", &first, "vda");
    let domain = domain(kind);
    let error = read_through(domain.as_ref(), &first).expect_err("it is damaged");
    assert!(is_damage(&error), "{error}");
    for (id, disk) in [(&first, full), (&second, disk)] {
        let history = domain.history().expect("it can be read");
        let Ok(reader) = domain.open_disk(&history, id, "vda", &Stop::default()) else {
            continue;
        };
        for offset in (0..disk.len()).step_by(CLUSTER / 2) {
            let mut out = vec![0; CLUSTER / 2];
            if reader.read_at(&mut out, offset as u64).is_ok() {
                assert!(
                    out == disk[offset..offset + out.len()],
                    "{id}: wrong bytes at {offset}"
                );
            }
        }
    }
}

/// After a verification has found damage, the next backup stores again what cannot be read.
pub fn damage_of_one_point_is_found(kind: &dyn Kind) {
    let mut lab = lab(kind);
    let last = lab.latest("vm1");
    kind.damage("vm1", &last, "vda");
    lab.repo = kind.repository();
    let error = lab.restored("vm1", "latest", "vda").expect_err("it is damaged");
    assert_eq!(error.class(), Class::Damaged, "{error}");
    lab.assert_gives_back("vm1", "vdb");
    let proved = verified(&lab, Which::All);
    let hurt = proved
        .points
        .iter()
        .find(|point| point.id == last)
        .expect("it was verified");
    assert!(!proved.is_sound() && !hurt.damage.is_empty(), "{proved:?}");
    assert!(lab.history("vm1").chains.suspected_damage(&last, "vda").is_some());
    let outcome = lab.backup("vm1").expect("a backup");
    let parent = outcome.point.disks[0].parent.as_ref();
    assert_ne!(parent, Some(&last), "no backup relies on a damaged one");
    lab.assert_gives_back("vm1", "vda");
}
