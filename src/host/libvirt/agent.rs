//! Reads facts about a guest from its agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt_sys as sys;

use super::freeze::{does_not_answer, whole_seconds};
use super::{CallError, Result, failed, ffi};
use crate::model::guest::{GuestFacts, GuestFileSystem};

/// What the agent is asked for. Agents may lack one of the commands, so each has a call of its own.
const QUESTIONS: [sys::virDomainGuestInfoTypes; 3] = [
    sys::VIR_DOMAIN_GUEST_INFO_FILESYSTEM,
    sys::VIR_DOMAIN_GUEST_INFO_HOSTNAME,
    sys::VIR_DOMAIN_GUEST_INFO_OS,
];

/// How often a question is asked that the agent refuses.
const TRIES: usize = 2;

/// Asks the agent of a domain for facts; waits at most this long.
///
/// `None` if the domain has no agent, if it does not answer in time, or if this libvirt cannot ask.
/// A refusal counts as an answer without facts.
pub(super) fn facts(handle: &Handle, seconds: u16) -> Result<Option<GuestFacts>> {
    let limit = Duration::from_secs(seconds.max(1).into());
    let is_called_off = Arc::new(AtomicBool::new(false));
    let talk = Talk {
        handle: handle.clone(),
        until: Instant::now() + limit,
        is_called_off: Arc::clone(&is_called_off),
    };
    let (tell, answer) = mpsc::channel();
    // Besides the agent, libvirt waits for other commands to it, up to 30 s.
    thread::Builder::new()
        .name("guest-facts".to_owned())
        .spawn(move || {
            let facts = talk.run();
            // The caller may no longer wait.
            let _ = tell.send(facts);
        })
        .map_err(|error| {
            failed("ask the guest agent")(CallError {
                number: ErrorNumber::SystemError,
                message: error.to_string(),
            })
        })?;
    match answer.recv_timeout(limit) {
        Ok(facts) => facts,
        Err(_) => {
            // The thread gives the agent its usual time limit back as soon as libvirt lets it.
            is_called_off.store(true, Ordering::SeqCst);
            Ok(None)
        }
    }
}

/// The state of the thread that talks to the agent.
struct Talk {
    handle: Handle,
    until: Instant,
    /// Whether the caller no longer waits.
    is_called_off: Arc<AtomicBool>,
}

impl Talk {
    fn run(&self) -> Result<Option<GuestFacts>> {
        let facts = self.ask_all();
        // Ignores errors: the domain may be gone.
        let _ = ffi::set_agent_timeout(&self.handle, None);
        facts
    }

    fn ask_all(&self) -> Result<Option<GuestFacts>> {
        let mut texts = Vec::new();
        let mut has_answered = false;
        let mut doubt = None;
        // A guest that another program is freezing refuses for a moment, so refused questions are
        // asked once more.
        let mut refused = QUESTIONS.to_vec();
        for _ in 0..TRIES {
            for question in std::mem::take(&mut refused) {
                let left = self.until.saturating_duration_since(Instant::now());
                // libvirt waits twice at most: for a greeting, and for the answer.
                let limited = ffi::set_agent_timeout(&self.handle, Some(whole_seconds(left / 2)));
                if left.is_zero() || self.is_called_off.load(Ordering::SeqCst) {
                    return Ok(None);
                }
                match limited.and_then(|()| ffi::guest_texts(&self.handle, question)) {
                    Ok(found) => {
                        texts.extend(found);
                        has_answered = true;
                    }
                    Err(error) if error.number == ErrorNumber::AgentCommandFailed => {
                        has_answered = true;
                        refused.push(question);
                    }
                    Err(error) if is_no_agent(&error) => return Ok(None),
                    Err(error) if may_be_refusal(&error) => {
                        doubt = Some(error);
                        refused.push(question);
                    }
                    Err(error) => return Err(failed("ask the guest agent")(error)),
                }
            }
        }
        match doubt.filter(|_| !has_answered) {
            Some(error) => Err(failed("ask the guest agent")(error)),
            None => Ok(Some(read(texts).bounded())),
        }
    }
}

/// Whether there is nobody to ask, or no answer.
fn is_no_agent(error: &CallError) -> bool {
    does_not_answer(error)
        || matches!(
            error.number,
            ErrorNumber::AgentUnsynced
                // The domain has no channel for an agent.
                | ErrorNumber::ArgumentUnsupported
                // It does not run.
                | ErrorNumber::OperationInvalid
                // This libvirt lacks the call, or the driver does.
                | ErrorNumber::NoSupport
        )
}

/// Whether the agent may have answered, but not with these facts: it lacks the command, its answer
/// is malformed, or libvirt cannot pass it on because it is too long. A lost connection to libvirt
/// has the same numbers.
fn may_be_refusal(error: &CallError) -> bool {
    matches!(
        error.number,
        ErrorNumber::OperationUnsupported | ErrorNumber::InternalError | ErrorNumber::Rpc
    )
}

