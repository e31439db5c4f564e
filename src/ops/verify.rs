//! Proves restore points: their manifests and parents, the digest of every file, the structure of every image, and on request every byte as a
//! restore would read it.
//!
//! It reads only, takes no lock and disturbs no run; a restore point that is pruned meanwhile is left out. What it finds is remembered in the
//! repository: `list` and `status` show it, and no backup relies on what was found damaged.

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::Timestamp;

use super::monitor::{Event, Monitor};
use super::{Error, Result, list, restore};
use crate::model::chain::Concern;
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::repo::history::{self, Kept, WRITTEN_BY_A_NEWER_VMSNAP, is_gone};
use crate::repo::{DamageNote, DomainRepository, History, RepoError, Repository};

pub use crate::repo::Proof;

mod point;

use point::Prover;

/// Which restore points are to be proved. Those that they stand upon are proved with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest one.
    Latest,
    /// One: its id, its checkpoint, or a time.
    At(String),
    /// All of them.
    All,
}

/// What a verification is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which restore points.
    pub which: Which,
    /// Whether to read every disk from end to end as a restore would, besides the files.
    pub deep: bool,
    /// Restore points that were found sound at this time or later are skipped.
    pub not_since: Option<Timestamp>,
    /// The time now, which is remembered.
    pub now: Timestamp,
}

/// What a verification has found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The restore points, in the order they were made.
    pub points: Vec<ProvedPoint>,
    /// Damage that belongs to no restore point that could be read: manifests that cannot be used.
    pub damage: Vec<Damage>,
    /// Bytes that were read.
    pub bytes: u64,
    /// What else is worth telling.
    pub findings: Vec<Finding>,
    /// What ended it before all was looked at: a wish to stop, or files that could not be read for a reason that is no verdict on them.
    pub ended: Option<Error>,
}

impl Outcome {
    /// Whether there are restore points that only a newer program can read.
    pub fn needs_newer(&self) -> bool {
        let mut codes = self.findings.iter().map(|finding| &finding.code);
        codes.any(|code| code == WRITTEN_BY_A_NEWER_VMSNAP)
    }

    /// Whether nothing was found damaged.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.points.iter().all(|point| point.damage.is_empty())
    }

    /// All that was found damaged, once each.
    pub fn all_damage(&self) -> impl Iterator<Item = &Damage> {
        let of_points = self.points.iter().flat_map(|point| &point.damage);
        self.damage.iter().chain(of_points)
    }
}

/// One restore point of a verification.
#[derive(Clone, Debug)]
pub struct ProvedPoint {
    /// Its id.
    pub id: String,
    /// When it had been proved before, if that was enough.
    pub skipped: Option<Timestamp>,
    /// What is damaged of its own files and disks.
    pub damage: Vec<Damage>,
}

/// Something that is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, where it is one.
    pub path: Option<PathBuf>,
    /// Where in the file, in bytes, where that is known.
    pub offset: Option<u64>,
    /// The target of the disk that it concerns; `None` for files that belong to no disk.
    pub disk: Option<String>,
    /// The restore point that is damaged, where this one only stands upon it.
    pub upon: Option<String>,
    /// What is wrong, in words that name the file.
    pub what: String,
}

impl Damage {
    /// Damage that is known by its words only.
    fn told(what: impl Into<String>) -> Damage {
        Damage {
            path: None,
            offset: None,
            disk: None,
            upon: None,
            what: what.into(),
        }
    }

    fn of_disk(self, target: &str) -> Damage {
        Damage {
            disk: Some(target.to_owned()),
            ..self
        }
    }
}

/// Proves restore points of the domain of that name.
///
/// # Errors
/// When there is nothing to prove, the repository cannot be read, or the user asked to stop before anything was looked at. Damage is no error: it
/// is in the outcome, and so is what ended the work after it was found.
pub fn verify(
    domain: &str,
    repo: &Repository,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &Stop,
) -> Result<Outcome> {
    let failed = |error: RepoError| Error::of(domain, error);
    let repository = repo.domain(domain).map_err(failed)?;
    let history = repository.history().map_err(failed)?;
    let mut outcome = Outcome {
        findings: list::unfinished(&repository, &history),
        ..Outcome::default()
    };
    for finding in &history.findings {
        match options.which {
            // What is told of a file that is read here anyway is told with what is found there.
            _ if finding.code == history::CHECKPOINT_DAMAGED => {}
            // What only a newer program can read is not known to be damaged.
            _ if finding.code == WRITTEN_BY_A_NEWER_VMSNAP => outcome.findings.push(finding.clone()),
            // A manifest that cannot be used may be that of the newest restore point, so it concerns whoever did not name another.
            Which::At(_) => outcome.findings.push(finding.clone()),
            Which::Latest | Which::All => outcome.damage.push(Damage::told(&finding.message)),
        }
    }
    let chosen = match chosen(domain, &history, &options.which) {
        Ok(chosen) => chosen,
        // That none can be read is told above.
        Err(_) if !outcome.damage.is_empty() => Vec::new(),
        Err(error) => return Err(error),
    };
    for finding in &outcome.findings {
        monitor.event(Event::Found { domain, finding });
    }
    Verification {
        domain,
        history: &history,
        options,
        monitor,
        needed: with_parents(&history, &chosen),
        chosen,
        damaged: BTreeSet::new(),
        prover: Prover::new(domain, &repository, &history, monitor, stop),
        repository: &repository,
        outcome,
    }
    .run()
}

