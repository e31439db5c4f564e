//! Commands as `guestfish` reads them from its standard input (`parse_command_line` in its
//! `fish.c`): words in double quotes, in which `\xHH` stands for any byte.

use super::{HostError, PROGRAM, Result, failed};

/// The longest line that `guestfish` reads in one piece (a buffer of 8192 bytes), without its end.
pub(super) const LONGEST: usize = 8190;

/// A command in one line, with its line end.
#[derive(Debug)]
pub(super) struct Line(Vec<u8>);

impl Line {
    /// A command whose failure ends `guestfish`. The first word is its name.
    ///
    /// # Errors
    /// The line is too long, or a word contains a zero byte.
    pub(super) fn of(words: &[&[u8]]) -> Result<Line> {
        Line::new(&[], words)
    }

    /// A command that may fail.
    ///
    /// # Errors
    /// The errors of [`Line::of`].
    pub(super) fn that_may_fail(words: &[&[u8]]) -> Result<Line> {
        Line::new(b"-", words)
    }

    fn new(prefix: &[u8], words: &[&[u8]]) -> Result<Line> {
        let mut line = prefix.to_vec();
        for (place, word) in words.iter().enumerate() {
            if word.contains(&0) {
                return Err(refused("a name contains a zero byte"));
            }
            match place {
                // The name of a command is never quoted, and always ours.
                0 => line.extend_from_slice(word),
                _ => push_quoted(&mut line, word),
            }
        }
        if line.len() > LONGEST {
            return Err(refused("the path is too long"));
        }
        line.push(b'\n');
        Ok(Line(line))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn refused(what: &str) -> HostError {
    failed(PROGRAM, "read", what)
}

/// Adds a blank and a quoted word. Everything but plain ASCII is escaped, so no character can have
/// a meaning.
fn push_quoted(line: &mut Vec<u8>, word: &[u8]) {
    line.extend_from_slice(b" \"");
    for byte in word {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'/'
            | b'.'
            | b'-'
            | b'_'
            | b':'
            | b'='
            | b','
            | b'+' => {
                line.push(*byte);
            }
            _ => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    line.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a line as `guestfish` does: blanks between words, quotes, escapes.
    fn read(line: &[u8]) -> Vec<Vec<u8>> {
        let line = line.strip_suffix(b"\n").expect("one line");
        assert!(!line.contains(&b'\n') && !line.contains(&b'|') && !line.contains(&b'\''));
        let text = std::str::from_utf8(line).expect("ASCII");
        let (name, mut rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut words = vec![name.as_bytes().to_vec()];
        while let Some(quoted) = rest.strip_prefix('"') {
            let (word, after) = quoted.split_once('"').expect("it is closed");
            let mut bytes = Vec::new();
            let mut parts = word.split("\\x");
            bytes.extend_from_slice(parts.next().expect("the first part").as_bytes());
            for part in parts {
                bytes.push(u8::from_str_radix(&part[..2], 16).expect("two digits"));
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            words.push(bytes);
            rest = after.trim_start_matches(' ');
        }
        assert_eq!(rest, "");
        words
    }

    proptest! {
        #[test]
        fn every_path_is_one_word(path in proptest::collection::vec(1u8..=255, 0..300)) {
            let line = Line::of(&[b"download", &path, b"/tmp/x/data"]).expect("short");
            let expected = [&b"download"[..], &path, b"/tmp/x/data"].map(<[u8]>::to_vec);
            prop_assert_eq!(read(line.bytes()), expected.to_vec());
        }
    }

    #[test]
    fn plain_paths_stay_readable_and_others_are_escaped() {
        let line = Line::that_may_fail(&[b"cat", b"/a b\n\"|x\xff"]).expect("short");
        assert_eq!(line.bytes(), b"-cat \"/a\\x20b\\x0a\\x22\\x7cx\\xff\"\n");
        assert_eq!(Line::of(&[b"run"]).expect("short").bytes(), b"run\n");
    }

    #[test]
    fn a_line_that_guestfish_would_split_is_refused() {
        assert!(Line::of(&[b"cat", &[b'x'; 4096]]).is_ok());
        assert!(Line::of(&[b"cat", &[b' '; 4096]]).is_err());
        assert!(Line::of(&[b"cat", b"/a\0b"]).is_err());
    }
}
