//! Tests of the structure check on sound images and on images with one fault.

use std::fs::File;

use super::check::{StructureFault, check, check_by};
use super::layout::ENTRY_BYTES;
use super::{Image, Qcow2Options};
use crate::image::samples::{C, compressed_image, data, image, memory_file, options, zero};
use crate::model::stop::{Stop, StopReason};

const SIZE: u64 = 40 * 1024 * 1024 + 1536;

/// An image with data, a hole, zeroes, and a last cluster that the disk's end cuts short.
fn sample(backing: Option<&str>) -> Vec<u8> {
    let last = SIZE - SIZE % C as u64;
    let blocks = [
        data(0, &[1; 3 * C]),
        zero(10 * C as u64, 2 * C as u64),
        data(20 * C as u64, &[2; C]),
        data(last, &[3; 1536]),
    ];
    let options: Qcow2Options = options(SIZE, backing);
    let (file, _) = image(options, blocks);
    crate::image::samples::bytes_of(&file)
}

/// The same kinds of data, some of them compressed.
fn compressed_sample() -> Vec<u8> {
    let mut noise = vec![0; 2 * C];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let last = SIZE - SIZE % C as u64;
    let blocks = [
        data(0, &[1; 3 * C]),
        data(5 * C as u64, &noise),
        data(20 * C as u64, &[2; C]),
        data(last, &[3; 1536]),
    ];
    let (file, written) = compressed_image(options(SIZE, None), blocks);
    assert!(written.is_compressed);
    crate::image::samples::bytes_of(&file)
}

fn faults_of(bytes: &[u8]) -> Vec<StructureFault> {
    let file: File = memory_file(bytes);
    let image = Image::open(file, "sample.qcow2").expect("its header can be read");
    check(&image, &Stop::default()).expect("it can be read")
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_be_bytes());
}

