//! Passphrases, identities and recipients. None of them appears in a message or in `Debug`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use age::secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::model::text::shown;
use crate::repo::pack_error::{PackError, Result};

/// The largest file with a secret, in bytes.
const LARGEST: u64 = 16 * 1024;

/// The shortest new passphrase, in characters.
const SHORTEST_PASSPHRASE: usize = 8;

/// The longest passphrase, in bytes.
const LONGEST_PASSPHRASE: usize = 1024;

/// A passphrase.
#[derive(Clone)]
pub struct Passphrase(SecretString);

impl Passphrase {
    /// Takes a passphrase as it was typed, without the end of the line.
    ///
    /// # Errors
    /// It is empty or too long.
    pub fn new(text: &str) -> Result<Passphrase> {
        match text {
            "" => Err(PackError::Passphrase("empty")),
            text if text.len() > LONGEST_PASSPHRASE => Err(PackError::Passphrase("longer than 1024 bytes")),
            text => Ok(Passphrase(SecretString::from(text.to_owned()))),
        }
    }

    /// Reads a passphrase from a file: its content without one line end at the end.
    ///
    /// # Errors
    /// The file cannot be read, is too large, is not UTF-8, or has no or several lines.
    pub fn read(path: &Path) -> Result<Passphrase> {
        let content = read_secret(path)?;
        let invalid = |why: &str| PackError::SecretFile {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let text = std::str::from_utf8(&content).map_err(|_| invalid("it is not valid UTF-8"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.contains(['\n', '\0']) {
            return Err(invalid("it has several lines, but a passphrase has only one"));
        }
        match text {
            "" => Err(invalid("it holds no passphrase")),
            text => Passphrase::new(text),
        }
    }

    /// Checks that the passphrase is long enough for a new key slot.
    ///
    /// # Errors
    /// It has fewer than 8 characters.
    pub fn check_new(&self) -> Result<()> {
        match self.0.expose_secret().chars().count() < SHORTEST_PASSPHRASE {
            true => Err(PackError::Passphrase("shorter than 8 characters")),
            false => Ok(()),
        }
    }

    /// Whether both are the same.
    pub fn is_same(&self, other: &Passphrase) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }

    pub(super) fn secret(&self) -> SecretString {
        self.0.clone()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// The private keys in an identity file, as `age-keygen` writes it.
pub struct IdentityFile(pub(super) Vec<age::x25519::Identity>);

impl IdentityFile {
    /// Reads an identity file.
    ///
    /// # Errors
    /// The file cannot be read, or has a line that is neither a comment nor an X25519 identity.
    pub fn read(path: &Path) -> Result<IdentityFile> {
        let content = read_secret(path)?;
        let invalid = |why: String| PackError::SecretFile {
            path: path.to_owned(),
            why,
        };
        let text = std::str::from_utf8(&content).map_err(|_| invalid("it is not valid UTF-8".to_owned()))?;
        let mut found = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The parser's message could repeat the line.
            let identity = age::x25519::Identity::from_str(line);
            let what = format!("line {} is not an identity (AGE-SECRET-KEY-1…)", number + 1);
            found.push(identity.map_err(|_| invalid(what))?);
        }
        match found.is_empty() {
            true => Err(invalid("it holds no identity".to_owned())),
            false => Ok(IdentityFile(found)),
        }
    }
}

impl fmt::Debug for IdentityFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityFile({})", self.0.len())
    }
}

/// A public key. The owner of its identity (private key) can open key slots that are locked for it.
#[derive(Clone)]
pub struct Recipient(pub(super) age::x25519::Recipient);

impl FromStr for Recipient {
    type Err = PackError;

