//! Plans a scrub before anything is done: what goes, what remains, and what the next backup will
//! be. Pure.

use std::collections::BTreeSet;

use super::DiskBitmap;
use super::found::Found;
use super::next::{LeftByScrub, NextBackup, Outlook, next_backup};
use super::others;
use crate::model::checkpoint::{Bitmap, Checkpoint, is_own, sort_key};
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::ops::error::Cause;

/// The kinds of things that a scrub removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubType {
    /// The records of vmsnap's checkpoints; their bitmaps stay.
    Checkpoint,
    /// vmsnap's bitmaps; the records of their checkpoints stay.
    Bitmap,
    /// Checkpoints and bitmaps.
    Both,
    /// All of vmsnap's checkpoints and bitmaps, even if a name was given.
    All,
}

impl ScrubType {
    /// All of them, in the order of the documentation.
    pub const ALL: [ScrubType; 4] = [
        ScrubType::Checkpoint,
        ScrubType::Bitmap,
        ScrubType::Both,
        ScrubType::All,
    ];

    /// Returns the value of `--scrub-type` for this type.
    pub fn word(self) -> &'static str {
        match self {
            ScrubType::Checkpoint => "checkpoint",
            ScrubType::Bitmap => "bitmap",
            ScrubType::Both => "both",
            ScrubType::All => "*",
        }
    }

    /// Returns the type with this word.
    pub(crate) fn from_word(word: &str) -> Option<ScrubType> {
        ScrubType::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// Returns the things that it removes, for a sentence.
    fn what(self) -> &'static str {
        match self {
            ScrubType::Checkpoint => "checkpoint",
            ScrubType::Bitmap => "bitmap",
            ScrubType::Both | ScrubType::All => "checkpoint or bitmap",
        }
    }
}

/// One step of a scrub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Removes the record of this checkpoint.
    Forget(String),
    /// Removes this checkpoint with its bitmaps.
    Delete(String),
    /// Removes the bitmaps of this name.
    RemoveBitmaps(String),
}

impl Step {
    /// Returns the name of the bitmaps that it removes, if it removes bitmaps.
    pub(super) fn bitmaps(&self) -> Option<&String> {
        match self {
            Step::Forget(_) => None,
            Step::Delete(name) | Step::RemoveBitmaps(name) => Some(name),
        }
    }
}

/// The plan of a scrub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubPlan {
    /// The steps, in this order.
    pub steps: Vec<Step>,
    /// The checkpoints whose records are removed.
    pub checkpoints: Vec<String>,
    /// The known bitmaps that are removed.
    pub bitmaps: Vec<DiskBitmap>,
    /// Names of bitmaps that are removed if they exist. Whether they exist cannot be known in
    /// advance.
    pub tried: Vec<String>,
    /// The bitmaps that remain without a checkpoint.
    pub left: Vec<DiskBitmap>,
    /// The next backup after the scrub.
    pub next: NextBackup,
    /// Other findings.
    pub findings: Vec<Finding>,
}

