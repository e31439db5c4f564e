//! Counts the steps of a run and fails or kills it at one of them.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::host::HostError;

/// The effect of a fuse at its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The process is killed before the step has any effect.
    KilledBefore,
    /// The process is killed after the step, before it learns the result.
    KilledAfter,
    /// The step fails without any effect. The process goes on and has to clean up.
    Fails,
    /// The step takes effect but is reported as failed (a lost answer, an error of the last sync).
    /// The process goes on.
    AnswerLost,
}

impl Blow {
    /// All effects.
    pub const ALL: [Blow; 4] = [
        Blow::KilledBefore,
        Blow::KilledAfter,
        Blow::Fails,
        Blow::AnswerLost,
    ];

    fn kills(self) -> bool {
        matches!(self, Blow::KilledBefore | Blow::KilledAfter)
    }
}

/// A fuse that the doubles of one process share. After the process has died, every further step
/// fails and does nothing, including clean-up.
#[derive(Clone, Default)]
pub struct Fuse(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    at: Option<(usize, Blow)>,
    steps: Vec<String>,
    is_dead: bool,
    /// Objects of a dead process. They must be neither used nor dropped, because dropping cleans
    /// up.
    buried: Vec<Box<dyn Any + Send>>,
}

impl Fuse {
    /// Creates a fuse that blows at the step with this number, counted from 0. If there is no such
    /// step it only counts.
    ///
    /// Keep it until the state after the crash has been checked: when it is dropped, it drops the
    /// objects of the dead process.
    pub fn at(number: usize, blow: Blow) -> Fuse {
        Fuse(Arc::new(Mutex::new(State {
            at: Some((number, blow)),
            ..State::default()
        })))
    }

    /// The steps so far, as text.
    pub fn steps(&self) -> Vec<String> {
        self.state().steps.clone()
    }

    /// Whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// Performs a step. An error means that the step failed or the process died. The error contains
    /// the step's result if the step took effect nevertheless.
    pub(crate) fn step<T>(
        &self,
        name: impl FnOnce() -> String,
        work: impl FnOnce() -> T,
    ) -> Result<T, Option<T>> {
        let blow = {
            let mut state = self.state();
            if state.is_dead {
                return Err(None);
            }
            let number = state.steps.len();
            state.steps.push(name());
            let blow = state.at.filter(|(at, _)| *at == number).map(|(_, blow)| blow);
            state.is_dead = blow == Some(Blow::KilledBefore);
            blow
        };
        // The work is done without the lock, because it may perform steps itself.
        match blow {
            None => Ok(work()),
            Some(Blow::KilledBefore | Blow::Fails) => Err(None),
            Some(blow) => {
                let answer = work();
                self.state().is_dead = blow.kills();
                Err(Some(answer))
            }
        }
    }

    /// Keeps an object of a dead process that must not be dropped yet.
    pub(crate) fn bury(&self, thing: impl Any + Send) {
        self.state().buried.push(Box::new(thing));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a host whose client has died.
pub(super) fn died() -> HostError {
    HostError::Libvirt {
        operation: "go on".to_owned(),
        code: 38,
        message: "simulated: the step fails".to_owned(),
    }
}