    fn from_str(text: &str) -> Result<Recipient> {
        // Somebody may confuse the two halves of a key: a private key must not be printed.
        let is_private = text.to_ascii_uppercase().contains("SECRET");
        let invalid = |why| PackError::Recipient {
            recipient: if is_private { "…".to_owned() } else { shown(text) },
            why,
        };
        if is_private {
            return Err(invalid("it is a private key, which must stay secret"));
        }
        let parsed = age::x25519::Recipient::from_str(text);
        parsed
            .map(Recipient)
            .map_err(|_| invalid("X25519 recipients begin with age1"))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

/// A secret that opens a key slot.
#[derive(Debug)]
pub enum Secret {
    /// A passphrase.
    Passphrase(Passphrase),
    /// Private keys.
    Identities(IdentityFile),
}

impl Secret {
    /// The word for the secret in messages.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Secret::Passphrase(_) => "passphrase",
            Secret::Identities(_) => "identity",
        }
    }
}

/// Reads a file with a secret. It may be a pipe.
fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |why: String| PackError::SecretFile {
        path: path.to_owned(),
        why,
    };
    let read = || -> io::Result<_> {
        // No growth: it would leave a copy in freed memory.
        let mut content = Zeroizing::new(Vec::with_capacity(LARGEST as usize + 1));
        File::open(path)?.take(LARGEST + 1).read_to_end(&mut content)?;
        Ok(content)
    };
    let content = read().map_err(|error| failed(error.to_string()))?;
    match content.len() as u64 > LARGEST {
        true => Err(failed(format!("it has more than {LARGEST} bytes"))),
        false => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("written");
        file
    }

    #[test]
    fn one_line_end_does_not_belong_to_a_passphrase() {
        let expected = Passphrase::new("correct horse ").expect("valid");
        for content in ["correct horse ", "correct horse \n", "correct horse \r\n"] {
            let read = Passphrase::read(file(content.as_bytes()).path()).expect("valid");
            assert!(read.is_same(&expected), "{content:?}");
        }
        assert_eq!(format!("{expected:?}"), "Passphrase(..)");
    }

    #[test]
    fn unusable_passphrase_files_are_refused_without_their_content() {
        let long = "hunter2".repeat(3000);
        for content in [
            &b""[..],
            b"\n",
            b"hunter2\nhunter2\n",
            b"hunter2\xff",
            b"hunter2\0",
            long.as_bytes(),
        ] {
            let error = Passphrase::read(file(content).path()).expect_err("unusable");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        assert!(Passphrase::read(Path::new("/nonexistent")).is_err());
        assert!(
            Passphrase::new("1234567")
                .expect("not empty")
                .check_new()
                .is_err()
        );
        assert!(
            Passphrase::new("12345678")
                .expect("not empty")
                .check_new()
                .is_ok()
        );
    }

    #[test]
    fn identity_files_have_comments_and_private_keys() {
        let identity = age::x25519::Identity::generate();
        let secret = identity.to_string();
        let text = format!("# created: x\n# public key: y\n\n{}\n", secret.expose_secret());
        let read = IdentityFile::read(file(text.as_bytes()).path()).expect("valid");
        assert_eq!(
            read.0[0].to_public().to_string(),
            identity.to_public().to_string()
        );
        assert_eq!(format!("{read:?}"), "IdentityFile(1)");
        for damaged in [
            "# nothing\n".to_owned(),
            text.replace("AGE-", "AGE"),
            text.replace("1", "2"),
        ] {
            let error = IdentityFile::read(file(damaged.as_bytes()).path()).expect_err("damaged");
            let message = format!("{error} {error:?}");
            assert!(!message.to_uppercase().contains("SECRET-KEY-1Q"), "{message}");
        }
    }

    #[test]
    fn a_private_key_is_no_recipient_and_is_not_repeated() {
        let identity = age::x25519::Identity::generate();
        let public = identity.to_public().to_string();
        assert_eq!(public.parse::<Recipient>().expect("valid").to_string(), public);
        for text in [
            "",
            "age1",
            "ssh-ed25519 AAAA",
            &public[1..],
            &public.to_uppercase()[..20],
        ] {
            assert!(text.parse::<Recipient>().is_err(), "{text}");
        }
        let secret = identity.to_string();
        let error = secret.expose_secret().parse::<Recipient>().expect_err("private");
        assert!(!format!("{error} {error:?}").contains(secret.expose_secret()));
    }
}
