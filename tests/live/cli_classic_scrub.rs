//! Scrubs in the classic spelling on real domains: output, and the remaining checkpoints and
//! bitmaps.

use std::path::Path;

use crate::cli_lab::{Machine, json};
use crate::cli_user::{User, golden, says};
use crate::daemon::Daemon;
use crate::process::{Finished, command, run};

const MIB: usize = 1 << 20;

/// The names of the bitmaps in an image that no QEMU has open.
pub fn bitmaps(image: &Path) -> Vec<String> {
    let image = image.display().to_string();
    let info = run(command("qemu-img", &["info", "--output=json", &image]));
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array();
    let names = bitmaps
        .into_iter()
        .flatten()
        .map(|bitmap| bitmap["name"].as_str());
    let mut names: Vec<String> = names.map(|name| name.expect("a name").to_owned()).collect();
    names.sort();
    names
}

/// The names with these numbers.
fn these(names: &[String], numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|number| names[*number].clone()).collect()
}

/// The output with each domain's checkpoints renamed to consecutive numbers from 0.
fn counted(mut finished: Finished, made: &[&[String]]) -> Finished {
    for names in made {
        for (number, name) in names.iter().enumerate() {
            let short = format!("virtnbdbackup.{number}");
            finished.stdout = finished.stdout.replace(name, &short);
            finished.stderr = finished.stderr.replace(name, &short);
        }
    }
    finished
}

/// Makes three restore points and returns their checkpoints. Adds a foreign checkpoint if the
/// domain runs.
fn prepare(user: &User, machine: &Machine) -> Vec<String> {
    let domains = format!("--domains={}", machine.name());
    for day in ["2026-11-02", "2026-11-03", "2026-11-04"] {
        let made = user.on(day, &[&domains, "--backup", "--output=OUT", "-q"]);
        assert_eq!(made.code, Some(0), "{made:#?}");
    }
    let names = machine.checkpoints();
    assert_eq!(names.len(), 3);
    if machine.domain.state() != "shut off" {
        machine.domain.virsh(&["checkpoint-create-as", "mine"]);
    }
    names
}

#[test]
fn a_running_domain_is_scrubbed_as_it_is_asked_and_no_further() {
    let daemon = Daemon::acquire();
    let machine = Machine::paused(&daemon, "scrubbed; touch x", &[MIB]);
    let user = User::new();
    let made = prepare(&user, &machine);
    let domains = format!("--domains={}", machine.name());
    let scrub = |words: &[&str]| {
        let finished = user.on("2026-11-05", &[&["--scrub", domains.as_str()], words].concat());
        counted(finished, &[&made])
    };
    let all = |numbers: &[usize]| [vec!["mine".to_owned()], these(&made, numbers)].concat();
    let named = |number: usize| format!("--checkpointName={}", made[number]);

    says(
        &scrub(&["--scrubType=checkpoint", &named(2)]),
        &[&machine],
        0,
        "VM1: removed 1 checkpoint and no bitmaps\n  \
         checkpoint virtnbdbackup.2\n  \
         not removed: bitmap virtnbdbackup.2 of disk vda\n  \
         note: the bitmaps stay and still track writes; each costs memory, space in its image and a little time per write; \
         later backups can still use those that belong to a restore point; `--scrub-type bitmap` removes one bitmap with \
         --checkpoint-name NAME, or all of vmsnap's bitmaps while the domain is shut off\n  \
         the next backup of VM1 will be full or incremental (virtnbdbackup.1 remains; incremental only if the repository has \
         the restore point of this checkpoint; use --output to find out)\n",
        "",
    );
    assert_eq!(machine.checkpoints(), all(&[0, 1]));
    says(
        &scrub(&["--scrub-type=bitmap", "--checkpoint-name", &made[2]]),
        &[&machine],
        0,
        "VM1: removed no checkpoints and 1 bitmap\n  \
         bitmap virtnbdbackup.2 of disk vda\n  \
         the next backup of VM1 will be full or incremental (virtnbdbackup.1 remains; incremental only if the repository has \
         the restore point of this checkpoint; use --output to find out)\n",
        "",
    );
    says(
        &scrub(&["--scrub-type", "both", "--checkpoint-name", &made[1]]),
        &[&machine],
        0,
        "VM1: removed 1 checkpoint and 1 bitmap\n  \
         checkpoint virtnbdbackup.1\n  \
         bitmap virtnbdbackup.1 of disk vda\n  \
         the next backup of VM1 will be full or incremental (virtnbdbackup.0 remains; incremental only if the repository has \
         the restore point of this checkpoint; use --output to find out)\n",
        "",
    );
    assert_eq!(machine.checkpoints(), all(&[0]));
    let missing = scrub(&["--scrubType=both", "--checkpointName=virtnbdbackup.9"]);
    says(
        &missing,
        &[&machine],
        5,
        "VM1: removed no checkpoints and no bitmaps\n  \
         the next backup of VM1 will be full or incremental (virtnbdbackup.0 remains; incremental only if the repository has \
         the restore point of this checkpoint; use --output to find out)\n",
        "vmsnap: VM1: there is no checkpoint or bitmap named 'virtnbdbackup.9'\n\
         hint: `vmsnap status` shows the domain's checkpoints and bitmaps, except bitmaps without a checkpoint that were created since the domain started\n",
    );
    // With or without a name, all of our checkpoints are removed and no foreign ones.
    says(
        &scrub(&[
            "--scrubType=*",
            "--checkpointName=virtnbdbackup.9",
            "--output=OUT",
        ]),
        &[&machine],
        0,
        "VM1: removed 1 checkpoint and 1 bitmap\n  \
         checkpoint virtnbdbackup.0\n  \
         bitmap virtnbdbackup.0 of disk vda\n  \
         note: --checkpoint-name 'virtnbdbackup.9' is ignored: --scrub-type '*' removes all of vmsnap's checkpoints and \
         bitmaps\n  \
         the next backup of VM1 will be full (checkpoint virtnbdbackup.2 is gone)\n",
        "",
    );
    assert_eq!(machine.checkpoints(), all(&[]));
    let next = user.on("2026-11-06", &[&domains, "--backup", "--output=OUT", "-q"]);
    assert!(
        golden(&next.stdout, &[&machine]).starts_with("VM1: full backup ID,"),
        "{next:#?}"
    );
    let left = machine.checkpoints();
    machine.domain.destroy();
    assert_eq!(
        bitmaps(&machine.image(0)),
        left,
        "the foreign bitmap and the new one"
    );
}

