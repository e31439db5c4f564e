//! Saves what the domain's firmware keeps outside its disks: UEFI variables and the state of its
//! TPM.
//!
//! Both are read at the beginning of the job, because the images hold the disks of that moment. A
//! finding reports what cannot be read.

use crate::host::Host;
use crate::model::domain::Domain;
use crate::model::finding::Finding;
use crate::model::text::{shown, with_sources};
use crate::model::tpm_state;
use crate::ops::{Error, Result};
use crate::repo::{FileEntry, History, Kept, PendingPoint, SmallFile};

/// The code of the finding that the UEFI variables of a domain that has run are missing.
const NVRAM_MISSING: &str = "nvram-missing";

/// The code of the finding that the state of the TPM of a domain that has run is missing.
const TPM_MISSING: &str = "tpm-state-missing";

/// The content of the small files, except the definition.
#[derive(Default)]
pub(super) struct FirmwareState {
    contents: Vec<(SmallFile, Vec<u8>)>,
    /// What could not be read.
    pub(super) findings: Vec<Finding>,
}

impl FirmwareState {
    /// Reads the UEFI variables and the state of the TPM.
    pub(super) fn read(host: &dyn Host, domain: &Domain, history: &History) -> FirmwareState {
        let before = Before { domain, history };
        let mut state = FirmwareState::default();
        match host.nvram(domain) {
            Ok(None) => state.findings.extend(before.missing_nvram()),
            Ok(Some(bytes)) => state.contents.push((SmallFile::Nvram, bytes)),
            Err(error) => {
                let what = format!("the UEFI variables could not be saved: {}", with_sources(&error));
                state.findings.push(Finding::new("nvram-skipped", what));
            }
        }
        let skipped = |why: &str| {
            let what = format!("the state of the emulated TPM could not be saved: {why}");
            Finding::new("tpm-state-skipped", what)
        };
        match host.tpm_state(domain) {
            Ok(None) => state.findings.extend(before.missing_tpm_state()),
            Ok(Some(read)) => match tpm_state::pack(&read.files) {
                Ok(archive) => {
                    state.contents.push((SmallFile::Tpm, archive));
                    let changing = (!read.is_whole).then(changing_tpm_state);
                    state.findings.extend(changing);
                }
                Err(why) => state.findings.push(skipped(&why)),
            },
            Err(error) => state.findings.push(skipped(&with_sources(&error))),
        }
        state
    }

    /// Writes the files.
    pub(super) fn put(&self, domain: &str, pending: &dyn PendingPoint) -> Result<Vec<FileEntry>> {
        let put = |(file, content): &(SmallFile, Vec<u8>)| pending.put(*file, content);
        let written = self
            .contents
            .iter()
            .map(put)
            .collect::<std::result::Result<_, _>>();
        written.map_err(|error| Error::of(domain, error))
    }
}

/// What is known about the domain from earlier.
struct Before<'a> {
    domain: &'a Domain,
    history: &'a History,
}

impl Before<'_> {
    /// Reports UEFI variables that are lost: libvirt makes their file when a domain first starts,
    /// so the file must exist from then on.
    fn missing_nvram(&self) -> Option<Finding> {
        let path = self.domain.nvram.as_ref()?.file()?;
        self.had_before(SmallFile::Nvram, NVRAM_MISSING).then(|| {
            let what = format!(
                "the UEFI variables are not in the backup: {} is missing",
                shown(&path.display().to_string())
            );
            Finding::new(NVRAM_MISSING, what)
        })
    }

    /// Reports that the state of a TPM is lost: libvirt makes the state when a domain first starts.
    fn missing_tpm_state(&self) -> Option<Finding> {
        self.domain.tpm.as_ref()?;
        self.had_before(SmallFile::Tpm, TPM_MISSING).then(|| {
            let what =
                "the state of the emulated TPM is not in the backup: its files are missing on this host";
            Finding::new(TPM_MISSING, what)
        })
    }

    /// Whether the domain runs, or an earlier restore point has this file or reported it missing.
    fn had_before(&self, file: SmallFile, missing: &str) -> bool {
        let had_some = |kept: &Kept| {
            let point = &kept.manifest.point;
            let is_known = file.entry(&kept.manifest).is_some()
                || point.findings.iter().any(|finding| finding.code == missing);
            point.uuid == self.domain.uuid && is_known
        };
        self.domain.state.is_active() || self.history.kept.iter().any(had_some)
    }
}

fn changing_tpm_state() -> Finding {
    let what = "the state of the emulated TPM changed while vmsnap read it, so the saved state may be \
                unusable: back up the domain again, while it is shut off if this happens often";
    Finding::new("tpm-state-changing", what)
}
