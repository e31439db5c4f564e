//! QEMU and imago read vmsnap's images; vmsnap reads QEMU's images.
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait for them")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use vmsnap::image::chain::{ChainImage, ChainSource, Recorded};
use vmsnap::image::file_digest;
use vmsnap::image::qcow2::{CompressingWriter, Image, Mapping, Qcow2Options, Qcow2Writer};
use vmsnap::image::raw::RawWriter;
use vmsnap::io::DirectFile;
use vmsnap::model::block::{Block, BlockError, BlockSink, BlockSource, CLUSTER, Content, Written};
use vmsnap::model::buffer::{Buffer, BufferPool};
use vmsnap::model::compression::{Compression, ZstdLevel};
use vmsnap::model::stop::Stop;

const C: usize = CLUSTER as usize;

/// A chain of three images of a disk that is written, zeroed and grown, and the disk's content at
/// each image.
struct Sample {
    dir: TempDir,
    images: Vec<(PathBuf, Written)>,
    disks: Vec<Vec<u8>>,
}

fn random_bytes(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub(crate) fn data(offset: usize, bytes: &[u8]) -> Block {
    let mut buffer = Buffer::alone(bytes.len());
    buffer.set_len(bytes.len());
    buffer.copy_from_slice(bytes);
    Block {
        offset: offset as u64,
        content: Content::Data(buffer),
    }
}

pub(crate) fn zero(offset: usize, length: usize) -> Block {
    Block {
        offset: offset as u64,
        content: Content::Zero(length as u64),
    }
}

pub(crate) fn new_file(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .expect("a new file")
}

/// Half of the clusters are text-like, the others cannot be compressed.
pub(crate) fn mixed_bytes(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = random_bytes(length, seed);
    for (number, cluster) in bytes.chunks_mut(C).enumerate() {
        if number % 2 == 0 {
            cluster.iter_mut().for_each(|byte| *byte = b'a' + *byte % 7);
        }
    }
    bytes
}

pub(crate) fn write_image(
    path: &Path,
    size: u64,
    backing: Option<&str>,
    compression: Compression,
    blocks: impl IntoIterator<Item = Block>,
) -> Written {
    let options = Qcow2Options {
        path: path.to_owned(),
        size,
        backing: backing.map(str::to_owned),
        detect_zeroes: true,
        stop: Stop::default(),
    };
    let file = Box::new(DirectFile::new(new_file(path)));
    let mut writer: Box<dyn BlockSink> = match compression {
        Compression::None => Box::new(Qcow2Writer::new(file, options).expect("it begins")),
        Compression::Zstd(level) => {
            Box::new(CompressingWriter::new(file, options, level).expect("it begins"))
        }
    };
    for block in blocks {
        writer.write(block).expect("it takes the block");
    }
    writer.finish().expect("it finishes")
}

impl Sample {
    /// A chain of plain images.
    fn make() -> Sample {
        Sample::made_with(|_| Compression::None)
    }

    /// A plain chain, a compressed one, and a mixture.
    fn kinds() -> [Sample; 3] {
        let zstd = |number| Compression::Zstd(ZstdLevel::new(number).expect("a level"));
        [
            Sample::make(),
            Sample::made_with(|_| Compression::default()),
            Sample::made_with(|index| [zstd(9), Compression::None, zstd(3)][index]),
        ]
    }

    /// Each image is in its own folder and names its parent by a relative path.
    fn made_with(compression: impl Fn(usize) -> Compression) -> Sample {
        let dir = tempfile::tempdir().expect("a folder");
        let small = 40 * 1024 * 1024 + 1536;
        let grown = small + 12 * 1024 * 1024;
        // The disk's size, then offset and length of each write. `None` as length means four
        // clusters of zero.
        type Edits = Vec<(usize, Option<usize>)>;
        let edits: [(usize, Edits); 3] = [
            (
                small,
                vec![
                    (0, Some(40 * C)),
                    (100 * C, Some(3 * C)),
                    (590 * C, Some(8 * C)),
                    (640 * C, Some(1536)),
                ],
            ),
            (
                small,
                vec![
                    (C, Some(C)),
                    (10 * C, None),
                    (101 * C, None),
                    (591 * C, None),
                    (600 * C, Some(33 * C)),
                ],
            ),
            (
                grown,
                vec![
                    (0, Some(2 * C)),
                    (12 * C, Some(C)),
                    (640 * C, None),
                    (800 * C, Some(5 * C)),
                ],
            ),
        ];
        let mut sample = Sample {
            dir,
            images: Vec::new(),
            disks: Vec::new(),
        };
        let mut disk = Vec::new();
        for (index, (size, edits)) in edits.into_iter().enumerate() {
            disk.resize(size, 0);
            let blocks = edits.into_iter().map(|(offset, length)| {
                let Some(length) = length else {
                    let end = (offset + 4 * C).min(size);
                    disk[offset..end].fill(0);
                    return zero(offset, end - offset);
                };
                let bytes = mixed_bytes(length, (index * 100 + offset / C) as u8);
                disk[offset..offset + length].copy_from_slice(&bytes);
                data(offset, &bytes)
            });
            let blocks: Vec<Block> = blocks.collect();
            let folder = sample.dir.path().join(format!("point {index}.inc"));
            fs::create_dir(&folder).expect("a folder");
            let path = folder.join("vda.qcow2");
            let backing = index
                .checked_sub(1)
                .map(|before| format!("../point {before}.inc/vda.qcow2"));
            let compression = compression(index);
            let written = write_image(&path, size as u64, backing.as_deref(), compression, blocks);
            sample.images.push((path, written));
            sample.disks.push(disk.clone());
        }
        sample
    }

    /// The chain that ends with this image, newest image first.
    fn chain(&self, newest: usize) -> Vec<ChainImage> {
        let links = self.images[..=newest].iter().rev();
        links
            .map(|(path, written)| ChainImage {
                file: File::open(path).expect("the image").into(),
                path: path.clone(),
                recorded: Some(Recorded {
                    bytes: written.file_bytes,
                    blake3: written.blake3.clone().expect("images have digests"),
                    pieces: written.pieces.clone(),
                }),
            })
            .collect()
    }
}

/// Runs `qemu-img` and returns its output. A failure fails the test.
fn qemu_img(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = run("qemu-img", arguments);
    assert!(
        output.status.success(),
        "qemu-img: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("qemu-img prints text")
}

fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> std::process::Output {
    let mut command = Command::new(program);
    for argument in arguments {
        command.arg(argument);
    }
    command
        .output()
        .unwrap_or_else(|error| panic!("{program} has to be installed: {error}"))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("qemu-img prints JSON")
}

fn pull(images: Vec<ChainImage>, sink: &mut dyn BlockSink) -> Result<Written, BlockError> {
    let mut source = ChainSource::open(images, BufferPool::new(4, 1 << 20), Stop::default())?;
    while let Some(block) = source.next_block()? {
        sink.write(block)?;
    }
    sink.finish()
}

fn pull_raw(images: Vec<ChainImage>, path: &Path, size: usize) -> Vec<u8> {
    let file = Box::new(DirectFile::new(new_file(path)));
    let mut sink = RawWriter::into_file(file, path, size as u64, Stop::default()).expect("a new raw file");
    pull(images, &mut sink).expect("the chain can be read");
    fs::read(path).expect("it can be read")
}

fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "length, {what}");
    let different = found
        .chunks(C)
        .zip(expected.chunks(C))
        .position(|(found, expected)| found != expected);
    assert_eq!(different, None, "first cluster that differs, {what}");
}

