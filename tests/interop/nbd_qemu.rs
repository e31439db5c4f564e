//! The NBD client against qemu-nbd.

use std::collections::BTreeSet;
use std::path::Path;

use vmsnap::host::qemu::{Keys, Offer, Reader, Target};
use vmsnap::model::block::{Block, BlockSink, CLUSTER, Content};
use vmsnap::model::buffer::Buffer;
use vmsnap::model::stop::Stop;
use vmsnap::nbd::{Client, Error, ExportSink, ExportSource, Mode};
use vmsnap::testkit::{cached_bytes, forget_cached};

use crate::nbd::{C, changes, drain, limit, options, read};
use crate::support::{Server, qemu_io, run, temp_dir};

/// The content of the image as `qemu-img convert` writes it.
fn raw_bytes(folder: &Path, image: &Path) -> Vec<u8> {
    let raw = folder.join("reference.raw");
    let _ = std::fs::remove_file(&raw);
    let paths = [image.to_str().expect("plain"), raw.to_str().expect("plain")];
    run(
        "qemu-img",
        &["convert", "-f", "qcow2", "-O", "raw", paths[0], paths[1]],
    );
    std::fs::read(&raw).expect("the reference")
}

/// Pseudo-random numbers, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Random qemu-io commands, and the ranges in bytes that they write to.
fn random_writes(numbers: &mut Numbers, size: u64, count: usize) -> (Vec<String>, Vec<(u64, u64)>) {
    let mut ranges = Vec::new();
    let commands = (0..count)
        .map(|_| {
            let offset = numbers.below(size / 512) * 512;
            let length = ((numbers.below(400) + 1) * 512).min(size - offset);
            ranges.push((offset, length));
            match numbers.below(4) {
                0 => format!("write -z -u {offset} {length}"),
                1 => format!("discard {offset} {length}"),
                _ => format!("write -P {} {offset} {length}", numbers.below(255) + 1),
            }
        })
        .collect();
    (commands, ranges)
}

#[test]
fn a_full_read_of_qemu_nbd_is_what_qemu_img_reads() {
    let folder = temp_dir();
    let image = folder.path().join("disk.qcow2");
    let size = (24 << 20) + 5 * 512;
    run(
        "qemu-img",
        &[
            "create",
            "-f",
            "qcow2",
            image.to_str().expect("plain"),
            &size.to_string(),
        ],
    );
    let (commands, _) = random_writes(&mut Numbers(1), size, 120);
    qemu_io(&image, "qcow2", &commands);
    let expected = raw_bytes(folder.path(), &image);
    let server = Server::qemu_nbd(folder.path(), &image, "qcow2", &[]);
    let mut options = options(Mode::Full);
    options.first_status = 1 << 20;
    let mut source = ExportSource::open(server.socket(), "", options).expect("an export");
    let got = drain(&mut source).expect("a read");
    assert!(got.bytes == expected);
    assert_eq!(
        got.all().len(),
        expected.len().div_ceil(C),
        "every cluster is delivered"
    );
    assert!(!got.zero.is_empty(), "unwritten clusters are delivered as zero");
}

#[test]
fn qemu_nbd_reports_exactly_the_clusters_written_since_bitmap() {
    let mut numbers = Numbers(7);
    for granularity in ["512", "4096", "64k", "1M"] {
        let folder = temp_dir();
        let image = folder.path().join("disk.qcow2");
        let path = image.to_str().expect("plain");
        let size = (16 << 20) + 3 * 512;
        run("qemu-img", &["create", "-f", "qcow2", path, &size.to_string()]);
        qemu_io(&image, "qcow2", &random_writes(&mut numbers, size, 60).0);
        run("qemu-img", &["bitmap", "--add", "-g", granularity, path, "b0"]);
        let (commands, ranges) = random_writes(&mut numbers, size, 25);
        qemu_io(&image, "qcow2", &commands);
        let expected = raw_bytes(folder.path(), &image);
        let server = Server::qemu_nbd(folder.path(), &image, "qcow2", &["-B", "b0"]);
        let got = read(server.socket(), options(changes("b0")));

        let written: BTreeSet<usize> = ranges
            .iter()
            .flat_map(|(offset, length)| *offset as usize / C..(*offset + *length).div_ceil(CLUSTER) as usize)
            .collect();
        let came = got.all();
        assert!(
            written.is_subset(&came),
            "{granularity}: every written cluster is delivered"
        );
        if granularity != "1M" {
            assert_eq!(written, came, "{granularity}: no other cluster is delivered");
        }
        for cluster in came {
            let range = cluster * C..((cluster + 1) * C).min(expected.len());
            assert!(
                got.bytes[range.clone()] == expected[range],
                "{granularity}: cluster {cluster}"
            );
        }
    }
}

