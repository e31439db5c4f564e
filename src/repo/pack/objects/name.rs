//! Names of objects.

use std::fmt;

/// The longest name in bytes. With the prefix of a location it stays below S3's 1024.
const LONGEST: usize = 255;

/// The name of an object below the location of its repository: segments of ASCII letters, digits,
/// `.`, `_` and `-`, separated by slashes. No segment is empty or begins with a dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// Makes an object name from a text; `None` if the text is invalid.
    pub fn new(name: &str) -> Option<ObjectName> {
        let is_valid = name.len() <= LONGEST && name.split('/').all(is_segment);
        is_valid.then(|| ObjectName(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this may be a part of a name between two slashes.
pub(crate) fn is_segment(segment: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        for name in ["vmsnap.json", "keys/0a.age", "packs/xx/0-_.", "a"] {
            assert!(ObjectName::new(name).is_some(), "{name}");
        }
        let long = "a".repeat(LONGEST + 1);
        for name in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".a", "a b", "a\nb", "ä", "a\\b", "a%2Fb",
            &long,
        ] {
            assert!(ObjectName::new(name).is_none(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn valid_names_stay_below_their_folder(name in "\\PC{0,40}") {
            if let Some(name) = ObjectName::new(&name) {
                let path = std::path::Path::new("/root").join(name.as_str());
                let parts: Vec<_> = path.components().collect();
                prop_assert_eq!(parts.len(), 2 + name.as_str().split('/').count());
            }
        }
    }
}
