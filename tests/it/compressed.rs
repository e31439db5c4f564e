//! Restore points whose images have compressed clusters.

use std::fs;

use vmsnap::model::compression::Compression;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Options, Outcome, Which, verify};
use vmsnap::ops::{Class, backup, restore};

use crate::forged::rewrite;
use crate::lab::{CLUSTER, InFolder, Lab, read_qcow2};

const CLUSTERS: usize = 24;

/// Bytes that cannot be compressed, other ones for each seed.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// A domain whose disk has text, noise and nothing.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTERS * CLUSTER)]);
    lab.host.disk("vm1", "vda", |disk| {
        disk.write(0, &b"all work and no play makes a dull disk. ".repeat(9000));
        disk.write(8 * CLUSTER, &noise(1, 5 * CLUSTER));
    });
    lab
}

/// Changes some text and some noise.
fn change(lab: &Lab, round: u8) {
    lab.host.disk("vm1", "vda", |disk| {
        disk.write(CLUSTER, &[round; 3 * CLUSTER]);
        disk.write(9 * CLUSTER + 700, &noise(round, CLUSTER));
    });
}

fn with(compression: Compression) -> backup::Options {
    backup::Options {
        compression,
        ..Lab::options()
    }
}

fn proved(lab: &Lab, deep: bool) -> Outcome {
    let options = Options {
        which: Which::All,
        deep,
        verified_since: None,
        now: lab.now.timestamp(),
    };
    verify("vm1", lab.repo.as_ref(), &options, &Silent, &Stop::default()).expect("there are restore points")
}

#[test]
fn compressed_and_plain_points_follow_each_other() {
    let mut lab = lab();
    let methods = ["zstd", "none", "zstd:19", "zstd:1", "none"].map(|text| text.parse().expect("a method"));
    let mut disks = Vec::new();
    for (round, method) in (1..).zip(methods) {
        change(&lab, round);
        let outcome = lab.backup_with("vm1", &with(method)).expect("a backup");
        let is_plain = method == Compression::None;
        let compression = outcome.point.disks[0].compression.as_deref();
        assert_eq!(compression, (!is_plain).then_some("zstd"));
        disks.push(lab.disk("vm1", "vda"));
    }
    let history = lab.history("vm1");
    let formats: Vec<u32> = history.kept.iter().map(|kept| kept.manifest.format).collect();
    assert_eq!(formats, [2, 1, 2, 2, 1]);
    assert!(
        history.kept[1..]
            .iter()
            .all(|kept| kept.manifest.point.level == Level::Incremental)
    );
    for (kept, disk) in history.kept.iter().zip(&disks) {
        let id = &kept.manifest.point.id;
        let found = lab.restored("vm1", id, "vda").expect("it is sound");
        assert!(found == *disk, "restore point {id}");
    }
    assert!(proved(&lab, true).is_sound());
}

#[test]
fn a_compressed_point_is_smaller_and_says_both_sizes() {
    let mut lab = lab();
    let plain = lab.backup_with("vm1", &Lab::plain()).expect("a backup");
    let mut lab = self::lab();
    let packed = lab.backup("vm1").expect("a backup");
    assert_eq!(packed.point.data_bytes(), plain.point.data_bytes());
    let saved = plain.file_bytes - packed.file_bytes;
    assert!(saved >= 4 * CLUSTER as u64, "{saved} bytes");
}

#[test]
fn data_that_do_not_shrink_keep_the_older_format() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTERS * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &noise(3, CLUSTERS * CLUSTER)));
    let outcome = lab.backup("vm1").expect("a backup");
    assert!(!outcome.point.is_compressed());
    assert_eq!(lab.history("vm1").kept[0].manifest.format, 1);
}

#[test]
fn restored_qcow2_images_are_plain() {
    let mut lab = lab();
    lab.backup("vm1").expect("a backup");
    let to = lab.free_path();
    let options = restore::Options {
        format: Some(restore::Format::Qcow2),
        ..lab.restoring()
    };
    let plan = restore::plan("vm1", lab.repo.as_ref(), None, &options).expect("a plan");
    let stop = Stop::default();
    restore::restore("vm1", plan, &lab.means(&Silent, &stop)).expect("restored");
    let image = fs::read_dir(&to)
        .expect("a folder")
        .next()
        .expect("a disk")
        .expect("readable");
    let bytes = fs::read(image.path()).expect("readable");
    assert_eq!(bytes[72..80], [0; 8], "no incompatible feature");
    assert!(read_qcow2(&image.path()) == lab.disk("vm1", "vda"));
}

/// Where the first compressed cluster of a file lies, by its magic number.
fn first_frame(image: &[u8]) -> usize {
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let found = image.windows(4).position(|bytes| bytes == magic);
    found.expect("a frame of zstd")
}

#[test]
fn damage_of_a_compressed_cluster_is_found() {
    let mut lab = lab();
    lab.backup("vm1").expect("a backup");
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    let sound = fs::read(&image).expect("readable");
    let frame = first_frame(&sound);
    let mut flipped = sound.clone();
    flipped[frame + 30] ^= 0x10;
    let cut = sound[..frame + 100].to_vec();
    for bytes in [flipped, cut] {
        fs::write(&image, &bytes).expect("written");
        for deep in [false, true] {
            assert!(!proved(&lab, deep).is_sound());
        }
        let error = lab.restored("vm1", "latest", "vda").expect_err("damaged");
        assert_eq!(error.class(), Class::Damaged, "{error}");
    }
    fs::write(&image, &sound).expect("written");
    assert!(proved(&lab, true).is_sound());
}

/// The digests say what a writer has written, not that it was right. Reading each disk does.
#[test]
fn frames_that_do_not_decompress_are_found() {
    let mut lab = lab();
    lab.backup("vm1").expect("a backup");
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    let sound = fs::read(&image).expect("readable");
    let frame = first_frame(&sound);
    for (place, byte) in [(frame, 0), (frame + 4, 0xff), (frame + 9, 0xff)] {
        let mut bytes = sound.clone();
        bytes[place] = byte;
        fs::write(&image, &bytes).expect("written");
        let digest = blake3::hash(&bytes).to_hex().to_string();
        rewrite(&lab, 0, |manifest| {
            let entry = manifest.files.iter_mut().find(|file| file.name == "vda.qcow2");
            let entry = entry.expect("listed");
            entry.blake3 = digest;
            entry.pieces = None;
        });
        let outcome = proved(&lab, true);
        let told = outcome.points[0]
            .damage
            .iter()
            .any(|damage| damage.what.contains("compressed cluster"));
        assert!(told, "byte {place}: {outcome:?}");
    }
}
