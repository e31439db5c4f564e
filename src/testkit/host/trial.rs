//! Simulated trial domains: each pull takes a few looks.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{SimHost, simulated};
use crate::host::trial::{GuestExit, Pull, Trial, TrialLife, TrialState, Trials};
use crate::host::xml::read_domain;
use crate::host::{Host, HostError, Result};
use crate::model::guest::GuestFacts;
use crate::model::stop::{Stop, WaitLimit};
use crate::nbd::Client;

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
    /// How often its agent was asked.
    asked: u32,
    /// The programs that were started in it.
    pub commands: Vec<Vec<String>>,
}

/// What the guest of each trial domain does.
#[derive(Clone, Debug, Default)]
pub struct SimGuest {
    /// What it writes to its console at its start.
    pub console: Vec<u8>,
    /// The targets of the disks whose first bytes it reads at its start.
    pub reads: Vec<String>,
    /// How many questions its agent leaves unanswered at first; `None` for a guest without one.
    pub silent: Option<u32>,
    /// What its agent reports.
    pub facts: GuestFacts,
    /// How programs in it end, one after the other; without one they run for ever.
    pub exits: Vec<GuestExit>,
    /// What is on its screen; empty if it has none.
    pub screen: Vec<u8>,
    /// Whether it shuts itself down at once.
    pub ends: bool,
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

    /// Sets what the guests of trial domains do.
    pub fn set_trial_guest(&self, guest: SimGuest) {
        self.state().trial_guest = guest;
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
            asked: 0,
            commands: Vec::new(),
        };
        let guest = state.trial_guest.clone();
        if !guest.ends {
            state.trials.insert(described.uuid.clone(), trial);
        }
        drop(state);
        guest
            .boot(xml)
            .map_err(|error| simulated("start the domain", &error.to_string()))?;
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

    fn agent_answers(&self, _limit: Duration) -> Result<bool> {
        let silent = self.host.state().trial_guest.silent;
        let asked = self.with(|trial| {
            trial.asked += 1;
            trial.asked
        })?;
        Ok(silent.is_some_and(|silent| asked > silent))
    }

    fn guest_facts(&self, limit: Duration) -> Result<Option<GuestFacts>> {
        let answers = self.agent_answers(limit)?;
        let facts = self.host.state().trial_guest.facts.clone();
        Ok(answers.then_some(facts))
    }

    fn run_in_guest(&self, command: &[String], _limit: Duration) -> Result<u64> {
        self.with(|trial| {
            trial.commands.push(command.to_vec());
            trial.commands.len() as u64 - 1
        })
    }

    fn guest_exit(&self, number: u64, _limit: Duration) -> Result<Option<GuestExit>> {
        let exits = self.host.state().trial_guest.exits.clone();
        Ok(usize::try_from(number)
            .ok()
            .and_then(|number| exits.get(number))
            .copied())
    }

    fn screenshot(&self) -> Result<Vec<u8>> {
        match self.host.state().trial_guest.screen.clone() {
            screen if screen.is_empty() => Err(simulated("take a picture of the screen", "there is none")),
            screen => Ok(screen),
        }
    }
}

impl SimGuest {
    /// Does what a guest does first: it reads from its disks, and writes to its console.
    fn boot(&self, xml: &str) -> io::Result<()> {
        let of = |before: &str, end: &str| Some(xml.split_once(before)?.1.split_once(end)?.0.to_owned());
        if let Some(path) = of("<source mode='connect' path='", "'") {
            UnixStream::connect(path)?.write_all(&self.console)?;
        }
        let socket = of("<host transport='unix' socket='", "'");
        for (target, socket) in self.reads.iter().zip(socket.iter().cycle()) {
            let limit = WaitLimit {
                deadline: Duration::from_secs(60),
                stop: Stop::default(),
            };
            let client = Client::connect_unix(Path::new(socket), target, &[], &limit);
            let mut first = vec![0; 4096];
            // A guest survives a disk that cannot be read.
            let _ = client.map_err(io::Error::other)?.read(0, &mut first);
        }
        Ok(())
    }
}
