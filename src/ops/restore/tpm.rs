//! Puts the saved state of an emulated TPM where the new domain will look for it.
//!
//! The state goes into libvirt's folder, or beside the disks if the definition names a path for the
//! state. Like every restored file, the state is written under temporary names. It is removed again
//! if the domain is not defined in the end.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::io_cause;
use super::unfinished::{NewDir, Unfinished, is_restoring, sweep};
use crate::host::Host;
use crate::io::Store;
use crate::model::file_name;
use crate::model::finding::Finding;
use crate::model::firmware::{Tpm, TpmPlace};
use crate::model::text::shown;
use crate::model::tpm_state::{self, SINGLE_FILE, TpmFile};
use crate::ops::plan::encrypted_tpm_state;
use crate::ops::stored::StoredPoint;
use crate::ops::{Cause, Error, Result};
use crate::repo::SmallFile;

/// The names of the folders with a state below the folder of a domain.
const FOLDERS: [&str; 2] = ["tpm2", "tpm1.2"];

/// The state of a TPM that a restore writes.
#[derive(Clone, Debug)]
pub struct TpmPlan {
    /// The folder for the files of the state; or the path of the file, if the definition names a
    /// single file.
    pub path: PathBuf,
    /// The files of the state.
    pub files: Vec<TpmFile>,
    /// libvirt's folder with the states of all domains, if `path` is below it.
    usual: Option<PathBuf>,
    is_single: bool,
}

/// The domain to be defined.
pub(super) struct NewDomain<'a> {
    pub(super) name: &'a str,
    pub(super) uuid: &'a str,
    /// The folder of the restored disks.
    pub(super) dir: &'a Path,
}

/// Decides where the state of the TPM of the new domain goes: never where the state of another
/// domain is. Also returns the new path for the definition, if the definition names a path.
pub(super) fn plan_tpm(
    host: &dyn Host,
    stored: StoredPoint<'_>,
    tpm: Option<&Tpm>,
    new: &NewDomain<'_>,
    findings: &mut Vec<Finding>,
) -> Result<(Option<TpmPlan>, Option<PathBuf>)> {
    let Some(tpm) = tpm else {
        return Ok((None, None));
    };
    let point = stored.point();
    let failed = |cause: Cause| Error::of(&point.domain, cause);
    let named = named_path(tpm, new, &point.uuid);
    if let Some(path) = named.as_ref().filter(|path| path.symlink_metadata().is_ok()) {
        return Err(failed(Cause::Exists(path.clone())));
    }
    if !stored.has(SmallFile::Tpm) {
        let what = "the restore point holds no state of the TPM: the new domain begins with a fresh TPM, and cannot use \
                    keys that were in the old TPM";
        findings.push(Finding::new("tpm-fresh", what));
        return Ok((None, named));
    }
    findings.extend(tpm.secret.as_deref().map(encrypted_tpm_state));
    let is_single = matches!(tpm.place, TpmPlace::File(_));
    let files = unpack(stored, is_single)?;
    let (path, usual) = match (&named, host.tpm_folder(), tpm.folder()) {
        (Some(path), ..) => (path.clone(), None),
        (None, Some(root), Some(version)) => (root.join(new.uuid).join(version), Some(root)),
        (None, root, _) => {
            findings.push(not_restored(root.is_none(), new));
            return Ok((None, None));
        }
    };
    if usual.is_some() && is_taken(&path).map_err(failed)? {
        return Err(failed(Cause::TpmStateExists(path)));
    }
    let plan = TpmPlan {
        path,
        files,
        usual,
        is_single,
    };
    Ok((Some(plan), named))
}

/// Returns the path beside the disks that replaces the path in the definition, if the definition
/// has one.
fn named_path(tpm: &Tpm, new: &NewDomain<'_>, uuid: &str) -> Option<PathBuf> {
    let file = file_name::escape(new.name).unwrap_or_else(|| uuid.to_owned());
    match tpm.place {
        TpmPlace::Usual => None,
        TpmPlace::Folder(_) => Some(new.dir.join(format!("{file}_TPM"))),
        TpmPlace::File(_) => Some(new.dir.join(format!("{file}_TPM.state"))),
    }
}

fn unpack(stored: StoredPoint<'_>, is_single: bool) -> Result<Vec<TpmFile>> {
    let unusable = |why: String| stored.not_whole(format!("{} cannot be used: {why}", SmallFile::Tpm.name()));
    let files = tpm_state::unpack(&stored.read(SmallFile::Tpm)?).map_err(unusable)?;
    let has_single = files.iter().any(|file| file.name == SINGLE_FILE);
    let why = match (is_single, has_single, files.len()) {
        (true, true, 1) | (false, false, _) => return Ok(files),
        (true, false, _) => {
            "the archive holds the files of a folder, but the domain's definition names a single file for the state of the TPM"
        }
        (false, true, 1) => {
            "the archive holds a single file, but the domain's definition keeps the state of the TPM in a folder"
        }
        (_, true, _) => "the archive holds both a state in a single file and the files of a folder",
    };
    Err(unusable(why.to_owned()))
}

