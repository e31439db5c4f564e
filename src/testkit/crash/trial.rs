//! Trial domains of a client that dies.

use std::path::Path;
use std::time::Duration;

use super::fuse::{Fuse, died};
use super::host::CrashHost;
use crate::host::trial::{GuestExit, Pull, Trial, TrialLife, TrialState, Trials};
use crate::host::{Host, Result};
use crate::model::guest::GuestFacts;

impl<H: Host> Trials for CrashHost<H> {
    fn owner(&self) -> Result<Option<(u32, u32)>> {
        self.ask(|host| host.trials().owner())
    }

    fn start(&self, xml: &str, life: TrialLife) -> Result<Box<dyn Trial>> {
        let trial = self.step("start the domain", |host| host.trials().start(xml, life))?;
        Ok(self.wrapped(trial))
    }

    fn find(&self, uuid: &str) -> Result<Option<Box<dyn Trial>>> {
        let found = self.ask(|host| host.trials().find(uuid))?;
        Ok(found.map(|trial| self.wrapped(trial)))
    }
}

impl<H: Host> CrashHost<H> {
    fn wrapped(&self, trial: Box<dyn Trial>) -> Box<dyn Trial> {
        Box::new(CrashTrial {
            trial,
            fuse: self.fuse().clone(),
        })
    }
}

struct CrashTrial {
    trial: Box<dyn Trial>,
    fuse: Fuse,
}

impl CrashTrial {
    fn ask<T>(&self, question: impl FnOnce(&dyn Trial) -> Result<T>) -> Result<T> {
        match self.fuse.is_dead() {
            true => Err(died()),
            false => question(self.trial.as_ref()),
        }
    }

    fn step<T>(&self, name: &str, work: impl FnOnce(&dyn Trial) -> Result<T>) -> Result<T> {
        let done = self.fuse.step(|| name.to_owned(), || work(self.trial.as_ref()));
        done.unwrap_or_else(|_| Err(died()))
    }
}

impl Trial for CrashTrial {
    fn state(&self) -> Result<TrialState> {
        self.ask(|trial| trial.state())
    }

    fn begin_pull(&self, target: &str) -> Result<()> {
        self.step("begin the pull", |trial| trial.begin_pull(target))
    }

    fn pull(&self, target: &str, overlay: &Path) -> Result<Pull> {
        self.ask(|trial| trial.pull(target, overlay))
    }

    fn flush(&self) -> Result<bool> {
        self.step("flush the disks", |trial| trial.flush())
    }

    fn keep(&self, xml: &str) -> Result<()> {
        self.step("make the domain persistent", |trial| trial.keep(xml))
    }

    fn end(&self) -> Result<()> {
        self.step("end the domain", |trial| trial.end())
    }

    fn agent_answers(&self, limit: Duration) -> Result<bool> {
        self.ask(|trial| trial.agent_answers(limit))
    }

    fn guest_facts(&self, limit: Duration) -> Result<Option<GuestFacts>> {
        self.ask(|trial| trial.guest_facts(limit))
    }

    fn run_in_guest(&self, command: &[String], limit: Duration) -> Result<u64> {
        self.step("run in the guest", |trial| trial.run_in_guest(command, limit))
    }

    fn guest_exit(&self, number: u64, limit: Duration) -> Result<Option<GuestExit>> {
        self.ask(|trial| trial.guest_exit(number, limit))
    }

    fn screenshot(&self) -> Result<Vec<u8>> {
        self.ask(|trial| trial.screenshot())
    }
}
