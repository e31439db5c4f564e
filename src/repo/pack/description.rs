//! `vmsnap.json`: the description of a repository. Its creation is the creation of the repository,
//! and it never changes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::{PackError, Result};
use super::keys::{MasterKey, record};

/// The name of the object.
pub(super) const NAME: &str = "vmsnap.json";

/// The largest description, in bytes.
pub(super) const LARGEST: u64 = 16 * 1024;

/// The version of the format of the whole repository.
const FORMAT: u64 = 1;

/// The sizes of blocks that a reader accepts, in bytes.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=16 << 20;

/// The largest size of packs that a reader accepts, in bytes.
const MOST_PACK_BYTES: u64 = 1 << 30;

/// How blocks and records are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    /// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) with random nonces.
    #[serde(rename = "xchacha20-poly1305")]
    XChaCha20Poly1305,
    /// Nothing is encrypted.
    #[serde(rename = "none")]
    None,
}

impl Cipher {
    /// The word for the cipher in the description.
    pub fn word(self) -> &'static str {
        match self {
            Cipher::XChaCha20Poly1305 => "xchacha20-poly1305",
            Cipher::None => "none",
        }
    }
}

/// Whether the store honours the condition that an object does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConditionalPuts {
    /// If several puts run at the same time, exactly one creates the object, and the others fail.
    Honoured,
    /// A later put may replace the object.
    Ignored,
}

impl ConditionalPuts {
    /// The word in the description.
    pub fn word(self) -> &'static str {
        match self {
            ConditionalPuts::Honoured => "honoured",
            ConditionalPuts::Ignored => "ignored",
        }
    }
}

/// Sizes that all writers of a repository use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sizes {
    /// The largest block.
    pub block_bytes: u64,
    /// The size at which a pack is complete.
    pub pack_bytes: u64,
}

impl Sizes {
    /// The sizes of new repositories.
    pub(super) const NEW: Sizes = Sizes {
        block_bytes: 1 << 20,
        pack_bytes: 16 << 20,
    };
}

/// The description of a repository.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Description {
    pub(super) format: u64,
    pub(super) seal: String,
    pub(super) id: String,
    pub(super) created: Timestamp,
    /// The program that created the repository.
    pub(super) program: String,
    pub(super) sizes: Sizes,
    pub(super) cipher: Cipher,
    pub(super) conditional_puts: ConditionalPuts,
    /// The master key in hexadecimal digits, only in a repository that is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
}

impl Description {
    /// The description of a new repository.
    pub(super) fn new(id: String, created: Timestamp, conditional_puts: ConditionalPuts) -> Description {
        Description {
            format: FORMAT,
            seal: record::NO_SEAL.to_owned(),
            id,
            created,
            program: concat!("vmsnap ", env!("CARGO_PKG_VERSION")).to_owned(),
            sizes: Sizes::NEW,
            cipher: Cipher::XChaCha20Poly1305,
            conditional_puts,
            key: None,
        }
    }

    /// The text, sealed with the master key. Without encryption the key becomes a part of it.
    pub(super) fn sealed(&self, key: &MasterKey, is_encrypted: bool) -> String {
        let mut written = self.clone();
        if !is_encrypted {
            written.cipher = Cipher::None;
            written.key = Some(key.to_hex().to_string());
        }
        record::sealed(&written, key)
    }

    /// Reads a description. If it contains a key, its seal is checked.
    ///
    /// # Errors
    /// It is invalid, or has a newer format.
    pub(super) fn parse(text: &[u8], location: &str) -> Result<Description> {
        let damaged = |why: String| PackError::Damaged {
            location: location.to_owned(),
            object: NAME.to_owned(),
            why,
        };
        let format = record::format(text).map_err(damaged)?;
        if format > FORMAT {
            return Err(PackError::NewerFormat {
                location: location.to_owned(),
                object: NAME.to_owned(),
                format,
                known: FORMAT,
            });
        }
        let description: Description =
            serde_json::from_slice(text).map_err(|error| damaged(format!("it is invalid: {error}")))?;
        description.check(text).map_err(|why| damaged(why.to_owned()))?;
        Ok(description)
    }

