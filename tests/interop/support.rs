//! Runs other programs, and measures memory.

#![allow(clippy::disallowed_methods, reason = "tests start programs and wait for them")]

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A folder that is removed at the end of the test.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("vmsnap-interop-")
        .tempdir()
        .expect("a temporary folder")
}

/// Runs a program to its end and returns its standard output. A missing or failing program fails
/// the test.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> String {
    run_with_input(program, arguments, "")
}

/// Runs a program as `run` does, with text on its standard input.
pub fn run_with_input<A: AsRef<OsStr>>(program: &str, arguments: &[A], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    // A thread feeds the input: a program that writes before it has read everything must not block.
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().expect("it ends");
    feeder.join().expect("no panic");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} failed: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs qemu-io commands on an image. Most failures of qemu-io appear only in its output.
pub fn qemu_io(image: &Path, format: &str, commands: &[String]) {
    let mut script = commands.join("\n");
    script.push_str("\nquit\n");
    let arguments = [
        "-f",
        format,
        "-t",
        "unsafe",
        "-d",
        "unmap",
        image.to_str().expect("a plain path"),
    ];
    let output = run_with_input("qemu-io", &arguments, &script);
    assert!(
        !output.contains("failed") && !output.contains("invalid"),
        "qemu-io: {output}"
    );
}

/// A server on a unix socket, killed when dropped.
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts qemu-nbd, read-only, for up to 8 clients.
    pub fn qemu_nbd(folder: &Path, image: &Path, format: &str, arguments: &[&str]) -> Self {
        let socket = folder.join("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command.args(["--read-only", "--persistent", "--shared=8", "-f", format, "-k"]);
        command.arg(&socket).args(arguments).arg(image);
        Self::start(command, socket)
    }

    /// Starts nbdkit with these filters, plugin and parameters.
    pub fn nbdkit(folder: &Path, arguments: &[&str]) -> Self {
        let socket = folder.join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command.args(["--exit-with-parent", "--foreground", "--readonly", "-U"]);
        command.arg(&socket).args(arguments);
        Self::start(command, socket)
    }

    /// Starts the server and waits until it accepts connections.
    fn start(mut command: Command, socket: PathBuf) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = socket.with_extension("log");
        let child = command
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a log"))
            .spawn()
            .unwrap_or_else(|error| panic!("{program} must be installed: {error}"));
        let mut server = Server { child, socket };
        let begin = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            let ended = server.child.try_wait().expect("a child");
            let words = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "{program} ended by itself: {}", words());
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{program} does not listen"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The number of pages of memory that the kernel has given to the server so far.
    pub fn page_faults(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).expect("it runs");
        // Field 10 in proc_pid_stat(5). Field 2, the name, may contain blanks, so counting starts
        // after it.
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        let faults = fields.split(' ').nth(7).expect("a field");
        faults.parse().expect("a number")
    }

    /// Kills the server immediately.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether this is the separate process in which a test measures its memory, since a peak belongs
/// to a whole process. Otherwise runs the test in such a process, where it has to succeed.
pub fn is_alone(test: &str) -> bool {
    const ALONE: &str = "VMSNAP_TEST_RUNS_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let itself = std::env::current_exe().expect("the test's own program");
    let status = Command::new(itself)
        .args(["--exact", test])
        .env(ALONE, "1")
        .status();
    assert!(status.expect("it starts").success(), "the child failed");
    false
}

/// A field of `/proc/self/status`, in KiB.
pub fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .expect("the field");
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .expect("a number")
}
