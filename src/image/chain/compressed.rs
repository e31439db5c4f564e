//! Compressed clusters of a chain that several threads read.

use std::sync::{Mutex, PoisonError};

use super::{ChainSource, Place};
use crate::image::qcow2::Decompressor;
use crate::image::qcow2::decompress::ClusterPart;
use crate::image::qcow2::layout::Fault;
use crate::image::{Error, Result};

/// How many decompressors are kept for later reads. Each holds about 400 KiB.
const KEPT: usize = 8;

impl ChainSource {
    /// The part of a compressed cluster that a lookup found, and the stored size of that cluster.
    pub(super) fn compressed_part(&self, place: Place) -> Option<(ClusterPart, usize)> {
        match place {
            Place::Compressed {
                layer,
                cluster,
                within,
            } => {
                let of = self.layers.get(layer)?;
                Some((of.part(layer, cluster, within), of.image.stored_length(cluster)))
            }
            Place::Data { .. } | Place::Zero | Place::Absent => None,
        }
    }
}

/// Decompressors of a chain, shared by the threads that read the chain. Any thread may use any of
/// them.
#[derive(Debug, Default)]
pub(super) struct Decompressors(Mutex<Vec<Decompressor>>);

impl Decompressors {
    /// Fills `out` with a part of a cluster, as [`Decompressor::read`] does.
    ///
    /// # Errors
    /// The errors of [`Decompressor::read`].
    pub(super) fn read(
        &self,
        out: &mut [u8],
        part: &ClusterPart,
        fetch: impl FnOnce(&mut Vec<u8>) -> Result<()>,
        fault: impl FnOnce(Fault) -> Error,
    ) -> Result<()> {
        let mut decompressor = self.take(part);
        let read = decompressor.read(out, part, fetch, fault);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(decompressor);
        }
        read
    }

    /// The decompressor that holds this cluster, else any other.
    fn take(&self, part: &ClusterPart) -> Decompressor {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.iter().position(|one| one.holds(part)) {
            Some(index) => kept.swap_remove(index),
            None => kept.pop().unwrap_or_default(),
        }
    }
}
