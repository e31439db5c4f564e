//! Reads the folder of a set: its data files, grouped by the runs that wrote them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::definition::{self, Definition};
use super::frame::Header;
use super::layer::{Form, checksum_name, read_checksum};
use super::logs::{self, Logs};
use super::names::{DataName, Run, Whole, config_run};
use super::reader::{self, Reader};
use super::walk::Layout;
use crate::model::block::{BlockError, BlockErrorKind};
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::error::is_no_verdict;
use crate::repo::small_file::read_bounded;
use crate::repo::{RepoError, Result};

/// The folder with the descriptions of checkpoints.
const CHECKPOINTS: &str = "checkpoints";

/// A file with the domain's definition.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Its name.
    pub(super) name: String,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Its BLAKE3 digest when the set was read, in hexadecimal.
    pub(super) digest: String,
    /// The facts from the definition.
    pub(super) definition: Definition,
}

/// A data file.
#[derive(Clone, Debug)]
pub(super) struct DataFile {
    /// Its name.
    pub(super) name: String,
    /// The target of its disk.
    pub(super) target: String,
    /// Its level, if it belongs to the base.
    pub(super) whole: Option<Whole>,
    /// Its length in bytes.
    pub(super) size: u64,
    /// When it was last written.
    pub(super) written: Timestamp,
    /// How the file stores the disk, or a sentence that says why the file cannot be used.
    pub(super) facts: std::result::Result<Facts, String>,
    /// Its recorded checksum, or a sentence about the checksum file.
    pub(super) checksum: std::result::Result<Option<u32>, String>,
}

/// How a data file stores a disk.
#[derive(Clone, Debug)]
pub(super) enum Facts {
    /// As a stream with this header.
    Stream(Box<Header>),
    /// As plain bytes.
    Raw,
}

impl DataFile {
    /// The header, if it is a stream.
    pub(super) fn header(&self) -> Option<&Header> {
        match &self.facts {
            Ok(Facts::Stream(header)) => Some(header),
            _ => None,
        }
    }

    /// How the file stores the disk; `None` if the file cannot be used.
    pub(super) fn form(&self) -> Option<Form> {
        match self.facts.as_ref().ok()? {
            Facts::Stream(_) => Some(Form::Stream),
            Facts::Raw => Some(Form::Raw),
        }
    }
}

/// The files that one run of virtnbdbackup wrote.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// The run; for a differential backup, with the time of its first file.
    pub(super) run: Run,
    /// Its data files, by target.
    pub(super) files: Vec<DataFile>,
    /// The definition that the run saved; if there is none, another definition of the set.
    pub(super) config: std::result::Result<Config, String>,
}

/// The content of a set's folder.
#[derive(Debug)]
pub(super) struct SetContent {
    /// The runs: the base first, then in the order of their numbers and times.
    pub(super) groups: Vec<Group>,
    /// When checkpoints were made, by their names, in seconds since 1970.
    pub(super) created: BTreeMap<String, i64>,
    /// The checkpoints that the set lists, oldest first.
    pub(super) listed: Vec<String>,
    /// The evidence from the logs.
    pub(super) logs: Logs,
    /// The names of all files.
    pub(super) names: BTreeSet<String>,
}

/// The names of the files and folders in a folder, sorted; without names that are not UTF-8,
/// because virtnbdbackup writes none.
pub(super) fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let failed = || RepoError::io("read the folder", dir);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        names.extend(entry.map_err(failed())?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Whether a folder with these names is a set.
pub(super) fn is_set(names: &BTreeSet<String>) -> bool {
    names.iter().any(|name| DataName::parse(name).is_some())
}

/// A definition from any of the set's runs that can be read.
pub(super) fn any_definition(dir: &Path, names: &BTreeSet<String>) -> Option<Definition> {
    let configs = names.iter().filter(|name| config_run(name).is_some());
    let mut read = configs.filter_map(|name| read_config(dir, name).ok());
    read.next()
        .and_then(std::result::Result::ok)
        .map(|config| config.definition)
}

/// The domain's name, taken from the file name of the list of checkpoints.
pub(super) fn domain_of_list(names: &BTreeSet<String>) -> Option<&str> {
    names
        .iter()
        .find_map(|name| name.strip_suffix(".cpt").filter(|stem| !stem.is_empty()))
}

impl SetContent {
    /// Reads the folder of a set.
    ///
    /// # Errors
    /// Something cannot be read, for a reason other than damage.
    pub(super) fn read(dir: &Path) -> Result<SetContent> {
        let names = names(dir)?;
        let mut configs = BTreeMap::new();
        for name in &names {
            if let Some(run) = config_run(name) {
                // A full backup's definition counts before that of a copy of raw disks.
                configs.insert(run, read_config(dir, name)?);
            }
        }
        let mut data = Vec::new();
        for name in &names {
            if let Some(parsed) = DataName::parse(name) {
                let definition = configs.values().rev().find_map(|config| config.as_ref().ok());
                let format = definition.and_then(|config| config.definition.disk(&parsed.target));
                let is_raw = format.is_some_and(|disk| disk.format == "raw");
                data.push((parsed.run, read_data(dir, name, parsed, is_raw, &names)?));
            }
        }
        Ok(SetContent {
            groups: groups(dir, data, &configs),
            created: created(dir),
            listed: listed(dir, &names),
            logs: read_logs(dir, &names),
            names,
        })
    }
}

fn read_config(dir: &Path, name: &str) -> Result<std::result::Result<Config, String>> {
    let path = dir.join(name);
    let bytes = match read_bounded(&path, definition::LONGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(RepoError::io("read", &path)(error));
        }
        Err(error) => return Ok(Err(format!("{} cannot be read: {error}", path.display()))),
    };
    let parsed = Definition::parse(&bytes);
    Ok(parsed
        .map(|definition| Config {
            name: name.to_owned(),
            size: bytes.len() as u64,
            digest: blake3::hash(&bytes).to_hex().to_string(),
            definition,
        })
        .map_err(|why| format!("{} is not the definition of a domain: {why}", path.display())))
}

