//! Runs `qemu-img` and `qemu-nbd`. Of other programs vmsnap starts only `fusermount3` and
//! `guestfish`.
//!
//! `qemu-nbd` offers the disks of shut-off domains, and writes to those that are restored in place.
//! `qemu-img` inspects images, and changes the bitmaps of shut-off domains.
//!
//! Arguments never pass through a shell. Every image is opened by a description that names the
//! format of each of its layers (`crate::host::chain`). QEMU therefore never takes data that a
//! guest wrote to a raw disk for an image header.

mod in_use;
mod keys;
mod reader;

pub use keys::Keys;

pub(crate) use reader::end_stray_reader;
pub(super) use reader::start_tied;
pub use reader::{Offer, Reader, pid_file};

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::{HostError, Refusal, Result};
use crate::model::stop::WaitLimit;
use crate::wait;

/// How much of a program's output is kept, in bytes. `qemu-img info` prints about 2 MiB for a chain
/// of 1200 images.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// How much of a program's error output is kept, in bytes.
const COMPLAINT_LIMIT: u64 = 16 << 10;

/// How often a waiting loop checks whether the user asked to stop.
const LOOK: Duration = Duration::from_millis(100);

#[allow(clippy::disallowed_methods, reason = "the one home of child processes")]
pub(super) fn command(program: &str, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    // Keeps the terminal's Ctrl-C from the child: vmsnap ends its children itself, in its own
    // order.
    command.process_group(0);
    command
}

fn start(mut command: Command, program: &str) -> Result<Child> {
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => missing(program),
        _ => failed(program, "be started", error.to_string()),
    })
}

/// The error about a program that is not installed, with the names of its packages.
pub(super) fn missing(program: &str) -> HostError {
    let package = match program {
        "guestfish" => "libguestfs-tools (Debian) or libguestfs (Fedora)",
        _ => "qemu-utils (Debian) or qemu-img (Fedora)",
    };
    HostError::MissingProgram {
        program: program.to_owned(),
        package: package.to_owned(),
    }
}

/// Returns whether `PATH` has an executable program of this name.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |file: PathBuf| {
        let found = file.metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path).any(|folder| is_program(folder.join(program)))
}

pub(super) fn failed(program: &str, operation: &str, message: impl Into<String>) -> HostError {
    HostError::Program {
        program: program.to_owned(),
        operation: operation.to_owned(),
        message: message.into(),
    }
}

/// Reads a child's stream to its end and keeps the first `limit` bytes.
///
/// A separate thread reads, so the child never blocks on a full pipe.
pub(super) fn drain(stream: Option<impl Read + Send + 'static>, limit: u64) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut stream) = stream {
            // A read error is treated like the end of the stream: the exit status shows the result.
            let _ = stream.by_ref().take(limit).read_to_end(&mut kept);
            let _ = io::copy(&mut stream, &mut io::sink());
        }
        // The receiver is gone if the caller no longer needs the output.
        let _ = sender.send(kept);
    });
    receiver
}

/// Replaces an error about QEMU's lock on the image by an error that names the image's users.
fn explained(error: HostError, image: &Target) -> HostError {
    match error {
        HostError::Program { message, .. } if tells_of_lock(&message) => HostError::ImageInUse {
            image: image.shown.clone(),
            users: in_use::users(&image.files()),
        },
        error => error,
    }
}

/// Recognizes QEMU's messages about locks: `Failed to get shared "write" lock`, or a failure to
/// lock a byte.
fn tells_of_lock(message: &str) -> bool {
    message.contains(" lock")
}

