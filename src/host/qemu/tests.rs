//! Tests of the wrappers of `qemu-img` and `qemu-nbd`, on temporary images.

use super::*;
use crate::model::stop::{Stop, StopReason};
use std::os::unix::net::UnixStream;
use std::path::Path;

fn limit() -> WaitLimit {
    WaitLimit {
        deadline: Duration::from_secs(30),
        stop: Stop::default(),
    }
}

fn target(image: &Path) -> Target {
    let file = serde_json::json!({"driver": "file", "filename": image});
    let node = serde_json::json!({"driver": "qcow2", "file": file, "backing": null});
    Target::new(&node, &image.display().to_string(), Keys::default()).expect("it is short")
}

fn create(image: &Path, more: &[&str]) {
    let mut arguments = words(["create", "-q", "-f", "qcow2"]);
    arguments.extend(more.iter().map(OsString::from));
    arguments.push(image.into());
    arguments.push("1M".into());
    qemu_img("create an image", &arguments, &limit()).expect("qemu-img works");
}

#[test]
fn bitmaps_come_and_go_and_the_backing_file_stays_recorded() {
    let dir = tempfile::tempdir().expect("a folder");
    let base = dir.path().join("ba:se -x.qcow2");
    let top = dir.path().join("top.qcow2");
    create(&base, &[]);
    let backing = base.to_str().expect("plain");
    create(&top, &["-F", "qcow2", "-b", backing]);
    let image = target(&top);
    add_bitmap(&image, "-odd name", &limit()).expect("it is added");
    let info = image_info(&image, Use::None, &limit()).expect("it is an image");
    let bitmap = ImageBitmap {
        name: "-odd name".into(),
        sound: true,
    };
    assert_eq!(info.bitmaps, [bitmap]);
    assert_eq!(info.backing, Some((backing.to_owned(), Some("qcow2".to_owned()))));
    remove_bitmap(&image, "-odd name", &limit()).expect("it is removed");
    let error = remove_bitmap(&image, "-odd name", &limit()).expect_err("it is gone");
    assert!(error.to_string().contains("-odd name"), "{error}");
}

#[test]
fn an_interrupted_bitmap_is_not_sound() {
    let json =
        br#"{"filename":"/x","format":"qcow2","virtual-size":1,"format-specific":{"type":"qcow2","data":
        {"compat":"1.1","bitmaps":[{"name":"a","granularity":65536,"flags":["in-use","auto"]},
        {"name":"b","granularity":65536,"flags":["auto"]},{"name":"c","granularity":65536,"flags":[]}]}}}"#;
    let info = parse_info(json).expect("it is what qemu-img prints");
    let sound: Vec<bool> = info.bitmaps.iter().map(|bitmap| bitmap.sound).collect();
    assert_eq!(sound, [false, true, false]);
    let raw = parse_info(br#"{"filename":"/raw","format":"raw"}"#).expect("it is what qemu-img prints");
    assert_eq!(raw, ImageInfo::default());
    for broken in ["", "[]", "1"] {
        assert!(parse_info(broken.as_bytes()).is_err(), "{broken}");
    }
}

#[test]
fn missing_image_is_reported_with_the_programs_message() {
    let image = target(Path::new("/nowhere/x.qcow2"));
    let error = image_info(&image, Use::None, &limit()).expect_err("it is not there");
    assert!(error.to_string().contains("No such file"), "{error}");
    let long = serde_json::Value::String("x".repeat(LONGEST_DESCRIPTION));
    Target::new(&long, "x", Keys::default()).expect_err("it is too long");
}

#[test]
fn secrets_reach_the_program_and_no_command_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("a.qcow2");
    let keys = Keys::hold([("key0".to_owned(), b"geheim".to_vec())]).expect("it is held");
    let mut arguments = words(["create", "-q", "-f", "qcow2"]);
    arguments.extend(keys.arguments());
    arguments.extend(words([
        "-o",
        "encrypt.format=luks,encrypt.key-secret=key0,encrypt.iter-time=10",
    ]));
    arguments.extend([OsString::from(&image), "1M".into()]);
    assert!(
        !arguments
            .iter()
            .any(|word| word.to_string_lossy().contains("geheim"))
    );
    // qemu-img measures the key derivation, which sometimes fails on a busy machine.
    let create = || match qemu_img("create an image", &arguments, &limit()) {
        Err(error) if error.to_string().contains("accurate CPU usage") => false,
        created => created.map(|_| true).expect("qemu-img reads the secret"),
    };
    assert!((0..20).any(|_| create()), "qemu-img makes an encrypted image");
    let mut node = serde_json::json!({"driver": "qcow2", "file": {"driver": "file", "filename": image}});
    node["encrypt"] = serde_json::json!({"format": "luks", "key-secret": "key0"});
    let open = |keys| Target::new(&node, "a", keys).expect("it is short");
    add_bitmap(&open(keys), "c0", &limit()).expect("the secret opens it");
    let wrong = Keys::hold([("key0".to_owned(), b"falsch".to_vec())]).expect("it is held");
    add_bitmap(&open(wrong), "c1", &limit()).expect_err("that is not the secret");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let error = start(command("qemu-not-there", &[]), "qemu-not-there").expect_err("it is not there");
    assert!(matches!(error, HostError::MissingProgram { .. }), "{error}");
}

