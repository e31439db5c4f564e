//! Reads what a domain's firmware keeps outside its disks: UEFI variables and the state of a TPM.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::inspect::not_here;
use super::link::Link;
use super::{HostError, Refusal, Result};
use crate::host::chain::header;
use crate::host::chain::open::open_image;
use crate::model::domain::Domain;
use crate::model::firmware::{Nvram, TpmPlace};
use crate::model::tpm_state::{
    self, LARGEST_STATE, MOST_FILES, SINGLE_FILE, TpmFile, TpmState, is_left_out, is_state_name,
};

/// The largest accepted file of UEFI variables, in bytes. Usual files have 128 KiB to 4 MiB.
const LARGEST_NVRAM: u64 = 64 << 20;

/// How often something that changes is read again. Changes are rare and short.
const MOST_READS: usize = 5;

/// Reads something until two reads in a row agree, and returns whether they did.
fn settled<T: PartialEq>(read: impl Fn() -> Result<T>) -> Result<(T, bool)> {
    let mut last = read()?;
    for _ in 1..MOST_READS {
        let next = read()?;
        if next == last {
            return Ok((next, true));
        }
        last = next;
    }
    Ok((last, false))
}

pub fn nvram(link: &Link, domain: &Domain) -> Result<Option<Vec<u8>>> {
    let (path, is_qcow2) = match &domain.nvram {
        None => return Ok(None),
        Some(Nvram::File { path, is_qcow2 }) => (path, *is_qcow2),
        Some(Nvram::Elsewhere(what)) => return Err(Refusal::NvramElsewhere { what: what.clone() }.into()),
        Some(Nvram::Loader(path)) => {
            let what = format!("the firmware's own image {}", path.display());
            return Err(Refusal::NvramElsewhere { what }.into());
        }
    };
    if !link.location().is_local {
        return Err(not_here("its UEFI variables"));
    }
    // A guest that stores variables all the time leaves a store that its firmware repairs, as after
    // a power cut.
    let (bytes, _) = settled(|| read_nvram(path))?;
    if let Some(bytes) = bytes.as_deref().filter(|_| is_qcow2) {
        check_qcow2(path, bytes)?;
    }
    Ok(bytes)
}

fn read_nvram(path: &Path) -> Result<Option<Vec<u8>>> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        // libvirt creates the file at the first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::io("examine", path, error)),
    };
    if !meta.is_file() {
        return Err(Refusal::NvramNotAFile {
            path: path.to_owned(),
        }
        .into());
    }
    let bytes = read_at_most(open_image(path)?, LARGEST_NVRAM);
    let bytes = bytes.map_err(|error| HostError::io("read", path, error))?;
    bytes.map(Some).ok_or_else(|| {
        Refusal::NvramTooLarge {
            path: path.to_owned(),
            most_mib: LARGEST_NVRAM >> 20,
        }
        .into()
    })
}

/// Refuses a qcow2 image whose bytes are not complete by themselves.
fn check_qcow2(path: &Path, bytes: &[u8]) -> Result<()> {
    let head = &bytes[..bytes.len().min(header::HEAD)];
    let why = match header::parse(head) {
        Ok(header) if header.backing.is_some() => "the image has a backing file".to_owned(),
        Ok(header) if header.has_data_file => "the image's data is in another file".to_owned(),
        Ok(_) => return Ok(()),
        Err(why) => why,
    };
    let what = format!("the qcow2 image {} ({why})", path.display());
    Err(Refusal::NvramElsewhere { what }.into())
}

