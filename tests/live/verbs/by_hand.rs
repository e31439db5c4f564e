//! Restores without vmsnap, as described in `docs/format.md`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use vmsnap::io::DiskStore;
use vmsnap::repo::FolderRepository;

use crate::embed::{Kind, Shape, TestDomain, run_ok};
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

/// The first command in a code block of the document, split into words as a shell would.
fn documented_command(point: &Path) -> Vec<String> {
    let text = include_str!("../../../docs/format.md");
    let (_, fenced) = text.split_once("```sh\n").expect("the document has a command");
    let (command, _) = fenced.split_once("\n```").expect("the fence ends");
    assert_eq!(command.lines().count(), 1, "{command}");
    let mut words = vec![String::new()];
    for (number, part) in command.split('"').enumerate() {
        // Blanks within quotes do not end a word.
        if number % 2 == 1 {
            words.last_mut().expect("there is one").push_str(part);
            continue;
        }
        for (number, piece) in part.split(' ').enumerate() {
            if number > 0 {
                words.push(String::new());
            }
            words.last_mut().expect("there is one").push_str(piece);
        }
    }
    words.retain(|word| !word.is_empty());
    let point = point.to_str().expect("it is text");
    words
        .into_iter()
        .map(|word| word.replace("$POINT", point))
        .collect()
}

/// Checks that each file of a restore point has the length and BLAKE3 digest in its manifest, and
/// that there are no other files.
fn check_digests(dir: &Path) {
    let text = fs::read_to_string(dir.join("manifest.json")).expect("it is readable");
    let manifest: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let files = manifest["files"].as_array().expect("a list");
    for file in files {
        let name = file["name"].as_str().expect("a name");
        let bytes = fs::read(dir.join(name)).expect("it is readable");
        assert_eq!(file["size"].as_u64(), Some(bytes.len() as u64), "{name}");
        let digest = blake3::hash(&bytes).to_hex();
        assert_eq!(file["blake3"].as_str(), Some(digest.as_str()), "{name}");
    }
    let there = fs::read_dir(dir).expect("it is readable").count();
    assert_eq!(there, files.len() + 1, "the manifest's files and the manifest");

    let own = manifest["digest"].as_str().expect("a digest");
    let blanked = text.replace(own, &"0".repeat(64));
    assert_eq!(own, blake3::hash(blanked.as_bytes()).to_hex().as_str());

    let checkpoint = &manifest["checkpointFile"];
    let name = checkpoint["name"].as_str().expect("a name");
    let bytes = fs::read(dir.join("../checkpoints").join(name)).expect("it is readable");
    assert_eq!(
        checkpoint["blake3"].as_str(),
        Some(blake3::hash(&bytes).to_hex().as_str())
    );
}

/// The backing file names in an image's chain, as the images record them.
fn backing_names(image: &Path) -> Vec<String> {
    let json = run_ok(
        "qemu-img",
        [&"info", &"--backing-chain", &"--output=json", &image],
    );
    let images: Vec<serde_json::Value> = serde_json::from_str(&json).expect("it is JSON");
    let name = |image: &serde_json::Value| Some(image["backing-filename"].as_str()?.to_owned());
    images.iter().filter_map(name).collect()
}

#[test]
fn documented_command_restores_every_point_even_after_a_move() {
    let mut rng = Rng::new();
    let mut story = Story::of(TestDomain::shaped(
        "by hand ",
        &Shape {
            disks: &[(Kind::Qcow2, (4 << 20) + 512)],
            ..Shape::default()
        },
    ));
    story.scribble(&mut rng, 20);
    story.back_up();
    story.resize("vda", 5 << 20);
    story.scribble(&mut rng, 10);
    story.back_up();
    story.domain.start();
    story.scribble(&mut rng, 10);
    story.back_up();

    let elsewhere = story.folder.path().join("elsewhere: on another disk");
    fs::create_dir(&elsewhere).expect("it is made");
    for place in [story.repo.root().to_owned(), elsewhere.join("copy")] {
        if place != story.repo.root() {
            fs::rename(story.repo.root(), &place).expect("it is moved");
            story.repo = FolderRepository::open(&place, Arc::new(DiskStore)).expect("it is there");
        }
        for (number, kept) in story.history().kept.iter().enumerate() {
            let dir = Path::new(&kept.location);
            check_digests(dir);
            let beneath = backing_names(&dir.join("vda.qcow2"));
            assert_eq!(beneath.len(), number);
            assert!(beneath.iter().all(|name| name.starts_with("../")), "{beneath:?}");

            let to = tempfile::tempdir_in(story.folder.path()).expect("a folder");
            let command = documented_command(dir);
            let status = Command::new(&command[0])
                .args(&command[1..])
                .current_dir(to.path())
                .status()
                .expect("it starts");
            assert!(status.success(), "{command:?}");
            let restored = fs::read(to.path().join("restored.raw")).expect("it is there");
            let expected = fs::read(story.reference(number, "vda")).expect("it is readable");
            assert!(restored == expected, "{}", kept.location);
        }
        story.prove();
    }
    // The chain continues at the new path.
    story.scribble(&mut rng, 5);
    assert!(story.back_up().point.parent.is_some());
    story.prove();
}
