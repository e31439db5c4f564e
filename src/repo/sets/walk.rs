//! Walks through the content of a stream without reading its bytes.
//!
//! Each step reads one frame, or the beginning of one compressed piece, and checks everything that
//! can be checked without the bytes: the form of the frame, its place, sums and ends. So the memory
//! does not depend on the size of the disk or the number of frames.

use super::frame::{FRAME, Frame, FrameKind, Header, MAX_HEADER, TERM};
use super::lz4::{self, PieceHead};
use super::reader::Reader;
use super::trailer::{Part, Place, Trailer};
use crate::model::block::BlockError;

/// A part of a stream: a range of the disk and how its content is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Its start on the disk, in bytes.
    pub(super) offset: u64,
    /// Its length in bytes; never 0.
    pub(super) length: u64,
    /// How its content is stored.
    pub(super) content: Storage,
}

impl Item {
    /// The first byte of the disk after it.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// How a part of a disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// It reads as zero.
    Zero,
    /// Its bytes are in the file.
    Plain {
        /// Their offset in the file.
        at: u64,
    },
    /// An LZ4 frame with its bytes is in the file.
    Lz4 {
        /// The frame's offset in the file.
        at: u64,
        /// The frame's length in bytes.
        stored: u64,
    },
}

/// Facts about a stream that do not change during a walk.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The header.
    pub(super) header: Header,
    /// The offset in the file of the first frame after the header.
    pub(super) start: u64,
    /// The offset in the file at which the frames must end.
    pub(super) end: u64,
    /// The range of the list of compressed sizes; the end of the frames if there is none.
    pub(super) trailer: (u64, u64),
}

impl Layout {
    /// Reads the header and the end of a stream.
    ///
    /// # Errors
    /// The file is not a complete stream, or cannot be read.
    pub(super) fn read(reader: &Reader) -> Result<Layout, BlockError> {
        let first = frame_at(reader, 0)?;
        if first.kind != FrameKind::Meta || first.start != 0 {
            return Err(reader.damaged_at(0, "it does not begin with a header"));
        }
        if first.length > MAX_HEADER {
            return Err(reader.damaged_at(0, "its header is too long"));
        }
        let mut json = vec![0; usize::try_from(first.length).unwrap_or(0)];
        reader.read_past_digest(&mut json, FRAME as u64)?;
        let after = FRAME as u64 + first.length;
        check_term(reader, after)?;
        let header = Header::parse(&json).map_err(|why| reader.damaged_at(FRAME as u64, &why))?;
        let start = after + TERM.len() as u64;
        let length = reader.length();
        let too_short = || reader.damaged_at(length, "it ends too early");
        let last_at = length.checked_sub(FRAME as u64).filter(|at| *at >= start);
        let last_at = last_at.ok_or_else(too_short)?;
        let last = frame_at(reader, last_at).map_err(|_| incomplete(reader))?;
        let expected = match header.is_compressed {
            true => FrameKind::Comp,
            false => FrameKind::Stop,
        };
        if last.kind != expected {
            return Err(incomplete(reader));
        }
        if !header.is_compressed {
            return Ok(Layout {
                header,
                start,
                end: length,
                trailer: (length, length),
            });
        }
        let list_end = last_at.checked_sub(TERM.len() as u64);
        let list_end = list_end.filter(|end| *end >= start).ok_or_else(too_short)?;
        check_term(reader, list_end)?;
        let list = list_end.checked_sub(last.length).filter(|at| *at >= start);
        let list =
            list.ok_or_else(|| reader.damaged_at(last_at, "the list of compressed sizes is too long"))?;
        Ok(Layout {
            header,
            start,
            end: list,
            trailer: (list, list_end),
        })
    }
}

fn incomplete(reader: &Reader) -> BlockError {
    let why = "it does not end as a complete stream does: it was cut, or its backup did not finish";
    reader.damaged_at(reader.length(), why)
}

