//! Runs `qemu-nbd`, which offers an image of a shut-off domain.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::super::{HostError, Result};
use super::{COMPLAINT_LIMIT, Target, command, complaint, drain, explained, failed, start, words};
use crate::model::stop::Stop;
use crate::wait;

/// A disk to be offered by `qemu-nbd`.
#[derive(Clone, Debug)]
pub struct Offer<'a> {
    /// The image.
    pub image: &'a Target,
    /// The export's name.
    pub export: &'a str,
    /// The bitmap whose dirty ranges the export reports, as context `qemu:dirty-bitmap:<name>`.
    pub bitmap: Option<&'a str>,
    /// The unix socket to create.
    pub socket: &'a Path,
}

const PROGRAM: &str = "qemu-nbd";

/// Reads with `O_DIRECT`. QEMU applies this to every image of a chain.
const PAST_THE_CACHE: [&str; 1] = ["--cache=none"];

/// How many connections one reader accepts at the same time.
const CONNECTIONS: &str = "8";

/// How long `qemu-nbd` may take to open an image and listen.
const OPENING: Duration = Duration::from_secs(30);

/// A `qemu-nbd` process that offers one image read-only.
///
/// Dropping this value ends the process and removes its socket. While the process runs, QEMU's
/// locks keep a domain that writes to the image from starting. If vmsnap is killed, the kernel
/// kills the process too. If the process survives anyway, the next run ends it: a file beside the
/// socket holds its process id.
#[derive(Debug)]
pub struct Reader {
    child: Child,
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

    /// Starts a reader with these additional arguments.
    ///
    /// The inner error is the message of a reader that ended by itself.
    fn try_start(
        offer: &Offer<'_>,
        more: &[&str],
        stop: &Stop,
    ) -> Result<std::result::Result<Reader, String>> {
        let mut arguments = words(["--read-only", "--persistent", "--shared", CONNECTIONS]);
        arguments.extend(more.iter().map(OsString::from));
        if let Some(bitmap) = offer.bitmap {
            arguments.extend(words(["--bitmap", bitmap]));
        }
        arguments.extend(words(["--export-name", offer.export, "--socket"]));
        arguments.push(offer.socket.into());
        arguments.push("--pid-file".into());
        arguments.push(pid_file(offer.socket).into());
        arguments.extend(offer.image.arguments());

        let mut command = command(PROGRAM, &arguments);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let (mut child, parent) = start_tied(command, PROGRAM)?;
        let complaints = drain(child.stderr.take(), COMPLAINT_LIMIT);
        let mut reader = Reader {
            child,
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

/// Starts a child that the kernel kills when this process ends.
///
/// The kernel kills the child when the thread that started it ends. A separate thread therefore
/// starts the child and then waits until the returned sender is dropped.
fn start_tied(command: Command, program: &'static str) -> Result<(Child, Sender<()>)> {
    let (started, result) = mpsc::channel();
    let (parent, until_dropped) = mpsc::channel::<()>();
    let spawned = thread::Builder::new()
        .name("reader's parent".to_owned())
        .spawn(move || {
            // No message is ever sent on `parent`; `recv` returns when it is dropped.
            if started.send(start(tied(command), program)).is_ok() {
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
fn tied(mut command: Command) -> Command {
    super::super::ffi::tie_to_this_thread(&mut command);
    command
}

/// Returns the command unchanged. Without libvirt no domain can start while the reader runs, so the
/// reader does not have to end with this thread.
#[cfg(not(feature = "libvirt"))]
fn tied(command: Command) -> Command {
    command
}

enum Opening {
    Listening,
    Stopped,
    Ended(String),
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The process only reads, so killing it loses nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for file in [self.socket.clone(), pid_file(&self.socket)] {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Ends a `qemu-nbd` process that a killed run has left.
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
    let Some(pid) = pid.filter(|pid| serves(*pid, socket)) else {
        return Ok(());
    };
    // An error means that the process has already ended.
    let _ = kill_process(pid, Signal::KILL);
    let gone = wait::until(Duration::from_secs(5), Duration::from_millis(10), || {
        has_ended(pid).then_some(())
    });
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

/// Returns whether the process is a `qemu-nbd` with this socket among its arguments.
fn serves(pid: Pid, socket: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let mut arguments = line.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let socket: &OsStr = socket.as_os_str();
    program.ends_with(b"qemu-nbd") && arguments.any(|argument| argument == socket.as_encoded_bytes())
}
