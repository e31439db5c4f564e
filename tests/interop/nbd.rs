//! The NBD client against qemu-nbd and nbdkit.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use vmsnap::model::block::{BlockError, BlockErrorKind, BlockSource, CLUSTER, Content};
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::stop::Stop;
use vmsnap::nbd::{Client, ConnectOptions, Error, ExportSource, Mode, SourceOptions};

use crate::support::{Server, qemu_io, run, temp_dir};

const C: usize = CLUSTER as usize;

fn options(mode: Mode) -> SourceOptions {
    SourceOptions::new(
        mode,
        BufferPool::new(8, 256 << 10),
        Duration::from_secs(30),
        Stop::default(),
    )
}

fn connect_options() -> ConnectOptions {
    ConnectOptions {
        deadline: Duration::from_secs(30),
        stop: Stop::default(),
    }
}

fn changes(bitmap: &str) -> Mode {
    Mode::Changes {
        bitmap_context: format!("qemu:dirty-bitmap:{bitmap}"),
    }
}

/// What came of an export: its bytes (0 where nothing came), and which clusters came as data and as zero.
struct Got {
    bytes: Vec<u8>,
    data: BTreeSet<usize>,
    zero: BTreeSet<usize>,
}

impl Got {
    fn all(&self) -> BTreeSet<usize> {
        self.data.union(&self.zero).copied().collect()
    }
}

fn drain(source: &mut ExportSource) -> Result<Got, BlockError> {
    let size = source.size() as usize;
    let mut got = Got {
        bytes: vec![0; size],
        data: BTreeSet::new(),
        zero: BTreeSet::new(),
    };
    let mut end = 0;
    while let Some(block) = source.next_block()? {
        let offset = block.offset as usize;
        assert!(
            offset >= end && offset.is_multiple_of(C),
            "blocks come in order, on clusters"
        );
        end = offset + block.length() as usize;
        assert!(end.is_multiple_of(C) || end == size, "blocks are whole clusters");
        let clusters = offset / C..end.div_ceil(C);
        match block.content {
            Content::Data(buffer) => {
                got.bytes[offset..end].copy_from_slice(&buffer);
                got.data.extend(clusters);
            }
            Content::Zero(_) => got.zero.extend(clusters),
        }
    }
    Ok(got)
}

fn read(socket: &Path, options: SourceOptions) -> Got {
    let mut source = ExportSource::open(socket, "", options).expect("an export");
    drain(&mut source).expect("a read")
}

/// What qemu-img makes of the same image.
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

/// A stream of numbers that is the same in every run.
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

/// Random qemu-io commands, and the ranges that they touch in bytes.
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
    for connections in [1, 3] {
        let mut options = options(Mode::Full);
        options.connections = connections;
        options.first_status = 1 << 20;
        let mut source = ExportSource::open(server.socket(), "", options).expect("an export");
        assert_eq!(
            source.connections(),
            connections,
            "qemu-nbd --shared says multi-conn"
        );
        let got = drain(&mut source).expect("a read");
        assert!(got.bytes == expected, "{connections} connections");
        assert_eq!(got.all().len(), expected.len().div_ceil(C), "every cluster comes");
        assert!(!got.zero.is_empty(), "what was never written comes as zero");
    }
}

#[test]
fn changes_of_qemu_nbd_are_the_clusters_written_since_the_bitmap() {
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
            "{granularity}: every written cluster comes"
        );
        if granularity != "1M" {
            assert_eq!(written, came, "{granularity}: no other cluster comes");
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
        "from the cluster of the old end on"
    );
}

