//! A read-only NBD server: offers disks of this process to any NBD client.
//!
//! It speaks the fixed newstyle handshake with structured replies, and reports `base:allocation`.
//! Every client has a connection of its own with a few threads; a client that is slow, silent or
//! hostile costs only its own connection. There is neither encryption nor authentication.
//!
//! * `handshake`, `request`: what clients say, and the answers, without I/O.
//! * `peer`: a client's connection.
//! * `session`: serves one client.
//! * `listen`: the sockets, and the URIs of exports.
//! * `script`: the parsers without a socket.

mod handshake;
mod listen;
mod peer;
mod request;
mod script;
mod session;

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::model::block::BlockError;
use crate::model::stop::{Stop, StopReason};
use crate::wait;
use handshake::Offer;
use peer::{Greeting, Peer};
use session::Session;

pub use listen::{ListenError, Listener, private_folder};

/// How long the server waits for a client before it checks for its end again.
const SLICE: Duration = Duration::from_millis(100);

/// A disk that a server offers. It is read by several threads at once.
pub trait ExportDisk: Send + Sync + Debug {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// The length of the range at `offset` that is stored in the same way, and whether it reads as
    /// zero. The length is never 0. `offset` is below the disk's size.
    ///
    /// # Errors
    /// The status cannot be determined. The client gets an error.
    fn status_at(&self, offset: u64) -> Result<(u64, bool), BlockError>;

    /// Fills `out` with the bytes from `offset` on. The range ends within the disk.
    ///
    /// # Errors
    /// The bytes cannot be read, or are damaged. The client gets an error.
    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError>;
}

/// A disk with the name under which clients find it.
#[derive(Clone, Debug)]
pub struct ServedExport {
    /// Its name; unique within a server.
    pub name: String,
    /// The disk.
    pub disk: Arc<dyn ExportDisk>,
}

/// The limits of a server. A server needs at most `connections` * `threads` MiB for replies.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest number of connections; further ones are closed.
    pub connections: usize,
    /// The largest number of threads that answer the requests of a connection.
    pub threads: usize,
    /// The largest number of requests of a connection that wait for a thread. The others stay in
    /// the socket.
    pub requests: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a client may take to send the rest of a request, or to accept a part of a reply.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 16,
            threads: 4,
            requests: 64,
            handshake: Duration::from_secs(20),
            patience: Duration::from_secs(30),
        }
    }
}

/// The numbers of connections of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visits {
    /// The number of connections whose handshake succeeded.
    pub served: u64,
    /// The number of connections that were closed because too many were open.
    pub refused: u64,
}

/// What the threads of a server share.
#[derive(Debug)]
struct Shared {
    exports: Vec<ServedExport>,
    offers: Vec<Offer>,
    limits: Limits,
    stop: Stop,
    connected: AtomicUsize,
    served: AtomicU64,
    refused: AtomicU64,
}

/// A server that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to serve these exports. The server ends when the stop is requested.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        listener: Listener,
        exports: Vec<ServedExport>,
        limits: Limits,
        stop: &Stop,
    ) -> io::Result<Server> {
        let offers = exports.iter().map(|export| Offer {
            name: export.name.clone(),
            size: export.disk.size(),
        });
        let shared = Arc::new(Shared {
            offers: offers.collect(),
            exports,
            limits,
            stop: stop.child(),
            connected: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept_all(&listener, &accepting))?;
        Ok(Server {
            shared,
            thread: Some(thread),
        })
    }

    /// The numbers of connections of clients so far.
    pub fn visits(&self) -> Visits {
        Visits {
            served: self.shared.served.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
        }
    }

    /// Ends all connections, and removes the socket.
    pub fn end(&mut self) {
        self.shared.stop.request(StopReason::OtherPartFailed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Accepts connections until the server ends, and waits for their ends.
fn accept_all(listener: &Listener, shared: &Arc<Shared>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stop.requested() {
        if !is_readable(listener) {
            continue;
        }
        connections.retain(|connection| !connection.is_finished());
        match listener.accept() {
            Ok(socket) => connections.extend(welcome(socket, shared)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Most probably too many files are open: the client waits.
            Err(_) => wait::pause(SLICE),
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

/// Starts the thread of a connection, unless there are too many.
fn welcome(socket: OwnedFd, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    let Some(place) = Seat::take(shared) else {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    let builder = thread::Builder::new().name("nbd-client".to_owned());
    builder.spawn(move || serve(socket, &place)).ok()
}

/// A place among the connections, until it is dropped.
struct Seat(Arc<Shared>);

impl Seat {
    fn take(shared: &Arc<Shared>) -> Option<Seat> {
        let connected = shared.connected.fetch_add(1, Ordering::SeqCst);
        let seat = Seat(Arc::clone(shared));
        (connected < shared.limits.connections).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(socket: OwnedFd, Seat(shared): &Seat) {
    let peer = Peer::new(socket, shared.stop.clone());
    let mut channel = Greeting {
        peer: &peer,
        until: Instant::now() + shared.limits.handshake,
    };
    // A client that breaks the protocol is disconnected, and nobody else needs to know.
    if let Ok(Some(agreement)) = handshake::greet_and_choose(&mut channel, &shared.offers) {
        shared.served.fetch_add(1, Ordering::Relaxed);
        let disk = shared.exports[agreement.export].disk.as_ref();
        Session::new(&peer, disk, agreement, &shared.limits).run();
    }
    peer.hang_up();
}

/// Waits a moment for a connection to accept.
#[allow(clippy::disallowed_methods, reason = "it waits for a socket")]
fn is_readable(listener: &Listener) -> bool {
    let time = Timespec {
        tv_sec: 0,
        tv_nsec: SLICE.subsec_nanos().into(),
    };
    let mut polled = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    matches!(poll(&mut polled, Some(&time)), Ok(1..))
}

/// Runs a client's bytes through the handshake and the parser of requests, for the fuzz target and
/// the tests. Returns the number of requests.
#[doc(hidden)]
pub fn serve_script(script: &[u8]) -> usize {
    script::run(script)
}

#[cfg(test)]
mod tests;