/// Fault 6: checkpoints are removed as metadata only, the bitmaps stay, and the next full fails
/// with `Bitmap already exists`.
#[test]
fn bitmaps_without_checkpoints_do_not_block_a_full() {
    let daemon = Daemon::acquire();
    let running = Machine::paused(&daemon, "left-running", &[MIB]);
    let off = Machine::define(&daemon, "left-off", &[MIB]);
    let user = User::new();
    let (made, made_off) = (prepare(&user, &running), prepare(&user, &off));
    let domains = format!("--domains={},{}", running.name(), off.name());
    let with_gone = format!("{domains},gone");
    let words = [
        "--scrub",
        &with_gone,
        "--scrubType=checkpoint",
        "--checkpointName=virtnbdbackup.9",
    ];
    let failed = user.on("2026-11-05", &words);
    let hint = "hint: `vmsnap status` shows the domain's checkpoints and bitmaps, except bitmaps without a checkpoint that were created since the domain started";
    says(
        &failed,
        &[&running, &off],
        1,
        "",
        &format!(
            "vmsnap: No matching domains found for: gone\n\
             vmsnap: VM1: there is no checkpoint named 'virtnbdbackup.9'\n{hint}\n\
             vmsnap: VM2: there is no checkpoint named 'virtnbdbackup.9'\n{hint}\n\
             vmsnap: 3 of 3 domains failed:\n  \
             No matching domains found for: gone\n  \
             VM1: there is no checkpoint named 'virtnbdbackup.9'\n  \
             VM2: there is no checkpoint named 'virtnbdbackup.9'\n"
        ),
    );

    let scrubbed = user.on("2026-11-05", &["--scrub", &domains, "--scrubType=checkpoint"]);
    let scrubbed = counted(scrubbed, &[&made, &made_off]);
    says(
        &scrubbed,
        &[&running, &off],
        0,
        "VM1: removed 3 checkpoints and no bitmaps\n  \
         checkpoint virtnbdbackup.0\n  checkpoint virtnbdbackup.1\n  checkpoint virtnbdbackup.2\n  \
         not removed: bitmap virtnbdbackup.0 of disk vda\n  not removed: bitmap virtnbdbackup.1 of disk vda\n  \
         not removed: bitmap virtnbdbackup.2 of disk vda\n  \
         note: the bitmaps stay and still track writes; each costs memory, space in its image and a little time per write; \
         later backups can still use those that belong to a restore point; `--scrub-type bitmap` removes one bitmap with \
         --checkpoint-name NAME, or all of vmsnap's bitmaps while the domain is shut off\n  \
         the next backup of VM1 will be full or incremental (bitmap virtnbdbackup.2 remains; incremental only if the repository has \
         the restore point of this bitmap; use --output to find out)\n\
         VM2: removed 3 checkpoints and no bitmaps\n  \
         checkpoint virtnbdbackup.0\n  checkpoint virtnbdbackup.1\n  checkpoint virtnbdbackup.2\n  \
         not removed: bitmap virtnbdbackup.0 of disk vda\n  not removed: bitmap virtnbdbackup.1 of disk vda\n  \
         not removed: bitmap virtnbdbackup.2 of disk vda\n  \
         note: the bitmaps stay and still track writes; each costs memory, space in its image and a little time per write; \
         later backups can still use those that belong to a restore point; `--scrub-type bitmap` removes the bitmaps\n  \
         the next backup of VM2 will be full or incremental (bitmap virtnbdbackup.2 remains; incremental only if the repository has \
         the restore point of this bitmap; use --output to find out)\n",
        "",
    );
    assert_eq!(running.checkpoints(), ["mine"]);
    assert_eq!(off.checkpoints(), [""; 0]);
    assert_eq!(bitmaps(&off.image(0)), made_off);

    // In another month leftover bitmaps block nothing.
    let made = user.on("2026-12-06", &["--backup", &domains, "--output=OUT", "--quiet"]);
    says(
        &made,
        &[&running, &off],
        0,
        "VM1: full backup ID, 1 disk, no data, TIME, crash-consistent\n\
         VM2: full backup ID, 1 disk, no data, TIME, shut off\n",
        "",
    );
    for machine in [&running, &off] {
        let words = ["--output=OUT", "--machine", "--json", "--domains", machine.name()];
        let status = json(&user.on("2026-12-06", &words));
        let next = &status[machine.name()]["nextBackup"];
        assert_eq!(next["level"], "incremental", "{status:#}");
    }
}

