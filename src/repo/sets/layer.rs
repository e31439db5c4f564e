//! One file of a disk's chain: where it holds something, and the bytes.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lz4::Piece;
use super::reader::{self, Reader};
use super::walk::{Item, Layout, Mark, Storage, Walk};
use crate::model::block::BlockError;
use crate::model::stop::Stop;
use crate::repo::{RepoError, Result};

/// A file that a chain needs.
#[derive(Clone, Debug)]
pub(super) struct ChainFile {
    /// Its path.
    pub(super) path: std::path::PathBuf,
    /// How its bytes are stored.
    pub(super) form: Form,
    /// Its recorded checksum.
    pub(super) expected: Option<u32>,
}

/// How a file stores a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As a stream.
    Stream,
    /// As the plain bytes of the whole disk.
    Raw,
}

/// The most marks of an index. With more items than that, the marks are further apart.
const MOST_MARKS: usize = 1 << 16;

/// How many items the first marks are apart.
const FIRST_STRIDE: u64 = 64;

/// Places in a stream from which a walk can begin, for random access.
#[derive(Debug, Default)]
struct Index {
    /// Places with the start on the disk of the item that follows, in the disk's order.
    marks: Vec<(u64, Mark)>,
}

/// One file of a chain that is being read.
#[derive(Debug)]
pub(super) struct Layer {
    reader: Arc<Mutex<Reader>>,
    size: u64,
    content: Content,
    piece: Option<Piece>,
    /// Whether its digest has to be checked at the end: something of it was read.
    is_used: bool,
}

#[derive(Debug)]
enum Content {
    Raw,
    Stream(Box<Streamed>),
}

#[derive(Debug)]
struct Streamed {
    walk: Walk,
    /// The item that the walk reached last; `None` before the first and after the last one.
    current: Option<Item>,
    has_begun: bool,
    index: Option<Index>,
}

impl Layer {
    /// Opens a file for reading from front to back.
    ///
    /// # Errors
    /// The file cannot be opened, or is not a complete stream.
    pub(super) fn open(file: &ChainFile, stop: &Stop) -> Result<Layer> {
        let failed = |source| RepoError::Open {
            location: file.path.display().to_string(),
            source,
        };
        let opened = reader::open(&file.path).map_err(failed)?;
        let reader = Reader::new(opened, &file.path, file.expected, stop.clone()).map_err(failed)?;
        let (size, content) = match file.form {
            Form::Raw => (reader.length(), Content::Raw),
            Form::Stream => {
                let layout = Layout::read(&reader)?;
                let size = layout.header.size;
                let streamed = Streamed {
                    walk: Walk::new(layout),
                    current: None,
                    has_begun: false,
                    index: None,
                };
                (size, Content::Stream(Box::new(streamed)))
            }
        };
        Ok(Layer {
            reader: Arc::new(Mutex::new(reader)),
            size,
            content,
            piece: None,
            is_used: false,
        })
    }

    /// The size of the disk in bytes when the file was written.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether any content of the file was read.
    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the cached pages of the file.
    pub(super) fn forget_cached(&self) {
        self.reader().forget_cached();
    }

    /// Checks the checksum, and prepares random access.
    ///
    /// # Errors
    /// The file is damaged or cannot be read, or a stop was requested.
    pub(super) fn make_index(&mut self) -> std::result::Result<(), BlockError> {
        let mut index = Index::default();
        let mut stride = FIRST_STRIDE;
        if let Content::Stream(streamed) = &mut self.content {
            let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
            let mut items = 0_u64;
            loop {
                let mark = streamed.walk.mark();
                let Some(item) = streamed.walk.next(&mut reader)? else {
                    break;
                };
                if items.is_multiple_of(stride) {
                    index.marks.push((item.offset, mark));
                }
                if index.marks.len() == MOST_MARKS {
                    let mut places = 0..;
                    index
                        .marks
                        .retain(|_| places.next().is_some_and(|place| place % 2 == 0));
                    stride *= 2;
                }
                items += 1;
            }
        }
        self.finish()?;
        let reader = self.reader().without_digest();
        self.reader = Arc::new(Mutex::new(reader));
        if let Content::Stream(streamed) = &mut self.content {
            streamed.index = Some(index);
            streamed.current = None;
        }
        Ok(())
    }

