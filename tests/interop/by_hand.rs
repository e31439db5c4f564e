//! Restores of the golden repositories with `qemu-img` alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmsnap::io::DiskStore;
use vmsnap::model::stop::Stop;
use vmsnap::repo::{FolderRepository, Merge, Merged, Repository};

use crate::golden::{FORMAT_1, FORMAT_2, Golden};
use crate::support::{run, temp_dir};

/// The folder of a restore point: below a period or a copy, with its id and its level as a name.
fn folder_of(golden: &Golden, root: &Path, id: &str) -> PathBuf {
    let domain = root.join("golden");
    let periods = fs::read_dir(&domain).unwrap_or_else(|error| panic!("{}: {error}", golden.folder));
    let mut folders = periods.flat_map(|period| {
        let period = period.expect("an entry").path();
        [format!("{id}.full"), format!("{id}.inc")].map(|name| period.join(name))
    });
    let found = folders.find(|folder| folder.join("manifest.json").is_file());
    found.unwrap_or_else(|| panic!("{} has no restore point {id}", golden.folder))
}

fn restored_by_qemu_img(golden: &Golden) {
    let temp = temp_dir();
    golden.unpack(temp.path());
    assert_restores(golden, temp.path(), |_| true);
}

/// Restores these restore points. The command is that of `docs/format.md`.
fn assert_restores(golden: &Golden, root: &Path, is_there: impl Fn(&str) -> bool) {
    let temp = temp_dir();
    for ((id, ..), disks) in golden.points.iter().zip((golden.disks)()) {
        if !is_there(id) {
            continue;
        }
        let folder = folder_of(golden, root, id);
        for (target, bytes) in ["vda", "vdb"].into_iter().zip(disks) {
            let image = folder.join(target).with_extension("qcow2");
            let image = image.to_str().expect("a plain path");
            run("qemu-img", &["check", "-q", "-f", "qcow2", image]);
            let raw = temp.path().join("restored.raw");
            let to = raw.to_str().expect("a plain path");
            run("qemu-img", &["convert", "-O", "raw", image, to]);
            assert!(fs::read(&raw).expect("readable") == bytes, "{id} {target}");
        }
    }
}

/// Merges restore points of a repository into the one with the last of these ids.
fn merge(root: &Path, ids: &[String]) {
    let repository = FolderRepository::open(root, Arc::new(DiskStore)).expect("it opens");
    let domain = repository.domain("golden").expect("a name");
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let (into, run) = ids.split_last().expect("some");
    let merge = Merge {
        run,
        into,
        now: history.kept[0].manifest.point.time,
        stop: &Stop::default(),
        watch: &(),
    };
    let merged = writer.merge_points(&history, &merge).expect("merged");
    assert_eq!(merged, Merged::Completely);
}

#[test]
fn qemu_img_alone_restores_merged_chains() {
    for golden in [&FORMAT_1, &FORMAT_2] {
        let ids: Vec<String> = golden.points.iter().map(|(id, ..)| id.to_string()).collect();
        // Into the second, whose child names its folder; then everything into the third.
        let merges: [&[(usize, usize)]; 4] = [&[(0, 1)], &[(0, 1), (1, 2)], &[(1, 2)], &[(0, 2)]];
        for merges in merges {
            let temp = temp_dir();
            golden.unpack(temp.path());
            let mut gone: Vec<String> = Vec::new();
            for (first, into) in merges {
                merge(temp.path(), &ids[*first..=*into]);
                gone.extend_from_slice(&ids[*first..*into]);
            }
            assert_restores(golden, temp.path(), |id| !gone.iter().any(|gone| gone == id));
        }
    }
}

#[test]
fn qemu_img_alone_restores_every_point_of_format_1() {
    restored_by_qemu_img(&FORMAT_1);
}

#[test]
fn qemu_img_alone_restores_every_point_of_format_2() {
    restored_by_qemu_img(&FORMAT_2);
}
