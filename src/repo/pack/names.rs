//! Names of the objects of a domain. They are keyed hashes, so that they reveal neither the names
//! of domains nor those of restore points.

use std::sync::Arc;

use super::keys::MasterKey;
use super::objects::ObjectName;
use crate::repo::seal::is_digest;

/// The prefix of the names of all restore points.
pub(super) const POINTS: &str = "points/";

/// The prefix of the names of all records.
pub(super) const RECORDS: &str = "records/";

/// The word in place of a predecessor's name, for the first restore point of a domain.
const FIRST: &str = "first";

/// The length of a random part of a name, in hexadecimal digits.
pub(super) const RANDOM: usize = 16;

/// The length of the part of a record's name that depends on its restore point.
const TAG: usize = 16;

/// Makes the names of one domain's objects.
#[derive(Clone, Debug)]
pub(super) struct DomainNames {
    key: Arc<MasterKey>,
    hash: String,
}

impl DomainNames {
    /// The names for the domain of this name.
    pub(super) fn of(key: &Arc<MasterKey>, domain: &str) -> DomainNames {
        DomainNames {
            key: Arc::clone(key),
            hash: hash(key, &["domain", domain]),
        }
    }

    /// The names for a domain whose own name is unknown.
    pub(super) fn of_hash(key: &Arc<MasterKey>, hash: &str) -> DomainNames {
        DomainNames {
            key: Arc::clone(key),
            hash: hash.to_owned(),
        }
    }

    /// The part of the names that stands for the domain.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// The prefix of the names of its restore points.
    pub(super) fn points(&self) -> String {
        format!("{POINTS}{}/", self.hash)
    }

    /// The prefix of the names of its records.
    pub(super) fn records(&self) -> String {
        format!("{RECORDS}{}/", self.hash)
    }

    /// The name of a restore point's object, from its last segment.
    pub(super) fn point(&self, segment: &str) -> Option<ObjectName> {
        ObjectName::new(&format!("{}{segment}", self.points()))
    }

    /// The name of a record's object, from its last segment.
    pub(super) fn record(&self, segment: &str) -> Option<ObjectName> {
        ObjectName::new(&format!("{}{segment}", self.records()))
    }

    /// The stem of the last segment of the name of the restore point that follows `predecessor`;
    /// without a predecessor, of the first restore point. All hosts compute the same stem.
    pub(super) fn stem_after(&self, predecessor: Option<&str>) -> String {
        hash(&self.key, &["point", &self.hash, predecessor.unwrap_or(FIRST)])
    }

    /// The part of a record's name that depends on the id of its restore point.
    pub(super) fn tag(&self, id: &str) -> String {
        let mut tag = hash(&self.key, &["record", &self.hash, id]);
        tag.truncate(TAG);
        tag
    }
}

/// The stem of a segment that names a restore point: all of it, or the part before a random suffix.
pub(super) fn stem(segment: &str) -> &str {
    segment.split_once('-').map_or(segment, |(stem, _)| stem)
}

/// Whether this is the last segment of a restore point's name.
pub(super) fn is_point(segment: &str) -> bool {
    match segment.split_once('-') {
        Some((stem, suffix)) => is_digest(stem) && is_hex(suffix, RANDOM),
        None => is_digest(segment),
    }
}

/// Whether this may be the part of a name that stands for a domain.
pub(super) fn is_hash(text: &str) -> bool {
    is_hex(text, 64)
}

/// Whether this is the part of a record's name that depends on its restore point.
pub(super) fn is_tag(text: &str) -> bool {
    is_hex(text, TAG)
}

/// Whether a text has this many lower-case hexadecimal digits and nothing else.
pub(super) fn is_hex(text: &str, length: usize) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == length && text.bytes().all(is_digit)
}

/// The last segment of an object's name.
pub(super) fn segment(name: &ObjectName) -> &str {
    let name = name.as_str();
    name.rsplit_once('/').map_or(name, |(_, segment)| segment)
}

/// A random part of a name.
pub(super) fn random() -> String {
    let mut text = uuid::Uuid::new_v4().simple().to_string();
    // The first half of a UUID of version 4 has four fixed bits, and the rest is random.
    text.truncate(RANDOM);
    text
}

/// The keyed BLAKE3 of texts, each of which is preceded by its length.
fn hash(key: &MasterKey, texts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new_keyed(&key.names());
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(domain: &str) -> DomainNames {
        let key = MasterKey::from_hex(&"01".repeat(32)).expect("valid");
        DomainNames::of(&Arc::new(key), domain)
    }

    /// Names are part of the format: two hosts have to choose the same.
    #[test]
    fn names_stay_as_they_are() {
        let names = names("vm1");
        let first = names.stem_after(None);
        let second = names.stem_after(Some(&first));
        assert_eq!(
            [
                &names.hash()[..16],
                &first[..16],
                &second[..16],
                &names.tag("2026-11-01T02-00-03Z")
            ],
            GOLDEN
        );
    }

    const GOLDEN: [&str; 4] = [
        "b42b246a9995e0bf",
        "769557c54bb3f55e",
        "1feaace01479b14d",
        "47d33b423f121367",
    ];

    #[test]
    fn names_differ_and_are_valid() {
        let (one, other) = (names("vm1"), names("vm2"));
        let first = one.stem_after(None);
        assert_ne!(first, other.stem_after(None));
        assert_ne!(first, one.stem_after(Some("first-but-longer")));
        let suffixed = format!("{first}-{}", random());
        for segment in [first.as_str(), &suffixed] {
            assert!(is_point(segment) && stem(segment) == first, "{segment}");
            let name = one.point(segment).expect("valid");
            assert_eq!(super::segment(&name), segment);
        }
        for wrong in [
            "",
            "x",
            &first[1..],
            &format!("{first}-"),
            &format!("{first}-A"),
            "-",
        ] {
            assert!(!is_point(wrong), "{wrong}");
        }
        assert!(is_tag(&one.tag("x")) && one.tag("x") != one.tag("y") && one.tag("x") != other.tag("x"));
    }
}
