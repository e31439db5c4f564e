//! Opens the images of a chain safely and reads their first bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::Trouble;
use super::header::HEAD;

/// The first bytes of an image, with its kind and identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// At most [`HEAD`] bytes.
    pub bytes: Vec<u8>,
    /// Whether the image is a block device.
    pub is_block: bool,
    /// The numbers that identify the image: device and inode for a file; device number and 0 for a
    /// block device.
    pub id: (u64, u64),
}

/// Opens a file or block device for reading.
///
/// Other kinds are refused at once, because opening or reading a FIFO or character device may
/// block.
///
/// # Errors
/// [`Trouble::Refused`] for other kinds, [`Trouble::Io`] if the file cannot be opened.
pub(crate) fn open_image(path: &Path) -> Result<File, Trouble> {
    let failed = |error: io::Error| Trouble::Io {
        path: path.to_owned(),
        error,
    };
    // Checked before, because opening has side effects on some devices, and after, because the file
    // may have been replaced.
    check_kind(path, &path.metadata().map_err(failed)?)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let file = File::from(file);
    check_kind(path, &file.metadata().map_err(failed)?)?;
    Ok(file)
}

/// Returns the reason why this path cannot be an image; `None` if it can be one, or if it cannot be
/// examined.
pub(crate) fn not_an_image(path: &Path) -> Option<String> {
    match check_kind(path, &path.metadata().ok()?) {
        Err(Trouble::Refused(why)) => Some(why),
        _ => None,
    }
}

fn check_kind(path: &Path, found: &std::fs::Metadata) -> Result<(), Trouble> {
    let kind = found.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () => "of an unknown kind",
    };
    Err(Trouble::Refused(format!(
        "{} is {what}, not a file or block device",
        path.display()
    )))
}

/// Reads the first bytes of an image.
pub(crate) fn read_head(path: &Path) -> Result<Head, Trouble> {
    let file = open_image(path)?;
    let failed = |error: io::Error| Trouble::Io {
        path: path.to_owned(),
        error,
    };
    let found = file.metadata().map_err(failed)?;
    let mut bytes = Vec::with_capacity(HEAD);
    file.take(HEAD as u64).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Head {
        bytes,
        is_block: found.file_type().is_block_device(),
        id: match found.file_type().is_block_device() {
            true => (found.rdev(), 0),
            false => (found.dev(), found.ino()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifos_sockets_and_folders_are_refused_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("it binds");
        let fifo = dir.path().join("f");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .expect("it is made");
        for (path, word) in [
            (fifo.as_path(), "a FIFO"),
            (&socket, "a socket"),
            (dir.path(), "a directory"),
            (Path::new("/dev/zero"), "a character device"),
        ] {
            let why = not_an_image(path).expect("it is refused");
            assert!(why.contains(word), "{why}");
            assert!(matches!(read_head(path), Err(Trouble::Refused(_))));
        }
        assert_eq!(not_an_image(&dir.path().join("missing")), None);
        let image = dir.path().join("image");
        std::fs::write(&image, "bytes").expect("it is written");
        assert_eq!(read_head(&image).expect("it is read").bytes, b"bytes");
    }
}
