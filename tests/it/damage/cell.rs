//! One cell of the matrix: one file with one kind of damage, and every verb.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use vmsnap::model::restore_point::{DiskPoint, Level};
use vmsnap::model::text::with_sources;
use vmsnap::model::tpm_state::pack;
use vmsnap::ops::list::list;
use vmsnap::ops::restore::{DefineOptions, Options, plan};
use vmsnap::ops::status::status;
use vmsnap::ops::{Cause, Class, Error};

use super::Target;
use super::kinds::{Kind, State, Victim, inflict, state};
use super::stage::{DISKS, POINTS, Stage, is_below};

/// The files of a restore point that define its domain.
const SMALL_FILES: [&str; 3] = ["domain.xml", "nvram.fd", "tpm.tar"];

type Checked = Result<(), String>;

pub struct Cell {
    stage: Stage,
    target: Target,
    /// The damaged files, each with its former content and its present state.
    damaged: BTreeMap<PathBuf, (Vec<u8>, State)>,
}

impl Cell {
    /// Sets the stage and damages the file. Returns `None` if this kind of damage makes no sense
    /// for it.
    pub fn new(target: Target, kind: Kind) -> Option<Cell> {
        let stage = Stage::beside_another(kind == Kind::OfAnotherDomain);
        let victim = victim(&stage, target);
        let mut before = BTreeMap::new();
        for path in [Some(&victim.path), victim.twin.as_ref()].into_iter().flatten() {
            before.insert(path.clone(), fs::read(path).expect("sound"));
        }
        let damaged = inflict(kind, &victim);
        if damaged.is_empty() {
            return None;
        }
        let damaged = damaged.into_iter().map(|path| {
            let bytes = before.remove(&path).expect("it was read");
            let found = state(&path, &bytes);
            (path, (bytes, found))
        });
        Some(Cell {
            damaged: damaged.collect(),
            stage,
            target,
        })
    }

    /// Runs every verb.
    pub fn play(&mut self) -> Checked {
        self.list().map_err(|what| format!("list: {what}"))?;
        self.status().map_err(|what| format!("status: {what}"))?;
        for point in 0..POINTS {
            for (disk, name) in DISKS.iter().enumerate() {
                self.restore(point, disk)
                    .map_err(|what| format!("restore of {name} at {point}: {what}"))?;
            }
            self.define(point)
                .map_err(|what| format!("restore --define at {point}: {what}"))?;
        }
        self.latest()
            .map_err(|what| format!("restore of the latest: {what}"))?;
        self.backup().map_err(|what| format!("backup: {what}"))
    }

    fn found(&self, path: &Path) -> State {
        self.damaged.get(path).map_or(State::Same, |(_, found)| *found)
    }

    /// The manifest of a restore point if it is unusable. Its digest reveals any change.
    fn lost_manifest(&self, point: usize) -> Option<PathBuf> {
        let path = self.stage.points[point].dir.join("manifest.json");
        (self.found(&path) != State::Same).then_some(path)
    }

    /// The damaged files that a restore of this disk at this point reads, each with its state.
    fn in_the_way(&self, point: usize, disk: usize) -> Vec<(PathBuf, State)> {
        let mut found = Vec::new();
        for step in 0..=point {
            let image = self.stage.points[step].dir.join(format!("{}.qcow2", DISKS[disk]));
            found.extend(self.lost_manifest(step).map(|path| (path, State::Visible)));
            let state = self.found(&image);
            if state != State::Same {
                found.push((image, state));
            }
        }
        found
    }

    /// The damaged files that names and sizes reveal, and damaged manifests, which are read whole.
    fn to_be_told(&self) -> Vec<&Path> {
        let is_told = |(path, (_, found)): &(&PathBuf, &(Vec<u8>, State))| match self.target {
            Target::Intent | Target::Lock => false,
            Target::Manifest(_) => *found != State::Same,
            _ => {
                let belongs = self.stage.points.iter().any(|point| is_below(path, &point.dir));
                let is_checkpoint = matches!(self.target, Target::CheckpointXml(_));
                *found == State::Visible && (belongs || is_checkpoint)
            }
        };
        let told = self.damaged.iter().filter(is_told);
        told.map(|(path, _)| path.as_path()).collect()
    }

    /// Checks that the text names every visibly damaged file, and that it is empty if there is
    /// none.
    fn tells(&self, text: &str) -> Checked {
        let told = self.to_be_told();
        if told.is_empty() && !text.is_empty() {
            return Err(format!("no damage is visible, but some is reported: {text}"));
        }
        for path in told {
            if !text.contains(&path.display().to_string()) {
                return Err(format!("{} is not reported: {text:?}", path.display()));
            }
        }
        Ok(())
    }

