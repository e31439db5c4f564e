//! The sets of one domain, for reading.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::check::Check;
use super::disk::SetDisk;
use super::folder::{Config, DataFile, Group, SetContent, names};
use super::layer::ChainFile;
use super::place::SetPlace;
use super::points::{nvram_name, points};
use super::source::SetSource;
use super::stack::Stack;
use crate::model::block::{BlockError, BlockErrorKind, BlockSource};
use crate::model::chain::{Chains, KeptPoint};
use crate::model::finding::Finding;
use crate::model::period::{COPY_PREFIX, FOLDER_PREFIX};
use crate::model::restore_point::id_of;
use crate::model::stop::Stop;
use crate::repo::small_file::read_bounded;
use crate::repo::{
    BootProof, DiskReader, DomainRepository, DomainWriter, FileDamage, FileWatch, History, Identity, Kept,
    Leftover, MissedWriteRecord, Note, PeriodUsage, Proof, RepoError, Result, SmallFile, SourceOptions,
};

/// The largest file that is read into memory as a whole, in bytes.
const MAX_SMALL_FILE: u64 = 256 << 20;

/// The sets of one domain.
#[derive(Clone, Debug)]
pub(super) struct SetDomain {
    pub(super) name: String,
    /// The location of the repository.
    pub(super) location: String,
    pub(super) places: Vec<SetPlace>,
    /// The time zone of the times in headers.
    pub(super) zone: TimeZone,
}

impl SetDomain {
    fn read_only(&self) -> RepoError {
        RepoError::ReadOnly {
            location: self.location.clone(),
        }
    }

    /// The folder of a restore point's set.
    fn dir_of(&self, kept: &Kept) -> Result<PathBuf> {
        let point = &kept.manifest.point;
        let place = self.places.iter().find(|place| place.period == point.period);
        place
            .map(|place| place.dir.clone())
            .ok_or_else(|| RepoError::NotWhole {
                id: point.id.clone(),
                fault: "its set is missing".to_owned(),
            })
    }

    /// Opens the files that make up a disk, newest first. Returns how many are newer than the
    /// restore point `above`, too.
    fn stack(
        &self,
        history: &History,
        id: &str,
        target: &str,
        above: Option<&str>,
        stop: &Stop,
    ) -> Result<(Stack, usize)> {
        let not_whole = |fault: String| RepoError::NotWhole {
            id: id.to_owned(),
            fault,
        };
        let line = history.chains.lineage(id, target).map_err(not_whole)?;
        let newest = line.first().and_then(|step| history.get(&step.point.id));
        let newest = newest.ok_or_else(|| not_whole("it is missing".to_owned()))?;
        // Restore points depend on others of the same set only.
        let dir = self.dir_of(newest)?;
        let content = SetContent::read(&dir)?;
        let files = line.iter().map(|step| chain_file(&dir, &content, step, target));
        let files: Vec<ChainFile> = files.collect::<std::result::Result<_, BlockError>>()?;
        let size = newest
            .manifest
            .point
            .disk(target)
            .map_or(0, |disk| disk.virtual_size);
        let is_above = |step: &&KeptPoint| Some(step.point.id.as_str()) != above;
        let upper = line.iter().take_while(|step| is_above(step)).count();
        Ok((Stack::open(&files, size, stop)?, upper))
    }
}

/// The file of a disk at a restore point of this set.
fn chain_file(
    dir: &std::path::Path,
    content: &SetContent,
    step: &KeptPoint,
    target: &str,
) -> std::result::Result<ChainFile, BlockError> {
    let damaged = |what: String| BlockError::new(BlockErrorKind::Damaged, what);
    let name = step.point.disk(target).map_or("", |disk| disk.image.as_str());
    let path = dir.join(name);
    let file = find_file(content, name).ok_or_else(|| damaged(format!("{} is missing", path.display())))?;
    if let Err(what) = &file.facts {
        return Err(damaged(what.clone()));
    }
    let form = file
        .form()
        .ok_or_else(|| damaged(format!("{} is unusable", path.display())))?;
    let expected = file.checksum.clone().map_err(damaged)?;
    Ok(ChainFile { path, form, expected })
}

