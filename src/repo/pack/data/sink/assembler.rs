//! Puts windows in the disk's order: adds their blocks to packs, and writes the map.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, sync_channel};

use zstd::bulk::Compressor;

use super::draft::Draft;
use super::worker::{Form, Job, Piece, Planned, ReadyBlock};
use super::{Part, SinkContext, panicked};
use crate::model::block::{CLUSTER, Written};
use crate::repo::pack::data::id::BlockId;
use crate::repo::pack::data::packer::Shelf;
use crate::repo::pack::data::page::LEAF_CLUSTERS;
use crate::repo::pack::data::sealer::{Sealed, compressor};
use crate::repo::pack::objects::{ObjectError, ObjectErrorKind};
use crate::repo::pack_error::{PackError, Result};

/// The number of shared blocks that workers seal at the same time.
const SEALING: usize = 4;

/// Takes windows in order.
pub(super) struct Assembler {
    context: Arc<SinkContext>,
    draft: Draft,
    pages: Pages,
    jobs: Sender<Job>,
    shared: SharedBlock,
    sealing: VecDeque<Sealing>,
    size: u64,
    written: Written,
}

/// A block that several windows of one leaf share.
#[derive(Default)]
struct SharedBlock {
    bytes: Vec<u8>,
    /// Clusters of the disk, with their place in the block.
    pieces: Vec<Piece>,
}

/// A block that a worker seals.
struct Sealing {
    id: BlockId,
    plain: usize,
    done: Receiver<Result<Option<Sealed>>>,
}

/// Stores pages.
struct Pages {
    context: Arc<SinkContext>,
    zstd: Option<Compressor<'static>>,
    /// The bytes that were stored.
    bytes: u64,
}

impl Pages {
    fn store(&mut self, page: Vec<u8>) -> Result<BlockId> {
        let context = &self.context;
        let id = context.sealer.id(&page);
        if !context.blocks.is_stored(&id, context.reuse, &context.stop)? {
            let sealed = context.sealer.seal_block(&id, &page, self.zstd.as_mut());
            let sealed = sealed.map_err(PackError::Seal)?.bytes;
            let packer = &context.packer;
            if packer.add(Shelf::Pages, id, &sealed, page.len(), &context.stop)? {
                self.bytes += sealed.len() as u64;
            }
        }
        Ok(id)
    }
}

impl Assembler {
    pub(super) fn new(
        context: &Arc<SinkContext>,
        draft: Draft,
        size: u64,
        jobs: Sender<Job>,
    ) -> Result<Assembler> {
        Ok(Assembler {
            context: Arc::clone(context),
            draft,
            pages: Pages {
                context: Arc::clone(context),
                zstd: compressor(context.compression).map_err(PackError::Seal)?,
                bytes: 0,
            },
            jobs,
            shared: SharedBlock::default(),
            sealing: VecDeque::new(),
            size,
            written: Written::default(),
        })
    }

    /// Takes parts in order. Returns `None` if they end before the end of the disk.
    pub(super) fn run(mut self, parts: &Receiver<Part>) -> Result<Option<Written>> {
        for part in parts {
            if let Some(reason) = self.context.stop.reason() {
                let kind = ObjectErrorKind::Stopped(reason);
                return Err(ObjectError::new("write", "a disk".to_owned(), kind).into());
            }
            match part {
                Part::Zero { first, end } => self.take_zeroes(first, end)?,
                Part::Window(done) => {
                    let planned = done.recv().map_err(|_| panicked())?;
                    self.take_window(planned?)?;
                }
                Part::End => return self.finish().map(Some),
            }
        }
        Ok(None)
    }

    fn take_zeroes(&mut self, first: u64, end: u64) -> Result<()> {
        self.enter(first, end)?;
        self.written.zero_bytes += (end * CLUSTER).min(self.size) - first * CLUSTER;
        let pages = &mut self.pages;
        self.draft.clear(first..end, &mut |page| pages.store(page))
    }

