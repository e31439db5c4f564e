//! Pack repositories: their creation, their keys, and backups into them.

mod backups;
mod beside;
mod check;
mod collect;
mod commands;
mod crash;
mod create;
mod folder;
mod keys;
mod killed;
#[cfg(feature = "object-store")]
mod offsite;
#[cfg(feature = "object-store")]
mod rights;
mod rollback;
#[cfg(feature = "object-store")]
mod s3;
#[cfg(feature = "object-store")]
mod secrets;
#[cfg(feature = "object-store")]
mod server;
mod together;
mod world;

use std::sync::Arc;

use age::secrecy::ExposeSecret;
use vmsnap::model::stop::Stop;
use vmsnap::repo::{
    Creation, IdentityFile, NewPack, ObjectStore, Opener, PackRepository, PackResult, Passphrase, Protection,
    Secret,
};
use vmsnap::testkit::MemoryObjects;

/// The location in messages.
const WHERE: &str = "memory:";

/// A private key of age, and its file.
pub struct Person {
    pub file: tempfile::NamedTempFile,
    pub public: String,
}

impl Person {
    pub fn new() -> Person {
        let identity = age::x25519::Identity::generate();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), identity.to_string().expose_secret()).expect("written");
        Person {
            file,
            public: identity.to_public().to_string(),
        }
    }

    pub fn opener(&self) -> Opener {
        Opener {
            secret: Secret::Identities(IdentityFile::read(self.file.path()).expect("valid")),
            recovery: None,
        }
    }
}

fn passphrase(text: &str) -> Opener {
    Opener {
        secret: Secret::Passphrase(Passphrase::new(text).expect("valid")),
        recovery: None,
    }
}

fn creation(protection: Protection) -> Creation {
    Creation {
        protection,
        label: "first".to_owned(),
        now: "2026-11-28T15:00:00Z".parse().expect("a time"),
    }
}

fn creation_for(person: &Person) -> Creation {
    creation(Protection::Recipients(vec![
        person.public.parse().expect("valid"),
    ]))
}

/// Creates a repository for a person.
fn created(store: &dyn ObjectStore, person: &Person) -> PackResult<NewPack> {
    PackRepository::create_in(WHERE, store, &creation_for(person), &Stop::default())
}

fn opened(store: &Arc<MemoryObjects>) -> PackResult<PackRepository> {
    PackRepository::open_in(WHERE, Arc::clone(store) as Arc<dyn ObjectStore>, &Stop::default())
}
