//! Texts that carry their own digest: the BLAKE3 of the text with zeroes in the digest's place.
//!
//! The digest shows damage, not forgery. No key is needed to compute it, unlike the seal in a
//! record of a pack repository.

/// The placeholder for the digest until it is known.
pub(super) const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The text with its digest in place of the first [`NO_DIGEST`].
pub(super) fn seal(text: &str) -> String {
    let digest = blake3::hash(text.as_bytes()).to_hex();
    text.replacen(NO_DIGEST, digest.as_str(), 1)
}

/// Whether `digest`, which the text contains, matches the text. If so, the text is undamaged, but
/// may be forged, because anybody can compute this digest.
pub(super) fn holds(text: &[u8], digest: &str) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    is_digest(digest) && {
        let blank = text.replacen(digest, NO_DIGEST, 1);
        blake3::hash(blank.as_bytes()).to_hex().as_str() == digest
    }
}

/// Whether the text has the form of a BLAKE3 digest: 64 hexadecimal digits.
pub(super) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_bit_anywhere_breaks_the_seal() {
        let sealed = seal(&format!("{{\"digest\": \"{NO_DIGEST}\", \"what\": 7}}"));
        let digest = &sealed[12..76].to_owned();
        assert!(holds(sealed.as_bytes(), digest));
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut bytes = sealed.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                assert!(!holds(&bytes, digest), "byte {at}, bit {bit}");
            }
        }
    }
}
