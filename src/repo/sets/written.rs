//! Writes streams in virtnbdbackup's form, for tests.

use std::io::Write;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use serde_json::{Value, json};

use super::frame::{Frame, FrameKind};

/// A stream to be written.
#[derive(Clone, Debug)]
pub struct WrittenStream {
    /// The size of the disk in bytes.
    pub size: u64,
    /// The target of the disk.
    pub disk: String,
    /// When it was begun, in local time: `2024-11-12T02:00:03.123456`.
    pub date: String,
    /// The name of its checkpoint.
    pub checkpoint: String,
    /// The name of the parent's checkpoint; empty for a full backup.
    pub parent: String,
    /// The size in bytes of the pieces in which data is compressed; `None` for no compression.
    pub compressed: Option<usize>,
    /// The frames: the start on the disk and the bytes, or the number of zeroes.
    pub frames: Vec<(u64, Result<Vec<u8>, u64>)>,
}

impl WrittenStream {
    /// A full backup of this disk: data where a cluster of `cluster` bytes is not zero.
    pub fn full(disk: &str, content: &[u8], cluster: usize) -> WrittenStream {
        let mut frames: Vec<(u64, Result<Vec<u8>, u64>)> = Vec::new();
        for (number, part) in content.chunks(cluster).enumerate() {
            let is_zero = part.iter().all(|byte| *byte == 0);
            match frames.last_mut() {
                Some((_, Ok(bytes))) if !is_zero => bytes.extend_from_slice(part),
                Some((_, Err(zeroes))) if is_zero => *zeroes += part.len() as u64,
                _ => {
                    let content = if is_zero {
                        Err(part.len() as u64)
                    } else {
                        Ok(part.to_vec())
                    };
                    frames.push(((number * cluster) as u64, content));
                }
            }
        }
        WrittenStream {
            size: content.len() as u64,
            disk: disk.to_owned(),
            date: "2024-11-12T02:00:03.123456".to_owned(),
            checkpoint: "virtnbdbackup.0".to_owned(),
            parent: String::new(),
            compressed: None,
            frames,
        }
    }

    /// An incremental backup: the content of these ranges of a disk.
    pub fn incremental(disk: &str, number: u32, content: &[u8], ranges: &[(usize, usize)]) -> WrittenStream {
        let part =
            |(start, length): &(usize, usize)| (*start as u64, Ok(content[*start..start + length].to_vec()));
        WrittenStream {
            date: format!("2024-11-{:02}T02:00:03.123456", 12 + number.min(16)),
            checkpoint: format!("virtnbdbackup.{number}"),
            parent: format!("virtnbdbackup.{}", number.saturating_sub(1)),
            frames: ranges.iter().map(part).collect(),
            ..WrittenStream::full(disk, content, content.len().max(1))
        }
    }

    /// The bytes of the stream.
    pub fn bytes(&self) -> Vec<u8> {
        let data: usize = self
            .frames
            .iter()
            .map(|(_, content)| content.as_ref().map_or(0, Vec::len))
            .sum();
        let header = json!({
            "virtualSize": self.size,
            "dataSize": data,
            "date": self.date,
            "diskName": self.disk,
            "diskFormat": "qcow2",
            "checkpointName": self.checkpoint,
            "compressed": if self.compressed.is_some() { json!(2) } else { json!(false) },
            "compressionMethod": "lz4",
            "parentCheckpoint": self.parent,
            "incremental": !self.parent.is_empty(),
            "streamVersion": 2,
        });
        let header = header.to_string();
        let frame = |kind, start, length| Frame { kind, start, length }.bytes();
        let mut out = frame(FrameKind::Meta, 0, header.len() as u64);
        out.extend(header.as_bytes());
        out.extend(b"\r\n");
        let mut sizes = Vec::new();
        for (start, content) in &self.frames {
            match content {
                Err(zeroes) => out.extend(frame(FrameKind::Zero, *start, *zeroes)),
                Ok(bytes) => {
                    out.extend(frame(FrameKind::Data, *start, bytes.len() as u64));
                    match self.compressed {
                        None => out.extend(bytes),
                        Some(piece) => sizes.push(compress(bytes, piece, &mut out)),
                    }
                    out.extend(b"\r\n");
                }
            }
        }
        out.extend(frame(FrameKind::Stop, 0, 0));
        if self.compressed.is_some() {
            let list = Value::from(sizes).to_string();
            out.extend(list.as_bytes());
            out.extend(b"\r\n");
            out.extend(frame(FrameKind::Comp, 0, list.len() as u64));
        }
        out
    }

    /// The checksum of these bytes as virtnbdbackup writes it.
    pub fn checksum(bytes: &[u8]) -> String {
        adler2::adler32_slice(bytes).to_string()
    }
}

/// Compresses as virtnbdbackup does: long frames in pieces, and the list has an item for the frame.
fn compress(bytes: &[u8], piece: usize, out: &mut Vec<u8>) -> Value {
    let mut one = |part: &[u8]| {
        let frame = lz4_frame(part);
        out.extend(&frame);
        frame.len()
    };
    if bytes.len() < piece {
        return json!(one(bytes));
    }
    let sizes: Vec<usize> = bytes.chunks(piece).map(&mut one).collect();
    let sum: usize = sizes.iter().sum();
    json!({ sum.to_string(): sizes })
}

fn lz4_frame(bytes: &[u8]) -> Vec<u8> {
    let info = FrameInfo::new()
        .block_mode(BlockMode::Linked)
        .block_size(BlockSize::Max64KB)
        .block_checksums(true)
        .content_checksum(true)
        .content_size(Some(bytes.len() as u64));
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}
