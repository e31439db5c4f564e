//! Tests of the source and the client against a server in memory.

use std::os::unix::net::UnixStream;

use super::super::fake::FakeExport;
use super::super::wire::*;
use super::*;
use crate::model::stop::StopReason;

pub(super) const BITMAP: &str = "qemu:dirty-bitmap:b";
pub(super) const C: usize = CLUSTER as usize;

fn limit() -> WaitLimit {
    WaitLimit {
        deadline: Duration::from_secs(20),
        stop: Stop::default(),
    }
}

fn client(export: &FakeExport, contexts: &[&str], limit: &WaitLimit) -> Client {
    Client::from_stream(export.serve().0, "vda", contexts, limit).expect("a client")
}

pub(super) fn options(mode: Mode, buffers: usize, capacity: usize) -> SourceOptions {
    let WaitLimit { deadline, stop } = limit();
    SourceOptions::new(mode, BufferPool::new(buffers, capacity), deadline, stop)
}

pub(super) fn changes() -> Mode {
    Mode::Changes {
        bitmap_context: BITMAP.to_owned(),
    }
}

pub(super) fn source(export: &FakeExport, options: SourceOptions) -> ExportSource {
    try_source(export, options).expect("a source")
}

fn try_source(export: &FakeExport, options: SourceOptions) -> Result<ExportSource> {
    let limit = WaitLimit {
        deadline: options.deadline,
        stop: options.stop.clone(),
    };
    let client = client(export, &[BASE_ALLOCATION, BITMAP], &limit);
    ExportSource::from_client(client, options)
}

/// Reads to the end and returns the bytes of each cluster, or `None` if no block covers it.
pub(super) fn clusters(source: &mut ExportSource) -> std::result::Result<Vec<Option<Vec<u8>>>, BlockError> {
    let size = source.size() as usize;
    let mut clusters = vec![None; size.div_ceil(C)];
    let mut end = 0;
    while let Some(block) = source.next_block()? {
        assert!(block.offset >= end, "blocks come in order");
        assert!(block.offset.is_multiple_of(CLUSTER), "blocks start on a cluster");
        end = block.offset + block.length();
        assert!(
            end.is_multiple_of(CLUSTER) || end as usize == size,
            "blocks are whole clusters"
        );
        let bytes = match &block.content {
            Content::Data(buffer) => buffer.to_vec(),
            Content::Zero(length) => vec![0; *length as usize],
        };
        for (index, cluster) in bytes.chunks(C).enumerate() {
            clusters[block.offset as usize / C + index] = Some(cluster.to_vec());
        }
    }
    Ok(clusters)
}

fn numbered_disk(clusters: usize, tail: usize) -> Vec<u8> {
    (0..clusters * C + tail).map(|at| (at / C + 1) as u8).collect()
}

fn whole(length: usize, flags: u32) -> Vec<Run> {
    vec![Run {
        length: length as u64,
        flags,
    }]
}

#[test]
fn client_reads_and_reports_what_was_negotiated() {
    let mut export = FakeExport::new(numbered_disk(3, 512));
    export.contexts = vec![(BASE_ALLOCATION.to_owned(), whole(3 * C + 512, 0))];
    export.block_sizes = Some([512, 4096, 1 << 16]);
    let mut client = client(&export, &[BASE_ALLOCATION, BITMAP], &limit());
    assert_eq!(client.size() as usize, 3 * C + 512);
    assert!(client.read_only() && client.structured());
    assert_eq!(client.contexts().len(), 1);
    let mut bytes = vec![0; 2 * C + 512];
    client
        .read(CLUSTER, &mut bytes)
        .expect("a read in three requests");
    assert!(bytes == export.disk[C..]);
    let runs = client.block_status(CLUSTER, 1024).expect("a status");
    assert_eq!(runs, [whole(1024, 0)]);
    for (offset, length) in [(1, 512), (512, 1), (3 * CLUSTER, 1024), (u64::MAX, 512)] {
        let outcome = client.read(offset, &mut vec![0; length]);
        assert!(
            matches!(outcome, Err(Error::BadRequest { .. })),
            "{offset} {length}"
        );
    }
}

