//! The life of a trial domain.

use std::time::Instant;

use super::{BootPlan, Means, Overlay, Stage, start_server};
use crate::host::trial::{Pull, Trial, TrialLife, TrialState};
use crate::model::finding::Finding;
use crate::model::stop::StopReason;
use crate::model::text::with_sources;
use crate::ops::monitor::{Event, Monitor};
use crate::ops::serve::{self, DiskServer, ReadCounts};
use crate::ops::{Cause, Error, Result};

/// How long the state of a domain may be unknown, as during a restart of libvirt's daemon, in looks
/// at it.
const UNKNOWN: u32 = 240;

/// How often a disk is pulled before vmsnap gives up.
const TRIES: u32 = 5;

/// The time between two tries, in looks at the domain.
const BETWEEN_TRIES: u32 = 40;

/// A trial domain that runs.
#[derive(Clone, Copy, Debug)]
pub struct Booted<'a> {
    /// The plan that was carried out.
    pub plan: &'a BootPlan,
}

/// Sees what a trial domain does.
pub trait Onlooker {
    /// Called before the domain starts. Its folder exists.
    ///
    /// # Errors
    /// The domain must not start, for this cause.
    fn begin(&mut self, _plan: &BootPlan) -> std::result::Result<(), Cause> {
        Ok(())
    }

    /// Called once the domain runs.
    fn started(&mut self, _booted: &Booted<'_>) {}

    /// Called again and again while it runs. Returns whether enough was seen, so that it can end.
    fn look(&mut self, _sight: &Sight<'_>) -> bool {
        false
    }
}

/// What an onlooker sees of a trial domain.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    /// The domain.
    pub trial: &'a dyn Trial,
    /// The number of bytes that it has read from the restore point.
    pub bytes_read: u64,
}

/// How a trial domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest or somebody else has ended it.
    Ended,
    /// A stop was requested.
    Stopped,
    /// Its disks are kept, and it runs.
    Kept,
    /// An onlooker has seen enough.
    Seen,
}

/// The result of `boot`.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The plan that was carried out.
    pub plan: BootPlan,
    /// How it ended.
    pub ending: Ending,
    /// How much of each disk was read from the repository, in the order of the disks.
    pub counts: Vec<ReadCounts>,
    /// All findings.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Whether the guest asked for stored data that are damaged.
    pub fn has_damage(&self) -> bool {
        self.counts.iter().any(|counts| counts.damaged > 0)
    }

    /// Whether reads failed for a reason that says nothing about the stored data.
    pub fn has_failures(&self) -> bool {
        self.counts.iter().any(|counts| counts.failed > 0)
    }
}

/// Carries out a plan.
pub(super) fn carry_out(
    domain: &str,
    plan: &BootPlan,
    means: &Means<'_>,
    onlooker: &mut dyn Onlooker,
) -> Result<Outcome> {
    let failed = |error| Error::of(domain, error);
    let mut findings = plan.findings.clone();
    let mut stage = Stage::begin(domain, plan, means)?;
    let server = start_server(domain, plan, means)?;
    let before = findings.len();
    stage.fill(domain, plan, &server, &mut findings)?;
    for finding in &findings[before..] {
        means.monitor.event(Event::Found { domain, finding });
    }
    let life = match plan.keep {
        Some(_) => TrialLife::OfItself,
        None => TrialLife::OfProcess,
    };
    if let Some(reason) = means.stop.reason() {
        return Err(Error::of(domain, Cause::Stopped(reason)));
    }
    onlooker.begin(plan).map_err(|cause| Error::of(domain, cause))?;
    let trial = means.host.trials().start(&plan.trial_xml, life).map_err(failed)?;
    onlooker.started(&Booted { plan });
    let mut watch = Watch {
        domain,
        trial: trial.as_ref(),
        server: &server,
        means,
        keeps: plan.keep.is_some(),
        is_stuck: false,
        unknown_since: None,
        findings,
    };
    let ending = match &plan.keep {
        Some(_) => watch.pull_all(plan, &mut stage)?,
        None => watch.until_the_end(onlooker)?,
    };
    if ending == Ending::Kept {
        if let Err(cause) = stage.keep(&plan.define.xml) {
            // The disks are whole: the next run tries again.
            stage.leave();
            return Err(Error::of(domain, cause));
        }
    } else {
        // Before the server ends: the guest must not see errors of its disks.
        watch.trial.end().map_err(failed)?;
    }
    let mut findings = watch.findings;
    let served: serve::Outcome = server.end();
    for finding in served.findings {
        means.monitor.event(Event::Found {
            domain,
            finding: &finding,
        });
        findings.push(finding);
    }
    for finding in stage.end() {
        means.monitor.event(Event::Found {
            domain,
            finding: &finding,
        });
        findings.push(finding);
    }
    Ok(Outcome {
        plan: plan.clone(),
        ending,
        counts: served.counts,
        findings,
    })
}

