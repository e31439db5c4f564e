//! Measures single steps of the data flow: `cargo bench --bench micro`.

use std::hint::black_box;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use vmsnap::image::digest::FileDigest;
use vmsnap::image::qcow2::{Qcow2Options, Qcow2Writer};
use vmsnap::model::block::{Block, BlockSink, CLUSTER, Content, ImageFile};
use vmsnap::model::buffer::{Buffer, BufferPool};
use vmsnap::model::extents::{ExtentPlanner, Run, Runs};
use vmsnap::model::stop::Stop;
use vmsnap::nbd::fuzzing::decode_script;
use vmsnap::ops::copy::BUFFER_SIZE;

const MIB: usize = 1 << 20;

/// An image file that keeps nothing, so that only the writer's own work is measured.
struct Nowhere;

impl ImageFile for Nowhere {
    fn write_at(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A chunk of a structured reply in the format of the NBD protocol.
fn chunk(kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Decodes the longest block status that QEMU sends, and the reply to a read.
fn nbd_decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nbd decode");
    let descriptors = 131_072u32;
    let mut payload = 1u32.to_be_bytes().to_vec();
    for number in 0..descriptors {
        payload.extend(4096u32.to_be_bytes());
        payload.extend((number % 2).to_be_bytes());
    }
    let status = chunk(5, 3, &payload);
    group.throughput(Throughput::Elements(descriptors.into()));
    group.bench_function("status of 131,072 extents", |bencher| {
        bencher.iter(|| decode_script(black_box(&status), true, 8192));
    });
    let read = chunk(1, 1, &[&0u64.to_be_bytes()[..], &[7; 8192]].concat());
    group.throughput(Throughput::Bytes(8192));
    group.bench_function("read of 8 KiB", |bencher| {
        bencher.iter(|| decode_script(black_box(&read), true, 8192));
    });
    group.finish();
}

/// Merges two metadata contexts whose runs end at different offsets.
fn extent_merging(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("extent merging");
    let alternating = |length: u64| -> Vec<Run> {
        let run = |number: u64| Run {
            length,
            flags: (number % 2) as u32,
        };
        (0..131_072).map(run).collect()
    };
    let (dirty, zero) = (alternating(CLUSTER), alternating(CLUSTER * 3 / 2));
    let size = 131_072 * CLUSTER;
    group.throughput(Throughput::Elements(131_072));
    group.bench_function("131,072 dirty runs", |bencher| {
        bencher.iter(|| {
            let mut planner = ExtentPlanner::new(size, None, false);
            let runs = |runs| Runs { runs, flag: 1 };
            planner.add_status(Some(runs(&dirty)), Some(runs(&zero)), size);
            let mut bytes = 0;
            while let Some(extent) = planner.take(BUFFER_SIZE as u64) {
                bytes += extent.length;
            }
            bytes
        });
    });
    group.finish();
}

/// Writes qcow2 images: digest, search for zeroes, tables, and the handover to the writing thread.
fn qcow2_writing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("qcow2 writing");
    group.sample_size(20).measurement_time(Duration::from_secs(4));
    let pool = BufferPool::new(16, BUFFER_SIZE);
    let works = [
        ("data in long runs", BUFFER_SIZE, Some(7), 128 * MIB),
        ("data in single clusters", CLUSTER as usize, Some(7), 128 * MIB),
        ("zeroes that were read", BUFFER_SIZE, Some(0), 128 * MIB),
        ("zero extents of a cluster", CLUSTER as usize, None, 128 * MIB),
    ];
    for (name, length, byte, total) in works {
        group.throughput(Throughput::Bytes(total as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut writer = writer();
                for number in 0..total / length {
                    // A gap after each block keeps blocks from being neighbours.
                    let offset = (2 * number * length) as u64;
                    let content = match byte {
                        Some(byte) => Content::Data(filled(&pool, length, byte)),
                        None => Content::Zero(length as u64),
                    };
                    writer
                        .write(Block { offset, content })
                        .expect("it accepts the block");
                }
                writer.finish().expect("it finishes")
            });
        });
    }
    group.finish();
}

fn writer() -> Qcow2Writer {
    let options = Qcow2Options {
        path: PathBuf::from("nowhere"),
        size: 1 << 40,
        backing: Some("beneath.qcow2".into()),
        detect_zeroes: true,
        stop: Stop::default(),
    };
    Qcow2Writer::new(Box::new(Nowhere), options).expect("it can be created")
}

/// A buffer of the pool with this content. Buffers that already have it are not filled again, so
/// that filling is not measured.
fn filled(pool: &BufferPool, length: usize, byte: u8) -> Buffer {
    let mut buffer = loop {
        if let Some(buffer) = pool.take_within(Duration::from_secs(1)) {
            break buffer;
        }
    };
    let ends = (buffer[0], buffer[buffer.len() - 1]);
    if ends != (byte, byte) {
        buffer.fill(byte);
    }
    buffer.set_len(length);
    buffer
}

/// Computes the digest as a backup does. Its time per byte is a lower limit for every backup.
fn digest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("digest");
    for length in [64 * 1024, 256 * 1024, MIB, BUFFER_SIZE] {
        let bytes = vec![7; length];
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(format!("pieces of {} KiB", length / 1024), |bencher| {
            bencher.iter_batched_ref(
                FileDigest::new,
                |digest| digest.update(black_box(&bytes)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(pieces, nbd_decode, extent_merging, qcow2_writing, digest);
criterion_main!(pieces);
