//! Backups and pruning in the classic spelling, as in cron, on real domains, over several periods.

use crate::cli_lab::{Change, Machine, json};
use crate::cli_refusals::begin_foreign_job;
use crate::cli_user::{User, golden, says};
use crate::daemon::{Daemon, TestDomain};

const MIB: usize = 1 << 20;

/// A name that a shell would interpret; it must stay a name.
const SHELL: &str = "$(touch PWNED) `touch PWNED`; touch PWNED & \"b\" 'c' *?[x]";

const Q2: &str = "vmsnap-backup-quarterly-2026-Q2";
const Q3: &str = "vmsnap-backup-quarterly-2026-Q3";
const OCTOBER: &str = "vmsnap-backup-monthly-2026-10";
const NOVEMBER: &str = "vmsnap-backup-monthly-2026-11";

/// The stderr of a run for a domain with one disk.
fn steps(level: &str, reason: &str, copied: &str) -> String {
    format!("VM1 vda: {level}, {reason}\nVM1 vda: done, {copied} copied\n")
}

/// Faults 2, 7, 14 and 15: pruning without `--prune` and with `--prune=false`, names that reach a
/// shell, blanks in paths, another language.
#[test]
fn a_season_in_the_classic_spelling() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::paused(&daemon, SHELL, &[4 * MIB]);
    machine.change(0, 0, MIB, Change::Data(1));
    let user = User::new();
    let domains = format!("--domains={}", machine.name());
    let classic = [&domains, "--backup", "--output=OUT", "--groupBy=quarter"];
    let kebab = ["--group-by", "quarter", "--backup", "--output", "OUT", &domains];

    says(
        &user.on("2026-05-20", &classic),
        &[&machine],
        0,
        "VM1: full backup ID, 1 disk, 1.05 MB in TIME (RATE), stored in SIZE, crash-consistent\n",
        &steps("full", "first of the period", "1.05 MB"),
    );
    assert_eq!(user.periods(&machine), [Q2]);
    let first = machine.checkpoints();
    assert_eq!(first.len(), 1);

    machine.change(0, 2 * MIB, 65536, Change::Data(2));
    says(
        &user.on("2026-06-30", &kebab),
        &[&machine],
        0,
        "VM1: incremental backup ID, 1 disk, 65.5 kB in TIME (RATE), stored in SIZE, crash-consistent\n",
        &steps("incremental", "changes since ID", "65.5 kB"),
    );
    let both = machine.checkpoints();
    assert!(both.len() == 2 && both.contains(&first[0]), "{both:?}");

    // 44 whole days of the new quarter are one day short of its middle.
    let stays = format!("VM1: pruned nothing: {Q2} stays: {Q3} is not past its midpoint yet\n");
    says(
        &user.on("2026-08-14", &[&classic[..], &["--prune"]].concat()),
        &[&machine],
        0,
        &format!(
            "VM1: full backup ID, 1 disk, 1.11 MB in TIME (RATE), stored in SIZE, crash-consistent\n{stays}"
        ),
        &steps("full", "first of the period", "1.11 MB"),
    );
    assert_eq!(user.periods(&machine), [Q2, Q3]);
    let left = machine.checkpoints();
    assert!(
        left.len() == 1 && !both.contains(&left[0]),
        "the old checkpoints were removed after the new full: {left:?}"
    );

    let not_meant = [
        &[][..],
        &["--prune=false"],
        &["--no-prune"],
        &["--prune", "--prune=false"],
    ];
    for (day, more) in ["2026-08-15", "2026-08-16", "2026-08-17", "2026-08-18"]
        .iter()
        .zip(not_meant)
    {
        says(
            &user.on(day, &[&classic[..], more].concat()),
            &[&machine],
            0,
            "VM1: incremental backup ID, 1 disk, no changes, TIME, crash-consistent\n",
            &steps("incremental", "changes since ID", "nothing"),
        );
        assert_eq!(user.periods(&machine), [Q2, Q3], "{more:?}");
    }
    let pruned = user.on("2026-08-19", &[&kebab[..], &["--prune=true", "--quiet"]].concat());
    says(
        &pruned,
        &[&machine],
        0,
        &format!(
            "VM1: incremental backup ID, 1 disk, no changes, TIME, crash-consistent\nVM1: pruned {Q2}\n"
        ),
        "",
    );
    assert_eq!(user.periods(&machine), [Q3]);
    machine.assert_restored(
        &user.repo.restore(machine.name(), "latest", "raw"),
        &machine.disks,
    );
}

