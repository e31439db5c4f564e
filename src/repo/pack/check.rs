//! Reads and checks what belongs to a restore point.

use std::rc::Rc;

use super::data::{BlockId, Data, DiskFault, PackList};
use super::error::PackErrorClass;
use super::part::DomainPart;
use super::point;
use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::{FileDamage, FileEntry, FileWatch, History, Kept, RepoError, Result};

/// The largest small file, in bytes.
const MAX_SMALL_FILE: u64 = 256 << 20;

/// The root page and the size of a disk at a restore point of a history.
///
/// # Errors
/// [`RepoError::NotWhole`] if the restore point is missing, or does not hold the disk.
pub(super) fn root_of(history: &History, id: &str, target: &str) -> Result<(BlockId, u64)> {
    let not_whole = |fault: String| RepoError::NotWhole {
        id: id.to_owned(),
        fault,
    };
    history.chains.lineage(id, target).map_err(not_whole)?;
    let kept = history.get(id);
    let found = kept.and_then(|kept| {
        let disk = kept.manifest.point.disk(target)?;
        Some((point::root(&kept.manifest, target)?, disk.virtual_size))
    });
    found.ok_or_else(|| not_whole(format!("disk {target} of {id} has no map")))
}

/// Reads a small file of a restore point and checks it against the manifest. The error is a
/// sentence that names the file.
pub(super) fn read_small(
    domain: &DomainPart,
    kept: &Kept,
    name: &str,
    stop: &Stop,
) -> std::result::Result<Vec<u8>, String> {
    let file = Small::of(kept, name)?;
    file.read(domain, stop).map_err(|fault| match fault {
        SmallFault::Damaged(what) => what,
        SmallFault::Unread(error) => format!("{} cannot be read: {}", file.location, with_sources(&error)),
    })
}

/// A small file of a restore point.
struct Small<'a> {
    location: String,
    entry: &'a FileEntry,
    id: String,
}

/// Why a small file could not be read.
enum SmallFault {
    /// It is damaged; the sentence names it.
    Damaged(String),
    /// Reading failed for a reason other than damage.
    Unread(RepoError),
}

impl<'a> Small<'a> {
    fn of(kept: &'a Kept, name: &str) -> std::result::Result<Small<'a>, String> {
        let location = format!("{name} of {}", kept.location);
        let manifest = &kept.manifest;
        let entry = manifest.files.iter().chain(&manifest.checkpoint_file);
        let entry = entry.into_iter().find(|file| file.name == name);
        let entry = entry.ok_or_else(|| format!("{location} is not in the manifest"))?;
        Ok(Small {
            location,
            entry,
            id: manifest.point.id.clone(),
        })
    }

    fn read(&self, domain: &DomainPart, stop: &Stop) -> std::result::Result<Vec<u8>, SmallFault> {
        let damaged = |why: &str| SmallFault::Damaged(format!("{} is damaged: {why}", self.location));
        let content = domain.content().map_err(SmallFault::Unread)?;
        let stored = content.point(&self.id);
        let ids = stored.and_then(|stored| stored.record.blocks.get(&self.entry.name));
        let ids = ids.ok_or_else(|| damaged("its blocks are not recorded"))?;
        let most = self.entry.size;
        if most > MAX_SMALL_FILE {
            return Err(damaged("it is too large"));
        }
        let data = domain.shared.data().map_err(SmallFault::Unread)?;
        let bytes = data.get(ids, most, stop).map_err(|error| {
            let error = RepoError::from(error);
            match is_of_stored_data(&error) {
                true => damaged(&with_sources(&error)),
                false => SmallFault::Unread(error),
            }
        })?;
        let digest = blake3::hash(&bytes).to_hex();
        match bytes.len() as u64 == self.entry.size
            && digest.as_str().eq_ignore_ascii_case(&self.entry.blake3)
        {
            true => Ok(bytes),
            false => Err(damaged("its digest does not match the manifest")),
        }
    }
}

/// Whether an error says that stored data is damaged or missing.
fn is_of_stored_data(error: &RepoError) -> bool {
    match error {
        RepoError::Pack(error) => error.class() == PackErrorClass::Damaged,
        RepoError::Blocks(error) => error.kind == BlockErrorKind::Damaged,
        _ => false,
    }
}

/// A check of what belongs to one restore point.
pub(super) struct Check<'a> {
    pub(super) domain: &'a DomainPart,
    pub(super) watch: &'a mut dyn FileWatch,
    pub(super) stop: &'a Stop,
    pub(super) damage: &'a mut Vec<FileDamage>,
    packs: Option<Rc<PackList>>,
}

