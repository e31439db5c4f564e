//! The local cache of the index: missing, damaged, in use, or of another repository.

use std::fs;
use std::path::Path;

use super::lab::{C, Lab, Root, assert_disk, noise, write_full};
use crate::model::stop::Stop;

/// A repository with a cache in this folder, and a disk in it.
fn filled(folder: &Path) -> (Lab, Root, Vec<u8>) {
    let mut lab = Lab::new(2 * C, 4 * C);
    lab.cache = Some(folder.join("of/vmsnap"));
    let bytes = noise(1, 30 * C);
    let (root, _) = write_full(&lab.data(), &bytes, 4 * C);
    (lab, root, bytes)
}

fn file_of(lab: &Lab) -> std::path::PathBuf {
    let folder = lab.cache.as_ref().expect("it has one");
    let mut files = fs::read_dir(folder).expect("a folder");
    files.next().expect("one file").expect("it reads").path()
}

#[test]
fn a_cache_is_used_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (lab, root, bytes) = filled(folder.path());
    let before = lab.store.state().calls;
    let data = lab.data();
    let lists = lab.store.names("index/").len().div_ceil(2);
    assert_eq!(lab.store.state().calls - before, lists, "no index object is read");
    assert_disk(&data, root, 0, &bytes);
}

#[test]
fn a_deleted_or_damaged_cache_is_filled_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (lab, root, bytes) = filled(folder.path());
    let file = file_of(&lab);
    let sound = fs::read(&file).expect("it reads");
    fs::remove_file(&file).expect("it is removed");
    assert_disk(&lab.data(), root, 0, &bytes);
    for content in [
        vec![],
        vec![7; 100],
        noise(3, 100_000),
        sound[..sound.len() / 2].to_vec(),
    ] {
        fs::write(&file, content).expect("it is written");
        assert_disk(&lab.data(), root, 0, &bytes);
    }
}

/// Damage within the file is an error about the cache at most. The next run works again.
#[test]
fn damage_within_the_cache_is_never_believed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (lab, root, bytes) = filled(folder.path());
    let file = file_of(&lab);
    let sound = fs::read(&file).expect("it reads");
    for seed in 0..150 {
        let mut changed = sound.clone();
        let places = noise(seed, 64);
        for place in places.chunks(8) {
            let place = u64::from_le_bytes(place.try_into().expect("eight bytes"));
            let place = place as usize % changed.len();
            changed[place] ^= 1 << (seed % 8);
        }
        fs::write(&file, &changed).expect("it is written");
        if let Ok(data) = lab.open() {
            match super::lab::read(&data, root, 0) {
                Ok(found) => assert!(found == bytes, "wrong bytes"),
                Err(error) => assert!(error.contains("cache"), "{error}"),
            }
        }
        let _ = fs::remove_file(&file);
        assert_disk(&lab.data(), root, 0, &bytes);
    }
}

#[test]
fn two_processes_use_one_repository_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (lab, root, bytes) = filled(folder.path());
    let first = lab.data();
    let second = lab.data();
    assert_disk(&second, root, 0, &bytes);
    let more = noise(2, 9 * C);
    let (other, _) = write_full(&second, &more, C);
    // What the first does not know yet is found nevertheless.
    assert_disk(&first, other, 0, &more);
    first.refresh(&Stop::default()).expect("it refreshes");
    assert_disk(&first, other, 0, &more);
}

#[test]
fn a_cache_of_another_key_is_replaced() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (lab, root, bytes) = filled(folder.path());
    let mut other = Lab::new(2 * C, 4 * C);
    other.cache = lab.cache.clone();
    other.key = crate::repo::pack::keys::MasterKey::new().expect("random");
    let (root_of_other, _) = write_full(&other.data(), &bytes, C);
    assert_disk(&other.data(), root_of_other, 0, &bytes);
    assert_disk(&lab.data(), root, 0, &bytes);
}

#[test]
fn without_a_folder_the_cache_is_temporary() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut lab, root, bytes) = filled(folder.path());
    let file = folder.path().join("file");
    fs::write(&file, b"x").expect("it is written");
    lab.cache = Some(file.join("below"));
    assert_disk(&lab.data(), root, 0, &bytes);
}

#[test]
fn blocks_of_a_removed_index_object_are_forgotten() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (lab, root, bytes) = filled(folder.path());
    let old = lab.store.names("index/");
    // Another process with no knowledge of the first stores the same blocks again.
    let hidden: Vec<_> = old
        .iter()
        .map(|name| {
            (
                name.clone(),
                lab.store.state().objects.remove(name).expect("it is there"),
            )
        })
        .collect();
    let (again, _) = write_full(&lab.data(), &bytes, 4 * C);
    assert_eq!(again, root);
    lab.store.state().objects.extend(hidden);
    drop(lab.data());
    // Now both list the blocks. Without the first, those of the second stay.
    for name in &old {
        lab.store.state().objects.remove(name);
    }
    assert_disk(&lab.data(), root, 0, &bytes);
    for name in lab.store.names("") {
        lab.store.state().objects.remove(&name);
    }
    assert!(lab.data().disk(root.0, root.1, Stop::default()).is_err());
}
