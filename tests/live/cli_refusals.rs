//! Refusals and failures on a libvirtd. The rest of the work is still done.

use rustix::process::Signal;
use serde_json::Value;

use crate::cli_lab::{Change, Machine, Repo, has_job, json, outcome_of, text_of};
use crate::daemon::{Daemon, URI};
use crate::process::Finished;

const MIB: usize = 1 << 20;

/// Starts a backup job that is not vmsnap's.
pub fn begin_foreign_job(machine: &Machine) {
    let dir = machine.domain.path("open");
    std::fs::create_dir(&dir).expect("the folder is ours");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&dir, everybody).expect("the folder is ours");
    let xml = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{0}/socket'/>\
         <disks><disk name='vda' backup='yes' type='file'><scratch file='{0}/scratch'/></disk></disks></domainbackup>",
        dir.display()
    );
    let file = machine.domain.path("job.xml");
    std::fs::write(&file, xml).expect("the folder is ours");
    machine
        .domain
        .virsh(&["backup-begin", "--backupxml", &file.display().to_string()]);
}

#[test]
fn a_domain_that_fails_does_not_stop_the_others() {
    let daemon = Daemon::acquire();
    let good = Machine::paused(&daemon, "many-good", &[MIB]);
    let lost = Machine::define(&daemon, "many-lost", &[MIB]);
    std::fs::remove_file(lost.image(0)).expect("it is there");
    let busy = Machine::paused(&daemon, "many-busy", &[MIB]);
    begin_foreign_job(&busy);
    let late = Machine::define(&daemon, "many-late", &[MIB]);
    let repo = Repo::new();

    let names = [lost.name(), good.name(), busy.name(), late.name()];
    let finished = repo.backup(&names, &["--json"]);
    assert_eq!(finished.code, Some(9), "{finished:#?}");
    let document = json(&finished);
    assert_eq!(document["exitCode"], 9);
    let order: Vec<&str> = document["domains"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|outcome| text_of(&outcome["domain"]))
        .collect();
    assert_eq!(order, names);
    for saved in [&good, &late] {
        assert_eq!(outcome_of(&finished, saved.name())["outcome"], "ok");
        assert_eq!(repo.list(saved.name()).len(), 1);
    }
    for (failed, why) in [
        (&lost, "vda"),
        (&busy, "another job (backup) is active on the domain"),
    ] {
        let outcome = outcome_of(&finished, failed.name());
        assert_eq!(
            (&outcome["outcome"], &outcome["restorePoint"]),
            (&"failed".into(), &Value::Null)
        );
        assert!(text_of(&outcome["error"]["message"]).contains(why), "{outcome:#}");
    }
    assert!(has_job(&busy.domain), "a job that is not ours goes on");
    assert_eq!(lost.checkpoints(), [""; 0]);
    assert_eq!(repo.partials(), [] as [std::path::PathBuf; 0]);
    busy.domain.virsh(&["domjobabort"]);

    let told = repo.backup(&names, &["--quiet"]);
    assert_eq!(told.code, Some(9), "{told:#?}");
    assert_eq!(told.stdout.lines().count(), 3, "{told:#?}");
    assert!(
        told.stderr.contains("1 of 4 domains failed") && told.stderr.contains(lost.name()),
        "{told:#?}"
    );
}

#[test]
fn unmatched_pattern_is_reported_and_others_are_processed() {
    let daemon = Daemon::acquire();
    let machine = Machine::define(&daemon, "matched", &[MIB]);
    let repo = Repo::new();
    let name = machine.name();
    let glob = format!("{}-matche?", name.trim_end_matches("-matched"));
    let list = format!("{glob}, no-such-domain");
    let finished = repo.backup(&[], &["--domains", &list, "--json"]);
    assert_eq!(finished.code, Some(1), "{finished:#?}");
    assert!(
        finished
            .stderr
            .contains("No matching domains found for: no-such-domain")
    );
    let document = json(&finished);
    assert_eq!(
        (&document["exitCode"], &document["unmatched"]),
        (&1.into(), &serde_json::json!(["no-such-domain"]))
    );
    assert_eq!(outcome_of(&finished, name)["outcome"], "ok");

    let dry = repo.backup(&[name, "no-such-domain"], &["--dry-run"]);
    assert_eq!(dry.code, Some(1), "{dry:#?}");
    assert!(dry.stdout.contains("incremental backup"), "{dry:#?}");
}

