//! Runs `qemu-nbd`, which offers an image of a shut-off domain for reading or writing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::super::{HostError, Result};
use super::{
    COMPLAINT_LIMIT, LOOK, Target, command, complaint, drain, explained, failed, once_unlocked, start, words,
};
use crate::model::stop::Stop;
use crate::wait;

/// A disk to be offered by `qemu-nbd`.
#[derive(Clone, Debug)]
pub struct Offer<'a> {
    /// The image.
    pub image: &'a Target,
    /// The export's name.
    pub export: &'a str,
    /// The bitmaps whose dirty ranges the export reports, each as context
    /// `qemu:dirty-bitmap:<name>`.
    pub bitmaps: Vec<&'a str>,
    /// The unix socket to create.
    pub socket: &'a Path,
    /// Whether the image can be written to. Its bitmaps then record the writes.
    pub writable: bool,
}

const PROGRAM: &str = "qemu-nbd";

/// The argument that keeps an image from being written to. A process without it is ended gently.
const READ_ONLY: &str = "--read-only";

/// Reads with `O_DIRECT`. QEMU applies this to every image of a chain.
const PAST_THE_CACHE: [&str; 1] = ["--cache=none"];

/// How many connections one reader accepts at the same time.
const CONNECTIONS: &str = "8";

/// How long `qemu-nbd` may take to open an image and listen.
const OPENING: Duration = Duration::from_secs(30);

/// How long a process that could write may take to end: it writes its bitmaps and flushes the
/// image. Killing it would break the bitmaps.
const CLOSING: Duration = Duration::from_secs(600);

/// A `qemu-nbd` process that offers one image, read-only or for writing.
///
/// Dropping this value ends the process and removes its socket. While the process runs, QEMU's
/// locks keep a domain that writes to the image from starting. If vmsnap is killed, the kernel
/// ends the process too. If the process survives anyway, the next run ends it: a file beside the
/// socket holds its process id.
///
/// A process that only reads is killed. A process that can write gets SIGTERM, so that it closes
/// the image with sound bitmaps.
#[derive(Debug)]
pub struct Reader {
    child: Child,
    writable: bool,
    /// Keeps the thread alive that started the child: the kernel kills the child when that thread
    /// ends.
    _parent: Sender<()>,
    complaints: Receiver<Vec<u8>>,
    socket: PathBuf,
}

/// Returns the path of the file with a reader's process id, which is beside its socket.
pub fn pid_file(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".pid");
    name.into()
}

impl Reader {
    /// Starts a reader and waits until it listens.
    ///
    /// The reader bypasses the page cache if the file systems of all images of the chain support
    /// that. Then a backup does not evict pages that other programs on the host need.
    pub fn start(offer: &Offer<'_>, stop: &Stop) -> Result<Reader> {
        match Reader::try_start(offer, &PAST_THE_CACHE, stop)? {
            Ok(reader) => Ok(reader),
            // Each image may be on a file system without O_DIRECT. If the first attempt failed for
            // another reason, the second one reports the same error.
            Err(_) => Reader::try_start(offer, &[], stop)?
                .map_err(|message| explained(failed(PROGRAM, &operation(offer), message), offer.image)),
        }
    }

    /// Starts a process that can write to the image. Waits a few seconds for another process that
    /// is closing the image.
    pub fn start_writer(offer: &Offer<'_>, stop: &Stop) -> Result<Reader> {
        once_unlocked(|| Reader::start(offer, stop))
    }

    /// Ends a process that could write, and waits until it has closed the image.
    ///
    /// # Errors
    /// The process does not end in time, or ends with an error, so the last writes may not be
    /// durable.
    pub fn close(mut self) -> Result<()> {
        let failed = |message: String| failed(PROGRAM, "close the image", message);
        if let Some(how) = self.ended() {
            return Err(failed(format!("it had ended before: {how}")));
        }
        terminate(&self.child);
        let ended = wait::until(CLOSING, LOOK, || match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(Ok(status)),
            Err(error) => Some(Err(error)),
        });
        match ended {
            Some(Ok(status)) if status.success() => Ok(()),
            Some(Ok(status)) => {
                let said = self.complaints.recv_timeout(Duration::from_secs(1));
                Err(failed(complaint(&said.unwrap_or_default(), status)))
            }
            Some(Err(error)) => Err(failed(error.to_string())),
            None => Err(failed(format!(
                "it was still at work after {} s",
                CLOSING.as_secs()
            ))),
        }
    }

    /// Starts a reader with these additional arguments.
    ///
    /// The inner error is the message of a reader that ended by itself.
    fn try_start(
        offer: &Offer<'_>,
        more: &[&str],
        stop: &Stop,
    ) -> Result<std::result::Result<Reader, String>> {
        let mut arguments = words(["--persistent", "--shared", CONNECTIONS]);
        if !offer.writable {
            arguments.push(READ_ONLY.into());
        }
        arguments.extend(more.iter().map(OsString::from));
        for bitmap in &offer.bitmaps {
            arguments.extend(words(["--bitmap", *bitmap]));
        }
        arguments.extend(words(["--export-name", offer.export, "--socket"]));
        arguments.push(offer.socket.into());
        arguments.push("--pid-file".into());
        arguments.push(pid_file(offer.socket).into());
        arguments.extend(offer.image.arguments());

        let mut command = command(PROGRAM, &arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let end = match offer.writable {
            true => Signal::TERM,
            false => Signal::KILL,
        };
        let (mut child, parent) = start_tied(command, PROGRAM, end)?;
        let complaints = drain(child.stderr.take(), COMPLAINT_LIMIT);
        let mut reader = Reader {
            child,
            writable: offer.writable,
            _parent: parent,
            complaints,
            socket: offer.socket.to_owned(),
        };
        match reader.wait_until_listening(stop) {
            Some(Opening::Listening) => Ok(Ok(reader)),
            Some(Opening::Stopped) => Err(HostError::Stopped),
            Some(Opening::Ended(message)) => Ok(Err(message)),
            None => Err(failed(
                PROGRAM,
                &operation(offer),
                format!("the program was not listening after {} s", OPENING.as_secs()),
            )),
        }
    }

    fn wait_until_listening(&mut self, stop: &Stop) -> Option<Opening> {
        let pid_file = pid_file(&self.socket);
        wait::until(OPENING, Duration::from_millis(5), || {
            if stop.requested() {
                return Some(Opening::Stopped);
            }
            if let Some(message) = self.ended() {
                return Some(Opening::Ended(message));
            }
            // qemu-nbd writes the file after it has started to listen (qemu-nbd.c).
            let written = std::fs::metadata(&pid_file).is_ok_and(|file| file.len() > 0);
            written.then_some(Opening::Listening)
        })
    }

    /// Returns the reason why the process has ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                let said = self
                    .complaints
                    .recv_timeout(Duration::from_secs(1))
                    .unwrap_or_default();
                Some(complaint(&said, status))
            }
            Err(error) => Some(error.to_string()),
        }
    }
}

