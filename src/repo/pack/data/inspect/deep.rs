//! Reads all packs from end to end, and compares their tables with the index.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use super::super::id::{BlockId, PackId};
use super::super::listing::PackList;
use super::super::stored::{Found, read_whole};
use super::super::table::PackEntry;
use super::super::{Data, PackError, Result};
use crate::model::stop::Stop;

/// The number of packs that are read at the same time.
const AT_ONCE: usize = 4;

/// The packs that cannot be used, each with the reason.
pub(super) type Unsound = BTreeMap<PackId, String>;

/// What the index says of a pack: the sum of a digest of each block.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Sum(u128);

impl Sum {
    fn add(&mut self, id: &BlockId, offset: u32, stored: u32, plain: u32) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(id.bytes());
        for number in [offset, stored, plain] {
            hasher.update(&number.to_le_bytes());
        }
        let mut half = [0; 16];
        half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        self.0 = self.0.wrapping_add(u128::from_le_bytes(half));
    }

    fn of(pack: &PackEntry) -> Sum {
        let mut sum = Sum::default();
        for (offset, entry) in pack.located() {
            sum.add(&entry.id, offset, entry.stored, entry.plain);
        }
        sum
    }
}

/// Reads all packs. A pack that cannot be used is read once more.
///
/// # Errors
/// The store fails, or a stop was requested.
pub(super) fn read_all(data: &Data, stop: &Stop) -> Result<Unsound> {
    data.refresh(stop)?;
    let sums = sums(data)?;
    let packs = PackList::read(data.shared.objects.as_ref(), stop)?;
    let work = Mutex::new(packs.iter());
    let unsound = Mutex::new(Unsound::new());
    let read = || -> Result<()> {
        loop {
            let next = work.lock().unwrap_or_else(|error| error.into_inner()).next();
            let Some((id, size)) = next else { return Ok(()) };
            let mut why = fault(data, id, size, &sums, stop)?;
            if why.is_some() {
                why = fault(data, id, size, &sums, stop)?;
            }
            if let Some(why) = why {
                let mut unsound = unsound.lock().unwrap_or_else(|error| error.into_inner());
                unsound.insert(id, why);
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(read)).collect();
        let lost = || PackError::Seal(std::io::Error::other("a reader ended early"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(lost())))
            .collect::<Result<Vec<()>>>()
    })?;
    Ok(unsound.into_inner().unwrap_or_else(|error| error.into_inner()))
}

/// What each index object says of each of its packs.
fn sums(data: &Data) -> Result<BTreeMap<PackId, Vec<(String, Sum)>>> {
    let cache = data.shared.index.cache();
    let packs = cache.numbered_packs()?;
    let names = cache.index_names()?;
    let last = packs.last_key_value().map_or(0, |(last, _)| *last as usize + 1);
    let mut sums = vec![Sum::default(); last];
    cache.each_block(&mut |block| {
        if let Some(sum) = sums.get_mut(block.pack as usize) {
            sum.add(&block.id, block.offset, block.stored, block.plain);
        }
    })?;
    let mut by_pack: BTreeMap<PackId, Vec<(String, Sum)>> = BTreeMap::new();
    for (number, pack) in packs {
        let name = names.get(&pack.index).cloned().unwrap_or_default();
        let sum = sums.get(number as usize).copied().unwrap_or_default();
        by_pack.entry(pack.id).or_default().push((name, sum));
    }
    Ok(by_pack)
}

/// Why a pack cannot be used as it is.
fn fault(
    data: &Data,
    id: PackId,
    size: u64,
    sums: &BTreeMap<PackId, Vec<(String, Sum)>>,
    stop: &Stop,
) -> Result<Option<String>> {
    let pack = match read_whole(data, id, size, stop)? {
        Found::Sound(pack) => pack,
        Found::Unsound(why) => return Ok(Some(why.to_owned())),
        // A collector has deleted it, or it is found to be missing later.
        Found::Gone => return Ok(None),
    };
    let found = Sum::of(&pack);
    let mut of_index = sums.get(&id).into_iter().flatten();
    let other = of_index.find(|(_, sum)| *sum != found);
    Ok(other.map(|(name, _)| format!("its table differs from what {name} says")))
}
