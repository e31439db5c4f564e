//! Tests of the programs' wrappers, on images made here.

use super::*;
use std::os::unix::net::UnixStream;

fn patience() -> Patience {
    Patience {
        deadline: Duration::from_secs(30),
        stop: Stop::default(),
    }
}

fn create(image: &Path, more: &[&str]) {
    let mut arguments = words(["create", "-q", "-f", "qcow2"]);
    arguments.extend(more.iter().map(OsString::from));
    arguments.push(image.into());
    arguments.push("1M".into());
    qemu_img("create an image", &arguments, &patience()).expect("qemu-img works");
}

#[test]
fn bitmaps_come_and_go_and_show_in_the_chain() {
    let dir = tempfile::tempdir().expect("a folder");
    let base = dir.path().join("ba:se -x.qcow2");
    let top = dir.path().join("top.qcow2");
    create(&base, &[]);
    add_bitmap(&base, "-odd name", &patience()).expect("it is added");
    let backing = base.to_str().expect("plain");
    create(&top, &["-F", "qcow2", "-b", backing]);
    let chain = image_chain(&top, "qcow2", &patience()).expect("it is a chain");
    assert_eq!(chain.len(), 2);
    assert!(chain[0].bitmaps.is_empty());
    let bitmap = ImageBitmap {
        name: "-odd name".into(),
        sound: true,
    };
    assert_eq!(chain[1].bitmaps, [bitmap]);
    remove_bitmap(&base, "-odd name", &patience()).expect("it is removed");
    let error = remove_bitmap(&base, "-odd name", &patience()).expect_err("it is gone");
    assert!(error.to_string().contains("-odd name"), "{error}");
}

#[test]
fn an_interrupted_bitmap_is_not_sound() {
    let json =
        br#"[{"filename":"/x","format":"qcow2","virtual-size":1,"format-specific":{"type":"qcow2","data":
        {"compat":"1.1","bitmaps":[{"name":"a","granularity":65536,"flags":["in-use","auto"]},
        {"name":"b","granularity":65536,"flags":["auto"]},{"name":"c","granularity":65536,"flags":[]}]}}},
        {"filename":"/raw","format":"raw"}]"#;
    let chain = parse_chain(json).expect("it is what qemu-img prints");
    let sound: Vec<bool> = chain[0].bitmaps.iter().map(|bitmap| bitmap.sound).collect();
    assert_eq!(sound, [false, true, false]);
    assert!(chain[1].bitmaps.is_empty());
    for broken in ["", "{}", "[{}]", "[1]"] {
        assert!(parse_chain(broken.as_bytes()).is_err(), "{broken}");
    }
}

#[test]
fn a_missing_image_is_told_in_the_programs_words() {
    let error =
        image_chain(Path::new("/nowhere/x.qcow2"), "qcow2", &patience()).expect_err("it is not there");
    assert!(error.to_string().contains("No such file"), "{error}");
    assert!(image_chain(Path::new("-x"), "qcow2", &patience()).is_err());
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
    add_bitmap(&image, "c0", &patience()).expect("it is added");
    let offer = Offer {
        image: &image,
        format: "qcow2",
        export: "vda",
        bitmap: Some("c0"),
        socket: &socket,
    };
    let mut reader = Reader::start(&offer, &Stop::default()).expect("it starts");
    assert_eq!(reader.ended(), None);
    UnixStream::connect(&socket).expect("it listens");
    assert!(
        add_bitmap(&image, "c1", &patience()).is_err(),
        "the reader holds the image"
    );
    drop(reader);
    assert!(!socket.exists() && !pid_file(&socket).exists());
    add_bitmap(&image, "c1", &patience()).expect("the image is free again");
}

#[test]
fn a_reader_that_cannot_open_its_bitmap_says_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("a.qcow2");
    create(&image, &[]);
    let socket = dir.path().join("s");
    let offer = Offer {
        image: &image,
        format: "qcow2",
        export: "vda",
        bitmap: Some("gone"),
        socket: &socket,
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
    stop.request(2);
    let offer = Offer {
        image: &image,
        format: "qcow2",
        export: "vda",
        bitmap: None,
        socket: &dir.path().join("s"),
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
        image: &image,
        format: "qcow2",
        export: "vda",
        bitmap: None,
        socket: &socket,
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