    fn take_window(&mut self, planned: Planned) -> Result<()> {
        let Planned { first, count, .. } = planned;
        self.enter(first, first + count)?;
        self.written.data_bytes += planned.data_bytes;
        self.written.zero_bytes += planned.zero_bytes;
        match planned.form {
            Form::Whole(block, pieces) => {
                let pages = &mut self.pages;
                let clusters = first..first + count;
                self.draft.clear(clusters, &mut |page| pages.store(page))?;
                let Some(block) = block else { return Ok(()) };
                let id = block.id;
                self.add(block)?;
                let moved = pieces.iter().map(|piece| Piece {
                    first: first + piece.first,
                    ..*piece
                });
                self.set(moved.collect(), id)
            }
            Form::Part { zeroes, data, bytes } => {
                for stretch in zeroes {
                    let start = first + stretch.first as u64;
                    let pages = &mut self.pages;
                    let clusters = start..start + stretch.count as u64;
                    self.draft.clear(clusters, &mut |page| pages.store(page))?;
                }
                if self.shared.bytes.len() + bytes.len() > self.context.block_bytes as usize {
                    self.close_shared()?;
                }
                let base = (self.shared.bytes.len() as u64 / CLUSTER) as u16;
                if self.shared.bytes.capacity() == 0 {
                    self.shared.bytes = self.context.spare.take();
                    self.shared.bytes.clear();
                }
                self.shared.bytes.extend_from_slice(&bytes);
                self.context.spare.give(bytes);
                self.shared.pieces.extend(data.iter().map(|piece| Piece {
                    first: first + piece.first,
                    offset: base + piece.offset,
                    ..*piece
                }));
                Ok(())
            }
        }
    }

    /// Turns to a range of clusters. A shared block ends with its leaf.
    fn enter(&mut self, first: u64, end: u64) -> Result<()> {
        let Some(open) = self.shared.pieces.first() else {
            return Ok(());
        };
        let leaf = open.first / LEAF_CLUSTERS;
        let is_same = first / LEAF_CLUSTERS == leaf && (end - 1) / LEAF_CLUSTERS == leaf;
        match is_same {
            true => Ok(()),
            false => self.close_shared(),
        }
    }

    fn close_shared(&mut self) -> Result<()> {
        let SharedBlock { bytes, pieces } = std::mem::take(&mut self.shared);
        if bytes.is_empty() {
            return Ok(());
        }
        // Its id is enough for the map: a worker does the rest.
        let id = self.context.sealer.id(&bytes);
        let (sender, done) = sync_channel(1);
        let plain = bytes.len();
        self.sealing.push_back(Sealing { id, plain, done });
        let job = Job::Seal {
            id,
            bytes,
            done: sender,
        };
        self.jobs.send(job).map_err(|_| panicked())?;
        self.set(pieces, id)?;
        self.take_sealed(SEALING)
    }

    /// Adds shared blocks to packs until workers have at most `left` of them.
    fn take_sealed(&mut self, left: usize) -> Result<()> {
        while self.sealing.len() > left {
            let Some(Sealing { id, plain, done }) = self.sealing.pop_front() else {
                return Ok(());
            };
            let sealed = done.recv().map_err(|_| panicked())??;
            self.add(ReadyBlock { id, plain, sealed })?;
        }
        Ok(())
    }

    fn set(&mut self, pieces: Vec<Piece>, id: BlockId) -> Result<()> {
        let pages = &mut self.pages;
        for piece in pieces {
            let store = &mut |page| pages.store(page);
            self.draft
                .set(piece.first, piece.count, id, piece.offset, store)?;
        }
        Ok(())
    }

    fn add(&mut self, block: ReadyBlock) -> Result<()> {
        let Some(sealed) = block.sealed else { return Ok(()) };
        let context = &self.context;
        let (packer, stop) = (&context.packer, &context.stop);
        if packer.add(Shelf::Data, block.id, &sealed.bytes, block.plain, stop)? {
            self.written.file_bytes += sealed.bytes.len() as u64;
            self.written.is_compressed |= sealed.is_compressed;
        }
        context.spare.give(sealed.bytes);
        Ok(())
    }

    fn finish(mut self) -> Result<Written> {
        self.close_shared()?;
        self.take_sealed(0)?;
        let pages = &mut self.pages;
        let root = self.draft.finish(&mut |page| pages.store(page))?;
        self.written.file_bytes += self.pages.bytes;
        self.written.blake3 = Some(root.to_hex());
        Ok(self.written)
    }
}
