//! The list of compressed sizes at the end of a compressed stream.
//!
//! It is JSON with one item for each data frame: the compressed size of the frame, or, for a long
//! frame that was compressed in pieces, an object with the sum as its only name and the list of the
//! pieces' sizes as its value: `[4711, {"300": [100, 200]}]`. The list may be long, so it is read
//! step by step.

use super::reader::Reader;
use crate::model::block::BlockError;

/// How many bytes of the list are read at a time.
const WINDOW: usize = 4096;

/// The most digits of a size.
const MOST_DIGITS: usize = 19;

/// A place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The offset in the file of the next byte.
    at: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the opening bracket.
    Start,
    /// Before the first item.
    First,
    /// After an item.
    After,
    /// Before the first piece of an item.
    FirstPiece,
    /// After a piece.
    AfterPiece,
    /// After the closing bracket.
    End,
}

/// The next part of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The compressed size of a frame.
    Whole(u64),
    /// The compressed size of a frame; the sizes of its pieces follow.
    Pieces(u64),
    /// The compressed size of a piece.
    Piece(u64),
    /// The end of the pieces of a frame.
    EndOfPieces,
    /// The list ends here.
    End,
}

/// Reads the list.
#[derive(Debug)]
pub(super) struct Trailer {
    place: Place,
    /// The end of the list in the file.
    end: u64,
    window: Vec<u8>,
    /// The offset in the file of the window.
    window_at: u64,
}