#[test]
fn qemu_img_finds_neither_errors_nor_leaks_in_our_images() {
    let samples = Sample::kinds();
    for (path, written) in samples.iter().flat_map(|sample| &sample.images) {
        let report = json(&qemu_img(&[&"check", &"--output=json", &"-f", &"qcow2", path]));
        assert_eq!(report["check-errors"], 0, "{report}");
        for fault in ["corruptions", "leaks", "corruptions-fixed", "leaks-fixed"] {
            assert!(report.get(fault).is_none_or(|count| *count == 0), "{report}");
        }
        assert_eq!(report["image-end-offset"], written.file_bytes, "{report}");
    }
}

#[test]
fn qemu_img_reads_our_header_as_intended() {
    let sample = Sample::make();
    let info = json(&qemu_img(&[
        &"info",
        &"--output=json",
        &"--backing-chain",
        &sample.images[2].0,
    ]));
    let chain = info.as_array().expect("one entry per image");
    assert_eq!(chain.len(), 3);
    assert_eq!(chain[0]["backing-filename"], "../point 1.inc/vda.qcow2");
    assert_eq!(chain[0]["backing-filename-format"], "qcow2");
    assert_eq!(chain[0]["virtual-size"], sample.disks[2].len());
    assert_eq!(chain[0]["cluster-size"], C);
    assert_eq!(chain[0]["format-specific"]["data"]["compat"], "1.1");
    assert_eq!(chain[0]["format-specific"]["data"]["refcount-bits"], 16);
    assert!(chain[2].get("backing-filename").is_none());
}

