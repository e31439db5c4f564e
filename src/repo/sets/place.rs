//! Finds the sets in a folder, and which domain and period each belongs to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::folder;
use crate::model::file_name::{escape, is_plain_name};
use crate::model::period::{FOLDER_PREFIX, holds_restore_points};
use crate::repo::Result;

/// How deep below the given folder sets are looked for: `DOMAIN/PERIOD` are two levels.
const DEEPEST: usize = 2;

/// A folder with a set.
#[derive(Clone, Debug)]
pub(super) struct SetPlace {
    /// The folder.
    pub(super) dir: PathBuf,
    /// The name of the domain.
    pub(super) domain: String,
    /// The name of the period of its restore points: the folder's name, if that is the name of a
    /// period.
    pub(super) period: String,
    /// The ids of restore points in other sets of the domain.
    pub(super) taken: BTreeSet<String>,
}

/// The sets in this folder and the folders below it, in the order of their paths. Each set of a
/// domain has a period of its own.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn find(root: &Path) -> Result<Vec<SetPlace>> {
    let mut found = Vec::new();
    look(root, 0, &mut found)?;
    Ok(found)
}

fn look(dir: &Path, depth: usize, found: &mut Vec<SetPlace>) -> Result<()> {
    let names = folder::names(dir)?;
    if folder::is_set(&names) {
        let place = place(dir, depth, &names, found);
        found.push(place);
    }
    if depth == DEEPEST {
        return Ok(());
    }
    for name in &names {
        let below = dir.join(name);
        // A folder that cannot be read may hold sets, except the one that file systems keep.
        let is_folder = || below.symlink_metadata().is_ok_and(|found| found.is_dir());
        if name != "lost+found" && name != "checkpoints" && is_folder() {
            look(&below, depth + 1, found)?;
        }
    }
    Ok(())
}

fn place(dir: &Path, depth: usize, names: &BTreeSet<String>, found: &[SetPlace]) -> SetPlace {
    let name_of = |dir: Option<&Path>| {
        let name = dir.and_then(Path::file_name).and_then(|name| name.to_str());
        name.unwrap_or_default().to_owned()
    };
    let own = name_of(Some(dir));
    let of_definition = folder::any_definition(dir, names).map(|definition| definition.name);
    let of_list = || folder::domain_of_list(names).map(str::to_owned);
    let of_folder = || match depth == DEEPEST {
        true => name_of(dir.parent()),
        false => own.clone(),
    };
    let domain = of_definition.or_else(of_list).unwrap_or_else(of_folder);
    let wanted = match holds_restore_points(&own) {
        true => own,
        false => format!("{FOLDER_PREFIX}set-{}", escape(&own).unwrap_or_default()),
    };
    let wanted = match is_plain_name(&wanted) {
        true => wanted,
        false => format!("{FOLDER_PREFIX}set"),
    };
    let is_taken = |period: &str| {
        found
            .iter()
            .any(|place| place.domain == domain && place.period == period)
    };
    let mut period = wanted.clone();
    for number in 2.. {
        if !is_taken(&period) {
            break;
        }
        period = format!("{wanted}-{number}");
    }
    SetPlace {
        dir: dir.to_owned(),
        domain,
        period,
        taken: BTreeSet::new(),
    }
}
