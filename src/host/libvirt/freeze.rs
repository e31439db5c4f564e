//! Freezes the guest's file systems around the beginning of a job, and thaws them whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;

use super::{CallError, ffi};
use crate::model::finding::Finding;
use crate::model::restore_point::Consistency;
use crate::model::stop::Stop;

/// How often waiting looks at the user's wish to stop.
const LOOK: Duration = Duration::from_millis(100);

/// How often thawing is tried.
const ATTEMPTS: u32 = 5;

/// A guest that was asked to freeze.
pub struct Freeze {
    debt: Debt,
    answers: Receiver<Answer>,
    frozen: bool,
    patience: Duration,
    finding: Option<Finding>,
}

/// The thaw that the guest is owed. A thread of its own talks to the agent: it thaws when it is told to, when this is
/// dropped, and at once when freezing failed, for a freeze that was not answered in time may still come. Dropping
/// waits for it.
pub struct Debt {
    go: Option<Sender<()>>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum Answer {
    Frozen(Result<u32, CallError>),
    Thawed(Result<u32, CallError>),
}

impl Freeze {
    /// Asks the guest agent to freeze and waits for its answer, at most `deadline`, or until the user wants to stop.
    ///
    /// An agent question is a greeting and then the command, each with its own time limit.
    pub fn start(handle: &Handle, deadline: Duration, stop: &Stop) -> Freeze {
        let seconds = (deadline.as_secs().saturating_sub(1) / 2).clamp(1, u64::from(u16::MAX)) as u16;
        let (go, wait_for_go) = mpsc::channel();
        let (tell, answers) = mpsc::channel();
        let closing = Arc::new(AtomicBool::new(false));
        let work = Work {
            handle: handle.clone(),
            seconds,
            closing: Arc::clone(&closing),
            stop: stop.clone(),
        };
        let thread = thread::Builder::new()
            .name("guest-agent".to_owned())
            .spawn(move || work.run(&wait_for_go, &tell));
        let mut freeze = Freeze {
            debt: Debt {
                go: Some(go),
                closing,
                thread: None,
            },
            answers,
            frozen: false,
            patience: Duration::from_secs(2 * u64::from(seconds) + 1),
            finding: None,
        };
        match thread {
            Ok(thread) => freeze.debt.thread = Some(thread),
            Err(error) => freeze.finding = Some(not_frozen("agent-not-answering", &error.to_string())),
        }
        freeze.wait_until_frozen(stop);
        freeze
    }

    fn wait_until_frozen(&mut self, stop: &Stop) {
        while self.debt.thread.is_some() && !stop.requested() {
            let finding = match self.answers.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(Answer::Frozen(Ok(0))) => {
                    not_frozen("nothing-frozen", "the guest has none that can be frozen")
                }
                Ok(Answer::Frozen(Ok(_))) => {
                    self.frozen = true;
                    return;
                }
                Ok(Answer::Frozen(Err(error)) | Answer::Thawed(Err(error))) => {
                    not_frozen(code(&error), &error.message)
                }
                Ok(Answer::Thawed(Ok(_))) | Err(RecvTimeoutError::Disconnected) => {
                    not_frozen("agent-not-answering", "the guest agent's thread has ended")
                }
            };
            self.finding = Some(finding);
            return;
        }
    }

    /// Thaws, and tells what the moment in between is worth. A guest that did not freeze is not waited for.
    pub fn thaw(mut self) -> (Consistency, Vec<Finding>, Debt) {
        self.debt.go = None;
        if self.frozen {
            match self.answers.recv_timeout(self.patience) {
                Ok(Answer::Thawed(Ok(_))) => return (Consistency::Filesystem, Vec::new(), self.debt),
                Ok(Answer::Thawed(Err(error)) | Answer::Frozen(Err(error))) => {
                    self.finding = Some(not_thawed(&error.message));
                }
                Ok(Answer::Frozen(Ok(_))) | Err(_) => {
                    self.finding = Some(not_thawed("the agent does not answer"))
                }
            }
        }
        (Consistency::Crash, self.finding.into_iter().collect(), self.debt)
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        self.go = None;
        if let Some(thread) = self.thread.take() {
            // It has told all that it had to tell.
            let _ = thread.join();
        }
    }
}

fn code(error: &CallError) -> &'static str {
    match error.number {
        ErrorNumber::AgentUnresponsive | ErrorNumber::AgentCommandTimeout => "agent-not-answering",
        _ => "freeze-failed",
    }
}

fn not_frozen(code: &str, why: &str) -> Finding {
    Finding::new(code, format!("the guest's file systems were not frozen: {why}"))
}

fn not_thawed(why: &str) -> Finding {
    Finding::new(
        "thaw-failed",
        format!("the guest's file systems may still be frozen: {why}"),
    )
}

/// What the thread needs.
struct Work {
    handle: Handle,
    seconds: u16,
    closing: Arc<AtomicBool>,
    stop: Stop,
}

impl Work {
    fn run(&self, wait_for_go: &Receiver<()>, tell: &Sender<Answer>) {
        let limited = ffi::set_agent_timeout(&self.handle, Some(self.seconds));
        let frozen = limited.and_then(|()| ffi::freeze(&self.handle));
        let was_sent = frozen.as_ref().err().is_none_or(may_have_reached_the_agent);
        let froze = frozen.is_ok();
        // The other side may have given up: the thaw is owed all the same.
        let _ = tell.send(Answer::Frozen(frozen));
        if froze {
            // Nothing is ever sent: the sender's end is the sign.
            let _ = wait_for_go.recv();
        }
        if was_sent {
            let _ = tell.send(Answer::Thawed(self.thaw()));
        } else if !self.stop.requested() {
            // libvirt says that it sent nothing. One more attempt costs nobody anything.
            let _ = ffi::thaw(&self.handle);
        }
        // Best effort: the domain may be gone.
        let _ = ffi::set_agent_timeout(&self.handle, None);
    }

    /// Tries until it succeeds, but once the job is over no longer than it takes to try twice.
    fn thaw(&self) -> Result<u32, CallError> {
        let mut thawed = ffi::thaw(&self.handle);
        for attempt in 2..=ATTEMPTS {
            let enough = attempt > 2 && self.closing.load(Ordering::SeqCst);
            if thawed.is_ok() || enough || !self.handle.is_active().unwrap_or(false) {
                break;
            }
            thawed = ffi::thaw(&self.handle);
        }
        thawed
    }
}

/// Whether the command may have been sent. libvirt greets the agent first, and says so when that is not answered
/// (qemuAgentGuestSyncSend in src/qemu/qemu_agent.c); an agent that is not connected is told by the same number.
fn may_have_reached_the_agent(error: &CallError) -> bool {
    let greeting = error.message.contains("synchroniz") || error.message.contains("not connected");
    !(error.number == ErrorNumber::AgentUnresponsive && greeting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_without_answer_is_no_freeze() {
        let error = |number, message: &str| CallError {
            number,
            message: message.to_owned(),
        };
        let deaf =
            "Guest agent is not responding: guest agent didn't respond to synchronization within '4' seconds";
        assert!(!may_have_reached_the_agent(&error(
            ErrorNumber::AgentUnresponsive,
            deaf
        )));
        let slow = "guest agent didn't respond to command within '4' seconds";
        assert!(may_have_reached_the_agent(&error(
            ErrorNumber::AgentCommandTimeout,
            slow
        )));
        assert!(may_have_reached_the_agent(&error(
            ErrorNumber::AgentUnresponsive,
            "Guest agent disappeared"
        )));
    }
}
