//! Child processes of the tests, each with a deadline, and waiting for events in other processes.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The time limit of an ordinary command.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// The longest pause between two polls. Polling begins with the shortest one.
const LONGEST_POLL: Duration = Duration::from_millis(20);
const SHORTEST_POLL: Duration = Duration::from_millis(1);

/// The result of a command.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Whether it ended with 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// A command to be run by [`run`] or [`try_run`].
pub fn command<A: AsRef<std::ffi::OsStr>>(program: impl AsRef<std::ffi::OsStr>, args: &[A]) -> Command {
    let mut command = Command::new(program);
    // Tests parse messages of libvirt and apt.
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns its standard output. If it fails, panics with all its
/// output.
pub fn run(command: Command) -> String {
    let what = format!("{command:?}");
    let finished = try_run(command, COMMAND_DEADLINE);
    assert!(finished.ok(), "{what} failed: {finished:#?}");
    finished.stdout
}

/// Runs a command to its end and returns the result, even of a failure. Panics if it cannot be
/// started or if the deadline passes.
pub fn try_run(command: Command, deadline: Duration) -> Finished {
    let what = format!("{command:?}");
    let (finished, ended) = run_within(command, deadline);
    assert!(ended, "{what} was not done after {deadline:?}: {finished:#?}");
    finished
}

/// Runs a command to its end, or kills it at the deadline. The second value is `false` if it was
/// killed.
pub fn run_within(mut command: Command, deadline: Duration) -> (Finished, bool) {
    let what = format!("{command:?}");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let ended = wait_until(deadline, || {
        child.try_wait().expect("a child can be waited for").is_some()
    });
    if !ended {
        end(&mut child);
    }
    let status = child.wait().expect("a child can be waited for");
    // A daemon that kept the pipes open would block us here. Daemons that we start get pipes only
    // while they are in the foreground.
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    (
        Finished {
            code: status.code(),
            stdout,
            stderr,
        },
        ended,
    )
}

/// Kills a child and reaps it.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Polls until `done` returns true. Returns `false` if the deadline passes first.
pub fn wait_until(deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut pause = SHORTEST_POLL;
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= deadline {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_POLL);
    }
}

/// Whether a process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state follows the name, which is in parentheses and may contain any character.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

/// The start time of a process in clock ticks after boot. Together with its id it identifies the
/// process.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22 (proc(5)). Field 2, the name in parentheses, is skipped.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// The ids and command lines of living processes whose command line contains `text`.
pub fn processes_with(text: &str) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").expect("/proc is there");
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let lines = pids.filter_map(|pid| Some((pid, command_line(pid)?)));
    lines
        .filter(|(pid, line)| line.contains(text) && is_alive(*pid))
        .collect()
}

/// A process's arguments, separated by blanks.
pub fn command_line(pid: u32) -> Option<String> {
    let bytes = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).ok()?;
    Some(
        String::from_utf8_lossy(&bytes)
            .trim_end_matches('\0')
            .replace('\0', " "),
    )
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // The output before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[test]
fn a_command_gives_its_output_and_its_code() {
    let finished = try_run(
        command("sh", &["-c", "echo out; echo err >&2; exit 3"]),
        COMMAND_DEADLINE,
    );
    assert_eq!(finished.code, Some(3));
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
#[should_panic(expected = "was not done after")]
fn a_command_that_takes_too_long_is_ended() {
    try_run(command("sleep", &["1000"]), Duration::from_millis(50));
}