/// What an answer has mentioned of a file system so far.
#[derive(Default)]
struct Mentioned {
    place: Option<String>,
    kind: Option<String>,
    disks: Vec<String>,
}

/// Reads the texts of an agent by their keys. Counts are not used, because the agent chooses them.
fn read(texts: Vec<(String, String)>) -> GuestFacts {
    let mut facts = GuestFacts::default();
    let mut name = None;
    let mut file_systems: BTreeMap<u64, Mentioned> = BTreeMap::new();
    for (key, text) in texts {
        let words: Vec<&str> = key.split('.').collect();
        match words[..] {
            ["hostname"] => facts.hostname = Some(text),
            ["os", "pretty-name"] => facts.system = Some(text),
            ["os", "name"] => name = Some(text),
            ["fs", number, ref words @ ..] => {
                let Ok(number) = number.parse() else {
                    continue;
                };
                match words {
                    ["mountpoint"] => file_systems.entry(number).or_default().place = Some(text),
                    ["fstype"] => file_systems.entry(number).or_default().kind = Some(text),
                    // libvirt calls the disk's target its alias.
                    ["disk", _, "alias"] => file_systems.entry(number).or_default().disks.push(text),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    facts.system = facts.system.or(name);
    let complete = file_systems.into_values().filter_map(|mut found| {
        found.disks.sort();
        found.disks.dedup();
        Some(GuestFileSystem {
            place: found.place?,
            kind: found.kind?,
            disks: found.disks,
        })
    });
    facts.file_systems = complete.collect();
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = texts
            .iter()
            .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
        owned.collect()
    }

    #[test]
    fn texts_of_an_agent_become_facts() {
        let facts = read(texts(&[
            ("os.name", "Debian GNU/Linux"),
            ("os.pretty-name", "Debian GNU/Linux 12 (bookworm)"),
            ("hostname", "web"),
            ("fs.1.mountpoint", "/srv"),
            ("fs.1.name", "dm-0"),
            ("fs.1.fstype", "xfs"),
            ("fs.1.disk.0.alias", "vdc"),
            ("fs.1.disk.1.alias", "vdb"),
            ("fs.1.disk.1.serial", "17"),
            ("fs.1.disk.2.alias", "vdb"),
            ("fs.0.mountpoint", "/"),
            ("fs.0.fstype", "ext4"),
        ]));
        let file_system = |place: &str, kind: &str, disks: &[&str]| GuestFileSystem {
            place: place.to_owned(),
            kind: kind.to_owned(),
            disks: disks.iter().map(|disk| (*disk).to_owned()).collect(),
        };
        assert_eq!(
            facts,
            GuestFacts {
                hostname: Some("web".to_owned()),
                system: Some("Debian GNU/Linux 12 (bookworm)".to_owned()),
                file_systems: vec![
                    file_system("/", "ext4", &[]),
                    file_system("/srv", "xfs", &["vdb", "vdc"]),
                ],
            }
        );
        let named = read(texts(&[("os.name", "Debian GNU/Linux")]));
        assert_eq!(named.system.as_deref(), Some("Debian GNU/Linux"));
    }

    #[test]
    fn hostile_keys_of_an_agent_are_skipped() {
        let facts = read(texts(&[
            ("", "x"),
            ("fs", "x"),
            ("fs.count", "99999999999999999999"),
            ("fs.99999999999999999999.mountpoint", "/"),
            ("fs.-1.mountpoint", "/"),
            ("fs.18446744073709551615.mountpoint", "/lonely"),
            ("fs.3.fstype", "ext4"),
            ("fs.3.disk", "x"),
            ("fs.3.disk.x.alias.y", "x"),
            ("hostname.", "x"),
            ("os.pretty-name.x", "x"),
        ]));
        assert_eq!(facts, GuestFacts::default());
    }

    #[test]
    fn a_silent_agent_is_not_one_that_refuses() {
        let error = |number| CallError {
            number,
            message: String::new(),
        };
        for number in [
            ErrorNumber::AgentUnresponsive,
            ErrorNumber::AgentCommandTimeout,
            ErrorNumber::ArgumentUnsupported,
            ErrorNumber::NoSupport,
        ] {
            assert!(is_no_agent(&error(number)) && !may_be_refusal(&error(number)));
        }
        for number in [ErrorNumber::InternalError, ErrorNumber::OperationUnsupported] {
            assert!(may_be_refusal(&error(number)) && !is_no_agent(&error(number)));
        }
        assert!(!is_no_agent(&error(ErrorNumber::AgentCommandFailed)));
    }
}