fn find_file<'a>(content: &'a SetContent, name: &str) -> Option<&'a DataFile> {
    let mut files = content.groups.iter().flat_map(|group| &group.files);
    files.find(|file| file.name == name)
}

/// The run of a restore point.
pub(super) fn group_of<'a>(content: &'a SetContent, kept: &Kept) -> Option<&'a Group> {
    let disk = kept.manifest.point.disks.first()?;
    let is_it = |group: &&Group| group.files.iter().any(|file| file.name == disk.image);
    content.groups.iter().find(is_it)
}

impl DomainRepository for SetDomain {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> String {
        match self.places.as_slice() {
            [place] => place.dir.display().to_string(),
            _ => self.location.clone(),
        }
    }

    fn exists(&self) -> bool {
        self.places.iter().any(|place| place.dir.is_dir())
    }

    fn identity(&self) -> Identity {
        Identity::None
    }

    fn history(&self) -> Result<History> {
        let mut history = History::default();
        let mut all = Vec::new();
        let mut all_lost = Vec::new();
        let mut taken = std::collections::BTreeSet::new();
        for place in &self.places {
            let place = SetPlace {
                taken: taken.clone(),
                ..place.clone()
            };
            let content = SetContent::read(&place.dir)?;
            let (found, lost) = points(&place, &content, &self.zone);
            taken.extend(found.iter().map(|found| found.point.point.id.clone()));
            all.extend(found);
            all_lost.extend(lost);
        }
        let of_lost = all_lost.iter();
        let findings = of_lost.map(|lost| Finding::new("restore-point-missing", lost.what.clone()));
        history.findings = findings.collect();
        let (points, mut kept): (Vec<_>, Vec<_>) =
            all.into_iter().map(|found| (found.point, found.kept)).unzip();
        history.chains = Chains::new(points).beside(all_lost);
        let chains = history.chains.points().iter();
        let order: std::collections::HashMap<&str, usize> = chains
            .zip(0..)
            .map(|(kept, place)| (kept.point.id.as_str(), place))
            .collect();
        kept.sort_by_key(|kept| order.get(kept.manifest.point.id.as_str()).copied());
        history.kept = kept;
        Ok(history)
    }

    fn used_periods(&self) -> Result<Vec<String>> {
        let periods = self.places.iter().map(|place| place.period.clone());
        Ok(periods
            .filter(|period| period.starts_with(FOLDER_PREFIX))
            .collect())
    }

    fn period_usage(&self, period: &str) -> PeriodUsage {
        let place = self.places.iter().find(|place| place.period == period);
        let Some(place) = place else {
            return PeriodUsage {
                exists: false,
                location: self.location(),
                files: 0,
                bytes: 0,
            };
        };
        let names = names(&place.dir).unwrap_or_default();
        let found = names
            .iter()
            .filter_map(|name| place.dir.join(name).metadata().ok());
        let files: Vec<u64> = found
            .filter(|found| found.is_file())
            .map(|found| found.len())
            .collect();
        PeriodUsage {
            exists: true,
            location: place.dir.display().to_string(),
            files: files.len() as u64,
            bytes: files.iter().sum(),
        }
    }

    fn copy_period(&self, time: Timestamp) -> Result<String> {
        Ok(format!("{COPY_PREFIX}{}", id_of(time)))
    }

    fn interrupted_removals(&self) -> Result<Vec<Leftover>> {
        Ok(Vec::new())
    }

    fn has_leftover(&self, _leftover: &Leftover) -> bool {
        false
    }

    fn note(&self, _leftover: &Leftover) -> Result<Note> {
        Ok(Note::None)
    }

    fn restore_mark(&self) -> Result<Note> {
        Ok(Note::None)
    }

    fn restore_mark_location(&self) -> String {
        self.location()
    }

    fn writer(&self) -> Option<String> {
        None
    }

