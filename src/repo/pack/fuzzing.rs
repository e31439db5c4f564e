//! The parsers of the objects of a pack repository, without a store, for the fuzz targets. Each
//! accepts any bytes.

use std::sync::Arc;

use super::data::fuzzing as data;
use super::description::Description;
use super::keys::{MasterKey, parse_slot_for_fuzzing};
use super::names::DomainNames;
use super::point::PointRecord;
use super::records::{Kind, RecordName, Records};

/// Parses the bytes as a root, a branch and a leaf of a disk's map.
pub fn pages(bytes: &[u8]) {
    data::pages(bytes);
}

/// Parses the bytes as the table and the trailer of a pack, and as an index object.
pub fn tables(bytes: &[u8]) {
    data::tables(bytes);
}

/// Parses the bytes as a record of condemned packs, and as a record of a session.
pub fn sessions(bytes: &[u8]) {
    data::sessions(bytes);
}

/// Parses the bytes as the stored form of a block, and of a record.
pub fn sealed(bytes: &[u8]) {
    data::sealed(bytes);
}

/// Parses the bytes as the object of a restore point, and as each record about restore points.
pub fn points(bytes: &[u8]) {
    let Some(key) = MasterKey::from_hex(&"01".repeat(32)) else {
        return;
    };
    let key = Arc::new(key);
    let names = DomainNames::of(&key, "vm1");
    if let Ok(record) = PointRecord::parse(bytes, &key, &names) {
        let needed = record.needed().map(|needed| needed.disks.len());
        assert_eq!(needed, Some(record.manifest.point.disks.len()));
        assert!(record.subject().is_some());
    }
    for kind in Kind::ALL {
        let mut records = Records::default();
        records.take(RecordName::new(kind, &names, "2026-11-28T15-00-00Z"), Ok(bytes));
        records.settle();
        let _ = (
            records.removals(),
            records.findings(|_| Some(String::new()), |name| name.to_owned()),
        );
    }
}

/// Parses the bytes as the description of a repository, the record of a key slot, and the text in
/// its age file.
pub fn descriptions(bytes: &[u8]) {
    let _ = Description::parse(bytes, "memory:");
    parse_slot_for_fuzzing(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random numbers that are always the same (xorshift64*).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, end: usize) -> usize {
            (self.next() >> 33) as usize % end.max(1)
        }
    }

    /// Changes bytes in the ways that damage and attackers do.
    fn mutate(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
        for _ in 0..1 + numbers.below(4) {
            let place = numbers.below(bytes.len());
            match numbers.below(8) {
                0 => bytes.truncate(place),
                1 => bytes.insert(place, numbers.next() as u8),
                2 if !bytes.is_empty() => {
                    bytes.remove(place);
                }
                3 => bytes.extend_from_slice(&other[numbers.below(other.len())..]),
                4 => {
                    let end = (place + 1 + numbers.below(8)).min(bytes.len());
                    bytes[place..end].fill([0, 0xff, 0x80, b'9'][numbers.below(4)]);
                }
                5 => {
                    let part: Vec<u8> = bytes[place..].iter().take(40).copied().collect();
                    let at = numbers.below(bytes.len());
                    bytes.splice(at..at, part);
                }
                _ if !bytes.is_empty() => bytes[place] ^= 1 << numbers.below(8),
                _ => bytes.push(1),
            }
            bytes.truncate(1 << 14);
        }
    }

    fn seeds() -> Vec<Vec<u8>> {
        let mut seeds = data::seeds();
        seeds.extend([
            super::super::point::sample_for_fuzzing(),
            br#"{"format":1,"replaces":["pin-0123456789abcdef-0123456789abcdef"],"id":"x","since":"2026-11-28T15:00:00Z","note":"n"}"#.to_vec(),
            br#"{"format":1,"replaces":[],"removals":[{"id":"x","name":"y","run":"z","sequence":1,"uuid":"u","checkpoint":null,"removed":"2026-11-28T15:00:00Z"}]}"#.to_vec(),
            br#"{"format":1,"seal":"00","repository":"6f9619ff-8b86-4011-b42d-00c04fc964ff","id":"0123456789abcdef","kind":"passphrase","label":"l","created":"2026-11-28T15:00:00Z","digest":"00"}"#.to_vec(),
            super::super::description::sample_for_fuzzing(),
        ]);
        seeds
    }

    #[test]
    fn parsers_survive_hostile_bytes() {
        let seeds = seeds();
        let parsers = [pages, tables, sessions, sealed, points, descriptions];
        for seed in &seeds {
            parsers.iter().for_each(|parse| parse(seed));
        }
        let mut numbers = Numbers(0x6f96_19ff_8b86_4011);
        let mut kept = seeds.clone();
        for round in 0..60_000 {
            let mut bytes = kept[numbers.below(kept.len())].clone();
            let other = &seeds[numbers.below(seeds.len())];
            mutate(&mut bytes, other, &mut numbers);
            parsers.iter().for_each(|parse| parse(&bytes));
            // Changes of changes reach further.
            if round % 8 == 0 {
                let place = seeds.len() + numbers.below(200);
                match kept.get_mut(place) {
                    Some(old) => *old = bytes,
                    None => kept.push(bytes),
                }
            }
        }
    }
}