fn frame_at(reader: &Reader, at: u64) -> Result<Frame, BlockError> {
    let mut bytes = [0; FRAME];
    reader.read_past_digest(&mut bytes, at)?;
    Frame::parse(&bytes).ok_or_else(|| reader.damaged_at(at, "there is no frame"))
}

fn check_term(reader: &Reader, at: u64) -> Result<(), BlockError> {
    let mut bytes = [0; TERM.len()];
    reader.read_past_digest(&mut bytes, at)?;
    match bytes == *TERM {
        true => Ok(()),
        false => Err(reader.damaged_at(at, "a line end is missing")),
    }
}

/// A place in a walk, to which a walk can return.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    step: Step,
    trailer: Place,
}

/// The state of a walk.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The offset in the file of the next frame or piece.
    at: u64,
    /// The end on the disk of what has been passed.
    disk: u64,
    /// The number of bytes of data passed.
    data: u64,
    /// The rest of a frame that was compressed in pieces.
    pieces: Option<Rest>,
    is_at_end: bool,
}

/// The rest of a frame that was compressed in pieces.
#[derive(Clone, Copy, Debug)]
struct Rest {
    /// The end of the frame on the disk.
    end: u64,
    /// The end of the frame in the file.
    file_end: u64,
}

/// A walk through a stream.
#[derive(Debug)]
pub(super) struct Walk {
    layout: Layout,
    step: Step,
    trailer: Trailer,
}

impl Walk {
    /// A walk that begins at the first frame.
    pub(super) fn new(layout: Layout) -> Walk {
        let step = Step {
            at: layout.start,
            disk: 0,
            data: 0,
            pieces: None,
            is_at_end: false,
        };
        Walk {
            step,
            trailer: Trailer::new(layout.trailer.0, layout.trailer.1),
            layout,
        }
    }

