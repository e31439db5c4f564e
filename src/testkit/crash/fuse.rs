//! Counts the steps of a run and blows at one of them.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What happens at the step at which a fuse blows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// The process is killed before the step has any effect.
    KilledBefore,
    /// The process is killed after the step, before it learns of it.
    KilledAfter,
    /// The step fails without any effect, and the process goes on: it has to clear up.
    Fails,
    /// The step takes effect and is reported as failed (a lost answer, an error of the last sync), and the process goes on.
    AnswerLost,
}

impl Blow {
    /// Every way.
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

/// Shared by the doubles of one process. Once its process is dead, every further step fails and does nothing, those of clean-up included.
#[derive(Clone, Default)]
pub struct Fuse(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    at: Option<(usize, Blow)>,
    steps: Vec<String>,
    is_dead: bool,
    /// What a dead process held: it must neither be used nor dropped, for dropping clears up.
    graves: Vec<Box<dyn Any + Send>>,
}

impl Fuse {
    /// Blows at the step of this number, counted from 0. One of a number that never comes only counts.
    ///
    /// Keep it until the world after the crash has been looked at: what the dead process held is dropped with it.
    pub fn at(number: usize, blow: Blow) -> Fuse {
        Fuse(Arc::new(Mutex::new(State {
            at: Some((number, blow)),
            ..State::default()
        })))
    }

    /// The steps so far, in words.
    pub fn steps(&self) -> Vec<String> {
        self.state().steps.clone()
    }

    /// Whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// Takes a step. An error says that it failed; it carries the step's answer when the step was taken and the answer is lost.
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
        // The work is done without the lock: it may consist of steps itself.
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

    /// Keeps something of a dead process that must not be dropped yet.
    pub(crate) fn bury(&self, thing: impl Any + Send) {
        self.state().graves.push(Box::new(thing));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
