//! Runs programs once and measures them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use wait4::Wait4;

/// Clock ticks in a second, as procfs counts them (`USER_HZ`): 100 wherever KVM runs.
const TICKS: u64 = 100;

/// The time between two looks at a program's memory.
const GLANCE: Duration = Duration::from_millis(5);

/// The measurements of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Time from the start until all output is on stable storage.
    pub wall: Duration,
    /// Processor time of the program and of the child processes that it waited for.
    pub cpu: Duration,
    /// Processor time of the domain's QEMU during the run.
    pub qemu_cpu: Duration,
    /// Largest resident memory of one of its processes, in bytes.
    pub peak: u64,
    /// Disk space of the output, in bytes.
    pub written: u64,
}

/// Lets Ctrl-C end the running program first. The benchmark then ends and removes its domains.
pub fn end_children_first() {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop()).expect("a handler can be set");
    }
}

fn stop() -> Arc<AtomicBool> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    Arc::clone(STOP.get_or_init(Arc::default))
}

/// Runs programs one after the other and syncs their output in the folder `output`. They must
/// succeed. `qemu` is the process id of the domain's QEMU.
pub fn run(commands: Vec<Command>, qemu: Option<u32>, output: &Path) -> Sample {
    let qemu_before = qemu.map(cpu_of).unwrap_or_default();
    let mut sample = Sample::default();
    let start = Instant::now();
    for command in commands {
        run_one(command, output, &mut sample);
    }
    let files = files_below(output);
    for file in &files {
        File::open(file)
            .and_then(|file| file.sync_all())
            .expect("what was written can be synced");
    }
    sample.wall = start.elapsed();
    sample.qemu_cpu = qemu.map(cpu_of).unwrap_or_default().saturating_sub(qemu_before);
    sample.written = written(output);
    sample
}

fn run_one(mut command: Command, output: &Path, sample: &mut Sample) {
    let said = output.with_extension("said");
    let log = File::create(&said).expect("the folder is ours");
    let second = log.try_clone().expect("a second handle");
    command.stdin(Stdio::null()).stdout(log).stderr(second);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = child.id();
    let has_ended = AtomicBool::new(false);
    let (used, own_peak) = thread::scope(|scope| {
        let peak = scope.spawn(|| peak_of(pid, &has_ended));
        let used = child.wait4().expect("a child can be waited for");
        has_ended.store(true, Ordering::SeqCst);
        (used, peak.join().expect("no panic"))
    });
    // What the kernel reports includes the memory of this program, which the child shares until it
    // starts its own program.
    let ours = high_water(std::process::id()).unwrap_or(0);
    let peak = match used.rusage.maxrss > ours {
        true => used.rusage.maxrss,
        false => own_peak,
    };
    assert!(!stop().load(Ordering::SeqCst), "stopped");
    assert!(
        used.status.success(),
        "{command:?} failed: {}",
        fs::read_to_string(&said).unwrap_or_default()
    );
    sample.cpu += used.rusage.utime + used.rusage.stime;
    sample.peak = sample.peak.max(peak);
}

/// The largest resident memory of a process until it ends, in bytes, as often as it can be looked
/// at.
fn peak_of(pid: u32, has_ended: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !has_ended.load(Ordering::SeqCst) {
        peak = high_water(pid).unwrap_or(0).max(peak);
        thread::sleep(GLANCE);
    }
    peak
}

/// The largest resident memory of a running process so far, in bytes.
fn high_water(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Processor time that a running process has used so far.
fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc(5). The second field, the name, may contain blanks.
    let fields = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' '))
        .into_iter()
        .flatten();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Disk space of the files below a folder, in bytes.
pub fn written(folder: &Path) -> u64 {
    files_below(folder).iter().map(|file| on_disk(file)).sum()
}

/// All files below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(files_below(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}

fn on_disk(file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(file).map_or(0, |metadata| metadata.blocks() * 512)
}