fn not_restored(is_unknown_folder: bool, new: &NewDomain<'_>) -> Finding {
    let why = match is_unknown_folder {
        true => {
            "vmsnap does not know libvirt's folder for TPM states, or cannot reach that folder on another machine"
        }
        false => "the version of the TPM is unknown",
    };
    let what = format!(
        "the state of the TPM was not restored: {why}; to keep the state, unpack {} of the restore point before the first \
         start of the domain (for qemu:///system into /var/lib/libvirt/swtpm/{}/tpm2, or tpm1.2 for a TPM 1.2); \
         otherwise the domain begins with a fresh TPM",
        SmallFile::Tpm.name(),
        shown(new.uuid)
    );
    Finding::new("tpm-state-not-restored", what)
}

/// Whether there is anything at this path except an empty folder and what dead restores left.
fn is_taken(path: &Path) -> std::result::Result<bool, Cause> {
    let failed = |source: io::Error| io_cause("examine", path, source);
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.is_dir() => return Ok(true),
        Ok(_) => {}
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !name.to_str().is_some_and(is_restoring) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The state of a TPM in its new place. Dropping it removes the state, and the folders that were
/// made for it, unless [`NewState::keep`] was called.
pub(in crate::ops) struct NewState<'a> {
    store: &'a dyn Store,
    /// Dropped before the folders, which must be empty by then.
    files: Vec<Unfinished<'a>>,
    /// Innermost first.
    dirs: Vec<NewDir<'a>>,
    is_kept: bool,
}

impl<'a> NewState<'a> {
    /// Removes what dead restores left, and writes the files under temporary names.
    pub(in crate::ops) fn write(
        store: &'a dyn Store,
        plan: &TpmPlan,
        findings: &mut Vec<Finding>,
    ) -> std::result::Result<NewState<'a>, Cause> {
        let mut state = NewState {
            store,
            files: Vec::new(),
            dirs: Vec::new(),
            is_kept: false,
        };
        if let Some(root) = &plan.usual {
            findings.extend(sweep_states(store, root));
            // As libvirt makes them: swtpm, which has a user of its own, passes through.
            state.ensure(root, |path| store.create_passage(path))?;
            if let Some(domain) = plan.path.parent() {
                state.ensure(domain, |path| store.create_passage(path))?;
            }
        }
        if plan.is_single {
            for file in &plan.files {
                // libvirt gives a folder and its files to the user of swtpm, but not a single file.
                let owner = Some(file.owner);
                let written = Unfinished::write_as(store, &plan.path, &file.content, owner)?;
                state.files.push(written);
            }
            return Ok(state);
        }
        state.ensure(&plan.path, |path| store.create_dir(path))?;
        for file in &plan.files {
            let to = plan.path.join(&file.name);
            state.files.push(Unfinished::write(store, &to, &file.content)?);
        }
        Ok(state)
    }

    /// Creates a folder if it is missing.
    fn ensure(
        &mut self,
        path: &Path,
        create: impl FnOnce(&Path) -> io::Result<()>,
    ) -> std::result::Result<(), Cause> {
        if !path.is_dir() {
            create(path).map_err(|source| io_cause("create the folder", path, source))?;
            self.dirs.insert(0, NewDir::made(self.store, path.to_owned()));
        }
        Ok(())
    }

    /// Gives the files their final names, and syncs the folders, so that the names survive a crash.
    pub(in crate::ops) fn place(&mut self) -> std::result::Result<(), Cause> {
        let mut folders = BTreeSet::new();
        for file in &mut self.files {
            file.place()?;
            folders.extend(file.to().parent().map(Path::to_owned));
        }
        folders.extend(
            self.dirs
                .iter()
                .filter_map(|dir| dir.path().parent())
                .map(Path::to_owned),
        );
        for folder in folders {
            let synced = self.store.sync_dir(&folder);
            synced.map_err(|source| io_cause("sync", &folder, source))?;
        }
        Ok(())
    }

    /// Keeps the state, because its domain is or may be defined.
    pub(in crate::ops) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for NewState<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.files.iter_mut().for_each(Unfinished::take_back);
        }
    }
}

/// Removes the unfinished files that dead restores left in libvirt's folder, also for other
/// domains: a killed restore under a new UUID is never repeated under the same UUID.
fn sweep_states(store: &dyn Store, root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_dir = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    for domain in fs::read_dir(root).into_iter().flatten().flatten() {
        let domain = domain.path();
        if !is_dir(&domain) {
            continue;
        }
        for folder in FOLDERS.map(|name| domain.join(name)) {
            let removed = match is_dir(&folder) {
                true => sweep(store, &folder),
                false => Vec::new(),
            };
            if !removed.is_empty() {
                // Fails, as intended, if there is something else in a folder.
                let _ = store.remove_dir(&folder).and_then(|()| store.remove_dir(&domain));
                findings.extend(removed);
            }
        }
    }
    findings
}
