//! Creates a repository.
//!
//! The order of the steps, so that a killed run leaves nothing that a later one trusts:
//!
//! 1. The location must be free of other objects. Leftovers of killed runs are ignored.
//! 2. A probe tries the store. It deletes its objects.
//! 3. The key slots are written. Their records name the id of the new repository.
//! 4. `vmsnap.json` is created if it is absent. Only now there is a repository.

use jiff::Timestamp;
use uuid::Uuid;

use super::description::{ConditionalPuts, Description, LARGEST, NAME};
use super::error::{PackError, Result};
use super::keys::{
    KeySlot, MasterKey, NewSlot, Passphrase, Recipient, SLOTS, SlotOwner, remove_slot, write_slot,
};
use super::objects::{ObjectName, ObjectStore, PutResult, list_all, small};
use super::probe::{PROBES, probe};
use crate::model::stop::Stop;

/// The most objects that killed runs may have left.
const MOST_LEFTOVERS: usize = 10_000;

/// How a new repository is protected.
#[derive(Debug)]
pub enum Protection {
    /// Its data is encrypted, and a passphrase opens it.
    Passphrase(Passphrase),
    /// Its data is encrypted, and the owner of any of these keys can open it.
    Recipients(Vec<Recipient>),
    /// Its data is not encrypted. Everybody who can read the objects can read the data.
    None,
}

/// A new repository.
#[derive(Debug)]
pub struct Creation {
    /// How it is protected.
    pub protection: Protection,
    /// The label of its key slots; may be empty.
    pub label: String,
    /// The current time.
    pub now: Timestamp,
}

/// The result of creating a repository.
pub(super) struct Created {
    pub(super) description: Description,
    pub(super) slots: Vec<KeySlot>,
    /// Names of objects that interrupted runs left. Nothing depends on them.
    pub(super) leftovers: Vec<String>,
}

/// Creates a repository in this store.
///
/// # Errors
/// The location holds a repository or other objects, or the store fails. Then nothing was created,
/// or only objects that every program ignores.
pub(super) fn create(store: &dyn ObjectStore, creation: &Creation, stop: &Stop) -> Result<Created> {
    let mut leftovers = check_free(store, stop)?;
    let probed = probe(store, stop)?;
    leftovers.extend(probed.left);
    let key = MasterKey::new().map_err(PackError::NoKey)?;
    let id = Uuid::new_v4().hyphenated().to_string();
    let description = Description::new(id, creation.now, probed.puts);
    let mut slots = Vec::new();
    let written = write_slots(store, creation, &key, &description.id, &mut slots, stop);
    let is_encrypted = !matches!(creation.protection, Protection::None);
    let text = description.sealed(&key, is_encrypted);
    let committed = match written {
        Ok(()) => commit(store, &text, description.conditional_puts, stop),
        Err(error) => Err(Failure::Nothing(error)),
    };
    match committed {
        Ok(()) => Ok(Created {
            description: Description::parse(text.as_bytes(), &store.location())?,
            slots,
            leftovers,
        }),
        // The repository may appear later: then it needs its slots.
        Err(Failure::Unclear(error)) => Err(error),
        Err(Failure::Nothing(error)) => {
            for slot in &slots {
                // Objects that stay are ignored as those of a killed run are.
                let _ = remove_slot(store, &slot.id, &Stop::default());
            }
            Err(error)
        }
    }
}

/// Checks that there is nothing but leftovers of earlier runs. Returns their names.
fn check_free(store: &dyn ObjectStore, stop: &Stop) -> Result<Vec<String>> {
    let location = store.location();
    let listed = list_all(store, "", MOST_LEFTOVERS, &small(stop))?;
    if listed.objects.iter().any(|object| object.name.as_str() == NAME) {
        return Err(PackError::Exists { location });
    }
    let names: Vec<String> = listed
        .objects
        .into_iter()
        .map(|object| object.name.to_string())
        .collect();
    let is_leftover = |name: &&String| name.starts_with(SLOTS) || name.starts_with(PROBES);
    let other = names.iter().find(|name| !is_leftover(name));
    match other.or(listed.foreign.first()) {
        Some(example) => Err(PackError::NotEmpty {
            location,
            example: example.clone(),
        }),
        None => Ok(names),
    }
}

fn write_slots(
    store: &dyn ObjectStore,
    creation: &Creation,
    key: &MasterKey,
    id: &str,
    slots: &mut Vec<KeySlot>,
    stop: &Stop,
) -> Result<()> {
    let owners = match &creation.protection {
        Protection::None => Vec::new(),
        Protection::Passphrase(passphrase) => vec![SlotOwner::Passphrase(passphrase)],
        Protection::Recipients(recipients) => recipients.iter().map(SlotOwner::Recipient).collect(),
    };
    for owner in owners {
        let slot = NewSlot {
            owner,
            label: &creation.label,
            now: creation.now,
        };
        slots.push(write_slot(store, key, id, &slot, stop)?);
    }
    Ok(())
}

/// Why there is no repository.
enum Failure {
    /// Nothing was created.
    Nothing(PackError),
    /// It may have been created, or may still be.
    Unclear(PackError),
}

/// Creates `vmsnap.json`.
fn commit(
    store: &dyn ObjectStore,
    text: &str,
    puts: ConditionalPuts,
    stop: &Stop,
) -> std::result::Result<(), Failure> {
    let exists = || PackError::Exists {
        location: store.location(),
    };
    let name = ObjectName::new(NAME).ok_or_else(|| Failure::Nothing(exists()))?;
    let put = match puts {
        ConditionalPuts::Honoured => store.put_if_absent(&name, text.as_bytes(), &small(stop)),
        // The next best: a look before. Another init at the same moment is found afterwards.
        ConditionalPuts::Ignored => match store.head(&name, &small(stop)) {
            Ok(Some(_)) => Ok(PutResult::Existed),
            Ok(None) => store
                .put(&name, text.as_bytes(), &small(stop))
                .map(|()| PutResult::Created),
            Err(error) => return Err(Failure::Nothing(error.into())),
        },
    };
    // A put that failed may have taken effect, and one that found an object may have found its own.
    let found = match store.get(&name, LARGEST, &small(&Stop::default())) {
        Ok(found) => found,
        Err(error) => return Err(Failure::Unclear(put.err().unwrap_or(error).into())),
    };
    if found == text.as_bytes() {
        // After a failure it may be visible but not durable yet: the store has to confirm it.
        return match put {
            Ok(_) => Ok(()),
            Err(_) => match store.put_if_absent(&name, text.as_bytes(), &small(stop)) {
                Ok(_) => Ok(()),
                Err(error) => Err(Failure::Unclear(error.into())),
            },
        };
    }
    // A description that cannot be read may be our own.
    match Description::parse(&found, &store.location()) {
        Ok(_) => Err(Failure::Nothing(exists())),
        Err(error) => Err(Failure::Unclear(error)),
    }
}
