//! Condemned packs: objects that name packs which will be deleted.
//!
//! A pack that is condemned stays condemned until it is deleted. What is needed of it after all is
//! stored again elsewhere.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::bytes::Bytes;
use super::id::{PackId, object_name, random_digits};
use super::listing::list;
use super::retry::{limit, retry};
use super::sealer::{OVERHEAD, Sealer};
use crate::model::stop::Stop;
use crate::repo::pack::objects::{ListedObject, ObjectName, ObjectStore};
use crate::repo::pack_error::{PackError, Result};

/// The prefix of the names of the records of condemned packs.
pub(super) const CONDEMNED: &str = "condemned/";

/// The most packs that one record names.
const MOST_PACKS: usize = 65_536;

/// The most records that are read. Two collectors a day need a few.
const MOST_RECORDS: usize = 4096;

/// The largest record in bytes.
const LARGEST: usize = 13 + 16 * MOST_PACKS;

const FORMAT: u8 = 1;

/// A record of condemned packs.
#[derive(Clone, Debug)]
pub(super) struct Condemned {
    pub(super) name: ObjectName,
    /// When it was written, by the clock of the store.
    pub(super) time: Timestamp,
    /// The time of the mark: restore points that were committed before it were known when the packs
    /// were condemned.
    pub(super) marked: Timestamp,
    pub(super) packs: Vec<PackId>,
}

/// Reads the records, except those with known names.
///
/// # Errors
/// The store fails, gives no times, or a record is damaged.
pub(super) fn read(
    objects: &Arc<dyn ObjectStore>,
    sealer: &Sealer,
    known: &BTreeSet<ObjectName>,
    stop: &Stop,
) -> Result<Vec<Condemned>> {
    let listed = list(objects.as_ref(), CONDEMNED, stop)?;
    if listed.len() > MOST_RECORDS {
        return Err(damaged(objects, CONDEMNED, "there are too many records"));
    }
    let mut all = Vec::new();
    for object in listed.iter().filter(|object| !known.contains(&object.name)) {
        all.extend(read_one(objects, sealer, object, stop)?);
    }
    Ok(all)
}

/// `None` if it has gone since it was listed: then its packs have gone from the index, too.
fn read_one(
    objects: &Arc<dyn ObjectStore>,
    sealer: &Sealer,
    object: &ListedObject,
    stop: &Stop,
) -> Result<Option<Condemned>> {
    let Some((marked, packs)) = read_content(objects, sealer, &object.name, stop)? else {
        return Ok(None);
    };
    let time = object.modified.ok_or_else(|| PackError::NoTimes {
        location: objects.location(),
    })?;
    Ok(Some(Condemned {
        name: object.name.clone(),
        time,
        marked,
        packs,
    }))
}

/// The time of the mark and the packs of a record; `None` if the record no longer exists.
///
/// # Errors
/// The store fails, or the record is damaged.
pub(super) fn read_content(
    objects: &Arc<dyn ObjectStore>,
    sealer: &Sealer,
    name: &ObjectName,
    stop: &Stop,
) -> Result<Option<(Timestamp, Vec<PackId>)>> {
    let most = (LARGEST + OVERHEAD) as u64;
    let sealed = match retry(stop, || objects.get(name, most, &limit(most, stop))) {
        Ok(sealed) => sealed,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) if error.is_too_large() => {
            return Err(damaged(objects, name.as_str(), "it is too large"));
        }
        Err(error) => return Err(error.into()),
    };
    let record = sealer.open_record(name, sealed, LARGEST);
    let record = record.and_then(|record| parse(&record));
    record
        .map(Some)
        .map_err(|why| damaged(objects, name.as_str(), why))
}

/// Condemns packs: writes a record, or several.
///
/// # Errors
/// The store fails.
pub(super) fn condemn(
    objects: &Arc<dyn ObjectStore>,
    sealer: &Sealer,
    marked: Timestamp,
    packs: &[PackId],
    stop: &Stop,
) -> Result<()> {
    for part in packs.chunks(MOST_PACKS) {
        let digits = random_digits().map_err(PackError::Seal)?;
        let name = object_name(&format!("{CONDEMNED}{digits}")).map_err(PackError::Seal)?;
        let sealed = sealer
            .seal_record(&name, &encode(marked, part))
            .map_err(PackError::Seal)?;
        retry(stop, || {
            objects.put_if_absent(&name, &sealed, &limit(sealed.len() as u64, stop))
        })?;
    }
    Ok(())
}

pub(super) fn encode(marked: Timestamp, packs: &[PackId]) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.extend(marked.as_second().to_le_bytes());
    bytes.extend((packs.len() as u32).to_le_bytes());
    packs.iter().for_each(|pack| bytes.extend(pack.bytes()));
    bytes
}

pub(super) fn parse(bytes: &[u8]) -> std::result::Result<(Timestamp, Vec<PackId>), &'static str> {
    let mut bytes = Bytes::new(bytes);
    match bytes.u8() {
        Some(FORMAT) => {}
        Some(_) => return Err("this version of vmsnap does not know its format; a newer version may"),
        None => return Err("it is empty"),
    }
    let (seconds, count) = bytes.u64().zip(bytes.u32()).ok_or("it is too short")?;
    let marked = Timestamp::from_second(seconds as i64).map_err(|_| "its time is impossible")?;
    if count as usize > MOST_PACKS || bytes.left() != 16 * count as usize {
        return Err("it does not have the length of its list");
    }
    let packs = (0..count).map_while(|_| bytes.array().map(PackId::from_bytes));
    Ok((marked, packs.collect()))
}

fn damaged(objects: &Arc<dyn ObjectStore>, object: &str, why: &str) -> PackError {
    PackError::Damaged {
        location: objects.location(),
        object: object.to_owned(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damaged_ones_are_errors() {
        let packs = [PackId::from_bytes([1; 16]), PackId::from_bytes([2; 16])];
        let marked = Timestamp::from_second(1_700_000_000).expect("a time");
        let bytes = encode(marked, &packs);
        assert_eq!(parse(&bytes), Ok((marked, packs.to_vec())));
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(parse(&longer).is_err());
        let mut other = bytes;
        other[0] = 2;
        assert!(parse(&other).is_err());
    }
}
