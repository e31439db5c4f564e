//! The frames of a stream of virtnbdbackup, and its header. Pure.
//!
//! A stream begins with a `meta` frame, which holds the header. `data` frames with bytes and `zero`
//! frames without follow in the disk's order, then a `stop` frame. A compressed stream ends with a
//! list of compressed sizes and a `comp` frame.

use jiff::civil::DateTime;
use serde::Deserialize;

/// The length of every frame in bytes: a word of four letters, two numbers of 16 hexadecimal
/// digits, and a line end.
pub(super) const FRAME: usize = 40;

/// The bytes that follow the content of a frame.
pub(super) const TERM: &[u8; 2] = b"\r\n";

/// The largest header, in bytes. A usual header has about 400 bytes.
pub(super) const MAX_HEADER: u64 = 64 << 10;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// The header follows.
    Meta,
    /// Bytes of the disk follow.
    Data,
    /// The disk reads as zero.
    Zero,
    /// The last frame of the disk's content.
    Stop,
    /// The list of compressed sizes precedes it.
    Comp,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its kind.
    pub(super) kind: FrameKind,
    /// Where on the disk its content is, in bytes.
    pub(super) start: u64,
    /// The length of its content in bytes.
    pub(super) length: u64,
}

impl Frame {
    /// Reads a frame; `None` if these bytes are not a frame.
    pub(super) fn parse(bytes: &[u8; FRAME]) -> Option<Frame> {
        let kind = match &bytes[..4] {
            b"meta" => FrameKind::Meta,
            b"data" => FrameKind::Data,
            b"zero" => FrameKind::Zero,
            b"stop" => FrameKind::Stop,
            b"comp" => FrameKind::Comp,
            _ => return None,
        };
        let has_form = bytes[4] == b' ' && bytes[21] == b' ' && bytes[38..] == *TERM;
        has_form.then_some(())?;
        Some(Frame {
            kind,
            start: number(&bytes[5..21])?,
            length: number(&bytes[22..38])?,
        })
    }

    /// The bytes of a frame.
    #[cfg(any(test, feature = "testkit"))]
    pub(super) fn bytes(self) -> Vec<u8> {
        let word = match self.kind {
            FrameKind::Meta => "meta",
            FrameKind::Data => "data",
            FrameKind::Zero => "zero",
            FrameKind::Stop => "stop",
            FrameKind::Comp => "comp",
        };
        format!("{word} {:016x} {:016x}\r\n", self.start, self.length).into_bytes()
    }
}

/// A number of 16 digits, as virtnbdbackup writes them: in lower case.
fn number(digits: &[u8]) -> Option<u64> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let text = std::str::from_utf8(digits).ok()?;
    digits.iter().all(is_digit).then_some(())?;
    u64::from_str_radix(text, 16).ok()
}

/// The header of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The size of the disk in bytes.
    pub(super) size: u64,
    /// The number of bytes in data frames, before compression.
    pub(super) data_bytes: u64,
    /// When the stream was begun, in the local time of the host that wrote it.
    pub(super) date: DateTime,
    /// The target of the disk.
    pub(super) disk: String,
    /// The format of the disk's own image.
    pub(super) disk_format: String,
    /// The name of the checkpoint of this backup, even if no checkpoint was made.
    pub(super) checkpoint: String,
    /// The name of the checkpoint on which it depends; empty if it depends on none.
    pub(super) parent: String,
    /// Whether it holds only the changes since the parent.
    pub(super) is_incremental: bool,
    /// Whether its data frames are compressed.
    pub(super) is_compressed: bool,
}

/// The header as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenHeader {
    virtual_size: u64,
    data_size: u64,
    date: String,
    disk_name: String,
    #[serde(default)]
    disk_format: Option<String>,
    #[serde(default)]
    checkpoint_name: Option<String>,
    #[serde(default)]
    parent_checkpoint: Option<String>,
    #[serde(default)]
    incremental: bool,
    #[serde(default)]
    compressed: serde_json::Value,
    #[serde(default)]
    compression_method: Option<String>,
    #[serde(alias = "stream-version")]
    stream_version: u64,
}

/// The versions of streams that are known: the first one has no compression.
const VERSIONS: [u64; 2] = [1, 2];

