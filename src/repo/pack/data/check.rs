//! Checks that all blocks of a disk exist and, if asked, can be read.

use std::ops::Range;
use std::sync::Arc;

use super::blocks::Located;
use super::cache::Place;
use super::disk::{InBlock, Piece, piece_of};
use super::listing::PackList;
use super::page::LEAF_SPAN;
use super::tree::Tree;
use crate::repo::pack::objects::{ObjectError, ObjectErrorKind};
use crate::repo::pack_error::{PackError, PackErrorClass, Result};

/// The most faults that are reported for one disk.
pub(super) const MOST_FAULTS: usize = 1000;

/// How many plain bytes of blocks are read at a time.
const BATCH: u64 = 8 << 20;

/// A fault of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskFault {
    /// The range of the disk that cannot be read, in bytes.
    pub(crate) range: Range<u64>,
    /// The fault, with the object's name.
    pub(crate) what: String,
}

/// Reports faults up to a limit.
struct Reports<'a> {
    report: &'a mut dyn FnMut(DiskFault),
    left: usize,
}

impl Reports<'_> {
    fn add(&mut self, range: Range<u64>, what: String) {
        if self.left > 0 {
            self.left -= 1;
            (self.report)(DiskFault { range, what });
        }
    }

    /// Reports damage. Other errors end the check.
    fn add_error(&mut self, error: PackError, range: Range<u64>) -> Result<()> {
        match error.class() {
            PackErrorClass::Damaged => {
                self.add(range, error.to_string());
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// Reports damage of a whole range. Other errors are returned.
pub(super) fn report_damage(
    error: PackError,
    range: Range<u64>,
    report: &mut dyn FnMut(DiskFault),
) -> Result<()> {
    Reports { report, left: 1 }.add_error(error, range)
}

/// Checks a disk.
///
/// # Errors
/// The store fails, or a stop was requested.
pub(super) fn check(
    tree: &Arc<Tree>,
    packs: &PackList,
    deep: bool,
    report: &mut dyn FnMut(DiskFault),
) -> Result<()> {
    let mut reports = Reports {
        report,
        left: MOST_FAULTS,
    };
    let size = tree.size();
    let mut number = 0;
    while number < size.div_ceil(LEAF_SPAN) && reports.left > 0 {
        check_stop(tree)?;
        let next = tree.skip_zero_branches(number);
        if next > number {
            number = next;
            continue;
        }
        let span = number * LEAF_SPAN..((number + 1) * LEAF_SPAN).min(size);
        match tree.leaf(number) {
            Ok(None) => {}
            Ok(Some(leaf)) => {
                let mut at = span.start;
                let mut pieces = Vec::new();
                while at < span.end {
                    let piece = piece_of(&leaf, at, size);
                    at = piece.end();
                    pieces.push(piece);
                }
                check_pieces(tree, packs, deep, &pieces, &mut reports)?;
            }
            Err(error) => reports.add_error(error, span)?,
        }
        number += 1;
    }
    Ok(())
}

/// Checks the pieces of one leaf.
fn check_pieces(
    tree: &Tree,
    packs: &PackList,
    deep: bool,
    pieces: &[Piece],
    reports: &mut Reports<'_>,
) -> Result<()> {
    let mut sound: Vec<(Located, Range<u64>)> = Vec::new();
    for piece in pieces {
        let Some(data) = &piece.data else { continue };
        let range = piece.offset..piece.end();
        match check_place(tree, packs, data) {
            Ok(place) => sound.push(((data.id, place), range)),
            Err(error) => reports.add_error(error, range)?,
        }
    }
    if !deep {
        return Ok(());
    }
    // Pieces of one block are read once.
    sound.sort_by_key(|((id, place), range)| (place.pack, place.offset, *id, range.start));
    let mut rest = &sound[..];
    while !rest.is_empty() {
        check_stop(tree)?;
        let mut bytes = 0;
        let mut wanted: Vec<Located> = Vec::new();
        let mut count = 0;
        for (block, _) in rest {
            if wanted.last().is_none_or(|(last, _)| *last != block.0) {
                bytes += u64::from(block.1.plain);
                if bytes > BATCH && !wanted.is_empty() {
                    break;
                }
                wanted.push(*block);
            }
            count += 1;
        }
        let (group, others) = rest.split_at(count);
        for ((id, _), read) in wanted.iter().zip(tree.blocks().read_all(&wanted, tree.stop())) {
            let Err(error) = read else { continue };
            let mut ranges = group.iter().filter(|((of, _), _)| of == id);
            let first = ranges.next().map_or(0..0, |(_, range)| range.clone());
            let what = error.to_string();
            reports.add_error(error, first)?;
            ranges.for_each(|(_, range)| reports.add(range.clone(), what.clone()));
        }
        rest = others;
    }
    Ok(())
}

/// Finds the block of a piece, and checks what the index and the list of packs say about it.
fn check_place(tree: &Tree, packs: &PackList, data: &InBlock) -> Result<Place> {
    let place = tree.blocks().locate(&data.id, tree.stop())?;
    if u64::from(place.plain) < data.least {
        return Err(tree.too_short(&data.id));
    }
    let Some(why) = packs.fault(&place) else {
        return Ok(place);
    };
    // Another pack may hold it, too: it may have been stored again.
    let others = tree.blocks().index.find_all(&data.id)?;
    let is_sound = |other: &Place| other.plain == place.plain && packs.fault(other).is_none();
    if let Some(sound) = others.into_iter().find(is_sound) {
        return Ok(sound);
    }
    // The pack may be newer than the list, or a collector may have moved the block since.
    if tree.blocks().exists(&place, tree.stop())? {
        return Ok(place);
    }
    match tree.blocks().moved(&data.id, &place, tree.stop())? {
        Some(moved) if tree.blocks().exists(&moved, tree.stop())? => Ok(moved),
        _ => Err(tree.blocks().damaged(&data.id, place.pack, why)),
    }
}

fn check_stop(tree: &Tree) -> Result<()> {
    match tree.stop().reason() {
        None => Ok(()),
        Some(reason) => {
            let kind = ObjectErrorKind::Stopped(reason);
            Err(ObjectError::new("check", "a disk".to_owned(), kind).into())
        }
    }
}
