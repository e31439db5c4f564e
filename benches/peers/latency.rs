//! The latency of a guest's writes while its disk is backed up.
//!
//! The domain is paused. A thread starts writes of a cluster on the domain's own device, at random
//! places and a fixed rate, and QEMU counts how long each takes until it is done
//! (`block-latency-histogram-set`). So neither the monitor nor libvirt is part of the times.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmsnap::model::block::CLUSTER;

use crate::disk::Fill;
use crate::domain::{Device, Source};
use crate::process::{COMMAND_DEADLINE, wait_until};
use crate::tools::{self, Tool};
use crate::work::{Bench, GIB, full_backup, new_folder, remove};

/// The time between the starts of two writes.
const PACE: Duration = Duration::from_millis(2);
/// The least number of writes in a round: backups are repeated until there are as many.
const WRITES: u64 = 1500;
/// How long writes without a backup are measured at a time.
const ALONE: Duration = Duration::from_secs(5);
/// The bounds of the histogram, in nanoseconds: from 10 µs to 10 s, each 5 % above the one before.
const FIRST: f64 = 1e4;
const LAST: f64 = 1e10;
const STEP: f64 = 1.05;
/// A prime number, so that each cluster is written once before any is written again.
const STRIDE: u64 = 40_009;

/// The latencies of one program's runs.
struct Row {
    name: &'static str,
    /// How many writes took less than each bound, and not less than the one before; the last
    /// number is that of writes that took longer.
    counts: Vec<u64>,
}

/// The latencies with each program.
pub struct Latencies {
    title: String,
    bounds: Vec<u64>,
    rows: Vec<Row>,
}

/// Measures writes without a backup, and during a full backup by each program.
pub fn measure(bench: &Bench) -> Latencies {
    let size = bench.gib * GIB;
    let source = Source::start_uncached(&bench.daemon, "latency", size, Fill::Random);
    let tools = Tool::installed([Tool::Vmsnap, Tool::Virtnbdbackup]);
    let names = tools.iter().map(|tool| tool.name());
    let bounds = bounds();
    let mut found = Latencies {
        title: format!(
            "latency: writes of 64 KiB by the guest during a full backup of {} GiB of incompressible data",
            bench.gib
        ),
        rows: ["no backup"].into_iter().chain(names).map(Row::new).collect(),
        bounds: bounds.clone(),
    };
    for turn in bench.turns(found.rows.len()) {
        let row = &mut found.rows[turn];
        let before = row.writes();
        while row.writes() < before + WRITES {
            row.add(&counted(&source, &bounds, || match turn.checked_sub(1) {
                None => thread::sleep(ALONE),
                Some(tool) => back_up(tools[tool], &source),
            }));
            // The next backup is full too.
            tools::vmsnap_scrub(&source);
        }
        eprintln!("  {}: {} writes", row.name, row.writes() - before);
    }
    found
}

fn back_up(tool: Tool, source: &Source) {
    let output = new_folder(source, "output");
    full_backup(tool, source, &output);
    source.wait_until_idle();
    remove(&output);
}

/// Starts writes as long as `work` runs, and returns how many took how long.
fn counted(source: &Source, bounds: &[u64], work: impl FnOnce()) -> Vec<u64> {
    let device = source.device();
    device.ask(&json!({
        "execute": "block-latency-histogram-set",
        "arguments": { "id": Device::PATH, "boundaries-write": bounds },
    }));
    let is_over = AtomicBool::new(false);
    let started = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(source, &is_over));
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_over.store(true, Ordering::Relaxed);
        let started = writer.join().expect("the writer does not panic");
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        started
    });
    let mut counts = Vec::new();
    let are_done = || {
        counts = histogram(&device);
        counts.iter().sum::<u64>() >= started
    };
    assert!(wait_until(COMMAND_DEADLINE, are_done), "a write does not end");
    counts
}

/// Starts a write at each tick, and returns how many it has started.
fn write_until(source: &Source, is_over: &AtomicBool) -> u64 {
    let device = source.device();
    let clusters = source.size / CLUSTER;
    let mut started = 0;
    let mut next = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        let offset = started * STRIDE % clusters * CLUSTER;
        let byte = started % 250 + 1;
        device.run(&format!("aio_write -q -P {byte} {offset} {CLUSTER}"));
        started += 1;
        next = (next + PACE).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    started
}

/// The counts of the histogram of writes.
fn histogram(device: &Device) -> Vec<u64> {
    let answer = device.ask(&json!({ "execute": "query-blockstats" }));
    let mut all = answer.as_array().into_iter().flatten();
    let of_disk = all.find(|one| one["qdev"] == Device::PATH);
    let bins = of_disk.and_then(|one| one["stats"]["wr_latency_histogram"]["bins"].as_array());
    let bins = bins.unwrap_or_else(|| panic!("QEMU counts no writes: {answer}"));
    bins.iter().filter_map(Value::as_u64).collect()
}

fn bounds() -> Vec<u64> {
    let bounds = std::iter::successors(Some(FIRST), |bound| Some(bound * STEP));
    bounds
        .take_while(|bound| *bound <= LAST)
        .map(|bound| bound as u64)
        .collect()
}

impl Row {
    fn new(name: &'static str) -> Row {
        Row {
            name,
            counts: Vec::new(),
        }
    }

    fn add(&mut self, counts: &[u64]) {
        self.counts.resize(counts.len(), 0);
        for (sum, count) in self.counts.iter_mut().zip(counts) {
            *sum += count;
        }
    }

    fn writes(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The bound below which this part of the writes lies, in milliseconds.
    fn quantile(&self, part: f64, bounds: &[u64]) -> f64 {
        let wanted = (self.writes() as f64 * part).ceil() as u64;
        let mut sum = 0;
        let place = self.counts.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        let bound = place.and_then(|place| bounds.get(place));
        bound.map_or(f64::INFINITY, |bound| *bound as f64 / 1e6)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        writeln!(f, "| backup by | writes | median, ms | 99th percentile, ms |")?;
        writeln!(f, "|---|---|---|---|")?;
        for row in &self.rows {
            let [median, high] = [0.5, 0.99].map(|part| row.quantile(part, &self.bounds));
            writeln!(f, "| {} | {} | {median:.2} | {high:.2} |", row.name, row.writes())?;
        }
        Ok(())
    }
}
