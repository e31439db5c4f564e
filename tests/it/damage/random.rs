//! Random stories with one random change of their files: every restore gives the right bytes or an
//! error.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use vmsnap::ops::list::list;

use crate::lab::{CLUSTER, Lab, tree};

const SIZE: usize = 5 * CLUSTER + 1024;

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, Index, u8),
    Cut(Index, Index),
    Overwrite { with: Index, of: Index, at: Index },
    Delete(Index),
    ReplaceBy { file: Index, other: Index },
    Swap(Index, Index),
    MoveFile(Index, Index),
    RenameFolder(Index, Name),
    MoveFolder(Index, Index),
    CopyFolder(Index, Name),
    DeleteFolder(Index),
}

/// Names that a user may give to a renamed folder.
#[derive(Clone, Debug)]
enum Name {
    OtherEnding,
    OtherMoment,
    Anything,
    OtherPeriod,
}

impl Name {
    fn beside(&self, path: &Path) -> PathBuf {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let new = match self {
            Name::OtherEnding if name.ends_with(".inc") => name.replace(".inc", ".full"),
            Name::OtherEnding => name.replace(".full", ".inc"),
            Name::OtherMoment => name.replace("2026-11", "2026-12"),
            Name::Anything => format!("{name} (copy)"),
            Name::OtherPeriod => name.replace("monthly-2026", "monthly-2027"),
        };
        path.with_file_name(new)
    }
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        Just(Name::OtherEnding),
        Just(Name::OtherMoment),
        Just(Name::Anything),
        Just(Name::OtherPeriod)
    ]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        4 => (index(), index(), 0..8u8).prop_map(|(file, place, bit)| Mutation::Flip(file, place, bit)),
        2 => (index(), index()).prop_map(|(file, length)| Mutation::Cut(file, length)),
        2 => (index(), index(), index()).prop_map(|(with, of, at)| Mutation::Overwrite { with, of, at }),
        1 => index().prop_map(Mutation::Delete),
        2 => (index(), index()).prop_map(|(file, other)| Mutation::ReplaceBy { file, other }),
        2 => (index(), index()).prop_map(|(one, other)| Mutation::Swap(one, other)),
        1 => (index(), index()).prop_map(|(file, folder)| Mutation::MoveFile(file, folder)),
        2 => (index(), name()).prop_map(|(folder, name)| Mutation::RenameFolder(folder, name)),
        1 => (index(), index()).prop_map(|(folder, into)| Mutation::MoveFolder(folder, into)),
        2 => (index(), name()).prop_map(|(folder, name)| Mutation::CopyFolder(folder, name)),
        1 => index().prop_map(Mutation::DeleteFolder),
    ]
}