#[test]
fn a_shut_off_domain_is_scrubbed_too_and_stays_shut_off() {
    let daemon = Daemon::acquire();
    let off = Machine::define(&daemon, "off", &[MIB, MIB]);
    let user = User::new();
    let made = prepare(&user, &off);
    let domains = format!("--domains={}", off.name());
    let name = format!("--checkpointName={}", made[1]);
    let words = ["--scrub", &domains, "--scrubType=bitmap", &name];
    says(
        &counted(user.on("2026-11-05", &words), &[&made]),
        &[&off],
        0,
        "VM1: removed no checkpoints and 2 bitmaps\n  \
         bitmap virtnbdbackup.1 of disk vda\n  bitmap virtnbdbackup.1 of disk vdb\n  \
         note: checkpoint virtnbdbackup.1 stays without bitmaps: no incremental backup can start from it; \
         `--scrub-type checkpoint` removes its record\n  \
         the next backup of VM1 will be full or incremental (virtnbdbackup.2 remains; incremental only if the repository has \
         the restore point of this checkpoint; use --output to find out)\n",
        "",
    );
    assert_eq!(off.checkpoints(), made);
    assert_eq!(bitmaps(&off.image(1)), these(&made, &[0, 2]));
    let status = user.on("2026-11-05", &[&domains]);
    let expected = "Status for VM1:\n  Overall status: INCONSISTENT\n";
    assert!(
        golden(&status.stdout, &[&off]).starts_with(expected),
        "{status:#?}"
    );
    says(
        &counted(
            user.on("2026-11-05", &["--scrub", &domains, "--scrubType=both"]),
            &[&made],
        ),
        &[&off],
        0,
        "VM1: removed 3 checkpoints and 4 bitmaps\n  \
         checkpoint virtnbdbackup.0\n  checkpoint virtnbdbackup.1\n  checkpoint virtnbdbackup.2\n  \
         bitmap virtnbdbackup.0 of disk vda\n  bitmap virtnbdbackup.0 of disk vdb\n  \
         bitmap virtnbdbackup.2 of disk vda\n  bitmap virtnbdbackup.2 of disk vdb\n  \
         the next backup of VM1 will be full (the domain has no vmsnap checkpoint with a sound bitmap)\n",
        "",
    );
    assert_eq!(off.checkpoints(), [""; 0]);
    assert_eq!((bitmaps(&off.image(0)), bitmaps(&off.image(1))), (vec![], vec![]));
    assert_eq!(off.domain.state(), "shut off");
}

#[test]
fn scrub_removes_only_what_is_requested() {
    let daemon = Daemon::acquire();
    let machine = Machine::define(&daemon, "unsaid", &[MIB]);
    let user = User::new();
    let made = prepare(&user, &machine);
    let domains = format!("--domains={}", machine.name());
    let cases: [(&[&str], i32, &str); 5] = [
        (
            &["--scrub", &domains],
            8,
            "vmsnap: Invalid scrub type: none given; use one of checkpoint, bitmap, both, *\n",
        ),
        (
            &["--scrub", &domains, "--scrubType=everything"],
            8,
            "vmsnap: Invalid scrub type: everything\n",
        ),
        (
            &["--scrub", "--scrubType=both"],
            1,
            "vmsnap: No domains specified\n",
        ),
        (
            &["--scrub", "--scrubType=both", "--domains=gone"],
            1,
            "vmsnap: No matching domains found for: gone\n",
        ),
        (
            &["--scrub", "--backup", &domains, "--scrubType=both"],
            7,
            "vmsnap: Only one command can be run at a time\n",
        ),
    ];
    for (words, code, stderr) in cases {
        says(&user.on("2026-11-05", words), &[&machine], code, "", stderr);
    }
    let no_scrub = user.on("2026-11-05", &["--scrub=false", "--scrubType=both", &domains]);
    assert!(
        golden(&no_scrub.stdout, &[&machine]).starts_with("Status for VM1:\n  Overall status: OK\n"),
        "{no_scrub:#?}"
    );
    assert_eq!(machine.checkpoints(), made);
}
