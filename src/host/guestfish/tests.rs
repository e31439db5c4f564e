//! Tests of [`super::Guestfish`] with a program that stands for guestfish (`fake.sh`).

use super::*;
use crate::model::stop::StopReason;

const FAKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/host/guestfish/fake.sh");

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// Runs `work` with the program. Afterwards nothing of it may be left.
fn with_fake<T>(silence: Duration, stop: &Stop, work: impl FnOnce(&mut Guestfish<'_>) -> T) -> T {
    let folder = private_folder().expect("a folder");
    let setup = Setup {
        disks: &[],
        socket: folder.path(),
        folder: folder.path(),
        random: 7,
        stop,
        progress: &|| 0,
        silence,
    };
    let mut fish = Guestfish::start_program(setup, FAKE, None).expect("it starts");
    let group = rustix::process::Pid::from_child(&fish.child);
    let result = work(&mut fish);
    drop(fish);
    assert!(processes::members(group).is_empty());
    result
}

fn said(error: &HostError) -> String {
    error.to_string()
}

#[test]
fn answers_end_where_nobody_else_can_say_so() {
    with_fake(LONG, &Stop::default(), |fish| {
        assert_eq!(fish.ask(&[b"nothing"]).expect("no answer"), b"");
        let answer = fish.ask(&[b"say"]).expect("an answer");
        assert_eq!(answer, b"one\nvmsnap-0000000000000000-2\ntwo");
        assert_eq!(fish.try_ask(&[b"fail"]).expect("it may fail"), b"");
        let paths: Vec<Vec<u8>> = (0..200).map(|number| vec![b'x'; number]).collect();
        let all = fish.ask_for_each("say", &paths).expect("answers");
        let lines = all.split(|byte| *byte == b'\n').filter(|line| *line == b"two");
        assert_eq!(lines.count(), 200);
    });
}

#[test]
fn a_failure_ends_it_with_its_message() {
    with_fake(LONG, &Stop::default(), |fish| {
        let error = fish.ask(&[b"fail"]).expect_err("it fails");
        assert_eq!(said(&error), "guestfish could not run 'fail': it failed");
        assert!(fish.ask(&[b"say"]).is_err());
    });
}

#[test]
fn content_is_whole_or_an_error() {
    let all = |data: &mut dyn Read| {
        let mut text = String::new();
        data.read_to_string(&mut text).map(|_| text)
    };
    with_fake(LONG, &Stop::default(), |fish| {
        for _ in 0..3 {
            let text = fish.receive(&[b"data"], &[], all).expect("it answers");
            assert_eq!(text.expect("it is read"), "content");
        }
        // A reader that needs only a part.
        let first = fish.receive(&[b"data"], &[], |data| data.read(&mut [0]));
        assert_eq!(first.expect("it answers").expect("it is read"), 1);
        assert_eq!(fish.ask(&[b"nothing"]).expect("it still runs"), b"");
        let mut got = Vec::new();
        let error = fish.receive(&[b"cut"], &[], |data| data.read_to_end(&mut got));
        let error = error.expect_err("the content is cut off");
        assert_eq!(
            said(&error),
            "guestfish could not run 'cut': read: Input/output error"
        );
    });
}

#[test]
fn a_machine_that_kvm_cannot_run_is_started_without_it() {
    let folder = private_folder().expect("a folder");
    let stop = Stop::default();
    let setup = Setup {
        disks: &[],
        socket: folder.path(),
        folder: folder.path(),
        random: 7,
        stop: &stop,
        progress: &|| 0,
        silence: LONG,
    };
    // The program fails to run the machine unless KVM is switched off.
    let mut fish = Guestfish::start_machine(setup, FAKE, false).expect("it starts");
    assert_eq!(fish.without_kvm(), Some("no machine"));
    assert_eq!(fish.ask(&[b"nothing"]).expect("it runs"), b"");
    drop(fish);
    let chosen = Guestfish::start_machine(setup, FAKE, true).map(drop);
    let error = chosen.expect_err("it does not start");
    assert!(matches!(error, HostError::Appliance { .. }), "{error}");
}

#[test]
fn silence_and_stops_end_it_with_its_children() {
    let error = with_fake(Duration::from_millis(50), &Stop::default(), |fish| {
        fish.ask(&[b"hang"]).expect_err("it hangs")
    });
    assert!(
        said(&error).contains("neither answered nor read anything"),
        "{error}"
    );
    let stop = Stop::default();
    stop.request(StopReason::Interrupted);
    for command in [&b"hang"[..], b"data"] {
        let error = with_fake(LONG, &stop, |fish| {
            let read = |data: &mut dyn Read| data.read_to_end(&mut Vec::new());
            fish.receive(&[command], &[], read).expect_err("it is stopped")
        });
        assert!(matches!(error, HostError::Stopped), "{error}");
    }
}

#[test]
fn folders_for_sockets_are_short_and_private() {
    let folder = private_folder().expect("a folder");
    let path = folder.path().to_owned();
    let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().expect("there"));
    assert_eq!(mode & 0o777, 0o700);
    assert!(path.as_os_str().len() < 80);
    drop(folder);
    assert!(!path.exists());
}
