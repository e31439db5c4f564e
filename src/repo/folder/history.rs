//! Reads a domain's folder: restore points, their problems, and leftovers of unfinished runs.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;

use super::layout::{self, split_finished};
use super::look::{Entry, entries, folder_names};
use super::point::{Expected, Unusable, checkpoint_fault, file_faults, read_point};
use super::proofs::Proofs;
use super::{committed, pins, removed};
use crate::model::chain::{Chains, KeptPoint, LostPoint};
use crate::model::finding::Finding;
use crate::model::period::{FOLDER_PREFIX, holds_restore_points};
use crate::repo::history::{History, Kept, Leftover, WRITTEN_BY_A_NEWER_VMSNAP};
use crate::repo::manifest::Manifest;
use crate::repo::{RepoError, Result};

/// Reads a domain's folder. A missing folder is empty.
pub(super) fn read(dir: &Path, domain: &str) -> Result<History> {
    let proofs = Proofs::read(dir)?;
    let mut found = Found::default();
    for (period, entry) in entries(dir)? {
        if !holds_restore_points(&period) {
            continue;
        }
        let period_dir = dir.join(&period);
        let of_period = match is_folder(&period_dir, entry)? {
            Ok(()) => read_period(&period_dir, domain, &period, &proofs)?,
            Err(what) => Found::of_finding("period-unreadable", what),
        };
        // A period loses its name before its files. If it is being removed now, it has not lost
        // files; it is no longer there.
        if !is_gone(&period_dir) {
            found.take(of_period);
        }
    }
    found.miss();
    found.leave_out_merged();
    let Found {
        mut history,
        points,
        lost,
        ..
    } = found;
    let is_there = |id: &str| history.kept.iter().any(|kept| kept.manifest.point.id == id);
    let unreadable: Vec<Finding> = proofs.findings(is_there).collect();
    history.findings.extend(unreadable);
    // Read last, so that it lists restore points that were removed while the others were read.
    let (removed, unreadable) = removed::read(dir)?;
    history.findings.extend(unreadable);
    history.chains = Chains::new(points).beside(lost).with_removed(removed);
    let points = history.chains.points().iter().zip(0..);
    let order: HashMap<&str, usize> = points
        .map(|(kept, place)| (kept.point.id.as_str(), place))
        .collect();
    let place = |kept: &Kept| order.get(kept.manifest.point.id.as_str()).copied();
    history.kept.sort_by_key(place);
    Ok(history)
}

/// The content that was found, before it is put in order.
#[derive(Default)]
struct Found {
    history: History,
    points: Vec<KeptPoint>,
    lost: Vec<LostPoint>,
    /// Restore points that were committed to a period and are not in the period's folder.
    gone: Vec<LostPoint>,
    /// The ids of restore points that a merge has removed, and whose files are still to be removed.
    merged: BTreeSet<String>,
}

impl Found {
    fn of_finding(code: &str, what: String) -> Found {
        let mut found = Found::default();
        found.history.findings.push(Finding::new(code, what));
        found
    }

    /// Adds a restore point whose content is unknown.
    fn lose(&mut self, code: &str, lost: LostPoint) {
        let what = lost.what.clone();
        self.history.findings.push(Finding::new(code, what));
        self.lost.push(lost);
    }

    /// Reports the missing restore points. Skips those that were already reported as unreadable or
    /// misnamed.
    fn miss(&mut self) {
        for gone in std::mem::take(&mut self.gone) {
            if !self.lost.iter().any(|lost| lost.id == gone.id) {
                self.lose("restore-point-missing", gone);
            }
        }
    }

    /// Leaves out the restore points that were merged into another one and whose folders are still
    /// there.
    fn leave_out_merged(&mut self) {
        let gone = std::mem::take(&mut self.merged);
        self.points.retain(|kept| !gone.contains(&kept.point.id));
        let is_kept = |kept: &Kept| !gone.contains(&kept.manifest.point.id);
        self.history.kept.retain(is_kept);
        self.lost.retain(|lost| !gone.contains(&lost.id));
    }

