//! Locks the master key into a file of age (<https://age-encryption.org/v1>), and opens it.
//!
//! The file is armored, so that it can be printed. `age -d` opens it, too.

use std::io::{Read, Write};
use std::iter;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::{DecryptError, Decryptor, Encryptor, scrypt};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::master::MasterKey;
use super::secret::{Passphrase, Recipient, Secret};

/// The largest age file that is read, in bytes.
pub(crate) const LARGEST_FILE: u64 = 16 * 1024;

/// The largest text in such a file, in bytes.
const LARGEST_TEXT: u64 = 1024;

/// The work of scrypt is 2 to the power of this: 128 MiB of memory, and less than a second.
const WORK: u8 = 17;

/// The most work that a file may ask for: 256 MiB of memory. It is the default of `age`.
const MOST_WORK: u8 = 18;

/// The version of the format of the text.
const FORMAT: u64 = 1;

/// The text in an age file. The key is borrowed, so that no copy remains in memory.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text<'a> {
    format: u64,
    repository: &'a str,
    key: &'a str,
}

/// The reason why an age file with the master key could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyFault {
    /// The secret does not open the file.
    WrongSecret,
    /// The file is damaged or is not a key of vmsnap; the text says why.
    Unusable(&'static str),
}

/// The person who can open a key slot.
#[derive(Clone, Copy, Debug)]
pub enum SlotOwner<'a> {
    /// Anybody who knows a passphrase.
    Passphrase(&'a Passphrase),
    /// The owner of a private key.
    Recipient(&'a Recipient),
}

/// Locks the master key of the repository with the id `repository` for an owner, and returns the
/// age file.
///
/// # Errors
/// Encryption fails, for example because there is no memory.
pub(crate) fn lock(key: &MasterKey, repository: &str, owner: SlotOwner<'_>) -> std::io::Result<Vec<u8>> {
    let other = |error: age::EncryptError| std::io::Error::other(error.to_string());
    let encryptor = match owner {
        SlotOwner::Passphrase(passphrase) => {
            let mut recipient = scrypt::Recipient::new(passphrase.secret());
            recipient.set_work_factor(WORK);
            Encryptor::with_recipients(iter::once(&recipient as &dyn age::Recipient))
        }
        SlotOwner::Recipient(recipient) => {
            Encryptor::with_recipients(iter::once(&recipient.0 as &dyn age::Recipient))
        }
    };
    let encryptor = encryptor.map_err(other)?;
    let text = text(key, repository);
    let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
    let mut writer = encryptor.wrap_output(armor)?;
    writer.write_all(text.as_bytes())?;
    writer.finish()?.finish()
}

fn text(key: &MasterKey, repository: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(LARGEST_TEXT as usize));
    text.push_str(&format!(
        "{{\"format\":{FORMAT},\"repository\":\"{repository}\",\"key\":\""
    ));
    text.push_str(&key.to_hex());
    text.push_str("\"}\n");
    text
}

/// Whether a passphrase opens this file, rather than an identity; `None` if it is not an age file.
pub(crate) fn is_for_passphrase(file: &[u8]) -> Option<bool> {
    let decryptor = Decryptor::new_buffered(ArmoredReader::new(file)).ok()?;
    Some(decryptor.is_scrypt())
}

/// Opens a file. Returns the key, and the id of its repository.
///
/// # Errors
/// The secret does not open it, or it is damaged.
pub(crate) fn open(file: &[u8], secret: &Secret) -> Result<(MasterKey, String), KeyFault> {
    let decryptor = Decryptor::new_buffered(ArmoredReader::new(file))
        .map_err(|_| KeyFault::Unusable("it is not an age file"))?;
    let opened = match secret {
        Secret::Passphrase(passphrase) => {
            let mut identity = scrypt::Identity::new(passphrase.secret());
            identity.set_max_work_factor(MOST_WORK);
            decryptor.decrypt(iter::once(&identity as &dyn age::Identity))
        }
        Secret::Identities(identities) => {
            decryptor.decrypt(identities.0.iter().map(|identity| identity as &dyn age::Identity))
        }
    };
    let reader = opened.map_err(|error| match error {
        DecryptError::DecryptionFailed | DecryptError::NoMatchingKeys | DecryptError::KeyDecryptionFailed => {
            KeyFault::WrongSecret
        }
        DecryptError::ExcessiveWork { .. } => KeyFault::Unusable("opening it would need too much memory"),
        _ => KeyFault::Unusable("its header is damaged"),
    })?;
    // No growth: it would leave a copy in freed memory.
    let mut text = Zeroizing::new(Vec::with_capacity(LARGEST_TEXT as usize + 1));
    let read = reader.take(LARGEST_TEXT + 1).read_to_end(&mut text);
    if read.is_err() {
        return Err(KeyFault::Unusable("its content is damaged"));
    }
    parse(&text).map_err(KeyFault::Unusable)
}

