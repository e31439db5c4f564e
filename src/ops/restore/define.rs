//! Defines the domain of a restore point: its XML as it was, with the paths of the restored disks,
//! and a new identity if the old one is taken.

use std::path::{Path, PathBuf};

use super::tpm::{NewDomain, TpmPlan, plan_tpm};
use super::{DefineOptions, Format, RestoredDisk};
use crate::host::Host;
use crate::host::xml::{DomainDescription, Edits, ImageFormat, NewSource, read_domain, redefine};
use crate::model::domain::{Device, Disk, Source};
use crate::model::file_name;
use crate::model::finding::Finding;
use crate::model::firmware::Nvram;
use crate::model::restore_point::RestorePoint;
use crate::model::storage::SecretRef;
use crate::model::text::shown;
use crate::ops::error::{Cause, Error, Result};
use crate::ops::stored::StoredPoint;
use crate::repo::SmallFile;

/// A domain to be defined.
#[derive(Clone, Debug)]
pub struct DefinePlan {
    /// Its name.
    pub name: String,
    /// Its new UUID, if the old UUID is taken. The domain's network cards then get new addresses
    /// too.
    pub new_uuid: Option<String>,
    /// The UUID with which it is defined, new or old.
    pub uuid: String,
    /// Its XML.
    pub xml: String,
    /// Its UEFI variables.
    pub nvram: Option<NvramPlan>,
    /// The state of its TPM.
    pub tpm: Option<TpmPlan>,
}

impl DefinePlan {
    /// Returns the file of UEFI variables that has to exist before the domain is defined: path and
    /// content.
    pub(in crate::ops) fn nvram_content(&self) -> Option<(&Path, &[u8])> {
        let nvram = self.nvram.as_ref()?;
        Some((nvram.path.as_path(), nvram.content.as_deref()?))
    }
}

/// The UEFI variables of a domain to be defined.
#[derive(Clone, Debug)]
pub struct NvramPlan {
    /// The path of the new file with the variables.
    pub path: PathBuf,
    /// The content of the file; if there is none, libvirt makes new variables.
    pub content: Option<Vec<u8>>,
}

/// The purpose of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Purpose {
    /// The original domain is defined again. It keeps its UUID if that is free, and also its disks
    /// that are not restored.
    Restored,
    /// Another domain gets copies of the disks. It has a new UUID, and lacks the disks that are not
    /// restored.
    Another,
}

/// Plans the definition of the domain of a restore point with these disks. Small files go into
/// `dir`.
pub(in crate::ops) fn plan(
    host: &dyn Host,
    stored: StoredPoint<'_>,
    disks: &[RestoredDisk],
    (dir, purpose): (&Path, Purpose),
    options: &DefineOptions,
    findings: &mut Vec<Finding>,
) -> Result<DefinePlan> {
    let point = stored.point();
    let domain = point.domain.as_str();
    let failed = |cause: Cause| Error::of(domain, cause);
    let xml = String::from_utf8(stored.read(SmallFile::Definition)?)
        .map_err(|_| stored.not_whole("its domain.xml is not UTF-8".to_owned()))?;
    let name = options.name.clone().unwrap_or_else(|| domain.to_owned());
    let (name_taken, uuid_taken) = host
        .is_defined(&name, &point.uuid)
        .map_err(|error| failed(error.into()))?;
    if name_taken {
        let what = format!(
            "a domain named '{}' is already defined; use --name to choose another name",
            shown(&name)
        );
        return Err(failed(Cause::Usage(what)));
    }
    let is_another = purpose == Purpose::Another;
    let has_new_identity = uuid_taken || is_another;
    let new_uuid = has_new_identity.then(|| uuid::Uuid::new_v4().to_string());
    let described = read_domain(&xml).map_err(|error| failed(error.into()))?;
    let left = match purpose {
        Purpose::Restored => disks_left_alone(&described, disks),
        Purpose::Another => Vec::new(),
    };
    if uuid_taken && let Some(shared) = left.iter().find(|disk| !disk.readonly) {
        let what = format!(
            "disk {} is not in the restore point, so the new domain would write to the old domain's disk ({}); \
             restore without --define, and define the new domain by hand from domain.xml",
            shared.target,
            shown(&shared.source.text())
        );
        return Err(failed(Cause::Usage(what)));
    }
    findings.extend(left.into_iter().map(|disk| left_alone(disk, point)));
    let nvram = plan_nvram(stored, &described, &name, dir, findings)?;
    let uuid = new_uuid.clone().unwrap_or_else(|| point.uuid.clone());
    let new = NewDomain {
        name: &name,
        uuid: &uuid,
        dir,
    };
    let (tpm, tpm_path) = plan_tpm(host, stored, described.tpm.as_ref(), &new, findings)?;
    let is_described = |disk: &&RestoredDisk| described.disks.iter().any(|found| found.target == disk.target);
    let edits = Edits {
        name: options.name.clone(),
        uuid: new_uuid.clone(),
        disks: disks
            .iter()
            .filter(is_described)
            .map(|disk| (disk.target.clone(), new_source(disk)))
            .collect(),
        nvram: nvram.as_ref().map(|nvram| nvram.path.clone()),
        tpm: tpm_path,
        drop_macs: has_new_identity,
        drop_other_disks: is_another,
    };
    for disk in disks.iter().filter(|disk| !is_described(disk)) {
        let what = format!(
            "disk {} was hot-plugged and is not in the domain's definition: the disk is restored, but the new domain \
             will not have it",
            disk.target
        );
        findings.push(Finding::of_disk("disk-not-defined", &disk.target, what));
    }
    let edited = redefine(&xml, &edits).map_err(|error| failed(error.into()))?;
    Ok(DefinePlan {
        name,
        new_uuid,
        uuid,
        xml: edited,
        nvram,
        tpm,
    })
}