#[test]
fn a_client_says_goodbye() {
    let export = FakeExport::new(vec![0; 512]);
    let (stream, server) = export.serve();
    drop(Client::from_stream(stream, "vda", &[], &limit()).expect("a client"));
    server.join().expect("the server has ended");
    assert_eq!(
        export
            .seen
            .lock()
            .expect("no panic")
            .last()
            .map(|request| request.1),
        Some(CMD_DISC)
    );
}

#[test]
fn full_read_works_without_contexts_and_structured_replies() {
    for structured in [true, false] {
        let mut export = FakeExport::new(numbered_disk(40, 1536));
        export.structured = structured;
        let mut source = source(&export, options(Mode::Full, 4, 4 * C));
        let bytes: Vec<u8> = clusters(&mut source)
            .expect("a read")
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        assert!(bytes == export.disk);
        assert!(source.next_block().expect("still at the end").is_none());
    }
}

#[test]
fn an_empty_export_has_no_blocks() {
    let export = FakeExport::new(Vec::new());
    let mut source = source(&export, options(Mode::Full, 1, C));
    assert!(source.next_block().expect("no error").is_none());
}

#[test]
fn a_bitmap_that_is_not_granted_is_an_error() {
    for structured in [true, false] {
        let mut export = FakeExport::new(vec![0; C]);
        export.structured = structured;
        export.contexts = vec![(BASE_ALLOCATION.to_owned(), whole(C, 3))];
        let outcome = try_source(&export, options(changes(), 1, C));
        assert!(
            matches!(outcome, Err(Error::ContextMissing { .. })),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_disk_whose_end_cannot_be_read_is_refused() {
    let mut export = FakeExport::new(vec![0; C + 512]);
    export.block_sizes = Some([4096, 4096, 1 << 20]);
    let outcome = try_source(&export, options(Mode::Full, 1, C));
    assert!(matches!(outcome, Err(Error::Unsupported { .. })), "{outcome:?}");
}

#[test]
fn a_read_too_long_for_one_piece_is_asked_for_in_several() {
    let mut export = FakeExport::new(numbered_disk(20, 0));
    export.longest_unfragmented = 65536;
    export.fragment = Some(10_000);
    let mut source = source(&export, options(Mode::Full, 8, 4 * C));
    let bytes: Vec<u8> = clusters(&mut source)
        .expect("a read")
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    assert!(bytes == export.disk);
}

/// The request is repeated while nothing else is in flight.
#[test]
fn a_single_read_too_long_for_one_piece_is_repeated() {
    let mut export = FakeExport::new(numbered_disk(4, 0));
    export.longest_unfragmented = 65536;
    let mut client = client(&export, &[], &limit());
    let mut bytes = vec![0; export.disk.len()];
    client.read(0, &mut bytes).expect("it is served");
    assert!(bytes == export.disk);
}

#[test]
fn an_error_of_the_server_ends_the_source_with_the_place() {
    for structured in [true, false] {
        let mut export = FakeExport::new(numbered_disk(8, 0));
        export.structured = structured;
        export.fail = Some((5 * CLUSTER + 7, 5));
        let mut source = source(&export, options(Mode::Full, 2, C));
        let error = clusters(&mut source).expect_err("an error");
        assert_eq!(error.kind, BlockErrorKind::Io);
        let cause = error.source.expect("a source").to_string();
        assert!(cause.contains("read 65536 bytes at offset 327680"), "{cause}");
        assert!(source.next_block().is_err(), "a failed source never ends well");
    }
}

#[test]
fn request_lengths_respect_buffer_and_server_one_is_longer() {
    const MIB: u32 = 1 << 20;
    for (maximum, longer, others) in [
        (32 * MIB, 2 * MIB, MIB),
        (3 * MIB / 2, 3 * MIB / 2, MIB),
        (MIB, MIB, MIB),
        (200_000, 3 * 65536, 3 * 65536),
        (100_000, 65536, 65536),
    ] {
        let mut export = FakeExport::new(numbered_disk(64, 0));
        export.block_sizes = Some([1, 4096, maximum]);
        clusters(&mut source(&export, options(Mode::Full, 3, MIB as usize))).expect("a read");
        let seen = export.seen.lock().expect("no panic");
        let reads = seen.iter().filter(|request| request.1 == CMD_READ);
        let lengths: Vec<u32> = reads.map(|request| request.3).collect();
        assert_eq!(lengths[0], longer, "{lengths:?}");
        assert_eq!(lengths[1..].iter().max(), Some(&others), "{lengths:?}");
    }
}

#[test]
fn where_reads_are_short_none_is_longer() {
    let export = FakeExport::new(numbered_disk(8, 0));
    let mut only = ClusterSet::new(8 * CLUSTER);
    only.add(2 * CLUSTER, 4 * CLUSTER);
    let mut source = source(&export, options(Mode::Only(Arc::new(only)), 4, C));
    while let Some(block) = source.next_block().expect("a block") {
        assert_eq!(block.length(), CLUSTER);
    }
}

#[test]
fn the_longer_request_is_the_first_extent_that_fills_it() {
    let mut export = FakeExport::new(numbered_disk(20, 0));
    // Dirty runs of 2, 3, 5 and 6 clusters, of which two are read at once.
    let runs = [(2, 1), (1, 0), (3, 1), (1, 0), (5, 1), (1, 0), (6, 1), (1, 0)];
    let runs = runs.map(|(clusters, flags)| Run {
        length: clusters * CLUSTER,
        flags,
    });
    export.contexts = vec![(BITMAP.to_owned(), runs.to_vec())];
    let mut source = source(&export, options(changes(), 3, 2 * C));
    assert_eq!(
        clusters(&mut source).expect("a read").iter().flatten().count(),
        16
    );
    let seen = export.seen.lock().expect("no panic");
    let reads = seen.iter().filter(|request| request.1 == CMD_READ);
    let lengths: Vec<u32> = reads.map(|request| request.3 / C as u32).collect();
    assert_eq!(lengths, [2, 2, 1, 4, 1, 2, 2, 2]);
}

#[test]
fn small_scattered_changes_are_many_requests_in_flight() {
    let mut export = FakeExport::new(numbered_disk(64, 0));
    let runs = (0..64)
        .map(|cluster| Run {
            length: CLUSTER,
            flags: cluster % 2,
        })
        .collect();
    export.contexts = vec![(BITMAP.to_owned(), runs)];
    export.gather = 8;
    let mut source = source(&export, options(changes(), 8, 1 << 20));
    let got = clusters(&mut source).expect("a read");
    assert_eq!(got.iter().flatten().count(), 32);
    assert_eq!(got[0], None);
    assert!(got[63].as_deref() == Some(&export.disk[63 * C..]));
    assert_eq!(export.most_together.load(std::sync::atomic::Ordering::SeqCst), 8);
}

#[test]
fn a_changed_cluster_that_reads_as_zero_comes_as_zero() {
    let mut export = FakeExport::new(vec![0; 4 * C]);
    let zero = [(2, STATE_ZERO), (1, STATE_HOLE), (1, STATE_HOLE | STATE_ZERO)];
    let run = |(clusters, flags): (u64, u32)| Run {
        length: clusters * CLUSTER,
        flags,
    };
    export.contexts = vec![
        (BASE_ALLOCATION.to_owned(), zero.into_iter().map(run).collect()),
        (
            BITMAP.to_owned(),
            [(1, 0), (2, STATE_DIRTY), (1, 0)].into_iter().map(run).collect(),
        ),
    ];
    let mut source = source(&export, options(changes(), 2, C));
    let mut kinds = Vec::new();
    while let Some(block) = source.next_block().expect("a block") {
        kinds.push((block.offset / CLUSTER, matches!(block.content, Content::Zero(_))));
    }
    assert_eq!(kinds, [(1, true), (2, false)]);
    assert!(
        export
            .seen
            .lock()
            .expect("no panic")
            .iter()
            .all(|request| request.1 != CMD_READ || request.2 == 2 * CLUSTER)
    );
}

#[test]
fn a_server_that_hangs_up_is_lost_wherever_it_happens() {
    for requests in 0..6 {
        let mut export = FakeExport::new(numbered_disk(16, 0));
        export.contexts = vec![(BASE_ALLOCATION.to_owned(), whole(16 * C, 0))];
        export.hang_up_after = requests;
        let error = clusters(&mut source(&export, options(Mode::Full, 4, C))).expect_err("an error");
        assert_eq!(error.kind, BlockErrorKind::Lost, "{error:?}");
    }
}

#[test]
fn a_silent_server_is_lost_after_the_deadline() {
    for requests in 0..3 {
        let mut export = FakeExport::new(numbered_disk(16, 0));
        export.contexts = vec![(BASE_ALLOCATION.to_owned(), whole(16 * C, 0))];
        export.silent_after = requests;
        let mut options = options(Mode::Full, 4, C);
        options.deadline = Duration::from_millis(150);
        let error = clusters(&mut source(&export, options)).expect_err("an error");
        assert_eq!(error.kind, BlockErrorKind::Lost);
        let cause = error.source.expect("a source").to_string();
        assert_eq!(
            cause,
            "the NBD server was silent for 0.15 s during the transmission"
        );
    }
}

#[test]
fn a_silent_handshake_is_lost_after_the_deadline() {
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let limit = WaitLimit {
        deadline: Duration::from_millis(50),
        stop: Stop::default(),
    };
    let error = Client::from_stream(ours, "vda", &[], &limit).expect_err("silence");
    assert!(
        matches!(
            error,
            Error::TimedOut {
                phase: "the handshake",
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_stop_ends_the_wait_for_a_server() {
    let mut export = FakeExport::new(numbered_disk(16, 0));
    export.silent_after = 0;
    let options = options(Mode::Full, 4, C);
    let stop = options.stop.clone();
    let mut source = source(&export, options);
    let reading = std::thread::spawn(move || source.next_block().expect_err("stopped").kind);
    stop.request(StopReason::Terminated);
    assert_eq!(reading.join().expect("no panic"), BlockErrorKind::Stopped);
}

#[test]
fn a_stop_ends_the_wait_for_a_buffer() {
    let export = FakeExport::new(numbered_disk(16, 0));
    let options = options(Mode::Full, 1, C);
    let stop = options.stop.clone();
    let mut source = source(&export, options);
    let held = source.next_block().expect("a block");
    let reading = std::thread::spawn(move || source.next_block().expect_err("stopped").kind);
    stop.request(StopReason::Terminated);
    assert_eq!(reading.join().expect("no panic"), BlockErrorKind::Stopped);
    drop(held);
}

#[test]
fn a_buffer_that_comes_back_late_is_used() {
    let export = FakeExport::new(numbered_disk(4, 0));
    let mut source = source(&export, options(Mode::Full, 1, C));
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Block>(0);
    let writer = std::thread::spawn(move || receiver.iter().map(|block| block.length()).sum::<u64>());
    while let Some(block) = source.next_block().expect("a block") {
        sender.send(block).expect("a writer");
    }
    drop(sender);
    assert_eq!(writer.join().expect("no panic"), 4 * CLUSTER);
}

/// A map with one flag per unit, as runs of bytes.
pub(super) fn runs_of(map: &[bool], unit: usize, size: usize, flag: u32) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, set) in map.iter().enumerate() {
        let length = unit.min(size.saturating_sub(index * unit)) as u64;
        let flags = if *set { flag } else { 0 };
        match runs.last_mut() {
            _ if length == 0 => break,
            Some(last) if last.flags == flags => last.length += length,
            _ => runs.push(Run { length, flags }),
        }
    }
    runs
}
