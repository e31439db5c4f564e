//! The files that make up a disk, the newest one on top.

use super::layer::{ChainFile, Layer};
use super::walk::{Item, Storage};
use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::stop::Stop;
use crate::repo::Result;

/// A range of a disk with one origin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Its end on the disk, in bytes.
    pub(super) end: u64,
    /// Where its content comes from.
    pub(super) origin: Origin,
}

/// Where the content of a range of a disk comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// From this item of the layer with this number; the newest layer has number 0.
    Layer(usize, Item),
    /// From layers beneath the given ones.
    Beneath,
    /// From no layer; the range reads as zero.
    Nothing,
}

impl Origin {
    /// Whether the range is known to read as zero, without reading any bytes.
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Origin::Layer(_, item) => item.content == Storage::Zero,
            Origin::Nothing => true,
            Origin::Beneath => false,
        }
    }
}

/// The files that make up a disk.
#[derive(Debug)]
pub(super) struct Stack {
    layers: Vec<Layer>,
    /// For each layer, the offset from which on it does not show: the smallest size of the disk
    /// from then on. What a shrunk disk lost does not come back when the disk grows again.
    limits: Vec<u64>,
    size: u64,
}

impl Stack {
    /// Opens the files, newest first, of a disk that has `size` bytes now.
    ///
    /// # Errors
    /// A file cannot be opened, is not a complete stream, or is for a disk of another size.
    pub(super) fn open(files: &[ChainFile], size: u64, stop: &Stop) -> Result<Stack> {
        let layers = files.iter().map(|file| Layer::open(file, stop));
        let layers: Vec<Layer> = layers.collect::<Result<_>>()?;
        if let (Some(newest), Some(file)) = (layers.first(), files.first())
            && newest.size() != size
        {
            let what = format!(
                "{} was replaced while vmsnap was reading it: run again",
                file.path.display()
            );
            return Err(BlockError::new(BlockErrorKind::Invalid, what).into());
        }
        let mut limit = size;
        let limits = layers.iter().map(|layer| {
            limit = limit.min(layer.size());
            limit
        });
        Ok(Stack {
            limits: limits.collect(),
            layers,
            size,
        })
    }

    /// The size of the disk in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The layers.
    pub(super) fn layers_mut(&mut self) -> &mut [Layer] {
        &mut self.layers
    }

    /// The range that begins at `at`, which must be within the disk, as the newest `count` layers
    /// show it.
    ///
    /// # Errors
    /// A file is damaged or cannot be read, or a stop was requested.
    pub(super) fn segment(&mut self, at: u64, count: usize) -> std::result::Result<Segment, BlockError> {
        let mut end = self.size;
        for (place, layer) in self.layers.iter_mut().enumerate().take(count) {
            let limit = self.limits[place];
            if at >= limit {
                // Older layers do not show here either.
                let origin = Origin::Nothing;
                return Ok(Segment { end, origin });
            }
            end = end.min(limit);
            let Some(item) = layer.seek(at)? else { continue };
            if item.offset <= at {
                return Ok(Segment {
                    end: end.min(item.end()),
                    origin: Origin::Layer(place, item),
                });
            }
            end = end.min(item.offset);
        }
        let beneath = self.limits.get(count);
        Ok(match beneath {
            Some(limit) if at < *limit => Segment {
                end: end.min(*limit),
                origin: Origin::Beneath,
            },
            _ => Segment {
                end,
                origin: Origin::Nothing,
            },
        })
    }

    /// Fills `out` with the content of the disk from `at` on. Bytes beyond the end are zero.
    ///
    /// # Errors
    /// A file is damaged or cannot be read, or a stop was requested.
    pub(super) fn fill(&mut self, mut out: &mut [u8], mut at: u64) -> std::result::Result<(), BlockError> {
        while !out.is_empty() {
            if at >= self.size {
                out.fill(0);
                return Ok(());
            }
            let segment = self.segment(at, usize::MAX)?;
            let length = usize::try_from(segment.end - at).map_or(out.len(), |left| left.min(out.len()));
            let (now, later) = out.split_at_mut(length);
            match segment.origin {
                Origin::Layer(place, item) => self.layers[place].read(&item, now, at)?,
                Origin::Nothing | Origin::Beneath => now.fill(0),
            }
            out = later;
            at += length as u64;
        }
        Ok(())
    }
}
