//! The keys of a pack repository.
//!
//! * `master`: the master key, and the keys that are derived from it.
//! * `secret`: passphrases, identities and recipients, which open and lock key slots.
//! * `lock`: locks the master key into an age file, and opens it.
//! * `record`: JSON records with a seal.
//! * `slot`: the objects of a key slot.

mod lock;
mod master;
pub(in crate::repo::pack) mod record;
mod secret;
mod slot;

pub use lock::SlotOwner;
pub(crate) use lock::{KeyFault, is_for_passphrase, open};
pub(crate) use master::{DerivedKey, MasterKey, random};
pub use secret::{IdentityFile, Passphrase, Recipient, Secret};
pub(crate) use slot::parse_for_fuzzing as parse_slot_for_fuzzing;
pub use slot::{KeySlot, NewSlot, SlotKind, SlotState};
pub(crate) use slot::{SLOTS, is_as_recorded, read_file, read_slots, remove_slot, write_slot};
