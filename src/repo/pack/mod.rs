//! A repository of objects: in a bucket, or as files in a folder. Its data is encrypted,
//! deduplicated and packed, and each restore point is complete by itself.
//!
//! * `location`: where a repository is, as a user gives it.
//! * `objects`: the seam to the object store.
//! * `description`: the object that makes a place a repository.
//! * `keys`: the master key, and the slots that hold it.
//! * `data`: blocks, packs, the index, and the maps of disks.
//! * `probe`: finds out how the store handles conditional puts.
//! * `create`: creates a repository.
//! * `unlocked`: a repository whose master key is known.
//! * `shared`, `part`: what all parts of it share, and what the reader and the writer of one domain
//!   share.
//! * `domain`, `writer`, `pending`: one domain's part for reading and for writing, and a restore
//!   point that is being written.
//! * `access`: the data for a restore point that is being written, with its session.
//! * `commit`: creates the object of a restore point.
//! * `collection`: what all restore points need, for the collection of everything else.
//! * `integrity`: checks a repository as a whole, and rebuilds its index.
//! * `content`, `history`: what the repository holds of a domain.
//! * `point`, `records`, `names`: the objects of restore points, the records about them, and the
//!   names of both.
//! * `sealed`: reads small sealed objects.
//! * `check`: reads and checks what belongs to a restore point.
//! * `state`: what a host keeps for itself.
//! * `fuzzing`: the parsers, for the fuzz targets.
//!
//! `docs/pack-format.md` describes the format.

mod access;
mod check;
mod collection;
mod commit;
mod content;
mod create;
mod data;
mod description;
mod domain;
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod integrity;
mod keys;
mod location;
mod names;
mod objects;
mod part;
mod pending;
mod point;
mod probe;
mod records;
mod sealed;
mod shared;
mod state;
mod unlocked;
mod writer;

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use crate::io::{DiskStore, Store};
use crate::model::stop::Stop;
use crate::repo::pack_error as error;

pub use collection::Collection;
pub use create::{Creation, Protection};
#[cfg(feature = "testkit")]
pub use data::SimulatedMap;
pub use data::{
    Amount, CollectReport, CondemnedNote, Cost, Damage, DamagedIndex, IndexFault, RebuildReport,
    RepositoryCheck, SessionNote, Waiting,
};
pub use description::{Cipher, ConditionalPuts, Sizes};
pub use error::{PackError, PackErrorClass, Result as PackResult};
pub use integrity::Rebuild;
pub use keys::{
    IdentityFile, KeySlot, NewSlot, Passphrase, Recipient, Secret, SlotKind, SlotOwner, SlotState,
};
pub use location::PackLocation;
pub use objects::{
    BucketLocation, ListPage, ListedObject, ObjectError, ObjectErrorKind, ObjectName, ObjectResult,
    ObjectStore, PutResult,
};
pub use shared::UnlockedHost;
pub use state::HostFolders;
pub use unlocked::UnlockedPack;

use description::{Description, LARGEST, NAME};
use keys::{KeyFault, MasterKey, SLOTS};
use objects::{FolderObjects, Unconditional, small};

/// Facts about a pack repository that need no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFacts {
    /// Its location.
    pub location: String,
    /// Its id, a UUID.
    pub id: String,
    /// When it was created.
    pub created: Timestamp,
    /// The program that created it.
    pub program: String,
    /// How it is encrypted.
    pub cipher: Cipher,
    /// The sizes that its writers use.
    pub sizes: Sizes,
    /// How its store handles conditional puts.
    pub conditional_puts: ConditionalPuts,
    /// Its key slots, oldest first.
    pub slots: Vec<KeySlot>,
}

/// A new repository.
#[derive(Debug)]
pub struct NewPack {
    /// Facts about the new repository.
    pub facts: PackFacts,
    /// Names of objects that interrupted runs left at the location. Nothing depends on them.
    pub leftovers: Vec<String>,
}

/// The secret that opens the master key of a repository, and where to find a key slot for it.
#[derive(Debug)]
pub struct Opener {
    /// A passphrase, or identities.
    pub secret: Secret,
    /// The recovery file to open; `None` to open a key slot of the repository.
    pub recovery: Option<RecoveryFile>,
}