/// Where the L1 table, the first L2 table, the refcount table and the first refcount block are.
fn places(bytes: &[u8]) -> [usize; 4] {
    let l1 = number(bytes, 40) as usize;
    let l2 = (number(bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let refcounts = number(bytes, 48) as usize;
    [l1, l2, refcounts, number(bytes, refcounts) as usize]
}

#[test]
fn what_the_writer_writes_is_sound() {
    assert_eq!(faults_of(&sample(None)), []);
    assert_eq!(faults_of(&sample(Some("../a/vda.qcow2"))), []);
    assert_eq!(faults_of(&compressed_sample()), []);
}

#[test]
fn every_kind_of_fault_is_reported_with_its_place() {
    let sound = sample(Some("../a/vda.qcow2"));
    let [l1, l2, refcounts, block] = places(&sound);
    let entry = |index: usize| l2 + index * ENTRY_BYTES as usize;
    let second = number(&sound, entry(1));
    let cases: [(&str, usize, u64, &str); 8] = [
        ("two uses of a cluster", entry(0), second, "used twice"),
        ("data outside", entry(0), 1 << 63 | 1 << 40, "outside the file"),
        (
            "no copied flag",
            entry(0),
            number(&sound, entry(0)) & !(1 << 63),
            "lacks the copied flag",
        ),
        ("reserved bits", entry(0), second | 2, "reserved bits"),
        ("a lost table", l1, 0, "refcount 1 instead of 0"),
        ("a table outside", l1, 1 << 63 | 1 << 40, "outside the file"),
        ("a lost block", refcounts, 0, "refcount 0 instead of 1"),
        (
            "counts of four clusters",
            block,
            0x0001_0002_0001_0001,
            "refcount 2 instead of 1",
        ),
    ];
    for (what, at, number, expected) in cases {
        let mut bytes = sound.clone();
        put(&mut bytes, at, number);
        let faults = faults_of(&bytes);
        let fault = faults.first().unwrap_or_else(|| panic!("{what} is not reported"));
        assert!(fault.what.contains(expected), "{what}: {faults:?}");
    }
    let mut bytes = sound;
    bytes[60..64].copy_from_slice(&1u32.to_be_bytes());
    assert!(faults_of(&bytes)[0].what.contains("snapshots"));
}

#[test]
fn every_fault_of_compressed_clusters_is_reported() {
    let sound = compressed_sample();
    let [_, l2, _, block] = places(&sound);
    let entry = |index: usize| l2 + index * 8;
    let [first, plain] = [0, 5].map(|index| number(&sound, entry(index)));
    let plain_at = plain & 0x00ff_ffff_ffff_fe00;
    let compressed_at = (first & ((1 << 54) - 1)) / C as u64 * C as u64;
    let cases: [(&str, usize, u64, &str); 8] = [
        (
            "outside",
            entry(0),
            1 << 62 | 1 << 40,
            "beyond the end of the file",
        ),
        ("too long", entry(0), first | 0xff << 54, "used twice"),
        ("the copied flag", entry(0), first | 1 << 63, "copied flag"),
        ("the same twice", entry(1), first, "overlap"),
        ("one within another", entry(0), first | 1 << 54, "overlap"),
        ("in the header", entry(1), 1 << 62 | 100, "used twice"),
        (
            "in plain data",
            entry(1),
            1 << 62 | (plain_at + 100),
            "used twice",
        ),
        (
            "plain data over it",
            entry(5),
            1 << 63 | compressed_at,
            "used twice",
        ),
    ];
    for (what, at, number, expected) in cases {
        let mut bytes = sound.clone();
        put(&mut bytes, at, number);
        let faults = faults_of(&bytes);
        let told = faults.iter().any(|fault| fault.what.contains(expected));
        assert!(told, "{what}: {faults:?}");
    }
    let mut bytes = sound.clone();
    bytes[104] = 0;
    bytes[79] = 0;
    assert!(faults_of(&bytes)[0].what.contains("zlib"));
    let count = sound[block..]
        .chunks(2)
        .position(|count| count > [0, 1].as_slice());
    let shared = count.expect("some clusters are used more than once");
    let mut bytes = sound;
    bytes[block + 2 * shared + 1] += 1;
    assert!(faults_of(&bytes)[0].what.contains("has the refcount"));
}

#[test]
fn a_file_is_counted_in_several_passes() {
    let sound = compressed_sample();
    let [_, _, _, block] = places(&sound);
    let clusters = sound.len().div_ceil(C) as u64;
    let faults = |bytes: &[u8], at_once: u64| {
        let image = Image::open(memory_file(bytes), "sample.qcow2").expect("it is one");
        check_by(&image, &Stop::default(), clusters, at_once).expect("it can be read")
    };
    let mut damaged = sound.clone();
    damaged[block + 2 * (clusters as usize - 1) + 1] ^= 2;
    for at_once in 1..=clusters {
        assert_eq!(faults(&sound, at_once), [], "{at_once} at once");
        assert_eq!(faults(&damaged, at_once).len(), 1, "{at_once} at once");
    }
}

#[test]
fn a_flipped_bit_in_any_used_place_of_a_table_is_found() {
    let sound = sample(None);
    let [l1, l2, refcounts, block] = places(&sound);
    let clusters = sound.len() / C;
    let used_entries = [0, 1, 2, 20].map(|index| l2 + index * 8);
    let tables = [l1, refcounts].into_iter().chain(used_entries);
    let mut bits: Vec<usize> = tables.flat_map(|at| at * 8..(at + 8) * 8).collect();
    bits.extend(block * 8..(block + 2 * clusters) * 8);
    for bit in bits {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // The zero flag on a cluster of data makes a sound image of another disk: only the digest
        // finds that.
        let is_zero_flag = used_entries.iter().any(|at| bit == (at + 7) * 8);
        let faults = faults_of(&bytes);
        assert_eq!(faults.is_empty(), is_zero_flag, "bit {bit}: {faults:?}");
    }
}

#[test]
fn a_wish_to_stop_ends_it() {
    let file = memory_file(&sample(None));
    let image = Image::open(file, "sample.qcow2").expect("it is one");
    let stop = Stop::default();
    stop.request(StopReason::Interrupted);
    assert!(check(&image, &stop).is_err());
}
