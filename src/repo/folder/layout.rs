//! Which name on disk stands for what. Pure.

use crate::model::restore_point::RestorePoint;

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
/// Folder of the checkpoints' XML within a period.
pub const CHECKPOINTS: &str = "checkpoints";
/// Folder of the names of a period's committed restore points.
pub const COMMITTED: &str = ".committed";
/// The pin of a restore point, in its folder.
pub const PIN: &str = "pinned.json";
/// What remembers removed restore points, in the domain's folder.
pub const REMOVED: &str = ".removed.json";
/// What the folder of a restore point ends with, after its name, while it is being deleted.
pub const REMOVING: &str = ".removing";
/// The lock of a domain's folder.
pub const LOCK: &str = ".lock";

/// The name of the image of a disk within the folder of its restore point.
pub fn image(target: &str) -> String {
    format!("{target}.qcow2")
}

/// The name by which an image names that of this disk in a restore point of the same period.
pub fn backing(point: &RestorePoint, target: &str) -> Option<String> {
    let image = &point.disk(target)?.image;
    Some(format!("../{}/{image}", point.folder()))
}

/// Splits the folder name of a finished restore point into its id and its ending.
pub fn split_finished(folder: &str) -> Option<(&str, &'static str)> {
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