/// A verification on its way.
struct Verification<'a> {
    domain: &'a str,
    repository: &'a DomainRepository,
    history: &'a History,
    options: &'a Options,
    monitor: &'a dyn Monitor,
    /// The ids of the restore points that are meant.
    chosen: Vec<String>,
    /// The same with all that they stand upon.
    needed: BTreeSet<String>,
    /// The disks that were found damaged, each with its restore point's id.
    damaged: BTreeSet<(String, String)>,
    prover: Prover<'a>,
    outcome: Outcome,
}

impl Verification<'_> {
    fn run(mut self) -> Result<Outcome> {
        let history = self.history;
        // Parents come before what stands upon them.
        for id in ids(history)
            .filter(|id| self.needed.contains(*id))
            .collect::<Vec<_>>()
        {
            let Some(kept) = history.get(id) else { continue };
            if let Err(error) = self.prove(kept) {
                if self.outcome.points.is_empty() && self.outcome.is_sound() {
                    return Err(error);
                }
                self.outcome.ended = Some(error);
                break;
            }
        }
        // Of what has gone nothing needs to be known; that it is still known does no harm.
        let _ = self.repository.forget_removed();
        self.outcome.bytes = self.prover.bytes();
        Ok(self.outcome)
    }

    /// Proves one restore point and remembers what was found, also when an error ends it.
    fn prove(&mut self, kept: &Kept) -> Result<()> {
        let id = &kept.manifest.point.id;
        let deep = self.is_deep(id);
        let inherited = inherited(&kept.manifest.point, &self.damaged);
        if let Some(time) = self.proved_enough(kept)
            && inherited.is_empty()
        {
            self.outcome.points.push(ProvedPoint {
                id: id.clone(),
                skipped: Some(time),
                damage: Vec::new(),
            });
            return Ok(());
        }
        let mut damage = inherited;
        let proved = self.prover.prove(kept, deep, &mut damage);
        if self.is_pruned(kept)? {
            let what = format!("restore point {id} was removed while it was being verified");
            self.tell(Finding::new("removed-meanwhile", what));
            return proved;
        }
        let proved = match proved {
            Ok(()) if deep && !damage.is_empty() => self.look_beneath(kept, &mut damage),
            proved => proved,
        };
        self.book(kept, deep, damage, proved.is_ok());
        proved
    }

    fn is_deep(&self, id: &String) -> bool {
        self.options.deep && self.chosen.contains(id)
    }

    /// When a restore point had been proved before, if that is enough by itself.
    fn proved_enough(&self, kept: &Kept) -> Option<Timestamp> {
        let id = &kept.manifest.point.id;
        let time = proved_before(kept.proof.as_ref(), self.options, self.is_deep(id))?;
        (self.history.chains.faults(id).is_empty() && point::has_checkpoint(kept)).then_some(time)
    }

    /// Proves those that a restore point stands upon and that were skipped, and whose images a deep reading has gone through and met damage: it has
    /// to be told of the one whose image it is. What then turns out to be inherited takes the place of what was found.
    fn look_beneath(&mut self, kept: &Kept, damage: &mut Vec<Damage>) -> Result<()> {
        let point = &kept.manifest.point;
        let beneath = with_parents(self.history, std::slice::from_ref(&point.id));
        let was_skipped = |proved: &ProvedPoint| proved.skipped.is_some() && beneath.contains(&proved.id);
        let skipped = self.outcome.points.iter().filter(|proved| was_skipped(proved));
        for id in skipped.map(|proved| proved.id.clone()).collect::<Vec<_>>() {
            let Some(parent) = self.history.get(&id) else {
                continue;
            };
            let mut found = inherited(&parent.manifest.point, &self.damaged);
            let proved = self.prover.prove(parent, false, &mut found);
            self.book(parent, false, found, proved.is_ok());
            proved?;
        }
        let inherited = inherited(point, &self.damaged);
        let is_own = |found: &Damage| {
            found
                .path
                .as_ref()
                .is_some_and(|path| path.starts_with(&kept.dir))
        };
        damage.retain(|found| is_own(found) || !inherited.iter().any(|from| from.disk == found.disk));
        damage.extend(inherited);
        Ok(())
    }

    /// Takes a result down, in place of an earlier one of the same restore point.
    fn book(&mut self, kept: &Kept, deep: bool, damage: Vec<Damage>, is_complete: bool) {
        let id = &kept.manifest.point.id;
        if !is_complete && damage.is_empty() {
            return;
        }
        let disks = damage.iter().filter_map(|damage| damage.disk.as_ref());
        self.damaged.extend(disks.map(|disk| (id.clone(), disk.clone())));
        self.remember(kept, deep, &damage, is_complete);
        let proved = ProvedPoint {
            id: id.clone(),
            skipped: None,
            damage,
        };
        match self.outcome.points.iter_mut().find(|earlier| earlier.id == *id) {
            Some(earlier) => *earlier = proved,
            None => self.outcome.points.push(proved),
        }
    }

    /// Whether a restore point was pruned meanwhile: its period has gone, which loses its name before its files, and nothing around it.
    fn is_pruned(&self, kept: &Kept) -> Result<bool> {
        let period = kept.dir.parent().unwrap_or(&kept.dir);
        if !is_gone(period) {
            return Ok(false);
        }
        // What goes with the whole folder of the domain, as when a disk is unmounted, was not pruned.
        let dir = self.repository.dir();
        match dir.metadata() {
            Ok(_) => Ok(true),
            Err(error) => Err(Error::of(self.domain, RepoError::io("look at", dir)(error))),
        }
    }

    /// A result that cannot be remembered is a result all the same. One that is not complete forgets nothing of what was known.
    fn remember(&mut self, kept: &Kept, deep: bool, damage: &[Damage], is_complete: bool) {
        let known = kept.proof.as_ref();
        // What a restore point only inherits is remembered where it comes from.
        let own = damage.iter().filter(|damage| damage.upon.is_none());
        let mut notes: Vec<DamageNote> = own.map(DamageNote::from).collect();
        if !is_complete && notes.is_empty() {
            return;
        }
        if !is_complete {
            let known = known.iter().flat_map(|known| &known.damage);
            let others: Vec<DamageNote> = known.filter(|note| !notes.contains(note)).cloned().collect();
            notes.extend(others);
        }
        let proof = Proof {
            id: kept.manifest.point.id.clone(),
            manifest: kept.manifest.digest.clone(),
            time: self.options.now,
            deep: deep && damage.is_empty(),
            deep_time: known
                .and_then(Proof::last_deep)
                .filter(|_| damage.is_empty() && !deep),
            damage: notes,
        };
        let Err(error) = self.repository.keep_proof(&proof, &kept.records) else {
            return;
        };
        // Why the first result cannot be kept is why the others cannot.
        let told = &mut self.outcome.findings.iter();
        if !told.any(|finding| finding.code == "proof-not-kept") {
            let what = format!("the result cannot be remembered: {}", with_sources(&error));
            self.tell(Finding::new("proof-not-kept", what));
        }
    }

    fn tell(&mut self, finding: Finding) {
        self.monitor.event(Event::Found {
            domain: self.domain,
            finding: &finding,
        });
        self.outcome.findings.push(finding);
    }
}

