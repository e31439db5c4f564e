//! Decides cluster by cluster whether to compress, and compresses.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use zstd::bulk::Compressor;

use crate::image::zero;
use crate::model::block::CLUSTER;
use crate::model::buffer::Buffer;
use crate::model::compression::ZstdLevel;

const CLUSTER_BYTES: usize = CLUSTER as usize;
/// The longest compressed form of a cluster that is used, in bytes. It has to save a sixteenth,
/// because readers need time to decompress it.
const LONGEST: usize = CLUSTER_BYTES / 16 * 15;
/// Bytes of a sample of a cluster, and of each of its parts.
const SAMPLE: usize = 4096;
const SAMPLE_PART: usize = 512;
/// The longest compressed form of a sample that makes its cluster worth a try, in bytes.
const LONGEST_SAMPLE: usize = SAMPLE / 32 * 31;

/// A piece of a block in the form in which it is stored.
#[derive(Debug)]
pub(super) struct Stored {
    /// How much of the disk it is, in bytes.
    pub(super) length: usize,
    /// Its runs, in order and without gaps.
    pub(super) runs: Vec<Run>,
    /// The compressed forms of its clusters.
    pub(super) bytes: Vec<u8>,
    /// The block, if a part of it is stored plain.
    pub(super) buffer: Option<Arc<Buffer>>,
}

/// Some clusters of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it begins in the piece, in bytes.
    pub(super) start: usize,
    /// Its length, in bytes.
    pub(super) length: usize,
    pub(super) form: Form,
}

/// How clusters are stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    Zero,
    /// This range of the block as it is.
    Plain(Range<usize>),
    /// One cluster: this range of the compressed bytes.
    Compressed(Range<usize>),
}

/// Compresses the clusters of pieces.
pub(super) struct Shrinker {
    zstd: Compressor<'static>,
    quick: Compressor<'static>,
    detect_zeroes: bool,
}

impl Shrinker {
    pub(super) fn new(level: ZstdLevel, detect_zeroes: bool) -> io::Result<Shrinker> {
        Ok(Shrinker {
            zstd: Compressor::new(level.number())?,
            quick: Compressor::new(1)?,
            detect_zeroes,
        })
    }

    /// Compresses the clusters of a piece that become short enough.
    pub(super) fn shrink(&mut self, buffer: Arc<Buffer>, range: Range<usize>) -> Stored {
        let mut stored = Stored {
            length: range.len(),
            runs: Vec::new(),
            // Enough for every attempt, so that it never grows.
            bytes: Vec::with_capacity(range.len()),
            buffer: None,
        };
        let piece = &buffer[range.clone()];
        let all = || vec![(false, 0, piece.len())];
        let runs = if self.detect_zeroes {
            zero::runs(piece).collect()
        } else {
            all()
        };
        let mut is_dense = false;
        for (is_zero, start, end) in runs {
            if is_zero {
                stored.runs.push(Run {
                    start,
                    length: end - start,
                    form: Form::Zero,
                });
                continue;
            }
            for (number, cluster) in piece[start..end].chunks(CLUSTER_BYTES).enumerate() {
                let start = start + number * CLUSTER_BYTES;
                // After a cluster that did not shrink, a sample decides whether to try the next.
                let is_worth_it = !is_dense || self.sample_shrinks(cluster);
                let packed = match is_worth_it {
                    true => self.compress(cluster, &mut stored.bytes),
                    false => None,
                };
                is_dense = packed.is_none();
                let form = match packed {
                    Some(packed) => Form::Compressed(packed),
                    None => Form::Plain(range.start + start..range.start + start + cluster.len()),
                };
                stored.push(start, cluster.len(), form);
            }
        }
        let is_plain = |run: &Run| matches!(run.form, Form::Plain(_));
        if stored.runs.iter().any(is_plain) {
            stored.buffer = Some(buffer);
        }
        stored
    }

    /// Appends the compressed form of a cluster, if it is short enough. The last cluster of a disk
    /// may be incomplete; its frame holds a whole one nevertheless.
    fn compress(&mut self, cluster: &[u8], bytes: &mut Vec<u8>) -> Option<Range<usize>> {
        let mut whole = Vec::new();
        let cluster = match cluster.len() {
            CLUSTER_BYTES => cluster,
            _ => {
                whole.extend_from_slice(cluster);
                whole.resize(CLUSTER_BYTES, 0);
                &whole
            }
        };
        let start = bytes.len();
        bytes.resize(start + LONGEST, 0);
        // The only error of a compressor is that the result does not fit.
        let length = self.zstd.compress_to_buffer(cluster, &mut bytes[start..]);
        let length = length.ok().filter(|length| *length > 0);
        bytes.truncate(start + length.unwrap_or(0));
        length.map(|length| start..start + length)
    }