/// Plans a scrub of this kind, for one name or for all of vmsnap's names.
pub fn plan(
    domain: &Domain,
    found: &Found,
    kind: ScrubType,
    name: Option<&str>,
    outlook: &Outlook,
) -> Result<ScrubPlan, Cause> {
    let mut findings = Vec::new();
    let name = match (name, kind) {
        (Some(name), ScrubType::All) => {
            findings.push(Finding::new(
                "checkpoint-name-ignored",
                format!(
                    "--checkpoint-name '{name}' is ignored: --scrub-type '*' removes all of vmsnap's checkpoints and bitmaps"
                ),
            ));
            None
        }
        (Some(name), _) if !is_own(name) => {
            return Err(Cause::NotOurs {
                name: name.to_owned(),
            });
        }
        (name, _) => name,
    };
    let others = others::names(found, outlook);
    if let Some(name) = name.filter(|name| others.contains(name)) {
        return Err(Cause::OtherRepository {
            name: name.to_owned(),
        });
    }
    if name.is_none() {
        findings.extend(others::finding(&others, kind.word()));
    }
    let targets = Targets::of(domain, found, name, &others);
    let unchanged = LeftByScrub {
        checkpoints: &found.checkpoints,
        bitmaps: &found.bitmaps,
        gone: &[],
    };
    let mut plan = ScrubPlan {
        steps: Vec::new(),
        checkpoints: Vec::new(),
        bitmaps: Vec::new(),
        tried: Vec::new(),
        left: Vec::new(),
        next: next_backup(domain, &unchanged, outlook),
        findings,
    };
    match kind {
        ScrubType::Checkpoint => targets.forget(&mut plan),
        ScrubType::Bitmap => targets.remove_bitmaps(&mut plan),
        ScrubType::Both | ScrubType::All => targets.remove_both(&mut plan),
    }
    if let Some(name) = name
        && plan.steps.is_empty()
    {
        return Err(not_there(kind, name));
    }
    let bitmaps = staying(found, &plan);
    let gone: Vec<String> = plan.steps.iter().filter_map(Step::bitmaps).cloned().collect();
    let left = LeftByScrub {
        checkpoints: &after(&plan.steps, &found.checkpoints),
        bitmaps: &bitmaps,
        gone: &gone,
    };
    plan.next = next_backup(domain, &left, outlook);
    if kind != ScrubType::Checkpoint && name.is_none() && domain.state.is_active() && outlook.kept.is_none() {
        plan.findings.push(Finding::new(
            "bitmaps-not-listed",
            "while the domain runs, bitmaps that were created since its start and have no checkpoint cannot be \
             listed; to remove such bitmaps, name each with --checkpoint-name, or use --output with the repository \
             that recorded them, or scrub while the domain is shut off",
        ));
    }
    Ok(plan)
}

/// Returns the known bitmaps that the plan does not remove.
pub(crate) fn staying(found: &Found, plan: &ScrubPlan) -> Vec<DiskBitmap> {
    let stays = |bitmap: &&DiskBitmap| !plan.bitmaps.contains(bitmap);
    found.bitmaps.iter().filter(stays).cloned().collect()
}

/// Creates the error that nothing has this name.
pub(crate) fn not_there(kind: ScrubType, name: &str) -> Cause {
    Cause::NotThere {
        what: kind.what(),
        name: name.to_owned(),
    }
}

/// The things that a scrub removes.
struct Targets<'a> {
    is_active: bool,
    checkpoints: Vec<&'a Checkpoint>,
    bitmaps: Vec<&'a DiskBitmap>,
    /// Names that bitmaps may have although they cannot be listed.
    suspected: Vec<&'a str>,
}

impl<'a> Targets<'a> {
    fn of(domain: &Domain, found: &'a Found, name: Option<&'a str>, others: &BTreeSet<&str>) -> Self {
        let is_named = |of: &str| name.is_none_or(|name| name == of);
        let is_meant = |of: &str| is_own(of) && is_named(of) && !others.contains(of);
        let is_active = domain.state.is_active();
        let mut suspected: Vec<&str> = Vec::new();
        if is_active {
            let listed = found.checkpoints.iter().map(|checkpoint| &checkpoint.name);
            suspected.extend(listed.clone().chain(&found.recorded).map(String::as_str));
            let is_known = |of: &str| found.bitmaps.iter().any(|known| known.name == of);
            let is_lost = |of: &str| found.bitmaps_known && listed.clone().any(|name| name == of);
            suspected.retain(|of| is_meant(of) && !is_known(of) && !is_lost(of));
            suspected.extend(name.filter(|name| !is_known(name)));
            sort_names(&mut suspected);
        }
        let checkpoints = found.checkpoints.iter();
        let bitmaps = found.bitmaps.iter();
        Targets {
            is_active,
            checkpoints: checkpoints
                .filter(|checkpoint| is_meant(&checkpoint.name))
                .collect(),
            bitmaps: bitmaps.filter(|bitmap| is_meant(&bitmap.name)).collect(),
            suspected,
        }
    }