#[test]
fn usage_errors_have_an_exit_code_and_a_message() {
    let daemon = Daemon::acquire();
    let machine = Machine::define(&daemon, "typed", &[MIB]);
    let repo = Repo::new();
    let (name, root) = (machine.name(), repo.root().display().to_string());
    let refused = |args: &[&str], code: i32, words: &str| {
        let finished = repo.run(args);
        assert_eq!(
            (finished.code, finished.stdout.as_str()),
            (Some(code), ""),
            "{finished:#?}"
        );
        assert!(finished.stderr.contains(words), "{finished:#?}");
    };
    let to = ["--output", &root, "--connect", URI];
    refused(&[&["backup"], &to[..]].concat(), 1, "No domains specified");
    refused(
        &[&["backup", "--domains", " , "], &to[..]].concat(),
        1,
        "No domains specified",
    );
    refused(
        &["backup", name, "--connect", URI],
        2,
        "No output directory specified",
    );
    let nowhere = repo.beside("no/such/folder").display().to_string();
    refused(
        &["backup", name, "--output", &nowhere, "--connect", URI],
        2,
        "no/such/folder",
    );
    refused(
        &[&["backup", name, "--group-by", "week"], &to[..]].concat(),
        10,
        "invalid --group-by 'week'",
    );
    refused(
        &[&["backup", name, "--ouput", &root], &to[2..]].concat(),
        64,
        "--output",
    );
    refused(
        &[&["backup", name, "--freeze-timeout", "soon"], &to[..]].concat(),
        64,
        "soon",
    );
    refused(
        &["restore", name, "--repository", &root, "--to", &nowhere],
        1,
        name,
    );
    assert_eq!(repo.tree(), []);
    assert_eq!(machine.checkpoints(), [""; 0]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "dry", &[MIB]);
    let repo = Repo::new();
    let name = machine.name().to_owned();
    let plan = |level: &str| {
        let told: Finished = repo.backup(&[&name], &["--dry-run"]);
        assert_eq!(told.code, Some(0), "{told:#?}");
        assert!(
            told.stdout.contains(&format!("{name}: {level} backup into")),
            "{told:#?}"
        );
        assert!(told.stdout.contains("  create a checkpoint\n"), "{told:#?}");
    };
    plan("a full");
    assert_eq!(repo.tree(), []);
    assert_eq!(machine.checkpoints(), [""; 0]);

    repo.back_up(&name, &[]);
    machine.change(0, 0, 65536, Change::Data(5));
    let before = (repo.tree(), machine.checkpoints());
    plan("an incremental");
    assert_eq!((repo.tree(), machine.checkpoints()), before);

    let made = repo.back_up(&name, &[]);
    assert_eq!(made["restorePoint"]["disks"][0]["dataBytes"], 65536);
    let (root, to) = (
        repo.root().display().to_string(),
        repo.beside("to").display().to_string(),
    );
    let told = repo.run(&["restore", &name, "--repository", &root, "--to", &to, "--dry-run"]);
    assert_eq!(told.code, Some(0), "{told:#?}");
    assert!(!repo.beside("to").exists());
}

#[test]
fn a_second_run_says_at_once_who_holds_the_domain() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, "held", &[64 * MIB]);
    machine.fill(0, 1);
    let other = Machine::define(&daemon, "not-held", &[MIB]);
    let repo = Repo::new();
    let mut first = repo.begin_backup(&[machine.name()], &["--json"]);
    first.hold_in_mid_copy();

    let second = repo.backup(&[machine.name(), other.name()], &["--json"]);
    assert_eq!(second.code, Some(3), "{second:#?}");
    let refused = outcome_of(&second, machine.name());
    let message = text_of(&refused["error"]["message"]);
    let holder = format!("process {}", first.id());
    assert!(
        message.contains("locked by another run") && message.contains(&holder),
        "{message}"
    );
    assert_eq!(outcome_of(&second, other.name())["outcome"], "ok");
    // Reading commands do not need the lock.
    assert_eq!(repo.list(machine.name()).len(), 0);

    first.signal(Signal::CONT);
    let first = first.wait(std::time::Duration::from_secs(60));
    assert_eq!(first.code, Some(0), "{first:#?}");
    machine.assert_restored(&repo.restore(machine.name(), "latest", "raw"), &machine.disks);
}

#[test]
fn never_saved_domain_fails_a_comparison_only_if_named() {
    let daemon = Daemon::acquire();
    let saved = Machine::paused(&daemon, "compared-saved", &[MIB]);
    let never = Machine::paused(&daemon, "compared-never", &[MIB]);
    let repo = Repo::new();
    repo.back_up(saved.name(), &[]);
    let root = repo.root().display().to_string();
    let compare = |domain: &str| repo.run(&["verify", "--compare-live", domain, "--repository", &root]);

    let finished = compare("*-compared-*");
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(finished.stdout.contains(saved.name()), "{finished:#?}");
    assert!(finished.stderr.contains(never.name()), "{finished:#?}");
    assert_eq!(compare(never.name()).code, Some(1));
    // A pattern without any match is an error.
    let finished = compare("*-compared-never");
    assert_eq!(finished.code, Some(1), "{finished:#?}");
    assert!(finished.stderr.contains("nothing to compare"), "{finished:#?}");
}
