//! Which name on disk stands for what. Pure.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// What the folder of a restore point ends with while it is being written.
pub const PARTIAL: &str = ".partial";
/// What the folder of a full restore point ends with.
pub const FULL: &str = ".full";
/// What the folder of an incremental restore point ends with.
pub const INCREMENTAL: &str = ".inc";
/// The commit record.
pub const MANIFEST: &str = "manifest.json";
/// What an unfinished run notes down for the run that cleans up after it.
pub const INTENT: &str = "intent.json";
/// The domain's definition.
pub const DOMAIN_XML: &str = "domain.xml";
/// The domain's UEFI variables.
pub const NVRAM: &str = "nvram.fd";
/// Folder of the checkpoints' XML within a period.
pub const CHECKPOINTS: &str = "checkpoints";
/// Folder of the names of a period's committed restore points.
pub const COMMITTED: &str = ".committed";
/// The lock of a domain's folder.
pub const LOCK: &str = ".lock";

/// What the name of a file begins with that is being restored; a word of its own and [`PARTIAL`] follow.
pub const RESTORING: &str = ".vmsnap-restore-";

/// The longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

/// The folder name for a domain: its name, with whatever is not safe in a file name percent-escaped. `None` when the result would be
/// longer than a file name can be.
///
/// Different names give different folders: `%` itself is escaped too.
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

/// The domain's name for a folder name made by [`escape`]; `None` for any other.
pub fn unescape(folder: &str) -> Option<String> {
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

/// Whether a name that was read from a file may be used as the name of a file in the same folder.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|character| character == '/' || character.is_control())
}

/// The id of a restore point of this moment: the time in UTC to the second, in characters that every file system takes.
pub fn id_of(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H-%M-%SZ")
        .to_string()
}

/// Splits the folder name of a finished restore point into its id and its ending.
pub fn split_finished(folder: &str) -> Option<(&str, &'static str)> {
    [FULL, INCREMENTAL]
        .into_iter()
        .find_map(|ending| folder.strip_suffix(ending).map(|id| (id, ending)))
        .filter(|(id, _)| !id.is_empty())
}

/// The name of a file that is being restored: it says whose it is, and is short whatever the file's final name.
pub fn restoring(run: uuid::Uuid) -> String {
    format!("{RESTORING}{}{PARTIAL}", run.simple())
}

/// Whether [`restoring`] made this name.
pub fn is_restoring(name: &str) -> bool {
    name.strip_prefix(RESTORING)
        .and_then(|rest| rest.strip_suffix(PARTIAL))
        .is_some_and(|word| {
            word.len() == 32 && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
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

    #[test]
    fn an_id_is_the_time_in_utc() {
        let time = "2026-11-01T03:00:03.5+01:00".parse().expect("a time");
        assert_eq!(id_of(time), "2026-11-01T02-00-03Z");
        assert_eq!(
            split_finished("2026-11-01T02-00-03Z.inc"),
            Some(("2026-11-01T02-00-03Z", INCREMENTAL))
        );
        assert_eq!(split_finished("2026-11-01T02-00-03Z.partial"), None);
    }

    #[test]
    fn a_file_that_is_being_restored_is_known_by_its_name() {
        let name = restoring(uuid::Uuid::from_u128(7));
        assert!(is_restoring(&name) && is_plain_name(&name), "{name}");
        for other in [
            ".vmsnap-restore-.partial",
            ".vmsnap-restore-7.partial",
            "vda.qcow2",
            &name[1..],
            &name.to_uppercase(),
        ] {
            assert!(!is_restoring(other), "{other}");
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