    fn checkpoint(&self, name: &str) -> Option<&Checkpoint> {
        let mut checkpoints = self.checkpoints.iter();
        checkpoints.find(|checkpoint| checkpoint.name == name).copied()
    }

    /// Returns the names of the known bitmaps, each once.
    fn bitmap_names(&self) -> Vec<&'a str> {
        let mut names: Vec<&str> = self.bitmaps.iter().map(|bitmap| bitmap.name.as_str()).collect();
        sort_names(&mut names);
        names
    }

    fn all_bitmaps(&self) -> Vec<DiskBitmap> {
        self.bitmaps.iter().copied().cloned().collect()
    }

    fn forget(&self, plan: &mut ScrubPlan) {
        for checkpoint in &self.checkpoints {
            plan.steps.push(Step::Forget(checkpoint.name.clone()));
            plan.checkpoints.push(checkpoint.name.clone());
        }
        let orphaned = |bitmap: &&&DiskBitmap| self.checkpoint(&bitmap.name).is_some();
        let left = self.bitmaps.iter().filter(orphaned);
        plan.left = left.map(|bitmap| (*bitmap).clone()).collect();
        if !plan.left.is_empty() {
            let how = match self.is_active {
                true => {
                    "`--scrub-type bitmap` removes one bitmap with --checkpoint-name NAME, or all of vmsnap's bitmaps while the domain is shut off"
                }
                false => "`--scrub-type bitmap` removes the bitmaps",
            };
            plan.findings.push(Finding::new(
                "bitmaps-left",
                format!(
                    "the bitmaps stay and still track writes; each costs memory, space in its image and a little time per write; \
                     later backups can still use those that belong to a restore point; {how}"
                ),
            ));
        }
    }

    fn remove_bitmaps(&self, plan: &mut ScrubPlan) {
        plan.bitmaps = self.all_bitmaps();
        plan.tried = owned(&self.suspected);
        let known = self.bitmap_names();
        for name in known.iter().chain(&self.suspected) {
            plan.steps.push(Step::RemoveBitmaps((*name).to_owned()));
        }
        let bare = self
            .checkpoints
            .iter()
            .filter(|checkpoint| known.contains(&checkpoint.name.as_str()));
        let bare: Vec<&str> = bare.map(|checkpoint| checkpoint.name.as_str()).collect();
        if !bare.is_empty() {
            plan.findings.push(Finding::new(
                "checkpoints-left",
                match bare.as_slice() {
                    [one] => format!(
                        "checkpoint {one} stays without bitmaps: no incremental backup can start from it; \
                         `--scrub-type checkpoint` removes its record"
                    ),
                    several => format!(
                        "checkpoints {} stay without bitmaps: no incremental backup can start from them; \
                         `--scrub-type checkpoint` removes their records",
                        several.join(", ")
                    ),
                },
            ));
        }
    }

    fn remove_both(&self, plan: &mut ScrubPlan) {
        plan.bitmaps = self.all_bitmaps();
        for checkpoint in &self.checkpoints {
            plan.steps.push(Step::Delete(checkpoint.name.clone()));
            plan.checkpoints.push(checkpoint.name.clone());
        }
        let without_record = |name: &&&str| self.checkpoint(name).is_none();
        plan.tried = self
            .suspected
            .iter()
            .filter(without_record)
            .map(|name| (*name).to_owned())
            .collect();
        // In an active domain, removing a checkpoint removes only the bitmaps of the checkpoint's
        // own disks.
        let is_missed = |bitmap: &&&DiskBitmap| match self.checkpoint(&bitmap.name) {
            None => true,
            Some(checkpoint) => self.is_active && !covers(checkpoint, &bitmap.disk),
        };
        let mut missed: Vec<&str> = self
            .bitmaps
            .iter()
            .filter(is_missed)
            .map(|bitmap| bitmap.name.as_str())
            .collect();
        sort_names(&mut missed);
        let bitmaps = owned(&missed).into_iter().chain(plan.tried.clone());
        plan.steps.extend(bitmaps.map(Step::RemoveBitmaps));
    }
}

