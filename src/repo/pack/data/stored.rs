//! Reads whole packs, and their tables, without the index.

use crate::model::stop::Stop;
use crate::repo::pack::data::id::PackId;
use crate::repo::pack::data::retry::{limit, retry};
use crate::repo::pack::data::sealer::{LARGEST_RECORD, OVERHEAD};
use crate::repo::pack::data::table::{Entry, PackEntry, TRAILER, Trailer, parse_table, parse_trailer};
use crate::repo::pack::data::{Data, PackError, Result};
use crate::repo::pack::objects::ObjectErrorKind;

/// How much is read at a time to check a digest, in bytes.
const PART: u64 = 8 << 20;

/// The result of reading a pack by its name.
pub(super) enum Found<T> {
    Sound(T),
    /// It is damaged or is not a pack, for this reason.
    Unsound(&'static str),
    /// It does not exist.
    Gone,
}

/// Reads the table of a pack of `size` bytes. Its blocks are not read.
///
/// # Errors
/// The store fails.
pub(super) fn read_entries(data: &Data, id: PackId, size: u64, stop: &Stop) -> Result<Found<Vec<Entry>>> {
    Ok(match read_table(data, id, size, stop)? {
        Found::Sound((_, entries)) => Found::Sound(entries),
        Found::Unsound(why) => Found::Unsound(why),
        Found::Gone => Found::Gone,
    })
}

/// Reads a pack of `size` bytes from end to end, and checks its digest.
///
/// # Errors
/// The store fails.
pub(super) fn read_whole(data: &Data, id: PackId, size: u64, stop: &Stop) -> Result<Found<PackEntry>> {
    let (trailer, entries) = match read_table(data, id, size, stop)? {
        Found::Sound(found) => found,
        Found::Unsound(why) => return Ok(Found::Unsound(why)),
        Found::Gone => return Ok(Found::Gone),
    };
    let mut hasher = blake3::Hasher::new();
    let end = size - TRAILER as u64;
    let mut at = 0;
    while at < end {
        let next = end.min(at + PART);
        match read(data, id, at, next, stop)? {
            Found::Sound(bytes) => hasher.update(&bytes),
            Found::Unsound(why) => return Ok(Found::Unsound(why)),
            Found::Gone => return Ok(Found::Gone),
        };
        at = next;
    }
    Ok(match *hasher.finalize().as_bytes() == trailer.digest {
        true => Found::Sound(PackEntry { id, size, entries }),
        false => Found::Unsound("its digest is wrong"),
    })
}

fn read_table(data: &Data, id: PackId, size: u64, stop: &Stop) -> Result<Found<(Trailer, Vec<Entry>)>> {
    let Some(end) = size
        .checked_sub(TRAILER as u64)
        .filter(|_| size <= u64::from(u32::MAX))
    else {
        return Ok(Found::Unsound("it has an impossible size"));
    };
    let bytes = match read(data, id, end, size, stop)? {
        Found::Sound(bytes) => bytes,
        Found::Unsound(why) => return Ok(Found::Unsound(why)),
        Found::Gone => return Ok(Found::Gone),
    };
    let trailer = match parse_trailer(&bytes) {
        Ok(trailer) => trailer,
        Err(why) => return Ok(Found::Unsound(why)),
    };
    let length = u64::from(trailer.table_length);
    let start = end
        .checked_sub(length)
        .filter(|_| length <= (LARGEST_RECORD + OVERHEAD) as u64);
    let Some(start) = start else {
        return Ok(Found::Unsound("its table has an impossible length"));
    };
    let sealed = match read(data, id, start, end, stop)? {
        Found::Sound(sealed) => sealed,
        Found::Unsound(why) => return Ok(Found::Unsound(why)),
        Found::Gone => return Ok(Found::Gone),
    };
    let name = id.name().map_err(PackError::Seal)?;
    let table = data.shared.sealer.open_record(&name, sealed, LARGEST_RECORD);
    let entries = match table.and_then(|table| parse_table(&table, data.shared.largest_block())) {
        Ok(entries) => entries,
        Err(why) => return Ok(Found::Unsound(why)),
    };
    let blocks: u64 = entries.iter().map(|entry| u64::from(entry.stored)).sum();
    Ok(match blocks == start {
        true => Found::Sound((trailer, entries)),
        false => Found::Unsound("its table does not fit its blocks"),
    })
}

fn read(data: &Data, id: PackId, start: u64, end: u64, stop: &Stop) -> Result<Found<Vec<u8>>> {
    let name = id.name().map_err(PackError::Seal)?;
    let limit = limit(end - start, stop);
    match retry(stop, || data.shared.objects.get_range(&name, start..end, &limit)) {
        Ok(bytes) => Ok(Found::Sound(bytes)),
        Err(error) if error.is_not_found() => Ok(Found::Gone),
        Err(error) if error.kind == ObjectErrorKind::TooShort => Ok(Found::Unsound("it is too short")),
        Err(error) => Err(error.into()),
    }
}
