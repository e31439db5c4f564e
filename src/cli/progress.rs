//! Shows progress on stderr: a bar per disk on a terminal, otherwise a line per 10 % or 30 s.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::log::{self, Entry, Level};
use super::pretty;
use crate::model::finding::Finding;
use crate::model::left_out::DISK_EXCLUDED;
use crate::model::text::shown;
use crate::ops::{Event, Monitor};

/// Percent between two lines; the small step is for `-vv`.
const STEP: u64 = 10;
const SMALL_STEP: u64 = 1;

/// Time after which a line is printed in any case.
const PAUSE: Duration = Duration::from_secs(30);

/// Files smaller than this, in bytes, get no lines: they are read too fast.
const WORTH_A_LINE: u64 = 64 << 20;

/// Prints the progress of a verb.
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
    /// The amount copied, and the rate per second.
    fn amount(&self, copied: u64) -> String {
        if copied == 0 {
            return "nothing".to_owned();
        }
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let rate = pretty::bytes((copied as f64 / seconds) as u64);
        format!("{}, {rate}/s", pretty::bytes(copied))
    }

    /// The estimated remaining time, as the rest of a phrase; empty without an estimate.
    fn left(&self, position: u64) -> String {
        left_at(self.begun.elapsed(), position, self.size)
    }
}

/// The remaining time if the first `position` of `size` bytes took this long.
fn left_at(elapsed: Duration, position: u64, size: u64) -> String {
    let rest = size.saturating_sub(position);
    if position == 0 || rest == 0 {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() * rest as f64 / position as f64;
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    format!(", {} left", pretty::remaining(time))
}

impl Progress {
    /// Shows bars if stderr is a terminal and the log has no fields, otherwise lines; with
    /// `--quiet` only findings.
    pub fn new() -> Self {
        Progress::with_bars(std::io::stderr().is_terminal())
    }

    /// Shows lines only, never bars, because stderr may be redirected to a file later.
    pub(crate) fn lines() -> Self {
        Progress::with_bars(false)
    }

    fn with_bars(is_terminal: bool) -> Self {
        let wants_bars = log::tells(Level::Info) && !log::has_fields() && is_terminal;
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

    /// Shows neither bars nor lines about the progress of disks and files.
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

    /// Prints an entry, above the bars if there are any.
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
            let bar = ProgressBar::new(size.max(1));
            bar.set_style(bar_style());
            bars.add(bar.with_prefix(format!("{} {}", shown(of.0), shown(of.1))))
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
        let (amount, left) = (disk.amount(copied), disk.left(position));
        drop(disks);
        self.line(of, &format!("{percent} %{left}, {what} {amount}"));
    }

    /// Removes the progress of a file whose result is printed elsewhere.
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

/// A line such as `vm1 vda ████░░░  42 %, 12 s left, 4.29 GB, 1.05 GB/s`.
fn bar_style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %{left} {msg}");
    let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let time = state.eta();
        // Zero means that there is no estimate yet. A failed write cannot be handled here.
        if !time.is_zero() {
            let _ = write!(out, ", {} left,", pretty::remaining(time));
        }
    };
    style
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("left", left)
}

fn key((domain, disk): (&str, &str)) -> String {
    format!("{domain}/{disk}")
}

impl Monitor for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::DomainBegins { domain, number, of } if of > 1 => {
                let what = format!("domain {number} of {of}");
                self.tell(&Entry::of(Level::Debug, domain, &what));
            }
            Event::DomainBegins { .. } | Event::DomainEnds { .. } => {}
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
                    None => format!("virtual size {}", pretty::bytes(size)),
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
                let what = format!("{} to read", pretty::bytes(size));
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
            Event::Found { domain, finding } => self.tell(&entry_of(domain, finding)),
        }
    }
}

/// The log's entry about a finding.
fn entry_of<'a>(domain: &'a str, finding: &'a Finding) -> Entry<'a> {
    let level = match finding.code.as_str() {
        DISK_EXCLUDED => Level::Info,
        _ => Level::Warning,
    };
    Entry {
        disk: finding.disk.as_deref(),
        ..Entry::of(level, domain, &finding.message)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use indicatif::TermLike;

    use super::*;

    #[test]
    fn an_entry_about_a_finding_names_its_disk_once() {
        let finding = Finding::of_disk("x", "vda", "disk vda is odd");
        let entry = entry_of("vm1", &finding);
        assert_eq!(entry.disk, Some("vda"));
        assert_eq!(entry.text(), "vm1: note: disk vda is odd");
        let finding = Finding::of_disk("x", "vda", "it is odd");
        assert_eq!(entry_of("vm1", &finding).text(), "vm1 vda: note: it is odd");
    }

    #[test]
    fn a_line_estimates_the_remaining_time_from_the_past() {
        let minute = Duration::from_secs(60);
        assert_eq!(left_at(minute, 1 << 30, 4 << 30), ", 3 min left");
        assert_eq!(left_at(minute, 3 << 30, 4 << 30), ", 20 s left");
        for (position, size) in [(0, 4 << 30), (4 << 30, 4 << 30), (5, 4), (0, 0)] {
            assert_eq!(left_at(minute, position, size), "", "{position} of {size}");
        }
        let longest = left_at(Duration::MAX, 1, u64::MAX);
        assert!(longest.ends_with(" d left"), "{longest}");
    }

    /// A terminal of 80 columns that keeps what was drawn.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _lines: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _lines: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _columns: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _columns: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().expect("no test has failed").push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("\n")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_shows_the_remaining_time_once_it_moves() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let progress = Progress {
            bars: Some(MultiProgress::with_draw_target(target)),
            silent: false,
            step: STEP,
            disks: Mutex::default(),
        };
        let drawn = || screen.0.lock().expect("no test has failed").clone();
        progress.begin(("vm1", "vda"), 2 << 30, "full");
        progress.advance(("vm1", "vda"), 0, 0, "copied");
        assert!(!drawn().contains("left"), "{}", drawn());
        progress.advance(("vm1", "vda"), 1 << 30, 1 << 30, "copied");
        let drawn = drawn();
        let line = drawn.lines().find(|line| line.contains("left"));
        let line = line.unwrap_or_else(|| panic!("{drawn}"));
        assert!(line.starts_with("vm1 vda ") && line.contains(" 50 %, "), "{line}");
        assert!(line.contains(" left, 1.07 GB, "), "{line}");
        assert!(line.trim_end().chars().count() <= 80, "{line}");
    }
}
