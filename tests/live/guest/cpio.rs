//! An archive in cpio's "newc" format, which the kernel unpacks into its first root file system.
//!
//! Format: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::io::{self, Write};

/// Writes an archive entry by entry. Root owns every entry.
pub struct CpioWriter<W: Write> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> CpioWriter<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        CpioWriter {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// Adds a directory. Its parent must already be in the archive.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, 0o040_755, (0, 0), &[])
    }

    /// Adds an executable file.
    pub fn file(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        self.entry(path, 0o100_755, (0, 0), data)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, 0o120_777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, 0o020_600, (major, minor), &[])
    }

    /// Writes the trailer and returns the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(path.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        // Inode, mode, uid, gid, links, mtime, size, device of the file, device number, size of the
        // name, checksum.
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(data)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let gap = (4 - self.written % 4) % 4;
        self.put(&[0; 3][..gap as usize])
    }
}

#[test]
fn an_archive_has_the_form_that_the_kernel_reads() {
    let mut archive = CpioWriter::new(Vec::new());
    archive.file("init", b"hello").unwrap();
    let bytes = archive.finish().unwrap();

    assert_eq!(&bytes[..6], b"070701");
    assert_eq!(&bytes[6..14], b"00000001", "inode");
    assert_eq!(&bytes[14..22], b"000081ed", "a regular file, 0755");
    assert_eq!(&bytes[54..62], b"00000005", "five bytes of data");
    assert_eq!(&bytes[94..102], b"00000005", "the name with its NUL");
    assert_eq!(&bytes[110..115], b"init\0");
    assert_eq!(&bytes[116..121], b"hello", "data begins at a multiple of four");
    assert_eq!(&bytes[124..130], b"070701", "so does the next header");
    assert_eq!(&bytes[234..245], b"TRAILER!!!\0");
    assert_eq!(bytes.len() % 4, 0);
}
