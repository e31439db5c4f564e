//! JSON records with a seal: the keyed BLAKE3 of the text with zeroes in the seal's place.

use serde::{Deserialize, Serialize};

use super::master::MasterKey;
use crate::repo::seal::{NO_DIGEST, is_digest};

/// The placeholder for a seal until it is known.
pub(in crate::repo::pack) const NO_SEAL: &str = NO_DIGEST;

/// The part of a record that a reader of any version can parse.
#[derive(Deserialize)]
struct Head {
    format: u64,
}

/// The format of a record.
pub(in crate::repo::pack) fn format(text: &[u8]) -> Result<u64, String> {
    let head: Head = serde_json::from_slice(text).map_err(|error| format!("it is invalid: {error}"))?;
    Ok(head.format)
}

/// Writes a record whose seal is [`NO_SEAL`], and seals it.
pub(in crate::repo::pack) fn sealed(record: &impl Serialize, key: &MasterKey) -> String {
    // No record has a key that is not a string, so this never fails.
    let text = serde_json::to_string_pretty(record).unwrap_or_default() + "\n";
    text.replacen(NO_SEAL, &key.seal(text.as_bytes()), 1)
}

/// Whether a record is unchanged since it was sealed with this key. `seal` is the seal in the
/// record.
pub(in crate::repo::pack) fn is_genuine(text: &[u8], seal: &str, key: &MasterKey) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    let blank = text.replacen(seal, NO_SEAL, 1);
    // Both sides are public, so the time that the comparison takes reveals nothing.
    is_digest(seal) && key.seal(blank.as_bytes()) == seal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Example {
        seal: &'static str,
        what: u32,
    }

    #[test]
    fn any_change_and_any_other_key_breaks_the_seal() {
        let key = MasterKey::new().expect("random");
        let text = sealed(
            &Example {
                seal: NO_SEAL,
                what: 7,
            },
            &key,
        );
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let seal = value["seal"].as_str().expect("a seal").to_owned();
        assert!(is_genuine(text.as_bytes(), &seal, &key));
        assert!(!is_genuine(
            text.as_bytes(),
            &seal,
            &MasterKey::new().expect("random")
        ));
        for place in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[place] ^= 1;
            assert!(!is_genuine(&changed, &seal, &key), "{place}");
        }
        assert!(!is_genuine(text.as_bytes(), "", &key));
    }
}
