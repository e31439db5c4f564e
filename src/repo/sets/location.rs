//! Locations of sets, as a user gives them: `sets:DIRECTORY`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The beginning of a location.
pub(super) const PREFIX: &str = "sets:";

/// The folder of a location of sets; `None` if the text is another location.
pub(super) fn parse(location: &Path) -> Option<PathBuf> {
    let bytes = location.as_os_str().as_bytes();
    let folder = bytes.strip_prefix(PREFIX.as_bytes())?;
    Some(PathBuf::from(OsStr::from_bytes(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_prefix_makes_a_location_of_sets() {
        assert_eq!(parse(Path::new("sets:/b")), Some(PathBuf::from("/b")));
        assert_eq!(parse(Path::new("sets:b c")), Some(PathBuf::from("b c")));
        assert_eq!(parse(Path::new("sets:")), Some(PathBuf::new()));
        assert_eq!(parse(Path::new("./sets:/b")), None);
        assert_eq!(parse(Path::new("/b/sets:x")), None);
    }
}
