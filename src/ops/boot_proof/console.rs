//! The console of a trial domain: QEMU connects to a socket, and sends what the guest writes to its
//! first serial port.

use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anstream::adapter::StripBytes;
use regex::bytes::Regex;

/// The most that is remembered of the text, in bytes. A pattern that spans more is not found.
const MOST: usize = 64 << 10;

/// The most that is read at once, in bytes. A guest that writes more has to wait.
const MOST_AT_ONCE: usize = 1 << 20;

/// A console.
pub(super) struct Console {
    listener: UnixListener,
    stream: Option<UnixStream>,
    /// Removes escape sequences.
    strip: StripBytes,
    /// The end of the text, without escape sequences and carriage returns.
    text: Vec<u8>,
    pattern: Regex,
    is_matched: bool,
}

impl Console {
    /// Listens at a new socket.
    pub(super) fn listen(path: &Path, pattern: Regex) -> io::Result<Console> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Console {
            listener,
            stream: None,
            strip: StripBytes::new(),
            text: Vec::new(),
            pattern,
            is_matched: false,
        })
    }

    /// Takes what has arrived, without waiting.
    pub(super) fn read(&mut self) {
        if self.stream.is_none()
            && let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.stream = Some(stream);
        }
        let mut piece = [0; 16 << 10];
        let mut taken = 0;
        while taken < MOST_AT_ONCE
            && let Some(stream) = &mut self.stream
        {
            match stream.read(&mut piece) {
                // QEMU has closed it, so the domain has ended.
                Ok(0) => self.stream = None,
                Ok(count) => {
                    taken += count;
                    self.take(&piece[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.stream = None,
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for plain in self.strip.strip_next(bytes) {
            self.text.extend(plain.iter().filter(|byte| **byte != b'\r'));
        }
        self.is_matched = self.is_matched || self.pattern.is_match(&self.text);
        let surplus = self.text.len().saturating_sub(MOST);
        self.text.drain(..surplus);
    }

    /// Whether the pattern has appeared.
    pub(super) fn is_matched(&self) -> bool {
        self.is_matched
    }

    /// The end of the text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// What a console makes of these pieces.
    fn console(pattern: &str, pieces: &[&[u8]]) -> Console {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.sock");
        let pattern = Regex::new(pattern).expect("valid");
        let mut console = Console::listen(&path, pattern).expect("it listens");
        console.read();
        let mut guest = UnixStream::connect(&path).expect("it listens");
        for piece in pieces {
            guest.write_all(piece).expect("it is read");
            console.read();
        }
        drop(guest);
        console.read();
        console
    }

    #[test]
    fn a_pattern_is_found_across_pieces() {
        let found = console(r"(?m)\blogin: *$", &[b"Debian\r\nvm1 lo", b"gin", b": "]);
        assert!(found.is_matched());
        assert_eq!(found.text(), "Debian\nvm1 login: ");
        let other = console(r"(?m)\blogin: *$", &[b"Last login: today\r\n"]);
        assert!(!other.is_matched());
    }

    #[test]
    fn escape_sequences_do_not_hide_a_pattern() {
        let bold = console(
            "Reached target",
            &[b"[\x1b[0;32m  OK  \x1b[0m] Rea", b"\x1b[1", b"mched target"],
        );
        assert!(bold.is_matched(), "{:?}", bold.text());
        assert_eq!(bold.text(), "[  OK  ] Reached target");
    }

    #[test]
    fn a_match_stays_and_old_text_goes() {
        let flood = vec![b'x'; 40 << 10];
        let found = console("^early", &[b"early\n", &flood, &flood, &flood]);
        assert!(found.is_matched());
        assert!(found.text().len() <= MOST);
        assert!(!found.text().contains("early"));
    }
}
