//! Records which bytes of a read have arrived, in any order of their chunks.

use super::error::{Error, Result};

/// The most separate pieces that one reply may consist of at any time; adjacent pieces count as
/// one. Real servers send their chunks in order, which makes one piece.
const MAX_PIECES: usize = 16_384;

/// The bytes of one read that have arrived: sorted ranges `(start, end)` that neither overlap nor
/// touch.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    pieces: Vec<(usize, usize)>,
}

impl Coverage {
    /// Adds `start..end`, which is not empty. It is an error if any of these bytes arrived before.
    pub fn add(&mut self, start: usize, end: usize) -> Result<()> {
        let place = self.pieces.partition_point(|piece| piece.0 < start);
        let before = place.checked_sub(1).map(|index| self.pieces[index].1);
        let after = self.pieces.get(place).map(|piece| piece.0);
        if before.is_some_and(|before| before > start) || after.is_some_and(|after| after < end) {
            return Err(Error::protocol("two chunks of one reply overlap"));
        }
        match (before == Some(start), after == Some(end)) {
            (true, true) => {
                self.pieces[place - 1].1 = self.pieces[place].1;
                self.pieces.remove(place);
            }
            (true, false) => self.pieces[place - 1].1 = end,
            (false, true) => self.pieces[place].0 = start,
            (false, false) if self.pieces.len() < MAX_PIECES => self.pieces.insert(place, (start, end)),
            (false, false) => {
                return Err(Error::protocol(format!(
                    "a reply arrives in more than {MAX_PIECES} separate pieces"
                )));
            }
        }
        Ok(())
    }

    /// Whether all of `0..length` has arrived.
    pub fn complete(&self, length: usize) -> bool {
        self.pieces == [(0, length)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_are_accepted_only_if_none_of_their_bytes_arrived(
            pieces in proptest::collection::vec((0usize..64, 1usize..12), 1..40),
        ) {
            let mut coverage = Coverage::default();
            let mut bytes = [false; 80];
            for (start, length) in pieces {
                let range = start..start + length;
                let fresh = !bytes[range.clone()].contains(&true);
                prop_assert_eq!(coverage.add(range.start, range.end).is_ok(), fresh);
                bytes[range].fill(true);
                if !fresh {
                    break;
                }
                let whole = bytes.iter().rposition(|byte| *byte).map_or(0, |last| last + 1);
                prop_assert_eq!(coverage.complete(whole), !bytes[..whole].contains(&false));
            }
        }
    }

    #[test]
    fn a_reply_of_crumbs_is_refused_before_it_costs_memory() {
        let mut coverage = Coverage::default();
        let refused = (0..100_000)
            .map(|crumb| coverage.add(2 * crumb, 2 * crumb + 1))
            .find(|added| added.is_err());
        assert!(refused.is_some());
        assert!(coverage.pieces.len() <= MAX_PIECES);
    }
}
