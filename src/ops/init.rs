//! Creates a pack repository, and shows the facts about one.

use std::path::Path;

use jiff::Timestamp;

use super::{Error, Result};
use crate::model::stop::Stop;
use crate::repo::{self, Creation, RepoError};

pub use crate::repo::{
    Cipher, ConditionalPuts, KeySlot, NewPack, PackFacts, Passphrase, Protection, Recipient, Sizes, SlotKind,
    SlotState,
};

/// A new repository.
pub struct Options {
    /// How the repository is protected.
    pub protection: Protection,
    /// The label of its key slots.
    pub label: String,
    /// The current time.
    pub now: Timestamp,
}

/// Creates a pack repository.
///
/// # Errors
/// The location is invalid or in use, or its store fails. Then nothing was created.
pub fn init(location: &Path, options: Options, stop: &Stop) -> Result<NewPack> {
    let creation = Creation {
        protection: options.protection,
        label: options.label,
        now: options.now,
    };
    repo::create_pack(location, &creation, stop).map_err(|error| Error::of("", RepoError::from(error)))
}

/// Reads the facts about a pack repository that can be read without a key.
///
/// # Errors
/// There is no repository at this location, or it cannot be read.
pub fn facts(location: &Path, stop: &Stop) -> Result<PackFacts> {
    let facts = repo::open_pack(location, stop).and_then(|repository| repository.facts(stop));
    facts.map_err(|error| Error::of("", RepoError::from(error)))
}
