//! Finds bytes and clusters that are all zero.

use crate::model::block::CLUSTER;

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const PROBE: usize = 64;
    let probe = &bytes[..bytes.len().min(PROBE)];
    // A slice that starts with zero and equals itself shifted by one byte is zero throughout. The
    // comparison is the C library's memcmp, which stops at the first difference.
    probe.iter().all(|&byte| byte == 0)
        && bytes[bytes.len().min(1)..] == bytes[..bytes.len().saturating_sub(1)]
}

/// Splits bytes that start on a cluster into runs of clusters that are all zero or not:
/// `(zero, start, end)`. The last cluster may be short.
pub(super) fn runs(bytes: &[u8]) -> impl Iterator<Item = (bool, usize, usize)> + '_ {
    let cluster = CLUSTER as usize;
    let mut start = 0;
    let mut kinds = bytes.chunks(cluster).map(is_zero).peekable();
    std::iter::from_fn(move || {
        let zero = kinds.next()?;
        let mut end = start + cluster;
        while kinds.next_if_eq(&zero).is_some() {
            end += cluster;
        }
        let run = (zero, start, end.min(bytes.len()));
        start = end;
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_byte_anywhere_makes_the_difference() {
        for length in [0, 1, 2, 63, 64, 65, 4096, 65536] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes), "{length} zeroes");
            for place in [0, 1, 62, 63, 64, 65, length / 2, length.saturating_sub(1)] {
                if place < length {
                    bytes[place] = 1;
                    assert!(!is_zero(&bytes), "byte {place} of {length}");
                    bytes[place] = 0;
                }
            }
        }
    }

    #[test]
    fn runs_cover_everything_once_and_alternate() {
        let cluster = CLUSTER as usize;
        let mut bytes = vec![0; 5 * cluster + 100];
        bytes[2 * cluster + 7] = 1;
        bytes[3 * cluster] = 1;
        let found: Vec<_> = runs(&bytes).collect();
        assert_eq!(
            found,
            [
                (true, 0, 2 * cluster),
                (false, 2 * cluster, 4 * cluster),
                (true, 4 * cluster, 5 * cluster + 100)
            ]
        );
        assert_eq!(runs(&[]).count(), 0);
    }
}