    fn list(&self) -> Checked {
        let listed =
            list(self.stage.lab.repo.as_ref(), &["vm1".to_owned()]).map_err(|error| with_sources(&error))?;
        let mut text = String::new();
        for finding in listed[0]
            .findings
            .iter()
            .filter(|found| found.code != "unfinished-run")
        {
            text.push_str(&format!("{}\n", finding.message));
        }
        for point in &listed[0].points {
            let number = self.number(&point.point.id)?;
            let own = SMALL_FILES.map(|name| self.stage.points[number].dir.join(name));
            let is_broken = own.iter().any(|path| self.found(path) == State::Visible)
                || (0..DISKS.len()).any(|disk| {
                    let ways = self.in_the_way(number, disk);
                    ways.iter().any(|(_, found)| *found == State::Visible)
                });
            if point.is_whole() == is_broken {
                return Err(format!("point {number}: {:?}", point.faults));
            }
            text.push_str(&point.faults.join("\n"));
        }
        self.tells(&text)
    }

    fn number(&self, id: &str) -> Result<usize, String> {
        let found = self.stage.points.iter().position(|point| point.id == id);
        found.ok_or_else(|| format!("{id} was never made"))
    }

    fn status(&self) -> Checked {
        let lab = &self.stage.lab;
        let status = status("vm1", &lab.subject()).map_err(|error| with_sources(&error))?;
        let messages: Vec<&str> = status
            .findings
            .iter()
            .map(|found| found.message.as_str())
            .collect();
        self.tells(&messages.join("\n"))
    }

    fn restore(&self, point: usize, disk: usize) -> Checked {
        let moment = &self.stage.points[point];
        let ways = self.in_the_way(point, disk);
        match self.stage.lab.restored("vm1", &moment.id, DISKS[disk]) {
            Ok(bytes) if bytes != moment.disks[disk] => Err("WRONG BYTES".to_owned()),
            Ok(_) if !ways.is_empty() => Err(format!("it ignores {ways:?}")),
            Ok(_) => Ok(()),
            Err(error) => names(&error, &ways),
        }
    }

    fn define(&self, point: usize) -> Checked {
        let moment = &self.stage.points[point];
        let options = Options {
            at: moment.id.clone(),
            to: self.stage.lab.free_path(),
            pool: None,
            disks: vec![],
            format: None,
            define: Some(DefineOptions {
                name: Some("brought-back".into()),
            }),
        };
        let mut ways = Vec::new();
        for disk in 0..DISKS.len() {
            // A restore plan does not read images, so only visible damage stops it.
            let ways_of_disk = self.in_the_way(point, disk).into_iter();
            ways.extend(ways_of_disk.filter(|(_, found)| *found == State::Visible));
        }
        for name in SMALL_FILES {
            let path = moment.dir.join(name);
            let found = self.found(&path);
            if found != State::Same {
                ways.push((path, found));
            }
        }
        let lab = &self.stage.lab;
        match plan("vm1", lab.repo.as_ref(), Some(&lab.host), &options) {
            Ok(_) if !ways.is_empty() => Err(format!("it ignores {ways:?}")),
            Ok(plan) => {
                let define = plan.define.ok_or("nothing is defined")?;
                let nvram = define.nvram.and_then(|nvram| nvram.content);
                let tpm = define.tpm.and_then(|tpm| pack(&tpm.files).ok());
                let before = |name| fs::read(moment.dir.join(name)).ok();
                (nvram == before("nvram.fd") && tpm == before("tpm.tar"))
                    .then_some(())
                    .ok_or_else(|| "another state of the firmware".to_owned())
            }
            Err(error) => names(&error, &ways),
        }
    }

    /// A request for the newest restore point never returns an older one.
    fn latest(&self) -> Checked {
        let newest = POINTS - 1;
        let ways = self.in_the_way(newest, 0);
        match self.stage.lab.restored("vm1", "latest", DISKS[0]) {
            Ok(bytes) if bytes != self.stage.points[newest].disks[0] => {
                Err("an older restore point was given instead of the newest".to_owned())
            }
            Ok(_) => Ok(()),
            Err(error) => names(&error, &ways),
        }
    }

