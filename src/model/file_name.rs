//! Names of domains as names of files. Pure.

/// The longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

/// A name as a file name, with unsafe characters percent-escaped. `None` if the result is empty or
/// too long for a file name.
///
/// Different names give different file names, because `%` itself is escaped too.
pub fn escape(name: &str) -> Option<String> {
    let mut escaped = String::with_capacity(name.len());
    for (index, character) in name.char_indices() {
        let leading_dot = index == 0 && character == '.';
        if leading_dot || character == '/' || character == '%' || character.is_control() {
            let mut utf8 = [0; 4];
            for byte in character.encode_utf8(&mut utf8).bytes() {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        } else {
            escaped.push(character);
        }
    }
    (!escaped.is_empty() && escaped.len() <= NAME_MAX).then_some(escaped)
}

/// The name from which [`escape`] made this file name; `None` if [`escape`] never makes this file
/// name.
pub(crate) fn unescape(folder: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(folder.len());
    let mut rest = folder.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = (rest.next()? as char).to_digit(16)?;
            let low = (rest.next()? as char).to_digit(16)?;
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (escape(&name).as_deref() == Some(folder)).then_some(name)
}

/// Whether a name that was read from a file is safe as the name of a file in the same folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|character| character == '/' || character.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_names_stay_as_they_are() {
        for name in ["vm1", "web server", "-rf", "büro", "a;$(x)", "x.y", "--prune"] {
            assert_eq!(escape(name).as_deref(), Some(name));
        }
    }

    #[test]
    fn what_could_leave_the_folder_is_escaped() {
        assert_eq!(escape("..").as_deref(), Some("%2E."));
        assert_eq!(escape("a/b").as_deref(), Some("a%2Fb"));
        assert_eq!(escape(".lock").as_deref(), Some("%2Elock"));
        assert_eq!(escape("100%").as_deref(), Some("100%25"));
        assert_eq!(escape("a\tb").as_deref(), Some("a%09b"));
        assert_eq!(escape(""), None);
        assert_eq!(escape(&"x".repeat(256)), None);
    }

    #[test]
    fn foreign_folders_are_nobodys() {
        for folder in ["100%", "a%2", "a%zz", "%41", ".git", "%FF"] {
            assert_eq!(unescape(folder), None, "{folder}");
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back_and_is_a_plain_name(name in "\\PC{1,40}|[./%\\x01-\\x20a-z]{1,40}") {
            let folder = escape(&name).expect("short enough");
            prop_assert!(is_plain_name(&folder));
            prop_assert_eq!(unescape(&folder), Some(name));
        }
    }
}
