//! Restores of the golden repositories with `qemu-img` alone.

use std::fs;
use std::path::{Path, PathBuf};

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

/// The command is that of `docs/format.md`.
fn restored_by_qemu_img(golden: &Golden) {
    let temp = temp_dir();
    golden.unpack(temp.path());
    for ((id, ..), disks) in golden.points.iter().zip((golden.disks)()) {
        let folder = folder_of(golden, temp.path(), id);
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

#[test]
fn qemu_img_alone_restores_every_point_of_format_1() {
    restored_by_qemu_img(&FORMAT_1);
}

#[test]
fn qemu_img_alone_restores_every_point_of_format_2() {
    restored_by_qemu_img(&FORMAT_2);
}
