//! The tables of packs, the trailer of a pack, and the records of the index.

use super::bytes::Bytes;
use super::id::{BlockId, PackId};
use super::sealer::OVERHEAD;

/// The version of tables, trailers and index records.
const FORMAT: u8 = 1;

/// What a trailer begins with.
const MAGIC: [u8; 8] = *b"vmsnPACK";

/// The length of a trailer in bytes.
pub(super) const TRAILER: usize = 48;

/// The length of an entry of a table in bytes.
const ENTRY: usize = 40;

/// The largest number of blocks in one pack.
pub(super) const MOST_BLOCKS: usize = 16 * 1024;

/// The number of packs after which a writer writes an index record.
pub(super) const PACKS_OF_RECORD: usize = 32;

/// The most packs in one index record.
const MOST_PACKS: u32 = 1024;

/// A block in a pack. Blocks lie one after another, so their offsets follow from their lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: BlockId,
    /// The length of its sealed form in bytes.
    pub(super) stored: u32,
    /// The number of its plain bytes.
    pub(super) plain: u32,
}

/// A pack, as an index record lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackEntry {
    pub(super) id: PackId,
    /// The size of its object in bytes.
    pub(super) size: u64,
    pub(super) entries: Vec<Entry>,
}

impl PackEntry {
    /// The entries with their offsets in the pack.
    pub(super) fn located(&self) -> impl Iterator<Item = (u32, &Entry)> {
        let mut at = 0;
        self.entries.iter().map(move |entry| {
            let offset = at;
            at += entry.stored;
            (offset, entry)
        })
    }
}

/// Encodes the table of a pack.
pub(super) fn encode_table(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(5 + ENTRY * entries.len());
    bytes.push(FORMAT);
    push_entries(&mut bytes, entries);
    bytes
}

fn push_entries(bytes: &mut Vec<u8>, entries: &[Entry]) {
    bytes.extend((entries.len() as u32).to_le_bytes());
    for entry in entries {
        bytes.extend(entry.id.bytes());
        bytes.extend(entry.stored.to_le_bytes());
        bytes.extend(entry.plain.to_le_bytes());
    }
}

/// Reads the table of a pack. `largest` is the most plain bytes of a block.
///
/// # Errors
/// The reason why it is invalid.
pub(super) fn parse_table(bytes: &[u8], largest: usize) -> Result<Vec<Entry>, &'static str> {
    let mut bytes = Bytes::new(bytes);
    check_format(bytes.u8())?;
    let entries = parse_entries(&mut bytes, largest)?;
    match bytes.left() {
        0 => Ok(entries),
        _ => Err("its table is longer than its entries"),
    }
}

fn check_format(format: Option<u8>) -> Result<(), &'static str> {
    match format {
        Some(FORMAT) => Ok(()),
        Some(_) => Err("this version of vmsnap does not know its format; a newer version may"),
        None => Err("it is empty"),
    }
}

fn parse_entries(bytes: &mut Bytes<'_>, largest: usize) -> Result<Vec<Entry>, &'static str> {
    const SHORT: &str = "its table is shorter than its entries";
    let count = bytes.u32().ok_or(SHORT)? as usize;
    if count > MOST_BLOCKS {
        return Err("its table has too many entries");
    }
    if bytes.left() < count * ENTRY {
        return Err(SHORT);
    }
    let mut entries = Vec::with_capacity(count);
    let mut total = 0u32;
    for _ in 0..count {
        let id = BlockId::new(bytes.array().ok_or(SHORT)?);
        let (stored, plain) = bytes.u32().zip(bytes.u32()).ok_or(SHORT)?;
        let is_plausible = (1..=largest).contains(&(plain as usize))
            && stored > 0
            && stored as usize <= plain as usize + OVERHEAD;
        let sum = total.checked_add(stored).filter(|_| is_plausible);
        total = sum.ok_or("its table has an impossible length")?;
        entries.push(Entry { id, stored, plain });
    }
    Ok(entries)
}

/// Encodes the trailer of a pack: `digest` is that of everything before the trailer.
pub(super) fn encode_trailer(table_length: u32, digest: &blake3::Hash) -> [u8; TRAILER] {
    let mut trailer = [0; TRAILER];
    trailer[..8].copy_from_slice(&MAGIC);
    trailer[8..12].copy_from_slice(&u32::from(FORMAT).to_le_bytes());
    trailer[12..16].copy_from_slice(&table_length.to_le_bytes());
    trailer[16..].copy_from_slice(digest.as_bytes());
    trailer
}

/// Encodes an index record.
pub(super) fn encode_index(packs: &[PackEntry]) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.extend((packs.len() as u32).to_le_bytes());
    for pack in packs {
        bytes.extend(pack.id.bytes());
        bytes.extend(pack.size.to_le_bytes());
        push_entries(&mut bytes, &pack.entries);
    }
    bytes
}

