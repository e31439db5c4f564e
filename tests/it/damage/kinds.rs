//! The kinds of damage, and whether a file's name and size reveal them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

/// A kind of damage to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    FlipAtTheBeginning,
    FlipInTheMiddle,
    FlipAtTheEnd,
    CutByAByte,
    CutToHalf,
    LongerByAByte,
    Emptied,
    Deleted,
    SwappedWithAnotherPoints,
    OfAnotherDomain,
    OfANewerFormat,
    Directory,
    DanglingLink,
    LinkToItself,
    LinkToASoundCopy,
    Fifo,
    Garbage,
    Huge,
}

impl Kind {
    pub const ALL: [Kind; 18] = [
        Kind::FlipAtTheBeginning,
        Kind::FlipInTheMiddle,
        Kind::FlipAtTheEnd,
        Kind::CutByAByte,
        Kind::CutToHalf,
        Kind::LongerByAByte,
        Kind::Emptied,
        Kind::Deleted,
        Kind::SwappedWithAnotherPoints,
        Kind::OfAnotherDomain,
        Kind::OfANewerFormat,
        Kind::Directory,
        Kind::DanglingLink,
        Kind::LinkToItself,
        Kind::LinkToASoundCopy,
        Kind::Fifo,
        Kind::Garbage,
        Kind::Huge,
    ];
}

/// A file that is about to be damaged, and files that may replace it.
pub struct Victim {
    pub path: PathBuf,
    /// The same file of another restore point.
    pub twin: Option<PathBuf>,
    /// The same file of another domain.
    pub foreign: Option<PathBuf>,
    /// A free path outside the repository.
    pub elsewhere: PathBuf,
}

/// Damages the file and returns the changed paths: none if this kind makes no sense for the file.
pub fn inflict(kind: Kind, victim: &Victim) -> Vec<PathBuf> {
    let path = victim.path.as_path();
    let bytes = fs::read(path).expect("it is sound");
    let last = bytes.len().saturating_sub(1);
    match kind {
        Kind::FlipAtTheBeginning => flip(path, &bytes, 0),
        Kind::FlipInTheMiddle => flip(path, &bytes, last / 2),
        Kind::FlipAtTheEnd => flip(path, &bytes, last),
        Kind::CutByAByte => fs::write(path, &bytes[..last]).expect("written"),
        Kind::CutToHalf => fs::write(path, &bytes[..last / 2]).expect("written"),
        Kind::LongerByAByte => fs::write(path, [&bytes[..], b"\n"].concat()).expect("written"),
        Kind::Emptied => fs::write(path, b"").expect("written"),
        Kind::Deleted => remove(path),
        Kind::SwappedWithAnotherPoints => {
            let Some(twin) = &victim.twin else {
                return Vec::new();
            };
            fs::write(path, fs::read(twin).expect("sound")).expect("written");
            fs::write(twin, &bytes).expect("written");
            return vec![path.to_owned(), twin.clone()];
        }
        Kind::OfAnotherDomain => {
            let Some(foreign) = &victim.foreign else {
                return Vec::new();
            };
            fs::write(path, fs::read(foreign).expect("sound")).expect("written");
        }
        Kind::OfANewerFormat => {
            let Some(newer) = newer(path, bytes) else {
                return Vec::new();
            };
            fs::write(path, newer).expect("written");
        }
        Kind::Directory => {
            remove(path);
            fs::create_dir(path).expect("made");
        }
        Kind::DanglingLink => {
            remove(path);
            symlink(victim.elsewhere.join("nowhere"), path).expect("linked");
        }
        Kind::LinkToItself => {
            remove(path);
            symlink(path, path).expect("linked");
        }
        Kind::LinkToASoundCopy => {
            let copy = victim.elsewhere.join("copy");
            fs::rename(path, &copy).expect("moved");
            symlink(copy, path).expect("linked");
        }
        Kind::Fifo => {
            remove(path);
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
        }
        Kind::Garbage => {
            let mut garbage = vec![0; bytes.len()];
            blake3::Hasher::new()
                .update(b"garbage")
                .finalize_xof()
                .fill(&mut garbage);
            fs::write(path, garbage).expect("written");
        }
        Kind::Huge => {
            let file = OpenOptions::new().write(true).open(path).expect("it opens");
            file.set_len(10 << 30).expect("a sparse file");
        }
    }
    vec![path.to_owned()]
}

fn flip(path: &Path, bytes: &[u8], place: usize) {
    let file: File = OpenOptions::new().write(true).open(path).expect("it opens");
    let Some(byte) = bytes.get(place) else { return };
    file.write_all_at(&[byte ^ 1], place as u64).expect("written");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("it was there");
}

/// Returns the content in a later version of its format.
fn newer(path: &Path, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if path.ends_with("manifest.json") {
        let text = String::from_utf8(bytes).expect("JSON");
        return Some(
            text.replacen("\"format\": ", "\"format\": 9, \"new\": ", 1)
                .into_bytes(),
        );
    }
    if path.extension().is_some_and(|ending| ending == "qcow2") {
        bytes[7] = 4;
        return Some(bytes);
    }
    None
}

/// A file compared with what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// An unchanged file.
    Same,
    /// A file of unchanged length with other bytes.
    Altered,
    /// A missing file, or another length.
    Visible,
}

/// The state of a file. A symlink counts as missing, because its target is outside the repository.
pub fn state(path: &Path, before: &[u8]) -> State {
    match path.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() == before.len() as u64 => {
            if fs::read(path).expect("readable") == before {
                State::Same
            } else {
                State::Altered
            }
        }
        _ => State::Visible,
    }
}
