//! Ids of blocks and packs, and the names of packs.

use std::fmt;
use std::io;

use crate::repo::pack::keys::random;
use crate::repo::pack::objects::ObjectName;

/// The prefix of the names of packs.
pub(crate) const PACKS: &str = "packs/";

/// The prefix of the names of index objects.
pub(super) const INDEX: &str = "index/";

/// The id of a block: the keyed BLAKE3 of its plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockId([u8; 32]);

impl BlockId {
    pub(super) fn new(bytes: [u8; 32]) -> BlockId {
        BlockId(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id as 64 lower-case hexadecimal digits.
    pub(crate) fn to_hex(self) -> String {
        hex(&self.0)
    }

    /// Reads an id of 64 lower-case hexadecimal digits.
    pub(crate) fn from_hex(text: &str) -> Option<BlockId> {
        let is_lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_plain = text.len() == 64 && text.bytes().all(is_lower);
        let hash = is_plain.then(|| blake3::Hash::from_hex(text).ok()).flatten()?;
        Some(BlockId(*hash.as_bytes()))
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockId({self})")
    }
}

/// The id of a pack: 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PackId([u8; 16]);

impl PackId {
    pub(super) fn from_bytes(bytes: [u8; 16]) -> PackId {
        PackId(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A new id.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn random() -> io::Result<PackId> {
        let mut bytes = [0; 16];
        random(&mut bytes)?;
        Ok(PackId(bytes))
    }

    /// The name of its object.
    pub(super) fn text(&self) -> String {
        let digits = hex(&self.0);
        format!("{PACKS}{}/{digits}", &digits[..2])
    }

    /// The name of its object.
    pub(super) fn name(&self) -> io::Result<ObjectName> {
        object_name(&self.text())
    }

    /// The id of the pack with this name; `None` if the name is not that of a pack.
    pub(super) fn of_name(name: &ObjectName) -> Option<PackId> {
        let (folder, digits) = name.as_str().strip_prefix(PACKS)?.split_once('/')?;
        let mut bytes = [0; 16];
        if digits.len() != 32 || !digits.is_ascii() || !digits.starts_with(folder) {
            return None;
        }
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).ok()?;
        }
        let id = PackId(bytes);
        (id.text() == name.as_str()).then_some(id)
    }
}

/// A new name for an index object.
///
/// # Errors
/// The system gives no random numbers.
pub(super) fn new_index_name() -> io::Result<ObjectName> {
    object_name(&format!("{INDEX}{}", random_digits()?))
}

/// 32 random hexadecimal digits.
///
/// # Errors
/// The system gives no random numbers.
pub(super) fn random_digits() -> io::Result<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    Ok(hex(&bytes))
}

/// Makes an object name from a text that this program composed.
pub(super) fn object_name(text: &str) -> io::Result<ObjectName> {
    ObjectName::new(text).ok_or_else(|| io::Error::other("a name is invalid"))
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packs_come_back_and_others_are_refused() {
        let id = PackId::random().expect("random");
        let name = id.name().expect("a name");
        assert_eq!(PackId::of_name(&name), Some(id));
        let text = id.text();
        for other in [
            text.to_uppercase(),
            text.replacen("packs", "index", 1),
            text[..text.len() - 1].to_owned(),
            format!("packs/zz/{}", &text[9..]),
            format!("{text}0"),
        ] {
            let name = ObjectName::new(&other).expect("a name");
            assert_eq!(PackId::of_name(&name), None, "{other}");
        }
    }

    #[test]
    fn ids_of_blocks_are_lower_case_digits() {
        let id = BlockId::new([0xab; 32]);
        assert_eq!(BlockId::from_hex(&id.to_hex()), Some(id));
        for text in [
            "",
            &"AB".repeat(32),
            &"ab".repeat(31),
            &"é".repeat(32),
            &"0g".repeat(32),
        ] {
            assert_eq!(BlockId::from_hex(text), None, "{text}");
        }
    }
}
