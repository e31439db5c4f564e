//! Tests of [`super::unpack`] on streams as a guest's `tar` makes them, and on forged ones.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// A stream that is built entry by entry.
struct Stream(tar::Builder<Vec<u8>>);

impl Stream {
    fn new() -> Stream {
        Stream(tar::Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(1_000_000_000);
        header.set_uid(1234);
        header.set_gid(2345);
        header
    }

    /// Adds an entry whose name is written as it is, also one that leads out.
    fn add(&mut self, kind: EntryType, name: &[u8], mode: u32, content: &[u8]) -> &mut Stream {
        let mut header = Stream::header(kind, mode, content.len());
        if name.len() <= 100 {
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_cksum();
            self.0.append(&header, content).expect("memory");
        } else {
            let path = Path::new(OsStr::from_bytes(name));
            self.0.append_data(&mut header, path, content).expect("memory");
        }
        self
    }

    fn link(&mut self, kind: EntryType, name: &str, target: &str) -> &mut Stream {
        let mut header = Stream::header(kind, 0o777, 0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, &[][..]).expect("memory");
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.get_ref().clone();
        bytes.extend([0; 1024]);
        bytes
    }

    fn unpack(&self, folder: &Path) -> io::Result<Unpacked> {
        unpack(&mut &self.bytes()[..], folder, false)
    }
}

/// A folder with `out`, a place that nothing may write to, and `new`, where the streams go.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().expect("a temporary folder"));
        std::fs::create_dir(place.path("out")).expect("made");
        std::fs::write(place.path("out/file"), "kept").expect("written");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Asserts that a stream is refused, and has changed nothing outside.
    fn assert_refused(&self, stream: &Stream) -> String {
        let new = self.path("new");
        let error = stream.unpack(&new).expect_err("it is forged");
        let names: Vec<_> = std::fs::read_dir(self.path("out")).expect("there").collect();
        assert_eq!(names.len(), 1);
        let kept = self.path("out/file");
        assert_eq!(std::fs::read(&kept).expect("there"), b"kept");
        let found = kept.metadata().expect("there");
        assert_eq!((found.nlink(), found.mode() & 0o777), (1, 0o644 & found.mode()));
        assert_eq!(std::fs::read_dir(self.0.path()).expect("there").count(), 2);
        std::fs::remove_dir_all(&new).expect("it is ours");
        error.to_string()
    }
}

#[test]
fn files_folders_and_links_are_written_as_they_were() {
    let place = Place::new();
    let mut content = vec![0; 3 * PIECE];
    content[2 * PIECE] = 7;
    let long = [b"./", &[b'n'; 200][..]].concat();
    let mut stream = Stream::new();
    stream
        .add(EntryType::Directory, b"./", 0o750, b"")
        .add(EntryType::Directory, b"./a b\"\n/", 0o500, b"")
        .add(EntryType::Regular, b"./a b\"\n/\xff", 0o6755, b"odd")
        .add(EntryType::Regular, b"./sparse", 0o640, &content)
        .add(EntryType::Regular, &long, 0o400, b"long")
        .link(EntryType::Symlink, "./out", "/etc/passwd")
        .link(EntryType::Link, "./second", "./sparse")
        .add(EntryType::Char, b"./null", 0o666, b"")
        .add(EntryType::Fifo, b"./pipe", 0o666, b"");
    let new = place.path("new");
    let unpacked = stream.unpack(&new).expect("a sound stream");
    assert_eq!((unpacked.entries, unpacked.left_out), (6, 2));
    assert_eq!(unpacked.bytes, 3 + content.len() as u64 + 4);
    assert_eq!(unpacked.named, ["null", "pipe"]);
    let odd = new.join("a b\"\n").join(OsStr::from_bytes(b"\xff"));
    assert_eq!(std::fs::read(&odd).expect("there"), b"odd");
    let found = odd.metadata().expect("there");
    assert_eq!((found.mode() & 0o7777, found.mtime()), (0o755, 1_000_000_000));
    let folder = new.join("a b\"\n").metadata().expect("there");
    assert_eq!((folder.mode() & 0o777, folder.mtime()), (0o700, 1_000_000_000));
    assert_eq!(new.metadata().expect("there").mode() & 0o777, 0o750);
    let sparse = new.join("sparse");
    assert!(std::fs::read(&sparse).expect("there") == content);
    assert_eq!(sparse.metadata().expect("there").nlink(), 2);
    assert_eq!(
        std::fs::read_link(new.join("out")).expect("a link"),
        Path::new("/etc/passwd")
    );
    assert_eq!(std::fs::read(new.join("n".repeat(200))).expect("there"), b"long");
}