/// Fault 1: a failed backup exits 0, and pruning still runs and can delete the last good chain.
/// Fault 2: without `--groupBy`, `--prune` never prunes. Fault 9: one missing domain ends the whole
/// run.
#[test]
fn failed_backup_with_prune_keeps_everything_and_stops_no_other() {
    let daemon = Daemon::acquire();
    let bad = Machine::define(&daemon, "bad", &[MIB]);
    let good = Machine::define(&daemon, "good", &[MIB]);
    let user = User::new();
    let domains = format!("--domains={},{}", bad.name(), good.name());
    let words = [&domains, "--backup", "--output=OUT", "--prune"];
    says(
        &user.on("2026-10-20", &[&words[..], &["-q"]].concat()),
        &[&bad, &good],
        0,
        "VM1: full backup ID, 1 disk, no data, TIME, shut off\n\
         VM1: pruned nothing: there is no vmsnap-backup-monthly-2026-09\n\
         VM2: full backup ID, 1 disk, no data, TIME, shut off\n\
         VM2: pruned nothing: there is no vmsnap-backup-monthly-2026-09\n",
        "",
    );
    let kept = user.repo.tree();

    std::fs::remove_file(bad.image(0)).expect("it is there");
    let with_gone = format!("{domains},gone");
    let words_with_gone = [&with_gone, "--backup", "--output=OUT", "--prune", "-q"];
    let finished = user.on("2026-11-16", &words_with_gone);
    assert_eq!(
        finished.code,
        Some(1),
        "the first kind of failure in the table: {finished:#?}"
    );
    let stderr = golden(&finished.stderr, &[&bad, &good]);
    let (_, summary) = stderr
        .split_once("vmsnap: 2 of 3 domains failed:\n")
        .expect("a summary");
    let [gone, reason] = summary.lines().collect::<Vec<_>>()[..] else {
        panic!("{finished:#?}")
    };
    assert_eq!(gone, "  No matching domains found for: gone");
    assert!(
        reason.starts_with("  VM1, disk vda: ") && reason.contains("vda.qcow2"),
        "{reason}"
    );
    assert_eq!(
        golden(&finished.stdout, &[&bad, &good]),
        format!("VM2: full backup ID, 1 disk, no data, TIME, shut off\nVM2: pruned {OCTOBER}\n")
    );
    assert_eq!(user.periods(&good), [NOVEMBER]);
    assert_eq!(user.periods(&bad), [OCTOBER]);
    // The lock names a process, and process ids differ in length.
    for (path, size) in kept
        .iter()
        .filter(|(path, _)| path.display().to_string().contains(bad.name()) && !path.ends_with(".lock"))
    {
        assert_eq!(
            std::fs::metadata(path)
                .map(|found| found.is_dir() || found.len() == *size)
                .ok(),
            Some(true),
            "{}",
            path.display()
        );
    }
    let finished = user.on("2026-11-17", &[&words[..], &["-q"]].concat());
    assert_eq!(finished.code, Some(9), "{finished:#?}");
    assert_eq!(user.periods(&bad), [OCTOBER]);
}

/// Fault 10: a failed first full leaves its folder; every later run of the period fails, with exit
/// code 0.
#[test]
fn next_run_makes_the_full_that_failed_first() {
    let daemon = Daemon::acquire();
    let machine = Machine::paused(&daemon, "first", &[MIB]);
    let user = User::new();
    let words = [
        &format!("--domains={}", machine.name()),
        "--backup",
        "--output=OUT",
        "--groupBy=bi-annual",
    ];
    begin_foreign_job(&machine);
    says(
        &user.on("2026-11-16", &words),
        &[&machine],
        9,
        "",
        "vmsnap: VM1: another job (backup) is active on the domain\n\
         hint: wait for that job to end (`virsh domjobinfo` shows it), or end it with `virsh domjobabort`\n",
    );
    assert_eq!(user.periods(&machine), [""; 0]);
    assert_eq!(machine.checkpoints(), [""; 0]);
    machine.domain.virsh(&["domjobabort"]);
    says(
        &user.on("2026-11-17", &words),
        &[&machine],
        0,
        "VM1: full backup ID, 1 disk, no data, TIME, crash-consistent\n",
        &steps("full", "first of the period", "nothing"),
    );
    assert_eq!(user.periods(&machine), ["vmsnap-backup-bi-annually-2026-p2"]);
    assert_eq!(machine.checkpoints().len(), 1);
}

