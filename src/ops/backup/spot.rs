//! Compares a few clusters that the bitmap marks as unchanged with the parent.
//!
//! A bitmap does not show which disk it belongs to: every disk has bitmaps of the same names. If an
//! image was overwritten with another domain's, or somebody cleared a bitmap, the incremental image
//! would be wrong. After the copy, a few clusters with data are therefore read from the parent and
//! from the same export. If one differs, the bitmap is not trusted.

use std::sync::Arc;

use crate::host::{BackupJob, ReadOptions};
use crate::model::block::{Block, BlockError, BlockErrorKind, BlockSource, CLUSTER, Content};
use crate::model::buffer::BufferPool;
use crate::model::clusters::ClusterSet;
use crate::model::random::Random;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::ops::Cause;
use crate::ops::copy::DEADLINE;
use crate::repo::DiskReader;

/// The number of clusters to compare. Another disk differs nearly everywhere, and each cluster
/// costs a read from slow storage.
const PLACES: u64 = 8;

/// The clusters to compare.
pub(super) struct SpotCheck {
    kept: Arc<dyn DiskReader>,
    /// Offsets of clusters on the disk, in bytes.
    places: Vec<u64>,
}

impl SpotCheck {
    /// Chooses random clusters where the parent's chain holds data. `size_then` is the size of the
    /// disk in the parent, in bytes. The same `seed` chooses the same clusters.
    ///
    /// # Errors
    /// [`BlockErrorKind::Distrusted`] if the chain cannot be read, because no image can depend on
    /// it then; [`BlockErrorKind::Stopped`] after a request to stop.
    pub(super) fn choose(
        kept: Arc<dyn DiskReader>,
        size_then: u64,
        seed: u64,
    ) -> Result<SpotCheck, BlockError> {
        // The last cluster is left out if it is incomplete: the disk may have grown since.
        let clusters = size_then / CLUSTER;
        // Seeds may be small numbers, so their bits are mixed first.
        let seed = Random::new(seed).next();
        let mut places = Vec::new();
        for number in 0..PLACES.min(clusters) {
            // The clusters lie in equal parts of the disk, all at the same distance from the start
            // of their part, so one random number is enough.
            let part = u128::from(clusters) * u128::from(number) / u128::from(PLACES);
            let start = (part + u128::from(seed) % u128::from(clusters.div_ceil(PLACES))) as u64;
            let found = match kept
                .data_from(start.min(clusters - 1) * CLUSTER)
                .map_err(unreadable)?
            {
                Some(place) => Some(place),
                None => kept.data_from(0).map_err(unreadable)?,
            };
            let found = found.filter(|place| place / CLUSTER < clusters);
            places.extend(found.filter(|place| !places.contains(place)));
        }
        Ok(SpotCheck { kept, places })
    }

    /// Wraps the source of the copy. The clusters that it returns have changed, so they are dropped
    /// from the check.
    pub(super) fn watch<'a>(&'a mut self, source: &'a mut dyn BlockSource) -> Watched<'a> {
        Watched {
            source,
            places: &mut self.places,
        }
    }

    /// Compares the clusters that are still unchanged after the copy.
    ///
    /// # Errors
    /// [`BlockErrorKind::Distrusted`] if a cluster differs or the parent cannot be read; another
    /// error if the export cannot be read.
    pub(super) fn compare(self, job: &dyn BackupJob, target: &str, stop: &Stop) -> Result<(), Cause> {
        if self.places.is_empty() {
            return Ok(());
        }
        let mut only = ClusterSet::new(self.kept.size());
        self.places.iter().for_each(|place| only.add(*place, CLUSTER));
        let options = ReadOptions {
            changes_only: false,
            only: Some(Arc::new(only)),
            all_from: None,
            beneath: None,
            pool: BufferPool::new(PLACES as usize, CLUSTER as usize),
            deadline: DEADLINE,
            stop: stop.clone(),
        };
        let mut live = job.open(target, &options).map_err(Cause::Host)?;
        // Adjacent clusters may come as one block.
        while let Some(block) = live.next_block().map_err(Cause::Copy)? {
            let is_same = self.is_same(&block);
            if !is_same.map_err(|error| Cause::Copy(unreadable(error)))? {
                let what = format!(
                    "the disk differs from the parent at offset {} (in bytes) although the bitmap marks the data there as unchanged; was the disk replaced?",
                    block.offset
                );
                return Err(Cause::Copy(BlockError::new(BlockErrorKind::Distrusted, what)));
            }
        }
        Ok(())
    }

    /// Whether the parent holds the same bytes as this block.
    fn is_same(&self, block: &Block) -> Result<bool, BlockError> {
        match &block.content {
            Content::Data(now) => self.kept.holds(now, block.offset),
            Content::Zero(length) => {
                let zeroes = vec![0; usize::try_from(*length).unwrap_or(0)];
                self.kept.holds(&zeroes, block.offset)
            }
        }
    }
}

/// Turns a read error of the parent into [`BlockErrorKind::Distrusted`]: no image can depend on a
/// chain that cannot be read.
fn unreadable(error: BlockError) -> BlockError {
    match error.kind {
        BlockErrorKind::Stopped => error,
        _ => {
            let what = format!("the parent cannot be read: {}", with_sources(&error));
            BlockError::new(BlockErrorKind::Distrusted, what)
        }
    }
}

/// A source that drops the clusters of its blocks from the spot check.
pub(super) struct Watched<'a> {
    source: &'a mut dyn BlockSource,
    places: &'a mut Vec<u64>,
}

impl BlockSource for Watched<'_> {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn next_block(&mut self) -> Result<Option<Block>, BlockError> {
        let block = self.source.next_block()?;
        if let Some(block) = &block {
            let covered = block.offset..block.offset + block.length();
            self.places.retain(|place| !covered.contains(place));
        }
        Ok(block)
    }
}