    fn backup(&mut self) -> Checked {
        self.stage.write(0xee);
        let contents = self.stage.contents();
        let outcome = match self.stage.lab.backup("vm1") {
            Ok(outcome) => outcome,
            Err(error) => return self.lock_is_none(&error),
        };
        if self.is_lock_unusable() {
            return Err("it ran without a lock".to_owned());
        }
        let mut told = String::new();
        for finding in outcome
            .findings
            .iter()
            .filter(|found| !["healed-partial", "full-instead"].contains(&found.code.as_str()))
        {
            told.push_str(&format!("{}\n", finding.message));
        }
        if self.target != Target::Intent {
            self.tells(&told)?;
        }
        if self.stage.leftover.exists() {
            return Err("the leftover stays".to_owned());
        }
        for (number, disk) in outcome.point.disks.iter().enumerate() {
            told.push_str(&disk.reason);
            let is_told = outcome
                .findings
                .iter()
                .any(|found| found.code == "full-instead" && found.disk.as_deref() == Some(&disk.target));
            self.stands_on_something_sound(number, disk, is_told)?;
        }
        if outcome.point.level == Level::Full
            && !self
                .damaged
                .keys()
                .any(|path| told.contains(&path.display().to_string()))
        {
            return Err(format!("it does not say why it is full: {told}"));
        }
        for (disk, name) in DISKS.iter().enumerate() {
            let stands_on_altered = outcome.point.disks[disk].parent.is_some()
                && self
                    .in_the_way(POINTS - 1, disk)
                    .iter()
                    .any(|(_, found)| *found == State::Altered);
            match self.stage.lab.restored("vm1", &outcome.point.id, name) {
                Ok(bytes) if bytes != self.stage.lab.disk("vm1", name) => {
                    return Err(format!("WRONG BYTES in {name} of the new point"));
                }
                Ok(_) => {}
                // Damage that only a digest shows is found when the image is read.
                Err(error) if stands_on_altered => names(&error, &self.in_the_way(POINTS - 1, disk))?,
                Err(error) => return Err(format!("{name} of the new point: {}", with_sources(&error))),
            }
        }
        let after = self.stage.contents();
        match contents
            .iter()
            .find(|(path, bytes)| after.get(*path) != Some(bytes))
        {
            Some((path, _)) => Err(format!("{path} has changed")),
            None => Ok(()),
        }
    }

    /// A new point never depends on a visibly damaged image. If only the bytes of an image are
    /// wrong, two outcomes are right: the point depends on it, or it is full and a finding says so.
    fn stands_on_something_sound(&self, disk: usize, saved: &DiskPoint, is_told: bool) -> Checked {
        let is_usable = |point: &usize| {
            let ways = self.in_the_way(*point, disk);
            ways.iter().all(|(_, found)| *found != State::Visible)
        };
        let best = (0..POINTS).rev().find(is_usable);
        let parent = saved.parent.as_deref().map(|id| self.number(id)).transpose()?;
        let ways = self.in_the_way(POINTS - 1, disk);
        let is_altered = ways.iter().any(|(_, found)| *found == State::Altered);
        if (parent == best && !is_told) || (parent.is_none() && is_altered && is_told) {
            return Ok(());
        }
        let reason = &saved.reason;
        Err(format!(
            "its parent is {parent:?} instead of {best:?}, reported: {is_told}: {reason}"
        ))
    }

    fn is_lock_unusable(&self) -> bool {
        let path = self.stage.lab.root().join("vm1/.lock");
        let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
        self.target == Target::Lock && !is_file
    }

    /// An error of a backup is right only if the domain's lock file is unusable.
    fn lock_is_none(&self, error: &Error) -> Checked {
        let text = with_sources(error);
        if self.is_lock_unusable() && text.contains("vm1/.lock") {
            return Ok(());
        }
        Err(text)
    }
}

/// An error caused by damage has the class of damage and names one of the damaged files.
fn names(error: &Error, ways: &[(PathBuf, State)]) -> Checked {
    let text = with_sources(error);
    if ways.is_empty() {
        return Err(format!("it needs no damaged file: {text}"));
    }
    let is_known = error.class() == Class::Damaged
        // An unknown version or a foreign format is not necessarily damage.
        || matches!(error.cause, Cause::Copy(_) | Cause::WrittenByANewerVmsnap { .. });
    let is_named = ways
        .iter()
        .any(|(path, _)| text.contains(&path.display().to_string()));
    if is_known && is_named {
        return Ok(());
    }
    Err(format!(
        "{:?} does not name one of {ways:?}: {text}",
        error.class()
    ))
}

fn victim(stage: &Stage, target: Target) -> Victim {
    let of_point = |point: usize, name: &str| {
        let twin = if point == 2 { 1 } else { 2 };
        Victim {
            path: stage.points[point].dir.join(name),
            twin: Some(stage.points[twin].dir.join(name)),
            foreign: stage.foreign.get(point).map(|dir| dir.join(name)),
            elsewhere: stage.lab.folder.path().to_owned(),
        }
    };
    let alone = |path: PathBuf| Victim {
        path,
        twin: None,
        foreign: None,
        elsewhere: stage.lab.folder.path().to_owned(),
    };
    match target {
        Target::Manifest(point) => of_point(point, "manifest.json"),
        Target::Image(point) => of_point(point, "vda.qcow2"),
        Target::DomainXml(point) => of_point(point, "domain.xml"),
        Target::Nvram(point) => of_point(point, "nvram.fd"),
        Target::Tpm(point) => of_point(point, "tpm.tar"),
        Target::CheckpointXml(point) => {
            let checkpoints = stage.period().join("checkpoints");
            let twin = if point == 2 { 1 } else { 2 };
            Victim {
                twin: Some(checkpoints.join(format!("{}.xml", stage.lab.made[twin]))),
                ..alone(checkpoints.join(format!("{}.xml", stage.lab.made[point])))
            }
        }
        Target::Intent => alone(stage.leftover.join("intent.json")),
        Target::Lock => alone(stage.lab.root().join("vm1/.lock")),
    }
}