#[test]
fn qemu_img_and_we_read_the_same_disk_from_every_point() {
    let samples = Sample::kinds();
    let points = samples.iter().flat_map(|sample| {
        let disks = sample.disks.iter().enumerate();
        disks.map(move |(index, disk)| (sample, index, disk))
    });
    for (sample, index, disk) in points {
        let theirs = sample.dir.path().join(format!("{index}.theirs"));
        qemu_img(&[&"convert", &"-O", &"raw", &sample.images[index].0, &theirs]);
        assert_same(
            &fs::read(&theirs).expect("it can be read"),
            disk,
            "qemu-img convert",
        );
        let ours = sample.dir.path().join(format!("{index}.ours"));
        assert_same(
            &pull_raw(sample.chain(index), &ours, disk.len()),
            disk,
            "our chain",
        );
    }
}

#[test]
fn a_chain_restored_to_one_image_compares_equal() {
    Sample::kinds().iter().for_each(restored_to_one_image);
}

fn restored_to_one_image(sample: &Sample) {
    let path = sample.dir.path().join("restored.qcow2");
    let options = Qcow2Options {
        path: path.clone(),
        size: sample.disks[2].len() as u64,
        backing: None,
        detect_zeroes: true,
        stop: Stop::default(),
    };
    let mut sink = Qcow2Writer::new(Box::new(DirectFile::new(new_file(&path))), options).expect("it begins");
    let written = pull(sample.chain(2), &mut sink).expect("the chain can be read");
    qemu_img(&[
        &"compare",
        &"-f",
        &"qcow2",
        &"-F",
        &"qcow2",
        &path,
        &sample.images[2].0,
    ]);
    qemu_img(&[&"check", &"-f", &"qcow2", &path]);
    let file = File::open(&path).expect("the image");
    let digest = file_digest(&file).expect("it can be read");
    assert_eq!(
        digest,
        (written.file_bytes, written.blake3.expect("images have digests"))
    );
}

#[test]
fn imago_reads_the_same_bytes_through_the_chain() {
    use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, qcow2::Qcow2};
    // imago knows zlib only.
    let sample = Sample::make();
    for (index, disk) in sample.disks.iter().enumerate() {
        let builder = Qcow2::<imago::file::File>::builder_path(&sample.images[index].0);
        let image = builder
            .open(PermissiveImplicitOpenGate::default())
            .expect("imago opens it");
        let image = FormatAccess::new(image);
        assert_eq!(image.size(), disk.len() as u64);
        let mut found = vec![0; disk.len()];
        for (piece, chunk) in found.chunks_mut(32 << 20).enumerate() {
            image
                .read(chunk, (piece * (32 << 20)) as u64)
                .expect("imago reads it");
        }
        assert_same(&found, disk, "imago");
    }
}

