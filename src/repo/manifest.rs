//! The commit record of a restore point: its description, and its files with their digests.
//!
//! The manifest carries the digest of its own text: the BLAKE3 of the file with the 64 digits of
//! the digest replaced by zeroes. Therefore a verification detects one changed byte anywhere in the
//! manifest or in the files that it lists.

use serde::{Deserialize, Serialize};

use super::seal::{NO_DIGEST, holds, is_digest, seal};
use crate::model::block::Pieces;
use crate::model::file_name::is_plain_name;
use crate::model::restore_point::RestorePoint;
use crate::model::text::shown;

/// The newest version of the format that this program writes. It reads older versions and refuses
/// newer ones.
pub(crate) const FORMAT: u32 = 2;

/// The version of a manifest whose images have no compressed clusters, and into whose restore point
/// nothing was merged. Every vmsnap reads it.
const PLAIN_FORMAT: u32 = 1;

/// The largest manifest that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// The highest sequence number: later restore points need higher ones.
const HIGHEST_SEQUENCE: u64 = u64::MAX / 2;

/// The name of the file with the domain's definition.
pub(crate) const DOMAIN_XML: &str = "domain.xml";

/// The name of the file with the domain's UEFI variables.
pub(crate) const NVRAM: &str = "nvram.fd";

/// The name of the file with the state of the domain's TPM.
pub(crate) const TPM: &str = "tpm.tar";

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// The digest of the manifest's text, computed with zeroes in place of the digest.
    pub digest: String,
    /// The program that wrote the manifest, with its version.
    pub tool: String,
    /// The versions of libvirt and QEMU.
    pub host: String,
    /// The description of the restore point.
    #[serde(flatten)]
    pub point: RestorePoint,
    /// The images and the small files in the restore point's folder.
    pub files: Vec<FileEntry>,
    /// The checkpoint's XML in the period's `checkpoints` folder; `None` without a checkpoint.
    pub checkpoint_file: Option<FileEntry>,
}

/// A file that belongs to a restore point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Its name within its folder.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its BLAKE3 digest in hexadecimal.
    pub blake3: String,
    /// The digests of its pieces; `None` for small files and in manifests of the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<PieceEntry>,
    /// The number of bytes in the file that merges have freed; they are holes, or will become
    /// holes. `None` if no merge has continued the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused: Option<u64>,
}

/// The digests of a file's pieces, which locate damage in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceEntry {
    /// Length of each piece except the last, in bytes: a power of two.
    pub size: u64,
    /// The concatenated BLAKE3 chaining values of the pieces, in hexadecimal.
    pub blake3: String,
}

impl From<&Pieces> for PieceEntry {
    fn from(pieces: &Pieces) -> PieceEntry {
        let digests = pieces.digests.iter();
        PieceEntry {
            size: pieces.size,
            blake3: digests
                .map(|digest| blake3::Hash::from_bytes(*digest).to_hex().to_string())
                .collect(),
        }
    }
}

impl FileEntry {
    /// How many bytes the file stores: its length without the bytes that merges have freed.
    pub(crate) fn stored(&self) -> u64 {
        self.size.saturating_sub(self.unused.unwrap_or(0))
    }

    /// The digests of the file's pieces; `None` if they are missing or do not have the form that
    /// this program writes.
    pub fn pieces(&self) -> Option<Pieces> {
        let entry = self.pieces.as_ref()?;
        // A piece is a whole subtree of BLAKE3's tree over chunks of 1 KiB.
        let is_subtree = entry.size.is_power_of_two() && entry.size >= 1024;
        if !is_subtree || entry.blake3.len() as u64 != 64 * self.size.div_ceil(entry.size) {
            return None;
        }
        let digests = entry.blake3.as_bytes().chunks(64);
        let digests = digests.map(|digits| Some(*blake3::Hash::from_hex(digits).ok()?.as_bytes()));
        Some(Pieces {
            size: entry.size,
            digests: digests.collect::<Option<_>>()?,
        })
    }
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON, or a field is missing or has another type.
    #[error("it is not a manifest: {0}")]
    NotAManifest(String),
    /// A newer version of vmsnap wrote it.
    #[error(
        "it has format version {0} and was written by a newer vmsnap; this vmsnap reads versions up to {FORMAT}: upgrade vmsnap"
    )]
    TooNew(u32),
    /// Its text has changed since it was written.
    #[error("it is damaged: its digest does not match its text")]
    Digest,
    /// It contains something that vmsnap never writes.
    #[error("it is damaged or forged: {0}")]
    Impossible(String),
}

