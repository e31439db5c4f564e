//! The pin of a restore point: a small file in its folder, so that a copy of the folder is pinned
//! too. A damaged file still pins the restore point.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{layout, note};
use crate::io::Store;
use crate::model::finding::Finding;
use crate::model::pin::Pin;
use crate::repo::{RepoError, Result};

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Written {
    since: Timestamp,
    note: String,
}

/// Reads the pin of the restore point in this folder, with a finding if the pin is damaged.
pub(super) fn read(point_dir: &Path) -> Result<(Option<Pin>, Option<Finding>)> {
    let path = point_dir.join(layout::PIN);
    Ok(match note::read::<Written>(&path, MAX_BYTES)? {
        Ok(None) => (None, None),
        Ok(Some(written)) => {
            let pin = Pin {
                since: Some(written.since),
                note: written.note,
            };
            (Some(pin), None)
        }
        Err(why) => {
            let what = format!(
                "cannot read {}: {why}; the restore point counts as pinned until `vmsnap unpin` removes the pin",
                path.display()
            );
            (Some(Pin::default()), Some(Finding::new("pin-unreadable", what)))
        }
    })
}

/// Pins the restore point in this folder.
///
/// # Errors
/// An existing pin cannot be read; it is not overwritten.
pub(super) fn write(store: &dyn Store, point_dir: &Path, pin: &Pin) -> Result<()> {
    let path = point_dir.join(layout::PIN);
    if let Err(why) = note::read::<Written>(&path, MAX_BYTES)? {
        return Err(RepoError::NoNote {
            location: path.display().to_string(),
            why,
        });
    }
    let content = Written {
        since: pin.since.unwrap_or_default(),
        note: pin.note.clone(),
    };
    note::write(store, &path, &content)
}

/// Unpins the restore point, and returns whether it was pinned. Removes a damaged pin too.
pub(super) fn remove(store: &dyn Store, point_dir: &Path) -> Result<bool> {
    let path = point_dir.join(layout::PIN);
    match store.remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(RepoError::io("remove", &path)(error)),
    }
    store
        .sync_dir(point_dir)
        .map_err(RepoError::io("sync", point_dir))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::io::DiskStore;

    fn pin(note: &str) -> Pin {
        Pin {
            since: Some(Timestamp::from_second(1_793_667_600).expect("in range")),
            note: note.to_owned(),
        }
    }

    fn read_in(dir: &Path) -> (Option<Pin>, Option<Finding>) {
        read(dir).expect("it may be read")
    }

    #[test]
    fn a_pin_reads_back_is_replaced_and_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path();
        assert_eq!(read_in(dir), (None, None));
        for note in ["", "before the upgrade", "\"\\\u{1b}[31m\nü"] {
            write(&DiskStore, dir, &pin(note)).expect("pinned");
            assert_eq!(read_in(dir), (Some(pin(note)), None));
        }
        assert_eq!(fs::read_dir(dir).expect("a folder").count(), 1, "one file");
        assert!(remove(&DiskStore, dir).expect("unpinned"));
        assert!(!remove(&DiskStore, dir).expect("nothing to do"));
        assert_eq!(read_in(dir), (None, None));
    }

    #[test]
    fn half_a_pin_that_a_dead_run_left_is_no_pin() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("pinned.json.new"), "{\"form").expect("written");
        assert_eq!(read_in(folder.path()), (None, None));
        write(&DiskStore, folder.path(), &pin("x")).expect("pinned");
        assert_eq!(read_in(folder.path()), (Some(pin("x")), None));
    }

    #[test]
    fn a_hostile_pin_counts_and_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(layout::PIN);
        write(&DiskStore, folder.path(), &pin("mine")).expect("pinned");
        let good = fs::read_to_string(&path).expect("readable");
        let deep = "[".repeat(200_000);
        for bad in [
            "",
            "{}",
            "null",
            "[1]",
            &good[..good.len() / 2],
            &good.replace("mine", "your"),
            &good.replace("\"format\": 1", "\"format\": 2"),
            &good.replace("2026", "9999999"),
            &deep,
        ] {
            fs::write(&path, bad).expect("written");
            let (found, finding) = read_in(folder.path());
            assert_eq!(found, Some(Pin::default()), "{bad:.40}");
            assert_eq!(finding.expect("a finding").code, "pin-unreadable");
            let error = write(&DiskStore, folder.path(), &pin("new")).expect_err("refused");
            assert!(error.to_string().contains("pinned.json"), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("readable"), bad);
        }
        fs::remove_file(&path).expect("removed");
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, &good).expect("written");
        std::os::unix::fs::symlink(&elsewhere, &path).expect("linked");
        assert_eq!(read_in(folder.path()).0, Some(Pin::default()));
        assert!(remove(&DiskStore, folder.path()).expect("the link goes"));
        assert!(elsewhere.exists());
    }
}
