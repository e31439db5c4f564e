//! The program itself, as cron and scripts call it, against libvirt's `test:///` driver: domains of the test's own whose disks are real
//! images. Nothing runs, so shut-off domains can be backed up and running ones cannot, which is a failure made to order.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::process::{COMMAND_DEADLINE, Finished, command, run, try_run};

/// Shut off, as the driver's own XML says it.
const SHUT_OFF: u32 = 5;
const RUNNING: u32 = 1;

/// What a domain's name must never become.
const NASTY: &str = "a $(touch PWNED) `touch PWNED`; touch PWNED & \"b\" 'c' *?[x]";

/// A hypervisor of a node file's making.
struct Node {
    folder: tempfile::TempDir,
    domains: Vec<(String, u32)>,
}

impl Node {
    /// Domains of these names and states, each with a disk `vda`.
    fn new(domains: &[(&str, u32)]) -> Node {
        let folder = tempfile::Builder::new().prefix("vmsnap test driver ").tempdir();
        let node = Node {
            folder: folder.expect("a folder"),
            domains: domains
                .iter()
                .map(|(name, state)| ((*name).to_owned(), *state))
                .collect(),
        };
        for number in 0..node.domains.len() {
            let image = node.image(number);
            let create = [
                "create",
                "-q",
                "-f",
                "qcow2",
                image.to_str().expect("UTF-8"),
                "1M",
            ];
            run(command("qemu-img", &create));
        }
        node.write();
        fs::create_dir(node.backups()).expect("it is made");
        node
    }

    /// libvirt reads the file at each start of the program.
    fn write(&self) {
        let domains = self.domains.iter().enumerate().map(|(number, (name, state))| {
            format!(
                "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
                 <name>{}</name><uuid>00000000-0000-4000-8000-{number:012}</uuid><memory>8192</memory>\
                 <os><type>hvm</type></os><devices><disk type='file' device='disk'>\
                 <driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
                 </devices><test:runstate>{state}</test:runstate></domain>",
                escape(name),
                escape(self.image(number).to_str().expect("UTF-8")),
            )
        });
        let xml = format!("<node>{}</node>", domains.collect::<String>());
        fs::write(self.path("node.xml"), xml).expect("it is written");
    }

    fn set_state(&mut self, number: usize, state: u32) {
        self.domains[number].1 = state;
        self.write();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, number: usize) -> PathBuf {
        self.path(&format!("disk {number}.qcow2"))
    }

    fn backups(&self) -> PathBuf {
        self.path("my backups")
    }

    /// Runs the program in the node's folder; `OUT` stands for the folder of the backups.
    fn vmsnap(&self, words: &[&str]) -> Finished {
        self.vmsnap_with(words, &[])
    }

    fn vmsnap_with(&self, words: &[&str], environment: &[(&str, &str)]) -> Finished {
        let out = self.backups();
        let out = out.to_str().expect("UTF-8");
        let words: Vec<String> = words.iter().map(|word| word.replace("OUT", out)).collect();
        let mut program = command(env!("CARGO_BIN_EXE_vmsnap"), &words);
        let node = self.path("node.xml").display().to_string();
        let uri = format!("test://{}", node.replace(" ", "%20"));
        program.current_dir(self.folder.path());
        program.env("VMSNAP_CONNECT", uri).env_remove("VMSNAP_REPOSITORY");
        program.envs(environment.iter().copied());
        try_run(program, COMMAND_DEADLINE)
    }

    /// The folders of a domain's periods.
    fn periods(&self, domain: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.backups().join(domain)).into_iter().flatten();
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.is_dir()).collect()
    }

    fn restore_points(&self, domain: &str) -> usize {
        let periods = self.periods(domain);
        let points = periods
            .iter()
            .flat_map(|period| fs::read_dir(period).expect("a folder"));
        let paths = points.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.join("manifest.json").is_file()).count()
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[track_caller]
fn ends(finished: &Finished, code: i32, stderr: &str) {
    assert_eq!(finished.code, Some(code), "{finished:#?}");
    assert!(finished.stderr.contains(stderr), "{finished:#?}");
}

const VM1: &str = "Status for vm1:
  Overall status: OK
  No checkpoints found for vm1
  Eligible disks found for vm1:
    vda
      Virtual size: 1099506450432
      Actual size: 1099511627776
      No bitmaps found for vda
  State: running
