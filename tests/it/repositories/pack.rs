//! Pack repositories, in a folder and in an object store in memory.

use std::sync::Arc;

use vmsnap::io::DiskStore;
use vmsnap::model::stop::Stop;
use vmsnap::repo::{
    Creation, HostFolders, ObjectStore, Opener, PackLocation, PackRepository, Protection, Repository,
    UnlockedHost, UnlockedPack,
};
use vmsnap::testkit::MemoryObjects;

use super::kinds::{Kind, is_damage, read_disk};
use crate::pack::Person;

/// The host of a repository whose folders are below this one.
pub fn host(folder: &std::path::Path) -> UnlockedHost {
    UnlockedHost {
        folders: HostFolders {
            state: Some(folder.join("state")),
            cache: Some(folder.join("cache")),
        },
        store: Arc::new(DiskStore),
    }
}

/// Creates a repository without encryption in an object store.
pub fn create(objects: &dyn ObjectStore) {
    let creation = creation(Protection::None);
    PackRepository::create_in("memory:", objects, &creation, &Stop::default()).expect("created");
}

/// Opens a repository without encryption in an object store.
pub fn open(objects: &Arc<MemoryObjects>, host: UnlockedHost) -> UnlockedPack {
    let objects = Arc::clone(objects) as Arc<dyn ObjectStore>;
    let stop = Stop::default();
    let pack = PackRepository::open_in("memory:", objects, &stop).expect("it is there");
    pack.unlocked(None, host, &stop).expect("it opens")
}

fn creation(protection: Protection) -> Creation {
    Creation {
        protection,
        label: String::new(),
        now: "2026-11-28T15:00:00Z".parse().expect("a time"),
    }
}

/// A repository in a folder, encrypted for one person.
pub struct PackFolder {
    folder: tempfile::TempDir,
    location: PackLocation,
    person: Person,
}

impl Default for PackFolder {
    fn default() -> PackFolder {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let location = PackLocation::Folder(folder.path().join("pack"));
        let person = Person::new();
        let recipients = vec![person.public.parse().expect("valid")];
        let creation = creation(Protection::Recipients(recipients));
        PackRepository::create(&location, &creation, &Stop::default()).expect("created");
        PackFolder {
            folder,
            location,
            person,
        }
    }
}

impl PackFolder {
    /// The folder of the objects.
    pub fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("pack")
    }

    /// The names and the content of all objects.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let root = self.folder.path().join("pack");
        let names = crate::lab::tree(&root)
            .into_iter()
            .filter(|name| root.join(name).is_file());
        names
            .map(|name| {
                let content = std::fs::read(root.join(&name)).expect("a file");
                (name, content)
            })
            .collect()
    }
}

impl Kind for PackFolder {
    fn repository(&self) -> Box<dyn Repository> {
        let stop = Stop::default();
        let pack = PackRepository::open(&self.location, &stop).expect("it is there");
        let opener: Opener = self.person.opener();
        let unlocked = pack.unlocked(Some(&opener), host(self.folder.path()), &stop);
        Box::new(unlocked.expect("it opens"))
    }

    fn damage(&self, domain: &str, id: &str, target: &str) {
        let root = self.folder.path().join("pack");
        let packs = crate::lab::tree(&root)
            .into_iter()
            .filter(|name| name.starts_with("packs/"));
        let packs = packs.filter(|name| root.join(name).is_file());
        let read = |name: &str| std::fs::read(root.join(name)).expect("a pack");
        let write = |name: &str, content: &[u8]| std::fs::write(root.join(name), content).expect("written");
        damage(self, packs.collect(), &read, &write, (domain, id, target));
    }

    fn is_complete(&self) -> bool {
        true
    }
}

/// A repository in memory, which is not encrypted.
pub struct PackObjects {
    pub folder: tempfile::TempDir,
    pub objects: Arc<MemoryObjects>,
}

impl Default for PackObjects {
    fn default() -> PackObjects {
        let objects = Arc::new(MemoryObjects::default());
        create(objects.as_ref());
        PackObjects {
            folder: tempfile::tempdir().expect("a temporary folder"),
            objects,
        }
    }
}

impl Kind for PackObjects {
    fn repository(&self) -> Box<dyn Repository> {
        Box::new(open(&self.objects, host(self.folder.path())))
    }

    fn damage(&self, domain: &str, id: &str, target: &str) {
        let packs = self
            .objects
            .names()
            .into_iter()
            .filter(|name| name.starts_with("packs/"));
        let read = |name: &str| self.objects.content(name).expect("a pack");
        let write = |name: &str, content: &[u8]| self.objects.insert(name, content);
        damage(self, packs.collect(), &read, &write, (domain, id, target));
    }

    fn is_complete(&self) -> bool {
        true
    }
}

/// Changes a byte of one of the packs, so that this disk can no longer be read.
fn damage(
    kind: &dyn Kind,
    packs: Vec<String>,
    read: &dyn Fn(&str) -> Vec<u8>,
    write: &dyn Fn(&str, &[u8]),
    (domain, id, target): (&str, &str, &str),
) {
    for pack in packs {
        let sound = read(&pack);
        for place in (0..sound.len()).step_by(64) {
            let mut damaged = sound.clone();
            damaged[place] ^= 1;
            write(&pack, &damaged);
            let domain = kind.repository().domain(domain).expect("a name");
            if read_disk(domain.as_ref(), id, target).is_err_and(|error| is_damage(&error)) {
                return;
            }
            write(&pack, &sound);
        }
    }
    panic!("no pack holds data of {target} at {id}");
}
