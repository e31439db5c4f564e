//! Defines the domain of a restore point: its XML as it was, with the paths of the restored disks, and a new identity where the old one is taken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::Cause;
use super::restore::{DefineOptions, Format, PlannedDisk};
use super::{Error, Result};
use crate::host::Host;
use crate::host::xml::{Edits, ImageFormat, NewSource, redefine};
use crate::model::domain::Source;
use crate::model::finding::Finding;
use crate::model::restore_point::RestorePoint;
use crate::model::text::shown;
use crate::repo::{DiskStore, FileEntry, History, Store, layout};

/// A domain about to be defined.
#[derive(Clone, Debug)]
pub struct DefinePlan {
    /// Its name.
    pub name: String,
    /// Its new UUID, when the old one is taken; its network cards get new addresses then too.
    pub new_uuid: Option<String>,
    /// Its XML.
    pub xml: String,
    /// Its UEFI variables, and where they go.
    pub nvram: Option<(PathBuf, Vec<u8>)>,
}

/// Decides how the domain of a restore point would be defined with these disks. Small files go into `dir`.
pub(super) fn plan(
    host: &dyn Host,
    history: &History,
    point: &RestorePoint,
    disks: &[PlannedDisk],
    dir: &Path,
    options: &DefineOptions,
    findings: &mut Vec<Finding>,
) -> Result<DefinePlan> {
    let domain = point.domain.as_str();
    let failed = |cause: Cause| Error::of(domain, cause);
    let xml = String::from_utf8(read_verified(history, point, layout::DOMAIN_XML)?)
        .map_err(|_| not_whole(point, "its domain.xml is not UTF-8".to_owned()))?;
    let name = options.name.clone().unwrap_or_else(|| domain.to_owned());
    let (name_taken, uuid_taken) = host
        .is_defined(&name, &point.uuid)
        .map_err(|error| failed(error.into()))?;
    if name_taken {
        let what = format!(
            "a domain named '{}' is defined; give another name with --name",
            shown(&name)
        );
        return Err(failed(Cause::Usage(what)));
    }
    let new_uuid = uuid_taken.then(|| uuid::Uuid::new_v4().to_string());
    let nvram = match history
        .get(&point.id)
        .and_then(|kept| kept.manifest.file(layout::NVRAM))
    {
        None => None,
        Some(_) => {
            let folder = layout::escape(&name).unwrap_or_else(|| point.uuid.clone());
            let path = dir.join(format!("{folder}_VARS.fd"));
            if path.symlink_metadata().is_ok() {
                return Err(failed(Cause::Exists(path)));
            }
            Some((path, read_verified(history, point, layout::NVRAM)?))
        }
    };
    let edits = Edits {
        name: options.name.clone(),
        uuid: new_uuid.clone(),
        disks: disks
            .iter()
            .map(|disk| (disk.target.clone(), new_source(disk)))
            .collect::<BTreeMap<_, _>>(),
        nvram: nvram.as_ref().map(|(path, _)| path.clone()),
        drop_macs: uuid_taken,
    };
    let edited = redefine(&xml, &edits).map_err(|error| failed(error.into()))?;
    findings.extend(disks_left_alone(&xml, disks));
    Ok(DefinePlan {
        name,
        new_uuid,
        xml: edited,
        nvram,
    })
}

/// Puts the UEFI variables in place and defines the domain.
pub(super) fn carry_out(domain: &str, plan: &DefinePlan, host: &dyn Host) -> Result<()> {
    if let Some((path, bytes)) = &plan.nvram {
        DiskStore.create_file(path, bytes).map_err(|source| {
            Error::of(
                domain,
                Cause::Io {
                    operation: "create",
                    path: path.clone(),
                    source,
                },
            )
        })?;
    }
    host.define(&plan.xml).map_err(|error| Error::of(domain, error))
}

fn new_source(disk: &PlannedDisk) -> NewSource {
    NewSource {
        path: disk.to.clone(),
        format: match disk.format {
            Format::Qcow2 => ImageFormat::Qcow2,
            Format::Raw => ImageFormat::Raw,
        },
        is_block: disk.device,
    }
}

/// Disks that the restore point does not hold keep their old paths: if the old domain is still there, both would write to them.
fn disks_left_alone(xml: &str, restored: &[PlannedDisk]) -> Vec<Finding> {
    let Ok(described) = crate::host::xml::read_domain(xml) else {
        return Vec::new();
    };
    let left = described.disks.iter().filter(|disk| {
        !restored.iter().any(|restored| restored.target == disk.target) && disk.source != Source::Empty
    });
    left.map(|disk| {
        let path = disk
            .source
            .path()
            .map_or_else(String::new, |path| format!(" ({})", path.display()));
        Finding::of_disk(
            "disk-not-restored",
            &disk.target,
            format!(
                "disk {} is not in the restore point: the new domain names its old source{path}",
                disk.target
            ),
        )
    })
    .collect()
}

/// A small file of a restore point, if it is what the manifest says.
fn read_verified(history: &History, point: &RestorePoint, name: &str) -> Result<Vec<u8>> {
    let found = history
        .get(&point.id)
        .and_then(|kept| Some((kept, kept.manifest.file(name)?)));
    let Some((kept, entry)) = found else {
        return Err(not_whole(point, format!("its manifest names no {name}")));
    };
    let path = kept.dir.join(name);
    let bytes = fs::read(&path).map_err(|source| {
        Error::of(
            &point.domain,
            Cause::Io {
                operation: "read",
                path: path.clone(),
                source,
            },
        )
    })?;
    if !is_as_recorded(&bytes, entry) {
        return Err(not_whole(
            point,
            format!(
                "{} is damaged: its digest is not the recorded one",
                path.display()
            ),
        ));
    }
    Ok(bytes)
}

fn is_as_recorded(bytes: &[u8], entry: &FileEntry) -> bool {
    bytes.len() as u64 == entry.size
        && blake3::hash(bytes).to_hex().as_str() == entry.blake3.to_ascii_lowercase()
}

fn not_whole(point: &RestorePoint, fault: String) -> Error {
    let id = point.id.clone();
    Error::of(&point.domain, Cause::NotWhole { id, fault })
}