/// Runs `qemu-img` to its end and returns its output.
fn qemu_img(operation: &str, arguments: &[OsString], limit: &WaitLimit) -> Result<Vec<u8>> {
    const PROGRAM: &str = "qemu-img";
    let mut command = command(PROGRAM, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(command, PROGRAM)?;
    let output = drain(child.stdout.take(), OUTPUT_LIMIT);
    let complaints = drain(child.stderr.take(), COMPLAINT_LIMIT);
    let finished = wait_for_end(&output, limit);
    if finished.is_err() {
        // The process may have just ended by itself; the wait below succeeds in both cases.
        let _ = child.kill();
    }
    let status = child
        .wait()
        .map_err(|error| failed(PROGRAM, operation, error.to_string()))?;
    let output = finished.map_err(|end| match end {
        Unfinished::Stopped => HostError::Stopped,
        Unfinished::TooLong => failed(
            PROGRAM,
            operation,
            format!("the program did not finish within {} s", limit.deadline.as_secs()),
        ),
    })?;
    if !status.success() {
        let complaints = complaints.recv().unwrap_or_default();
        return Err(failed(PROGRAM, operation, complaint(&complaints, status)));
    }
    Ok(output)
}

enum Unfinished {
    Stopped,
    TooLong,
}

/// Waits until the child closes its output, which happens when it ends.
fn wait_for_end(output: &Receiver<Vec<u8>>, limit: &WaitLimit) -> std::result::Result<Vec<u8>, Unfinished> {
    let started = Instant::now();
    loop {
        match output.recv_timeout(LOOK) {
            Ok(output) => return Ok(output),
            Err(RecvTimeoutError::Disconnected) => return Ok(Vec::new()),
            Err(RecvTimeoutError::Timeout) if limit.stop.requested() => return Err(Unfinished::Stopped),
            Err(RecvTimeoutError::Timeout) if started.elapsed() >= limit.deadline => {
                return Err(Unfinished::TooLong);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Joins the lines of a program's error output; without any, describes its exit status.
pub(super) fn complaint(said: &[u8], status: ExitStatus) -> String {
    let said = String::from_utf8_lossy(said);
    match said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
    {
        silent if silent.is_empty() => status.to_string(),
        said => said,
    }
}

/// An image to be opened by a QEMU program.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its description for QEMU's block layer.
    description: OsString,
    /// Its name in messages.
    shown: String,
    /// The secrets that open it.
    keys: Keys,
}

/// The longest description of an image, in bytes: somewhat less than the kernel's limit for one
/// argument (`MAX_ARG_STRLEN`, 128 KiB).
const LONGEST_DESCRIPTION: usize = 120 << 10;

impl Target {
    /// Creates a target from a description (`BlockdevOptions` in QEMU's `qapi/block-core.json`).
    ///
    /// # Errors
    /// The description is too long for a command line.
    pub fn new(description: &Value, shown: &str, keys: Keys) -> Result<Target> {
        let description = format!("json:{description}");
        if description.len() > LONGEST_DESCRIPTION {
            return Err(Refusal::ChainTooLong {
                image: shown.to_owned(),
            }
            .into());
        }
        Ok(Target {
            description: description.into(),
            shown: shown.to_owned(),
            keys,
        })
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.into_iter().map(OsString::from).collect()
}

/// The properties of an image, from `qemu-img info --output=json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageInfo {
    /// The bitmaps in the image itself.
    pub bitmaps: Vec<ImageBitmap>,
    /// The backing file that its header names, and the recorded format.
    pub backing: Option<(String, Option<String>)>,
    /// The data file that its header names.
    pub data_file: Option<String>,
    /// Whether it is encrypted.
    pub is_encrypted: bool,
}

/// A bitmap in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageBitmap {
    /// Its name.
    pub name: String,
    /// Whether it is complete and records writes: it was closed properly and is loaded when the
    /// image is opened.
    pub sound: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawInfo {
    backing_filename: Option<String>,
    backing_filename_format: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(rename = "format-specific", default)]
    specific: RawSpecific,
}

#[derive(Deserialize, Default)]
struct RawSpecific {
    #[serde(default)]
    data: RawData,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct RawData {
    #[serde(default)]
    bitmaps: Vec<RawBitmap>,
    data_file: Option<String>,
}

#[derive(Deserialize)]
struct RawBitmap {
    name: String,
    flags: Vec<String>,
}

/// How long to wait for a locked image, and how often to try.
///
/// A `qemu-img` that changes an image survives the run that started it, but ends within
/// milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_STEP: Duration = Duration::from_millis(50);

/// Returns whether a QEMU program failed because another process holds QEMU's lock on an image.
pub(crate) fn is_locked(error: &HostError) -> bool {
    match error {
        HostError::ImageInUse { .. } => true,
        HostError::Program { message, .. } => tells_of_lock(message),
        _ => false,
    }
}

/// Repeats the work while another process holds QEMU's lock on the image, for at most
/// [`LOCK_WAIT`].
fn once_unlocked<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = None;
    let done = wait::until(LOCK_WAIT, LOCK_STEP, || match work() {
        Err(error) if is_locked(&error) => {
            last = Some(error);
            None
        }
        done => Some(done),
    });
    match (done, last) {
        (Some(done), _) => done,
        (None, Some(error)) => Err(error),
        // Never reached: the work runs at least once.
        (None, None) => work(),
    }
}

/// Whether a running domain uses the image that is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// No domain uses it. If the image is locked, vmsnap waits for a few seconds and then fails.
    None,
    /// A running domain uses it. The image is read despite QEMU's lock, so the answer may be out of
    /// date: QEMU writes most changes only when it closes the image.
    Running,
}

/// Reads the properties of an image.
pub(crate) fn image_info(image: &Target, used: Use, limit: &WaitLimit) -> Result<ImageInfo> {
    let operation = format!("inspect {}", image.shown);
    let mut arguments = words(["info", "--output=json"]);
    if used == Use::Running {
        arguments.push("--force-share".into());
    }
    arguments.extend(image.arguments());
    let run = || qemu_img(&operation, &arguments, limit);
    let output = match used {
        Use::None => once_unlocked(run).map_err(|error| explained(error, image))?,
        Use::Running => run()?,
    };
    parse_info(&output).map_err(|error| failed("qemu-img", &operation, error.to_string()))
}

fn parse_info(json: &[u8]) -> serde_json::Result<ImageInfo> {
    let raw: RawInfo = serde_json::from_slice(json)?;
    let bitmap = |raw: RawBitmap| {
        let has = |flag: &str| raw.flags.iter().any(|given| given == flag);
        ImageBitmap {
            // "in-use": QEMU was killed while the bitmap was open. Without "auto" it does not
            // record.
            sound: has("auto") && !has("in-use"),
            name: raw.name,
        }
    };
    let format = raw.backing_filename_format;
    Ok(ImageInfo {
        bitmaps: raw.specific.data.bitmaps.into_iter().map(bitmap).collect(),
        backing: raw.backing_filename.map(|name| (name, format)),
        data_file: raw.specific.data.data_file,
        is_encrypted: raw.encrypted,
    })
}

/// Adds a bitmap to a qcow2 image. It records from the next time the image is opened for writing.
pub fn add_bitmap(image: &Target, name: &str, limit: &WaitLimit) -> Result<()> {
    edit_bitmap("--add", "add a bitmap to", image, name, limit)
}

/// Removes a sound or broken bitmap from a qcow2 image.
pub fn remove_bitmap(image: &Target, name: &str, limit: &WaitLimit) -> Result<()> {
    edit_bitmap("--remove", "remove a bitmap from", image, name, limit)
}

fn edit_bitmap(action: &str, verb: &str, image: &Target, name: &str, limit: &WaitLimit) -> Result<()> {
    let mut arguments = words(["bitmap", action]);
    arguments.extend(image.arguments());
    arguments.push(name.into());
    let edited = qemu_img(&format!("{verb} {}", image.shown), &arguments, limit);
    edited.map(drop).map_err(|error| explained(error, image))
}

impl Target {
    /// Lists the files of the image and of its backing chain.
    fn files(&self) -> Vec<PathBuf> {
        let text = self.description.to_string_lossy();
        let description = serde_json::from_str(text.trim_start_matches("json:"));
        let mut found = Vec::new();
        collect_files(&description.unwrap_or(Value::Null), &mut found);
        found
    }

    /// Returns the arguments for the secrets and the image. They follow all switches of a command.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = self.keys.arguments();
        arguments.push("--".into());
        arguments.push(self.description.clone());
        arguments
    }
}

fn collect_files(node: &Value, found: &mut Vec<PathBuf>) {
    let Some(node) = node.as_object() else {
        return;
    };
    for (key, value) in node {
        match value.as_str() {
            Some(path) if key == "filename" => found.push(path.into()),
            _ => collect_files(value, found),
        }
    }
}

#[cfg(test)]
mod tests;
