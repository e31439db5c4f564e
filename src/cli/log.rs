//! Prints messages on stderr: lines for people, JSON for programs, fields for the systemd journal.
//!
//! There is one logger, set up once. It never fails: if stderr is closed, messages are dropped.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;

use serde::Serialize;

use super::args::{LogArgs, LogFormat};
use crate::model::text::shown;

/// The level of an entry. The numbers up to 7 are those of syslog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something that was requested was not done.
    Error = 3,
    /// Something worth reporting that did not stop the work.
    Warning = 4,
    /// Something that the user should read in any case.
    Notice = 5,
    /// Progress.
    Info = 6,
    /// The steps of the work.
    Debug = 7,
    /// Everything.
    Trace = 8,
}

/// A message.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<'a> {
    /// The level.
    pub level: Level,
    /// The text; without the domain's name if `domain` has it.
    pub message: &'a str,
    /// Further lines of the message.
    #[serde(skip)]
    pub lines: &'a [String],
    /// What the user can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'a str>,
    /// The domain that the message concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<&'a str>,
    /// The disk that the message concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<&'a str>,
    /// The restore point that the message concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_point: Option<&'a str>,
}

impl<'a> Entry<'a> {
    /// An entry about the program as a whole.
    pub fn new(level: Level, message: &'a str) -> Self {
        Entry {
            level,
            message,
            lines: &[],
            hint: None,
            domain: None,
            disk: None,
            restore_point: None,
        }
    }

    /// An entry about a domain.
    pub fn of(level: Level, domain: &'a str, message: &'a str) -> Self {
        Entry {
            domain: Some(domain),
            ..Entry::new(level, message)
        }
    }

    /// The lines that a person reads. Text from outside in them can neither end a line nor control
    /// the terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if matches!(self.level, Level::Error | Level::Notice) {
            text.push_str("vmsnap: ");
        }
        if let Some(domain) = self.domain {
            text.push_str(&shown(domain));
            if let Some(disk) = self.disk.filter(|disk| !self.names(disk)) {
                text.push_str(&format!(" {}", shown(disk)));
            }
            text.push_str(": ");
        }
        if self.level == Level::Warning {
            text.push_str("note: ");
        }
        text.push_str(&shown(self.message));
        for line in self.lines {
            text.push_str(&format!("\n  {}", shown(line)));
        }
        if let Some(hint) = self.hint {
            text.push_str(&format!("\nhint: {}", shown(hint)));
        }
        text
    }

    /// Whether the message names this disk.
    fn names(&self, disk: &str) -> bool {
        let words = self.message.split(|c: char| !c.is_alphanumeric());
        words.into_iter().any(|word| word == disk)
    }

    /// The message with its lines, for machines.
    fn whole_message(&self) -> String {
        let lines = self.lines.iter().map(|line| format!("\n  {line}"));
        std::iter::once(self.message.to_owned()).chain(lines).collect()
    }
}

/// The logger.
struct Log {
    least: Level,
    format: LogFormat,
    journal: Option<UnixDatagram>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// The journal's socket for entries with fields (systemd's `docs/JOURNAL_NATIVE_PROTOCOL.md`).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Sets the logger up. Only the first call counts.
pub fn start(args: &LogArgs) {
    let least = match (args.quiet, args.verbose) {
        (true, _) => Level::Notice,
        (false, 0) => Level::Info,
        (false, 1) => Level::Debug,
        (false, _) => Level::Trace,
    };
    let wants_fields = args.log_format == LogFormat::Text && stderr_is_journal();
    let _ = LOG.set(Log {
        least,
        format: args.log_format,
        journal: wants_fields.then(|| connect(Path::new(JOURNAL))).flatten(),
    });
}

/// Whether stderr is the journal: `JOURNAL_STREAM` has the device and inode that systemd connected.
fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|found| stream == format!("{}:{}", found.st_dev, found.st_ino))
}

fn connect(path: &Path) -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(path).ok()?;
    Some(socket)
}

/// Whether entries of this level are printed.
pub fn tells(level: Level) -> bool {
    level <= LOG.get().map_or(Level::Info, |log| log.least)
}

/// Whether entries are logged with fields, to the systemd journal or as JSON. If so, some results
/// on stdout are logged too.
pub(crate) fn has_fields() -> bool {
    LOG.get()
        .is_some_and(|log| log.journal.is_some() || log.format == LogFormat::Json)
}

/// Prints an error about the program as a whole.
pub fn error(message: &str) {
    tell(&Entry::new(Level::Error, message));
}

/// Prints what the user should read even with `--quiet`.
pub fn notice(message: &str) {
    tell(&Entry::new(Level::Notice, message));
}