    /// The first item that ends after this offset of the disk, or `None` if there is none. Without
    /// an index, offsets must not decrease from call to call.
    ///
    /// # Errors
    /// The file is damaged or cannot be read, or a stop was requested.
    pub(super) fn seek(&mut self, offset: u64) -> std::result::Result<Option<Item>, BlockError> {
        self.is_used = true;
        let streamed = match &mut self.content {
            Content::Raw => {
                let whole = Item {
                    offset: 0,
                    length: self.size,
                    content: Storage::Plain { at: 0 },
                };
                return Ok((offset < self.size).then_some(whole));
            }
            Content::Stream(streamed) => streamed,
        };
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = &streamed.index {
            let after = index.marks.partition_point(|(start, _)| *start <= offset);
            let Some((start, mark)) = index.marks.get(after.saturating_sub(1)) else {
                return Ok(None);
            };
            // Otherwise the walk goes on from the present item.
            let is_near = |item: Item| item.offset <= offset && *start <= item.end();
            if !streamed.current.is_some_and(is_near) {
                streamed.walk.go_to(*mark);
                streamed.current = None;
                streamed.has_begun = false;
            }
        }
        loop {
            match streamed.current {
                Some(item) if item.end() > offset => return Ok(Some(item)),
                None if streamed.has_begun => return Ok(None),
                _ => {}
            }
            reader.check_stop()?;
            let before = streamed.walk.mark();
            streamed.current = match streamed.walk.next(&mut reader) {
                Ok(item) => item,
                Err(error) => {
                    // A read that failed may be repeated.
                    streamed.walk.go_to(before);
                    return Err(error);
                }
            };
            streamed.has_begun = true;
        }
    }

    /// Fills `out` with the bytes of an item of this layer from this offset of the disk on.
    ///
    /// # Errors
    /// The file is damaged or cannot be read, or a stop was requested.
    pub(super) fn read(
        &mut self,
        item: &Item,
        out: &mut [u8],
        offset: u64,
    ) -> std::result::Result<(), BlockError> {
        let from = offset - item.offset;
        match item.content {
            Storage::Zero => {
                out.fill(0);
                Ok(())
            }
            Storage::Plain { at } => self.reader().read(out, at + from),
            Storage::Lz4 { at, stored } => {
                let known = self.piece.take().filter(|piece| piece.can_read(at, from));
                let mut piece = match known {
                    Some(piece) => piece,
                    None => Piece::open(&self.reader, at, stored, item.length)?,
                };
                piece.read(out, from)?;
                if from + out.len() as u64 == item.length {
                    piece.finish()
                } else {
                    self.piece = Some(piece);
                    Ok(())
                }
            }
        }
    }

    /// Goes to the end of the file, and checks its structure and its checksum.
    ///
    /// # Errors
    /// The file is damaged or cannot be read, or a stop was requested.
    pub(super) fn finish(&mut self) -> std::result::Result<(), BlockError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Content::Stream(streamed) = &mut self.content {
            while streamed.walk.next(&mut reader)?.is_some() {
                reader.check_stop()?;
            }
        }
        reader.finish()
    }

    /// Reads the whole file, including parts that no reader of the disk needs, and checks
    /// everything. `progress` receives offsets on the disk.
    ///
    /// # Errors
    /// The file is damaged or cannot be read, or a stop was requested.
    pub(super) fn verify(&mut self, progress: &mut dyn FnMut(u64)) -> std::result::Result<(), BlockError> {
        let mut buffer = vec![0; VERIFY_BUFFER];
        let mut at = 0;
        while let Some(item) = self.seek(at)? {
            at = item.end();
            if let Storage::Zero = item.content {
                continue;
            }
            let mut from = item.offset;
            while from < at {
                let length = usize::try_from(at - from).map_or(VERIFY_BUFFER, |left| left.min(VERIFY_BUFFER));
                self.read(&item, &mut buffer[..length], from)?;
                from += length as u64;
                progress(from);
            }
        }
        self.finish()
    }
}

/// How many bytes a verification reads at a time.
const VERIFY_BUFFER: usize = 1 << 20;

/// The name of the checksum file of a data file.
pub(super) fn checksum_name(data_file: &str) -> String {
    format!("{data_file}.chksum")
}

/// Reads a checksum file; `None` if it is missing. The error is a sentence that names the file.
pub(super) fn read_checksum(path: &Path) -> std::io::Result<std::result::Result<Option<u32>, String>> {
    let bytes = match crate::repo::small_file::read_bounded(path, 64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Err(error),
        Err(error) => return Ok(Err(format!("{} cannot be read: {error}", path.display()))),
    };
    let text = std::str::from_utf8(&bytes).ok().map(str::trim);
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let sum = text.filter(is_number).and_then(|text| text.parse().ok());
    Ok(sum.map(Some).ok_or_else(|| {
        format!(
            "{} is damaged: it holds no checksum (if you move this file away, the data file can be read unchecked)",
            path.display()
        )
    }))
}