    fn keep(&mut self, dir: &Path, manifest: Manifest, proofs: &Proofs) -> Result<()> {
        let (pin, unreadable) = pins::read(dir)?;
        self.history.findings.extend(unreadable);
        let proof = proofs.of(&manifest);
        let of_checkpoint = dir
            .parent()
            .and_then(|period| checkpoint_fault(period, &manifest));
        if let Some(merged) = &manifest.point.merged
            && !is_gone(&dir.join(layout::MERGING))
        {
            let ids = merged.points.iter().map(|point| point.id.clone());
            self.merged.extend(ids);
        }
        let has_checkpoint_file = of_checkpoint.is_none();
        self.history.findings.extend(of_checkpoint);
        self.points.push(KeptPoint {
            point: manifest.point.clone(),
            manifest: manifest.digest.clone(),
            faults: file_faults(dir, &manifest),
            suspected_damage: proofs.suspected_damage(&manifest),
            missed_writes: proofs.missed_writes(&manifest),
            pin,
            needs_parents: true,
        });
        let records = proofs.records(&manifest.point.id);
        let boot_proof = proofs.booted(&manifest);
        self.history.kept.push(Kept {
            location: dir.display().to_string(),
            manifest,
            proof,
            records,
            boot_proof,
            has_checkpoint_file,
        });
        Ok(())
    }

    fn take(&mut self, other: Found) {
        self.history.kept.extend(other.history.kept);
        self.history.findings.extend(other.history.findings);
        self.history.leftovers.extend(other.history.leftovers);
        self.points.extend(other.points);
        self.lost.extend(other.lost);
        self.gone.extend(other.gone);
        self.merged.extend(other.merged);
    }
}

fn read_period(period_dir: &Path, domain: &str, period: &str, proofs: &Proofs) -> Result<Found> {
    let mut found = Found::default();
    let mut committed = committed::read(period_dir)?;
    for (folder, entry) in entries(period_dir)? {
        let point_dir = period_dir.join(&folder);
        if let Some(stem) = folder.strip_suffix(layout::PARTIAL) {
            match finished_name(stem, &committed) {
                Some(name) => {
                    committed.remove(&name);
                    found.lose("restore-point-misnamed", misnamed(&point_dir, stem, &name));
                }
                None if matches!(entry, Entry::Folder) => {
                    found.history.leftovers.push(Leftover {
                        key: format!("{period}/{folder}"),
                        location: point_dir.display().to_string(),
                        is_merge: false,
                    });
                }
                None => {}
            }
        } else if let Some((id, _)) = split_finished(&folder) {
            committed.remove(&folder);
            let expected = Expected {
                id,
                domain,
                period,
                folder: &folder,
            };
            let read = match is_folder(&point_dir, entry)? {
                Ok(()) => read_point(&point_dir, &expected)?,
                Err(what) => Err(Unusable::damaged(what)),
            };
            let mut of_point = Found::default();
            match read {
                Ok(manifest) => of_point.keep(&point_dir, manifest, proofs)?,
                Err(Unusable { what, is_newer }) => {
                    let code = if is_newer {
                        WRITTEN_BY_A_NEWER_VMSNAP
                    } else {
                        "restore-point-unreadable"
                    };
                    let lost = LostPoint {
                        id: id.to_owned(),
                        what,
                        is_newer,
                        is_gone: false,
                    };
                    of_point.lose(code, lost);
                }
            }
            // A concurrent removal deletes the committed name first, then renames the folder, then
            // deletes the files.
            if !is_gone(&point_dir) {
                found.take(of_point);
            } else if is_recorded(period_dir, &folder) {
                found.gone.extend(gone(period_dir, &folder));
            }
        }
    }
    let missing = committed.iter().filter(|folder| is_recorded(period_dir, folder));
    let missing: Vec<LostPoint> = missing.filter_map(|folder| gone(period_dir, folder)).collect();
    found.gone.extend(missing);
    Ok(found)
}

/// Whether this folder is still recorded as committed.
fn is_recorded(period_dir: &Path, folder: &str) -> bool {
    !is_gone(&committed::record(period_dir, folder))
}

/// The committed name of a restore point whose folder now has the name of an unfinished restore
/// point. `None` for a restore point that is really unfinished.
fn finished_name(stem: &str, committed: &BTreeSet<String>) -> Option<String> {
    let names = [layout::FULL, layout::INCREMENTAL].map(|ending| format!("{stem}{ending}"));
    names.into_iter().find(|name| committed.contains(name))
}

