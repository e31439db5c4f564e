//! An `init` in a folder that dies, or whose machine loses its power, at any step.

use std::path::Path;
use std::sync::Arc;

use vmsnap::model::stop::Stop;
use vmsnap::repo::{PackError, PackLocation, PackRepository, SlotState};
use vmsnap::testkit::{Blow, CrashStore, Fuse};

use super::{Person, creation_for};
use crate::lab::folder_in_memory;

fn create(path: &Path, store: CrashStore, person: &Person) -> Result<(), PackError> {
    let location = PackLocation::Folder(path.to_owned());
    PackRepository::create_with(
        &location,
        Arc::new(store),
        &creation_for(person),
        &Stop::default(),
    )
    .map(drop)
}

/// There is a repository with a slot that opens, or none; then the next init creates one.
fn assert_whole(path: &Path, person: &Person, what: &str) {
    let location = PackLocation::Folder(path.to_owned());
    let stop = Stop::default();
    match PackRepository::open(&location, &stop) {
        Ok(_) => {}
        Err(PackError::Missing { .. } | PackError::Objects(_)) => {
            let made = PackRepository::create(&location, &creation_for(person), &stop);
            made.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        Err(error) => panic!("{what}: {error}"),
    }
    let facts = PackRepository::open(&location, &stop).and_then(|repository| repository.facts(&stop));
    let slots = facts.unwrap_or_else(|error| panic!("{what}: {error}")).slots;
    let complete = slots.iter().filter(|slot| slot.state == SlotState::Complete);
    assert_eq!(complete.count(), 1, "{what}: {slots:?}");
}

#[test]
fn init_that_dies_anywhere_leaves_all_or_nothing() {
    let person = Person::new();
    for blow in Blow::ALL {
        for step in 0.. {
            let parent = folder_in_memory();
            let path = parent.path().join("pack");
            let fuse = Fuse::at(step, blow);
            let result = create(&path, CrashStore::new(&fuse), &person);
            let what = format!("{blow:?} at {:?}", fuse.steps().get(step));
            if result.is_ok() {
                let opened = PackRepository::open(&PackLocation::Folder(path.clone()), &Stop::default());
                assert!(opened.is_ok(), "{what}: success was reported");
            }
            assert_whole(&path, &person, &what);
            if fuse.steps().len() <= step {
                assert!(step > 20, "{step} steps");
                break;
            }
        }
    }
}

#[test]
fn init_survives_a_power_cut_at_any_step() {
    let person = Person::new();
    for step in 0.. {
        let mut steps = 0;
        for seed in 0..3 {
            let parent = folder_in_memory();
            let path = parent.path().join("pack");
            let fuse = Fuse::at(step, Blow::KilledAfter);
            let store = CrashStore::with_power(&fuse, parent.path()).expect("readable");
            let result = create(&path, store.clone(), &person);
            store.cut_power(seed).expect("cut");
            let what = format!("after {:?}, seed {seed}", fuse.steps().get(step));
            if result.is_ok() {
                let opened = PackRepository::open(&PackLocation::Folder(path.clone()), &Stop::default());
                assert!(opened.is_ok(), "{what}: success was reported");
            }
            assert_whole(&path, &person, &what);
            steps = fuse.steps().len();
        }
        if steps <= step {
            break;
        }
    }
}