    fn try_lock(&self) -> Result<Box<dyn DomainWriter>> {
        Err(self.read_only())
    }

    fn open_disk(
        &self,
        history: &History,
        id: &str,
        target: &str,
        stop: &Stop,
    ) -> Result<Arc<dyn DiskReader>> {
        let (stack, _) = self.stack(history, id, target, None, stop)?;
        Ok(Arc::new(SetDisk::new(stack)?))
    }

    fn open_source(
        &self,
        history: &History,
        id: &str,
        target: &str,
        options: &SourceOptions,
    ) -> Result<Box<dyn BlockSource>> {
        let above = options.above.as_deref();
        let (mut stack, upper) = self.stack(history, id, target, above, &options.stop)?;
        if options.past_caches {
            stack
                .layers_mut()
                .iter()
                .for_each(super::layer::Layer::forget_cached);
        }
        let (pool, stop) = (options.pool.clone(), options.stop.clone());
        Ok(Box::new(SetSource::new(stack, upper, pool, stop)))
    }

    fn read_file(&self, kept: &Kept, file: SmallFile) -> std::result::Result<Vec<u8>, String> {
        let of_error = |error: RepoError| crate::model::text::with_sources(&error);
        let dir = self.dir_of(kept).map_err(of_error)?;
        let content = SetContent::read(&dir).map_err(of_error)?;
        let config: &Config = match group_of(&content, kept).map(|group| &group.config) {
            Some(Ok(config)) => config,
            Some(Err(what)) => return Err(what.clone()),
            None => return Err("the files of the restore point are missing".to_owned()),
        };
        let name = match file {
            SmallFile::Definition => Some(config.name.clone()),
            SmallFile::Nvram => nvram_name(config, &content.names),
            SmallFile::Tpm => None,
        };
        let name = name.ok_or_else(|| format!("the set has no {} of this restore point", file.name()))?;
        let path = dir.join(name);
        let bytes = read_bounded(&path, MAX_SMALL_FILE)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        let is_same =
            |recorded: &str| recorded.is_empty() || recorded == blake3::hash(&bytes).to_hex().as_str();
        match file
            .entry(&kept.manifest)
            .is_some_and(|entry| is_same(&entry.blake3))
        {
            true => Ok(bytes),
            false => Err(format!(
                "{} was changed while vmsnap was reading it: run again",
                path.display()
            )),
        }
    }

    fn check_files(
        &self,
        _history: &History,
        kept: &Kept,
        watch: &mut dyn FileWatch,
        stop: &Stop,
        damage: &mut Vec<FileDamage>,
    ) -> Result<()> {
        let dir = self.dir_of(kept)?;
        let content = SetContent::read(&dir)?;
        let mut check = Check {
            dir: &dir,
            watch,
            stop,
            damage,
        };
        if let Some(group) = group_of(&content, kept) {
            for file in &group.files {
                check.data_file(file)?;
            }
        }
        for file in [SmallFile::Definition, SmallFile::Nvram] {
            if file.entry(&kept.manifest).is_some()
                && let Err(what) = self.read_file(kept, file)
            {
                check.damage.push(FileDamage {
                    location: None,
                    offset: None,
                    disk: None,
                    what,
                });
            }
        }
        Ok(())
    }

    fn caution(&self) -> Option<&'static str> {
        Some(
            "virtnbdbackup records Adler-32 checksums of its files, and nothing about the disks: a verification \
             shows accidental damage of the files, not changes on purpose",
        )
    }

    fn is_removed(&self, _kept: &Kept) -> Result<bool> {
        Ok(false)
    }

    fn keep_proof(&self, _proof: &Proof, _known: &[String]) -> Result<()> {
        Err(self.read_only())
    }

    fn keep_missed_writes(&self, _missed: &MissedWriteRecord) -> Result<()> {
        Err(self.read_only())
    }

    fn keep_boot_proof(&self, _proof: &BootProof) -> Result<()> {
        Err(self.read_only())
    }

    fn forget_removed(&self) -> Result<()> {
        Ok(())
    }
}
