//! Finds what the restore points need and cannot be read.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::super::blocks::Located;
use super::super::cache::Place;
use super::super::id::{BlockId, PackId};
use super::super::leaf::Leaf;
use super::super::listing::PackList;
use super::super::page::{BRANCH_LEAVES, LEAF_CLUSTERS, parse_branch, parse_root};
use super::super::{Data, PackError, Result, stopped};
use super::deep::Unsound;
use super::report::{Cost, Damage, Fault, Faults};
use super::{Subject, is_damage};
use crate::model::block::CLUSTER;
use crate::model::stop::Stop;

/// The number of leaves that are read at a time.
const LEAVES: usize = 64;

/// The numbers of faults, in order. Most pages have none.
type Lost = Arc<BTreeSet<u16>>;

/// A part of a restore point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Disk,
    File,
}

/// The parts of a restore point that cannot be read, by their names, with the faulty objects.
type LostParts = BTreeMap<(Part, String), BTreeSet<String>>;

/// The disks and files that faulty objects make unreadable, by the domain and the id of their
/// restore point.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Costs(BTreeMap<(String, String), LostParts>);

impl Costs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a restore point is affected.
    pub(super) fn concern(&self, domain: &str, id: &str) -> bool {
        self.0.contains_key(&(domain.to_owned(), id.to_owned()))
    }

    /// The faults, each with the disks and files that it makes unreadable.
    pub(super) fn damage(self, faults: Faults) -> Vec<Damage> {
        let mut by_object: BTreeMap<String, BTreeMap<(String, String), Cost>> = BTreeMap::new();
        for (point, parts) in self.0 {
            for ((part, name), objects) in parts {
                for object in objects {
                    let costs = by_object.entry(object).or_default();
                    let cost = costs.entry(point.clone()).or_insert_with(|| Cost {
                        domain: point.0.clone(),
                        id: point.1.clone(),
                        disks: BTreeSet::new(),
                        files: BTreeSet::new(),
                    });
                    match part {
                        Part::Disk => cost.disks.insert(name.clone()),
                        Part::File => cost.files.insert(name.clone()),
                    };
                }
            }
        }
        let mut all: Vec<Damage> = faults
            .into_all()
            .into_iter()
            .map(|(object, fault)| {
                let costs = by_object.remove(&object).unwrap_or_default();
                Damage::new(object, fault, costs.into_values().collect())
            })
            .collect();
        // What costs something comes first.
        all.sort_by_key(|damage| damage.costs.is_empty());
        all
    }
}

/// Checks restore points. A page that several of them share is read once.
pub(super) struct Needs<'a> {
    data: &'a Data,
    packs: &'a PackList,
    unsound: &'a Unsound,
    listed: &'a BTreeSet<PackId>,
    stop: &'a Stop,
    /// Half of the id of each page below which everything can be read.
    whole: HashSet<[u8; 16]>,
    /// The other pages.
    lossy: HashMap<BlockId, Lost>,
    pub(super) faults: Faults,
    pub(super) costs: Costs,
    pub(super) needed_unlisted: BTreeSet<PackId>,
}