";

#[test]
fn without_any_word_it_tells_how_all_domains_stand() {
    let node = Node::new(&[("vm1", RUNNING), ("vm2", SHUT_OFF)]);
    let all = node.vmsnap(&[]);
    ends(&all, 0, "");
    assert_eq!(all.stderr, "");
    assert!(all.stdout.starts_with(VM1), "{}", all.stdout);
    assert!(all.stdout.contains("\nStatus for vm2:\n"), "{}", all.stdout);
    assert!(!all.stdout.contains('\u{1b}'), "no colours in a pipe");
    for words in [
        &["--domains=vm1"][..],
        &["--status", "--domains", "vm1"],
        &["status", "vm1"],
    ] {
        assert_eq!(node.vmsnap(words).stdout, VM1, "{words:?}");
    }
    assert_eq!(node.vmsnap(&["--domains=*"]).stdout, all.stdout);
}

#[test]
fn colours_come_where_they_are_wanted() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let forced = node.vmsnap_with(&[], &[("CLICOLOR_FORCE", "1")]);
    assert!(
        forced.stdout.contains("\u{1b}[35mvm1\u{1b}[0m"),
        "{}",
        forced.stdout
    );
    let refused = node.vmsnap_with(&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]);
    assert_eq!(refused.stdout, VM1);
}

#[test]
fn bitmaps_of_a_shut_off_domain_are_read_and_judged() {
    let node = Node::new(&[("vm1", SHUT_OFF)]);
    for bitmap in ["foreign", "virtnbdbackup.3"] {
        let image = node.image(0);
        let add = ["bitmap", "--add", image.to_str().expect("UTF-8"), bitmap];
        run(command("qemu-img", &add));
    }
    let status = node.vmsnap(&[]);
    ends(&status, 0, "");
    let expected = "  Overall status: INCONSISTENT\n";
    assert!(status.stdout.contains(expected), "{}", status.stdout);
    let bitmaps = "      Bitmaps found for vda:\n          foreign\n          virtnbdbackup.3\n";
    assert!(status.stdout.contains(bitmaps), "{}", status.stdout);
}

/// Fault 12: errors go to stdout, and `--verbose` breaks the JSON.
#[test]
fn stdout_has_the_answer_only_whatever_is_told_besides() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let json = ["--domains=vm1,gone", "--json", "--machine"];
    let plain = node.vmsnap(&json);
    for more in [
        &["--verbose"][..],
        &["-vv"],
        &["-q"],
        &["-v", "--log-format=json"],
    ] {
        let told = node.vmsnap(&[&json[..], more].concat());
        ends(&told, 1, "No matching domains found for: gone");
        assert_eq!(told.stdout, plain.stdout, "{more:?}");
    }
    let value: serde_json::Value = serde_json::from_str(&plain.stdout).expect("JSON");
    assert_eq!(value["vm1"]["overallStatus"], 0);
    assert_eq!(lines(&plain.stdout).len(), 1);
    let verbose = node.vmsnap(&["--verbose", "--log-format=json"]);
    for line in lines(&verbose.stderr) {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(entry["time"].is_string() && entry["level"] == "debug", "{line}");
    }
    assert!(lines(&verbose.stderr).len() >= 2, "{verbose:#?}");
}

#[test]
fn json_and_yaml_stand_in_frames_and_yaml_wins() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let rule = "-".repeat(80);
    let json = node.vmsnap(&["--json", "--output=OUT"]).stdout;
    assert!(
        json.starts_with(&format!("JSON:\n{rule}\n{{\n  \"vm1\": {{\n")),
        "{json}"
    );
    assert!(json.ends_with(&format!("\n}}\n{rule}\n")), "{json}");
    let out = node.backups();
    let stats = format!("\"path\": \"{}/vm1/vmsnap-backup-monthly-", out.display());
    assert!(json.contains(&stats), "{json}");
    for words in [
        &["--yml", "--json"][..],
        &["--json", "--yaml=true"],
        &["status", "--yaml"],
    ] {
        let yaml = node.vmsnap(words).stdout;
        assert!(
            yaml.starts_with(&format!("YAML:\n{rule}\nvm1:\n  checkpoints: []\n")),
            "{yaml}"
        );
        assert!(yaml.ends_with(&format!("\n{rule}\n")), "{yaml}");
    }
    let bare = node.vmsnap(&["--yaml", "--machine"]).stdout;
    assert!(
        bare.starts_with("vm1:\n  checkpoints: []\n  disks:\n    - disk: \"vda\"\n"),
        "{bare}"
    );
}

