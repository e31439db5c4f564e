//! Serves one client after its handshake: receives requests, and has a few threads answer them.
//!
//! Replies come in the order in which they are ready. A thread answers one request at a time with
//! one buffer, so the memory is bounded whatever a client asks for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::handshake::{Agreement, drop_bytes};
use super::peer::{Greeting, Peer};
use super::request::{self, MAX_DESCRIPTORS, PIECE, Task, Verdict};
use super::{ExportDisk, Limits};
use crate::model::block::{BlockError, BlockErrorKind};
use crate::nbd::error::{Error, Result, errno};
use crate::nbd::wire::Request;

/// How long a thread waits for work before it checks for the end of the session again.
const GLANCE: Duration = Duration::from_millis(100);

/// A client that is being served.
pub(super) struct Session<'a> {
    peer: &'a Peer,
    disk: &'a dyn ExportDisk,
    agreement: Agreement,
    limits: &'a Limits,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Held while a chunk is sent.
    sending: Mutex<()>,
}

/// The requests that wait for a thread.
#[derive(Debug, Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// The number of threads that wait for a task.
    idle: usize,
    threads: usize,
    /// Whether no further requests come.
    is_closed: bool,
    /// Whether nothing can be sent any more.
    is_broken: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        peer: &'a Peer,
        disk: &'a dyn ExportDisk,
        agreement: Agreement,
        limits: &'a Limits,
    ) -> Session<'a> {
        Session {
            peer,
            disk,
            agreement,
            limits,
            queue: Mutex::default(),
            changed: Condvar::new(),
            sending: Mutex::default(),
        }
    }

    /// Serves the client until it says goodbye, breaks the protocol, or the server ends.
    pub(super) fn run(&self) {
        thread::scope(|scope| {
            // An error needs no report: the connection just ends.
            let received = self.receive(|| {
                let builder = thread::Builder::new().name("nbd-reply".to_owned());
                builder.spawn_scoped(scope, || self.answer_all()).is_ok()
            });
            let mut queue = self.queue();
            queue.is_closed = true;
            queue.is_broken |= received.is_err();
            drop(queue);
            self.changed.notify_all();
        });
        self.peer.hang_up();
    }

    /// Receives requests until the client says goodbye. `start` starts a thread that answers them.
    fn receive(&self, start: impl Fn() -> bool) -> Result<()> {
        loop {
            self.peer.wait_for_bytes()?;
            let mut channel = Greeting {
                peer: self.peer,
                until: Instant::now() + self.limits.patience,
            };
            let mut bytes = [0; 28];
            self.peer.receive(&mut bytes, channel.until)?;
            let request = Request::parse(&bytes)?;
            match request::judge(&request, self.disk.size(), &self.agreement) {
                Verdict::Do(task, dropped) => {
                    drop_bytes(&mut channel, dropped)?;
                    self.enqueue(task, &start)?;
                }
                Verdict::Goodbye => return Ok(()),
                Verdict::HangUp => return Err(Error::protocol("a request cannot be followed")),
            }
        }
    }

    /// Waits for room in the queue, and adds a task.
    fn enqueue(&self, task: Task, start: &impl Fn() -> bool) -> Result<()> {
        let mut queue = self.queue();
        while queue.tasks.len() >= self.limits.requests {
            if queue.is_broken || self.peer.is_stopped() {
                return Err(Error::Stopped);
            }
            queue = self.wait(queue);
        }
        queue.tasks.push_back(task);
        let needs_thread = queue.idle < queue.tasks.len() && queue.threads < self.limits.threads;
        if needs_thread {
            queue.threads += 1;
        }
        let is_first = queue.threads == 1;
        drop(queue);
        self.changed.notify_all();
        if needs_thread && !start() {
            self.queue().threads -= 1;
            // Other threads will answer, if there are any.
            if is_first {
                return Err(Error::Stopped);
            }
        }
        Ok(())
    }

    /// Answers requests until there will be no more.
    fn answer_all(&self) {
        let mut buffer = Vec::new();
        while let Some(task) = self.next() {
            if self.answer(&task, &mut buffer).is_err() {
                self.queue().is_broken = true;
                self.changed.notify_all();
                // The receiver notices it, too.
                self.peer.hang_up();
            }
        }
    }

    fn next(&self) -> Option<Task> {
        let mut queue = self.queue();
        loop {
            if queue.is_broken || self.peer.is_stopped() {
                return None;
            }
            if let Some(task) = queue.tasks.pop_front() {
                drop(queue);
                self.changed.notify_all();
                return Some(task);
            }
            if queue.is_closed {
                return None;
            }
            queue.idle += 1;
            queue = self.wait(queue);
            queue.idle -= 1;
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// The answer cannot be sent, or cannot be ended with an error.
    fn answer(&self, task: &Task, buffer: &mut Vec<u8>) -> Result<()> {
        match *task {
            Task::Refuse { cookie, errno } => self.refuse(cookie, errno),
            Task::Status {
                cookie,
                offset,
                length,
                only_first,
            } => {
                let most = if only_first { 1 } else { MAX_DESCRIPTORS };
                match self.ranges(offset, length, most) {
                    Ok(ranges) => self.send(&request::status(cookie, &ranges), &[]),
                    Err(error) => self.refuse(cookie, errno_of(&error)),
                }
            }
            Task::Read {
                cookie,
                offset,
                length,
                in_one,
            } => match self.agreement.structured {
                true => self.read_in_chunks(cookie, offset, length, in_one, buffer),
                false => self.read_simply(cookie, offset, length, buffer),
            },
        }
    }

    fn read_in_chunks(
        &self,
        cookie: u64,
        offset: u64,
        length: u32,
        in_one: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let end = offset + u64::from(length);
        let mut at = offset;
        while at < end {
            let most = (end - at) as u32;
            let run = match in_one {
                true => Ok((most, false)),
                false => self.run_at(at, most),
            };
            let (length, is_zero) = match run {
                Ok(run) => run,
                Err(error) => return self.refuse(cookie, errno_of(&error)),
            };
            let is_last = at + u64::from(length) == end;
            if is_zero {
                self.send(&request::hole(cookie, at, length, is_last), &[])?;
            } else {
                let bytes = prepared(buffer, length);
                if let Err(error) = self.disk.read_at(bytes, at) {
                    return self.refuse(cookie, errno_of(&error));
                }
                self.send(&request::data_head(cookie, at, length, is_last), bytes)?;
            }
            at += u64::from(length);
        }
        Ok(())
    }

    /// Answers with a simple reply, which announces all bytes before the first one: a later error
    /// can only end the connection.
    fn read_simply(&self, cookie: u64, offset: u64, length: u32, buffer: &mut Vec<u8>) -> Result<()> {
        let mut sending = None;
        let mut at = offset;
        let end = offset + u64::from(length);
        while at < end {
            let piece = (end - at).min(PIECE.into()) as u32;
            let bytes = prepared(buffer, piece);
            match self.disk.read_at(bytes, at) {
                Ok(()) => {}
                Err(error) if sending.is_none() => return self.refuse(cookie, errno_of(&error)),
                Err(_) => return Err(Error::protocol("a simple reply cannot be completed")),
            }
            let head = request::simple(cookie, 0);
            let head = if sending.is_none() { &head[..] } else { &[] };
            // No other reply may come between the pieces.
            sending.get_or_insert_with(|| self.sending.lock().unwrap_or_else(PoisonError::into_inner));
            self.peer.send(head, bytes, self.limits.patience)?;
            at += u64::from(piece);
        }
        Ok(())
    }

    fn refuse(&self, cookie: u64, errno: u32) -> Result<()> {
        self.send(&request::error(cookie, errno, self.agreement.structured), &[])
    }

    fn send(&self, head: &[u8], body: &[u8]) -> Result<()> {
        let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        self.peer.send(head, body, self.limits.patience)
    }

    /// The length of the run at an offset, at most `most`, and whether it reads as zero. A run of
    /// data is at most as long as a chunk may be.
    fn run_at(&self, offset: u64, most: u32) -> std::result::Result<(u32, bool), BlockError> {
        let (first, is_zero) = self.disk.status_at(offset)?;
        let most = if is_zero { most } else { most.min(PIECE) };
        let mut length = first.min(most.into());
        while length < u64::from(most) {
            let (next, next_is_zero) = self.disk.status_at(offset + length)?;
            if next_is_zero != is_zero {
                break;
            }
            length += next.min(u64::from(most) - length);
        }
        Ok((length as u32, is_zero))
    }

    /// The first ranges from an offset on, at most `most` of them.
    fn ranges(
        &self,
        offset: u64,
        length: u32,
        most: usize,
    ) -> std::result::Result<Vec<(u32, bool)>, BlockError> {
        let mut ranges: Vec<(u32, bool)> = Vec::new();
        let mut done = 0;
        while done < length {
            if self.is_over() {
                return Err(BlockError::stopped());
            }
            let (found, is_zero) = self.disk.status_at(offset + u64::from(done))?;
            let found = found.min(u64::from(length - done)) as u32;
            let is_full = ranges.len() == most;
            match ranges.last_mut() {
                Some((last, was_zero)) if *was_zero == is_zero => *last += found,
                _ if is_full => break,
                _ => ranges.push((found, is_zero)),
            }
            done += found;
        }
        Ok(ranges)
    }

    /// Whether nobody waits for answers any more.
    fn is_over(&self) -> bool {
        self.queue().is_broken || self.peer.is_stopped()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'q>(&self, queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        let waited = self.changed.wait_timeout(queue, GLANCE);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A part of the buffer with this length. The buffer grows only as far as a client needs it.
fn prepared(buffer: &mut Vec<u8>, length: u32) -> &mut [u8] {
    let length = length as usize;
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}

/// The error number that a client gets.
fn errno_of(error: &BlockError) -> u32 {
    match error.kind {
        BlockErrorKind::Stopped => errno::ESHUTDOWN,
        _ => errno::EIO,
    }
}