fn read_data(
    dir: &Path,
    name: &str,
    parsed: DataName,
    is_raw: bool,
    names: &BTreeSet<String>,
) -> Result<DataFile> {
    let path = dir.join(name);
    let checksum = dir.join(checksum_name(name));
    let checksum = read_checksum(&checksum).map_err(RepoError::io("read", &checksum))?;
    let mut data = DataFile {
        name: name.to_owned(),
        target: parsed.target,
        whole: parsed.whole,
        size: 0,
        written: Timestamp::UNIX_EPOCH,
        facts: Err(String::new()),
        checksum,
    };
    let opened = reader::open(&path).and_then(|file| {
        let written = file.metadata()?.modified()?;
        data.written = Timestamp::try_from(written).unwrap_or(Timestamp::UNIX_EPOCH);
        Reader::new(file, &path, None, Stop::default())
    });
    let reader = match opened {
        Ok(reader) => reader,
        Err(error) if is_no_verdict(&error) => return Err(RepoError::io("open", &path)(error)),
        Err(error) => {
            data.facts = Err(format!("{} cannot be opened: {error}", path.display()));
            return Ok(data);
        }
    };
    data.size = reader.length();
    let is_raw = is_raw && data.whole == Some(Whole::Copy);
    if is_raw || data.whole.is_some() && is_raw_image(&reader, dir, &data, names)? {
        // Versions 1.9.40 to 2.26 recorded checksums of raw files that do not match them.
        data.checksum = Ok(None);
        data.facts = Ok(Facts::Raw);
        return Ok(data);
    }
    data.facts = match Layout::read(&reader) {
        Ok(layout) => belongs(&path, &data.target, parsed.run, layout.header),
        Err(error) if is_verdict(&error) => Err(with_sources(&error)),
        Err(error) => return Err(error.into()),
    };
    Ok(data)
}

fn is_verdict(error: &BlockError) -> bool {
    error.kind == BlockErrorKind::Damaged || !is_no_verdict(error)
}

/// Checks that a header belongs into a file of this name: files may have been confused.
fn belongs(path: &Path, target: &str, run: Run, header: Header) -> std::result::Result<Facts, String> {
    let wrong = |what: &str| {
        Err(format!(
            "{} {what}: the file was confused with another one",
            path.display()
        ))
    };
    if header.disk != target {
        return wrong("holds a different disk than its name says");
    }
    if let Run::Incremental(number) = run
        && header.checkpoint != format!("{}{number}", super::names::CHECKPOINT)
    {
        return wrong("holds a different backup than its name says");
    }
    // An incremental run may have made a full backup, because a checkpoint was invalid.
    if run == Run::Base && header.is_incremental {
        return wrong("holds an incremental backup, but has the name of a full one");
    }
    Ok(Facts::Stream(Box::new(header)))
}

