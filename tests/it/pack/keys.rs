//! Key slots: added, removed, exported, damaged and forged.

use std::io::Read;
use std::sync::Arc;

use age::secrecy::SecretString;
use vmsnap::model::stop::Stop;
use vmsnap::repo::{
    IdentityFile, NewSlot, ObjectErrorKind, Opener, PackError, PackRepository, Passphrase, Protection,
    Recipient, RecoveryFile, Secret, SlotOwner, SlotState,
};
use vmsnap::testkit::{MemoryObjects, ObjectTrouble};

use super::{Person, WHERE, created, creation, opened, passphrase};

fn with_repository() -> (Arc<MemoryObjects>, Person) {
    let (store, person) = (Arc::new(MemoryObjects::default()), Person::new());
    created(store.as_ref(), &person).expect("created");
    (store, person)
}

fn add(store: &Arc<MemoryObjects>, opener: &Opener, new: &Person) -> Result<String, PackError> {
    let recipient: Recipient = new.public.parse().expect("valid");
    let slot = NewSlot {
        owner: SlotOwner::Recipient(&recipient),
        label: "second",
        now: "2026-11-28T16:00:00Z".parse().expect("a time"),
    };
    let added = opened(store)?.add_slot(opener, &slot, &Stop::default())?;
    Ok(added.id)
}

fn remove(store: &Arc<MemoryObjects>, opener: &Opener, id: &str) -> Result<(), PackError> {
    opened(store)?.remove_slot(opener, id, &Stop::default()).map(drop)
}

fn states(store: &Arc<MemoryObjects>) -> Vec<(String, SlotState)> {
    let facts = opened(store).and_then(|repository| repository.facts(&Stop::default()));
    let slots = facts.expect("readable").slots;
    slots.into_iter().map(|slot| (slot.id, slot.state)).collect()
}

#[test]
fn added_slot_opens_and_a_removed_one_does_not() {
    let (store, first) = with_repository();
    let second = Person::new();
    let old = states(&store)[0].0.clone();
    assert!(matches!(
        add(&store, &second.opener(), &second),
        Err(PackError::WrongKey { tried: 1, .. })
    ));
    let new = add(&store, &first.opener(), &second).expect("added");
    remove(&store, &second.opener(), &old).expect("removed");
    assert!(matches!(
        remove(&store, &first.opener(), &new),
        Err(PackError::WrongKey { .. })
    ));
    assert_eq!(states(&store), [(new.clone(), SlotState::Complete)]);
    assert!(matches!(
        remove(&store, &second.opener(), &new),
        Err(PackError::LastSlot { .. })
    ));
    assert!(matches!(
        remove(&store, &second.opener(), "ffffffffffffffff"),
        Err(PackError::NoSuchSlot { .. })
    ));
}

#[test]
fn description_never_changes_with_the_slots() {
    let (store, first) = with_repository();
    let before = store.content("vmsnap.json").expect("it is there");
    let second = Person::new();
    let id = add(&store, &first.opener(), &second).expect("added");
    remove(&store, &first.opener(), &id).expect("removed");
    assert_eq!(store.content("vmsnap.json"), Some(before));
}

/// A forged slot must not make the last genuine one removable.
#[test]
fn forged_slot_does_not_count_as_another_one() {
    let (store, first) = with_repository();
    let id = states(&store)[0].0.clone();
    for ending in ["age", "json"] {
        let content = store
            .content(&format!("keys/{id}.{ending}"))
            .expect("it is there");
        let text = String::from_utf8(content).expect("text");
        let text = text.replace(&id, "00000000000000ff");
        store.insert(&format!("keys/00000000000000ff.{ending}"), text.as_bytes());
    }
    assert_eq!(states(&store).len(), 2);
    assert!(matches!(
        remove(&store, &first.opener(), &id),
        Err(PackError::LastSlot { .. })
    ));
}

