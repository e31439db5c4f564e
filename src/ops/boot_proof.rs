//! Proves that restore points boot: `vmsnap verify --boot`.
//!
//! Each restore point is started as a trial domain without any link, under the eyes of a witness,
//! which sees how far its guest comes. Then the domain ends, whatever came of it. The repository
//! records the result; it is not the record of a verification, which reads all data.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use regex::bytes::Regex;

use super::boot::{self, BootPlan, Ending, Means, Memory};
use super::each::{Fault, Judged};
use super::monitor::{self, Event};
use super::verify::{Which, chosen};
use super::{Cause, Error, Result};
use crate::model::finding::Finding;
use crate::model::guest::BootLevel;
use crate::model::restore_point::RestorePoint;
use crate::model::text::with_sources;
use crate::repo::{BootProof, DomainRepository, RepoError};

mod console;
mod keepsake;
mod witness;

use keepsake::keep;
pub use witness::of_lines;
use witness::{Seen, Witness};

/// The pattern of the console's text if none is given: the prompt of a text console.
const USUAL_PATTERN: &str = r"\blogin: *$";

/// The number of names that are tried for a trial domain.
const NAMES: usize = 9;

/// The options of a boot proof.
#[derive(Clone, Debug)]
pub struct Options {
    /// The restore points to prove.
    pub which: Which,
    /// Skips restore points that were proven at this time or later.
    pub proven_since: Option<Timestamp>,
    /// How far the guests have to come; `None` for what can be expected of each: see [`wanted`].
    pub level: Option<BootLevel>,
    /// What has to appear on the console.
    pub pattern: Option<Regex>,
    /// The program that has to succeed in the guest, and its arguments; empty for none.
    pub command: Vec<String>,
    /// The time for each guest.
    pub deadline: Duration,
    /// The memory of the trial domains.
    pub memory: Memory,
    /// The folder for the files of the trial domains.
    pub scratch: PathBuf,
    /// The folder for pictures of the screens and the texts of the consoles.
    pub pictures: Option<PathBuf>,
}

/// The result for one domain.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The restore points, in the order of their commits.
    pub points: Vec<BootedPoint>,
    /// The findings.
    pub findings: Vec<Finding>,
    /// The first error that kept a restore point from being started, or the request to stop.
    pub ended: Option<Error>,
}

/// A restore point that was started, or skipped.
#[derive(Clone, Debug)]
pub struct BootedPoint {
    /// Its newest boot proof.
    pub proof: BootProof,
    /// Whether that is an earlier one, because of which it was skipped.
    pub is_skipped: bool,
    /// Whether the guest asked for stored data that are damaged.
    pub is_damaged: bool,
    /// The last line on the guest's console; empty if there was none.
    pub last_line: String,
    /// The picture of its screen.
    pub picture: Option<PathBuf>,
    /// The text of its console.
    pub console: Option<PathBuf>,
}

impl Judged for Outcome {
    fn faults(&self) -> Vec<Fault> {
        let is_damaged = self.points.iter().any(|point| point.is_damaged);
        let is_unproven = self.points.iter().any(|point| !point.proof.is_proven());
        let damaged = is_damaged.then_some(Fault::Damaged);
        damaged
            .into_iter()
            .chain(is_unproven.then_some(Fault::NotProven))
            .collect()
    }

    fn error(&self) -> Option<&Error> {
        self.ended.as_ref()
    }
}

/// How far the guest of a restore point has to come, if the user does not say: to the command, to
/// what was recorded at its backup, to the text of the console, to the agent that it has, or to a
/// login prompt on its console.
pub fn wanted(options: &Options, point: &RestorePoint, has_agent: bool) -> BootLevel {
    let records = point.guest.as_ref();
    match options.level {
        _ if !options.command.is_empty() => BootLevel::Command,
        Some(level) => level,
        None if records.is_some_and(|facts| facts.is_comparable()) => BootLevel::Same,
        None if options.pattern.is_some() => BootLevel::Console,
        None if has_agent => BootLevel::Agent,
        None => BootLevel::Console,
    }
}