/// A file with the master key, as `key export` writes it.
#[derive(Debug)]
pub struct RecoveryFile {
    /// Its name, for messages.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// A pack repository.
pub struct PackRepository {
    location: String,
    objects: Arc<dyn ObjectStore>,
    description: Description,
    /// The text of the description, for its seal.
    text: Vec<u8>,
}

/// Opens the object store at a location, which need not hold a repository.
///
/// # Errors
/// There are no credentials, or this program was built without support for object stores.
fn object_store(location: &PackLocation, store: Arc<dyn Store>) -> error::Result<Arc<dyn ObjectStore>> {
    match location {
        PackLocation::Folder(path) => Ok(Arc::new(FolderObjects::new(path, store))),
        #[cfg(feature = "object-store")]
        PackLocation::Bucket(bucket) => Ok(Arc::new(objects::S3Objects::open(bucket)?)),
        #[cfg(not(feature = "object-store"))]
        PackLocation::Bucket(bucket) => Err(PackError::NoObjectStore {
            location: bucket.to_string(),
        }),
    }
}

/// Opens the bucket at a location with these variables instead of those of the environment.
///
/// # Errors
/// The errors of [`PackRepository::open`], or the location is not that of a bucket.
#[cfg(all(feature = "testkit", feature = "object-store"))]
pub(crate) fn bucket_of_test(
    location: &Path,
    environment: &dyn Fn(&str) -> Option<std::ffi::OsString>,
) -> error::Result<Arc<dyn ObjectStore>> {
    match PackLocation::parse(location.as_os_str())? {
        Some(PackLocation::Bucket(bucket)) => {
            Ok(Arc::new(objects::S3Objects::open_in(&bucket, environment)?))
        }
        _ => Err(PackError::OtherKind {
            location: location.display().to_string(),
        }),
    }
}

/// Whether this folder holds a pack repository.
pub(crate) fn is_in_folder(folder: &Path) -> bool {
    folder.join(NAME).symlink_metadata().is_ok()
}

impl PackRepository {
    /// Creates a repository at this location.
    ///
    /// # Errors
    /// The errors of [`PackRepository::create_in`]. The parent of a folder has to exist.
    pub fn create(location: &PackLocation, creation: &Creation, stop: &Stop) -> error::Result<NewPack> {
        PackRepository::create_with(location, Arc::new(DiskStore), creation, stop)
    }

    /// Creates a repository at this location, and writes files through this store.
    ///
    /// # Errors
    /// The errors of [`PackRepository::create`].
    pub fn create_with(
        location: &PackLocation,
        store: Arc<dyn Store>,
        creation: &Creation,
        stop: &Stop,
    ) -> error::Result<NewPack> {
        if let PackLocation::Folder(path) = location {
            FolderObjects::new(path, Arc::clone(&store)).create_root()?;
        }
        let objects = object_store(location, store)?;
        PackRepository::create_in(&location.to_string(), objects.as_ref(), creation, stop)
    }

    /// Creates a repository in an object store.
    ///
    /// # Errors
    /// The store holds a repository or other objects, or fails. Then nothing was created, or only
    /// objects that every program ignores.
    pub fn create_in(
        location: &str,
        objects: &dyn ObjectStore,
        creation: &Creation,
        stop: &Stop,
    ) -> error::Result<NewPack> {
        let created = create::create(objects, creation, stop)?;
        Ok(NewPack {
            facts: facts(location, &created.description, created.slots),
            leftovers: created.leftovers,
        })
    }

    /// Opens the repository at this location.
    ///
    /// # Errors
    /// There is no repository, its description is damaged or has a newer format, or the store
    /// fails.
    pub fn open(location: &PackLocation, stop: &Stop) -> error::Result<PackRepository> {
        let objects = object_store(location, Arc::new(DiskStore))?;
        PackRepository::open_in(&location.to_string(), objects, stop)
    }