fn misnamed(dir: &Path, id: &str, name: &str) -> LostPoint {
    LostPoint {
        id: id.to_owned(),
        what: format!(
            "the folder {} holds a committed restore point, but is named like an unfinished one: rename the folder back to {name}",
            dir.display()
        ),
        is_newer: false,
        is_gone: false,
    }
}

/// A restore point that was committed and is missing.
fn gone(period_dir: &Path, folder: &str) -> Option<LostPoint> {
    let (id, _) = split_finished(folder)?;
    Some(LostPoint {
        id: id.to_owned(),
        what: format!(
            "restore point {} is missing (if it was removed on purpose, remove {} too)",
            period_dir.join(folder).display(),
            committed::record(period_dir, folder).display()
        ),
        is_newer: false,
        is_gone: true,
    })
}

/// Checks that the path is a folder; otherwise returns a sentence that names the path.
fn is_folder(path: &Path, entry: Entry) -> Result<std::result::Result<(), String>> {
    let shown = path.display();
    match entry {
        Entry::Folder => Ok(Ok(())),
        Entry::LinkToNowhere => Ok(Err(format!("{shown} is a dangling or circular link"))),
        Entry::NoFolder => Ok(Err(format!("{shown} is not a folder"))),
        Entry::Unknown(error) => Err(RepoError::io("examine", path)(error)),
    }
}

/// The ids of the restore points that exist or should exist, whatever the state of their folders.
/// `None` if they cannot be determined, for example because of a broken link or an unmounted file
/// system.
pub(super) fn ids_that_may_be_there(dir: &Path) -> Result<Option<BTreeSet<String>>> {
    let mut ids = BTreeSet::new();
    for (period, entry) in entries(dir)? {
        if !holds_restore_points(&period) {
            continue;
        }
        let period_dir = dir.join(period);
        let there = match entry {
            Entry::Folder => entries(&period_dir)?,
            _ => return Ok(None),
        };
        // A period that is pruned at the same time loses its name first.
        if there.is_empty() && !is_gone(&period_dir) {
            return Ok(None);
        }
        let names = there.into_iter().map(|(name, _)| name);
        let names = names.chain(committed::read(&period_dir)?);
        ids.extend(names.filter_map(|name| {
            let stem = name.strip_suffix(layout::PARTIAL);
            let id = stem.or_else(|| Some(split_finished(&name)?.0))?;
            Some(id.to_owned())
        }));
    }
    Ok(Some(ids))
}

/// The folders of periods that hold backups, including those of other programs and those with
/// unreadable restore points.
pub(super) fn used_periods(dir: &Path) -> Result<Vec<String>> {
    let mut used = Vec::new();
    for name in folder_names(dir)? {
        let is_backup = |(name, _): &(String, Entry)| is_of_backup(name);
        if name.starts_with(FOLDER_PREFIX) && entries(&dir.join(&name))?.iter().any(is_backup) {
            used.push(name);
        }
    }
    Ok(used)
}

/// Whether a name in a period's folder is that of a finished restore point, or of a file of
/// virtnbdbackup.
fn is_of_backup(name: &str) -> bool {
    split_finished(name).is_some() || name.ends_with(".data") || name.ends_with(".cpt")
}

/// Whether nothing exists at a path; false if that cannot be determined.
pub(super) fn is_gone(dir: &Path) -> bool {
    dir.symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The names of the folders in the repository that hold periods, and of those that cannot be
/// examined: opening them reports the reason.
pub(super) fn domain_folders(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (name, entry) in entries(root)? {
        let is_one = match entry {
            Entry::Folder => match entries(&root.join(&name)) {
                Ok(within) => within.iter().any(|(name, _)| holds_restore_points(name)),
                // A file system keeps recovered files there; only its owner may look into it.
                Err(_) => name != "lost+found",
            },
            Entry::NoFolder => false,
            Entry::LinkToNowhere | Entry::Unknown(_) => true,
        };
        if is_one {
            names.push(name);
        }
    }
    Ok(names)
}