#[test]
fn a_reader_listens_when_it_is_started_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("a.qcow2");
    let socket = dir.path().join("a b.sock");
    create(&image, &[]);
    add_bitmap(&target(&image), "c0", &limit()).expect("it is added");
    let offer = Offer {
        image: &target(&image),
        export: "vda",
        bitmaps: vec!["c0"],
        socket: &socket,
        writable: false,
    };
    let mut reader = Reader::start(&offer, &Stop::default()).expect("it starts");
    assert_eq!(reader.ended(), None);
    UnixStream::connect(&socket).expect("it listens");
    assert!(
        add_bitmap(&target(&image), "c1", &limit()).is_err(),
        "the reader holds the image"
    );
    drop(reader);
    assert!(!socket.exists() && !pid_file(&socket).exists());
    add_bitmap(&target(&image), "c1", &limit()).expect("the image is free again");
}

#[test]
fn a_reader_that_cannot_open_its_bitmap_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("a.qcow2");
    create(&image, &[]);
    let socket = dir.path().join("s");
    let offer = Offer {
        image: &target(&image),
        export: "vda",
        bitmaps: vec!["gone"],
        socket: &socket,
        writable: false,
    };
    let error = Reader::start(&offer, &Stop::default()).expect_err("there is no such bitmap");
    assert!(error.to_string().contains("gone"), "{error}");
    assert!(!socket.exists());
}

#[test]
fn a_stop_is_heard_while_a_reader_starts() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("a.qcow2");
    create(&image, &[]);
    let stop = Stop::default();
    stop.request(StopReason::Interrupted);
    let offer = Offer {
        image: &target(&image),
        export: "vda",
        bitmaps: Vec::new(),
        socket: &dir.path().join("s"),
        writable: false,
    };
    assert!(matches!(Reader::start(&offer, &stop), Err(HostError::Stopped)));
}

#[test]
fn a_stray_reader_is_ended_and_a_stranger_is_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("a.qcow2");
    let socket = dir.path().join("s");
    create(&image, &[]);
    let offer = Offer {
        image: &target(&image),
        export: "vda",
        bitmaps: Vec::new(),
        socket: &socket,
        writable: false,
    };
    let mut reader = Reader::start(&offer, &Stop::default()).expect("it starts");

    let other = dir.path().join("other");
    std::fs::copy(pid_file(&socket), pid_file(&other)).expect("it is copied");
    end_stray_reader(&other).expect("nothing to do");
    assert_eq!(reader.ended(), None, "it serves another socket");

    end_stray_reader(&socket).expect("it is ended");
    assert!(reader.ended().is_some());
    end_stray_reader(&dir.path().join("never")).expect("nothing to do");
}

/// A writer whose image has the bitmap `c0`.
fn writer(image: &Path, socket: &Path) -> Reader {
    create(image, &[]);
    add_bitmap(&target(image), "c0", &limit()).expect("it is added");
    let offer = Offer {
        image: &target(image),
        export: "vda",
        bitmaps: vec!["c0"],
        socket,
        writable: true,
    };
    Reader::start_writer(&offer, &Stop::default()).expect("it starts")
}

fn assert_sound(image: &Path) {
    let info = image_info(&target(image), Use::None, &limit()).expect("it is read");
    let bitmaps: Vec<(&str, bool)> = info
        .bitmaps
        .iter()
        .map(|bitmap| (bitmap.name.as_str(), bitmap.sound))
        .collect();
    assert_eq!(bitmaps, [("c0", true)]);
}

#[test]
fn a_writer_closes_its_image_with_sound_bitmaps() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("s");
    for (name, is_closed) in [("a.qcow2", true), ("b.qcow2", false)] {
        let image = dir.path().join(name);
        let writer = writer(&image, &socket);
        match is_closed {
            true => writer.close().expect("it closes the image"),
            false => drop(writer),
        }
        assert!(!socket.exists() && !pid_file(&socket).exists());
        assert_sound(&image);
    }
}

#[test]
fn a_stray_writer_is_ended_gently() {
    let dir = tempfile::tempdir().expect("a folder");
    let (image, socket) = (dir.path().join("a.qcow2"), dir.path().join("s"));
    let mut writer = writer(&image, &socket);
    end_stray_reader(&socket).expect("it is ended");
    assert!(writer.ended().is_some());
    assert_sound(&image);
    let error = writer.close().expect_err("it had ended before");
    assert!(error.to_string().contains("ended before"), "{error}");
}
