//! Shows on stderr how the work is getting on: a bar per disk on a terminal, a line per 10 % or 30 s otherwise.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::pretty;
use crate::model::text::shown;
use crate::ops::{Event, Monitor};

/// Percent between two lines.
const STEP: u64 = 10;

/// Time after which a line comes in any case.
const PAUSE: Duration = Duration::from_secs(30);

/// The monitor of the terminal.
pub struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
    disks: Mutex<HashMap<String, Disk>>,
}

struct Disk {
    bar: Option<ProgressBar>,
    size: u64,
    next_percent: u64,
    last_line: Instant,
}

impl Progress {
    /// Bars where stderr is a terminal, lines elsewhere, only findings when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));
        Progress {
            bars,
            quiet,
            disks: Mutex::default(),
        }
    }

    fn disks(&self) -> MutexGuard<'_, HashMap<String, Disk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line, above the bars if there are any.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| super::tell(text)),
            None => super::tell(text),
        }
    }

    fn begin(&self, key: String, label: String, size: u64, what: &str) {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} % {msg}");
            let bar = ProgressBar::new(size.max(1));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bars.add(bar.with_prefix(label.clone()))
        });
        if bar.is_none() && !self.quiet {
            self.line(&format!("{label}: {what}"));
        }
        let disk = Disk {
            bar,
            size,
            next_percent: STEP,
            last_line: Instant::now(),
        };
        self.disks().insert(key, disk);
    }

    fn advance(&self, key: &str, label: &str, position: u64, copied: u64) {
        let mut disks = self.disks();
        let Some(disk) = disks.get_mut(key) else { return };
        if let Some(bar) = &disk.bar {
            bar.set_message(pretty::bytes(copied));
            bar.set_position(position);
            return;
        }
        let percent = u64::try_from(u128::from(position) * 100 / u128::from(disk.size.max(1))).unwrap_or(100);
        let is_due = percent >= disk.next_percent || disk.last_line.elapsed() >= PAUSE;
        if self.quiet || !is_due || percent >= 100 {
            return;
        }
        disk.next_percent = percent / STEP * STEP + STEP;
        disk.last_line = Instant::now();
        drop(disks);
        self.line(&format!("{label}: {percent} %, {} copied", pretty::bytes(copied)));
    }

    fn end(&self, key: &str, label: &str, copied: u64) {
        let Some(disk) = self.disks().remove(key) else {
            return;
        };
        match disk.bar {
            Some(bar) => bar.finish_and_clear(),
            None if self.quiet => {}
            None => self.line(&format!("{label}: done, {} copied", pretty::bytes(copied))),
        }
    }
}

impl Monitor for Progress {
    fn event(&self, event: Event<'_>) {
        let key = |domain: &str, disk: &str| format!("{domain}/{disk}");
        let label = |domain: &str, disk: &str| format!("{} {disk}", shown(domain));
        match event {
            Event::Step { .. } => {}
            Event::DiskBegins {
                domain,
                disk,
                level,
                reason,
                size,
            } => {
                let what = match level {
                    Some(level) => format!("{}, {reason}", level.word()),
                    None => pretty::bytes(size),
                };
                self.begin(key(domain, disk), label(domain, disk), size, &what);
            }
            Event::DiskAt {
                domain,
                disk,
                position,
                copied,
            } => self.advance(&key(domain, disk), &label(domain, disk), position, copied),
            Event::DiskEnds { domain, disk, copied } => {
                self.end(&key(domain, disk), &label(domain, disk), copied)
            }
            Event::Found { domain, finding } => {
                self.line(&format!("{}: note: {}", shown(domain), finding.message));
            }
        }
    }
}
