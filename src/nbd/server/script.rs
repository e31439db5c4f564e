//! Feeds the bytes of a client to the parsers, without a socket.

use super::handshake::{self, Offer};
use super::request::{self, Task, Verdict};
use crate::nbd::error::{Error, Result};
use crate::nbd::socket::Channel;
use crate::nbd::wire::Request;

/// The bytes that a client sends.
struct Script<'a>(&'a [u8]);

impl Channel for Script<'_> {
    fn send(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn receive_exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        let (head, rest) = self
            .0
            .split_at_checked(bytes.len())
            .ok_or(Error::Disconnected { phase: "the script" })?;
        bytes.copy_from_slice(head);
        self.0 = rest;
        Ok(())
    }
}

/// Runs a handshake and requests. Returns the number of requests that were judged.
///
/// # Panics
/// A request within limits is judged to be beyond them.
pub(super) fn run(script: &[u8]) -> usize {
    let offer = |name: &str, size| Offer {
        name: name.to_owned(),
        size,
    };
    let offers = [offer("vda", 10 << 20), offer("vdb", u64::MAX)];
    let mut script = Script(script);
    let Ok(Some(agreement)) = handshake::greet_and_choose(&mut script, &offers) else {
        return 0;
    };
    let size = offers[agreement.export].size;
    let mut number = 0;
    let mut bytes = [0; 28];
    while script.receive_exact(&mut bytes).is_ok() {
        let Ok(request) = Request::parse(&bytes) else {
            break;
        };
        number += 1;
        match request::judge(&request, size, &agreement) {
            Verdict::Do(task, dropped) => {
                if let Task::Read { offset, length, .. } | Task::Status { offset, length, .. } = task {
                    assert!(length > 0 && offset + u64::from(length) <= size, "{task:?}");
                }
                if handshake::drop_bytes(&mut script, dropped).is_err() {
                    break;
                }
            }
            Verdict::Goodbye | Verdict::HangUp => break,
        }
    }
    number
}