    fn check(&self, text: &[u8]) -> std::result::Result<(), &'static str> {
        let is_id = Uuid::try_parse(&self.id).is_ok_and(|id| id.hyphenated().to_string() == self.id);
        let sizes = self.sizes;
        let fits = |bytes: u64| (sizes.block_bytes..=MOST_PACK_BYTES).contains(&bytes);
        match () {
            () if self.format != FORMAT => Err("its format is invalid"),
            () if !is_id => Err("its id is not a UUID"),
            () if !BLOCK_BYTES.contains(&sizes.block_bytes) || !sizes.block_bytes.is_power_of_two() => {
                Err("its size of blocks is invalid")
            }
            () if !fits(sizes.pack_bytes) => Err("its size of packs is invalid"),
            () if (self.cipher == Cipher::None) != self.key.is_some() => {
                Err("its key and its cipher contradict each other")
            }
            () => match self.open_key() {
                None if self.key.is_some() => Err("its key is invalid"),
                Some(key) if !record::is_genuine(text, &self.seal, &key) => {
                    Err("its seal does not match its text")
                }
                _ => Ok(()),
            },
        }
    }

    /// The master key of a repository that is not encrypted.
    pub(super) fn open_key(&self) -> Option<MasterKey> {
        MasterKey::from_hex(self.key.as_deref()?)
    }
}

/// A valid description, which the fuzzer changes.
#[cfg(test)]
pub(super) fn sample_for_fuzzing() -> Vec<u8> {
    let key = MasterKey::from_hex(&"01".repeat(32)).expect("valid");
    let now = "2026-11-28T15:00:00Z".parse().expect("a time");
    let id = "6f9619ff-8b86-4011-b42d-00c04fc964ff".to_owned();
    Description::new(id, now, ConditionalPuts::Honoured)
        .sealed(&key, false)
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHERE: &str = "pack:/x";

    fn description() -> Description {
        let now = "2026-11-28T15:00:00Z".parse().expect("a time");
        Description::new(Uuid::new_v4().to_string(), now, ConditionalPuts::Honoured)
    }

    fn parsed(text: &str) -> Result<Description> {
        Description::parse(text.as_bytes(), WHERE)
    }

    #[test]
    fn a_description_comes_back() {
        let key = MasterKey::new().expect("random");
        let encrypted = parsed(&description().sealed(&key, true)).expect("valid");
        assert!(encrypted.open_key().is_none() && encrypted.cipher == Cipher::XChaCha20Poly1305);
        let open = parsed(&description().sealed(&key, false)).expect("valid");
        assert_eq!(*open.open_key().expect("a key").to_hex(), *key.to_hex());
        assert_eq!(open.cipher, Cipher::None);
    }

    #[test]
    fn the_key_of_an_encrypted_repository_is_not_in_it() {
        let key = MasterKey::new().expect("random");
        assert!(!description().sealed(&key, true).contains(key.to_hex().as_str()));
    }

    #[test]
    fn a_newer_format_is_named() {
        let text = "{\"format\": 7, \"unknown\": {}}";
        let Err(PackError::NewerFormat {
            format: 7, known: 1, ..
        }) = parsed(text)
        else {
            panic!("it is newer");
        };
    }

    #[test]
    fn hostile_descriptions_are_damaged() {
        let key = MasterKey::new().expect("random");
        let text = description().sealed(&key, true);
        for (old, new) in [
            ("\"format\": 1", "\"format\": 0"),
            ("\"format\": 1", "\"format\": -1"),
            ("\"format\": 1", "\"format\": \"1\""),
            ("\"blockBytes\": 1048576", "\"blockBytes\": 0"),
            ("\"blockBytes\": 1048576", "\"blockBytes\": 1048577"),
            ("\"blockBytes\": 1048576", "\"blockBytes\": 1e400"),
            ("\"packBytes\": 16777216", "\"packBytes\": 18446744073709551615"),
            ("\"packBytes\": 16777216", "\"packBytes\": 4096"),
            ("xchacha20-poly1305", "rot13"),
            ("xchacha20-poly1305", "none"),
            ("\"honoured\"", "\"perhaps\""),
            ("\"sizes\"", "\"more\": 1, \"sizes\""),
            ("2026-11-28", "2026-13-28"),
            ("\"program\"", "\"key\": \"00\", \"program\""),
        ] {
            assert!(text.contains(old), "{old}");
            let error = parsed(&text.replace(old, new))
                .err()
                .unwrap_or_else(|| panic!("{new}"));
            assert!(matches!(error, PackError::Damaged { .. }), "{new}: {error}");
        }
        for length in 0..text.trim_end().len() {
            assert!(parsed(&text[..length]).is_err(), "{length}");
        }
        let deep = "[".repeat(100_000);
        assert!(parsed(&deep).is_err());
    }

    #[test]
    fn a_change_in_an_open_repository_is_noticed() {
        let key = MasterKey::new().expect("random");
        let text = description().sealed(&key, false);
        let changed = text.replace("honoured", "ignored");
        assert!(matches!(parsed(&changed), Err(PackError::Damaged { .. })));
    }
}
