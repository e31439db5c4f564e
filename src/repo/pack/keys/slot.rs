//! The objects of a key slot: `keys/ID.age`, which holds the master key, and `keys/ID.json`, which
//! describes it.
//!
//! A slot is complete with its record, which is written last. Its removal begins with the age file,
//! so that an interrupted one leaves no key.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::lock::{LARGEST_FILE, SlotOwner, lock};
use super::master::{MasterKey, random};
use super::record;
use crate::model::stop::Stop;
use crate::repo::pack::objects::{ObjectErrorKind, ObjectName, ObjectStore, list_all, small};
use crate::repo::pack_error::{PackError, Result};

/// The prefix of the names of the objects of slots.
pub(crate) const SLOTS: &str = "keys/";

/// The most slots of a repository.
const MOST_SLOTS: usize = 64;

/// The largest record, in bytes.
const LARGEST_RECORD: u64 = 4096;

/// The version of the format of records.
const FORMAT: u64 = 1;

/// The longest label, in characters.
const LONGEST_LABEL: usize = 60;

/// The kind of secret that opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// A passphrase.
    Passphrase,
    /// A private key of age.
    X25519,
}

impl SlotKind {
    /// The word for the kind in a record.
    pub fn word(self) -> &'static str {
        match self {
            SlotKind::Passphrase => "passphrase",
            SlotKind::X25519 => "x25519",
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The record of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    format: u64,
    seal: String,
    repository: String,
    id: String,
    kind: SlotKind,
    label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    created: Timestamp,
    /// The BLAKE3 of the age file.
    digest: String,
}

/// Whether a slot can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Its record matches its age file. Without the master key it is unknown whether the record is
    /// genuine.
    Complete,
    /// Its record matches its age file, and the seal of the record is valid.
    Genuine,
    /// It has no record: its creation was interrupted.
    Unfinished,
    /// It has no age file: its removal was interrupted.
    Removed,
    /// It belongs to another repository: an interrupted `init` left it.
    OfOther,
    /// Its record or its age file is damaged, for this reason.
    Damaged(String),
}

impl SlotState {
    /// The word for the state in documents.
    pub fn word(&self) -> &'static str {
        match self {
            SlotState::Complete => "complete",
            SlotState::Genuine => "genuine",
            SlotState::Unfinished => "unfinished",
            SlotState::Removed => "removed",
            SlotState::OfOther => "foreign",
            SlotState::Damaged(_) => "damaged",
        }
    }
}

/// A key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Its id.
    pub id: String,
    /// The kind of secret that opens the slot; `None` without a record.
    pub kind: Option<SlotKind>,
    /// Its label; may be empty.
    pub label: String,
    /// The public key for which it is locked.
    pub recipient: Option<String>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether it can be used.
    pub state: SlotState,
}

/// A key slot to add.
#[derive(Debug)]
pub struct NewSlot<'a> {
    /// The owner, who can open the slot.
    pub owner: SlotOwner<'a>,
    /// Its label; may be empty.
    pub label: &'a str,
    /// The current time.
    pub now: Timestamp,
}

/// Writes a slot. Returns it as later readers see it.
///
/// # Errors
/// The label is invalid, or the store fails. Then the slot may be unfinished.
pub(crate) fn write_slot(
    store: &dyn ObjectStore,
    key: &MasterKey,
    repository: &str,
    slot: &NewSlot<'_>,
    stop: &Stop,
) -> Result<KeySlot> {
    check_label(slot.label)?;
    let (kind, recipient) = match slot.owner {
        SlotOwner::Passphrase(_) => (SlotKind::Passphrase, None),
        SlotOwner::Recipient(recipient) => (SlotKind::X25519, Some(recipient.to_string())),
    };
    let file = lock(key, repository, slot.owner).map_err(PackError::NoKey)?;
    let record = Record {
        format: FORMAT,
        seal: record::NO_SEAL.to_owned(),
        repository: repository.to_owned(),
        id: new_id()?,
        kind,
        label: slot.label.to_owned(),
        recipient,
        created: slot.now,
        digest: blake3::hash(&file).to_hex().to_string(),
    };
    let names = Names::of(&record.id).ok_or_else(|| PackError::NoKey(std::io::Error::other("invalid id")))?;
    create(store, &names.file, &file, stop)?;
    create(
        store,
        &names.record,
        record::sealed(&record, key).as_bytes(),
        stop,
    )?;
    Ok(describe(&record, SlotState::Genuine))
}