impl Trailer {
    /// The list in this range of the file.
    pub(super) fn new(start: u64, end: u64) -> Trailer {
        let place = Place {
            at: start,
            state: State::Start,
        };
        Trailer {
            place,
            end,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// The present place, to which [`Trailer::go_to`] can return.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Returns to a place.
    pub(super) fn go_to(&mut self, place: Place) {
        self.place = place;
    }

    /// The next part.
    ///
    /// # Errors
    /// The list is invalid, or cannot be read.
    pub(super) fn next(&mut self, reader: &Reader) -> Result<Part, BlockError> {
        let state = self.place.state;
        match state {
            State::Start => {
                self.expect(b'[', reader)?;
                self.place.state = State::First;
                self.next(reader)
            }
            State::First | State::After => {
                let byte = self.after_blanks(reader)?;
                match byte {
                    b']' => {
                        self.skip();
                        self.place.state = State::End;
                        Ok(Part::End)
                    }
                    b',' if state == State::After => {
                        self.skip();
                        self.item(reader)
                    }
                    _ if state == State::First => self.item(reader),
                    _ => Err(self.invalid(reader)),
                }
            }
            State::FirstPiece => self.piece(reader),
            State::AfterPiece => match self.after_blanks(reader)? {
                b',' => {
                    self.skip();
                    self.piece(reader)
                }
                b']' => {
                    self.skip();
                    self.expect(b'}', reader)?;
                    self.place.state = State::After;
                    Ok(Part::EndOfPieces)
                }
                _ => Err(self.invalid(reader)),
            },
            State::End => Ok(Part::End),
        }
    }

    fn item(&mut self, reader: &Reader) -> Result<Part, BlockError> {
        if self.after_blanks(reader)? != b'{' {
            let size = self.number(reader)?;
            self.place.state = State::After;
            return Ok(Part::Whole(size));
        }
        self.skip();
        self.expect(b'"', reader)?;
        let size = self.number(reader)?;
        self.expect(b'"', reader)?;
        self.expect(b':', reader)?;
        self.expect(b'[', reader)?;
        self.place.state = State::FirstPiece;
        Ok(Part::Pieces(size))
    }

    fn piece(&mut self, reader: &Reader) -> Result<Part, BlockError> {
        self.after_blanks(reader)?;
        let size = self.number(reader)?;
        self.place.state = State::AfterPiece;
        Ok(Part::Piece(size))
    }

    fn number(&mut self, reader: &Reader) -> Result<u64, BlockError> {
        let mut number = 0_u64;
        for digits in 0.. {
            match self.peek(reader)? {
                Some(byte @ b'0'..=b'9') if digits < MOST_DIGITS => {
                    number = number * 10 + u64::from(byte - b'0');
                    self.skip();
                }
                Some(b'0'..=b'9') => break,
                _ if digits > 0 => return Ok(number),
                _ => break,
            }
        }
        Err(self.invalid(reader))
    }

    fn expect(&mut self, expected: u8, reader: &Reader) -> Result<(), BlockError> {
        match self.after_blanks(reader)? == expected {
            true => {
                self.skip();
                Ok(())
            }
            false => Err(self.invalid(reader)),
        }
    }

    /// The next byte that is not blank.
    fn after_blanks(&mut self, reader: &Reader) -> Result<u8, BlockError> {
        loop {
            match self.peek(reader)? {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.skip(),
                Some(byte) => return Ok(byte),
                None => return Err(self.invalid(reader)),
            }
        }
    }

    fn skip(&mut self) {
        self.place.at += 1;
    }

    fn peek(&mut self, reader: &Reader) -> Result<Option<u8>, BlockError> {
        let at = self.place.at;
        if at >= self.end {
            return Ok(None);
        }
        let within = |this: &Trailer| {
            at.checked_sub(this.window_at)
                .and_then(|from| usize::try_from(from).ok())
        };
        if let Some(byte) = within(self).and_then(|from| self.window.get(from)) {
            return Ok(Some(*byte));
        }
        let length = (self.end - at).min(WINDOW as u64);
        self.window.resize(usize::try_from(length).unwrap_or(WINDOW), 0);
        if let Err(error) = reader.read_past_digest(&mut self.window, at) {
            // Its bytes are those of another place.
            self.window.clear();
            return Err(error);
        }
        self.window_at = at;
        Ok(self.window.first().copied())
    }

    fn invalid(&self, reader: &Reader) -> BlockError {
        reader.damaged_at(self.place.at, "the list of compressed sizes is invalid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::sets::reader::tests::reader_of;
    use proptest::prelude::*;

    fn parts(json: &str) -> Result<Vec<Part>, String> {
        let reader = reader_of(json.as_bytes());
        let mut trailer = Trailer::new(0, json.len() as u64);
        let mut parts = Vec::new();
        loop {
            match trailer.next(&reader).map_err(|error| error.what)? {
                Part::End => return Ok(parts),
                part => parts.push(part),
            }
        }
    }

    #[test]
    fn list_of_virtnbdbackup_is_read() {
        let expected = [
            Part::Whole(4711),
            Part::Pieces(300),
            Part::Piece(100),
            Part::Piece(200),
            Part::EndOfPieces,
            Part::Whole(5),
        ];
        assert_eq!(
            parts(r#"[4711, {"300": [100, 200]}, 5]"#).as_deref(),
            Ok(&expected[..])
        );
        assert_eq!(parts("[]").as_deref(), Ok(&[][..]));
    }

    #[test]
    fn invalid_lists_are_refused() {
        for json in [
            "",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[-1]",
            "[1.5]",
            "[{}]",
            "[{\"3\": 3}]",
            "[{\"3\": []}]",
            "[{\"3\": [1]",
            "[{\"3\": [1,]}]",
            "[\"1\"]",
            "[99999999999999999999]",
            "[[1]]",
        ] {
            assert!(parts(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_list_is_read_as_written(items in proptest::collection::vec(
            (0..1u64 << 40, proptest::collection::vec(0..1u64 << 40, 0..5)), 0..300,
        )) {
            let mut expected = Vec::new();
            let mut json = Vec::new();
            for (size, pieces) in &items {
                if pieces.is_empty() {
                    expected.push(Part::Whole(*size));
                    json.push(serde_json::json!(size));
                } else {
                    expected.push(Part::Pieces(*size));
                    expected.extend(pieces.iter().map(|piece| Part::Piece(*piece)));
                    expected.push(Part::EndOfPieces);
                    json.push(serde_json::json!({ size.to_string(): pieces }));
                }
            }
            let json = serde_json::Value::from(json).to_string();
            prop_assert_eq!(parts(&json), Ok(expected));
        }

        #[test]
        fn any_text_is_read_or_refused(json in "[\\[\\]{}\":, 0-9]{0,60}") {
            let _ = parts(&json);
        }
    }
}