#[test]
fn every_mistake_has_its_message_and_its_code() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let cases: [(&[&str], i32, &str); 14] = [
        (&["--backup"], 1, "No domains specified"),
        (&["--backup", "--domains="], 1, "No domains specified"),
        (&["--domains= , "], 1, "No domains specified"),
        (&["--domains=nope*"], 1, "No matching domains found for: nope*"),
        (
            &["--backup", "--domains=nope", "--output=OUT"],
            1,
            "No matching domains found for: nope",
        ),
        (&["--backup", "--domains=vm1"], 2, "No output directory specified"),
        (
            &["--backup", "--domains=vm1", "--output="],
            2,
            "No output directory specified",
        ),
        (
            &["--backup", "--domains=vm1", "--output=/nowhere/at/all"],
            2,
            "/nowhere/at/all cannot be used",
        ),
        (
            &["--domains=vm1", "--output="],
            2,
            "No output directory specified",
        ),
        (&["--connect=nonsense:///"], 3, "cannot connect to nonsense:///"),
        (
            &["--backup", "--scrub", "--domains=vm1"],
            7,
            "Only one command can be run at a time",
        ),
        (&["--domain=vm1"], 64, "did you mean '--domains'?"),
        (&["vm1"], 64, "there is no command 'vm1'"),
        (&["--domains"], 64, "a value is required for '--domains <LIST>'"),
    ];
    for (words, code, message) in cases {
        let finished = node.vmsnap(words);
        ends(&finished, code, message);
        assert_eq!(finished.stdout, "", "{words:?}");
    }
}

/// Fault 4: an invalid `--groupBy` writes into a folder named `undefined`.
#[test]
fn an_invalid_grouping_is_refused_before_anything_is_written() {
    let node = Node::new(&[("vm1", SHUT_OFF)]);
    for words in [
        ["--backup", "--groupBy=weekly"],
        ["backup", "--group-by=Month"],
        ["--status", "--groupBy="],
    ] {
        let finished = node.vmsnap(&[&words[..], &["--domains=vm1", "--output=OUT"]].concat());
        ends(&finished, 10, "month, quarter, bi-annual, year");
    }
    assert_eq!(fs::read_dir(node.backups()).expect("a folder").count(), 0);
}

/// Faults 9 and 1: one missing domain ends the whole run, and a failed backup exits 0.
#[test]
fn what_fails_stops_no_other_and_is_named_at_the_end() {
    let node = Node::new(&[("good", SHUT_OFF), ("running", RUNNING)]);
    let words = ["--backup", "--domains=gone,running,good", "--output=OUT"];
    let finished = node.vmsnap(&words);
    ends(&finished, 1, "No matching domains found for: gone");
    assert_eq!(node.restore_points("good"), 1);
    assert!(finished.stdout.starts_with("good: full backup "), "{finished:#?}");
    let summary = finished
        .stderr
        .split("vmsnap: 2 of 3 failed:\n")
        .nth(1)
        .expect("a summary");
    assert!(
        summary.contains("  No matching domains found for: gone\n"),
        "{summary}"
    );
    assert!(summary.contains("  running: libvirt could not "), "{summary}");
    let finished = node.vmsnap(&["backup", "running", "good", "-o", "OUT", "-q"]);
    ends(&finished, 9, "vmsnap: running: libvirt could not ");
    assert_eq!(node.restore_points("good"), 2);
    assert_eq!(node.restore_points("running"), 0);
}

/// Fault 1: a failed backup still prunes.
#[test]
fn a_failed_backup_with_prune_deletes_nothing() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let mut kept = Vec::new();
    for year in 2020..=2040 {
        let old = node.backups().join(format!("vm1/vmsnap-backup-yearly-{year}"));
        fs::create_dir_all(&old).expect("it is made");
        fs::write(old.join("precious"), "x").expect("it is written");
        kept.push(old.join("precious"));
    }
    let words = [
        "--backup",
        "--domains=vm1",
        "--output=OUT",
        "--groupBy=year",
        "--prune",
    ];
    ends(&node.vmsnap(&words), 9, "vm1");
    assert!(kept.iter().all(|old| old.is_file()));
}