#[test]
fn qemu_images_of_any_cluster_size_are_read_as_qemu_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let size = 9 * 1024 * 1024 + 512;
    for cluster in [512, 4096, 65536, 2 << 20] {
        let base = dir.path().join(format!("base-{cluster}.qcow2"));
        let top = dir.path().join(format!("top-{cluster}.qcow2"));
        let option = format!("cluster_size={cluster}");
        qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &option, &base, &"6M"]);
        qemu_io(
            &base,
            &[
                "write -P 1 0 1M",
                "write -P 2 1537k 3k",
                "write -P 3 4M 2M",
                "write -z 300k 80k",
            ],
        );
        let backing = format!("base-{cluster}.qcow2");
        qemu_img(&[
            &"create",
            &"-q",
            &"-f",
            &"qcow2",
            &"-F",
            &"qcow2",
            &"-b",
            &backing,
            &"-o",
            &option,
            &top,
            &size.to_string(),
        ]);
        qemu_io(
            &top,
            &[
                "write -P 4 5000k 10k",
                "write -z 5M 64k",
                "write -z 70k 1k",
                "write -P 5 9216k 512",
                "discard 128k 256k",
            ],
        );

        let links = [&top, &base].map(|path| ChainImage {
            file: File::open(path).expect("the image").into(),
            path: path.clone(),
            recorded: None,
        });
        let (theirs, ours) = (
            dir.path().join("theirs"),
            dir.path().join(format!("ours-{cluster}")),
        );
        qemu_img(&[&"convert", &"-O", &"raw", &top, &theirs]);
        let found = pull_raw(links.into(), &ours, size);
        assert_same(&found, &fs::read(&theirs).expect("it can be read"), &option);
        assert_eq!(
            (found[5_120_000], found[size - 1]),
            (4, 5),
            "the pattern is there"
        );
    }
}

fn qemu_io(image: &Path, commands: &[&str]) {
    for command in commands {
        let output = run("qemu-io", &[&"-f", &"qcow2", &"-c", command, &image]);
        assert!(
            output.status.success(),
            "qemu-io {command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn what_we_do_not_read_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let refused = |name: &str, option: &str| {
        let path = dir.path().join(name);
        qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-o", &option, &path, &"1M"]);
        let error = Image::open(File::open(&path).expect("the image"), path).expect_err("it is refused");
        std::error::Error::source(&error).expect("the fault").to_string()
    };
    assert_eq!(
        refused("v2", "compat=0.10"),
        "qcow2 version 2 is not supported, only version 3 is"
    );
    assert_eq!(
        refused("subclusters", "extended_l2=on"),
        "images with extended L2 entries are not supported"
    );
    let external = format!("data_file={}", dir.path().join("data.raw").display());
    assert_eq!(
        refused("external", &external),
        "images with an external data file are not supported"
    );

    let raw = dir.path().join("plain.raw");
    fs::write(&raw, vec![1; 4 * C]).expect("it can be written");
    let path = dir.path().join("zlib");
    let option = "compression_type=zlib";
    qemu_img(&[&"convert", &"-c", &"-O", &"qcow2", &"-o", &option, &raw, &path]);
    let mut image = Image::open(File::open(&path).expect("the image"), path).expect("the header is sound");
    let error = image.run_at(0).expect_err("the clusters are compressed");
    let fault = std::error::Error::source(&error).expect("the fault").to_string();
    assert_eq!(
        fault,
        "clusters compressed with zlib are not supported, only zstd is"
    );
}

#[test]
fn clusters_that_qemu_compressed_are_read_as_qemu_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let raw = dir.path().join("plain.raw");
    let disk = mixed_bytes(9 * (1 << 20) + 512, 5);
    fs::write(&raw, &disk).expect("it can be written");
    for cluster in [4096, 65536, 2 << 20] {
        let path = dir.path().join(format!("{cluster}.qcow2"));
        let option = format!("compression_type=zstd,cluster_size={cluster}");
        qemu_img(&[&"convert", &"-c", &"-O", &"qcow2", &"-o", &option, &raw, &path]);
        let link = ChainImage {
            file: File::open(&path).expect("the image").into(),
            path: path.clone(),
            recorded: None,
        };
        let ours = dir.path().join(format!("{cluster}.ours"));
        let found = pull_raw(vec![link], &ours, disk.len());
        assert_same(&found, &disk, &option);
    }
}