#[test]
fn a_grown_part_counts_as_changed() {
    let folder = temp_dir();
    let image = folder.path().join("disk.qcow2");
    let path = image.to_str().expect("plain");
    run("qemu-img", &["create", "-f", "qcow2", path, "1049088"]);
    run("qemu-img", &["bitmap", "--add", path, "b0"]);
    run("qemu-img", &["resize", path, "2M"]);
    let server = Server::qemu_nbd(folder.path(), &image, "qcow2", &["-B", "b0"]);
    let mut options = options(changes("b0"));
    options.all_from = Some(1_049_088);
    let got = read(server.socket(), options);
    assert_eq!(
        got.all(),
        (16..32).collect(),
        "from the cluster that holds the old end"
    );
}

#[test]
fn a_status_reply_that_ends_early_is_asked_on() {
    let folder = temp_dir();
    let qcow2 = folder.path().join("disk.qcow2");
    let path = qcow2.to_str().expect("plain");
    // QEMU reports at most 131,072 extents at once. Every other 512 bytes of 72 MiB are dirty.
    let size: u64 = 72 << 20;
    run("qemu-img", &["create", "-f", "qcow2", path, &size.to_string()]);
    run("qemu-img", &["bitmap", "--add", "-g", "512", path, "b0"]);
    let commands: Vec<String> = (0..size / 1024)
        .map(|at| format!("write -q -P 1 {} 512", at * 1024))
        .collect();
    qemu_io(&qcow2, "qcow2", &commands);
    let server = Server::qemu_nbd(folder.path(), &qcow2, "qcow2", &["-B", "b0"]);
    let context = "qemu:dirty-bitmap:b0";
    let mut client =
        Client::connect_unix(server.socket(), "", &["base:allocation", context], &limit()).expect("a client");
    let told = client.block_status(0, size).expect("a status");
    let lengths: Vec<u64> = told
        .iter()
        .map(|runs| runs.iter().map(|run| run.length).sum())
        .collect();
    assert_eq!(lengths, [size, 64 << 20], "QEMU limits each context separately");
    let got = read(server.socket(), options(changes("b0")));
    assert_eq!(got.data.len() as u64, size / CLUSTER, "every cluster is dirty");
    assert!(
        got.bytes
            .chunks(512)
            .enumerate()
            .all(|(at, bytes)| bytes[0] == u8::from(at % 2 == 0))
    );
}

#[test]
fn a_bitmap_that_qemu_nbd_does_not_offer_is_an_error() {
    let folder = temp_dir();
    let image = folder.path().join("disk.qcow2");
    run(
        "qemu-img",
        &["create", "-f", "qcow2", image.to_str().expect("plain"), "1M"],
    );
    let server = Server::qemu_nbd(folder.path(), &image, "qcow2", &[]);
    let outcome = ExportSource::open(server.socket(), "", options(changes("b0")));
    assert!(
        matches!(outcome, Err(Error::ContextMissing { .. })),
        "{outcome:?}"
    );
    let outcome = ExportSource::open(server.socket(), "vdz", options(Mode::Full));
    assert!(
        matches!(&outcome, Err(Error::Refused { export, .. }) if export == "vdz"),
        "{outcome:?}"
    );
}

