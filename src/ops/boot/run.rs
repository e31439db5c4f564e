//! The life of a trial domain.

use super::{BootPlan, Means, Stage, start_server};
use crate::host::trial::{Pull, Trial, TrialLife, TrialState};
use crate::model::finding::Finding;
use crate::ops::monitor::{Event, Monitor};
use crate::ops::serve::{self, DiskServer, ReadCounts};
use crate::ops::{Cause, Error, Result};

/// A trial domain that runs.
#[derive(Clone, Copy, Debug)]
pub struct Booted<'a> {
    /// The plan that was carried out.
    pub plan: &'a BootPlan,
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
    ready: impl FnOnce(&Booted<'_>),
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
    let trial = means.host.trials().start(&plan.trial_xml, life).map_err(failed)?;
    ready(&Booted { plan });
    let mut watch = Watch {
        domain,
        trial: trial.as_ref(),
        server: &server,
        means,
        is_stuck: false,
        findings,
    };
    let ending = match &plan.keep {
        Some(_) => watch.pull_all(plan)?,
        None => watch.until_the_end()?,
    };
    if ending == Ending::Kept {
        stage
            .stay(&plan.define.xml)
            .map_err(|cause| Error::of(domain, cause))?;
        if let Err(error) = watch.trial.keep(&plan.define.xml) {
            // The domain runs, and its disks are whole: the next run tries again.
            stage.leave();
            return Err(failed(error));
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
    is_stuck: bool,
    findings: Vec<Finding>,
}

impl Watch<'_> {
    /// Waits a moment, and reports what was found. Returns why the domain ends, if it does.
    fn glance(&mut self) -> Result<Option<Ending>> {
        for finding in self.server.new_findings(self.means.glance) {
            self.report(finding);
        }
        let state = self
            .trial
            .state()
            .map_err(|error| Error::of(self.domain, error))?;
        if state == TrialState::Stuck && !self.is_stuck {
            let what = "a disk error has paused the guest; it cannot go on without the data that could not be read \
                        or written";
            self.report(Finding::new("guest-paused", what));
        }
        self.is_stuck = state == TrialState::Stuck;
        Ok(match state {
            TrialState::Ended => Some(Ending::Ended),
            _ if self.means.stop.requested() => Some(Ending::Stopped),
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

    fn until_the_end(&mut self) -> Result<Ending> {
        loop {
            if let Some(ending) = self.glance()? {
                return Ok(ending);
            }
        }
    }

    /// Pulls one disk after another.
    fn pull_all(&mut self, plan: &BootPlan) -> Result<Ending> {
        for disk in &plan.disks {
            let target = disk.target.as_str();
            if let Some(ending) = self.pull(target, disk.size)? {
                return Ok(ending);
            }
        }
        Ok(Ending::Kept)
    }

    fn pull(&mut self, target: &str, size: u64) -> Result<Option<Ending>> {
        let domain = self.domain;
        let failed = |error| Error::of_disk(domain, target, error);
        let monitor = self.means.monitor;
        monitor.event(Event::DiskBegins {
            domain,
            disk: target,
            level: None,
            reason: "",
            size,
        });
        let begun = self.trial.begin_pull(target);
        let mut pull = begun.map(|()| Pull::Active { done: 0, total: size });
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
                    if matches!(self.trial.state(), Ok(TrialState::Ended)) {
                        return Ok(Some(Ending::Ended));
                    }
                    failure.map_err(failed)?;
                    return Err(Error::of_disk(domain, target, Cause::NotPulled));
                }
            }
            if let Some(ending) = self.glance()? {
                return Ok(Some(ending));
            }
            pull = self.trial.pull(target);
        }
        monitor.event(Event::DiskEnds {
            domain,
            disk: target,
            copied: size,
        });
        Ok(None)
    }
}