/// Decides where the UEFI variables of the new domain go: never into the file of the old domain.
fn plan_nvram(
    stored: StoredPoint<'_>,
    described: &DomainDescription,
    name: &str,
    dir: &Path,
    findings: &mut Vec<Finding>,
) -> Result<Option<NvramPlan>> {
    let point = stored.point();
    let is_kept = stored.has(SmallFile::Nvram);
    let ending = match &described.nvram {
        None | Some(Nvram::Loader(_)) if !is_kept => return Ok(None),
        Some(Nvram::File { is_qcow2: true, .. }) => "qcow2",
        _ => "fd",
    };
    let file = file_name::escape(name).unwrap_or_else(|| point.uuid.clone());
    let path = dir.join(format!("{file}_VARS.{ending}"));
    if path.symlink_metadata().is_ok() {
        return Err(Error::of(&point.domain, Cause::Exists(path)));
    }
    if !is_kept {
        let what = "the restore point holds no UEFI variables: the new domain begins with fresh ones";
        findings.push(Finding::new("nvram-fresh", what));
        return Ok(Some(NvramPlan { path, content: None }));
    }
    let content = Some(stored.read(SmallFile::Nvram)?);
    Ok(Some(NvramPlan { path, content }))
}

fn new_source(disk: &RestoredDisk) -> NewSource {
    NewSource {
        path: disk.to.clone(),
        format: match disk.format {
            Format::Qcow2 => ImageFormat::Qcow2,
            Format::Raw => ImageFormat::Raw,
        },
        is_block: disk.device,
    }
}

/// Returns the disks that the restore point does not hold. These disks keep their old sources. If
/// the old domain still exists, both domains would use these sources.
fn disks_left_alone<'a>(described: &'a DomainDescription, restored: &[RestoredDisk]) -> Vec<&'a Disk> {
    let is_left = |disk: &&Disk| {
        let is_drive = matches!(disk.device, Device::Cdrom | Device::Floppy);
        let is_restored = restored.iter().any(|restored| restored.target == disk.target);
        !is_restored && !is_drive && disk.source != Source::Empty
    };
    described.disks.iter().filter(is_left).collect()
}

fn left_alone(disk: &Disk, point: &RestorePoint) -> Finding {
    let left = point.left_out.iter().find(|left| left.disk == disk.target);
    let why = left.map_or_else(String::new, |left| format!(" ({})", shown(&left.reason)));
    let what = format!(
        "disk {} is not in the restore point{why}: the defined domain still uses the disk's old source and needs {}",
        disk.target,
        needs(disk)
    );
    Finding::of_disk("disk-not-restored", &disk.target, what)
}

/// Describes what the host has to provide for a disk that keeps its source.
fn needs(disk: &Disk) -> String {
    let text = shown(&disk.source.text());
    let mut needs = match &disk.source {
        Source::Volume(volume) => {
            let (pool, volume) = (shown(&volume.pool), shown(&volume.volume));
            format!("the storage pool '{pool}' with the volume '{volume}'")
        }
        Source::Network(network) if network.needs.is_empty() => format!("the server of {text}"),
        Source::Network(network) => {
            format!(
                "the server of {text} with the same settings ({})",
                network.needs.join(", ")
            )
        }
        Source::Nvme(_) | Source::VhostVdpa(_) => format!("the device {text}"),
        Source::VhostUser(_) => format!("the process that serves {text}"),
        _ => text,
    };
    let top = disk.image();
    let images = top
        .layers()
        .flat_map(|layer| [Some(layer), layer.data_file.as_deref()]);
    let encrypted = images.flatten().filter_map(|image| image.encryption.as_ref());
    let mut secrets: Vec<&SecretRef> = Vec::new();
    for secret in encrypted.flat_map(|encryption| &encryption.secrets) {
        if !secrets.contains(&secret) {
            secrets.push(secret);
        }
    }
    for secret in secrets {
        let (SecretRef::Uuid(secret) | SecretRef::Usage(secret)) = secret;
        needs.push_str(&format!(", libvirt's secret {}", shown(secret)));
    }
    needs
}
