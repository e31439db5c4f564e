//! Compresses clusters on several threads, and writes them into one image.
//!
//! The caller's thread hands over blocks. Worker threads compress them in pieces. One more thread
//! takes the pieces in the disk's order, lays out the file and hashes it. The thread of the log
//! writes the file. None of them takes a buffer from the source's pool, so a source that waits for
//! a free buffer always gets one.
//!
//! The content of the file depends on the blocks and the options, not on the threads.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::{fmt, io};

use super::shrink::{Form, Shrinker, Stored};
use super::{Base, Qcow2Options, Qcow2Writer};
use crate::image::{Error, Result};
use crate::model::block::{Block, BlockError, BlockSink, CLUSTER, Content, ImageFile, Written};
use crate::model::buffer::Buffer;
use crate::model::compression::ZstdLevel;

/// Length of a worker's piece, in bytes; whole clusters.
const PIECE: usize = 1 << 20;
/// The most workers of one image.
const MOST_WORKERS: usize = 8;
/// Pieces that may wait in addition to one for each worker.
const WAITING: usize = 4;

/// Writes blocks as [`Qcow2Writer`] does, but stores clusters compressed. A cluster that would not
/// become at least a sixteenth shorter stays plain.
///
/// Memory: besides that of the writer, a piece of 1 MiB and the tables of zstd for each worker, and
/// five more pieces.
pub struct CompressingWriter {
    path: PathBuf,
    /// Parts for the assembling thread, in order. `None` once the image is finished, or after a
    /// failure.
    parts: Option<SyncSender<Part>>,
    jobs: Option<Sender<Job>>,
    cancelled: Arc<AtomicBool>,
    assembler: Option<JoinHandle<Result<Option<Written>>>>,
    workers: Vec<JoinHandle<()>>,
}

/// The next part of the disk.
enum Part {
    Zero { offset: u64, length: u64 },
    Data { offset: u64, done: Receiver<Stored> },
    End,
}

/// A piece of a block that a worker compresses.
struct Job {
    buffer: Arc<Buffer>,
    range: Range<usize>,
    done: SyncSender<Stored>,
}

impl CompressingWriter {
    /// Begins an image in a file that is new and empty.
    ///
    /// # Errors
    /// The errors of [`Qcow2Writer::new`].
    pub fn new(file: Box<dyn ImageFile>, options: Qcow2Options, level: ZstdLevel) -> Result<Self> {
        CompressingWriter::with_workers(file, options, level, most_workers())
    }

    /// The same with this number of workers.
    fn with_workers(
        file: Box<dyn ImageFile>,
        options: Qcow2Options,
        level: ZstdLevel,
        workers: usize,
    ) -> Result<Self> {
        CompressingWriter::of(Qcow2Writer::new(file, options)?, level, workers)
    }

    /// Continues an image, as [`Qcow2Writer::continued`] does.
    ///
    /// # Errors
    /// The errors of [`Qcow2Writer::continued`].
    pub fn continued(
        file: Box<dyn ImageFile>,
        options: Qcow2Options,
        base: Base,
        level: ZstdLevel,
    ) -> Result<Self> {
        CompressingWriter::of(
            Qcow2Writer::continued(file, options, base)?,
            level,
            most_workers(),
        )
    }

    /// Compresses for this image.
    fn of(image: Qcow2Writer, level: ZstdLevel, workers: usize) -> Result<Self> {
        let path = image.options.path.clone();
        let detect_zeroes = image.options.detect_zeroes;
        let (parts, parts_in_order) = sync_channel(workers + WAITING);
        let (jobs, waiting_jobs) = channel();
        let mut writer = CompressingWriter {
            parts: Some(parts),
            jobs: Some(jobs),
            cancelled: Arc::default(),
            assembler: None,
            workers: Vec::new(),
            path,
        };
        let failed = |error| Error::of_file("start a thread for", &writer.path, error);
        let assembler = Builder::new()
            .name("image-assembler".into())
            .spawn(move || assemble(image, &parts_in_order));
        writer.assembler = Some(assembler.map_err(failed)?);
        let waiting_jobs = Arc::new(Mutex::new(waiting_jobs));
        for _ in 0..workers {
            let jobs = Arc::clone(&waiting_jobs);
            let cancelled = Arc::clone(&writer.cancelled);
            let shrinker = Shrinker::new(level, detect_zeroes).map_err(failed)?;
            let worker = Builder::new()
                .name("compressor".into())
                .spawn(move || work(shrinker, &jobs, &cancelled));
            writer.workers.push(worker.map_err(failed)?);
        }
        Ok(writer)
    }