impl Manifest {
    /// Makes the manifest of a restore point. [`Manifest::to_text`] computes its digest.
    pub fn new(
        host: &str,
        point: RestorePoint,
        files: Vec<FileEntry>,
        checkpoint_file: Option<FileEntry>,
    ) -> Self {
        Manifest {
            format: format_of(&point),
            digest: NO_DIGEST.to_owned(),
            tool: concat!("vmsnap ", env!("CARGO_PKG_VERSION")).to_owned(),
            host: host.to_owned(),
            point,
            files,
            checkpoint_file,
        }
    }

    /// The text to write, including its digest.
    pub fn to_text(&self) -> serde_json::Result<String> {
        let blank = Manifest {
            digest: NO_DIGEST.to_owned(),
            ..self.clone()
        };
        let mut text = serde_json::to_string_pretty(&blank)?;
        text.push('\n');
        // The first 64 zeroes are the digest's place, because only the format number precedes it.
        Ok(seal(&text))
    }

    /// Reads a text of [`Manifest::to_text`], and checks everything that does not need other files.
    pub fn parse(text: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
            #[serde(default)]
            digest: String,
        }
        let not = |error: serde_json::Error| ManifestError::NotAManifest(error.to_string());
        let version: Version = serde_json::from_slice(text).map_err(not)?;
        if version.format > FORMAT {
            // Distinguish a flipped bit from a newer program: after a flip, the rest still matches
            // our digest.
            let mut known = PLAIN_FORMAT..=FORMAT;
            if known.any(|ours| holds(&with_format(text, version.format, ours), &version.digest)) {
                return Err(ManifestError::Digest);
            }
            return Err(ManifestError::TooNew(version.format));
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(not)?;
        manifest.check_digest(text)?;
        manifest.check_content().map_err(ManifestError::Impossible)?;
        Ok(manifest)
    }

    fn check_digest(&self, text: &[u8]) -> Result<(), ManifestError> {
        match holds(text, &self.digest) {
            true => Ok(()),
            false => Err(ManifestError::Digest),
        }
    }

    /// Checks the required content, and the names: they become paths, and no path may leave its
    /// folder.
    fn check_content(&self) -> Result<(), String> {
        let point = &self.point;
        if point.disks.is_empty() {
            return Err("it holds no disk".to_owned());
        }
        if point.sequence > HIGHEST_SEQUENCE {
            return Err(format!(
                "its sequence number {} is too large: no number is left for later restore points",
                point.sequence
            ));
        }
        if self.file(DOMAIN_XML).is_none() {
            return Err(format!("{} is not in the manifest's list of files", DOMAIN_XML));
        }
        let mut names = vec![("id", &point.id), ("period", &point.period)];
        names.extend(point.parent.iter().map(|parent| ("parent", parent)));
        for disk in &point.disks {
            names.push(("disk", &disk.target));
            names.push(("image", &disk.image));
            names.extend(disk.parent.iter().map(|parent| ("parent", parent)));
            if let Some(digest) = &disk.parent_manifest
                && !is_digest(digest)
            {
                return Err(format!(
                    "invalid digest of the parent of disk {}",
                    shown(&disk.target)
                ));
            }
            if !self.files.iter().any(|file| file.name == disk.image) {
                return Err(format!(
                    "the image of disk {} is not in the manifest's list of files",
                    disk.target
                ));
            }
        }
        if let Some(merged) = &point.merged {
            let digests = merged.points.iter().map(|merged| &merged.manifest);
            if !merged
                .replaces
                .iter()
                .chain(digests)
                .all(|digest| is_digest(digest))
            {
                return Err("invalid digest in the manifest's record of merges".to_owned());
            }
            names.extend(
                merged
                    .points
                    .iter()
                    .map(|merged| ("merged restore point", &merged.id)),
            );
        }
        for file in self.files.iter().chain(&self.checkpoint_file) {
            names.push(("file", &file.name));
            if !is_digest(&file.blake3) {
                return Err(format!("invalid digest of file '{}'", file.name));
            }
        }
        match names.into_iter().find(|(_, name)| !is_plain_name(name)) {
            Some((what, name)) => Err(format!("its {what} '{}' is not a valid name", shown(name))),
            None => Ok(()),
        }
    }