/// Applies a change to the files below `root`. Does nothing if the new path is already taken.
fn meddle(root: &Path, mutation: &Mutation) {
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = tree(root)
        .into_iter()
        .map(|path| root.join(path))
        .partition(|path| path.is_dir());
    let file = |index: &Index| index.get(&files).as_path();
    let folder = |index: &Index| index.get(&folders).as_path();
    let read = |path: &Path| fs::read(path).expect("readable");
    let write = |path: &Path, bytes: Vec<u8>| fs::write(path, bytes).expect("written");
    match mutation {
        Mutation::Flip(at, place, bit) => {
            let mut bytes = read(file(at));
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] ^= 1 << bit;
            }
            write(file(at), bytes);
        }
        Mutation::Cut(at, length) => {
            let mut bytes = read(file(at));
            bytes.truncate(length.index(bytes.len().max(1)));
            write(file(at), bytes);
        }
        Mutation::Overwrite { with, of, at } => {
            // A part of one file overwrites a part of another, as when a disk writes a block to the
            // wrong place.
            let mut bytes = read(file(of));
            let piece = read(file(with));
            let start = at.index(bytes.len().max(1)) / 512 * 512;
            let length = piece.len().min(bytes.len().saturating_sub(start)).min(4096);
            bytes[start..start + length].copy_from_slice(&piece[..length]);
            write(file(of), bytes);
        }
        Mutation::Delete(at) => fs::remove_file(file(at)).expect("removed"),
        Mutation::ReplaceBy { file: at, other } => write(file(at), read(file(other))),
        Mutation::Swap(one, other) => {
            let (first, second) = (read(file(one)), read(file(other)));
            write(file(one), second);
            write(file(other), first);
        }
        Mutation::MoveFile(at, into) => {
            let to = folder(into).join(file(at).file_name().expect("a name"));
            if !to.exists() {
                fs::rename(file(at), to).expect("moved");
            }
        }
        Mutation::RenameFolder(at, name) => {
            let to = name.beside(folder(at));
            if !to.exists() {
                fs::rename(folder(at), to).expect("renamed");
            }
        }
        Mutation::MoveFolder(at, into) => {
            let to = folder(into).join(folder(at).file_name().expect("a name"));
            if !to.exists() && !to.starts_with(folder(at)) {
                fs::rename(folder(at), to).expect("moved");
            }
        }
        Mutation::CopyFolder(at, name) => {
            let to = name.beside(folder(at));
            if !to.exists() {
                copy(folder(at), &to);
            }
        }
        Mutation::DeleteFolder(at) => fs::remove_dir_all(folder(at)).expect("removed"),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    for path in tree(from) {
        if from.join(&path).is_dir() {
            fs::create_dir(to.join(&path)).expect("made");
        } else {
            fs::copy(from.join(&path), to.join(&path)).expect("copied");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn restore_after_random_damage_is_right_or_an_error(
        points in 3..=6usize,
        turn in 1..6usize,
        writes in prop::collection::vec((0..SIZE - 9000, 1..9000usize, 0..=255u8), 6..20),
        mutation in mutation(),
    ) {
        let mut lab = Lab::new();
        lab.host.add_domain("vm1", &[("vda", SIZE)]);
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        let mut writes = writes.into_iter();
        for point in 0..points {
            for (at, length, byte) in writes.by_ref().take(3) {
                lab.host.disk("vm1", "vda", |disk| disk.write(at, &vec![byte; length]));
            }
            if point == turn {
                lab.pass(jiff::Span::new().months(1));
            }
            let outcome = lab.backup("vm1").expect("a backup");
            kept.push((outcome.point.id, lab.disk("vm1", "vda")));
        }
        meddle(&lab.root().join("vm1"), &mutation);
        let listed = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("readable");
        for point in &listed[0].points {
            prop_assert!(kept.iter().any(|(id, _)| *id == point.point.id), "{} was never made", point.point.id);
        }
        for (id, bytes) in &kept {
            let shown_whole = listed[0].points.iter().any(|point| point.point.id == *id && point.is_whole());
            match lab.restored("vm1", id, "vda") {
                Ok(restored) => prop_assert!(restored == *bytes, "wrong bytes at {}", id),
                Err(error) => {
                    // A point that is shown as whole fails only by a digest, never by a missing
                    // file.
                    prop_assert!(
                        !shown_whole || matches!(error.cause, vmsnap::ops::Cause::Copy(_)),
                        "{} is shown as whole: {}", id, error
                    );
                }
            }
        }
        lab.host.disk("vm1", "vda", |disk| disk.write(5, &[0x5a; 1000]));
        let next = lab.backup("vm1").expect("the next backup goes well");
        match lab.restored("vm1", &next.point.id, "vda") {
            Ok(restored) => prop_assert!(restored == lab.disk("vm1", "vda"), "wrong bytes in the new point"),
            Err(error) => prop_assert!(
                next.point.parent.is_some() && matches!(error.cause, vmsnap::ops::Cause::Copy(_)),
                "the new point: {}", error
            ),
        }
    }
}
