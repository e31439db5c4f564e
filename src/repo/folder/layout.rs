//! Names of files and folders. Pure.

use crate::model::restore_point::RestorePoint;

/// The ending of a restore point's folder while it is being written.
pub const PARTIAL: &str = ".partial";
/// The ending of a full restore point's folder.
pub const FULL: &str = ".full";
/// The ending of an incremental restore point's folder.
pub const INCREMENTAL: &str = ".inc";
/// The commit record.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The journal entry of an unfinished run, for the run that cleans up after it.
pub(crate) const INTENT: &str = "intent.json";
/// The folder of the checkpoints' XML within a period.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// The folder of the names of a period's committed restore points.
pub(crate) const COMMITTED: &str = ".committed";
/// The lock of a domain's folder.
pub(crate) const LOCK: &str = ".lock";

/// The name of the image of a disk within the folder of its restore point.
pub fn image(target: &str) -> String {
    format!("{target}.qcow2")
}

/// The backing file name of an image whose parent is this disk of a restore point of the same
/// period.
pub fn backing(point: &RestorePoint, target: &str) -> Option<String> {
    let image = &point.disk(target)?.image;
    Some(format!("../{}/{image}", point.folder()))
}

/// Splits the folder name of a finished restore point into its id and its ending.
pub(crate) fn split_finished(folder: &str) -> Option<(&str, &'static str)> {
    [FULL, INCREMENTAL]
        .into_iter()
        .find_map(|ending| folder.strip_suffix(ending).map(|id| (id, ending)))
        .filter(|(id, _)| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_folders_are_split() {
        assert_eq!(
            split_finished("2026-11-01T02-00-03Z.inc"),
            Some(("2026-11-01T02-00-03Z", INCREMENTAL))
        );
        assert_eq!(split_finished("2026-11-01T02-00-03Z.partial"), None);
    }
}
