//! Runs `guestfish`, which reads the file systems of a guest in a virtual machine of its own
//! (libguestfs calls it the appliance). The host's kernel never sees these file systems.
//!
//! A [`Guestfish`] is one such machine with disks that an NBD server offers. Commands go to the
//! standard input of `guestfish`, one a line, with every unusual byte escaped (`words`). Text
//! answers come from its standard output, up to a line that only this process knows. The content
//! of files comes through a named pipe. Whatever the machine sends is hostile until it is parsed
//! (`answers`).

mod answers;
mod data;
mod processes;
mod words;

pub use answers::{FileFacts, FileKind, FileSystem, MountPoint};

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

use super::qemu::{self, complaint, drain, failed};
use super::{HostError, Result};
use crate::model::stop::Stop;
use crate::wait;
use words::Line;

/// The program.
const PROGRAM: &str = "guestfish";

/// The variable with settings of the backend, and the one that keeps it from using KVM.
const SETTINGS: &str = "LIBGUESTFS_BACKEND_SETTINGS";
const FORCE_TCG: &str = "force_tcg";

/// How long `guestfish` may be silent: no answer, no data, and nothing read from the disks. Without
/// KVM, and if the appliance has to be built first, its machine starts within minutes.
pub const SILENCE: Duration = Duration::from_secs(600);

/// The largest answer, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;

/// How much of its error output is kept, in bytes.
const COMPLAINT_LIMIT: u64 = 64 << 10;

/// How long a wait lasts before the stop is checked again.
const LOOK: Duration = Duration::from_millis(100);

/// How often a wait looks whether `guestfish` has ended.
const STEP: Duration = Duration::from_millis(5);

/// How long `guestfish` may take to end by itself.
const ENDING: Duration = Duration::from_secs(30);

/// The largest number of questions that are sent at once. The answers to them fit into a pipe.
const BATCH: usize = 64;

/// The largest number of bytes that are sent at once, which fit into a pipe.
const BATCH_BYTES: usize = 32 << 10;

/// The disks that `guestfish` reads, and the means to watch and stop it.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// The names of the disks at the NBD server, in the order of their devices.
    pub disks: &'a [String],
    /// The socket of the server.
    pub socket: &'a Path,
    /// A folder for sockets and temporary files, as [`private_folder`] makes it.
    pub folder: &'a Path,
    /// An unpredictable number, for names that nobody can guess.
    pub random: u64,
    /// A request to stop, which ends `guestfish`.
    pub stop: &'a Stop,
    /// Returns a counter that grows with every byte that is read from the disks.
    pub progress: &'a dyn Fn() -> u64,
    /// How long `guestfish` may be silent before it is ended.
    pub silence: Duration,
}

/// A running `guestfish`. Dropping it ends it, with its virtual machine.
pub struct Guestfish<'a> {
    setup: Setup<'a>,
    child: Child,
    /// How it ended, once it and everything that it started has ended.
    status: Option<ExitStatus>,
    /// Keeps the thread alive that started the child: the kernel kills the child when that thread
    /// ends.
    _parent: Sender<()>,
    /// `None` once it has been closed.
    input: Option<ChildStdin>,
    output: ChildStdout,
    complaints: Receiver<Vec<u8>>,
    /// What it has printed since the last answer.
    heard: Vec<u8>,
    /// The number of the current question, which makes the line after its answer unique.
    question: u64,
    /// The named pipe for the content of files; `None` once it has been closed.
    pipe: Option<OwnedFd>,
    pipe_path: PathBuf,
    last_news: Instant,
    last_progress: u64,
    without_kvm: Option<String>,
}

/// Whether an answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Answered,
    Waiting,
}

