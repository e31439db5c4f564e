//! vmsnap's check of images compared with `qemu-img check`.
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait for them")]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use vmsnap::image::qcow2::Image;
use vmsnap::image::qcow2::check::check;
use vmsnap::model::stop::Stop;

use crate::support::{qemu_io, run, temp_dir};

/// Whether vmsnap finds the image sound.
fn is_sound(path: &Path) -> bool {
    let file = File::open(path).expect("it can be opened");
    match Image::open(file, path) {
        Ok(image) => check(&image, &Stop::default()).is_ok_and(|faults| faults.is_empty()),
        Err(_) => false,
    }
}

/// Whether QEMU finds the image sound: no corruption and no leaked clusters.
fn is_sound_for_qemu(path: &Path) -> bool {
    let output = Command::new("qemu-img")
        .args(["check", "-q", "-f", "qcow2"])
        .arg(path)
        .output()
        .expect("qemu-img must be installed");
    output.status.success()
}

fn make(path: &Path, options: &str) {
    let text = path.to_str().expect("a plain path");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, text, "20M"],
    );
    let commands = [
        "write -P 1 0 3M",
        "write -P 2 7M 64k",
        "write -z 9M 1M",
        "discard 1M 1M",
    ];
    qemu_io(path, "qcow2", &commands.map(str::to_owned));
}

#[test]
fn sound_images_of_every_geometry_are_sound() {
    let folder = temp_dir();
    for (cluster, bits) in [
        ("512", 16),
        ("4k", 1),
        ("64k", 2),
        ("64k", 16),
        ("64k", 64),
        ("2M", 8),
    ] {
        let path = folder.path().join(format!("{cluster}-{bits}.qcow2"));
        make(
            &path,
            &format!("cluster_size={cluster},refcount_bits={bits},compat=1.1"),
        );
        assert!(is_sound_for_qemu(&path), "{}", path.display());
        assert!(is_sound(&path), "{}", path.display());
    }
}

#[test]
fn every_fault_that_qemu_img_check_finds_is_found() {
    let folder = temp_dir();
    let path = folder.path().join("sound.qcow2");
    make(&path, "cluster_size=4k,refcount_bits=16,compat=1.1");
    let sound = fs::read(&path).expect("it can be read");
    let number = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().expect("eight bytes")) as usize;
    let l1 = number(40);
    let l2 = number(l1) & 0x00ff_ffff_ffff_fe00;
    let refcounts = number(48);
    let tables = [l1, l2, refcounts, number(refcounts)];
    let broken = folder.path().join("broken.qcow2");
    let (mut by_qemu, mut by_us) = (0, 0);
    for round in 0..240usize {
        let table = tables[round % tables.len()];
        // Only the first entries of a table are in use, so only their bits are flipped.
        let bit = round.wrapping_mul(2_654_435_761) % (24 * 64);
        let mut bytes = sound.clone();
        bytes[table + bit / 8] ^= 1 << (bit % 8);
        fs::write(&broken, &bytes).expect("it can be written");
        let (ours, qemus) = (is_sound(&broken), is_sound_for_qemu(&broken));
        assert!(
            qemus || !ours,
            "bit {bit} of the table at {table}: QEMU finds the fault, vmsnap does not"
        );
        by_qemu += usize::from(!qemus);
        by_us += usize::from(!ours);
    }
    assert!(
        by_qemu > 100 && by_us >= by_qemu,
        "of 240 flips QEMU found {by_qemu}, vmsnap {by_us}"
    );
}

#[test]
fn images_that_qemu_compressed_are_sound() {
    let folder = temp_dir();
    let raw = folder.path().join("plain.raw");
    let disk: Vec<u8> = (0..9_000_000u32).map(|n| (n / 1000) as u8).collect();
    fs::write(&raw, disk).expect("it can be written");
    for (cluster, bits) in [("512", 16), ("4k", 32), ("64k", 16), ("2M", 16)] {
        let path = folder.path().join(format!("{cluster}.qcow2"));
        let options = format!("compression_type=zstd,cluster_size={cluster},refcount_bits={bits}");
        let text = path.to_str().expect("a plain path");
        let from = raw.to_str().expect("a plain path");
        run(
            "qemu-img",
            &["convert", "-c", "-O", "qcow2", "-o", &options, from, text],
        );
        assert!(is_sound_for_qemu(&path) && is_sound(&path), "{options}");
    }
}