impl Header {
    /// Reads the JSON of a header.
    ///
    /// # Errors
    /// A clause that says what is wrong with the header.
    pub(super) fn parse(json: &[u8]) -> Result<Header, String> {
        let written: WrittenHeader =
            serde_json::from_slice(json).map_err(|error| format!("its header is invalid ({error})"))?;
        if !VERSIONS.contains(&written.stream_version) {
            return Err(format!(
                "it has version {} of the stream format, and vmsnap reads versions 1 and 2",
                written.stream_version
            ));
        }
        // The switch's value: false, true or a level.
        let is_compressed = match &written.compressed {
            serde_json::Value::Null | serde_json::Value::Bool(false) => false,
            serde_json::Value::Bool(true) | serde_json::Value::Number(_) => written.stream_version >= 2,
            _ => return Err("its header does not say whether it is compressed".to_owned()),
        };
        if let Some(method) = written
            .compression_method
            .filter(|method| is_compressed && method != "lz4")
        {
            return Err(format!(
                "its compression method is {method:?}, and vmsnap reads lz4"
            ));
        }
        // The largest size of a file.
        if written.virtual_size > i64::MAX as u64 {
            return Err("its header has an impossible size of the disk".to_owned());
        }
        if written.data_size > written.virtual_size {
            return Err("its header states more data than the disk can hold".to_owned());
        }
        Ok(Header {
            size: written.virtual_size,
            data_bytes: written.data_size,
            date: written
                .date
                .parse()
                .map_err(|_| "its header has an invalid date".to_owned())?,
            disk: written.disk_name,
            disk_format: written.disk_format.unwrap_or_default(),
            checkpoint: written.checkpoint_name.unwrap_or_default(),
            parent: written.parent_checkpoint.unwrap_or_default(),
            is_incremental: written.incremental,
            is_compressed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = r#"{
    "virtualSize": 10485760, "dataSize": 65536, "date": "2024-11-12T02:00:03.123456",
    "diskName": "vda", "diskFormat": "qcow2", "checkpointName": "virtnbdbackup.1",
    "compressed": 2, "compressionMethod": "lz4", "parentCheckpoint": "virtnbdbackup.0",
    "incremental": true, "streamVersion": 2
}"#;

    #[test]
    fn header_of_virtnbdbackup_is_read() {
        let header = Header::parse(HEADER.as_bytes()).expect("it is valid");
        assert_eq!((header.size, header.data_bytes), (10 << 20, 65536));
        assert_eq!(header.date.to_string(), "2024-11-12T02:00:03.123456");
        assert_eq!(
            (header.disk.as_str(), header.disk_format.as_str()),
            ("vda", "qcow2")
        );
        assert_eq!(header.checkpoint, "virtnbdbackup.1");
        assert_eq!(header.parent, "virtnbdbackup.0");
        assert!(header.is_incremental && header.is_compressed);
    }

    #[test]
    fn every_spelling_of_no_compression_is_read() {
        for (from, to, expected) in [
            ("\"compressed\": 2", "\"compressed\": false", false),
            ("\"compressed\": 2", "\"compressed\": true", true),
            ("\"streamVersion\": 2", "\"streamVersion\": 1", false),
            ("\"streamVersion\": 2", "\"stream-version\": 2", true),
        ] {
            let header = Header::parse(HEADER.replace(from, to).as_bytes()).expect(to);
            assert_eq!(header.is_compressed, expected, "{to}");
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        for (from, to, why) in [
            ("\"streamVersion\": 2", "\"streamVersion\": 3", "version 3"),
            ("\"lz4\"", "\"zstd\"", "zstd"),
            ("\"dataSize\": 65536", "\"dataSize\": 10485761", "more data"),
            ("2024-11-12T", "2024-13-12T", "date"),
            ("\"compressed\": 2", "\"compressed\": \"x\"", "compressed"),
            ("\"virtualSize\": 10485760", "\"virtualSize\": -1", "header"),
            (
                "\"virtualSize\": 10485760",
                "\"virtualSize\": 9223372036854775808",
                "impossible size",
            ),
        ] {
            let error = Header::parse(HEADER.replace(from, to).as_bytes()).expect_err(to);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn frames_in_another_form_are_none() {
        let frame = b"data 0000000000010000 00000000000000ff\r\n";
        let parsed = Frame::parse(frame).expect("it is one");
        assert_eq!(
            (parsed.kind, parsed.start, parsed.length),
            (FrameKind::Data, 65536, 255)
        );
        for (place, byte) in [
            (0, b'D'),
            (4, b'_'),
            (5, b'+'),
            (20, b'F'),
            (21, b'0'),
            (38, b'\n'),
        ] {
            let mut damaged = *frame;
            damaged[place] = byte;
            assert_eq!(Frame::parse(&damaged), None, "{place}");
        }
    }

    proptest! {
        #[test]
        fn frames_round_trip(kind in 0..5usize, start: u64, length: u64) {
            let kinds =
                [FrameKind::Meta, FrameKind::Data, FrameKind::Zero, FrameKind::Stop, FrameKind::Comp];
            let frame = Frame { kind: kinds[kind], start, length };
            let bytes: [u8; FRAME] = frame.bytes().try_into().expect("its length is fixed");
            prop_assert_eq!(Frame::parse(&bytes), Some(frame));
        }
    }
}