/// Creates a folder that only this user can use, and that is removed when the result is dropped.
/// Its path is short enough for sockets, and has no characters that QEMU's URIs treat specially.
///
/// # Errors
/// The folder cannot be created.
pub fn private_folder() -> Result<TempDir> {
    const LONGEST: usize = 40;
    let usual = std::env::temp_dir();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./".contains(byte);
    let bytes = usual.as_os_str().as_encoded_bytes();
    let parent = match usual.is_absolute() && bytes.len() <= LONGEST && bytes.iter().all(is_plain) {
        true => usual,
        false => PathBuf::from("/tmp"),
    };
    let made = tempfile::Builder::new()
        .prefix("vmsnap-files-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&parent);
    made.map_err(|error| HostError::io("create a folder in", &parent, error))
}

/// Checks that `guestfish` is installed.
///
/// # Errors
/// `guestfish` is not installed.
pub fn check_installed() -> Result<()> {
    match qemu::is_installed(PROGRAM) {
        true => Ok(()),
        false => Err(qemu::missing(PROGRAM)),
    }
}

impl<'a> Guestfish<'a> {
    /// Starts `guestfish` and its virtual machine.
    ///
    /// If the machine does not start, it is started again without KVM, because KVM within a virtual
    /// machine may exist but not work. This is not done if the user has set
    /// `LIBGUESTFS_BACKEND_SETTINGS`.
    ///
    /// # Errors
    /// It is not installed, or the machine cannot be started.
    pub fn start(setup: Setup<'a>) -> Result<Guestfish<'a>> {
        let has_chosen = std::env::var_os(SETTINGS).is_some();
        Guestfish::start_machine(setup, PROGRAM, has_chosen)
    }

    fn start_machine(setup: Setup<'a>, program: &'static str, has_chosen: bool) -> Result<Guestfish<'a>> {
        let message = match Guestfish::try_start(setup, program, None)? {
            Ok(fish) => return Ok(fish),
            Err(message) => message,
        };
        if !has_chosen && let Ok(mut fish) = Guestfish::try_start(setup, program, Some(FORCE_TCG))? {
            fish.without_kvm = Some(message);
            return Ok(fish);
        }
        Err(HostError::Appliance { message })
    }

    /// The inner error is the message of a machine that did not start.
    fn try_start(
        setup: Setup<'a>,
        program: &'static str,
        settings: Option<&str>,
    ) -> Result<std::result::Result<Guestfish<'a>, String>> {
        let mut fish = Guestfish::start_program(setup, program, settings)?;
        match fish.launch() {
            Err(HostError::Program { message, .. }) => Ok(Err(message)),
            Err(error) => Err(error),
            Ok(()) => Ok(Ok(fish)),
        }
    }

    /// Adds the disks, and starts the machine.
    fn launch(&mut self) -> Result<()> {
        let server = [b"server:unix:", self.setup.socket.as_os_str().as_encoded_bytes()].concat();
        for disk in self.setup.disks {
            // Without its format, QEMU would look for an image header in the guest's bytes.
            let words: [&[u8]; 6] = [
                b"add-drive",
                disk.as_bytes(),
                b"readonly:true",
                b"format:raw",
                b"protocol:nbd",
                &server,
            ];
            self.ask(&words)?;
        }
        self.ask(&[b"run"]).map(drop)
    }

    /// The reason why the machine did not start with KVM, if it therefore runs without KVM.
    pub fn without_kvm(&self) -> Option<&str> {
        self.without_kvm.as_deref()
    }

    /// Starts this program as `guestfish`, with these settings of its backend.
    fn start_program(
        setup: Setup<'a>,
        program: &'static str,
        settings: Option<&str>,
    ) -> Result<Guestfish<'a>> {
        let pipe_path = setup.folder.join("data");
        let pipe =
            make_pipe(&pipe_path).map_err(|errno| HostError::io("create", &pipe_path, errno.into()))?;
        let mut command = qemu::command(program, &["--ro".into()]);
        command
            // The machine is a child of guestfish, and needs no libvirtd.
            .env("LIBGUESTFS_BACKEND", "direct")
            .env("LIBGUESTFS_TMPDIR", setup.folder)
            .env("XDG_RUNTIME_DIR", setup.folder)
            // It would read its settings there, and keep a history of commands.
            .env("HOME", setup.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(settings) = settings {
            command.env(SETTINGS, settings);
        }
        let (mut child, parent) = qemu::start_tied(command, program, Signal::KILL)?;
        let complaints = drain(child.stderr.take(), COMPLAINT_LIMIT);
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| no_pipe(program))?;
        let mut fish = Guestfish {
            setup,
            child,
            status: None,
            _parent: parent,
            input,
            output,
            complaints,
            heard: Vec::new(),
            question: 0,
            pipe: Some(pipe),
            pipe_path,
            last_news: Instant::now(),
            last_progress: 0,
            without_kvm: None,
        };
        fish.do_not_block()?;
        Ok(fish)
    }

    fn do_not_block(&mut self) -> Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.output);
        let set = flags.and_then(|flags| rustix::fs::fcntl_setfl(&self.output, flags | OFlags::NONBLOCK));
        set.map_err(|errno| failed(PROGRAM, "be started", io::Error::from(errno).to_string()))
    }

    /// Runs a command and returns what it prints, without the last line end.
    ///
    /// # Errors
    /// The command failed, which also ends `guestfish`.
    pub fn ask(&mut self, words: &[&[u8]]) -> Result<Vec<u8>> {
        self.send(&[Line::of(words)?])?;
        self.answer(words)
    }

    /// Runs a command that may fail. If it fails, the answer is empty.
    ///
    /// # Errors
    /// Only failures of `guestfish` itself.
    pub fn try_ask(&mut self, words: &[&[u8]]) -> Result<Vec<u8>> {
        self.send(&[Line::that_may_fail(words)?])?;
        self.answer(words)
    }

    /// Runs the same command for several paths, and returns all that is printed.
    ///
    /// # Errors
    /// The errors of [`Guestfish::ask`]; also if the answers are too long.
    pub fn ask_for_each(&mut self, command: &str, paths: &[Vec<u8>]) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut lines: Vec<Line> = Vec::new();
        let mut rest = paths.iter().peekable();
        while let Some(path) = rest.next() {
            lines.push(Line::of(&[command.as_bytes(), path])?);
            let bytes: usize = lines.iter().map(Line::len).sum();
            let is_full = lines.len() == BATCH || bytes > BATCH_BYTES - words::LONGEST;
            if is_full || rest.peek().is_none() {
                self.send(&std::mem::take(&mut lines))?;
                all.extend(self.answer(&[command.as_bytes()])?);
                all.push(b'\n');
            }
            if all.len() > ANSWER_LIMIT {
                return Err(too_much(command));
            }
        }
        Ok(all)
    }

    /// Runs a command that writes to a file. The path of the file is passed between the words of
    /// `command` and `more`. `read` reads the content of the file from the beginning.
    ///
    /// # Errors
    /// The command failed, and `read` got an error too. An error of `read` itself is returned as
    /// the inner error.
    pub fn receive<T>(
        &mut self,
        command: &[&[u8]],
        more: &[&[u8]],
        read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
    ) -> Result<io::Result<T>> {
        let path = self.pipe_path.as_os_str().as_encoded_bytes().to_owned();
        let words = [command, &[&path[..]], more].concat();
        self.send(&[Line::of(&words)?])?;
        data::receive(self, command, read)
    }

    /// Ends `guestfish` and its machine, after all commands succeeded.
    ///
    /// # Errors
    /// `guestfish` reports a failure.
    pub fn end(mut self) -> Result<()> {
        self.input = None;
        wait::until(ENDING, STEP, || {
            (processes::has_ended(&self.child) || self.setup.stop.requested()).then_some(())
        });
        let is_late = !processes::has_ended(&self.child);
        match self.ended() {
            _ if self.setup.stop.requested() => Err(HostError::Stopped),
            Ok(status) if status.success() => Ok(()),
            _ if is_late => {
                let what = format!("it was still at work after {} s", ENDING.as_secs());
                Err(failed(PROGRAM, "end", what))
            }
            Ok(status) => Err(failed(PROGRAM, "end", self.complaint(status))),
            Err(error) => Err(failed(PROGRAM, "end", error.to_string())),
        }
    }

    /// Ends it, unless it has ended, with everything that it started.
    fn ended(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        self.input = None;
        // A guestfish that waits for a reader of the pipe fails then.
        self.pipe = None;
        let status = processes::end(&mut self.child)?;
        self.status = Some(status);
        Ok(status)
    }

    /// What it has printed on its error output; without anything, its exit status.
    fn complaint(&self, status: ExitStatus) -> String {
        // Its end is there as soon as everything that it started has ended.
        let said = self.complaints.recv_timeout(LOOK * 20).unwrap_or_default();
        complaint(&answers::said(&said), status)
    }

    /// Sends commands, and one that prints the line after the answer.
    fn send(&mut self, lines: &[Line]) -> Result<()> {
        self.question += 1;
        let mut text = Vec::new();
        for line in lines {
            text.extend_from_slice(line.bytes());
        }
        let end = self.end_line();
        text.extend_from_slice(b"echo ");
        text.extend_from_slice(end.as_bytes());
        text.push(b'\n');
        self.heard.clear();
        self.last_news = Instant::now();
        let Some(input) = self.input.as_mut() else {
            return Err(no_pipe(PROGRAM));
        };
        // If guestfish has ended, the wait for the answer reports why.
        let _ = input.write_all(&text).and_then(|()| input.flush());
        Ok(())
    }

    /// The line after the current answer.
    fn end_line(&self) -> String {
        format!("vmsnap-{:016x}-{}", self.setup.random, self.question)
    }

    /// Waits for the end of the answer.
    fn answer(&mut self, words: &[&[u8]]) -> Result<Vec<u8>> {
        while self.look(words)? == News::Waiting {
            self.wait_for_news(None)?;
        }
        let mut answer = std::mem::take(&mut self.heard);
        if answer.last() == Some(&b'\n') {
            answer.pop();
        }
        Ok(answer)
    }

    /// Takes what has been printed. Does not wait.
    fn look(&mut self, words: &[&[u8]]) -> Result<News> {
        let operation = || {
            format!(
                "run '{}'",
                String::from_utf8_lossy(words.first().unwrap_or(&&b""[..]))
            )
        };
        loop {
            let mut piece = [0; 16 << 10];
            match self.output.read(&mut piece) {
                Ok(0) => return Err(self.failure(&operation())),
                Ok(length) => {
                    self.heard.extend_from_slice(&piece[..length]);
                    self.last_news = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(failed(PROGRAM, &operation(), error.to_string())),
            }
            if self.heard.len() > ANSWER_LIMIT {
                return Err(too_much(&operation()));
            }
        }
        if let Some(rest) = answers::before_line(&self.heard, self.end_line().as_bytes()) {
            self.heard.truncate(rest);
            return Ok(News::Answered);
        }
        self.check_limits(&operation())?;
        Ok(News::Waiting)
    }

    /// Checks for a stop, and for a silence that is too long.
    fn check_limits(&mut self, operation: &str) -> Result<()> {
        if self.setup.stop.requested() {
            return Err(HostError::Stopped);
        }
        let progress = (self.setup.progress)();
        if progress != self.last_progress {
            self.last_progress = progress;
            self.last_news = Instant::now();
        }
        if self.last_news.elapsed() < self.setup.silence {
            return Ok(());
        }
        let seconds = self.setup.silence.as_secs();
        let what = format!("it neither answered nor read anything for {seconds} s");
        Err(failed(PROGRAM, operation, what))
    }

    /// Waits a moment for output or, if a pipe is given, for data in it.
    #[allow(clippy::disallowed_methods, reason = "it waits for pipes")]
    fn wait_for_news(&self, pipe: Option<BorrowedFd<'_>>) -> Result<()> {
        let slice = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.subsec_nanos().into(),
        };
        let mut polled = vec![PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::IN)];
        polled.extend(pipe.map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)));
        match poll(&mut polled, Some(&slice)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(failed(PROGRAM, "be read", io::Error::from(errno).to_string())),
        }
    }

    /// Why it has ended before it answered.
    fn failure(&mut self, operation: &str) -> HostError {
        wait::until(ENDING, STEP, || processes::has_ended(&self.child).then_some(()));
        let is_late = !processes::has_ended(&self.child);
        let message = match self.ended() {
            _ if self.setup.stop.requested() => return HostError::Stopped,
            _ if is_late => "it closed its output, but did not end".to_owned(),
            Ok(status) => self.complaint(status),
            Err(error) => error.to_string(),
        };
        failed(PROGRAM, operation, message)
    }
}

impl Drop for Guestfish<'_> {
    fn drop(&mut self) {
        // There is nobody to report a failure to.
        let _ = self.ended();
    }
}

/// Creates a named pipe and opens both of its ends, so that neither waits for the other.
fn make_pipe(path: &Path) -> rustix::io::Result<OwnedFd> {
    // An earlier attempt may have made it.
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn no_pipe(program: &str) -> HostError {
    failed(program, "be started", "it has no standard input or output")
}

fn too_much(operation: &str) -> HostError {
    let what = format!("the answer is longer than {} MiB", ANSWER_LIMIT >> 20);
    failed(PROGRAM, operation, what)
}

#[cfg(test)]
mod tests;
