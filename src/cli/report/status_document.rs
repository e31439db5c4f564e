//! The document of `vmsnap status`, for JSON and YAML: the keys of the Node.js VMSnap in its order,
//! then the others.

use serde::{Serialize, Serializer};

use super::parts::{BootProofPart, FindingPart, LeftDiskPart, Text, findings, left_disks, texts};
use crate::cli::pretty;
use crate::model::restore_point::Level;
use crate::ops::plan::BackupPlan;
use crate::ops::status::{DirStats, DiskStatus, DomainStatus};

/// The document of a status: a key per domain.
#[derive(Debug)]
pub struct StatusDocument<'a>(pub(super) Vec<(&'a str, StatusPart<'a>)>);

impl Serialize for StatusDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(domain, part)| (domain, part)))
    }
}

/// The state of a domain.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusPart<'a> {
    pub(super) checkpoints: Vec<Text<'a>>,
    pub(super) disks: Vec<DiskPart<'a>>,
    pub(super) overall_status: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backup_dir_stats: Option<FolderPart<'a>>,
    pub(super) state: Text<'a>,
    pub(super) newest_checkpoint: Option<Text<'a>>,
    pub(super) newest_checkpoint_time: Option<Text<'a>>,
    pub(super) changed_bytes: Option<u64>,
    pub(super) last_restore_point: Option<Text<'a>>,
    pub(super) last_restore_point_time: Option<Text<'a>>,
    pub(super) next_backup: Option<NextPart<'a>>,
    pub(super) inconsistencies: Vec<Text<'a>>,
    pub(super) findings: Vec<FindingPart<'a>>,
    pub(super) repairs: Vec<Text<'a>>,
    pub(super) last_verified_time: Option<Text<'a>>,
    pub(super) last_verified_damage: Vec<Text<'a>>,
    pub(super) boot_proof: Option<BootProofPart<'a>>,
    pub(super) doubt: Option<Text<'a>>,
    pub(super) writer: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) missed_writes: Vec<MissedPart<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) left_out: Vec<LeftDiskPart<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) last_restore_point_lacks: Vec<Text<'a>>,
}

/// The state of a disk.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DiskPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) virtual_size: Size,
    pub(super) actual_size: Size,
    pub(super) bitmaps: Vec<Text<'a>>,
    pub(super) bitmaps_known: bool,
    pub(super) changed_bytes: Option<u64>,
}

/// The content of the folder of a period.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FolderPart<'a> {
    pub(super) path: Text<'a>,
    pub(super) total_files: u64,
    pub(super) checkpoints: u64,
    pub(super) total_size: Size,
}

/// The expected next backup.
#[derive(Debug, Serialize)]
pub(crate) struct NextPart<'a> {
    pub(super) level: Option<Text<'a>>,
    pub(super) reason: Text<'a>,
    pub(super) period: Text<'a>,
}

/// A write that a bitmap missed.
#[derive(Debug, Serialize)]
pub(crate) struct MissedPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) found: Text<'a>,
}

/// A size.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Size {
    /// In bytes.
    Bytes(u64),
    /// With a unit: `14.3 GB`.
    Pretty(Text<'static>),
}

impl Size {
    fn of(bytes: u64, pretty: bool) -> Size {
        match pretty {
            true => Size::Pretty(Text::from(pretty::bytes(bytes))),
            false => Size::Bytes(bytes),
        }
    }
}

/// The state of these domains; with `pretty`, sizes have units.
pub fn document(statuses: &[DomainStatus], pretty: bool) -> StatusDocument<'_> {
    let parts = statuses
        .iter()
        .map(|status| (status.domain.as_str(), part(status, pretty)));
    StatusDocument(parts.collect())
}

fn part(status: &DomainStatus, pretty: bool) -> StatusPart<'_> {
    let newest = status.newest.as_ref();
    let latest = status.latest.as_ref();
    let proof = status.proof.as_ref();
    let missed = status.missed_writes.iter().map(|missed| MissedPart {
        disk: Text::from(&missed.disk),
        found: Text::of(&missed.found),
    });
    StatusPart {
        checkpoints: texts(&status.checkpoints),
        disks: status.disks.iter().map(|disk| disk_part(disk, pretty)).collect(),
        overall_status: u8::from(!status.is_consistent()),
        backup_dir_stats: status.dir.as_ref().map(|dir| folder_part(dir, pretty)),
        state: Text::from(status.state.word()),
        newest_checkpoint: newest.map(|newest| Text::from(&newest.name)),
        newest_checkpoint_time: newest.and_then(|newest| newest.created.map(|time| Text::of(&time))),
        changed_bytes: status.changed_bytes(),
        last_restore_point: latest.map(|(id, _)| Text::from(id)),
        last_restore_point_time: latest.map(|(_, time)| Text::of(time)),
        next_backup: status.next.as_ref().map(|next| next_part(&next.backup)),
        inconsistencies: texts(&status.inconsistencies),
        findings: findings(&status.findings),
        repairs: match &status.next {
            Some(next) => next.repairs.iter().map(Text::of).collect(),
            None => Vec::new(),
        },
        last_verified_time: proof.map(|proof| Text::of(&proof.time)),
        last_verified_damage: texts(
            proof
                .iter()
                .flat_map(|proof| &proof.damage)
                .map(|note| &note.what),
        ),
        boot_proof: status.boot_proof.as_ref().map(BootProofPart::of),
        doubt: status.suspected_damage.as_ref().map(Text::from),
        writer: status.writer.as_ref().map(Text::from),
        missed_writes: missed.collect(),
        left_out: left_disks(&status.left_out),
        last_restore_point_lacks: texts(&status.latest_lacks),
    }
}

fn disk_part(disk: &DiskStatus, pretty: bool) -> DiskPart<'_> {
    DiskPart {
        disk: Text::from(&disk.target),
        virtual_size: Size::of(disk.virtual_size, pretty),
        actual_size: Size::of(disk.actual_size, pretty),
        bitmaps: texts(&disk.bitmaps),
        bitmaps_known: disk.bitmaps_known,
        changed_bytes: disk.changed_bytes,
    }
}

fn folder_part(dir: &DirStats, pretty: bool) -> FolderPart<'_> {
    FolderPart {
        path: Text::from(&dir.location),
        total_files: dir.total_files,
        checkpoints: dir.checkpoints,
        total_size: Size::of(dir.total_size, pretty),
    }
}

fn next_part(plan: &BackupPlan) -> NextPart<'_> {
    NextPart {
        level: plan.announced_level().map(|level| Text::from(Level::word(level))),
        reason: Text::of(&plan.reason()),
        period: Text::from(&plan.period),
    }
}
