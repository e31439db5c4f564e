//! Verifies the pieces of a file when they are first used.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::digest::{piece_digest, whole_digest};
use super::recorded::Recorded;
use super::{Error, Result, StoredFile};
use crate::model::block::Pieces;
use crate::model::stop::Stop;

/// How long a thread waits for another thread's result before it checks for a stop request
/// again.
const GLANCE: Duration = Duration::from_millis(100);

/// Verifies each piece of a file once, when it is first used, and remembers the pieces that passed.
///
/// A file without digests of pieces is one piece. A piece is read front to back with a small
/// buffer, so the memory does not grow with it.
#[derive(Debug)]
pub(super) struct PieceChecks {
    file: Arc<StoredFile>,
    path: PathBuf,
    recorded: Recorded,
    stop: Stop,
    state: Mutex<State>,
    changed: Condvar,
}

/// The state of the pieces.
#[derive(Debug, Default)]
struct State {
    /// One bit for each piece that has passed.
    verified: Vec<u64>,
    /// The pieces that threads are verifying now.
    busy: Vec<u64>,
}

impl State {
    fn is_verified(&self, piece: u64) -> bool {
        let word = usize::try_from(piece / 64)
            .ok()
            .and_then(|word| self.verified.get(word));
        word.is_some_and(|word| word >> (piece % 64) & 1 == 1)
    }

    fn set_verified(&mut self, piece: u64) {
        let word = usize::try_from(piece / 64).unwrap_or(usize::MAX);
        if self.verified.len() <= word {
            self.verified.resize(word + 1, 0);
        }
        self.verified[word] |= 1 << (piece % 64);
    }
}