    /// The manifest of the same restore point after a merge, with the new description `point` and
    /// the entries of the new images.
    pub(crate) fn after_merge(&self, point: RestorePoint, images: &[FileEntry]) -> Manifest {
        let replaced = |file: &FileEntry| images.iter().find(|image| image.name == file.name);
        let files = self.files.iter();
        let files = files.map(|file| replaced(file).unwrap_or(file).clone());
        Manifest::new(&self.host, point, files.collect(), self.checkpoint_file.clone())
    }

    /// The entry of a file of this restore point.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.name == name)
    }
}

/// The format of a manifest of this restore point: an older vmsnap must not take compressed images
/// for damaged ones, nor a merged restore point for a misplaced one.
fn format_of(point: &RestorePoint) -> u32 {
    match point.is_compressed() || point.merged.is_some() {
        true => FORMAT,
        false => PLAIN_FORMAT,
    }
}

/// The text with the format number `ours` in place of its own.
fn with_format(text: &[u8], number: u32, ours: u32) -> Vec<u8> {
    let [theirs, ours] = [number, ours].map(|number| format!("\"format\": {number}"));
    let text = String::from_utf8_lossy(text);
    text.replacen(&theirs, &ours, 1).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::restore_point::{Consistency, DiskPoint, Level};

    fn sample() -> Manifest {
        let point = RestorePoint {
            id: "2026-11-01T02-00-03Z".into(),
            sequence: 1,
            domain: "vm \"1\"".into(),
            uuid: "c7a5fdbd-edaf-9455-926a-d65c16db1809".into(),
            time: "2026-11-01T02:00:03Z".parse().expect("a time"),
            period: "vmsnap-backup-monthly-2026-11".into(),
            level: Level::Full,
            parent: None,
            checkpoint: None,
            consistency: Consistency::Crash,
            disks: vec![DiskPoint {
                target: "vda".into(),
                level: Level::Full,
                reason: "first of the period".into(),
                parent: None,
                parent_manifest: None,
                checkpointed: false,
                virtual_size: 1 << 20,
                source: "/images/vm1.qcow2".into(),
                source_file: None,
                source_format: "qcow2".into(),
                decrypted: None,
                image: "vda.qcow2".into(),
                data_bytes: 65536,
                zero_bytes: 0,
                compression: None,
            }],
            findings: vec![],
            left_out: vec![],
            merged: None,
            copied_from: None,
            guest: None,
        };
        let files = [("vda.qcow2", 327_680), ("domain.xml", 1000)].map(|(name, size)| FileEntry {
            name: name.into(),
            size,
            blake3: blake3::hash(b"x").to_hex().to_string(),
            pieces: (name == "vda.qcow2").then(|| PieceEntry {
                size: 262_144,
                blake3: "0f".repeat(64),
            }),
            unused: None,
        });
        Manifest::new("libvirt 9.0.0, QEMU 7.2.22", point, files.to_vec(), None)
    }

    #[test]
    fn digests_of_pieces_are_used_when_they_are_such_as_we_write() {
        let file = sample().files.remove(0);
        let pieces = file.pieces().expect("they are");
        assert_eq!((pieces.size, &pieces.digests[..]), (262_144, &[[15; 32]; 2][..]));
        assert_eq!(file.pieces, Some(PieceEntry::from(&pieces)));
        let with = |size: u64, blake3: String| FileEntry {
            pieces: Some(PieceEntry { size, blake3 }),
            ..file.clone()
        };
        for (size, digits) in [
            (0, "0f".repeat(64)),
            (512, "0f".repeat(32 * 640)),
            (262_145, "0f".repeat(64)),
            (262_144, "0f".repeat(63)),
            (262_144, "0g".repeat(64)),
            (262_144, "é".repeat(64)),
        ] {
            assert_eq!(with(size, digits).pieces(), None, "{size}");
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let text = sample().to_text().expect("it serialises");
        let read = Manifest::parse(text.as_bytes()).expect("it parses");
        assert_eq!(read.point, sample().point);
        assert_eq!(read.to_text().expect("it serialises"), text);
    }

    #[test]
    fn one_flipped_bit_anywhere_is_found() {
        let text = sample().to_text().expect("it serialises").into_bytes();
        for index in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone();
                damaged[index] ^= 1 << bit;
                assert!(Manifest::parse(&damaged).is_err(), "byte {index} bit {bit}");
            }
        }
    }

    fn compressed() -> Manifest {
        let sample = sample();
        let mut point = sample.point;
        point.disks[0].compression = Some("zstd".into());
        Manifest::new(&sample.host, point, sample.files, None)
    }

    #[test]
    fn flipped_bit_in_format_number_is_damage_not_a_newer_format() {
        for manifest in [sample(), compressed()] {
            let text = manifest.to_text().expect("it serialises");
            let number = text.find("\"format\": ").expect("it begins with that") + "\"format\": ".len();
            for bit in 0..8 {
                let mut damaged = text.clone().into_bytes();
                damaged[number] ^= 1 << bit;
                let refused = Manifest::parse(&damaged).expect_err("it is damaged");
                assert!(
                    !matches!(refused, ManifestError::TooNew(_)),
                    "format {}, bit {bit}: {refused}",
                    manifest.format
                );
            }
        }
    }

    #[test]
    fn only_compressed_images_need_the_newer_format() {
        let plain = sample().to_text().expect("it serialises");
        assert!(plain.contains("\"format\": 1,") && !plain.contains("compression"));
        let text = compressed().to_text().expect("it serialises");
        assert!(text.contains("\"format\": 2,") && text.contains("\"compression\": \"zstd\""));
        let read = Manifest::parse(text.as_bytes()).expect("it parses");
        assert_eq!(read.point, compressed().point);
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let text = sample()
            .to_text()
            .expect("it serialises")
            .replace("\"format\": 1", "\"format\": 3, \"new\": 1");
        assert!(matches!(
            Manifest::parse(text.as_bytes()),
            Err(ManifestError::TooNew(3))
        ));
    }

    fn is_refused(manifest: &Manifest) -> bool {
        let text = manifest.to_text().expect("it serialises");
        matches!(
            Manifest::parse(text.as_bytes()),
            Err(ManifestError::Impossible(_))
        )
    }

    #[test]
    fn manifest_without_disk_or_domain_definition_is_refused() {
        let mut without_disk = sample();
        without_disk.point.disks.clear();
        assert!(is_refused(&without_disk));
        let mut without_xml = sample();
        without_xml.files.pop();
        assert!(is_refused(&without_xml));
    }

    #[test]
    fn a_sequence_number_that_leaves_none_for_later_is_refused() {
        let mut last = sample();
        last.point.sequence = u64::MAX;
        assert!(is_refused(&last));
    }

    #[test]
    fn a_parents_manifest_is_named_by_a_digest_or_not_at_all() {
        let mut named = sample();
        named.point.disks[0].parent_manifest = Some("a digest".into());
        assert!(is_refused(&named));
        named.point.disks[0].parent_manifest = Some(blake3::hash(b"y").to_hex().to_string());
        assert!(!is_refused(&named));
        let text = sample().to_text().expect("it serialises");
        assert!(!text.contains("parentManifest"), "as earlier versions wrote it");
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        for name in ["../x.qcow2", "..", "a/b", ""] {
            let mut forged = sample();
            forged.point.disks[0].image = name.into();
            forged.files[0].name = name.into();
            assert!(is_refused(&forged), "{name}");
        }
    }
}
