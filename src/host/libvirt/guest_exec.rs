//! Runs programs in a guest through its agent, and reads its screen.
//!
//! The commands are those of qga/qapi-schema.json in QEMU's sources. libvirt limits the length of
//! an answer.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use virt::connect::Connect;
use virt::domain::Domain as Handle;
use virt::error::ErrorNumber;
use virt::stream::Stream;

use super::{CallError, HostError, Result, failed};
use crate::host::ffi::Call;
use crate::host::trial::GuestExit;

/// The largest picture, in bytes: a screen of 5120 × 2880 has 44 million.
const LARGEST_PICTURE: usize = 64 << 20;

/// The answer to a command.
#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: T,
}

/// The answer to `guest-exec`.
#[derive(Deserialize)]
struct Begun {
    pid: u64,
}

/// The answer to `guest-exec-status`.
#[derive(Deserialize)]
struct Status {
    exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
}

/// Whether the agent answers within this time.
pub(super) fn answers(handle: &Handle, limit: Duration) -> Result<bool> {
    match command(handle, &json!({"execute": "guest-ping"}), limit) {
        Ok(_) => Ok(true),
        Err(error) if is_silent(&error) => Ok(false),
        Err(error) => Err(failed("ask the guest agent for an answer")(error)),
    }
}

/// Starts a program, whose output goes nowhere.
pub(super) fn run(handle: &Handle, words: &[String], limit: Duration) -> Result<u64> {
    let doing = "run a command in the guest";
    let (path, arguments) = words.split_at(words.len().min(1));
    let path = path.concat();
    let wanted = json!({"execute": "guest-exec", "arguments": {"path": path, "arg": arguments}});
    let text = command(handle, &wanted, limit).map_err(failed(doing))?;
    read::<Begun>(&text, doing).map(|begun| begun.pid)
}

/// How a program has ended; `None` while it runs.
pub(super) fn exit(handle: &Handle, number: u64, limit: Duration) -> Result<Option<GuestExit>> {
    let doing = "ask how the command in the guest ended";
    let wanted = json!({"execute": "guest-exec-status", "arguments": {"pid": number}});
    let text = command(handle, &wanted, limit).map_err(failed(doing))?;
    let status: Status = read(&text, doing)?;
    Ok(match (status.exited, status.exitcode, status.signal) {
        (false, ..) => None,
        (true, Some(code), _) => Some(GuestExit::Code(code)),
        (true, None, signal) => Some(GuestExit::Signal(signal.unwrap_or(0))),
    })
}

fn command(handle: &Handle, wanted: &serde_json::Value, limit: Duration) -> Call<String> {
    let seconds = i32::try_from(limit.as_secs().max(1)).unwrap_or(i32::MAX);
    // JSON has no NUL.
    let answer = handle.qemu_agent_command(&wanted.to_string(), seconds, 0);
    answer.map_err(CallError::from)
}

fn read<T: for<'a> Deserialize<'a>>(text: &str, doing: &str) -> Result<T> {
    let answer: std::result::Result<Answer<T>, _> = serde_json::from_str(text);
    answer.map(|answer| answer.value).map_err(|error| {
        let why = format!("the guest agent's answer cannot be read: {error}");
        unusable(doing, why)
    })
}

fn unusable(operation: &str, message: String) -> HostError {
    HostError::Libvirt {
        operation: operation.to_owned(),
        code: i32::try_from(ErrorNumber::AgentCommandFailed.to_raw()).unwrap_or(1),
        message,
    }
}

/// Whether no agent is there, or it gave no answer.
fn is_silent(error: &CallError) -> bool {
    matches!(
        error.number,
        ErrorNumber::AgentUnresponsive
            | ErrorNumber::AgentCommandTimeout
            | ErrorNumber::AgentUnsynced
            | ErrorNumber::ArgumentUnsupported
            | ErrorNumber::OperationInvalid
    )
}

/// Reads the picture of the first screen.
pub(super) fn screenshot(connection: &Connect, handle: &Handle) -> Result<Vec<u8>> {
    let doing = "take a picture of the screen";
    let stream = Stream::new(connection, 0).map_err(failed(doing))?;
    handle.screenshot(&stream, 0, 0).map_err(failed(doing))?;
    let mut picture = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = stream.recv(&mut buffer).map_err(failed(doing))?;
        if count == 0 {
            break;
        }
        picture.extend_from_slice(&buffer[..count]);
        if picture.len() > LARGEST_PICTURE {
            let _ = stream.abort();
            let why = format!("it is larger than {LARGEST_PICTURE} bytes");
            return Err(unusable(doing, why));
        }
    }
    stream.finish().map_err(failed(doing))?;
    Ok(picture)
}
