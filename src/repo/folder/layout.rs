//! Names of files and folders. Pure.

use crate::model::restore_point::RestorePoint;

/// The ending of a restore point's folder while it is being written.
pub const PARTIAL: &str = ".partial";
/// The ending of the folder of a restore point that was committed as full.
pub const FULL: &str = ".full";
/// The ending of the folder of a restore point that was committed as incremental. A merge that
/// makes it full does not change the name.
pub const INCREMENTAL: &str = ".inc";
/// The file name of the commit record.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The file name of a manifest with which a merge will replace the present one.
pub(crate) const NEW_MANIFEST: &str = "manifest.json.new";
/// The note that restore points are being merged into the one in this folder.
pub(crate) const MERGING: &str = "merging";
/// The part of the name of a new image between the name of the old one and the merge's number.
const MERGED: &str = ".merged-";
/// The ending of the file with the patch of an image.
const PATCH: &str = ".patch";
/// The ending of the note beside an image that a merge continues.
const CONTINUED: &str = ".continued";
/// The journal entry of an unfinished run, for the run that cleans up after it.
pub(crate) const INTENT: &str = "intent.json";
/// The folder of the checkpoints' XML within a period.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// The folder of the names of a period's committed restore points.
pub(crate) const COMMITTED: &str = ".committed";
/// The pin of a restore point, in its folder.
pub(crate) const PIN: &str = "pinned.json";
/// The record of removed restore points, in the domain's folder.
pub(crate) const REMOVED: &str = ".removed.json";
/// The mark of a restore in place, in the domain's folder.
pub(crate) const RESTORING: &str = ".restoring.json";
/// The suffix of a restore point's folder while the folder is being deleted.
pub(crate) const REMOVING_SUFFIX: &str = ".removing";
/// The file that the writer of a domain's folder locks.
pub(crate) const LOCK: &str = ".lock";

/// The name of the image of a disk within the folder of its restore point.
pub fn image(target: &str) -> String {
    format!("{target}.qcow2")
}

/// The backing file name of an image in `period` that depends on this disk of `point`.
pub fn backing(point: &RestorePoint, target: &str, period: &str) -> Option<String> {
    let image = &point.disk(target)?.image;
    let folder = point.folder();
    Some(match point.period == period {
        true => format!("../{folder}/{image}"),
        false => format!("../../{}/{folder}/{image}", point.period),
    })
}

/// The name of an image that the merge with this number has written, until it takes the place of
/// the old one.
pub(crate) fn merged_image(image: &str, number: usize) -> String {
    format!("{image}{MERGED}{number}")
}

/// The number of the merge that has written the image or the patch with this name.
pub(crate) fn merge_number(name: &str) -> Option<usize> {
    let name = name.strip_suffix(PATCH).unwrap_or(name);
    name.rsplit_once(MERGED)?.1.parse().ok()
}

/// The name of the file with the patch of an image that a merge has continued.
pub(crate) fn patch(merged_image: &str) -> String {
    format!("{merged_image}{PATCH}")
}

/// The name of the note beside an image that a merge continues. With it, the image may be longer
/// than its manifest says.
pub(crate) fn continued(image: &str) -> String {
    format!("{image}{CONTINUED}")
}

/// The name of the image to which a note with this name belongs.
pub(crate) fn image_continued(name: &str) -> Option<&str> {
    name.strip_suffix(CONTINUED).filter(|image| !image.is_empty())
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
    fn only_images_of_merges_have_a_number() {
        let merged = merged_image("vda.qcow2", 12);
        assert_eq!(merge_number(&merged), Some(12));
        assert_eq!(merge_number(&patch(&merged)), Some(12));
        for other in ["vda.qcow2", "vda.qcow2.merged-", "vda.merged-x", "manifest.json"] {
            assert_eq!(merge_number(other), None, "{other}");
        }
    }

    #[test]
    fn only_finished_folders_are_split() {
        assert_eq!(
            split_finished("2026-11-01T02-00-03Z.inc"),
            Some(("2026-11-01T02-00-03Z", INCREMENTAL))
        );
        assert_eq!(split_finished("2026-11-01T02-00-03Z.partial"), None);
    }
}