    fn take(&mut self, block: Block) -> Result<()> {
        let offset = block.offset;
        match block.content {
            Content::Zero(length) => self.send(Part::Zero { offset, length }),
            Content::Data(buffer) => {
                let buffer = Arc::new(buffer);
                (0..buffer.len()).step_by(PIECE).try_for_each(|start| {
                    let range = start..buffer.len().min(start + PIECE);
                    self.compress(offset + start as u64, &buffer, range)
                })
            }
        }
    }

    fn compress(&mut self, offset: u64, buffer: &Arc<Buffer>, range: Range<usize>) -> Result<()> {
        let (sender, done) = sync_channel(1);
        // The place among the parts bounds the jobs.
        self.send(Part::Data { offset, done })?;
        let job = Job {
            buffer: Arc::clone(buffer),
            range,
            done: sender,
        };
        if let Some(jobs) = &self.jobs {
            // Workers end only after this end of the channel. If one panicked, its part says so.
            let _ = jobs.send(job);
        }
        Ok(())
    }

    /// Sends a part. Waits while the workers are busy, and reports a failure of an earlier part.
    fn send(&mut self, part: Part) -> Result<()> {
        let parts = self.parts.as_ref();
        if parts.is_some_and(|parts| parts.send(part).is_ok()) {
            return Ok(());
        }
        self.end()?;
        Err(self.closed())
    }

    /// Waits for all threads, and returns what was written if the image is complete.
    fn end(&mut self) -> Result<Option<Written>> {
        self.parts = None;
        self.jobs = None;
        let assembled = self.assembler.take().map(JoinHandle::join);
        for worker in self.workers.drain(..) {
            // The assembler has reported a panic of a worker.
            let _ = worker.join();
        }
        match assembled {
            None => Ok(None),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(panicked(&self.path)),
        }
    }

    fn closed(&self) -> Error {
        Error::Closed {
            path: self.path.clone(),
        }
    }
}

impl BlockSink for CompressingWriter {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        Ok(self.take(block)?)
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        self.send(Part::End)?;
        let written = self.end()?;
        Ok(written.ok_or_else(|| self.closed())?)
    }
}

impl Drop for CompressingWriter {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let _ = self.end();
    }
}

impl fmt::Debug for CompressingWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = self.workers.len();
        write!(f, "CompressingWriter({}, {threads} workers)", self.path.display())
    }
}

fn most_workers() -> usize {
    available_parallelism().map_or(1, usize::from).min(MOST_WORKERS)
}

fn panicked(path: &Path) -> Error {
    Error::of_file("write", path, io::Error::other("a compressing thread panicked"))
}

/// Compresses jobs until there are no more.
fn work(mut shrinker: Shrinker, jobs: &Mutex<Receiver<Job>>, cancelled: &AtomicBool) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { buffer, range, done }) = next else {
            return;
        };
        if !cancelled.load(Ordering::SeqCst) {
            // After a failure the receiver is gone.
            let _ = done.send(shrinker.shrink(buffer, range));
        }
    }
}

/// Stores parts in order. `None` if they stop before the end.
fn assemble(mut image: Qcow2Writer, parts: &Receiver<Part>) -> Result<Option<Written>> {
    for part in parts {
        match part {
            Part::Zero { offset, length } => image.take(Block {
                offset,
                content: Content::Zero(length),
            })?,
            Part::Data { offset, done } => {
                let stored = done.recv().map_err(|_| panicked(&image.options.path))?;
                image.take_stored(offset, &stored)?;
            }
            Part::End => return image.complete().map(Some),
        }
    }
    Ok(None)
}