#[test]
fn only_clusters_that_shrink_are_compressed() {
    let [plain, compressed, _] = Sample::kinds();
    for (index, disk) in compressed.disks.iter().enumerate() {
        let (path, written) = &compressed.images[index];
        let mut image = Image::open(File::open(path).expect("the image"), path).expect("it is one");
        assert!(image.header().zstd && written.is_compressed);
        let mut at = 0;
        while let Some(run) = image.run_at(at).expect("sound tables") {
            let cluster = &disk[at as usize..disk.len().min(at as usize + C)];
            let is_text = cluster.iter().all(|byte| (b'a'..b'h').contains(byte));
            match run.mapping {
                Mapping::Compressed { .. } => assert!(is_text, "at {at}"),
                Mapping::Data { .. } => assert!(!is_text, "at {at}"),
                _ => {}
            }
            at += run.length;
        }
        let (_, larger) = &plain.images[index];
        assert_eq!(written.data_bytes, larger.data_bytes);
        assert!(written.file_bytes * 10 < larger.file_bytes * 9, "{written:?}");
    }
}

#[test]
fn a_block_device_holds_the_disk_to_the_last_byte() {
    let sample = Sample::make();
    let disk = &sample.disks[1];
    let path = sample.dir.path().join("device");
    // A file with old content stands in for the device: both have a fixed size and accept zeroed
    // ranges.
    let file = new_file(&path);
    file.write_all_at(&vec![0xaa; disk.len() + 4096], 0)
        .expect("it can be written");
    let mut sink =
        RawWriter::onto_device(file, &path, disk.len() as u64, Stop::default()).expect("it is large enough");
    pull(sample.chain(1), &mut sink).expect("the chain can be read");
    let found = fs::read(&path).expect("it can be read");
    assert_same(&found[..disk.len()], disk, "device");
    assert!(
        found[disk.len()..].iter().all(|&byte| byte == 0xaa),
        "nothing after the end of the disk is written"
    );
}

#[test]
fn data_across_the_ends_of_l2_tables_is_where_qemu_looks_for_it() {
    const SPAN: usize = 512 << 20;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("wide.qcow2");
    let places = [
        (0, C),
        (SPAN - 5 * C, 11 * C),
        (3 * SPAN - C, C),
        (3 * SPAN, C),
        (6 * SPAN - 64 * C, 64 * C + 512),
    ];
    let blocks = places
        .iter()
        .map(|&(offset, length)| data(offset, &vec![7; length]));
    write_image(&path, 6 * SPAN as u64 + 512, None, Compression::None, blocks);
    qemu_img(&[&"check", &"-f", &"qcow2", &path]);
    for (offset, length) in places {
        qemu_io(&path, &[&format!("read -P 7 {offset} {length}")]);
    }
    let map = json(&qemu_img(&[&"map", &"--output=json", &"-f", &"qcow2", &path]));
    let ranges = map
        .as_array()
        .expect("a list")
        .iter()
        .filter(|range| range["data"] == true);
    let mapped: u64 = ranges.filter_map(|range| range["length"].as_u64()).sum();
    assert_eq!(
        mapped,
        places.iter().map(|&(_, length)| length as u64).sum::<u64>()
    );
}