/// Creates an object with a random name, and reads it back: a key that is not stored would be lost.
fn create(store: &dyn ObjectStore, name: &ObjectName, content: &[u8], stop: &Stop) -> Result<()> {
    match store.put_if_absent(name, content, &small(stop)) {
        // If it exists, an earlier try of this put has written it.
        Ok(_) => {}
        // Some stores refuse the condition. The name is random.
        Err(error) if error.kind == ObjectErrorKind::Unsupported => {
            store.put(name, content, &small(stop))?;
        }
        Err(error) => return Err(error.into()),
    }
    let found = store.get(name, LARGEST_FILE, &small(stop))?;
    match found == content {
        true => Ok(()),
        false => Err(damaged(store, name, "the store has not kept what was written")),
    }
}

fn damaged(store: &dyn ObjectStore, name: &ObjectName, why: &str) -> PackError {
    PackError::Damaged {
        location: store.location(),
        object: name.to_string(),
        why: why.to_owned(),
    }
}

fn new_id() -> Result<String> {
    let mut bytes = [0; 8];
    random(&mut bytes).map_err(PackError::NoKey)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

fn check_label(label: &str) -> Result<()> {
    if label.chars().count() > LONGEST_LABEL {
        return Err(PackError::Label("it has more than 60 characters"));
    }
    match crate::model::text::shown(label) == label {
        true => Ok(()),
        false => Err(PackError::Label("it has control characters")),
    }
}

fn describe(record: &Record, state: SlotState) -> KeySlot {
    KeySlot {
        id: record.id.clone(),
        kind: Some(record.kind),
        label: record.label.clone(),
        recipient: record.recipient.clone(),
        created: Some(record.created),
        state,
    }
}

/// The names of the two objects of a slot.
struct Names {
    file: ObjectName,
    record: ObjectName,
}

impl Names {
    fn of(id: &str) -> Option<Names> {
        let is_id = id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let name = |ending: &str| ObjectName::new(&format!("{SLOTS}{id}.{ending}"));
        is_id.then_some(())?;
        Some(Names {
            file: name("age")?,
            record: name("json")?,
        })
    }
}

/// Reads all slots, oldest first. With the master key, their seals are checked.
///
/// # Errors
/// The store fails, or there are more than 64 slots.
pub(crate) fn read_slots(
    store: &dyn ObjectStore,
    repository: &str,
    key: Option<&MasterKey>,
    stop: &Stop,
) -> Result<Vec<KeySlot>> {
    let listed = list_all(store, SLOTS, 2 * MOST_SLOTS, &small(stop))?;
    let mut found: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    for object in &listed.objects {
        let name = object.name.as_str().strip_prefix(SLOTS).unwrap_or_default();
        match name.split_once('.') {
            Some((id, "age")) if Names::of(id).is_some() => found.entry(id.to_owned()).or_default().0 = true,
            Some((id, "json")) if Names::of(id).is_some() => found.entry(id.to_owned()).or_default().1 = true,
            _ => {}
        }
    }
    let mut slots = Vec::new();
    for (id, (has_file, has_record)) in found {
        slots.push(read_slot(
            store, repository, key, &id, has_file, has_record, stop,
        )?);
    }
    slots.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    Ok(slots)
}

fn read_slot(
    store: &dyn ObjectStore,
    repository: &str,
    key: Option<&MasterKey>,
    id: &str,
    has_file: bool,
    has_record: bool,
    stop: &Stop,
) -> Result<KeySlot> {
    let without_record = |state| KeySlot {
        id: id.to_owned(),
        kind: None,
        label: String::new(),
        recipient: None,
        created: None,
        state,
    };
    let Some(names) = Names::of(id).filter(|_| has_record) else {
        return Ok(without_record(SlotState::Unfinished));
    };
    let text = match store.get(&names.record, LARGEST_RECORD, &small(stop)) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(without_record(SlotState::Unfinished)),
        Err(error) if error.is_too_large() => {
            return Ok(without_record(SlotState::Damaged(
                "its record is too large".to_owned(),
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let record = match parse(&text, id) {
        Ok(record) => record,
        Err(why) => return Ok(without_record(SlotState::Damaged(why))),
    };
    let state = match () {
        () if record.repository != repository => SlotState::OfOther,
        () if !has_file => SlotState::Removed,
        () => judge(store, &names, &record, &text, key, stop)?,
    };
    Ok(describe(&record, state))
}

fn parse(text: &[u8], id: &str) -> std::result::Result<Record, String> {
    let format = record::format(text)?;
    if format > FORMAT {
        return Err(format!(
            "its record has format {format}, which a newer vmsnap reads"
        ));
    }
    let record: Record =
        serde_json::from_slice(text).map_err(|error| format!("its record is invalid: {error}"))?;
    if record.id != id {
        return Err("its record is that of another slot".to_owned());
    }
    match check_label(&record.label) {
        Ok(()) => Ok(record),
        Err(_) => Err("its label is invalid".to_owned()),
    }
}

/// Parses the record of a slot, and the text of an age file.
pub(crate) fn parse_for_fuzzing(bytes: &[u8]) {
    if let Ok(record) = parse(bytes, "0123456789abcdef") {
        assert!(record.label.chars().count() <= LONGEST_LABEL);
    }
    let _ = super::lock::parse(bytes);
    let _ = super::lock::is_for_passphrase(bytes);
}

/// Whether the age file is the one in the record, and the record is genuine.
fn judge(
    store: &dyn ObjectStore,
    names: &Names,
    record: &Record,
    text: &[u8],
    key: Option<&MasterKey>,
    stop: &Stop,
) -> Result<SlotState> {
    let Some(key) = key else {
        return Ok(SlotState::Complete);
    };
    if !record::is_genuine(text, &record.seal, key) {
        return Ok(SlotState::Damaged("the seal of its record is wrong".to_owned()));
    }
    match store.get(&names.file, LARGEST_FILE, &small(stop)) {
        Ok(file) if blake3::hash(&file).to_hex().as_str() == record.digest => Ok(SlotState::Genuine),
        Ok(_) => Ok(SlotState::Damaged("its age file has changed".to_owned())),
        Err(error) if error.is_not_found() => Ok(SlotState::Removed),
        Err(error) if error.is_too_large() => Ok(SlotState::Damaged("its age file is too large".to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// Reads the age file of a slot; `None` if the file is missing or too large.
///
/// # Errors
/// The store fails.
pub(crate) fn read_file(store: &dyn ObjectStore, id: &str, stop: &Stop) -> Result<Option<Vec<u8>>> {
    let Some(names) = Names::of(id) else {
        return Ok(None);
    };
    match store.get(&names.file, LARGEST_FILE, &small(stop)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.is_not_found() || error.is_too_large() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether this age file of a slot is the one that the slot's record describes; `None` without a
/// record that can be read.
///
/// # Errors
/// The store fails.
pub(crate) fn is_as_recorded(
    store: &dyn ObjectStore,
    id: &str,
    file: &[u8],
    stop: &Stop,
) -> Result<Option<bool>> {
    let Some(names) = Names::of(id) else {
        return Ok(None);
    };
    match store.get(&names.record, LARGEST_RECORD, &small(stop)) {
        Ok(text) => Ok(parse(&text, id)
            .ok()
            .map(|record| blake3::hash(file).to_hex().as_str() == record.digest)),
        Err(error) if error.is_not_found() || error.is_too_large() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a slot: first its key, then its record.
///
/// # Errors
/// The store fails. The removal can be repeated.
pub(crate) fn remove_slot(store: &dyn ObjectStore, id: &str, stop: &Stop) -> Result<()> {
    if let Some(names) = Names::of(id) {
        store.delete(&names.file, &small(stop))?;
        store.delete(&names.record, &small(stop))?;
    }
    Ok(())
}
