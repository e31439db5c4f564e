//! What a scrub with a repository leaves alone, because another repository may need it. Pure.

use std::collections::BTreeSet;

use super::found::Found;
use super::next::Outlook;
use crate::model::checkpoint::{is_own, is_unique};
use crate::model::finding::Finding;

/// The names of checkpoints and bitmaps of ours that another repository may need. Without a repository there are none: then the user means all.
///
/// A checkpoint says for which repository it was made. A bitmap without a checkpoint says nothing, so it counts as another repository's unless a
/// restore point or an unfinished run here recorded its name. Counted names, which earlier programs gave, are the parent of no backup.
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

/// Reports what stays.
pub(super) fn finding(names: &BTreeSet<&str>, kind: &str) -> Option<Finding> {
    let (first, others) = (names.first()?, names.len() - 1);
    let all = match others {
        0 => format!("{first} stays"),
        more => format!("{first} and {more} more stay"),
    };
    let what = format!(
        "{all}: another repository may need it; `vmsnap scrub --scrub-type '{}'` without --output removes it too",
        kind
    );
    Some(Finding::new("left-to-other-repository", what))
}
