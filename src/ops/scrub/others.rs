//! Finds what a scrub with a repository leaves alone, because another repository may need it. Pure.

use std::collections::BTreeSet;

use super::found::Found;
use super::next::Outlook;
use crate::model::checkpoint::{is_own, is_unique};
use crate::model::finding::Finding;

/// Returns the names of vmsnap's checkpoints and bitmaps that another repository may need. Without
/// a repository the list is empty, because the user then means all of them.
///
/// A checkpoint names the repository it was made for. A bitmap without a checkpoint names no
/// repository. It counts as another repository's, unless a restore point or an unfinished run of
/// the given repository recorded the bitmap's name. A bitmap with a consecutive number, as earlier
/// programs gave, does not count, because no backup relies on it.
pub(super) fn names<'a>(found: &'a Found, outlook: &Outlook) -> BTreeSet<&'a str> {
    let Some(kept) = &outlook.kept else {
        return BTreeSet::new();
    };
    let own = kept.repository.as_deref();
    let is_recorded = |name: &str| found.recorded.iter().any(|recorded| recorded == name);
    let has_record = |name: &str| found.checkpoints.iter().any(|one| one.name == name);
    let checkpoints = found.checkpoints.iter();
    let checkpoints = checkpoints
        .filter(|one| is_own(&one.name) && one.is_of_other_repository(own))
        .map(|one| one.name.as_str());
    let bitmaps = found.bitmaps.iter().map(|bitmap| bitmap.name.as_str());
    let bitmaps = bitmaps.filter(|name| is_unique(name) && !has_record(name));
    checkpoints
        .chain(bitmaps)
        .filter(|name| !is_recorded(name))
        .collect()
}

/// Returns a finding about the names that stay.
pub(super) fn finding(names: &BTreeSet<&str>, kind: &str) -> Option<Finding> {
    let (first, others) = (names.first()?, names.len() - 1);
    let (all, them) = match others {
        0 => (format!("{first} stays"), "it"),
        more => (format!("{first} and {more} more stay"), "them"),
    };
    let what = format!(
        "{all}: another repository may need {them}; `vmsnap scrub --scrub-type '{kind}'` without --output and \
         without VMSNAP_REPOSITORY also removes {them}"
    );
    Some(Finding::new("left-to-other-repository", what))
}