#[test]
fn a_status_reply_that_ends_early_is_asked_on() {
    let folder = temp_dir();
    let qcow2 = folder.path().join("disk.qcow2");
    let path = qcow2.to_str().expect("plain");
    // QEMU tells at most 131,072 extents at once. Every other 512 bytes of 72 MiB are dirty.
    let size: u64 = 72 << 20;
    run("qemu-img", &["create", "-f", "qcow2", path, &size.to_string()]);
    run("qemu-img", &["bitmap", "--add", "-g", "512", path, "b0"]);
    let commands: Vec<String> = (0..size / 1024)
        .map(|at| format!("write -q -P 1 {} 512", at * 1024))
        .collect();
    qemu_io(&qcow2, "qcow2", &commands);
    let server = Server::qemu_nbd(folder.path(), &qcow2, "qcow2", &["-B", "b0"]);
    let context = "qemu:dirty-bitmap:b0";
    let mut client = Client::connect_unix(
        server.socket(),
        "",
        &["base:allocation", context],
        &connect_options(),
    )
    .expect("a client");
    let told = client.block_status(0, size).expect("a status");
    let lengths: Vec<u64> = told
        .iter()
        .map(|runs| runs.iter().map(|run| run.length).sum())
        .collect();
    assert_eq!(lengths, [size, 64 << 20], "QEMU counts every context apart");
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

/// nbdkit's pattern plugin: every 8 bytes hold their offset, big-endian.
fn pattern(size: usize) -> Vec<u8> {
    (0..size as u64).step_by(8).flat_map(u64::to_be_bytes).collect()
}

#[test]
fn nbdkit_gives_its_pattern_with_all_kinds_of_manners() {
    let size = (3 << 20) + 4096;
    let parameters = ["pattern", "3149824"];
    let policy = "--filter=blocksize-policy";
    let cases: [&[&str]; 6] = [
        &[],
        &["--no-sr"],
        &["--filter=noextents"],
        &["--filter=multi-conn", "multi-conn-mode=disable"],
        &[
            policy,
            "blocksize-minimum=4096",
            "blocksize-preferred=4096",
            "blocksize-maximum=64K",
            "blocksize-error-policy=error",
        ],
        &[
            policy,
            "blocksize-minimum=512",
            "blocksize-preferred=4096",
            "blocksize-maximum=196608",
            "blocksize-error-policy=error",
        ],
    ];
    for case in cases {
        let folder = temp_dir();
        let (filters, settings): (Vec<&str>, Vec<&str>) =
            case.iter().partition(|word| word.starts_with("--"));
        let arguments = [&filters[..], &parameters, &settings].concat();
        let server = Server::nbdkit(folder.path(), &arguments);
        for connections in [1, 4] {
            let mut options = options(Mode::Full);
            options.connections = connections;
            let mut source = ExportSource::open(server.socket(), "", options).expect("an export");
            let single = case.contains(&"multi-conn-mode=disable");
            assert_eq!(
                source.connections(),
                if single { 1 } else { connections },
                "{case:?}"
            );
            let got = drain(&mut source).expect("a read");
            assert!(got.bytes == pattern(size), "{case:?}");
            assert_eq!(got.data.len(), size.div_ceil(C), "{case:?}");
        }
        let wanted = ExportSource::open(server.socket(), "", options(changes("b0")));
        assert!(matches!(wanted, Err(Error::ContextMissing { .. })), "{case:?}");
    }
}

#[test]
fn an_end_that_the_block_size_hides_is_refused() {
    let folder = temp_dir();
    let arguments = [
        "--filter=blocksize-policy",
        "pattern",
        "1049088",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=1M",
    ];
    let server = Server::nbdkit(folder.path(), &arguments);
    let outcome = ExportSource::open(server.socket(), "", options(Mode::Full));
    assert!(matches!(outcome, Err(Error::Unsupported { .. })), "{outcome:?}");
}

#[test]
fn a_sparse_disk_of_nbdkit_is_the_same_extent_by_extent_and_as_a_whole() {
    let folder = temp_dir();
    let server = Server::nbdkit(
        folder.path(),
        &[
            "sparse-random",
            "64M",
            "seed=3",
            "percent=30",
            "runlength=24576",
            "random-content=true",
        ],
    );
    let mut client = Client::connect_unix(server.socket(), "", &[], &connect_options()).expect("a client");
    let mut expected = vec![0; client.size() as usize];
    client.read(0, &mut expected).expect("a plain read");
    let got = read(server.socket(), options(Mode::Full));
    assert!(got.bytes == expected);
    assert!(!got.zero.is_empty() && !got.data.is_empty());
    assert_eq!(got.all().len(), 1024);
}

#[test]
fn injected_errors_are_told_with_their_place() {
    for (name, kind, words) in [
        ("EIO", BlockErrorKind::Io, "input/output error (EIO)"),
        (
            "ESHUTDOWN",
            BlockErrorKind::Lost,
            "server is shutting down (ESHUTDOWN)",
        ),
    ] {
        for structured in ["--filter=error", "--no-sr"] {
            let folder = temp_dir();
            let error = format!("error={name}");
            let server = Server::nbdkit(
                folder.path(),
                &[
                    structured,
                    "--filter=error",
                    "pattern",
                    "1M",
                    &error,
                    "error-pread-rate=100%",
                ],
            );
            let mut source = ExportSource::open(server.socket(), "", options(Mode::Full)).expect("an export");
            let error = drain(&mut source).err().expect("an error");
            assert_eq!(error.kind, kind);
            assert_eq!(error.to_string(), "cannot read export '' on from offset 0");
            let cause = error.source.expect("a cause").to_string();
            assert!(
                cause.contains("read 262144 bytes at offset") && cause.ends_with(words),
                "{cause}"
            );
        }
    }
    let folder = temp_dir();
    let server = Server::nbdkit(
        folder.path(),
        &["--filter=error", "memory", "1M", "error-extents-rate=100%"],
    );
    let mut source = ExportSource::open(server.socket(), "", options(Mode::Full)).expect("an export");
    let error = drain(&mut source).err().expect("an error");
    let cause = error.source.expect("a cause").to_string();
    assert!(
        cause.contains("tell the status of 1048576 bytes at offset 0"),
        "{cause}"
    );
}

#[test]
fn some_errors_among_many_reads_never_end_well() {
    let folder = temp_dir();
    let server = Server::nbdkit(
        folder.path(),
        &[
            "--filter=error",
            "pattern",
            "64M",
            "error=EIO",
            "error-pread-rate=20%",
        ],
    );
    let mut source = ExportSource::open(server.socket(), "", options(Mode::Full)).expect("an export");
    assert_eq!(
        drain(&mut source).err().map(|error| error.kind),
        Some(BlockErrorKind::Io)
    );
    assert!(source.next_block().is_err());
}

#[test]
fn a_slow_server_is_waited_for_until_the_deadline_or_the_stop() {
    let folder = temp_dir();
    let server = Server::nbdkit(
        folder.path(),
        &["--filter=delay", "pattern", "1M", "delay-read=60"],
    );
    let mut hasty = options(Mode::Full);
    hasty.deadline = Duration::from_millis(300);
    let mut source = ExportSource::open(server.socket(), "", hasty).expect("an export");
    let error = drain(&mut source).err().expect("a deadline");
    assert_eq!(error.kind, BlockErrorKind::Lost);
    assert!(
        error
            .source
            .expect("a cause")
            .to_string()
            .contains("silent for 0.3 s")
    );

    let patient = options(Mode::Full);
    let stop = patient.stop.clone();
    let mut source = ExportSource::open(server.socket(), "", patient).expect("an export");
    let reading = std::thread::spawn(move || drain(&mut source).err().map(|error| error.kind));
    stop.request(15);
    assert_eq!(reading.join().expect("no panic"), Some(BlockErrorKind::Stopped));

    let folder = temp_dir();
    let server = Server::nbdkit(
        folder.path(),
        &["--filter=delay", "pattern", "1M", "delay-read=100ms"],
    );
    assert!(read(server.socket(), options(Mode::Full)).bytes == pattern(1 << 20));
}

#[test]
fn a_server_killed_in_the_middle_is_lost() {
    let folder = temp_dir();
    let mut server = Server::nbdkit(
        folder.path(),
        &["--filter=delay", "pattern", "1G", "delay-read=5ms"],
    );
    let mut source = ExportSource::open(server.socket(), "", options(Mode::Full)).expect("an export");
    for _ in 0..20 {
        source.next_block().expect("a block").expect("not the end");
    }
    server.kill();
    let error = drain_rest(&mut source);
    assert_eq!(error.kind, BlockErrorKind::Lost, "{error:?}");
    let outcome = ExportSource::open(server.socket(), "", options(Mode::Full));
    assert!(matches!(outcome, Err(Error::Connect { .. })), "{outcome:?}");
}

fn drain_rest(source: &mut ExportSource) -> BlockError {
    loop {
        match source.next_block() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a killed server gave the whole disk"),
            Err(error) => return error,
        }
    }
}

