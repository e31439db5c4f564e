//! How mounts begin and end.

use std::fs;
use std::path::Path;
use std::process::Output;

use rustix::process::Signal;

use super::{Story, is_mounted, pread, remove_mount};

fn refused(story: &Story, words: &[&str], code: i32, parts: &[&str]) {
    let images = story.images();
    let words = [&["mount"], words, &["--repository", &images]].concat();
    let output: Output = story.command(&words).output().expect("the program runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn folders_that_cannot_be_mounted_on_are_refused() {
    let story = Story::new();
    let missing = story.beside("missing").display().to_string();
    let words = ["does not exist", "No such file"];
    refused(
        &story,
        &["vm1", &missing],
        64,
        &["cannot mount on", words[1], "create an empty folder"],
    );
    fs::write(story.beside("file"), "x").expect("written");
    let file = story.beside("file").display().to_string();
    refused(&story, &["vm1", &file], 64, &["not a folder"]);
    refused(&story, &["vm1", &story.images()], 64, &["not empty"]);
    refused(
        &story,
        &["vm1", "/proc"],
        64,
        &["already mounted", "findmnt /proc"],
    );
    let free = story.folder().display().to_string();
    refused(&story, &["vm2", &free], 1, &["no restore points"]);
    refused(
        &story,
        &["vm1", &free, "--at", "2020-01-01T00-00-00Z"],
        1,
        &["2020-01-01"],
    );
    assert!(!is_mounted(Path::new(&free)));
}

#[test]
fn a_folder_that_is_mounted_already_is_refused() {
    let story = Story::new();
    let mounted = story.mount(&story.images(), &[]);
    let dir = mounted.dir.display().to_string();
    refused(&story, &["vm1", &dir], 64, &["already mounted"]);
    assert!(mounted.read("vda.raw") == story.latest()[0]);
    mounted.end(0);
}

#[test]
fn an_interrupt_unmounts_although_a_file_is_open() {
    for signal in [Signal::TERM, Signal::INT] {
        let story = Story::new();
        let mut mounted = story.mount(&story.images(), &[]);
        let file = mounted.open("vda.raw");
        pread(&file, 0, 10).expect("it reads");
        mounted.signal(signal);
        let (status, stdout, stderr) = mounted.wait();
        assert_eq!(status.code(), Some(0), "{stdout}{stderr}");
        assert!(stdout.contains("unmounted"), "{stdout}");
        mounted.assert_gone();
        pread(&file, 65 * 65536, 10).expect_err("nobody answers");
    }
}

#[test]
fn unmounting_from_outside_ends_the_program() {
    let story = Story::new();
    let mut mounted = story.mount(&story.images(), &[]);
    mounted.read("vda.raw");
    assert!(remove_mount(&mounted.dir));
    let (status, stdout, stderr) = mounted.wait();
    assert_eq!(status.code(), Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("was unmounted"), "{stdout}");
    mounted.assert_gone();
}

/// After somebody has unmounted it, a reader keeps its open file until it closes it.
#[test]
fn a_reader_goes_on_after_unmounting_from_outside() {
    let story = Story::new();
    let mut mounted = story.mount(&story.images(), &[]);
    let file = mounted.open("vda.raw");
    assert!(remove_mount(&mounted.dir));
    let disk = &story.latest()[0];
    assert!(pread(&file, 0, disk.len()).expect("it reads") == *disk);
    // Another file system may be in its place by now, and stays.
    let second = story.mount(&story.images(), &["--at", &story.points[0].0]);
    drop(file);
    let (status, stdout, stderr) = mounted.wait();
    assert_eq!(status.code(), Some(0), "{stdout}{stderr}");
    assert!(second.read("vda.raw") == story.points[0].1[0]);
    // The folder belongs to the second one.
    std::mem::forget(mounted);
    second.end(0);
}

#[test]
fn mount_of_a_killed_program_is_named_and_can_be_removed() {
    let story = Story::new();
    let mut mounted = story.mount(&story.images(), &[]);
    let dir = mounted.dir.display().to_string();
    mounted.signal(Signal::KILL);
    mounted.wait();
    assert!(is_mounted(&mounted.dir));
    let parts = ["whose program has ended", "fusermount3 -u", "umount", &dir];
    refused(&story, &["vm1", &dir], 64, &parts);
    assert!(remove_mount(&mounted.dir));
    let again = story.mount(&story.images(), &[]);
    assert!(again.read("vda.raw") == story.latest()[0]);
    again.end(0);
}

/// The same restore point is mounted while a policy merges it away.
#[test]
fn a_mounted_point_keeps_its_files_during_a_prune() {
    let story = Story::new();
    let (id, disks) = &story.points[1];
    let mounted = story.mount(&story.images(), &["--at", id]);
    let images = story.images();
    let words = ["prune", "vm1", "--keep-last", "1", "--repository", &images];
    let pruned = story.command(&words).output().expect("the program runs");
    let text = String::from_utf8_lossy(&pruned.stderr).into_owned();
    assert!(mounted.read("vda.raw") == disks[0], "{text}");
    assert!(mounted.read("vdb.raw") == disks[1], "{text}");
    mounted.end(0);
}