/// Faults 2 and 15: pruning without `--prune`, and with `--prune=false`.
#[test]
fn only_a_prune_that_is_meant_prunes() {
    let node = Node::new(&[("vm1", SHUT_OFF)]);
    for words in [
        &[][..],
        &["--prune=false"],
        &["--no-prune"],
        &["--prune", "--prune=false"],
    ] {
        let classic = [
            "--backup",
            "--domains=vm1",
            "--output=OUT",
            "--groupBy=year",
            "--dry-run",
            "--json",
        ];
        let plan = node.vmsnap(&[&classic[..], words].concat());
        ends(&plan, 0, "");
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("JSON");
        assert!(plan["domains"][0]["prune"]["keep"].is_null(), "{plan}");
        assert!(plan["domains"][0]["prune"]["delete"].is_null(), "{plan}");
    }
    let meant = [
        "backup",
        "vm1",
        "--output",
        "OUT",
        "--group-by=year",
        "--prune",
        "--dry-run",
    ];
    let plan = node.vmsnap(&meant);
    assert!(
        plan.stdout
            .contains("  prune nothing: there is no vmsnap-backup-yearly-"),
        "{plan:#?}"
    );
}

/// Fault 15: `--backup=false` backs up.
#[test]
fn a_backup_that_is_not_meant_is_a_status() {
    let node = Node::new(&[("vm1", RUNNING)]);
    for word in ["--backup=false", "--no-backup"] {
        let finished = node.vmsnap(&["--domains=vm1", word, "--output=OUT"]);
        ends(&finished, 0, "");
        assert!(finished.stdout.starts_with("Status for vm1:\n"), "{finished:#?}");
    }
    assert_eq!(fs::read_dir(node.backups()).expect("a folder").count(), 0);
}

/// Fault 15: `--domains=101` matches nothing.
#[test]
fn a_number_is_a_name() {
    let node = Node::new(&[("101", SHUT_OFF), ("007", RUNNING)]);
    let status = node.vmsnap(&["--domains=101,007", "--json", "--machine"]);
    ends(&status, 0, "");
    assert!(status.stdout.starts_with("{\"101\":{"), "{status:#?}");
    assert!(status.stdout.contains(",\"007\":{"), "{status:#?}");
    ends(
        &node.vmsnap(&["--backup", "--domains=101", "--output=OUT"]),
        0,
        "",
    );
    assert_eq!(node.restore_points("101"), 1);
}

/// Fault 7: names reach a shell unquoted.
#[test]
fn a_name_made_of_shell_words_is_only_a_name() {
    let node = Node::new(&[(NASTY, SHUT_OFF)]);
    let status = node.vmsnap(&[]);
    ends(&status, 0, "");
    assert!(
        status.stdout.starts_with(&format!("Status for {NASTY}:\n")),
        "{status:#?}"
    );
    for words in [
        &["--backup", "--domains=a $*"][..],
        &["backup", NASTY],
        &["backup", NASTY, "--prune"],
    ] {
        ends(&node.vmsnap(&[words, &["--output=OUT"]].concat()), 0, "");
    }
    assert_eq!(node.restore_points(NASTY), 3);
    let yaml = node.vmsnap(&["--yaml", "--machine"]).stdout;
    assert!(
        yaml.starts_with(&format!("{}:\n", serde_json::to_string(NASTY).expect("JSON"))),
        "{yaml}"
    );
    assert!(!node.path("PWNED").exists());
}

/// Fault 10: a failed first full leaves the folder behind, and every later run of the period fails.
#[test]
fn after_a_failed_first_full_the_next_run_makes_it() {
    let mut node = Node::new(&[("vm1", RUNNING)]);
    let words = ["--backup", "--domains=vm1", "--output=OUT"];
    ends(&node.vmsnap(&words), 9, "vm1");
    assert_eq!(node.restore_points("vm1"), 0);
    node.set_state(0, SHUT_OFF);
    let second = node.vmsnap(&words);
    ends(&second, 0, "");
    assert!(second.stdout.starts_with("vm1: full backup "), "{second:#?}");
    assert_eq!(node.restore_points("vm1"), 1);
}

