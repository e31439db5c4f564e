//! Shows on stderr how the work is getting on: a bar per disk on a terminal, a line per 10 % or 30 s otherwise.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::log::{self, Entry, Level};
use super::pretty;
use crate::model::left_out::DISK_EXCLUDED;
use crate::model::text::shown;
use crate::ops::{Event, Monitor};

/// Percent between two lines, and with `-vv`.
const STEP: u64 = 10;
const SMALL_STEP: u64 = 1;

/// Time after which a line comes in any case.
const PAUSE: Duration = Duration::from_secs(30);

/// A file that is smaller than this is read before a line about it could be, in bytes.
const WORTH_A_LINE: u64 = 64 << 20;

/// The monitor of the terminal.
pub struct Progress {
    bars: Option<MultiProgress>,
    silent: bool,
    /// Percent between two lines.
    step: u64,
    disks: Mutex<HashMap<String, Disk>>,
}

struct Disk {
    bar: Option<ProgressBar>,
    size: u64,
    next_percent: u64,
    begun: Instant,
    last_line: Instant,
}

impl Disk {
    /// So many bytes, and how many of them came in a second.
    fn amount(&self, copied: u64) -> String {
        if copied == 0 {
            return "nothing".to_owned();
        }
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let rate = pretty::bytes((copied as f64 / seconds) as u64);
        format!("{}, {rate}/s", pretty::bytes(copied))
    }
}

impl Progress {
    /// Bars where stderr is a terminal, lines elsewhere; only findings where the user wants quiet.
    pub fn new() -> Self {
        let wants_bars = log::tells(Level::Info) && !log::has_fields() && std::io::stderr().is_terminal();
        let bars = wants_bars.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));
        Progress {
            bars,
            silent: false,
            step: if log::tells(Level::Trace) {
                SMALL_STEP
            } else {
                STEP
            },
            disks: Mutex::default(),
        }
    }

    /// Only findings.
    #[cfg(feature = "libvirt")]
    pub fn silent() -> Self {
        Progress {
            bars: None,
            silent: true,
            ..Progress::new()
        }
    }

    fn disks(&self) -> MutexGuard<'_, HashMap<String, Disk>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells an entry, above the bars if there are any.
    pub fn tell(&self, entry: &Entry<'_>) {
        match &self.bars {
            Some(bars) => bars.suspend(|| log::tell(entry)),
            None => log::tell(entry),
        }
    }

    fn line(&self, (domain, disk): (&str, &str), message: &str) {
        if !self.silent {
            let entry = Entry::of(Level::Info, domain, message);
            self.tell(&Entry {
                disk: Some(disk),
                ..entry
            });
        }
    }

    fn begin(&self, of: (&str, &str), size: u64, what: &str) {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} % {msg}");
            let bar = ProgressBar::new(size.max(1));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bars.add(bar.with_prefix(format!("{} {}", shown(of.0), of.1)))
        });
        if bar.is_none() {
            self.line(of, what);
        }
        let disk = Disk {
            bar,
            size,
            next_percent: self.step,
            begun: Instant::now(),
            last_line: Instant::now(),
        };
        self.disks().insert(key(of), disk);
    }

    fn advance(&self, of: (&str, &str), position: u64, copied: u64, what: &str) {
        let mut disks = self.disks();
        let Some(disk) = disks.get_mut(&key(of)) else {
            return;
        };
        if let Some(bar) = &disk.bar {
            bar.set_message(disk.amount(copied));
            bar.set_position(position);
            return;
        }
        let percent = u64::try_from(u128::from(position) * 100 / u128::from(disk.size.max(1))).unwrap_or(100);
        let is_due = percent >= disk.next_percent || disk.last_line.elapsed() >= PAUSE;
        if !is_due || percent >= 100 {
            return;
        }
        disk.next_percent = percent / self.step * self.step + self.step;
        disk.last_line = Instant::now();
        let amount = disk.amount(copied);
        drop(disks);
        self.line(of, &format!("{percent} %, {what} {amount}"));
    }

    /// Ends what has its result told elsewhere.
    fn forget(&self, of: (&str, &str)) {
        if let Some(bar) = self.disks().remove(&key(of)).and_then(|disk| disk.bar) {
            bar.finish_and_clear();
        }
    }

    fn end(&self, of: (&str, &str), copied: u64) {
        let Some(disk) = self.disks().remove(&key(of)) else {
            return;
        };
        match disk.bar {
            Some(bar) => bar.finish_and_clear(),
            None if copied == 0 => self.line(of, "done, nothing copied"),
            None => self.line(of, &format!("done, {} copied", pretty::bytes(copied))),
        }
    }
}

fn key((domain, disk): (&str, &str)) -> String {
    format!("{domain}/{disk}")
}

impl Monitor for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Step { domain, what } => self.tell(&Entry::of(Level::Debug, domain, what)),
            Event::Waits {
                domain,
                holder,
                at_most,
            } => {
                let seconds = at_most.as_secs();
                let what = format!("waiting up to {seconds} s for another run ({})", shown(holder));
                self.tell(&Entry::of(Level::Info, domain, &what));
            }
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
                self.begin((domain, disk), size, &what);
            }
            Event::DiskAt {
                domain,
                disk,
                position,
                copied,
            } => self.advance((domain, disk), position, copied, "copied"),
            Event::DiskEnds { domain, disk, copied } => self.end((domain, disk), copied),
            Event::FileBegins { domain, file, size } => {
                let what = pretty::bytes(size);
                match size >= WORTH_A_LINE {
                    true => self.begin((domain, file), size, &what),
                    false => self.tell(&Entry::of(Level::Debug, domain, &format!("{file}: {what}"))),
                }
            }
            Event::FileAt {
                domain,
                file,
                position,
            } => self.advance((domain, file), position, position, "read"),
            Event::FileEnds { domain, file } => self.forget((domain, file)),
            Event::Found { domain, finding } => {
                let level = match finding.code.as_str() {
                    DISK_EXCLUDED => Level::Info,
                    _ => Level::Warning,
                };
                let entry = Entry::of(level, domain, &finding.message);
                self.tell(&entry);
            }
        }
    }
}