#[test]
fn reader_of_shut_off_image_stays_out_of_the_page_cache() {
    // Not on tmpfs, where the page cache itself holds the file.
    let folder = tempfile::tempdir_in("/var/tmp").expect("a temporary folder");
    let (plain, image) = (folder.path().join("plain.raw"), folder.path().join("a.qcow2"));
    std::fs::write(&plain, vec![7; 32 << 20]).expect("written");
    let paths = [plain.to_str().expect("plain"), image.to_str().expect("plain")];
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", paths[0], paths[1]],
    );
    let file = std::fs::File::open(&image).expect("it was made");
    file.sync_all().expect("it is on the disk");
    forget_cached(&image).expect("the cached pages are dropped");
    let socket = folder.path().join("s");
    let node = serde_json::json!({"driver": "qcow2", "file": {"driver": "file", "filename": image}});
    let target = Target::new(&node, "the image", Keys::default()).expect("it is short");
    let offer = Offer {
        image: &target,
        export: "vda",
        bitmaps: Vec::new(),
        socket: &socket,
        writable: false,
    };
    let reader = Reader::start(&offer, &Stop::default()).expect("it starts");
    let mut source = ExportSource::open(&socket, "vda", options(Mode::Full)).expect("it can be read");
    let got = drain(&mut source).expect("it can be read");
    assert!(got.bytes.iter().all(|byte| *byte == 7) && got.bytes.len() == 32 << 20);
    drop(reader);
    assert_eq!(
        cached_bytes(&image).expect("the file system reports cached pages"),
        0
    );
}

/// Blocks of data and of zeroes, also a last one that ends within a cluster, reach the image. The
/// bitmap marks them, and nothing else changes.
#[test]
fn what_is_written_through_qemu_nbd_is_in_the_image() {
    let folder = temp_dir();
    let image = folder.path().join("a.qcow2");
    let path = image.to_str().expect("plain");
    let size = 6 * C + 1536;
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", path, &size.to_string()],
    );
    qemu_io(&image, "qcow2", &[format!("write -P 1 0 {size}")]);
    run("qemu-img", &["bitmap", "--add", path, "c0"]);
    let node = serde_json::json!({"driver": "qcow2", "file": {"driver": "file", "filename": image}});
    let target = Target::new(&node, "the image", Keys::default()).expect("it is short");
    let socket = folder.path().join("s");
    let offer = Offer {
        image: &target,
        export: "vda",
        bitmaps: vec!["c0"],
        socket: &socket,
        writable: true,
    };
    let writer = Reader::start_writer(&offer, &Stop::default()).expect("it starts");
    let mut sink = ExportSink::open(&socket, "vda", &limit()).expect("it can be written to");
    let data = |offset: usize, bytes: &[u8]| {
        let mut buffer = Buffer::alone(bytes.len());
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        Block {
            offset: offset as u64,
            content: Content::Data(buffer),
        }
    };
    sink.write(data(C, &[2; 2 * C])).expect("written");
    sink.write(Block {
        offset: 4 * CLUSTER,
        content: Content::Zero(CLUSTER),
    })
    .expect("written");
    sink.write(data(6 * C, &[3; 1536])).expect("written");
    let beyond = sink
        .write(data(6 * C, &[3; C]))
        .expect_err("the export ends before");
    assert!(
        beyond.to_string().contains("cannot write to export 'vda'"),
        "{beyond}"
    );
    let written = sink.finish().expect("flushed");
    assert_eq!(
        (written.data_bytes, written.zero_bytes),
        (2 * CLUSTER + 1536, CLUSTER)
    );
    drop(sink);
    // The bitmap already shows the writes.
    let mut changed = ExportSource::open(&socket, "vda", options(changes("c0"))).expect("it can be read");
    assert_eq!(
        drain(&mut changed).expect("read").all(),
        BTreeSet::from([1, 2, 4, 6])
    );
    drop(changed);
    writer.close().expect("it closes the image");

    let mut expected = vec![1; size];
    expected[C..3 * C].fill(2);
    expected[4 * C..5 * C].fill(0);
    expected[6 * C..].fill(3);
    assert!(raw_bytes(folder.path(), &image) == expected);
    run("qemu-img", &["check", "-q", "-f", "qcow2", path]);
}

#[test]
fn a_read_only_export_takes_no_blocks() {
    let folder = temp_dir();
    let image = folder.path().join("a.raw");
    std::fs::write(&image, vec![1; C]).expect("written");
    let server = Server::qemu_nbd(folder.path(), &image, "raw", &[]);
    let refused = ExportSink::open(server.socket(), "", &limit());
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
}
