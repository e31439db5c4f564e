//! Freezes the guest's file systems while a job starts, and thaws them in every case.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::{CallError, ffi};
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::stop::Stop;

/// How often a waiting loop checks whether the user asked to stop.
const LOOK: Duration = Duration::from_millis(100);

/// How long one attempt to thaw may take, in seconds, and the largest number of attempts.
///
/// A backup that ends late is better than a guest that stays frozen.
const THAW_SECONDS: u16 = 5;
const THAW_ATTEMPTS: usize = 5;

/// Thaws a guest that a dead run may have left frozen.
///
/// Ignores errors: an agent that does not answer cannot thaw anything.
pub(crate) fn thaw_now(handle: &Handle) {
    let _ = ffi::set_agent_timeout(handle, Some(THAW_SECONDS));
    let _ = ffi::thaw(handle);
    let _ = ffi::set_agent_timeout(handle, None);
}

/// The phases of the thread. Either the thread or its caller leaves [`GREETING`], never both.
const GREETING: u8 = 0;
const FREEZING: u8 = 1;
const CALLED_OFF: u8 = 2;

/// A freeze that has been requested from the guest.
pub(crate) struct Freeze {
    guard: ThawGuard,
    answers: Receiver<Answer>,
    frozen: bool,
    finding: Option<Finding>,
}

/// Thaws the guest when it is dropped, if the guest may be frozen.
///
/// A separate thread talks to the agent. It first sends a harmless command: an agent that does not
/// answer it is never asked to freeze, so there is nothing to thaw.
///
/// After the freeze command, the thread thaws when [`Freeze::thaw`] is called or when this value is
/// dropped. It thaws at once if the freeze fails, because a freeze that timed out may still happen.
/// Dropping waits for the thaw.
pub(crate) struct ThawGuard {
    handle: Option<Handle>,
    go: Option<Sender<()>>,
    phase: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
}

enum Answer {
    Frozen(Result<u32, CallError>),
    Thawed(Result<u32, CallError>),
}

impl Freeze {
    /// Asks the guest agent to freeze and waits for its answer.
    ///
    /// Waits at most `deadline`, and only until the user asks to stop.
    pub fn start(handle: &Handle, deadline: Duration, stop: &Stop) -> Freeze {
        let (go, wait_for_go) = mpsc::channel();
        let (tell, answers) = mpsc::channel();
        let phase = Arc::new(AtomicU8::new(GREETING));
        let talk = Talk {
            handle: handle.clone(),
            deadline,
            started: Instant::now(),
            phase: Arc::clone(&phase),
        };
        let hold = stop.hold_exit();
        let thread = thread::Builder::new()
            .name("guest-agent".to_owned())
            .spawn(move || {
                // Delays a forced exit of the program until this thread has thawed the guest.
                let _hold = hold;
                talk.run(&wait_for_go, &tell);
            });
        let mut freeze = Freeze {
            finding: thread
                .as_ref()
                .err()
                .map(|error| not_frozen("freeze-failed", &error.to_string())),
            guard: ThawGuard {
                handle: Some(handle.clone()),
                go: Some(go),
                phase,
                thread: thread.ok(),
            },
            answers,
            frozen: false,
        };
        if freeze.guard.thread.is_some() {
            freeze.wait_until_frozen(deadline, stop);
        }
        freeze
    }

    fn wait_until_frozen(&mut self, deadline: Duration, stop: &Stop) {
        let started = Instant::now();
        while !stop.requested() {
            let finding = match self.answers.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) if started.elapsed() < deadline => continue,
                Err(_) => not_frozen("agent-not-answering", "the guest agent did not answer in time"),
                Ok(Answer::Frozen(Ok(0))) => not_frozen(
                    "nothing-frozen",
                    "the guest has no file systems that can be frozen",
                ),
                Ok(Answer::Frozen(Ok(_)) | Answer::Thawed(Ok(_))) => {
                    self.frozen = true;
                    return;
                }
                Ok(Answer::Frozen(Err(error)) | Answer::Thawed(Err(error))) => {
                    let silent = does_not_answer(&error);
                    not_frozen(
                        if silent {
                            "agent-not-answering"
                        } else {
                            "freeze-failed"
                        },
                        &error.message,
                    )
                }
            };
            self.finding = Some(finding);
            return;
        }
    }

    /// Thaws the guest, and returns the consistency of a backup that started after the freeze.
    ///
    /// Does not wait for a guest that did not freeze.
    pub fn thaw(mut self) -> (Consistency, Vec<Finding>, ThawGuard) {
        self.guard.go = None;
        if self.frozen {
            // An agent that has just frozen the guest normally answers at once; this is the limit.
            let longest = Duration::from_secs(2 * u64::from(THAW_SECONDS) + 1);
            let why = match self.answers.recv_timeout(longest) {
                Ok(Answer::Thawed(Ok(0))) => {
                    let message = "the guest's file systems were no longer frozen when vmsnap thawed them: \
                                   the restore point counts as crash-consistent";
                    let finding = Finding::new("freeze-expired", message);
                    return (Consistency::Crash, vec![finding], self.guard);
                }
                Ok(Answer::Thawed(Ok(_))) => return (Consistency::Filesystem, Vec::new(), self.guard),
                Ok(Answer::Thawed(Err(error)) | Answer::Frozen(Err(error))) => error.message,
                Ok(Answer::Frozen(Ok(_))) | Err(_) => "the guest agent did not answer".to_owned(),
            };
            let message =
                format!("the guest's file systems may still be frozen (`virsh domfsthaw` thaws them): {why}");
            self.finding = Some(Finding::new("thaw-failed", message));
        }
        (Consistency::Crash, self.finding.into_iter().collect(), self.guard)
    }
}