/// Prints an entry if its level is low enough.
pub fn tell(entry: &Entry<'_>) {
    if !tells(entry.level) {
        return;
    }
    let log = LOG.get();
    let sent = log.and_then(|log| log.journal.as_ref()).is_some_and(|journal| {
        // If the journal refuses a datagram, the entry goes to stderr, which the journal reads too.
        journal.send(&fields(entry)).is_ok()
    });
    if sent {
        return;
    }
    let line = match log.map(|log| log.format) {
        Some(LogFormat::Json) => json(entry, super::clock::now().timestamp()),
        _ => entry.text(),
    };
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// An entry with `--log-format json`.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

/// A JSON line with every key, for tests.
#[cfg(test)]
pub(super) fn sample() -> serde_json::Value {
    let entry = &Entry {
        level: Level::Error,
        message: "text",
        lines: &[],
        hint: Some("text"),
        domain: Some("text"),
        disk: Some("text"),
        restore_point: Some("text"),
    };
    let time = "text".to_owned();
    serde_json::to_value(Line { time, entry }).expect("JSON")
}

fn json(entry: &Entry<'_>, time: jiff::Timestamp) -> String {
    let time = format!("{time:.3}");
    let message = entry.whole_message();
    let entry = &Entry {
        message: &message,
        lines: &[],
        ..entry.clone()
    };
    // All keys are strings, so this cannot fail; if it did, the text would still be printed.
    serde_json::to_string(&Line { time, entry }).unwrap_or_else(|_| entry.text())
}

/// The entry in the journal's format: `KEY=value` lines; a value of several lines is preceded by
/// its length.
fn fields(entry: &Entry<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = entry.text();
    let priority = (entry.level as u8).min(7).to_string();
    let fields = [
        ("MESSAGE", Some(text.as_str())),
        ("PRIORITY", Some(&priority)),
        ("SYSLOG_IDENTIFIER", Some("vmsnap")),
        ("DOMAIN", entry.domain),
        ("DISK", entry.disk),
        ("RESTORE_POINT", entry.restore_point),
    ];
    for (key, value) in fields {
        let Some(value) = value else { continue };
        bytes.extend_from_slice(key.as_bytes());
        if value.contains('\n') {
            bytes.push(b'\n');
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            bytes.push(b'=');
        }
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            disk: Some("vda"),
            restore_point: Some("2026-11-02T02-00-02Z"),
            hint: Some("make room"),
            ..Entry::of(Level::Error, "vm\n1", "no space")
        }
    }

    #[test]
    fn people_read_a_line_and_a_hint() {
        assert_eq!(entry().text(), "vmsnap: vm\\n1 vda: no space\nhint: make room");
        assert_eq!(Entry::of(Level::Warning, "vm1", "odd").text(), "vm1: note: odd");
        assert_eq!(Entry::new(Level::Info, "x").text(), "x");
    }

    #[test]
    fn text_from_outside_stays_within_its_line() {
        let hostile = "a 'json:\u{1b}[2J\nvmsnap: OK' \u{202e}";
        let escaped = "a 'json:\\u{1b}[2J\\nvmsnap: OK' \\u{202e}";
        let lines = [hostile.to_owned()];
        let entry = Entry {
            lines: &lines,
            hint: Some(hostile),
            ..Entry::new(Level::Info, hostile)
        };
        assert_eq!(entry.text(), format!("{escaped}\n  {escaped}\nhint: {escaped}"));
        assert_eq!(shown(escaped), escaped);
        let time = "2026-11-02T02:00:02.5Z".parse().expect("a time");
        let read: serde_json::Value = serde_json::from_str(&json(&entry, time)).expect("it is JSON");
        assert_eq!(read["message"], format!("{hostile}\n  {hostile}"));
    }

    #[test]
    fn machines_read_one_line_whatever_the_names() {
        let time = "2026-11-02T02:00:02.5Z".parse().expect("a time");
        assert_eq!(
            json(&entry(), time),
            "{\"time\":\"2026-11-02T02:00:02.500Z\",\"level\":\"error\",\"message\":\"no space\",\"hint\":\"make room\",\
             \"domain\":\"vm\\n1\",\"disk\":\"vda\",\"restorePoint\":\"2026-11-02T02-00-02Z\"}"
        );
    }

    #[test]
    fn the_journal_gets_fields() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let journal = UnixDatagram::bind(&path).expect("a socket");
        let socket = connect(&path).expect("it is there");
        socket.send(&fields(&entry())).expect("it is sent");
        let mut bytes = [0; 512];
        let length = journal.recv(&mut bytes).expect("it has come");
        let message = b"vmsnap: vm\\n1 vda: no space\nhint: make room";
        let mut expected = b"MESSAGE\n".to_vec();
        expected.extend_from_slice(&(message.len() as u64).to_le_bytes());
        expected.extend_from_slice(message);
        expected
            .extend_from_slice(b"\nPRIORITY=3\nSYSLOG_IDENTIFIER=vmsnap\nDOMAIN\n\x04\0\0\0\0\0\0\0vm\n1\n");
        expected.extend_from_slice(b"DISK=vda\nRESTORE_POINT=2026-11-02T02-00-02Z\n");
        assert_eq!(bytes[..length], expected);
        assert!(connect(&folder.path().join("none")).is_none());
    }
}
