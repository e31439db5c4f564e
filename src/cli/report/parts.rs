//! Parts of several documents: texts, errors, findings, restore points.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_saphyr::DoubleQuoted;

use crate::cli::exit_code::ExitCode;
use crate::model::finding::Finding;
use crate::model::guest::GuestFacts;
use crate::model::left_out::LeftOut;
use crate::model::restore_point::{Consistency, DiskPoint, RestorePoint};
use crate::model::text::with_sources;
use crate::ops::Error;
use crate::ops::list::BootProof;
use crate::ops::monitor::Ending;

/// A text in a document. YAML has it in double quotes, as the Node.js VMSnap writes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// The text of a value.
    pub(super) fn of(value: &impl fmt::Display) -> Text<'static> {
        Text::from(value.to_string())
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Text(Cow::Borrowed(text))
    }
}

impl<'a> From<&'a String> for Text<'a> {
    fn from(text: &'a String) -> Self {
        Text(Cow::Borrowed(text))
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text(Cow::Owned(text))
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        DoubleQuoted(&self.0).serialize(serializer)
    }
}

/// Texts in their order.
pub(super) fn texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<Text<'a>> {
    texts.into_iter().map(Text::from).collect()
}

/// The document of a verb that works on several domains.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Domains<'a, D> {
    pub(super) schema: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dry_run: Option<bool>,
    pub(super) domains: Vec<D>,
    pub(super) unmatched: Vec<Text<'a>>,
    pub(super) exit_code: i32,
}

impl<'a, D> Domains<'a, D> {
    /// The document of these domains. `unmatched` are the patterns that match no domain.
    pub(super) fn new(domains: Vec<D>, unmatched: &'a [String], code: ExitCode) -> Self {
        Domains {
            schema: 1,
            dry_run: None,
            domains,
            unmatched: texts(unmatched),
            exit_code: code.number(),
        }
    }
}

/// A domain with an error, and the findings before it.
#[derive(Debug, Serialize)]
pub struct FailedDomain<'a> {
    pub(super) domain: Text<'a>,
    pub(super) outcome: &'static str,
    pub(super) error: ErrorPart,
    pub(super) findings: Vec<FindingPart<'a>>,
}

impl<'a> FailedDomain<'a> {
    /// A domain that failed with this error, or was skipped because of it.
    pub(super) fn of(error: &'a Error, ending: Ending) -> Self {
        FailedDomain {
            domain: Text::from(&error.domain),
            outcome: match ending {
                Ending::Skipped => "skipped",
                _ => "failed",
            },
            error: ErrorPart::of(error),
            findings: findings(&error.findings),
        }
    }
}

/// An error with its causes.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorPart {
    pub(super) message: Text<'static>,
    pub(super) disk: Option<Text<'static>>,
    pub(super) hint: Option<Text<'static>>,
}

impl ErrorPart {
    pub(super) fn of(error: &Error) -> Self {
        ErrorPart {
            message: Text::from(with_sources(error)),
            disk: error.disk.clone().map(Text::from),
            hint: error.hint().map(Text::from),
        }
    }
}

/// A finding.
#[derive(Debug, Serialize)]
pub(crate) struct FindingPart<'a> {
    pub(super) code: Text<'a>,
    pub(super) disk: Option<Text<'a>>,
    pub(super) message: Text<'a>,
}

impl<'a> FindingPart<'a> {
    pub(super) fn of(finding: &'a Finding) -> Self {
        FindingPart {
            code: Text::from(&finding.code),
            disk: finding.disk.as_ref().map(Text::from),
            message: Text::from(&finding.message),
        }
    }
}

pub(super) fn findings(findings: &[Finding]) -> Vec<FindingPart<'_>> {
    findings.iter().map(FindingPart::of).collect()
}

/// A restore point as `list` and `backup` show it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PointPart<'a> {
    pub(super) id: Text<'a>,
    pub(super) time: Text<'a>,
    pub(super) period: Text<'a>,
    pub(super) level: &'static str,
    pub(super) parent: Option<Text<'a>>,
    pub(super) checkpoint: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) whole: Option<bool>,
    pub(super) size: u64,
    pub(super) consistency: Consistency,
    pub(super) disks: Vec<DiskPart<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) faults: Vec<Text<'a>>,
    pub(super) copy: bool,
    pub(super) guest: Option<GuestPart<'a>>,
}

