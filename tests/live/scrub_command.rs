//! `vmsnap scrub` on a libvirtd: arguments, output and exit codes.

use std::path::Path;

use crate::daemon::{Daemon, TestDomain};
use crate::process::{COMMAND_DEADLINE, Finished, command, run, try_run};

fn vmsnap(arguments: &[&str]) -> Finished {
    let mut command = command(env!("CARGO_BIN_EXE_vmsnap"), arguments);
    command
        .env_remove("VMSNAP_REPOSITORY")
        .env("VMSNAP_CONNECT", "qemu:///system")
        .env("LC_ALL", "de_DE.UTF-8");
    try_run(command, COMMAND_DEADLINE)
}

fn domain(daemon: &Daemon, label: &str, starts: bool) -> TestDomain {
    let domain = TestDomain::new(daemon, label);
    let disk = domain.path("a disk.qcow2").display().to_string();
    run(command(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &disk, "16M"],
    ));
    let devices = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
    );
    domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
    if starts {
        domain.start_paused();
    }
    domain
}

fn back_up(domain: &TestDomain, repository: &Path) {
    let repository = repository.display().to_string();
    let finished = vmsnap(&["backup", domain.name(), "--output", &repository, "--quiet"]);
    assert!(finished.ok(), "{finished:#?}");
}

fn checkpoints(domain: &TestDomain) -> Vec<String> {
    let listed = domain.virsh(&["checkpoint-list", "--name"]);
    let names = listed.lines().map(str::trim).filter(|line| !line.is_empty());
    names.map(str::to_owned).collect()
}

#[test]
fn usage_errors_are_reported_before_connecting() {
    let nowhere = ["--connect", "nowhere:///"];
    let with = |words: &[&str]| vmsnap(&[&["scrub"], words, &nowhere[..]].concat());
    let said = |finished: &Finished| finished.stderr.trim_end().to_owned();

    let finished = with(&["--scrub-type", "both"]);
    assert_eq!(
        (finished.code, said(&finished).as_str()),
        (Some(1), "vmsnap: No domains specified")
    );
    for spelling in ["--scrub-type=bitmaps", "--scrubType=bitmaps", "--type=bitmaps"] {
        let finished = with(&["vm1", spelling]);
        assert_eq!(finished.code, Some(8));
        assert_eq!(
            said(&finished),
            "vmsnap: Invalid scrub type: bitmaps; use one of checkpoint, bitmap, both, *"
        );
        assert_eq!(finished.stdout, "");
    }
    let finished = with(&["vm1"]);
    assert_eq!(finished.code, Some(8));
    assert!(
        said(&finished).starts_with("vmsnap: Invalid scrub type: "),
        "{finished:?}"
    );
    for word in ["checkpoint", "bitmap", "both", "*"] {
        assert!(said(&finished).contains(word), "{finished:?}");
    }
    assert_eq!(with(&["vm1", "--scrub-type", "both", "--scrup"]).code, Some(64));
    assert_eq!(
        with(&["vm1", "--scrub-type", "both"]).code,
        Some(3),
        "no libvirtd answers"
    );
}

#[test]
fn failing_domain_stops_no_other_and_output_is_true() {
    let daemon = Daemon::acquire();
    let running = domain(&daemon, "1 $(touch x);'\"&", true);
    let off = domain(&daemon, "off", false);
    let bare = domain(&daemon, "bare", false);
    let repository = crate::owner::folder("scrub-");
    for domain in [&running, &off] {
        back_up(domain, repository.path());
        back_up(domain, repository.path());
    }
    let ours = checkpoints(&running);
    let theirs = checkpoints(&off);
    assert_eq!((ours.len(), theirs.len()), (2, 2));

    let (first, second) = (running.name(), off.name());
    let planned = vmsnap(&["scrub", first, "--type", "both", "--dry-run"]);
    assert_eq!(planned.code, Some(0), "{planned:#?}");
    let next = format!("the next backup of {first} will be full");
    let begin = format!("{first}: would remove 2 checkpoints and 2 bitmaps\n  checkpoint ");
    assert!(planned.stdout.starts_with(&begin), "{planned:#?}");
    for name in &ours {
        let line = format!("\n  checkpoint {name}\n");
        assert!(planned.stdout.contains(&line), "{planned:#?}");
    }
    assert!(planned.stdout.contains(&next), "{planned:#?}");
    assert_eq!(checkpoints(&running), ours);

    // Two of the domains have no such name. A pattern without a match is reported, and its code
    // comes first.
    let name = format!("--checkpointName={}", theirs[1]);
    let words = ["scrub", "--scrubType=both", &name, "--json"];
    let all = [
        "--domains",
        first,
        "--domains",
        bare.name(),
        "--domains",
        second,
        "--domains",
        "no-*-such",
    ];
    let finished = vmsnap(&[&words[..], &all[..]].concat());
    assert_eq!(finished.code, Some(1), "{finished:#?}");
    let json: serde_json::Value =
        serde_json::from_str(&finished.stdout).expect("stdout is JSON and nothing else");
    let outcomes: Vec<&str> = (0..3)
        .map(|index| json["domains"][index]["outcome"].as_str().expect("a word"))
        .collect();
    assert_eq!(outcomes, ["failed", "failed", "ok"]);
    assert_eq!(json["domains"][2]["checkpoints"][0], theirs[1].as_str());
    assert_eq!(json["domains"][2]["bitmaps"][0]["disk"], "vda");
    assert_eq!(json["unmatched"][0], "no-*-such");
    let missing = format!("there is no checkpoint or bitmap named '{}'", theirs[1]);
    assert!(finished.stderr.contains(&missing), "{finished:#?}");
    assert_eq!(checkpoints(&running), ours);
    assert_eq!(checkpoints(&off), theirs[..1]);

    let foreign = vmsnap(&[
        "scrub",
        second,
        "--scrub-type",
        "both",
        "--checkpoint-name",
        "x;$(y)",
    ]);
    assert_eq!(foreign.code, Some(5), "{foreign:#?}");
    assert!(foreign.stderr.contains("never touches") && foreign.stdout.is_empty());

    let repository = repository.path().display().to_string();
    let finished = vmsnap(&[
        "scrub",
        first,
        second,
        "--scrub-type",
        "*",
        "--output",
        &repository,
    ]);
    assert_eq!(
        (finished.code, finished.stderr.as_str()),
        (Some(0), ""),
        "{finished:#?}"
    );
    assert!(finished.stdout.contains(&next), "{finished:#?}");
    let is_told = |name: &String| finished.stdout.contains(&format!("checkpoint {name} is gone"));
    assert!(ours.iter().any(is_told), "{finished:#?}");
    assert_eq!((checkpoints(&running).len(), checkpoints(&off).len()), (0, 0));
    assert_eq!(
        (running.state().as_str(), off.state().as_str()),
        ("paused", "shut off")
    );
    let bitmaps = run(command(
        "qemu-img",
        &["info", &off.path("a disk.qcow2").display().to_string()],
    ));
    assert!(!bitmaps.contains("virtnbdbackup"), "{bitmaps}");

    for domain in [&running, &off] {
        let finished = vmsnap(&["backup", domain.name(), "--output", &repository, "--quiet"]);
        assert!(finished.stdout.contains(": full backup "), "{finished:#?}");
    }
}

/// The type is checked after the switches have been read.
#[test]
fn an_empty_output_is_an_unset_variable() {
    let finished = vmsnap(&["scrub", "vm1", "--output="]);
    assert_eq!(finished.code, Some(8), "{finished:#?}");
}