#[test]
fn interrupted_changes_of_slots_can_be_repeated() {
    let (store, first) = with_repository();
    let second = Person::new();
    // The record of the new slot is not written.
    store.trouble("put_if_absent", 1, ObjectTrouble::Fails(ObjectErrorKind::Failed));
    assert!(add(&store, &first.opener(), &second).is_err());
    let unfinished: Vec<_> = states(&store)
        .into_iter()
        .filter(|(_, state)| *state == SlotState::Unfinished)
        .collect();
    assert_eq!(unfinished.len(), 1);
    let new = add(&store, &first.opener(), &second).expect("added");
    remove(&store, &first.opener(), &unfinished[0].0).expect("removed");
    // The age file is deleted, the record is not.
    store.trouble("delete", 1, ObjectTrouble::Fails(ObjectErrorKind::Failed));
    assert!(remove(&store, &first.opener(), &new).is_err());
    assert!(states(&store).contains(&(new.clone(), SlotState::Removed)));
    remove(&store, &first.opener(), &new).expect("removed");
    assert_eq!(states(&store).len(), 1);
}

#[test]
fn damaged_slots_are_shown_and_do_not_hide_others() {
    let (store, first) = with_repository();
    let second = Person::new();
    let id = add(&store, &first.opener(), &second).expect("added");
    let record = format!("keys/{id}.json");
    let text = String::from_utf8(store.content(&record).expect("it is there")).expect("text");
    let long = "x".repeat(100_000);
    let deep = "[".repeat(4000);
    for damaged in [
        "",
        "{}",
        &text.replace("\"format\": 1", "\"format\": 2"),
        &text.replace("x25519", "rot13"),
        &text.replace("second", "a\\u001b[2Jb"),
        &text.replace("\"label\"", "\"more\": 1, \"label\""),
        &long,
        &deep,
    ] {
        store.insert(&record, damaged.as_bytes());
        let found = states(&store);
        assert!(
            found
                .iter()
                .any(|(slot, state)| *slot == id && matches!(state, SlotState::Damaged(_))),
            "{found:?}"
        );
        let third = add(&store, &first.opener(), &Person::new()).expect("the first slot opens");
        remove(&store, &first.opener(), &third).expect("the first slot stays");
    }
    // An age file needs no record to open.
    add(&store, &second.opener(), &Person::new()).expect("the damaged slot opens");
}

#[test]
fn leftover_of_another_init_is_passed_over() {
    let (first, second) = (Arc::new(MemoryObjects::default()), Person::new());
    created(first.as_ref(), &second).expect("created");
    let store = Arc::new(MemoryObjects::default());
    for name in first.names().iter().filter(|name| name.starts_with("keys/")) {
        store.insert(name, &first.content(name).expect("it is there"));
    }
    let made = created(store.as_ref(), &second).expect("leftovers do not matter");
    assert_eq!(made.leftovers.len(), 2);
    let found: Vec<SlotState> = states(&store).into_iter().map(|(_, state)| state).collect();
    assert!(
        found.contains(&SlotState::OfOther) && found.contains(&SlotState::Complete),
        "{found:?}"
    );
    add(&store, &second.opener(), &Person::new()).expect("the right slot opens");
}

#[test]
fn changed_description_is_noticed_with_the_key() {
    let (store, first) = with_repository();
    let text = String::from_utf8(store.content("vmsnap.json").expect("it is there")).expect("text");
    store.insert("vmsnap.json", text.replace("honoured", "ignored").as_bytes());
    let error = add(&store, &first.opener(), &Person::new()).expect_err("changed");
    assert!(matches!(error, PackError::Damaged { .. }), "{error}");
}

#[test]
fn passphrase_opens_a_slot_and_a_wrong_one_does_not() {
    let store = Arc::new(MemoryObjects::default());
    let protection = Protection::Passphrase(Passphrase::new("correct horse").expect("valid"));
    PackRepository::create_in(WHERE, store.as_ref(), &creation(protection), &Stop::default())
        .expect("created");
    let second = Person::new();
    let error = add(&store, &passphrase("battery staple"), &second).expect_err("wrong");
    assert!(
        error
            .to_string()
            .contains("the passphrase opens no key slot of memory: (slots tried: 1)"),
        "{error}"
    );
    assert!(!format!("{error:?}").contains("battery"));
    add(&store, &passphrase("correct horse"), &second).expect("right");
}

