//! Changed, missing and exchanged objects: reading gives the right bytes or an error that names
//! what is wrong, never wrong bytes.

use super::lab::{C, Lab, Root, data_block, faults, noise, read, write, write_full};
use crate::model::stop::Stop;
use crate::repo::pack::description::Cipher;

/// A repository with two generations of a disk, in several packs and two index objects.
fn filled(cipher: Cipher) -> (Lab, Vec<(Root, Vec<u8>)>) {
    let mut lab = Lab::new(2 * C, 4 * C);
    lab.cipher = cipher;
    let data = lab.data();
    let mut bytes = noise(1, 10 * C);
    bytes[..2 * C].fill(7);
    let (parent, _) = write_full(&data, &bytes, 4 * C);
    let before = bytes.clone();
    bytes[3 * C..4 * C].copy_from_slice(&noise(2, C));
    let block = data_block(3 * C as u64, &bytes[3 * C..4 * C]);
    let (root, _) = write(&data, bytes.len() as u64, Some(parent), [block]);
    (lab, vec![(parent, before), (root, bytes)])
}

/// Reads both generations. Errors must name one of these texts.
fn assert_right_or_named(lab: &Lab, disks: &[(Root, Vec<u8>)], names: &[&str], what: &str) -> usize {
    let is_named = |error: &str| names.iter().any(|name| error.contains(name));
    let data = match lab.open() {
        Ok(data) => data,
        Err(error) => {
            assert!(is_named(&error.to_string()), "{what}: {error}");
            return disks.len();
        }
    };
    let mut failed = 0;
    for (root, bytes) in disks {
        let result = read(&data, *root, 0);
        let is_faulty = result.is_err();
        match result {
            Ok(found) => assert!(found == *bytes, "{what}: wrong bytes"),
            Err(error) => {
                assert!(is_named(&error), "{what}: {error}");
                failed += 1;
            }
        }
        let found = faults(&data, *root, true);
        // A pack that is cut off may still have the blocks.
        assert!(!found.is_empty() || !is_faulty, "{what}");
        assert!(
            found.iter().all(|fault| is_named(&fault.what)),
            "{what}: {found:?}"
        );
        if let Ok(disk) = data.disk(root.0, root.1, Stop::default()) {
            let mut out = vec![0; bytes.len()];
            if disk.read_at(&mut out, 0).is_ok() {
                assert!(out == *bytes, "{what}: wrong bytes");
            }
            let mut wrong = bytes.clone();
            wrong[5] ^= 1;
            assert!(!disk.holds(&wrong, 0).unwrap_or(false), "{what}");
        }
    }
    failed
}

fn ciphers() -> [Cipher; 2] {
    [Cipher::XChaCha20Poly1305, Cipher::None]
}

#[test]
fn flipped_bytes_are_noticed() {
    for cipher in ciphers() {
        let (lab, disks) = filled(cipher);
        let names = lab.store.names("");
        let mut failed = 0;
        for name in &names {
            let whole = lab.store.state().objects[name].clone();
            // Places everywhere, and more of them at both ends.
            let step = (whole.len() / 6).max(1);
            let ends = (0..60)
                .step_by(13)
                .flat_map(|n| [n, whole.len().saturating_sub(1 + n)]);
            for place in (0..whole.len()).step_by(step).chain(ends) {
                let mut changed = whole.clone();
                let Some(byte) = changed.get_mut(place) else {
                    continue;
                };
                *byte ^= 1 << (place % 8);
                lab.store.state().objects.insert(name.clone(), changed);
                let what = format!("byte {place} of {name}");
                failed += assert_right_or_named(&lab, &disks, &[name], &what);
            }
            lab.store.state().objects.insert(name.clone(), whole);
        }
        assert!(failed > 20, "{failed}");
        assert_eq!(assert_right_or_named(&lab, &disks, &[], "restored"), 0);
    }
}

#[test]
fn cut_objects_are_noticed() {
    for cipher in ciphers() {
        let (lab, disks) = filled(cipher);
        for name in lab.store.names("") {
            let whole = lab.store.state().objects[&name].clone();
            for length in [
                0,
                1,
                47,
                48,
                49,
                whole.len() / 2,
                whole.len() - 49,
                whole.len() - 1,
            ] {
                let cut = whole[..length.min(whole.len())].to_vec();
                lab.store.state().objects.insert(name.clone(), cut);
                let what = format!("{length} bytes of {name}");
                assert_right_or_named(&lab, &disks, &[&name], &what);
            }
            let mut longer = whole.clone();
            longer.extend([0; 100]);
            lab.store.state().objects.insert(name.clone(), longer);
            assert_right_or_named(&lab, &disks, &[&name], "longer");
            lab.store.state().objects.insert(name, whole);
        }
    }
}

#[test]
fn exchanged_objects_are_noticed() {
    for cipher in ciphers() {
        let (lab, disks) = filled(cipher);
        let names = lab.store.names("");
        let mut failed = 0;
        for one in &names {
            for other in names.iter().filter(|other| *other != one) {
                let (first, second) = {
                    let state = lab.store.state();
                    (state.objects[one].clone(), state.objects[other].clone())
                };
                lab.store.state().objects.insert(one.clone(), second.clone());
                failed += assert_right_or_named(&lab, &disks, &[one], "copied");
                lab.store.state().objects.insert(other.clone(), first.clone());
                failed += assert_right_or_named(&lab, &disks, &[one, other, "block "], "exchanged");
                lab.store.state().objects.insert(one.clone(), first);
                lab.store.state().objects.insert(other.clone(), second);
            }
        }
        assert!(failed > names.len(), "{failed}");
    }
}

/// A deleted index object is replaced by the tables of the packs.
#[test]
fn deleted_objects_are_noticed() {
    for cipher in ciphers() {
        let (lab, disks) = filled(cipher);
        for name in lab.store.names("") {
            let whole = lab.store.state().objects.remove(&name).expect("it is there");
            let failed = assert_right_or_named(&lab, &disks, &[&name, "block "], &name);
            assert_eq!(failed == 0, name.starts_with("index/"), "{name}");
            lab.store.state().objects.insert(name, whole);
        }
    }
}

#[test]
fn objects_of_another_repository_are_refused() {
    let (lab, disks) = filled(Cipher::XChaCha20Poly1305);
    let (mut other, _) = filled(Cipher::XChaCha20Poly1305);
    other.key = crate::repo::pack::keys::MasterKey::new().expect("random");
    other.store.state().objects.clear();
    write_full(&other.data(), &noise(9, 4 * C), C);
    let foreign = other.store.names("index/").pop().expect("one");
    let content = other.store.state().objects[&foreign].clone();
    lab.store.state().objects.insert(foreign.clone(), content);
    assert_eq!(assert_right_or_named(&lab, &disks, &[], "foreign"), 0);
    assert_eq!(lab.data().damaged_index(), [foreign]);
}