impl PieceChecks {
    /// Starts with no piece verified.
    ///
    /// # Errors
    /// [`Error::Length`] if the file's length differs from the recorded one, [`Error::File`] if the
    /// file cannot be examined.
    pub(super) fn new(
        file: Arc<StoredFile>,
        path: PathBuf,
        recorded: Recorded,
        stop: Stop,
    ) -> Result<PieceChecks> {
        let actual = file
            .length()
            .map_err(|error| Error::of_file("examine", &path, error))?;
        if actual != recorded.bytes {
            return Err(Error::Length {
                path,
                actual,
                expected: recorded.bytes,
            });
        }
        Ok(PieceChecks {
            file,
            path,
            recorded,
            stop,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Verifies the pieces that contain these bytes of the file.
    ///
    /// # Errors
    /// [`Error::Digest`] or [`Error::Piece`] if a piece is damaged; others if the file cannot be
    /// read, or a stop was requested.
    pub(super) fn check(&self, bytes: Range<u64>) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let size = self.piece_size();
        (bytes.start / size..=(bytes.end - 1) / size).try_for_each(|piece| self.check_piece(piece))
    }

    fn piece_size(&self) -> u64 {
        let pieces = self.recorded.pieces.as_ref();
        pieces.map_or(self.recorded.bytes, |pieces| pieces.size).max(1)
    }

    fn check_piece(&self, piece: u64) -> Result<()> {
        let mut state = self.state();
        loop {
            if state.is_verified(piece) {
                return Ok(());
            }
            if self.stop.requested() {
                return Err(Error::Stopped);
            }
            if !state.busy.contains(&piece) {
                break;
            }
            let waited = self.changed.wait_timeout(state, GLANCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.busy.push(piece);
        drop(state);
        let compared = self.compare(piece);
        let mut state = self.state();
        state.busy.retain(|busy| *busy != piece);
        if compared.is_ok() {
            state.set_verified(piece);
        }
        self.changed.notify_all();
        compared
    }

    /// Reads a piece and compares its digest.
    fn compare(&self, piece: u64) -> Result<()> {
        match &self.recorded.pieces {
            Some(pieces) => self.compare_piece(piece, pieces),
            None => {
                let actual = whole_digest(&self.file, &self.path, &self.stop)?;
                match actual.eq_ignore_ascii_case(&self.recorded.blake3) {
                    true => Ok(()),
                    false => Err(Error::Digest {
                        path: self.path.clone(),
                        actual,
                        expected: self.recorded.blake3.clone(),
                    }),
                }
            }
        }
    }

    fn compare_piece(&self, piece: u64, pieces: &Pieces) -> Result<()> {
        let begin = piece.saturating_mul(pieces.size);
        let end = begin.saturating_add(pieces.size).min(self.recorded.bytes);
        let expected = usize::try_from(piece)
            .ok()
            .and_then(|piece| pieces.digests.get(piece));
        let actual = piece_digest(&self.file, &self.path, begin..end, &self.stop)?;
        match expected == Some(&actual) {
            true => Ok(()),
            false => Err(Error::Piece {
                path: self.path.clone(),
                offset: begin,
                length: end - begin,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::FileDigest;
    use crate::image::samples::{C, memory_file};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;

    /// A file of three pieces and a bit, with its recorded digests.
    fn sample() -> (Vec<u8>, Recorded) {
        let mut bytes = vec![0; 3 * MIB as usize + 1000];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let mut digest = FileDigest::new();
        digest.update(&bytes[C..]);
        let (blake3, pieces) = digest.finish(bytes[..C].try_into().expect("a whole cluster"));
        let recorded = Recorded {
            bytes: bytes.len() as u64,
            blake3: blake3.to_hex().to_string(),
            pieces,
        };
        (bytes, recorded)
    }

    fn checks(bytes: &[u8], recorded: &Recorded, stop: &Stop) -> (File, PieceChecks) {
        let file = memory_file(bytes);
        let stored = StoredFile::from(file.try_clone().expect("a second handle"));
        let checks = PieceChecks::new(Arc::new(stored), "x".into(), recorded.clone(), stop.clone());
        (file, checks.expect("it has its length"))
    }

    #[test]
    fn only_the_damaged_piece_is_refused() {
        let (mut bytes, recorded) = sample();
        bytes[MIB as usize + 7] ^= 1;
        let (_, checks) = checks(&bytes, &recorded, &Stop::default());
        checks.check(0..MIB).expect("it is sound");
        checks.check(2 * MIB..recorded.bytes).expect("it is sound");
        let refused = checks.check(MIB - 1..MIB + 1).expect_err("it is damaged");
        assert!(
            matches!(
                refused,
                Error::Piece {
                    offset: MIB,
                    length: MIB,
                    ..
                }
            ),
            "{refused}"
        );
    }

    #[test]
    fn a_file_without_pieces_is_verified_as_a_whole() {
        let (mut bytes, recorded) = sample();
        let recorded = Recorded {
            pieces: None,
            ..recorded
        };
        checks(&bytes, &recorded, &Stop::default())
            .1
            .check(5..6)
            .expect("it is sound");
        *bytes.last_mut().expect("it has some") ^= 1;
        let refused = checks(&bytes, &recorded, &Stop::default()).1.check(5..6);
        assert!(matches!(refused, Err(Error::Digest { .. })), "{refused:?}");
    }

    #[test]
    fn a_piece_that_has_passed_is_not_read_again() {
        let (bytes, recorded) = sample();
        let (file, checks) = checks(&bytes, &recorded, &Stop::default());
        checks.check(0..1).expect("it is sound");
        file.write_all_at(&[1, 2, 3], 100).expect("it can be written");
        checks.check(0..MIB).expect("it was sound");
    }

    #[test]
    fn a_wish_to_stop_ends_it() {
        let (bytes, recorded) = sample();
        let stop = Stop::default();
        let (_, checks) = checks(&bytes, &recorded, &stop);
        stop.request(crate::model::stop::StopReason::Terminated);
        assert!(matches!(checks.check(0..1), Err(Error::Stopped)));
    }

    #[test]
    fn another_length_is_refused_at_once() {
        let (bytes, recorded) = sample();
        let file = Arc::new(memory_file(&bytes[1..]).into());
        let refused = PieceChecks::new(file, "x".into(), recorded, Stop::default());
        assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
    }
}