#[test]
fn open_repository_has_no_keys() {
    let store = Arc::new(MemoryObjects::default());
    PackRepository::create_in(
        WHERE,
        store.as_ref(),
        &creation(Protection::None),
        &Stop::default(),
    )
    .expect("created");
    let second = Person::new();
    assert!(matches!(
        add(&store, &second.opener(), &second),
        Err(PackError::NotEncrypted { .. })
    ));
    let exported = opened(&store).expect("there").export(None, &Stop::default());
    assert!(matches!(exported, Err(PackError::NotEncrypted { .. })));
}

/// The key survives the loss of all slots, and of the whole bucket.
#[test]
fn recovery_file_opens_what_has_lost_its_slots() {
    let (store, first) = with_repository();
    let (_, content) = opened(&store)
        .expect("there")
        .export(None, &Stop::default())
        .expect("exported");
    for (id, _) in states(&store) {
        for ending in ["age", "json"] {
            store.remove(&format!("keys/{id}.{ending}"));
        }
    }
    assert!(matches!(
        add(&store, &first.opener(), &first),
        Err(PackError::WrongKey { tried: 0, .. })
    ));
    let opener = |person: &Person, content: &[u8]| Opener {
        secret: Secret::Identities(IdentityFile::read(person.file.path()).expect("valid")),
        recovery: Some(RecoveryFile {
            name: "recovery.age".to_owned(),
            content: content.to_vec(),
        }),
    };
    let other = Person::new();
    assert!(matches!(
        add(&store, &opener(&other, &content), &first),
        Err(PackError::SecretFile { .. })
    ));
    assert!(matches!(
        add(&store, &opener(&first, b"text"), &first),
        Err(PackError::SecretFile { .. })
    ));
    add(&store, &opener(&first, &content), &first).expect("recovered");
    let (foreign, person) = with_repository();
    let error = add(&foreign, &opener(&first, &content), &person).expect_err("another repository");
    assert!(matches!(error, PackError::KeyOfOther { .. }), "{error}");
}

#[test]
fn export_names_one_slot() {
    let (store, first) = with_repository();
    let id = add(&store, &first.opener(), &Person::new()).expect("added");
    let export = |id: Option<&str>| opened(&store).expect("there").export(id, &Stop::default());
    assert!(matches!(
        export(None),
        Err(PackError::WhichSlot { number: 2, .. })
    ));
    assert!(matches!(export(Some("x")), Err(PackError::NoSuchSlot { .. })));
    assert_eq!(export(Some(&id)).expect("exported").0.id, id);
    store.insert(&format!("keys/{id}.age"), b"text");
    assert!(matches!(export(Some(&id)), Err(PackError::Damaged { .. })));
}

/// The file is readable without any code of vmsnap.
#[test]
fn age_alone_opens_a_slot() {
    let store = Arc::new(MemoryObjects::default());
    let protection = Protection::Passphrase(Passphrase::new("correct horse").expect("valid"));
    let made = PackRepository::create_in(WHERE, store.as_ref(), &creation(protection), &Stop::default());
    let facts = made.expect("created").facts;
    let file = store
        .content(&format!("keys/{}.age", facts.slots[0].id))
        .expect("it is there");
    let identity = age::scrypt::Identity::new(SecretString::from("correct horse".to_owned()));
    let decryptor = age::Decryptor::new(age::armor::ArmoredReader::new(&file[..])).expect("an age file");
    let mut text = String::new();
    let identities = std::iter::once(&identity as &dyn age::Identity);
    let mut reader = decryptor.decrypt(identities).expect("opened");
    reader.read_to_string(&mut text).expect("readable");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["format"], 1);
    assert_eq!(value["repository"], facts.id.as_str());
    let key = value["key"].as_str().expect("a key");
    assert!(key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()));
}