impl<'a> Check<'a> {
    pub(super) fn new(
        domain: &'a DomainPart,
        watch: &'a mut dyn FileWatch,
        stop: &'a Stop,
        damage: &'a mut Vec<FileDamage>,
    ) -> Check<'a> {
        Check {
            domain,
            watch,
            stop,
            damage,
            packs: None,
        }
    }

    pub(super) fn run(mut self, kept: &Kept) -> Result<()> {
        let manifest = &kept.manifest;
        let is_image = |file: &&FileEntry| manifest.point.disks.iter().any(|disk| disk.image == file.name);
        let small = manifest.files.iter().filter(|file| !is_image(file));
        for file in small.chain(&manifest.checkpoint_file) {
            self.check_small(kept, &file.name)?;
        }
        for disk in &manifest.point.disks {
            self.check_map(kept, &disk.target, disk.virtual_size)?;
        }
        Ok(())
    }

    fn check_small(&mut self, kept: &Kept, name: &str) -> Result<()> {
        if self.stop.requested() {
            return Err(BlockError::stopped().into());
        }
        let damage = |location: &str, what: String| FileDamage {
            location: Some(location.to_owned()),
            offset: None,
            disk: None,
            what,
        };
        let file = match Small::of(kept, name) {
            Ok(file) => file,
            Err(what) => {
                self.damage.push(damage(&kept.location, what));
                return Ok(());
            }
        };
        self.watch.begins(&file.location, file.entry.size);
        let read = file.read(self.domain, self.stop);
        self.watch.at(&file.location, file.entry.size);
        self.watch.ends(&file.location);
        match read {
            Ok(_) => {}
            Err(SmallFault::Damaged(what)) => self.damage.push(damage(&kept.location, what)),
            Err(SmallFault::Unread(error)) => return Err(error),
        }
        Ok(())
    }

    /// Checks that every block of a disk is known and that its pack is there. A deep verification
    /// reads the blocks, too.
    fn check_map(&mut self, kept: &Kept, target: &str, size: u64) -> Result<()> {
        let name = format!("disk {target} of {}", kept.location);
        self.watch.begins(&name, size);
        let checked = self.read_map(kept, target, size);
        self.watch.at(&name, size);
        self.watch.ends(&name);
        checked
    }

    fn read_map(&mut self, kept: &Kept, target: &str, size: u64) -> Result<()> {
        let damage = |what: String| FileDamage {
            location: Some(kept.location.clone()),
            offset: None,
            disk: Some(target.to_owned()),
            what,
        };
        let Some(root) = point::root(&kept.manifest, target) else {
            let what = format!("disk {target} of {} has no map", kept.location);
            self.damage.push(damage(what));
            return Ok(());
        };
        let data = self.domain.shared.data()?;
        let packs = self.packs(&data)?;
        let mut found = Vec::new();
        let mut report = |fault: DiskFault| {
            let (start, end) = (fault.range.start, fault.range.end);
            let what = format!(
                "bytes {start} to {end} of disk {target} of {} cannot be read: {}",
                kept.location, fault.what
            );
            found.push(damage(what));
        };
        let checked = data.check_disk(root, size, &packs, false, self.stop, &mut report);
        self.damage.extend(found);
        Ok(checked?)
    }

    /// The packs that exist, listed once for all disks of a restore point.
    fn packs(&mut self, data: &Data) -> Result<Rc<PackList>> {
        if let Some(packs) = &self.packs {
            return Ok(Rc::clone(packs));
        }
        let packs = Rc::new(data.packs(self.stop)?);
        self.packs = Some(Rc::clone(&packs));
        Ok(packs)
    }
}