/// Fault 15: `--domains=101` matches nothing, `--backup=false` backs up.
#[test]
fn domain_with_a_numeric_name_is_backed_up() {
    let daemon = Daemon::acquire();
    let number = format!("101{}", std::process::id());
    let machine = Machine::of(TestDomain::named(&daemon, &number), &daemon, &[MIB]);
    let user = User::new();
    let domains = format!("--domains={number}");
    let no_backup = user.on(
        "2026-11-16",
        &[&domains, "--backup=false", "--output=OUT", "--machine", "--json"],
    );
    assert_eq!(
        (no_backup.code, no_backup.stderr.as_str()),
        (Some(0), ""),
        "{no_backup:#?}"
    );
    assert!(
        no_backup
            .stdout
            .starts_with(&format!("{{\"{number}\":{{\"checkpoints\":[]")),
        "{no_backup:#?}"
    );
    assert_eq!(user.repo.tree(), []);
    says(
        &user.on(
            "2026-11-16",
            &[&domains, "--backup", "--output=OUT", "--groupBy=year", "-q"],
        ),
        &[&machine],
        0,
        "VM1: full backup ID, 1 disk, no data, TIME, shut off\n",
        "",
    );
    assert_eq!(user.periods(&machine), ["vmsnap-backup-yearly-2026"]);
    assert_eq!(machine.checkpoints().len(), 1);
}

/// Fault 3: local time decides the folder.
#[test]
fn the_folder_follows_local_time_where_clocks_change() {
    let daemon = Daemon::acquire();
    let machine = Machine::define(&daemon, "clocks", &[MIB]);
    let user = User::new();
    for (time, by, folder) in [
        (
            "2024-12-31T23:59:50-05:00[America/New_York]",
            "year",
            "yearly-2024",
        ),
        ("2025-01-01T05:59:50+01:00[Europe/Berlin]", "year", "yearly-2025"),
        (
            "2024-03-31T03:00:10+02:00[Europe/Berlin]",
            "quarter",
            "quarterly-2024-Q1",
        ),
        (
            "2018-11-04T01:00:10-02:00[America/Sao_Paulo]",
            "month",
            "monthly-2018-11",
        ),
        (
            "2011-12-29T23:59:30-10:00[Pacific/Apia]",
            "bi-annual",
            "bi-annually-2011-p2",
        ),
        (
            "2012-01-01T00:00:10+14:00[Pacific/Apia]",
            "bi-annual",
            "bi-annually-2012-p1",
        ),
        (
            "2024-06-30T23:59:30+02:00[Europe/Berlin]",
            "bi-annual",
            "bi-annually-2024-p1",
        ),
    ] {
        let words = [
            "--domains",
            machine.name(),
            "--json",
            "--machine",
            "--output=OUT",
            "--groupBy",
            by,
        ];
        let status = user.at(time, &words);
        let path = format!(
            "{}/{}/vmsnap-backup-{folder}",
            user.repo.root().display(),
            machine.name()
        );
        assert_eq!(
            json(&status)[machine.name()]["backupDirStats"]["path"],
            path,
            "{time}"
        );
    }
}

/// Direct monitor commands taint a domain. vmsnap uses none of them.
#[test]
fn no_command_of_ours_taints_a_domain() {
    let daemon = Daemon::acquire();
    let machine = Machine::paused(&daemon, "taint", &[MIB]);
    let messages = || {
        let told = machine.domain.virsh(&["dominfo"]);
        let lines = told
            .lines()
            .filter(|line| line.contains("tainted"))
            .map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    let before = messages();
    let user = User::new();
    let domains = format!("--domains={}", machine.name());
    for (day, words) in [
        ("2026-11-16", &["--backup", "--output=OUT", "-q"][..]),
        ("2026-11-17", &["--backup", "--output=OUT", "-q"]),
        ("2026-11-17", &["--status", "--output=OUT", "-vv"]),
        ("2026-11-17", &["--scrub", "--scrubType=both"]),
    ] {
        let finished = user.on(day, &[&[domains.as_str()], words].concat());
        assert_eq!(finished.code, Some(0), "{finished:#?}");
    }
    assert_eq!(messages(), before);
    machine
        .domain
        .virsh(&["qemu-monitor-command", "--hmp", "--cmd", "info name"]);
    assert_eq!(messages().len(), before.len() + 1, "a taint would be reported");
}
