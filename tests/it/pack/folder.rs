//! Objects as files below a folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use vmsnap::model::stop::Stop;
use vmsnap::repo::{ObjectErrorKind, PackError, PackLocation, PackRepository, Protection};

use super::{Person, creation, creation_for};

fn location(path: &Path) -> PackLocation {
    PackLocation::Folder(path.to_owned())
}

fn create(path: &Path) -> Result<(), PackError> {
    let creation = creation(Protection::None);
    PackRepository::create(&location(path), &creation, &Stop::default()).map(drop)
}

fn open(path: &Path) -> Result<PackRepository, PackError> {
    PackRepository::open(&location(path), &Stop::default())
}

#[test]
fn repository_in_a_folder_is_created_once() {
    let parent = tempfile::tempdir().expect("a temporary folder");
    let path = parent.path().join("new");
    let person = Person::new();
    let made =
        PackRepository::create(&location(&path), &creation_for(&person), &Stop::default()).expect("created");
    let found = open(&path)
        .expect("there")
        .facts(&Stop::default())
        .expect("readable");
    assert_eq!(found.id, made.facts.id);
    assert!(matches!(create(&path), Err(PackError::Exists { .. })));
    let mut left: Vec<_> = fs::read_dir(&path)
        .expect("there")
        .map(|entry| entry.expect("there").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["keys", "probe", "vmsnap.json"]);
    assert_eq!(fs::read_dir(path.join("probe")).expect("there").count(), 0);
}

#[test]
fn missing_parent_is_not_created() {
    let parent = tempfile::tempdir().expect("a temporary folder");
    let path = parent.path().join("not/mounted");
    let Err(PackError::Objects(error)) = create(&path) else {
        panic!("the parent is missing");
    };
    assert!(
        matches!(
            error.kind,
            ObjectErrorKind::NotFound | ObjectErrorKind::NoPlace(_)
        ),
        "{error:?}"
    );
    assert!(!parent.path().join("not").exists());
    assert!(open(&path).is_err());
}

#[test]
fn folder_with_anything_else_is_refused() {
    for name in ["x", ".vmsnap-repository.json", "vm1/manifest.json", "a b"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        fs::write(&path, "x").expect("written");
        let Err(PackError::NotEmpty { example, .. }) = create(folder.path()) else {
            panic!("{name} is there");
        };
        assert_eq!(example, name);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("lost+found")).expect("created");
    create(folder.path()).expect("a new file system counts as empty");
}

#[test]
fn link_or_pipe_is_no_object() {
    for kind in ["link", "pipe", "folder"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("vmsnap.json");
        let target = folder.path().join("target");
        create(&target).expect("created");
        match kind {
            "link" => symlink(target.join("vmsnap.json"), &path).expect("linked"),
            "pipe" => assert!(
                Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .expect("it runs")
                    .success()
            ),
            _ => fs::create_dir(&path).expect("created"),
        }
        assert!(open(folder.path()).is_err(), "{kind}");
    }
}

#[test]
fn hostile_descriptions_are_errors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("vmsnap.json");
    let large = vec![b' '; 1 << 20];
    let deep = vec![b'['; 16_000];
    for content in [
        &b""[..],
        b"{",
        b"null",
        b"\xff\xfe",
        b"{\"format\": 99}",
        &large,
        &deep,
    ] {
        fs::write(&path, content).expect("written");
        let error = open(folder.path()).err().expect("unusable");
        assert!(
            matches!(
                error,
                PackError::Damaged { .. } | PackError::NewerFormat { format: 99, .. }
            ),
            "{error}"
        );
    }
}