/// Starts restore points of a domain, one after the other, and records how far their guests come.
/// `now` returns the present time.
///
/// # Errors
/// There is no such restore point, or none could be started.
pub fn prove(
    domain: &str,
    means: &Means<'_>,
    options: &Options,
    now: &dyn Fn() -> Timestamp,
) -> Result<Outcome> {
    monitor::noting(means.monitor, |monitor| {
        let means = Means { monitor, ..*means };
        let failed = |error: RepoError| Error::of(domain, error);
        let repository = means.repo.domain(domain).map_err(failed)?;
        let history = repository.history().map_err(failed)?;
        let ids = chosen(domain, &history, &options.which)?;
        let found = ids.iter().filter_map(|id| history.get(id));
        let candidates: Vec<Candidate> = found
            .map(|kept| Candidate {
                point: kept.manifest.point.clone(),
                manifest: kept.manifest.digest.clone(),
                earlier: kept.boot_proof.clone(),
            })
            .collect();
        // Its files must be free while guests run, which takes long.
        drop(history);
        let mut proving = Proving {
            domain,
            repository: repository.as_ref(),
            means,
            options,
            now,
            is_single: candidates.len() == 1,
            outcome: Outcome::default(),
        };
        for candidate in candidates {
            if !proving.take(candidate) {
                break;
            }
        }
        match proving.outcome {
            Outcome {
                points,
                ended: Some(error),
                ..
            } if points.is_empty() => Err(error),
            outcome => Ok(outcome),
        }
    })
}

/// A restore point that was chosen.
struct Candidate {
    point: RestorePoint,
    /// The digest of its manifest.
    manifest: String,
    earlier: Option<BootProof>,
}

struct Proving<'a> {
    domain: &'a str,
    repository: &'a dyn DomainRepository,
    means: Means<'a>,
    options: &'a Options,
    now: &'a dyn Fn() -> Timestamp,
    /// Whether there is only one restore point, so that its error is that of the domain.
    is_single: bool,
    outcome: Outcome,
}

