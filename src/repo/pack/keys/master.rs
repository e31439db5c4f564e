//! The master key, and the keys that are derived from it.

use std::fmt;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

/// The length of every key in bytes.
const LENGTH: usize = 32;

/// The master key of a repository: 32 random bytes, which never change. It is wiped from memory
/// when it is dropped.
pub(crate) struct MasterKey(Box<Zeroizing<[u8; LENGTH]>>);

/// Contexts of BLAKE3's `derive_key`. They are part of the format.
mod context {
    pub(super) const BLOCK_IDS: &str = "vmsnap pack repository 2026-11-28 block ids";
    pub(super) const ENCRYPTION: &str = "vmsnap pack repository 2026-11-28 encryption";
    pub(super) const NAMES: &str = "vmsnap pack repository 2026-11-28 names";
    pub(super) const SEALS: &str = "vmsnap pack repository 2026-11-28 seals";
}

/// A key that is derived from the master key.
pub(crate) type DerivedKey = Zeroizing<[u8; LENGTH]>;

impl MasterKey {
    /// The key of the ids of blocks.
    pub(crate) fn block_ids(&self) -> DerivedKey {
        self.derive(context::BLOCK_IDS)
    }

    /// The key that encrypts blocks and records.
    pub(crate) fn encryption(&self) -> DerivedKey {
        self.derive(context::ENCRYPTION)
    }

    /// The key of the names of objects.
    pub(crate) fn names(&self) -> DerivedKey {
        self.derive(context::NAMES)
    }
}

impl MasterKey {
    /// A new key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(crate) fn new() -> io::Result<MasterKey> {
        let mut key = Box::new(Zeroizing::new([0; LENGTH]));
        random(key.as_mut_slice())?;
        Ok(MasterKey(key))
    }

    /// Reads a key of 64 lower-case hexadecimal digits.
    pub(crate) fn from_hex(text: &str) -> Option<MasterKey> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let text = text.as_bytes();
        if text.len() != 2 * LENGTH {
            return None;
        }
        let mut key = Box::new(Zeroizing::new([0; LENGTH]));
        for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(MasterKey(key))
    }

    /// The key in lower-case hexadecimal digits.
    pub(crate) fn to_hex(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // No growth: it would leave a copy in freed memory.
        let mut text = Zeroizing::new(String::with_capacity(2 * LENGTH));
        for byte in self.0.iter() {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text
    }

    /// The key of seals.
    pub(crate) fn seals(&self) -> DerivedKey {
        self.derive(context::SEALS)
    }

    /// The seal of a text: its keyed BLAKE3 in hexadecimal digits.
    pub(crate) fn seal(&self, text: &[u8]) -> String {
        blake3::keyed_hash(&self.seals(), text).to_hex().to_string()
    }

    fn derive(&self, context: &str) -> DerivedKey {
        Zeroizing::new(blake3::derive_key(context, self.0.as_slice()))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// Fills a buffer with random bytes that nobody can predict.
///
/// # Errors
/// The system gives no random numbers.
pub(crate) fn random(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match getrandom(&mut buffer[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_are_not_printed() {
        let (a, b) = (
            MasterKey::new().expect("random"),
            MasterKey::new().expect("random"),
        );
        assert_ne!(*a.to_hex(), *b.to_hex());
        let debug = format!("{a:?}");
        assert_eq!(debug, "MasterKey(..)");
        let derived = [a.block_ids(), a.encryption(), a.names(), a.derive(context::SEALS)];
        for (place, one) in derived.iter().enumerate() {
            assert!(derived[..place].iter().all(|other| other != one));
            assert!(**one != **a.0);
        }
    }

    #[test]
    fn hexadecimal_digits_come_back() {
        let key = MasterKey::new().expect("random");
        let again = MasterKey::from_hex(&key.to_hex()).expect("valid");
        assert_eq!(*again.to_hex(), *key.to_hex());
        let text = key.to_hex();
        for invalid in [
            "",
            &text[1..],
            &format!("{}g", &text[1..]),
            &text.replace(|_| true, "A"),
            "é",
        ] {
            assert!(MasterKey::from_hex(invalid).is_none(), "{invalid}");
        }
    }

    /// The derivations are part of the format: they must never change. The values are those of the
    /// Python package blake3.
    #[test]
    fn derivations_stay_as_they_are() {
        let key = MasterKey::from_hex(&"01".repeat(32)).expect("valid");
        let hex = |key: DerivedKey| blake3::Hash::from_bytes(*key).to_hex().to_string();
        assert_eq!(
            hex(key.block_ids()),
            "c5d6b472f3f2dceb0edbc769740ad64270aeb75415dae1cc72876a59049bfce4"
        );
        assert_eq!(
            hex(key.encryption()),
            "bef9ac4d3d28205287df10076b9fa016fc8fb9a59e5956e3a50da66810975e98"
        );
        assert_eq!(
            hex(key.names()),
            "32c74a1e8d1fdabf3581dd3f5d091effdc2742f08b74d9edcc25f3c9f0a9a663"
        );
        assert_eq!(
            key.seal(b"text"),
            "0317ebb0da9b21f3640c6e3f6fd57a4fd163677c3c3cfeb60ce1ab381757a6dc"
        );
    }
}