/// Reads an index record.
///
/// # Errors
/// The reason why it is invalid.
pub(super) fn parse_index(bytes: &[u8], largest: usize) -> Result<Vec<PackEntry>, &'static str> {
    const SHORT: &str = "it is shorter than its list of packs";
    let mut bytes = Bytes::new(bytes);
    check_format(bytes.u8())?;
    let count = bytes.u32().ok_or(SHORT)?;
    if count > MOST_PACKS {
        return Err("it lists too many packs");
    }
    let mut packs = Vec::new();
    for _ in 0..count {
        let id = PackId::from_bytes(bytes.array().ok_or(SHORT)?);
        let size = bytes.u64().ok_or(SHORT)?;
        let entries = parse_entries(&mut bytes, largest)?;
        let needed: u64 = entries.iter().map(|entry| u64::from(entry.stored)).sum();
        if needed + TRAILER as u64 > size || size > u64::from(u32::MAX) {
            return Err("it lists a pack of an impossible size");
        }
        packs.push(PackEntry { id, size, entries });
    }
    match bytes.left() {
        0 => Ok(packs),
        _ => Err("it is longer than its list of packs"),
    }
}

/// The end of a pack, which locates its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) table_length: u32,
    /// The digest of everything before the trailer.
    pub(super) digest: [u8; 32],
}

/// Reads the trailer of a pack.
///
/// # Errors
/// The reason why it is invalid.
pub(super) fn parse_trailer(bytes: &[u8]) -> Result<Trailer, &'static str> {
    const SHORT: &str = "its trailer is too short";
    let mut bytes = Bytes::new(bytes);
    if bytes.array() != Some(MAGIC) {
        return Err("it has no trailer: it was cut off, or is not a pack");
    }
    if bytes.u32() != Some(u32::from(FORMAT)) {
        return Err("this version of vmsnap does not know its format; a newer version may");
    }
    let table_length = bytes.u32().ok_or(SHORT)?;
    let digest = bytes.array().ok_or(SHORT)?;
    match bytes.left() {
        0 => Ok(Trailer { table_length, digest }),
        _ => Err("its trailer is too long"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LARGEST: usize = 1 << 20;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (any::<[u8; 32]>(), 1..=LARGEST as u32).prop_map(|(id, plain)| Entry {
            id: BlockId::new(id),
            stored: plain.div_ceil(2),
            plain,
        });
        proptest::collection::vec(entry, 0..20)
    }

    proptest! {
        #[test]
        fn tables_and_index_records_come_back(packs in proptest::collection::vec(entries(), 0..4)) {
            let mut listed = Vec::new();
            for (number, entries) in packs.into_iter().enumerate() {
                prop_assert_eq!(parse_table(&encode_table(&entries), LARGEST), Ok(entries.clone()));
                listed.push(PackEntry { id: PackId::from_bytes([number as u8; 16]), size: 1 << 30, entries });
            }
            let record = encode_index(&listed);
            prop_assert_eq!(parse_index(&record, LARGEST), Ok(listed));
            for length in 0..record.len() {
                prop_assert!(parse_index(&record[..length], LARGEST).is_err());
            }
        }

        #[test]
        fn random_bytes_never_panic(rest in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [&[FORMAT][..], &rest].concat();
            let _ = parse_table(&bytes, LARGEST);
            let _ = parse_index(&bytes, LARGEST);
            let _ = parse_trailer(&[&MAGIC[..], &rest].concat());
        }
    }

    #[test]
    fn hostile_tables_are_refused() {
        let entry = |stored, plain| Entry {
            id: BlockId::new([1; 32]),
            stored,
            plain,
        };
        for hostile in [
            entry(0, 1),
            entry(1, 0),
            entry(1, LARGEST as u32 + 1),
            entry(u32::MAX, 1),
            entry(1000, 10),
        ] {
            assert!(
                parse_table(&encode_table(&[hostile]), LARGEST).is_err(),
                "{hostile:?}"
            );
            let good = entry(10, 10);
            assert!(parse_table(&encode_table(&[good, hostile]), LARGEST).is_err());
        }
        let mut bytes = encode_table(&[]);
        bytes[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse_table(&bytes, LARGEST).is_err());
        let small = PackEntry {
            id: PackId::from_bytes([1; 16]),
            size: 57,
            entries: vec![entry(10, 10)],
        };
        assert!(parse_index(&encode_index(&[small]), LARGEST).is_err());
    }

    #[test]
    fn trailers_come_back_and_others_are_refused() {
        let digest = blake3::hash(b"x");
        let trailer = encode_trailer(77, &digest);
        let parsed = parse_trailer(&trailer).expect("valid");
        assert_eq!((parsed.table_length, parsed.digest), (77, *digest.as_bytes()));
        for place in 0..12 {
            let mut changed = trailer;
            changed[place] ^= 1;
            assert!(parse_trailer(&changed).is_err(), "{place}");
        }
        assert!(parse_trailer(&trailer[..47]).is_err() && parse_trailer(&[0; 49]).is_err());
    }
}