impl Qcow2Writer {
    /// Stores a piece that a worker has compressed.
    fn take_stored(&mut self, offset: u64, stored: &Stored) -> Result<()> {
        self.log.check_open()?;
        self.order.accept(offset, stored.length as u64)?;
        for run in &stored.runs {
            let guest = offset + run.start as u64;
            match &run.form {
                Form::Zero => self.store_zero(guest, run.length as u64)?,
                Form::Plain(range) => {
                    if let Some(buffer) = &stored.buffer {
                        let block = guest - range.start as u64;
                        self.store_run(block, buffer, range.start, range.end)?;
                    }
                }
                Form::Compressed(range) => {
                    let length = (run.length as u64).min(CLUSTER);
                    self.store_compressed(guest, length, &stored.bytes[range.clone()])?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::qcow2::Image;
    use crate::image::qcow2::check::check;
    use crate::image::samples::{
        C, Full, bytes_of, compressed_image, data, link, memory_file, options, read_chain,
    };
    use crate::io::DirectFile;
    use crate::model::block::BlockErrorKind;
    use crate::model::buffer::BufferPool;
    use crate::model::stop::{Stop, StopReason};

    /// Clusters of noise and text in turns of different lengths.
    fn mixture(clusters: usize) -> Vec<u8> {
        let mut bytes = vec![0; clusters * C];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        for (number, cluster) in bytes.chunks_mut(C).enumerate() {
            let is_text = number / (1 + number % 23) % 2 == 0;
            if is_text {
                cluster.iter_mut().for_each(|byte| *byte %= 5);
            }
        }
        bytes
    }

    fn written_by(workers: usize, bytes: &[u8]) -> Vec<u8> {
        let file = memory_file(&[]);
        let direct = DirectFile::new(file.try_clone().expect("a second handle"));
        let options = options(bytes.len() as u64, None);
        let level = ZstdLevel::default();
        let writer = CompressingWriter::with_workers(Box::new(direct), options, level, workers);
        let mut writer = writer.expect("it begins");
        for (number, part) in bytes.chunks(7 * C).enumerate() {
            writer
                .write(data((number * 7 * C) as u64, part))
                .expect("it takes the block");
        }
        writer.finish().expect("it finishes");
        bytes_of(&file)
    }

    #[test]
    fn the_file_does_not_depend_on_the_threads() {
        let bytes = mixture(200);
        let files = [1, 2, 5].map(|workers| written_by(workers, &bytes));
        assert!(files[0] == files[1] && files[0] == files[2]);
    }

    #[test]
    fn a_mixture_is_packed_with_few_gaps() {
        let bytes = mixture(1200);
        let block = data(0, &bytes);
        let (file, written) = compressed_image(options(bytes.len() as u64, None), [block]);
        let found = read_chain(vec![link(&file, Some(&written))]).expect("it is sound");
        assert!(found == bytes);
        let mut image = Image::open(file, "x").expect("it is one");
        assert_eq!(check(&image, &Stop::default()).expect("it reads"), []);
        let (mut at, mut needed) = (0, 0);
        while let Some(run) = image.run_at(at).expect("sound tables") {
            needed += match run.mapping {
                crate::image::qcow2::Mapping::Compressed { cluster, .. } => cluster.length(),
                _ => run.length,
            };
            at += run.length;
        }
        assert!(
            written.file_bytes < needed / 100 * 105 + 6 * CLUSTER,
            "{written:?}"
        );
    }

    #[test]
    fn data_that_do_not_shrink_make_a_plain_image() {
        let mut bytes = vec![0; 20 * C];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let options = || options(bytes.len() as u64, None);
        let (compressed, written) = compressed_image(options(), [data(0, &bytes)]);
        let (plain, _) = crate::image::samples::image(options(), [data(0, &bytes)]);
        assert!(!written.is_compressed);
        assert!(bytes_of(&compressed) == bytes_of(&plain));
    }

    #[test]
    fn a_source_with_two_buffers_is_never_stuck() {
        let pool = BufferPool::new(2, 2 << 20);
        let direct = DirectFile::new(memory_file(&[]));
        let size = 40 << 20;
        let level = ZstdLevel::default();
        let writer = CompressingWriter::new(Box::new(direct), options(size, None), level);
        let mut writer = writer.expect("it begins");
        for offset in (0..size).step_by(2 << 20) {
            let deadline = std::time::Duration::from_secs(60);
            let mut buffer = pool.take_within(deadline).expect("a buffer comes back");
            buffer.set_len(2 << 20);
            buffer.fill(offset as u8 | 1);
            let content = Content::Data(buffer);
            writer.write(Block { offset, content }).expect("it takes it");
        }
        assert_eq!(writer.finish().expect("it finishes").data_bytes, size);
    }

    fn begun(size: u64) -> CompressingWriter {
        let level = ZstdLevel::default();
        CompressingWriter::new(Box::new(Full), options(size, None), level).expect("it begins")
    }

    #[test]
    fn full_file_system_is_reported_as_such() {
        let mut noise = vec![0; 16 * C];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut writer = begun(100 << 20);
        let failed = (0..100).find_map(|n| writer.write(data(n << 20, &noise)).err());
        let error = failed.or_else(|| writer.finish().err()).expect("it is full");
        assert_eq!(error.kind, BlockErrorKind::NoSpace);
        assert!(writer.write(data(0, &noise)).is_err() && writer.finish().is_err());
    }

    #[test]
    fn blocks_out_of_place_are_refused() {
        let mut writer = begun(10 << 20);
        writer.write(data(1 << 20, &[1; C])).expect("it is taken first");
        let written = writer.write(data(0, &[1; C])).err();
        let error = written.or_else(|| writer.finish().err()).expect("it is refused");
        assert_eq!(error.kind, BlockErrorKind::Invalid);
    }

    #[test]
    fn a_wish_to_stop_ends_it() {
        let options = options(10 << 20, None);
        let stop = options.stop.clone();
        let level = ZstdLevel::default();
        let mut writer = CompressingWriter::new(Box::new(Full), options, level).expect("it begins");
        stop.request(StopReason::Interrupted);
        let error = writer.finish().expect_err("it was asked to stop");
        assert_eq!(error.kind, BlockErrorKind::Stopped);
    }
}