/// Reads a file; `None` if it is larger than allowed.
fn read_at_most(file: File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

pub fn tpm_state(link: &Link, domain: &Domain) -> Result<Option<TpmState>> {
    let Some(tpm) = &domain.tpm else {
        return Ok(None);
    };
    if !link.location().is_local {
        return Err(not_here("the state of its TPM"));
    }
    let (files, is_settled) = match &tpm.place {
        TpmPlace::Usual => {
            let folder = tpm_folder(link).ok_or_else(|| {
                refused("vmsnap does not know where the hypervisor keeps the states of TPMs")
            })?;
            let version = tpm.folder();
            let version =
                version.ok_or_else(|| refused(format!("the TPM version {:?} is unknown", tpm.version)))?;
            let folder = folder.join(&domain.uuid).join(version);
            settled(|| read_folder(&folder))?
        }
        TpmPlace::Folder(folder) => settled(|| read_folder(folder))?,
        TpmPlace::File(path) => settled(|| read_single(path))?,
    };
    // swtpm renames each complete file in a folder, so each is whole. It writes a single file in
    // place.
    let is_whole = is_settled || !matches!(tpm.place, TpmPlace::File(_));
    Ok(files.map(|files| TpmState { files, is_whole }))
}

/// Returns the folder that contains a folder for each domain with a TPM; `None` if it is unknown.
pub fn tpm_folder(link: &Link) -> Option<PathBuf> {
    link.location().tpm_dir.clone()
}

fn refused(why: impl Into<String>) -> HostError {
    Refusal::TpmState { why: why.into() }.into()
}

/// Reads the files of a state from their folder; `None` if there are none.
///
/// The folder belongs to the user of swtpm, so nothing in it is trusted: links, devices and unknown
/// names are refused.
fn read_folder(path: &Path) -> Result<Option<Vec<TpmFile>>> {
    let failed = |error: rustix::io::Errno| HostError::io("read", path, error.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(folder) => folder,
        // libvirt creates the folder at the first start.
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    'again: for _ in 0..MOST_READS {
        let names = state_names(Dir::read_from(&folder).map_err(failed)?, path)?;
        let mut files = Vec::new();
        let mut room = LARGEST_STATE;
        for name in names {
            match read_state_file(&folder, path, &name, room)? {
                Some(file) => {
                    room = room.saturating_sub(file.content.len() as u64);
                    files.push(file);
                }
                // It was renamed or removed after the folder was listed.
                None => continue 'again,
            }
        }
        if files.is_empty() {
            return Ok(None);
        }
        tpm_state::check(&files).map_err(|why| refused(format!("{}: {why}", path.display())))?;
        return Ok(Some(files));
    }
    Err(refused(format!("the files in {} keep changing", path.display())))
}

/// Lists the names of the files of a state, in order.
fn state_names(folder: Dir, path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder {
        let entry = entry.map_err(|error| HostError::io("read", path, error.into()))?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") || is_left_out(name) {
            continue;
        }
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_state_name(name)) else {
            return Err(refused(format!(
                "{} has a file whose name has other characters than letters, digits, dots, hyphens and underscores",
                path.display()
            )));
        };
        names.push(name.to_owned());
        if names.len() > MOST_FILES {
            let what = format!("{} has more than {MOST_FILES} files", path.display());
            return Err(refused(what));
        }
    }
    names.sort();
    Ok(names)
}

/// Reads one file of a state; `None` if it is no longer there.
fn read_state_file(
    folder: &impl std::os::fd::AsFd,
    path: &Path,
    name: &str,
    most: u64,
) -> Result<Option<TpmFile>> {
    let whole = path.join(name);
    let failed = |error: io::Error| HostError::io("read", &whole, error);
    let not_plain = |what: &str| refused(format!("{} is {what}", whole.display()));
    // Looked at before, because opening has side effects on some devices.
    let found = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(not_plain("not a regular file"));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(not_plain("not a regular file"));
    }
    if meta.nlink() > 1 {
        return Err(not_plain("a file with several names (hard links)"));
    }
    read_plain(file, name, &meta, most)
        .map_err(failed)?
        .map(Some)
        .ok_or_else(|| not_plain(&too_large()))
}