fn ids(history: &History) -> impl Iterator<Item = &str> {
    history.chains.points().iter().map(|kept| kept.point.id.as_str())
}

fn chosen(domain: &str, history: &History, which: &Which) -> Result<Vec<String>> {
    let at = match which {
        Which::All if history.chains.points().is_empty() => "latest",
        Which::All => return Ok(ids(history).map(str::to_owned).collect()),
        Which::Latest => "latest",
        Which::At(at) => at,
    };
    let kept = restore::choose(domain, history, at)?;
    Ok(vec![kept.point.id.clone()])
}

/// The ids of these restore points, and of all that they stand upon.
fn with_parents(history: &History, chosen: &[String]) -> BTreeSet<String> {
    let mut needed = BTreeSet::new();
    let mut next: Vec<String> = chosen.to_vec();
    while let Some(id) = next.pop() {
        if let Some(kept) = history.chains.get(&id) {
            let parents = kept.point.disks.iter().filter_map(|disk| disk.parent.clone());
            next.extend(parents.filter(|parent| !needed.contains(parent)));
        }
        needed.insert(id);
    }
    needed
}

/// What is damaged of a restore point because of what it stands upon.
fn inherited(point: &RestorePoint, damaged: &BTreeSet<(String, String)>) -> Vec<Damage> {
    let hurt = point.disks.iter().filter_map(|disk| {
        let parent = disk.parent.as_ref()?;
        let is_damaged = damaged.contains(&(parent.clone(), disk.target.clone()));
        is_damaged.then(|| {
            let what = format!(
                "disk {} of {} stands upon {parent}, which is damaged",
                disk.target, point.id
            );
            Damage {
                upon: Some(parent.clone()),
                ..Damage::told(what).of_disk(&disk.target)
            }
        })
    });
    hurt.collect()
}

/// When it had been proved before, if that is enough.
fn proved_before(proof: Option<&Proof>, options: &Options, deep: bool) -> Option<Timestamp> {
    let not_since = options.not_since?;
    let proof = proof.filter(|proof| proof.is_sound())?;
    let time = match deep {
        true => proof.last_deep()?,
        false => proof.time,
    };
    // A time that has not come yet was written by a clock that was wrong.
    (time >= not_since && time <= options.now).then_some(time)
}

impl From<&Damage> for DamageNote {
    fn from(damage: &Damage) -> DamageNote {
        DamageNote {
            what: damage.what.clone(),
            concerns: damage.disk.clone().map_or(Concern::Files, Concern::Disk),
        }
    }
}