impl<'a> Needs<'a> {
    pub(super) fn new(
        data: &'a Data,
        packs: &'a PackList,
        unsound: &'a Unsound,
        listed: &'a BTreeSet<PackId>,
        faults: Faults,
        stop: &'a Stop,
    ) -> Needs<'a> {
        Needs {
            data,
            packs,
            unsound,
            listed,
            stop,
            whole: HashSet::new(),
            lossy: HashMap::new(),
            faults,
            costs: Costs::default(),
            needed_unlisted: BTreeSet::new(),
        }
    }

    /// Checks one restore point.
    ///
    /// # Errors
    /// The store fails, or a stop was requested.
    pub(super) fn check(&mut self, subject: &Subject) -> Result<()> {
        for (target, root, size) in &subject.disks {
            let lost = self.disk(root, *size)?;
            self.note(subject, Part::Disk, target, &lost);
        }
        for (name, blocks) in &subject.files {
            let mut lost = BTreeSet::new();
            for block in blocks {
                lost.extend(self.find(block)?.err());
            }
            self.note(subject, Part::File, name, &lost);
        }
        Ok(())
    }

    fn note(&mut self, subject: &Subject, part: Part, name: &str, lost: &BTreeSet<u16>) {
        if lost.is_empty() {
            return;
        }
        let objects = lost.iter().map(|number| self.faults.object(*number).to_owned());
        let point = (subject.domain.clone(), subject.id.clone());
        let parts = self.costs.0.entry(point).or_default();
        parts.entry((part, name.to_owned())).or_default().extend(objects);
    }

    /// A place from which a block can be read, or the number of the fault.
    fn find(&mut self, id: &BlockId) -> Result<std::result::Result<Place, u16>> {
        let shared = &self.data.shared;
        let mut places = shared.index.find_all(id)?;
        if places.is_empty() && shared.index.find_needed(id, self.stop)?.is_some() {
            places = shared.index.find_all(id)?;
        }
        places.sort_by_key(|place| self.unsound.contains_key(&place.pack));
        let mut fault = None;
        for place in places {
            let why = match self.packs.fault(&place) {
                Some(why) => why.to_owned(),
                None => match self.block_fault(id, &place)? {
                    Some(why) => why,
                    None => {
                        if !self.listed.contains(&place.pack) {
                            self.needed_unlisted.insert(place.pack);
                        }
                        return Ok(Ok(place));
                    }
                },
            };
            fault = Some((place.pack, why));
        }
        Ok(Err(match fault {
            Some((pack, why)) => self.add(pack, why),
            None => self.faults.add_block(&id.to_hex()),
        }))
    }

    /// Adds the fault of a pack.
    fn add(&mut self, pack: PackId, why: String) -> u16 {
        let fault = match self.packs.knows(pack) {
            true => Fault::damaged(why),
            false => Fault::missing(),
        };
        self.faults.add(pack.text(), fault)
    }

    /// Why a block cannot be read from a place in a pack that exists. Only blocks of packs that are
    /// known to be damaged are read.
    fn block_fault(&self, id: &BlockId, place: &Place) -> Result<Option<String>> {
        if !self.unsound.contains_key(&place.pack) {
            return Ok(None);
        }
        let read = self.data.shared.blocks.read_at_only(id, place, self.stop);
        damage_of(read).map(std::result::Result::err)
    }

    fn known(&self, page: &BlockId) -> Option<Lost> {
        match self.whole.contains(&half(page)) {
            true => Some(Lost::default()),
            false => self.lossy.get(page).cloned(),
        }
    }

    fn remember(&mut self, page: &BlockId, lost: BTreeSet<u16>) -> Lost {
        let lost = Arc::new(lost);
        if lost.is_empty() {
            self.whole.insert(half(page));
        } else {
            self.lossy.insert(*page, Arc::clone(&lost));
        }
        lost
    }

    /// The faults because of which a disk cannot be read completely.
    fn disk(&mut self, root: &BlockId, size: u64) -> Result<Lost> {
        if let Some(lost) = self.known(root) {
            return Ok(lost);
        }
        let parse = |bytes: &[u8]| match parse_root(bytes)? {
            (found, branches) if found == size => Ok(branches),
            _ => Err("it belongs to a disk of another size"),
        };
        let branches = match self.page(root, parse)? {
            Ok(branches) => branches,
            Err(number) => return Ok(self.remember(root, BTreeSet::from([number]))),
        };
        let mut lost = BTreeSet::new();
        for branch in branches.iter().flatten() {
            if let Some(reason) = self.stop.reason() {
                return Err(stopped("check", "a disk", reason));
            }
            lost.extend(self.branch(branch)?.iter());
        }
        Ok(self.remember(root, lost))
    }

    fn branch(&mut self, id: &BlockId) -> Result<Lost> {
        if let Some(lost) = self.known(id) {
            return Ok(lost);
        }
        let leaves = match self.page(id, |bytes| parse_branch(bytes, BRANCH_LEAVES))? {
            Ok(leaves) => leaves,
            Err(number) => return Ok(self.remember(id, BTreeSet::from([number]))),
        };
        let mut lost = BTreeSet::new();
        for some in leaves.chunks(LEAVES) {
            self.leaves(some, &mut lost)?;
        }
        Ok(self.remember(id, lost))
    }

    /// Reads a page, or returns the number of the fault.
    fn page<T>(
        &mut self,
        id: &BlockId,
        parse: impl FnOnce(&[u8]) -> std::result::Result<T, &'static str>,
    ) -> Result<std::result::Result<T, u16>> {
        let place = match self.find(id)? {
            Ok(place) => place,
            Err(number) => return Ok(Err(number)),
        };
        // Another place may have it, too.
        let read = self.data.shared.blocks.read_all(&[(*id, place)], self.stop);
        let read = read.into_iter().next().ok_or_else(no_answer)?;
        let parsed = match damage_of(read)? {
            Ok(bytes) => parse(&bytes[..]).map_err(|why| self.invalid(id, why)),
            Err(why) => Err(why),
        };
        Ok(parsed.map_err(|why| self.add(place.pack, why)))
    }

    fn leaves(&mut self, leaves: &[Option<BlockId>], lost: &mut BTreeSet<u16>) -> Result<()> {
        let mut located: Vec<Located> = Vec::new();
        for id in leaves.iter().flatten() {
            match self.known(id) {
                Some(known) => lost.extend(known.iter()),
                None => match self.find(id)? {
                    Ok(place) => located.push((*id, place)),
                    Err(number) => {
                        lost.insert(number);
                    }
                },
            }
        }
        let block_clusters = self.data.shared.sizes.block_bytes / CLUSTER;
        let read = self.data.shared.blocks.read_all(&located, self.stop);
        for ((id, place), read) in located.iter().zip(read) {
            let parsed = match damage_of(read)? {
                Ok(bytes) => {
                    let leaf = Leaf::parse(&bytes, LEAF_CLUSTERS, block_clusters);
                    leaf.map_err(|why| self.invalid(id, why))
                }
                Err(why) => Err(why),
            };
            let mut of_leaf = BTreeSet::new();
            match parsed {
                Ok(leaf) => {
                    for block in &leaf.ids {
                        of_leaf.extend(self.find(block)?.err());
                    }
                }
                Err(why) => {
                    of_leaf.insert(self.add(place.pack, why));
                }
            }
            lost.extend(self.remember(id, of_leaf).iter());
        }
        Ok(())
    }

    fn invalid(&self, id: &BlockId, why: &str) -> String {
        format!("block {id}, a page of a disk's map, is invalid: {why}")
    }
}

/// Splits off damage, as a text, from other errors.
fn damage_of<T>(read: Result<T>) -> Result<std::result::Result<T, String>> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(PackError::Damaged { why, .. }) => Ok(Err(why)),
        Err(error) if is_damage(&error) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

fn half(id: &BlockId) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&id.bytes()[..16]);
    half
}

fn no_answer() -> PackError {
    PackError::Seal(std::io::Error::other("a block was not read"))
}