    /// Whether parts from all over a cluster become shorter.
    fn sample_shrinks(&mut self, cluster: &[u8]) -> bool {
        let mut sample = [0; SAMPLE];
        let distance = cluster.len() / (SAMPLE / SAMPLE_PART);
        if distance < SAMPLE_PART {
            return true;
        }
        for (number, part) in sample.chunks_mut(SAMPLE_PART).enumerate() {
            let start = number * distance;
            part.copy_from_slice(&cluster[start..start + SAMPLE_PART]);
        }
        let mut packed = [0; LONGEST_SAMPLE];
        self.quick.compress_to_buffer(&sample, &mut packed[..]).is_ok()
    }
}

impl Stored {
    /// Adds clusters. Plain ones that follow each other are one run.
    fn push(&mut self, start: usize, length: usize, form: Form) {
        if let (Form::Plain(range), Some(last)) = (&form, self.runs.last_mut())
            && let Form::Plain(before) = &mut last.form
        {
            before.end = range.end;
            last.length += length;
            return;
        }
        self.runs.push(Run { start, length, form });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    /// The forms of the clusters, in runs: z for zero, p for plain, c for compressed.
    fn forms(bytes: &[u8], detect_zeroes: bool) -> (String, Stored) {
        let mut buffer = Buffer::alone(bytes.len() + CLUSTER_BYTES);
        buffer.set_len(bytes.len() + CLUSTER_BYTES);
        buffer[CLUSTER_BYTES..].copy_from_slice(bytes);
        let mut shrinker = Shrinker::new(ZstdLevel::default(), detect_zeroes).expect("it begins");
        let range = CLUSTER_BYTES..bytes.len() + CLUSTER_BYTES;
        let stored = shrinker.shrink(Arc::new(buffer), range);
        let word = |run: &Run| {
            let letter = match run.form {
                Form::Zero => 'z',
                Form::Plain(_) => 'p',
                Form::Compressed(_) => 'c',
            };
            format!("{letter}{}", run.length.div_ceil(CLUSTER_BYTES))
        };
        let words: Vec<String> = stored.runs.iter().map(word).collect();
        (words.join(" "), stored)
    }

    #[test]
    fn each_cluster_is_stored_in_its_shortest_form() {
        let mut bytes = vec![7; 2 * CLUSTER_BYTES];
        bytes.extend(random(3 * CLUSTER_BYTES));
        bytes.extend(vec![0; 2 * CLUSTER_BYTES]);
        bytes.extend(vec![9; 512]);
        let (forms_, stored) = forms(&bytes, true);
        assert_eq!(forms_, "c1 c1 p3 z2 c1");
        assert_eq!(stored.length, bytes.len());
        let plain = stored.runs[2].form == Form::Plain(3 * CLUSTER_BYTES..6 * CLUSTER_BYTES);
        assert!(plain && stored.buffer.is_some());
        assert_eq!(forms(&bytes, false).0, "c1 c1 p3 c1 c1 c1");
    }

    #[test]
    fn compressible_data_after_dense_data_are_noticed() {
        let mut bytes = random(4 * CLUSTER_BYTES);
        bytes.extend((0..2 * CLUSTER_BYTES).map(|n| (n / 999) as u8));
        assert_eq!(forms(&bytes, true).0, "p4 c1 c1");
    }

    #[test]
    fn a_block_is_released_when_nothing_of_it_is_plain() {
        assert!(forms(&[5; CLUSTER_BYTES], true).1.buffer.is_none());
    }

    #[test]
    fn each_form_is_one_frame_of_one_cluster() {
        let (_, stored) = forms(&[5; CLUSTER_BYTES + 512], true);
        for run in &stored.runs {
            let Form::Compressed(range) = &run.form else {
                panic!("it shrinks");
            };
            let frame = zstd::bulk::decompress(&stored.bytes[range.clone()], CLUSTER_BYTES).expect("a frame");
            assert_eq!(frame.len(), CLUSTER_BYTES);
            assert!(frame[..run.length].iter().all(|byte| *byte == 5));
            assert!(frame[run.length..].iter().all(|byte| *byte == 0));
        }
    }
}