    /// Opens the repository in an object store.
    ///
    /// # Errors
    /// The errors of [`PackRepository::open`].
    pub fn open_in(
        location: &str,
        objects: Arc<dyn ObjectStore>,
        stop: &Stop,
    ) -> error::Result<PackRepository> {
        let missing = |has_leftovers| PackError::Missing {
            location: location.to_owned(),
            has_leftovers,
        };
        let name = ObjectName::new(NAME).ok_or_else(|| missing(false))?;
        let text = match objects.get(&name, LARGEST, &small(stop)) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => {
                let holds = |prefix: &str| -> error::Result<bool> {
                    Ok(!objects.list(prefix, None, &small(stop))?.objects.is_empty())
                };
                // An interrupted `init` leaves neither of them.
                if holds(names::POINTS)? || holds(data::PACKS)? {
                    return Err(PackError::Damaged {
                        location: location.to_owned(),
                        object: NAME.to_owned(),
                        why: "it is missing, although there are backups".to_owned(),
                    });
                }
                return Err(missing(holds(SLOTS)?));
            }
            Err(error) if error.is_too_large() => {
                return Err(PackError::Damaged {
                    location: location.to_owned(),
                    object: NAME.to_owned(),
                    why: format!("it has more than {LARGEST} bytes"),
                });
            }
            Err(error) => return Err(error.into()),
        };
        let description = Description::parse(&text, location)?;
        let objects = match description.conditional_puts {
            ConditionalPuts::Honoured => objects,
            // Some of these stores refuse the condition.
            ConditionalPuts::Ignored => Arc::new(Unconditional(objects)),
        };
        Ok(PackRepository {
            description,
            location: location.to_owned(),
            objects,
            text,
        })
    }

    /// Reads the facts about the repository, without a key. The seals of encrypted repositories and
    /// of their slots are not checked.
    ///
    /// # Errors
    /// The store fails.
    pub fn facts(&self, stop: &Stop) -> error::Result<PackFacts> {
        let slots = match self.description.cipher {
            Cipher::None => Vec::new(),
            _ => keys::read_slots(self.objects.as_ref(), &self.description.id, None, stop)?,
        };
        Ok(facts(&self.location, &self.description, slots))
    }

    /// Adds a key slot.
    ///
    /// # Errors
    /// The opener opens no key slot, the repository is not encrypted, or the store fails.
    pub fn add_slot(&self, opener: &Opener, new: &NewSlot<'_>, stop: &Stop) -> error::Result<KeySlot> {
        let key = self.unlock(opener, stop)?;
        keys::write_slot(self.objects.as_ref(), &key, &self.description.id, new, stop)
    }

    /// Removes a key slot, or the remains of a removal that was interrupted.
    ///
    /// # Errors
    /// [`PackError::LastSlot`] if no other slot is complete and genuine; others as for
    /// [`PackRepository::add_slot`].
    pub fn remove_slot(&self, opener: &Opener, id: &str, stop: &Stop) -> error::Result<KeySlot> {
        let key = self.unlock(opener, stop)?;
        let slots = keys::read_slots(self.objects.as_ref(), &self.description.id, Some(&key), stop)?;
        let Some(slot) = slots.iter().find(|slot| slot.id == id) else {
            return Err(self.no_slot(id));
        };
        let stays = |other: &&KeySlot| other.id != id && other.state == SlotState::Genuine;
        if !slots.iter().any(|slot| stays(&slot)) {
            return Err(PackError::LastSlot {
                location: self.location.clone(),
                slot: id.to_owned(),
            });
        }
        keys::remove_slot(self.objects.as_ref(), id, stop)?;
        Ok(slot.clone())
    }

    /// Returns the age file of a key slot, which opens without the repository, as a recovery file.
    /// Without an id, the only complete slot is used.
    ///
    /// # Errors
    /// There is no such slot, there are several slots and no id is given, or the store fails.
    pub fn export(&self, id: Option<&str>, stop: &Stop) -> error::Result<(KeySlot, Vec<u8>)> {
        self.check_encrypted()?;
        let slots = keys::read_slots(self.objects.as_ref(), &self.description.id, None, stop)?;
        let is_meant = |slot: &&KeySlot| id.map_or(slot.state == SlotState::Complete, |id| slot.id == id);
        let meant: Vec<_> = slots.iter().filter(is_meant).collect();
        let slot = match (meant.as_slice(), id) {
            ([slot], _) => *slot,
            (_, Some(id)) => return Err(self.no_slot(id)),
            (several, None) => {
                return Err(PackError::WhichSlot {
                    location: self.location.clone(),
                    number: several.len(),
                });
            }
        };
        let file = keys::read_file(self.objects.as_ref(), &slot.id, stop)?;
        let file = file.filter(|file| keys::is_for_passphrase(file).is_some());
        let file = file.ok_or_else(|| self.damaged(&slot.id, "it is missing, or is not an age file"))?;
        if keys::is_as_recorded(self.objects.as_ref(), &slot.id, &file, stop)? == Some(false) {
            return Err(self.damaged(&slot.id, "its digest does not match the record of the slot"));
        }
        Ok((slot.clone(), file))
    }