impl<'a> PointPart<'a> {
    /// A restore point whose files have `size` bytes.
    pub(super) fn of(point: &'a RestorePoint, size: u64) -> Self {
        let checkpoint = point.checkpoint.as_ref();
        PointPart {
            id: Text::from(&point.id),
            time: Text::of(&point.time),
            period: Text::from(&point.period),
            level: point.level.word(),
            parent: point.parent.as_ref().map(Text::from),
            checkpoint: checkpoint.map(|checkpoint| Text::from(&checkpoint.name)),
            whole: None,
            size,
            consistency: point.consistency,
            disks: point.disks.iter().map(DiskPart::of).collect(),
            faults: Vec::new(),
            copy: point.is_copy(),
            guest: point.guest.as_ref().map(GuestPart::of),
        }
    }
}

/// How far a guest came that was last started from a restore point.
#[derive(Debug, Serialize)]
pub(crate) struct BootProofPart<'a> {
    pub(super) time: Text<'a>,
    pub(super) reached: Text<'a>,
    pub(super) wanted: Text<'a>,
    pub(super) proven: bool,
    pub(super) shortfall: Option<Text<'a>>,
    pub(super) seconds: u64,
}

impl<'a> BootProofPart<'a> {
    pub(super) fn of(proof: &'a BootProof) -> Self {
        BootProofPart {
            time: Text::of(&proof.time),
            reached: Text::from(proof.reached.word()),
            wanted: Text::from(proof.wanted.word()),
            proven: proof.is_proven(),
            shortfall: proof.shortfall.as_ref().map(Text::from),
            seconds: proof.seconds,
        }
    }
}

/// What a guest agent reported about its guest.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GuestPart<'a> {
    pub(super) hostname: Option<Text<'a>>,
    pub(super) system: Option<Text<'a>>,
    pub(super) file_systems: Vec<GuestFileSystemPart<'a>>,
}

/// A file system that was mounted in a guest.
#[derive(Debug, Serialize)]
pub(crate) struct GuestFileSystemPart<'a> {
    pub(super) place: Text<'a>,
    pub(super) kind: Text<'a>,
    pub(super) disks: Vec<Text<'a>>,
}

impl<'a> GuestPart<'a> {
    pub(super) fn of(facts: &'a GuestFacts) -> Self {
        let file_systems = facts.file_systems.iter().map(|found| GuestFileSystemPart {
            place: Text::from(&found.place),
            kind: Text::from(&found.kind),
            disks: texts(&found.disks),
        });
        GuestPart {
            hostname: facts.hostname.as_ref().map(Text::from),
            system: facts.system.as_ref().map(Text::from),
            file_systems: file_systems.collect(),
        }
    }
}

/// A disk of a restore point.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DiskPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) level: &'static str,
    pub(super) reason: Text<'a>,
    pub(super) parent: Option<Text<'a>>,
    pub(super) virtual_size: u64,
    pub(super) data_bytes: u64,
    pub(super) zero_bytes: u64,
    pub(super) compression: Option<Text<'a>>,
    pub(super) image: Text<'a>,
    pub(super) decrypted: Option<bool>,
}

impl<'a> DiskPart<'a> {
    fn of(disk: &'a DiskPoint) -> Self {
        DiskPart {
            disk: Text::from(&disk.target),
            level: disk.level.word(),
            reason: Text::from(&disk.reason),
            parent: disk.parent.as_ref().map(Text::from),
            virtual_size: disk.virtual_size,
            data_bytes: disk.data_bytes,
            zero_bytes: disk.zero_bytes,
            compression: disk.compression.as_ref().map(Text::from),
            image: Text::from(&disk.image),
            decrypted: disk.decrypted,
        }
    }
}

/// The disks that a restore point lacks; these keys come after the others.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LeftOutPart<'a> {
    pub(super) partial: bool,
    pub(super) left_out: Vec<LeftDiskPart<'a>>,
}

impl<'a> LeftOutPart<'a> {
    pub(super) fn of(point: &'a RestorePoint) -> Self {
        LeftOutPart {
            partial: point.is_partial(),
            left_out: left_disks(&point.left_out),
        }
    }
}

/// A disk that is not saved.
#[derive(Debug, Serialize)]
pub(crate) struct LeftDiskPart<'a> {
    pub(super) disk: Text<'a>,
    pub(super) kind: Text<'a>,
    pub(super) reason: Text<'a>,
}

pub(super) fn left_disks(left_out: &[LeftOut]) -> Vec<LeftDiskPart<'_>> {
    let parts = left_out.iter().map(|left| LeftDiskPart {
        disk: Text::from(&left.disk),
        kind: Text::from(left.kind.word()),
        reason: Text::from(&left.reason),
    });
    parts.collect()
}