impl Drop for ThawGuard {
    fn drop(&mut self) {
        self.go = None;
        let called_off =
            self.phase
                .compare_exchange(GREETING, CALLED_OFF, Ordering::SeqCst, Ordering::SeqCst);
        match (called_off, self.thread.take()) {
            // The thread has started to freeze: wait until it has thawed the guest.
            (Err(_), Some(thread)) => drop(thread.join()),
            // The thread still waits for the first answer. The program may end before the thread
            // resets the agent's time limit, so reset it here.
            (Ok(_), Some(_)) => {
                let _ = self
                    .handle
                    .as_ref()
                    .map(|handle| ffi::set_agent_timeout(handle, None));
            }
            (_, None) => {}
        }
    }
}

fn not_frozen(code: &str, why: &str) -> Finding {
    Finding::new(code, format!("the guest's file systems were not frozen: {why}"))
}

/// Returns whether the agent gave no answer, as opposed to a refusal.
pub(super) fn does_not_answer(error: &CallError) -> bool {
    matches!(
        error.number,
        ErrorNumber::AgentUnresponsive | ErrorNumber::AgentCommandTimeout
    )
}

/// The state of the thread that talks to the agent.
struct Talk {
    handle: Handle,
    deadline: Duration,
    started: Instant,
    phase: Arc<AtomicU8>,
}

impl Talk {
    fn run(&self, wait_for_go: &Receiver<()>, tell: &Sender<Answer>) {
        // The receiver may have timed out; the thaw happens anyway.
        match self.greet() {
            Err(error) => drop(tell.send(Answer::Frozen(Err(error)))),
            Ok(()) if self.may_freeze() => self.freeze_and_thaw(wait_for_go, tell),
            Ok(()) => {}
        }
        // Ignores errors: the domain may be gone.
        let _ = ffi::set_agent_timeout(&self.handle, None);
    }

    fn may_freeze(&self) -> bool {
        let changed = self
            .phase
            .compare_exchange(GREETING, FREEZING, Ordering::SeqCst, Ordering::SeqCst);
        changed.is_ok()
    }

    /// Asks the guest for its time, to check that the agent answers. A refusal counts as an answer.
    ///
    /// libvirt 9.0 returns the same error for an agent that never answers and for one that freezes
    /// slowly. This command distinguishes them before there is anything to thaw.
    fn greet(&self) -> Result<(), CallError> {
        ffi::set_agent_timeout(&self.handle, Some(whole_seconds(self.deadline / 2)))?;
        match self.handle.get_time(0).map_err(CallError::from) {
            Err(error) if does_not_answer(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn freeze_and_thaw(&self, wait_for_go: &Receiver<()>, tell: &Sender<Answer>) {
        let left = self.deadline.saturating_sub(self.started.elapsed());
        let limited = ffi::set_agent_timeout(&self.handle, Some(whole_seconds(left)));
        let frozen = limited.and_then(|()| ffi::freeze(&self.handle));
        let is_frozen = frozen.is_ok();
        let _ = tell.send(Answer::Frozen(frozen));
        if is_frozen {
            // No message is ever sent: this returns when the sender is dropped.
            let _ = wait_for_go.recv();
        }
        let _ = tell.send(Answer::Thawed(self.thaw()));
    }

    fn thaw(&self) -> Result<u32, CallError> {
        // If this fails, the limit of the freeze stays in force.
        let _ = ffi::set_agent_timeout(&self.handle, Some(THAW_SECONDS));
        let mut thawed = ffi::thaw(&self.handle);
        for _ in 1..THAW_ATTEMPTS {
            // Tries again only after a timeout: a refusal, or a domain that is gone, would not
            // change.
            if !thawed.as_ref().is_err_and(does_not_answer) || !self.handle.is_active().unwrap_or(false) {
                break;
            }
            thawed = ffi::thaw(&self.handle);
        }
        thawed
    }
}

/// Rounds down to whole seconds, at least 1, as libvirt requires.
pub(super) fn whole_seconds(duration: Duration) -> u16 {
    u16::try_from(duration.as_secs()).unwrap_or(u16::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_whole_seconds_and_never_none() {
        let seconds = [0, 999, 1000, 2999, 100_000_000].map(|ms| whole_seconds(Duration::from_millis(ms)));
        assert_eq!(seconds, [1, 1, 1, 2, u16::MAX]);
    }

    #[test]
    fn silence_is_not_a_refusal() {
        let error = |number| CallError {
            number,
            message: String::new(),
        };
        assert!(does_not_answer(&error(ErrorNumber::AgentUnresponsive)));
        assert!(does_not_answer(&error(ErrorNumber::AgentCommandTimeout)));
        assert!(!does_not_answer(&error(ErrorNumber::AgentCommandFailed)));
    }

    #[test]
    fn a_freeze_that_was_called_off_never_begins() {
        let phase = Arc::new(AtomicU8::new(GREETING));
        drop(ThawGuard {
            handle: None,
            go: None,
            phase: Arc::clone(&phase),
            thread: None,
        });
        let late = phase.compare_exchange(GREETING, FREEZING, Ordering::SeqCst, Ordering::SeqCst);
        assert_eq!(late, Err(CALLED_OFF));
    }
}
