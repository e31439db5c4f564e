//! The NBD client against nbdkit, with filters that make it a difficult server.

use std::time::Duration;

use vmsnap::model::block::{BlockError, BlockErrorKind, BlockSource};
use vmsnap::model::stop::StopReason;
use vmsnap::nbd::{Client, Error, ExportSource, Mode};

use crate::nbd::{C, changes, drain, limit, options, read};
use crate::support::{Server, temp_dir};

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
        let mut source = ExportSource::open(server.socket(), "", options(Mode::Full)).expect("an export");
        let got = drain(&mut source).expect("a read");
        assert!(got.bytes == pattern(size), "{case:?}");
        assert_eq!(got.data.len(), size.div_ceil(C), "{case:?}");
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
fn sparse_nbdkit_disk_reads_the_same_by_extent_and_whole() {
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
    let mut client = Client::connect_unix(server.socket(), "", &[], &limit()).expect("a client");
    let mut expected = vec![0; client.size() as usize];
    client.read(0, &mut expected).expect("a plain read");
    let got = read(server.socket(), options(Mode::Full));
    assert!(got.bytes == expected);
    assert!(!got.zero.is_empty() && !got.data.is_empty());
    assert_eq!(got.all().len(), 1024);
}

#[test]
fn injected_errors_are_reported_with_their_place() {
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
            assert_eq!(error.to_string(), "cannot read export ''");
            let cause = error.source.expect("a cause").to_string();
            assert!(
                (cause.contains("read 524288 bytes at offset 0")
                    || cause.contains("read 262144 bytes at offset"))
                    && cause.ends_with(words),
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
        cause.contains("report the status of 1048576 bytes at offset 0"),
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
    stop.request(StopReason::Terminated);
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
            Ok(None) => panic!("a killed server delivered the whole disk"),
            Err(error) => return error,
        }
    }
}

#[test]
fn servers_of_older_handshakes_are_recognised() {
    for manner in ["--oldstyle", "--mask-handshake=0"] {
        let folder = temp_dir();
        let server = Server::nbdkit(folder.path(), &[manner, "pattern", "1M"]);
        let outcome = Client::connect_unix(server.socket(), "", &[], &limit());
        assert!(
            matches!(outcome, Err(Error::Unsupported { .. })),
            "{manner}: {outcome:?}"
        );
    }
    let folder = temp_dir();
    // A fixed newstyle server whose answer ends with the 124 zero bytes.
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
    let outcome = Client::connect_unix(server.socket(), "vdb", &[], &limit());
    assert!(matches!(outcome, Err(Error::Refused { .. })), "{outcome:?}");
    let client = Client::connect_unix(server.socket(), "vda", &[], &limit()).expect("an export");
    assert_eq!(client.size(), 1 << 20);
}