fn operation(offer: &Offer<'_>) -> String {
    format!("offer {}", offer.image.shown)
}

/// Starts a child to which the kernel sends this signal when this process ends.
///
/// The kernel sends the signal when the thread that started the child ends. Therefore a separate
/// thread starts the child, and then waits until the returned sender is dropped.
pub(in crate::host) fn start_tied(
    command: Command,
    program: &'static str,
    end: Signal,
) -> Result<(Child, Sender<()>)> {
    let (started, result) = mpsc::channel();
    let (parent, until_dropped) = mpsc::channel::<()>();
    let spawned = thread::Builder::new()
        .name("reader's parent".to_owned())
        .spawn(move || {
            // No message is ever sent on `parent`; `recv` returns when it is dropped.
            if started.send(start(tied(command, end), program)).is_ok() {
                let _ = until_dropped.recv();
            }
        });
    spawned.map_err(|error| failed(program, "be started", error.to_string()))?;
    let child = result.recv().unwrap_or_else(|_| {
        Err(failed(
            program,
            "be started",
            "the thread that starts it has ended",
        ))
    })?;
    Ok((child, parent))
}

#[cfg(feature = "libvirt")]
fn tied(mut command: Command, end: Signal) -> Command {
    super::super::ffi::tie_to_this_thread(&mut command, end);
    command
}

/// Returns the command unchanged. Without libvirt no domain can start while the reader runs, so the
/// reader does not have to end with this thread.
#[cfg(not(feature = "libvirt"))]
fn tied(command: Command, _end: Signal) -> Command {
    command
}

enum Opening {
    Listening,
    Stopped,
    Ended(String),
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.writable && self.ended().is_none() {
            terminate(&self.child);
            wait::until(CLOSING, LOOK, || self.ended());
        }
        // A process that only reads loses nothing. One that writes has ended, or hangs.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for file in [self.socket.clone(), pid_file(&self.socket)] {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Asks a child to end.
fn terminate(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // An error means that the process has already ended.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Ends a `qemu-nbd` process that a killed run has left. A process that can write closes its image
/// first.
///
/// Does nothing if the process with the recorded id is not the one that serves `socket`.
pub(crate) fn end_stray_reader(socket: &Path) -> Result<()> {
    let file = pid_file(socket);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(HostError::io("read", &file, error)),
    };
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let Some((pid, writable)) = pid.and_then(|pid| Some((pid, serves(pid, socket)?))) else {
        return Ok(());
    };
    let (signal, limit) = match writable {
        true => (Signal::TERM, CLOSING),
        false => (Signal::KILL, Duration::from_secs(5)),
    };
    // An error means that the process has already ended.
    let _ = kill_process(pid, signal);
    let gone = wait::until(limit, Duration::from_millis(10), || has_ended(pid).then_some(()));
    gone.ok_or_else(|| {
        failed(
            "qemu-nbd",
            "be ended",
            format!("process {} is still running", pid.as_raw_nonzero()),
        )
    })
}

/// Returns whether the process is gone or a zombie: only then are its files closed.
fn has_ended(pid: Pid) -> bool {
    let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let Ok(stat) = std::fs::read_to_string(folder.join("stat")) else {
        return true;
    };
    // The format is `pid (name) state …` (proc_pid_stat(5)); the name may contain parentheses.
    let dead = stat
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    // The first thread may be dead while other threads still have the files open.
    let threads = std::fs::read_dir(folder.join("task")).map_or(0, Iterator::count);
    dead && threads <= 1
}

/// Returns whether the process can write to its image, if it is a `qemu-nbd` with this socket among
/// its arguments.
fn serves(pid: Pid, socket: &Path) -> Option<bool> {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
    let mut arguments = line.split(|byte| *byte == 0);
    let is_ours = arguments.next()?.ends_with(b"qemu-nbd");
    let arguments: Vec<&[u8]> = arguments.collect();
    let has = |word: &OsStr| arguments.contains(&word.as_encoded_bytes());
    (is_ours && has(socket.as_os_str())).then(|| !has(READ_ONLY.as_ref()))
}