/// Reads a state that is a single file; `None` if it is missing.
fn read_single(path: &Path) -> Result<Option<Vec<TpmFile>>> {
    let failed = |error: io::Error| HostError::io("read", path, error);
    let not_plain = |what: &str| refused(format!("{} is {what}", path.display()));
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(not_plain("not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let file = open_image(path)?;
    let meta = file.metadata().map_err(failed)?;
    let read = read_plain(file, SINGLE_FILE, &meta, LARGEST_STATE).map_err(failed)?;
    read.map(|file| Some(vec![file]))
        .ok_or_else(|| not_plain(&too_large()))
}

fn too_large() -> String {
    format!(
        "too large: the files of a TPM state may have at most {} MiB in total",
        LARGEST_STATE >> 20
    )
}

/// Reads a regular file; `None` if it is larger than allowed.
fn read_plain(file: File, name: &str, meta: &fs::Metadata, most: u64) -> io::Result<Option<TpmFile>> {
    Ok(read_at_most(file, most)?.map(|content| TpmFile {
        name: name.to_owned(),
        content,
        owner: (meta.uid(), meta.gid()),
        changed: meta.mtime().try_into().unwrap_or(0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Makes something at a path.
    type Make<'a> = &'a dyn Fn(&Path);

    fn names(files: &[TpmFile]) -> Vec<&str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn the_files_of_a_state_are_read_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("tpm2");
        assert!(read_folder(&folder).expect("it is missing").is_none());
        fs::create_dir(&folder).expect("new");
        fs::write(folder.join(".lock"), "").expect("written");
        assert!(read_folder(&folder).expect("it is empty").is_none());
        for name in [
            "tpm2-00.permall",
            "tpm2-00.volatilestate",
            "TMP2-00.permall",
            "a.bak",
        ] {
            fs::write(folder.join(name), name).expect("written");
        }
        let files = read_folder(&folder).expect("it is read").expect("there are some");
        assert_eq!(names(&files), ["a.bak", "tpm2-00.permall"]);
        assert_eq!(files[1].content, b"tpm2-00.permall");
        assert_eq!(files[1].owner.0, rustix::process::geteuid().as_raw());
    }

    #[test]
    fn hostile_folders_are_refused_and_not_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").expect("written");
        let fifo = |path: &Path| {
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).expect("made");
        };
        let hostile: [(&str, Make<'_>); 7] = [
            ("link", &|path| symlink(&secret, path).expect("linked")),
            ("dangling", &|path| symlink("/nowhere", path).expect("linked")),
            ("hard", &|path| fs::hard_link(&secret, path).expect("linked")),
            ("fifo", &fifo),
            ("folder", &|path| fs::create_dir(path).expect("made")),
            ("a b", &|path| fs::write(path, "x").expect("written")),
            ("huge", &|path| {
                let file = File::create(path).expect("made");
                file.set_len(LARGEST_STATE + 1).expect("extended");
            }),
        ];
        for (name, make) in hostile {
            let folder = dir.path().join(format!("of {name}"));
            fs::create_dir(&folder).expect("new");
            fs::write(folder.join("tpm2-00.permall"), "x").expect("written");
            make(&folder.join(name));
            let refused = read_folder(&folder).expect_err(name).to_string();
            assert!(refused.contains(&folder.display().to_string()), "{refused}");
        }
        let linked = dir.path().join("linked");
        symlink(dir.path(), &linked).expect("linked");
        assert!(read_folder(&linked).is_err());
        let many = dir.path().join("many");
        fs::create_dir(&many).expect("new");
        for number in 0..=MOST_FILES {
            fs::write(many.join(number.to_string()), "").expect("written");
        }
        assert!(read_folder(&many).is_err());
    }

    #[test]
    fn a_state_in_a_single_file_is_read_under_a_fixed_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("any name");
        assert!(read_single(&path).expect("it is missing").is_none());
        fs::write(&path, "bytes").expect("written");
        let files = read_single(&path).expect("it is read").expect("it is there");
        assert_eq!(names(&files), [SINGLE_FILE]);
        assert!(read_single(dir.path()).is_err());
    }

    #[test]
    fn qcow2_variables_that_need_another_file_are_refused() {
        let mut head = vec![0; 200];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[7] = 3;
        head[103] = 104;
        check_qcow2(Path::new("/n"), &head).expect("it stands alone");
        let mut data_file = head.clone();
        data_file[79] = 4;
        let mut backed = head.clone();
        backed[15] = 150;
        backed[19] = 4;
        backed[150..154].copy_from_slice(b"base");
        for refused in [data_file, backed, head[..50].to_vec(), b"raw bytes".to_vec()] {
            assert!(check_qcow2(Path::new("/n"), &refused).is_err());
        }
    }

    #[test]
    fn reading_goes_on_until_two_reads_agree() {
        let reads = std::cell::RefCell::new(vec![3, 3, 2, 1]);
        let next = || Ok(reads.borrow_mut().pop().expect("enough"));
        assert_eq!(settled(next).expect("no error"), (3, true));
        let count = std::cell::Cell::new(0);
        let always = || Ok(count.replace(count.get() + 1));
        assert_eq!(settled(always).expect("no error"), (4, false));
    }
}
