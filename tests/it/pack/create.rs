//! The creation of a repository, and the probe of its store.

use std::time::Duration;

use vmsnap::model::stop::{Stop, StopReason, WaitLimit};
use vmsnap::repo::{
    ConditionalPuts, ObjectErrorKind, ObjectName, ObjectStore, PackError, PackErrorClass, PackRepository,
    Protection,
};
use vmsnap::testkit::{MemoryObjects, ObjectTrouble};

use super::{Person, WHERE, created, creation};

const NAME: &str = "vmsnap.json";

#[test]
fn repository_consists_of_description_and_slots() {
    let (store, person) = (MemoryObjects::default(), Person::new());
    let made = created(&store, &person).expect("created");
    assert!(made.leftovers.is_empty() && made.facts.slots.len() == 1);
    assert_eq!(made.facts.conditional_puts, ConditionalPuts::Honoured);
    let id = &made.facts.slots[0].id;
    let expected = [
        format!("keys/{id}.age"),
        format!("keys/{id}.json"),
        NAME.to_owned(),
    ];
    assert_eq!(store.names(), expected);
    assert!(matches!(created(&store, &person), Err(PackError::Exists { .. })));
    assert_eq!(store.names(), expected, "nothing was changed");
}

#[test]
fn without_encryption_there_are_no_slots() {
    let store = MemoryObjects::default();
    let made = PackRepository::create_in(WHERE, &store, &creation(Protection::None), &Stop::default());
    assert!(made.expect("created").facts.slots.is_empty());
    assert_eq!(store.names(), [NAME]);
}

#[test]
fn other_objects_are_not_mixed_with_a_repository() {
    for name in ["x", "points/x", "vmsnap.json.old", "a b"] {
        let (store, person) = (MemoryObjects::default(), Person::new());
        store.insert(name, b"x");
        assert!(
            matches!(created(&store, &person), Err(PackError::NotEmpty { .. })),
            "{name}"
        );
        assert_eq!(store.names(), [name]);
    }
}

#[test]
fn of_several_at_the_same_time_one_creates_it() {
    let (store, person) = (MemoryObjects::default(), Person::new());
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| created(&store, &person))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let made: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(made.len(), 1);
    let names = store.names();
    assert_eq!(names.len(), 3, "the others have removed their slots: {names:?}");
    assert!(names.contains(&format!("keys/{}.age", made[0].facts.slots[0].id)));
}

/// Every call fails once in each way. Afterwards there is either no repository, and the next run
/// creates one, or there is one with its slot.
#[test]
fn failure_of_any_call_leaves_no_half_repository() {
    let troubles = [
        ObjectTrouble::Fails(ObjectErrorKind::Failed),
        ObjectTrouble::AnswerLost(ObjectErrorKind::Failed),
        ObjectTrouble::RepeatsPut,
    ];
    let person = Person::new();
    for trouble in troubles {
        for call in 0.. {
            let store = MemoryObjects::default();
            store.trouble("", call, trouble.clone());
            let result = created(&store, &person);
            let names = store.names();
            let is_there = names.iter().any(|name| name == NAME);
            assert!(result.is_err() || is_there, "{trouble:?} {call}");
            if is_there {
                for ending in [".age", ".json"] {
                    let slots = names
                        .iter()
                        .filter(|name| name.starts_with("keys/") && name.ends_with(ending));
                    assert_eq!(slots.count(), 1, "{trouble:?} {call}: {names:?}");
                }
            } else {
                store.calm();
                assert!(created(&store, &person).is_ok(), "{trouble:?} {call}: {names:?}");
            }
            if store.calls() <= call {
                break;
            }
        }
    }
}

#[test]
fn torn_object_is_noticed_before_the_commit() {
    let person = Person::new();
    // The probe needs 27 puts. Then come the age file, its record and the description.
    for call in 27..30 {
        let store = MemoryObjects::default();
        store.trouble("put_if_absent", call, ObjectTrouble::Tears);
        assert!(created(&store, &person).is_err(), "{call}");
    }
}

#[test]
fn stop_before_the_commit_leaves_nothing() {
    let (store, person) = (MemoryObjects::default(), Person::new());
    let stop = Stop::default();
    stop.request(StopReason::Interrupted);
    let error =
        PackRepository::create_in(WHERE, &store, &super::creation_for(&person), &stop).expect_err("stopped");
    assert_eq!(error.class(), PackErrorClass::Stopped(StopReason::Interrupted));
    assert!(store.names().is_empty());
}

#[test]
fn one_ignored_condition_is_recorded() {
    let person = Person::new();
    for call in 1..=8 {
        let store = MemoryObjects::default();
        store.trouble("put_if_absent", call, ObjectTrouble::IgnoresCondition);
        let made = created(&store, &person).expect("created");
        assert_eq!(made.facts.conditional_puts, ConditionalPuts::Ignored, "{call}");
    }
    let store = MemoryObjects::default();
    store.ignore_conditions();
    let made = created(&store, &person).expect("created");
    assert_eq!(made.facts.conditional_puts, ConditionalPuts::Ignored);
    assert!(matches!(created(&store, &person), Err(PackError::Exists { .. })));
}

#[test]
fn store_without_conditional_puts_is_recorded() {
    let (store, person) = (MemoryObjects::default(), Person::new());
    store.trouble(
        "put_if_absent",
        3,
        ObjectTrouble::Fails(ObjectErrorKind::Unsupported),
    );
    let made = created(&store, &person).expect("created");
    assert_eq!(made.facts.conditional_puts, ConditionalPuts::Ignored);
}

#[test]
fn probe_without_the_right_to_delete_is_reported() {
    let (store, person) = (MemoryObjects::default(), Person::new());
    store.trouble("delete", 0, ObjectTrouble::Fails(ObjectErrorKind::Refused));
    let made = created(&store, &person).expect("created");
    assert_eq!(made.leftovers.len(), 1);
    assert!(made.leftovers[0].starts_with("probe/"), "{:?}", made.leftovers);
}

#[test]
fn double_delays_until_the_deadline_or_the_stop() {
    let store = MemoryObjects::default();
    let name = ObjectName::new("x").expect("valid");
    let limit = WaitLimit {
        deadline: Duration::from_millis(20),
        stop: Stop::default(),
    };
    store.trouble("get", 0, ObjectTrouble::Delays);
    let error = store.get(&name, 1, &limit).expect_err("late");
    assert_eq!(error.kind, ObjectErrorKind::TimedOut(limit.deadline));
}