impl Proving<'_> {
    /// Proves one restore point. Returns whether there is time for others.
    fn take(&mut self, candidate: Candidate) -> bool {
        if let Some(reason) = self.means.stop.reason() {
            self.outcome.ended = Some(Error::of(self.domain, Cause::Stopped(reason)));
            return false;
        }
        match self.boot(&candidate) {
            Ok(point) => self.outcome.points.push(point),
            Err(error) if matches!(error.cause, Cause::Stopped(_)) => {
                self.outcome.ended = Some(error);
                return false;
            }
            Err(error) => {
                if !self.is_single {
                    let what = format!(
                        "restore point {} was not started: {}",
                        candidate.point.id,
                        with_sources(&error.cause)
                    );
                    self.report(Finding::new("not-booted", what));
                }
                self.outcome.ended.get_or_insert(error);
            }
        }
        true
    }

    /// The earlier proof because of which no new one is needed: it is recent, and shows at least as
    /// much.
    fn proven_enough(&self, candidate: &Candidate, wanted: BootLevel) -> Option<BootProof> {
        let since = self.options.proven_since?;
        let earlier = candidate.earlier.as_ref().filter(|proof| proof.is_proven())?;
        // A time in the future was written by a wrong clock.
        let is_recent = earlier.time >= since && earlier.time <= (self.now)();
        let (pattern, command) = (&self.options.pattern, &self.options.command);
        let has_pattern = pattern
            .as_ref()
            .is_none_or(|pattern| earlier.pattern.as_deref() == Some(pattern.as_str()));
        let has_command = command.is_empty() || *command == earlier.command;
        let is_enough = earlier.reached >= wanted && has_pattern && has_command;
        (is_recent && is_enough).then(|| earlier.clone())
    }

    /// Starts the restore point, unless an earlier proof is enough.
    fn boot(&mut self, candidate: &Candidate) -> Result<BootedPoint> {
        let (domain, options, means) = (self.domain, self.options, self.means);
        let plan = self.plan(&candidate.point.id)?;
        let wanted = wanted(options, &candidate.point, plan.has_agent());
        if let Some(proof) = self.proven_enough(candidate, wanted) {
            return Ok(BootedPoint {
                proof,
                is_skipped: true,
                is_damaged: false,
                last_line: String::new(),
                picture: None,
                console: None,
            });
        }
        let time = (self.now)();
        let mut witness = Witness::new(domain, wanted, options, &candidate.point, &plan, &means)
            .map_err(|cause| Error::of(domain, cause))?;
        let outcome = boot::watched(domain, plan, &means, &mut witness)?;
        self.outcome.findings.extend(outcome.findings.iter().cloned());
        let is_damaged = outcome.has_damage();
        if let (Ending::Stopped, Some(reason)) = (outcome.ending, means.stop.reason()) {
            return Err(Error::of(domain, Cause::Stopped(reason)));
        }
        let bytes_read = outcome.counts.iter().map(|counts| counts.bytes).sum();
        let seen = witness.end(outcome.ending, is_damaged, bytes_read);
        if seen.shortfall.is_some() && !is_damaged && outcome.has_failures() {
            // The guest saw errors that say nothing about the restore point.
            let cause = Cause::Io {
                operation: "read everything that the guest asked for from",
                path: means.repo.location().into(),
                source: io::Error::other("the findings have the reasons"),
            };
            return Err(Error::of(domain, cause));
        }
        let (picture, console) = self.keep_picture(&candidate.point.id, &seen);
        let proof = BootProof {
            id: candidate.point.id.clone(),
            manifest: candidate.manifest.clone(),
            time,
            reached: seen.reached,
            wanted,
            pattern: options.pattern.as_ref().map(ToString::to_string),
            command: options.command.clone(),
            shortfall: seen.shortfall,
            seconds: seen.took.as_secs(),
        };
        if let Err(error) = self.repository.keep_boot_proof(&proof) {
            let what = format!("the boot proof cannot be recorded: {}", with_sources(&error));
            self.report(Finding::new("proof-not-kept", what));
        }
        Ok(BootedPoint {
            proof,
            is_skipped: false,
            is_damaged,
            last_line: seen.last_line,
            picture,
            console,
        })
    }

    /// Plans the trial domain, under the first name that is free.
    fn plan(&self, id: &str) -> Result<BootPlan> {
        let name = self.free_name()?;
        let options = boot::Options {
            at: id.to_owned(),
            name: Some(name),
            network: None,
            memory: self.options.memory,
            is_watched: true,
            keep: None,
            scratch: self.options.scratch.clone(),
        };
        boot::plan(self.domain, self.means.repo, self.means.host, &options)
    }

    fn free_name(&self) -> Result<String> {
        let usual = format!("{}-proof", self.domain);
        let unused = uuid::Uuid::new_v4().to_string();
        for number in 1..=NAMES {
            let name = match number {
                1 => usual.clone(),
                more => format!("{usual}-{more}"),
            };
            let taken = self.means.host.is_defined(&name, &unused);
            let (is_taken, _) = taken.map_err(|error| Error::of(self.domain, error))?;
            if !is_taken {
                return Ok(name);
            }
        }
        // The plan refuses it, and says why.
        Ok(usual)
    }

    /// Writes the picture and the text of the console into the folder for them. Returns their
    /// paths.
    fn keep_picture(&mut self, id: &str, seen: &Seen) -> (Option<PathBuf>, Option<PathBuf>) {
        let Some(folder) = self.options.pictures.as_deref() else {
            return (None, None);
        };
        let picture = seen.picture.as_ref().map_err(Clone::clone);
        let picture = self.keep_file(folder, id, "png", picture.map(Vec::as_slice));
        let console = match seen.console.is_empty() {
            true => None,
            false => self.keep_file(folder, id, "txt", Ok(seen.console.as_bytes())),
        };
        (picture, console)
    }

    fn keep_file(
        &mut self,
        folder: &Path,
        id: &str,
        ending: &str,
        content: std::result::Result<&[u8], String>,
    ) -> Option<PathBuf> {
        let kept = content.and_then(|content| {
            let kept = keep(self.means.store, folder, self.domain, id, ending, content);
            kept.map_err(|cause| with_sources(&cause))
        });
        match kept {
            Ok(path) => Some(path),
            Err(why) => {
                let what = format!("there is no picture of restore point {id}: {why}");
                self.report(Finding::new("no-picture", what));
                None
            }
        }
    }

    fn report(&mut self, finding: Finding) {
        self.means.monitor.event(Event::Found {
            domain: self.domain,
            finding: &finding,
        });
        self.outcome.findings.push(finding);
    }
}