/// Watches a trial domain and its server.
struct Watch<'a> {
    domain: &'a str,
    trial: &'a dyn Trial,
    server: &'a DiskServer,
    means: &'a Means<'a>,
    /// Whether its disks are to be kept.
    keeps: bool,
    is_stuck: bool,
    /// Since when the state of the domain cannot be found out.
    unknown_since: Option<Instant>,
    findings: Vec<Finding>,
}

impl Watch<'_> {
    /// Waits a moment, and reports what was found. Returns why the domain ends, if it does.
    fn glance(&mut self) -> Result<Option<Ending>> {
        for finding in self.server.new_findings(self.means.glance) {
            self.report(finding);
        }
        let state = match self.trial.state() {
            Ok(state) => state,
            Err(error) => {
                // The daemon may be restarting, and the guest goes on.
                let since = *self.unknown_since.get_or_insert_with(Instant::now);
                return match since.elapsed() > self.means.glance * UNKNOWN {
                    true => Err(Error::of(self.domain, error)),
                    false => Ok(self.is_stopped().then_some(Ending::Stopped)),
                };
            }
        };
        self.unknown_since = None;
        if state == TrialState::Stuck && !self.is_stuck {
            let what = "a disk error has paused the guest: a full disk of the host, or data that cannot be read; after a \
                        repair, `virsh resume` lets it go on";
            self.report(Finding::new("guest-paused", what));
        }
        self.is_stuck = state == TrialState::Stuck;
        Ok(match state {
            TrialState::Ended => Some(Ending::Ended),
            _ if self.is_stopped() => Some(Ending::Stopped),
            _ => None,
        })
    }

    fn report(&mut self, finding: Finding) {
        let monitor: &dyn Monitor = self.means.monitor;
        monitor.event(Event::Found {
            domain: self.domain,
            finding: &finding,
        });
        self.findings.push(finding);
    }

    fn until_the_end(&mut self, onlooker: &mut dyn Onlooker) -> Result<Ending> {
        loop {
            if let Some(ending) = self.glance()? {
                return Ok(ending);
            }
            let sight = Sight {
                trial: self.trial,
                bytes_read: self.server.bytes_read(),
            };
            if onlooker.look(&sight) {
                return Ok(Ending::Seen);
            }
        }
    }

    /// Whether the domain has to end. A terminal that was closed does not end one that is to be
    /// kept.
    fn is_stopped(&self) -> bool {
        match self.means.stop.reason() {
            Some(StopReason::HungUp) => !self.keeps,
            reason => reason.is_some(),
        }
    }

    /// Pulls one disk after another, and records that the domain stays. The guest goes on whatever
    /// fails.
    fn pull_all(&mut self, plan: &BootPlan, stage: &mut Stage<'_>) -> Result<Ending> {
        for disk in &plan.disks {
            let mut tries = 1;
            loop {
                match self.pull(disk)? {
                    Pulled::Done => break,
                    Pulled::Over(ending) => return Ok(ending),
                    Pulled::Failed(why) if tries < TRIES => {
                        tries += 1;
                        let what = format!("disk {} could not be copied: {why}; trying again", disk.target);
                        self.report(Finding::of_disk("disk-not-pulled", &disk.target, what));
                        if let Some(ending) = self.pause()? {
                            return Ok(ending);
                        }
                    }
                    Pulled::Failed(why) => {
                        let what = format!(
                            "disk {} could not be copied: {why}; the guest goes on as long as this command: save what it \
                             needs, then shut it down",
                            disk.target
                        );
                        self.report(Finding::of_disk("disk-not-pulled", &disk.target, what));
                        return self.until_the_end(&mut Unmoved);
                    }
                }
            }
        }
        while let Err(why) = self.make_stay(plan, stage) {
            let what = format!("the disks are copied, but {why}; trying again");
            self.report(Finding::new("disk-not-pulled", what));
            if let Some(ending) = self.pause()? {
                return Ok(ending);
            }
        }
        Ok(Ending::Kept)
    }

    /// Flushes the disks, and records that they and the domain stay.
    fn make_stay(&self, plan: &BootPlan, stage: &mut Stage<'_>) -> std::result::Result<(), String> {
        match self.trial.flush() {
            Ok(true) => stage.stay(&plan.define.xml).map_err(|cause| with_sources(&cause)),
            Ok(false) => Err("they cannot be flushed while the guest is paused".to_owned()),
            Err(error) => Err(with_sources(&error)),
        }
    }

    /// Watches the domain until the next try. Returns why it ends, if it does.
    fn pause(&mut self) -> Result<Option<Ending>> {
        let began = Instant::now();
        while began.elapsed() < self.means.glance * BETWEEN_TRIES {
            if let Some(ending) = self.glance()? {
                return Ok(Some(ending));
            }
        }
        Ok(None)
    }

    fn pull(&mut self, disk: &Overlay) -> Result<Pulled> {
        let (domain, target) = (self.domain, disk.target.as_str());
        let monitor = self.means.monitor;
        monitor.event(Event::DiskBegins {
            domain,
            disk: target,
            level: None,
            reason: "",
            size: disk.size,
        });
        let mut pull = match self.trial.begin_pull(target) {
            Ok(()) => Ok(Pull::Active {
                done: 0,
                total: disk.size,
            }),
            // A pull whose beginning got no answer may be at work.
            Err(error) => match self.trial.pull(target, &disk.path) {
                Ok(pull @ (Pull::Active { .. } | Pull::Done)) => Ok(pull),
                _ => Err(error),
            },
        };
        loop {
            match pull {
                Ok(Pull::Active { done, .. }) => monitor.event(Event::DiskAt {
                    domain,
                    disk: target,
                    position: done,
                    copied: done,
                }),
                Ok(Pull::Done) => break,
                failure => {
                    // A guest that has just ended fails its pull too.
                    if let Some(ending) = self.glance()? {
                        return Ok(Pulled::Over(ending));
                    }
                    let why = "QEMU has given up; libvirt's log of the domain has the reason".to_owned();
                    return Ok(Pulled::Failed(
                        failure.err().map_or(why, |error| with_sources(&error)),
                    ));
                }
            }
            if let Some(ending) = self.glance()? {
                return Ok(Pulled::Over(ending));
            }
            pull = self.trial.pull(target, &disk.path);
        }
        monitor.event(Event::DiskEnds {
            domain,
            disk: target,
            copied: disk.size,
        });
        Ok(Pulled::Done)
    }
}

/// An onlooker that never has seen enough.
struct Unmoved;

impl Onlooker for Unmoved {}

/// How the pull of a disk ended.
enum Pulled {
    Done,
    /// The domain ends.
    Over(Ending),
    /// For this reason.
    Failed(String),
}
