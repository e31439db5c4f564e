//! Simulated trial domains: each pull takes a few looks.

use std::collections::BTreeMap;
use std::path::Path;

use super::{SimHost, simulated};
use crate::host::trial::{Pull, Trial, TrialLife, TrialState, Trials};
use crate::host::xml::read_domain;
use crate::host::{Host, HostError, Result};

/// The number of looks at a pull until it is done.
const LOOKS: u64 = 3;

/// A trial domain that runs.
#[derive(Clone, Debug)]
pub struct SimTrial {
    /// Its name.
    pub name: String,
    /// The XML with which it was started.
    pub xml: String,
    /// When it ends at the latest.
    pub life: TrialLife,
    /// If a disk error has paused it: how many pulls fail until it ends.
    pub stuck: Option<u32>,
    /// Whether its disks were flushed after the last pull.
    is_flushed: bool,
    /// The looks at the pulls that have begun, by target.
    pulls: BTreeMap<String, u64>,
}

impl SimHost {
    /// The running trial domains, by UUID.
    pub fn running_trials(&self) -> BTreeMap<String, SimTrial> {
        self.state().trials.clone()
    }

    /// Ends the trial domains, as their guests do.
    pub fn shut_trials_down(&self) {
        self.state().trials.clear();
    }

    /// Pauses the trial domains because of a disk error. After this many failed pulls they end.
    pub fn stick_trials(&self, pulls: u32) {
        let mut state = self.state();
        let trials = state.trials.values_mut();
        trials.for_each(|trial| trial.stuck = Some(pulls));
    }

    /// What a hypervisor does when the process of its client has died.
    pub fn client_died(&self) {
        let mut state = self.state();
        state.trials.retain(|_, trial| trial.life == TrialLife::OfItself);
    }

    /// Lets the next pull of a disk fail.
    pub fn fail_next_pull(&self) {
        self.state().fail_pull = true;
    }

    /// Lets the start of the next trial domain fail.
    pub fn fail_next_trial(&self) {
        self.state().fail_trial = true;
    }
}

impl Trials for SimHost {
    fn owner(&self) -> Result<Option<(u32, u32)>> {
        match self.state().is_elsewhere {
            true => Err(HostError::NotHere {
                what: "the disks of the new domain".to_owned(),
            }),
            false => Ok(None),
        }
    }

    fn start(&self, xml: &str, life: TrialLife) -> Result<Box<dyn Trial>> {
        let described = read_domain(xml)?;
        let taken = self.is_defined(&described.name, &described.uuid)?;
        let mut state = self.state();
        if std::mem::take(&mut state.fail_trial) || taken != (false, false) {
            return Err(simulated("start the domain", "it cannot be started"));
        }
        let trial = SimTrial {
            name: described.name,
            xml: xml.to_owned(),
            life,
            stuck: None,
            is_flushed: false,
            pulls: BTreeMap::new(),
        };
        state.trials.insert(described.uuid.clone(), trial);
        Ok(Box::new(Running {
            host: self.clone(),
            uuid: described.uuid,
        }))
    }

    fn find(&self, uuid: &str) -> Result<Option<Box<dyn Trial>>> {
        let found = self.state().trials.contains_key(uuid);
        Ok(found.then(|| {
            let running = Running {
                host: self.clone(),
                uuid: uuid.to_owned(),
            };
            Box::new(running) as Box<dyn Trial>
        }))
    }
}

struct Running {
    host: SimHost,
    uuid: String,
}

impl Running {
    fn with<T>(&self, work: impl FnOnce(&mut SimTrial) -> T) -> Result<T> {
        let mut state = self.host.state();
        let trial = state.trials.get_mut(&self.uuid);
        let trial = trial.ok_or_else(|| HostError::NoSuchDomain {
            name: self.uuid.clone(),
        })?;
        Ok(work(trial))
    }
}

impl Trial for Running {
    fn state(&self) -> Result<TrialState> {
        let stuck = self.with(|trial| trial.stuck.is_some());
        Ok(match stuck {
            Ok(true) => TrialState::Stuck,
            Ok(false) => TrialState::Running,
            Err(_) => TrialState::Ended,
        })
    }

    fn begin_pull(&self, target: &str) -> Result<()> {
        self.with(|trial| trial.pulls.insert(target.to_owned(), 0))
            .map(drop)
    }

    fn pull(&self, target: &str, _overlay: &Path) -> Result<Pull> {
        if std::mem::take(&mut self.host.state().fail_pull) {
            return Ok(Pull::Failed);
        }
        let found = self.with(|trial| {
            if let Some(pulls) = &mut trial.stuck {
                *pulls = pulls.saturating_sub(1);
                return (Pull::Failed, *pulls == 0);
            }
            let pull = match trial.pulls.get_mut(target) {
                None => Pull::Failed,
                Some(looks) if *looks >= LOOKS => Pull::Done,
                Some(looks) => {
                    *looks += 1;
                    trial.is_flushed = false;
                    Pull::Active {
                        done: *looks,
                        total: LOOKS,
                    }
                }
            };
            (pull, false)
        });
        let (pull, has_ended) = found?;
        if has_ended {
            self.end()?;
        }
        Ok(pull)
    }

    fn flush(&self) -> Result<bool> {
        self.with(|trial| {
            trial.is_flushed = trial.stuck.is_none();
            trial.is_flushed
        })
    }

    fn keep(&self, xml: &str) -> Result<()> {
        if !self.with(|trial| trial.is_flushed)? {
            return Err(simulated("define the domain", "its disks are not flushed"));
        }
        let uuid = read_domain(xml)?.uuid;
        if uuid != self.uuid {
            return Err(simulated("define the domain", "the UUID differs"));
        }
        // A definition that is there already is replaced.
        match self.host.is_defined("", &uuid)? {
            (_, true) => Ok(()),
            (_, false) => self.host.define(xml),
        }
    }

    fn end(&self) -> Result<()> {
        self.host.state().trials.remove(&self.uuid);
        Ok(())
    }
}