/// Fault 11: one lock for everything, without an owner, for which status waits too.
#[test]
fn a_lock_is_per_domain_names_its_holder_and_hinders_no_status() {
    let node = Node::new(&[("vm1", SHUT_OFF), ("vm2", SHUT_OFF)]);
    let backup = |domains| node.vmsnap(&["--backup", domains, "--output=OUT"]);
    ends(&backup("--domains=vm1,vm2"), 0, "");
    let lock = File::options()
        .write(true)
        .open(node.backups().join("vm1/.lock"))
        .expect("it is there");
    lock.try_lock().expect("nobody holds it now");
    fs::write(node.backups().join("vm1/.lock"), "process 4711\n").expect("it is written");
    let hindered = backup("--domains=vm1,vm2");
    assert!(
        hindered
            .stderr
            .contains("is locked by another run (process 4711)"),
        "{hindered:#?}"
    );
    assert_eq!((node.restore_points("vm1"), node.restore_points("vm2")), (1, 2));
    assert_eq!(hindered.code, Some(3), "{hindered:#?}");
    ends(&node.vmsnap(&["--domains=vm1", "--output=OUT"]), 0, "");
    drop(lock);
    ends(&backup("--domains=vm1"), 0, "");
}

/// Fault 14: paths with blanks are cut, and a localized `virsh` makes every domain look offline.
#[test]
fn blanks_in_paths_and_other_languages_change_nothing() {
    let node = Node::new(&[("vm 1", RUNNING), ("vm2", SHUT_OFF)]);
    let german = [
        ("LANG", "de_DE.UTF-8"),
        ("LC_ALL", "de_DE.UTF-8"),
        ("LANGUAGE", "de"),
    ];
    let words = ["--json", "--machine", "--output=OUT"];
    let status = node.vmsnap_with(&words, &german);
    ends(&status, 0, "");
    assert_eq!(status.stdout, node.vmsnap(&words).stdout);
    let value: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(value["vm 1"]["state"], "running");
    assert_eq!(value["vm 1"]["disks"][0]["disk"], "vda");
    let made = node.vmsnap_with(&["--backup", "--domains=vm2", "--output=OUT"], &german);
    ends(&made, 0, "");
    assert_eq!(node.restore_points("vm2"), 1);
}

#[test]
fn missing_programs_are_named_with_their_packages_where_they_are_needed() {
    let node = Node::new(&[("off", SHUT_OFF), ("vm1", RUNNING)]);
    let nothing = [("PATH", "/nowhere")];
    let status = node.vmsnap_with(&[], &nothing);
    ends(&status, 4, "vmsnap: Missing dependencies (qemu-img)\n");
    assert!(
        status.stderr.contains("qemu-utils (Debian), qemu-img (Fedora)"),
        "{status:#?}"
    );
    assert_eq!(status.stdout, VM1, "the others are still told");
    let backup = node.vmsnap_with(&["--backup", "--domains=off", "--output=OUT"], &nothing);
    ends(&backup, 4, "vmsnap: Missing dependencies (qemu-img, qemu-nbd)\n");
    ends(&node.vmsnap_with(&["--domains=vm1"], &nothing), 0, "");
}

#[test]
fn completions_and_manual_pages_are_printed() {
    let node = Node::new(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let script = node.vmsnap(&["completions", shell]);
        ends(&script, 0, "");
        assert!(script.stdout.contains("group-by"), "{shell}");
    }
    ends(&node.vmsnap(&["completions", "cmd.exe"]), 64, "bash");
    let page = node.vmsnap(&["man", "status"]);
    ends(&page, 0, "");
    assert!(
        page.stdout.contains(".SH \"EXIT STATUS\"") && page.stdout.contains("vmsnap\\-status"),
        "{page:#?}"
    );
    ends(&node.vmsnap(&["man", "nothing"]), 64, "it is one of backup, ");
    for words in [
        &["--help"][..],
        &["backup", "--help"],
        &["--backup", "--help"],
        &["help", "status"],
    ] {
        let help = node.vmsnap(words);
        ends(&help, 0, "");
        assert!(help.stdout.contains("Examples:\n"), "{help:#?}");
        assert!(lines(&help.stdout).len() < 60, "short: {}", help.stdout);
    }
    assert!(Path::new(env!("CARGO_BIN_EXE_vmsnap")).is_file());
}