/// Whether a checkpoint covers this disk.
pub fn covers(checkpoint: &Checkpoint, target: &str) -> bool {
    checkpoint.disks.iter().any(|disk| disk.target == target)
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Sorts names by their numbers, and removes duplicates.
fn sort_names(names: &mut Vec<&str>) {
    names.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
    names.dedup();
}

/// Returns the checkpoints as they will be after these steps.
fn after(steps: &[Step], checkpoints: &[Checkpoint]) -> Vec<Checkpoint> {
    let mut left = checkpoints.to_vec();
    for step in steps {
        match step {
            Step::Forget(name) | Step::Delete(name) => left.retain(|checkpoint| checkpoint.name != *name),
            Step::RemoveBitmaps(name) => {
                let bare = left.iter_mut().filter(|checkpoint| checkpoint.name == *name);
                for disk in bare.flat_map(|checkpoint| &mut checkpoint.disks) {
                    disk.bitmap = Bitmap::Broken;
                }
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Capabilities;
    use crate::model::checkpoint::CheckpointDisk;
    use crate::model::domain::{Agent, DomainState};

    fn domain(state: DomainState) -> Domain {
        Domain {
            name: "vm1".into(),
            uuid: String::new(),
            state,
            persistent: true,
            id: None,
            disks: Vec::new(),
            nvram: None,
            excluded: Vec::new(),
            tpm: None,
            agent: Agent::None,
            inactive_xml: String::new(),
        }
    }

    /// A checkpoint of vmsnap's and a foreign one. Their bitmaps are not listed.
    fn found(bitmaps_known: bool) -> Found {
        let disk = CheckpointDisk {
            target: "vda".into(),
            bitmap: Bitmap::Broken,
            dirty_bytes: None,
        };
        let checkpoint = |name: &str| Checkpoint {
            name: name.into(),
            created: 1,
            mark: None,
            disks: vec![disk.clone()],
        };
        Found {
            checkpoints: vec![checkpoint("virtnbdbackup.10"), checkpoint("mine")],
            bitmaps: Vec::new(),
            recorded: ["mine", "virtnbdbackup.10", "virtnbdbackup.9"]
                .map(str::to_owned)
                .to_vec(),
            bitmaps_known,
        }
    }

    fn bitmaps_tried(state: DomainState, bitmaps_known: bool) -> Vec<String> {
        let outlook = Outlook {
            capabilities: Capabilities {
                incremental: Ok(()),
                versions: String::new(),
            },
            kept: None,
        };
        let plan = plan(
            &domain(state),
            &found(bitmaps_known),
            ScrubType::Bitmap,
            None,
            &outlook,
        );
        plan.expect("it can be planned").tried
    }

    #[test]
    fn bitmaps_are_probed_only_where_they_cannot_be_listed() {
        assert_eq!(bitmaps_tried(DomainState::ShutOff, true), [""; 0]);
        assert_eq!(bitmaps_tried(DomainState::Running, true), ["virtnbdbackup.9"]);
        assert_eq!(
            bitmaps_tried(DomainState::Running, false),
            ["virtnbdbackup.9", "virtnbdbackup.10"],
            "its bitmap may be there and inconsistent"
        );
    }

    #[test]
    fn names_are_sorted_by_number_without_duplicates() {
        let mut names = vec!["virtnbdbackup.10", "virtnbdbackup.9", "virtnbdbackup.10"];
        sort_names(&mut names);
        assert_eq!(names, ["virtnbdbackup.9", "virtnbdbackup.10"]);
    }
}
