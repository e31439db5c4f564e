//! Writes documents as JSON and YAML.

use serde::Serialize;

use super::backup::{BackupDomain, PlannedDomain};
use super::boot::{BootDocument, BootedDocument};
use super::boot_proof::BootedDomain;
use super::collect::{CollectDocument, PruneDocument};
use super::compare::ComparedDomain;
use super::copy::CopiedDomain;
use super::files::{CopiesDocument, FileSystemsDocument, FilesDocument};
use super::in_place::InPlaceDocument;
use super::integrity::{CheckDocument, RebuildDocument};
use super::list::ListDocument;
use super::pack::{KeysDocument, PackDocument};
use super::parts::Domains;
use super::pin::{FailedPin, PinDocument};
use super::restore::{FailedRestore, RestoreDocument};
use super::scrub::ScrubbedDomain;
use super::serve::{ServeDocument, ServedDocument};
use super::status_document::StatusDocument;
use super::verify::VerifiedDomain;

/// Every document that the program prints on stdout. `docs/json.md` describes them.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Document<'a> {
    /// The document of `backup`.
    Backup(Domains<'a, BackupDomain<'a>>),
    /// The document of `backup --dry-run`.
    DryRun(Domains<'a, PlannedDomain<'a>>),
    /// The document of `list`.
    List(ListDocument<'a>),
    /// The document of `verify`.
    Verify(Domains<'a, VerifiedDomain<'a>>),
    /// The document of `verify --compare-live`.
    Compare(Domains<'a, ComparedDomain<'a>>),
    /// The document of `verify --boot`.
    BootProof(Domains<'a, BootedDomain<'a>>),
    /// The document of `restore`.
    Restore(RestoreDocument<'a>),
    /// The document of `restore --in-place`.
    InPlace(InPlaceDocument<'a>),
    /// The document of a `restore` that failed.
    FailedRestore(FailedRestore<'a>),
    /// The document of `boot` once the new domain runs.
    Boot(BootDocument<'a>),
    /// The document of a `boot` that has ended.
    Booted(BootedDocument<'a>),
    /// The document of `serve` once clients can connect.
    Serve(ServeDocument<'a>),
    /// The document of a `serve` that has ended.
    Served(ServedDocument<'a>),
    /// The document of `files` without an action.
    FileSystems(FileSystemsDocument<'a>),
    /// The document of `files ls`.
    Files(FilesDocument<'a>),
    /// The document of `files get`.
    Copies(CopiesDocument<'a>),
    /// The document of `prune`.
    Prune(PruneDocument<'a>),
    /// The document of `copy`.
    Copy(Domains<'a, CopiedDomain<'a>>),
    /// The document of `pin` and `unpin`.
    Pin(PinDocument<'a>),
    /// The document of a `pin` or `unpin` that failed.
    FailedPin(FailedPin<'a>),
    /// The document of `init`.
    Init(PackDocument<'a>),
    /// The document of `repository info`.
    Info(PackDocument<'a>),
    /// The document of `repository collect`.
    Collect(CollectDocument<'a>),
    /// The document of `repository check`.
    Check(CheckDocument<'a>),
    /// The document of `repository rebuild-index`.
    Rebuild(RebuildDocument<'a>),
    /// The document of `key list`.
    Keys(KeysDocument<'a>),
    /// The document of `scrub`.
    Scrub(Domains<'a, ScrubbedDomain<'a>>),
    /// The document of `status`.
    Status(StatusDocument<'a>),
}

impl Document<'_> {
    /// The document as JSON, indented by two spaces, with a line end.
    pub fn json(&self) -> String {
        written(serde_json::to_string_pretty(self)) + "\n"
    }

    /// The document as JSON on one line, with its line end.
    pub(crate) fn json_line(&self) -> String {
        written(serde_json::to_string(self)) + "\n"
    }

    /// The document as YAML in the layout of the Node.js VMSnap, with a line end.
    pub fn yaml(&self) -> String {
        let layout = serde_saphyr::ser_options! { compact_list_indent: false };
        written(serde_saphyr::to_string_with_options(self, layout))
    }
}

/// A written document, or the reason why it cannot be written. No value of ours has a key that is
/// not a string, so this never fails; if it did, an empty document would hide it.
fn written<E: std::fmt::Display>(result: Result<String, E>) -> String {
    result.unwrap_or_else(|error| format!("{{\"error\": \"cannot write the document: {error}\"}}"))
}