#[test]
fn owners_are_those_of_the_guest_if_root_unpacks() {
    if !rustix::process::geteuid().is_root() {
        return assert!(ids((u32::MAX, 0)).is_err());
    }
    let place = Place::new();
    let mut stream = Stream::new();
    stream
        .add(EntryType::Directory, b"./", 0o555, b"")
        .add(EntryType::Regular, b"./file", 0o644, b"x")
        .link(EntryType::Symlink, "./link", "file");
    let new = place.path("new");
    unpack(&mut &stream.bytes()[..], &new, true).expect("a sound stream");
    for name in ["", "file", "link"] {
        let found = new.join(name).symlink_metadata().expect("there");
        assert_eq!((found.uid(), found.gid()), (1234, 2345), "{name}");
    }
    let found = new.metadata().expect("there").permissions().mode();
    assert_eq!(found & 0o777, 0o555);
}

#[test]
fn names_and_links_that_lead_out_are_refused() {
    let place = Place::new();
    let out = place.path("out").display().to_string();
    for name in ["../out/new", "./a/../../out/new", "/etc/vmsnap-test", ".."] {
        let mut stream = Stream::new();
        stream.add(EntryType::Regular, name.as_bytes(), 0o644, b"x");
        let said = place.assert_refused(&stream);
        assert!(said.contains("leads out"), "{name}: {said}");
    }
    // Through a link that was created before.
    for inner in ["./link/new", "./link/file"] {
        let mut stream = Stream::new();
        stream.link(EntryType::Symlink, "./link", &out).add(
            EntryType::Regular,
            inner.as_bytes(),
            0o644,
            b"x",
        );
        place.assert_refused(&stream);
    }
    // A folder in place of a link: its attributes must not go to what the link leads to.
    let mut stream = Stream::new();
    stream
        .link(EntryType::Symlink, "./link", &out)
        .add(EntryType::Directory, b"./link", 0o777, b"");
    place.assert_refused(&stream);
    // A file in place of a link to a file.
    let mut stream = Stream::new();
    stream
        .link(EntryType::Symlink, "./link", &format!("{out}/file"))
        .add(EntryType::Regular, b"./link", 0o777, b"x");
    place.assert_refused(&stream);
    // Hard links, by path, by name, and through a link.
    for target in [
        format!("{out}/file"),
        "../out/file".to_owned(),
        "./link/file".to_owned(),
    ] {
        let mut stream = Stream::new();
        stream
            .link(EntryType::Symlink, "./link", &out)
            .link(EntryType::Link, "./second", &target);
        place.assert_refused(&stream);
    }
}

#[test]
fn broken_and_endless_streams_are_refused() {
    let place = Place::new();
    let mut stream = Stream::new();
    stream.add(EntryType::Regular, b"./file", 0o644, &[1; 5000]);
    let bytes = stream.bytes();
    let cut = unpack(&mut &bytes[..3000], &place.path("new"), false);
    assert!(cut.is_err());
    std::fs::remove_dir_all(place.path("new")).expect("it is ours");
    // A name of a mebibyte.
    let mut stream = Stream::new();
    stream.add(
        EntryType::GNULongName,
        b"././@LongLink",
        0o644,
        &vec![b'x'; 1 << 20],
    );
    stream.add(EntryType::Regular, b"./x", 0o644, b"");
    let said = place.assert_refused(&stream);
    assert!(said.contains("too long"), "{said}");
    let mut stream = Stream::new();
    let deep = [&b"./"[..], &b"d/".repeat(DEEPEST + 1)].concat();
    stream.add(EntryType::Directory, &deep, 0o755, b"");
    let said = place.assert_refused(&stream);
    assert!(said.contains("too deeply"), "{said}");
}