/// Whether a file with a whole disk is a raw image (`virtnbdbackup --type raw`): it is no stream,
/// and has the size of the disk that virtnbdbackup recorded.
fn is_raw_image(reader: &Reader, dir: &Path, data: &DataFile, names: &BTreeSet<String>) -> Result<bool> {
    let mut first = [0; 5];
    match reader.read_past_digest(&mut first, 0) {
        Ok(()) if first == *b"meta " => return Ok(false),
        Ok(()) => {}
        Err(error) if is_verdict(&error) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let prefix = format!("{}.", data.target);
    let is_info = |name: &&String| name.starts_with(&prefix) && name.ends_with(".qcow.json");
    Ok(names.iter().filter(is_info).any(|name| {
        let read = read_bounded(&dir.join(name), 1 << 20);
        let json: Option<serde_json::Value> = read.ok().and_then(|json| serde_json::from_slice(&json).ok());
        let size = json.and_then(|json| json.get("virtual-size")?.as_u64());
        size == Some(data.size)
    }))
}

/// Groups data files by the runs that wrote them.
fn groups(
    dir: &Path,
    data: Vec<(Run, DataFile)>,
    configs: &BTreeMap<Run, std::result::Result<Config, String>>,
) -> Vec<Group> {
    let mut files: BTreeMap<Run, Vec<DataFile>> = BTreeMap::new();
    for (run, file) in data {
        files.entry(run).or_default().push(file);
    }
    let config_of = |run: Run| {
        let own = configs.get(&run).or_else(|| configs.get(&Run::Base));
        let any = || configs.values().find(|config| config.is_ok());
        own.filter(|config| config.is_ok())
            .or_else(any)
            .or(own)
            .cloned()
            .unwrap_or_else(|| {
                Err(format!(
                    "{} has no definition of the domain (vmconfig.*.xml)",
                    dir.display()
                ))
            })
    };
    let mut groups: Vec<Group> = Vec::new();
    let mut is_open = false;
    for (run, files) in files {
        let Run::Differential(time) = run else {
            let config = config_of(run);
            groups.push(Group { run, files, config });
            continue;
        };
        // Each disk's file has a time of its own, and the definition is saved after all disks.
        let Some(last) = groups.last_mut().filter(|_| is_open) else {
            let config = config_of(config_after(time, configs));
            groups.push(Group { run, files, config });
            is_open = true;
            continue;
        };
        let Run::Differential(begun) = last.run else {
            continue;
        };
        let is_other_run = config_after(begun, configs) != config_after(time, configs);
        let is_double = files
            .iter()
            .any(|file| last.files.iter().any(|known| known.target == file.target));
        if is_other_run || is_double {
            let config = config_of(config_after(time, configs));
            groups.push(Group { run, files, config });
        } else {
            last.files.extend(files);
        }
    }
    // One disk can have two files of the base: as a stream, and as a raw copy.
    for group in &mut groups {
        group.files.sort_by(|a, b| {
            (&a.target, a.whole == Some(Whole::Copy)).cmp(&(&b.target, b.whole == Some(Whole::Copy)))
        });
        group
            .files
            .dedup_by(|later, earlier| later.target == earlier.target);
    }
    groups
}

/// The run of the first definition that was saved after this time.
fn config_after(time: u64, configs: &BTreeMap<Run, std::result::Result<Config, String>>) -> Run {
    let mut later = configs.range(Run::Differential(time)..);
    later.next().map_or(Run::Differential(u64::MAX), |(run, _)| *run)
}

/// When the set's checkpoints were made, as far as their descriptions can be read.
fn created(dir: &Path) -> BTreeMap<String, i64> {
    let dir = dir.join(CHECKPOINTS);
    let mut created = BTreeMap::new();
    for name in names(&dir).unwrap_or_default() {
        let Some(checkpoint) = name.strip_suffix(".xml") else {
            continue;
        };
        if super::names::checkpoint_number(checkpoint).is_none() {
            continue;
        }
        let xml = read_bounded(&dir.join(&name), definition::LONGEST).ok();
        let time = xml.as_deref().and_then(creation_time);
        created.extend(time.map(|time| (checkpoint.to_owned(), time)));
    }
    created
}

fn creation_time(xml: &[u8]) -> Option<i64> {
    let document = roxmltree::Document::parse(std::str::from_utf8(xml).ok()?).ok()?;
    let mut children = document.root_element().children();
    let time = children.find(|child| child.has_tag_name("creationTime"))?;
    time.text()?.trim().parse().ok()
}

/// The checkpoints that `DOMAIN.cpt` lists. An unreadable list says nothing.
fn listed(dir: &Path, names: &BTreeSet<String>) -> Vec<String> {
    let name = names.iter().find(|name| name.ends_with(".cpt"));
    let json = name.and_then(|name| read_bounded(&dir.join(name), 1 << 20).ok());
    let listed: Option<Vec<String>> = json.and_then(|json| serde_json::from_slice(&json).ok());
    let mut listed = listed.unwrap_or_default();
    listed.retain(|name| super::names::checkpoint_number(name).is_some());
    listed
}

fn read_logs(dir: &Path, names: &BTreeSet<String>) -> Logs {
    let mut logs = Logs::default();
    for name in names.iter().filter(|name| Logs::is_log(name)) {
        let path: PathBuf = dir.join(name);
        let Ok(file) = reader::open(&path) else { continue };
        let mut text = Vec::new();
        if io::Read::read_to_end(&mut io::Read::take(file, logs::READ), &mut text).is_ok() {
            logs.add(&text);
        }
    }
    logs
}