#[test]
fn servers_of_older_handshakes_are_told_apart() {
    for manner in ["--oldstyle", "--mask-handshake=0"] {
        let folder = temp_dir();
        let server = Server::nbdkit(folder.path(), &[manner, "pattern", "1M"]);
        let outcome = Client::connect_unix(server.socket(), "", &[], &connect_options());
        assert!(
            matches!(outcome, Err(Error::Unsupported { .. })),
            "{manner}: {outcome:?}"
        );
    }
    let folder = temp_dir();
    // Fixed newstyle with the 124 zeroes.
    let server = Server::nbdkit(folder.path(), &["--mask-handshake=1", "pattern", "1M"]);
    assert!(read(server.socket(), options(Mode::Full)).bytes == pattern(1 << 20));
}

#[test]
fn an_export_that_nbdkit_does_not_have_is_refused() {
    let folder = temp_dir();
    let server = Server::nbdkit(
        folder.path(),
        &[
            "--filter=exportname",
            "pattern",
            "1M",
            "exportname=vda",
            "exportname-strict=true",
        ],
    );
    let outcome = Client::connect_unix(server.socket(), "vdb", &[], &connect_options());
    assert!(matches!(outcome, Err(Error::Refused { .. })), "{outcome:?}");
    let client = Client::connect_unix(server.socket(), "vda", &[], &connect_options()).expect("an export");
    assert_eq!(client.size(), 1 << 20);
}