pub(super) fn parse(text: &[u8]) -> Result<(MasterKey, String), &'static str> {
    // The parser's message could repeat the key.
    let text: Text = serde_json::from_slice(text).map_err(|_| "it does not contain a key of vmsnap")?;
    if text.format != FORMAT {
        return Err("a newer vmsnap has written its key");
    }
    let key = MasterKey::from_hex(text.key).ok_or("its key is invalid")?;
    Ok((key, text.repository.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::pack::keys::IdentityFile;

    const ID: &str = "0190f0d2-0000-4000-8000-000000000001";

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text).expect("valid")
    }

    #[test]
    fn only_the_right_passphrase_opens_it() {
        let key = MasterKey::new().expect("random");
        let file = lock(&key, ID, SlotOwner::Passphrase(&passphrase("correct horse"))).expect("locked");
        assert_eq!(is_for_passphrase(&file), Some(true));
        let text = std::str::from_utf8(&file).expect("armored");
        assert!(text.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"), "{text}");
        let (opened, id) = open(&file, &Secret::Passphrase(passphrase("correct horse"))).expect("opened");
        assert_eq!((&*opened.to_hex(), id.as_str()), (&*key.to_hex(), ID));
        let wrong = open(&file, &Secret::Passphrase(passphrase("correct horsf")));
        assert_eq!(wrong.expect_err("wrong"), KeyFault::WrongSecret);
    }

    #[test]
    fn only_the_right_identity_opens_it() {
        let key = MasterKey::new().expect("random");
        let [mine, other] = [(); 2].map(|()| age::x25519::Identity::generate());
        let recipient = Recipient(mine.to_public());
        let file = lock(&key, ID, SlotOwner::Recipient(&recipient)).expect("locked");
        assert_eq!(is_for_passphrase(&file), Some(false));
        let wrong = open(&file, &Secret::Identities(IdentityFile(vec![other.clone()])));
        assert_eq!(wrong.expect_err("wrong"), KeyFault::WrongSecret);
        let (opened, _) = open(&file, &Secret::Identities(IdentityFile(vec![other, mine]))).expect("opened");
        assert_eq!(*opened.to_hex(), *key.to_hex());
        let wrong = open(&file, &Secret::Passphrase(passphrase("any")));
        assert!(wrong.is_err());
    }

    #[test]
    fn damaged_files_are_errors() {
        let mine = age::x25519::Identity::generate();
        let recipient = Recipient(mine.to_public());
        let key = MasterKey::new().expect("random");
        let file = lock(&key, ID, SlotOwner::Recipient(&recipient)).expect("locked");
        let secret = Secret::Identities(IdentityFile(vec![mine]));
        for length in 0..file.len() - 1 {
            assert!(open(&file[..length], &secret).is_err(), "{length}");
        }
        for place in 0..file.len() {
            let mut damaged = file.clone();
            damaged[place] ^= 2;
            if let Ok((opened, id)) = open(&damaged, &secret) {
                // White space around the armor has no meaning.
                assert_eq!((&*opened.to_hex(), id.as_str()), (&*key.to_hex(), ID), "{place}");
            }
        }
    }

    #[test]
    fn other_texts_are_refused_without_their_content() {
        let key = "ab".repeat(32);
        let valid = format!("{{\"format\":1,\"repository\":\"{ID}\",\"key\":\"{key}\"}}\n");
        assert!(parse(valid.as_bytes()).is_ok());
        for text in [
            String::new(),
            "{}".to_owned(),
            key.clone(),
            valid.replace("\"format\":1", "\"format\":2"),
            valid.replace("abab", "ABAB"),
            valid.replace("}\n", ",\"more\":1}\n"),
            format!("{valid}{valid}"),
        ] {
            let why = parse(text.as_bytes()).expect_err("invalid");
            assert!(!why.contains(&key[..8]), "{why}");
        }
    }
}