    /// The present place.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            step: self.step,
            trailer: self.trailer.place(),
        }
    }

    /// Returns to a place.
    pub(super) fn go_to(&mut self, mark: Mark) {
        self.step = mark.step;
        self.trailer.go_to(mark.trailer);
    }

    /// The next item, or `None` after the last one. Items come in the disk's order and never
    /// overlap.
    ///
    /// # Errors
    /// The stream is damaged or cannot be read, or a stop was requested.
    pub(super) fn next(&mut self, reader: &mut Reader) -> Result<Option<Item>, BlockError> {
        if self.step.is_at_end {
            return Ok(None);
        }
        if let Some(rest) = self.step.pieces {
            return self.piece(rest, reader).map(Some);
        }
        let at = self.step.at;
        let mut bytes = [0; FRAME];
        reader.read(&mut bytes, at)?;
        let damaged = |why: &str| reader.damaged_at(at, why);
        let frame = Frame::parse(&bytes).ok_or_else(|| damaged("there is no frame"))?;
        let body = at + FRAME as u64;
        match frame.kind {
            FrameKind::Stop => {
                self.end(frame, body, reader)?;
                return Ok(None);
            }
            FrameKind::Data | FrameKind::Zero => {}
            FrameKind::Meta | FrameKind::Comp => return Err(damaged("a frame of this kind cannot be here")),
        }
        let header = &self.layout.header;
        let end = frame.start.checked_add(frame.length);
        let end = end.filter(|end| frame.length > 0 && *end <= header.size);
        let end = end.ok_or_else(|| damaged("a frame is not within the disk"))?;
        if frame.start < self.step.disk {
            return Err(damaged("a frame overlaps an earlier one"));
        }
        if !header.is_incremental && frame.start > self.step.disk {
            return Err(damaged("a frame is missing: a full backup has no gaps"));
        }
        if frame.kind == FrameKind::Zero {
            self.step.disk = end;
            self.step.at = body;
            return Ok(Some(Item {
                offset: frame.start,
                length: frame.length,
                content: Storage::Zero,
            }));
        }
        self.step.data += frame.length;
        if self.step.data > header.data_bytes {
            return Err(damaged("it has more data than its header says"));
        }
        if !header.is_compressed {
            self.check_end_of_data(body, frame.length, reader)?;
            self.step.disk = end;
            return Ok(Some(Item {
                offset: frame.start,
                length: frame.length,
                content: Storage::Plain { at: body },
            }));
        }
        match self.trailer.next(reader)? {
            Part::Whole(stored) => {
                self.check_end_of_data(body, stored, reader)?;
                self.step.disk = end;
                Ok(Some(Item {
                    offset: frame.start,
                    length: frame.length,
                    content: Storage::Lz4 { at: body, stored },
                }))
            }
            Part::Pieces(stored) => {
                let rest = Rest {
                    end,
                    file_end: self.check_end_of_data(body, stored, reader)?,
                };
                self.step.disk = frame.start;
                self.step.at = body;
                self.step.pieces = Some(rest);
                self.piece(rest, reader).map(Some)
            }
            _ => Err(reader.damaged_at(at, "the list of compressed sizes lacks this frame")),
        }
    }

    /// Checks that the bytes of a data frame fit into the file and end with a line end. Goes on to
    /// the next frame, and returns the end of the bytes.
    fn check_end_of_data(&mut self, body: u64, stored: u64, reader: &Reader) -> Result<u64, BlockError> {
        let end = body.checked_add(stored);
        let after = |end: u64| end.checked_add(TERM.len() as u64);
        let fits = |end: &u64| after(*end).is_some_and(|after| after <= self.layout.end);
        let end = end.filter(fits);
        let end = end.ok_or_else(|| reader.damaged_at(self.step.at, "the bytes of a frame are missing"))?;
        check_term(reader, end)?;
        self.step.at = end + TERM.len() as u64;
        Ok(end)
    }

    fn piece(&mut self, rest: Rest, reader: &mut Reader) -> Result<Item, BlockError> {
        let at = self.step.at;
        let Part::Piece(stored) = self.trailer.next(reader)? else {
            return Err(reader.damaged_at(at, "the list of compressed sizes lacks a part of this frame"));
        };
        let file_end = at.checked_add(stored).filter(|end| *end <= rest.file_end);
        let file_end = file_end.ok_or_else(|| reader.damaged_at(at, "a compressed part is too long"))?;
        let PieceHead { size, .. } = lz4::head_at(reader, at, stored)?;
        let length =
            size.ok_or_else(|| reader.damaged_at(at, "a compressed part does not record its size"))?;
        let end = self.step.disk.checked_add(length);
        let end = end.filter(|end| length > 0 && *end <= rest.end);
        let end = end.ok_or_else(|| reader.damaged_at(at, "a compressed part does not fit its frame"))?;
        let item = Item {
            offset: self.step.disk,
            length,
            content: Storage::Lz4 { at, stored },
        };
        self.step.disk = end;
        self.step.at = file_end;
        if end == rest.end {
            if file_end != rest.file_end || self.trailer.next(reader)? != Part::EndOfPieces {
                return Err(reader.damaged_at(at, "the compressed sizes of a frame do not add up"));
            }
            self.step.at = file_end + TERM.len() as u64;
            self.step.pieces = None;
        }
        Ok(item)
    }

    /// Checks what must hold at the end of a stream.
    fn end(&mut self, frame: Frame, body: u64, reader: &Reader) -> Result<(), BlockError> {
        let header = &self.layout.header;
        let damaged = |why: &str| reader.damaged_at(self.step.at, why);
        if frame.start != 0 || frame.length != 0 {
            return Err(damaged("the last frame is invalid"));
        }
        if self.step.data != header.data_bytes {
            return Err(damaged("it has less data than its header says"));
        }
        if !header.is_incremental && self.step.disk != header.size {
            return Err(damaged("a full backup ends before the end of the disk"));
        }
        if body != self.layout.end {
            return Err(damaged("something follows the last frame"));
        }
        if header.is_compressed && self.trailer.next(reader)? != Part::End {
            return Err(damaged("the list of compressed sizes has too many items"));
        }
        self.step.is_at_end = true;
        Ok(())
    }
}