    /// Whether a secret is needed to open it.
    pub fn is_encrypted(&self) -> bool {
        self.description.cipher != Cipher::None
    }

    /// Unlocks the repository, so that restore points can be written and read. The opener is needed
    /// only if it is encrypted.
    ///
    /// # Errors
    /// The opener opens no key slot, or the store fails.
    pub fn unlocked(
        self,
        opener: Option<&Opener>,
        host: UnlockedHost,
        stop: &Stop,
    ) -> crate::repo::Result<UnlockedPack> {
        let key = match (self.description.open_key(), opener) {
            (Some(key), _) => key,
            (None, Some(opener)) => self.unlock(opener, stop)?,
            (None, None) => {
                return Err(PackError::NoSecret {
                    location: self.location,
                }
                .into());
            }
        };
        UnlockedPack::new(self.location, self.objects, self.description, key, host, stop)
    }

    fn no_slot(&self, slot: &str) -> PackError {
        PackError::NoSuchSlot {
            location: self.location.clone(),
            slot: slot.to_owned(),
        }
    }

    fn damaged(&self, slot: &str, why: &str) -> PackError {
        PackError::Damaged {
            location: self.location.clone(),
            object: format!("{SLOTS}{slot}.age"),
            why: why.to_owned(),
        }
    }

    fn check_encrypted(&self) -> error::Result<()> {
        match self.description.cipher {
            Cipher::None => Err(PackError::NotEncrypted {
                location: self.location.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Opens the master key, and checks with it that the description is genuine.
    fn unlock(&self, opener: &Opener, stop: &Stop) -> error::Result<MasterKey> {
        self.check_encrypted()?;
        let key = match &opener.recovery {
            Some(file) => self.open_recovery(file, &opener.secret)?,
            None => self.open_slots(&opener.secret, stop)?,
        };
        match keys::record::is_genuine(&self.text, &self.description.seal, &key) {
            true => Ok(key),
            false => Err(PackError::Damaged {
                location: self.location.clone(),
                object: NAME.to_owned(),
                why: "its seal does not match the master key".to_owned(),
            }),
        }
    }

    fn wrong_key(&self, secret: &Secret, tried: usize) -> PackError {
        PackError::WrongKey {
            location: self.location.clone(),
            secret: secret.word(),
            tried,
        }
    }

    fn open_recovery(&self, file: &RecoveryFile, secret: &Secret) -> error::Result<MasterKey> {
        let unusable = |why: &str| PackError::SecretFile {
            path: file.name.clone().into(),
            why: why.to_owned(),
        };
        match keys::open(&file.content, secret) {
            Ok((key, id)) if id == self.description.id => Ok(key),
            Ok(_) => Err(PackError::KeyOfOther {
                holder: file.name.clone(),
                location: self.location.clone(),
            }),
            Err(KeyFault::WrongSecret) => Err(unusable(&format!("the {} does not open it", secret.word()))),
            Err(KeyFault::Unusable(why)) => Err(unusable(why)),
        }
    }

    /// Tries the age files of all slots. A file with the key of another repository is passed over,
    /// and so is a damaged one.
    fn open_slots(&self, secret: &Secret, stop: &Stop) -> error::Result<MasterKey> {
        let slots = keys::read_slots(self.objects.as_ref(), &self.description.id, None, stop)?;
        let mut tried = 0;
        for slot in &slots {
            let Some(file) = keys::read_file(self.objects.as_ref(), &slot.id, stop)? else {
                continue;
            };
            let is_passphrase = matches!(secret, Secret::Passphrase(_));
            if keys::is_for_passphrase(&file) != Some(is_passphrase) {
                continue;
            }
            tried += 1;
            match keys::open(&file, secret) {
                Ok((key, id)) if id == self.description.id => return Ok(key),
                Ok(_) | Err(_) => {}
            }
        }
        Err(self.wrong_key(secret, tried))
    }
}

fn facts(location: &str, description: &Description, slots: Vec<KeySlot>) -> PackFacts {
    PackFacts {
        location: location.to_owned(),
        id: description.id.clone(),
        created: description.created,
        program: description.program.clone(),
        cipher: description.cipher,
        sizes: description.sizes,
        conditional_puts: description.conditional_puts,
        slots,
    }
}
