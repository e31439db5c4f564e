//! The commands of docs/offsite.md, read from the page and run against a bucket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::server::{BUCKET, Server};
use crate::lab::{Lab, read_qcow2};

const PAGE: &str = include_str!("../../../docs/offsite.md");
const LOCATION: &str = "s3:https://s3.example.org/backups/kvm";
const PASSPHRASE: &str = "correct horse battery staple";

/// The blocks of this language below a heading of the page.
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect("a heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    let begin = format!("\n```{language}\n");
    let parts = section.split(&begin).skip(1);
    let blocks: Vec<String> = parts
        .map(|part| part.split("\n```").next().unwrap_or_default().to_owned())
        .collect();
    assert!(!blocks.is_empty(), "{heading} has no {language} block");
    blocks
}

/// A machine with nothing but a home, a passphrase and the credentials of the bucket. The paths of
/// the page are below its folder.
struct Machine {
    folder: tempfile::TempDir,
    location: String,
    environment: BTreeMap<String, String>,
}

impl Machine {
    fn new(server: &Server) -> Machine {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let machine = Machine {
            location: server.location(&format!("{BUCKET}/kvm")),
            folder,
            environment: BTreeMap::new(),
        };
        let credentials = "[default]\naws_access_key_id = testkey\naws_secret_access_key = testsecret\n";
        for (name, content) in [
            ("etc/vmsnap/passphrase", PASSPHRASE),
            ("root/passphrase", PASSPHRASE),
            ("root/new-passphrase", "another passphrase"),
            ("root/.aws/credentials", credentials),
        ] {
            let path = machine.path(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            std::fs::write(path, content).expect("written");
        }
        std::fs::create_dir(machine.path("srv")).expect("created");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A word of the page, with places of this test.
    fn word(&self, word: &str) -> String {
        let word = word.trim_matches('\'').replace(LOCATION, &self.location);
        for folder in ["/etc/", "/root/", "/srv/"] {
            for before in ["", "pack:", "VMSNAP_PASSPHRASE_FILE="] {
                if let Some(rest) = word.strip_prefix(&format!("{before}{folder}")) {
                    let path = self.path(&folder[1..]).join(rest);
                    return format!("{before}{}", path.display());
                }
            }
        }
        word
    }

    /// Runs a line of the page. `None` if it only sets variables.
    fn run(&mut self, line: &str, images: &Path) -> Option<Output> {
        let images = images.display().to_string();
        let words = line.trim_start_matches("export ").split_whitespace();
        let words: Vec<String> = words
            .map(|word| match word {
                "/backups" => images.clone(),
                word => self.word(word),
            })
            .collect();
        if let Some((name, value)) = words[0].split_once('=') {
            assert_eq!(words.len(), 1, "{line}");
            self.environment.insert(name.to_owned(), value.to_owned());
            return None;
        }
        assert_eq!(words[0], "vmsnap", "{line}");
        let output = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
            .args(&words[1..])
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.path("root"))
            .env("VMSNAP_STATE", self.path("state"))
            .env("VMSNAP_CACHE", self.path("cache"))
            .envs(&self.environment)
            .stdin(Stdio::null())
            .output();
        Some(output.expect("the program runs"))
    }

    fn run_all(&mut self, block: &str, images: &Path) {
        for line in block.lines() {
            if let Some(output) = self.run(line, images) {
                assert_eq!(output.status.code(), Some(0), "{line}: {output:?}");
            }
        }
    }
}

/// A host follows the page. Returns it with the domain whose backups are in the bucket.
fn copied(server: &Server) -> (Machine, Lab) {
    let mut host = Machine::new(server);
    let lab = Lab::with_three_points();
    for block in blocks("Three copies", "sh") {
        host.run_all(&block, &lab.root());
    }
    for block in blocks("Three copies", "cron") {
        for line in block.lines() {
            // A line of a crontab for the system: five fields of time and a user.
            let command = match line.split_once(" root ") {
                Some((_, command)) => command.trim_start(),
                None => line,
            };
            // The lab makes the backups: there is no libvirt here.
            if !command.starts_with("vmsnap backup") {
                host.run_all(command, &lab.root());
            }
        }
    }
    (host, lab)
}

#[test]
fn page_restores_on_a_bare_machine() {
    let server = Server::start();
    let (host, lab) = copied(&server);
    drop(host);
    let disk = lab.disk("vm1", "vda");
    let mut bare = Machine::new(&server);
    let blocks = blocks("Restore on a bare machine", "sh");
    let [restore, _, from_folder] = &blocks[..] else {
        panic!("{} blocks", blocks.len());
    };
    bare.run_all(restore, Path::new("/nowhere"));
    let restored = std::fs::read(bare.path("srv/restored/vda.raw")).expect("the disk");
    assert!(restored == disk);
    assert!(read_qcow2(&bare.path("srv/image/vda.qcow2")) == disk);
    // The objects in a folder, as another program for S3 puts them there.
    for (key, content) in server.objects() {
        let name = key.strip_prefix("kvm/").expect("only this repository");
        let path = bare.path("srv/objects").join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        std::fs::write(path, content).expect("written");
    }
    bare.environment.clear();
    bare.run_all(from_folder, Path::new("/nowhere"));
    let restored = std::fs::read(bare.path("srv/again/vda.raw")).expect("the disk");
    assert!(restored == disk);
}

#[test]
fn recovery_file_replaces_lost_slots() {
    let server = Server::start();
    let (host, _lab) = copied(&server);
    for key in server.keys() {
        if key.starts_with("kvm/keys/") {
            server.remove(&key);
        }
    }
    let mut bare = Machine::new(&server);
    std::fs::copy(host.path("root/recovery.age"), bare.path("root/recovery.age")).expect("copied");
    let blocks = blocks("Restore on a bare machine", "sh");
    let nowhere = Path::new("/nowhere");
    for line in blocks[0].lines().filter(|line| line.starts_with("export")) {
        bare.run(line, nowhere);
    }
    let lost = bare.run("vmsnap list", nowhere).expect("it runs");
    let text = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert_eq!(lost.status.code(), Some(2), "{text}");
    assert!(text.contains("--recovery-file"), "{text}");
    bare.run_all(&blocks[1], nowhere);
}

/// The actions that a policy allows.
fn actions(policy: &Value) -> Vec<String> {
    let statements = policy["Statement"].as_array().expect("a list");
    let mut actions = Vec::new();
    for statement in statements {
        assert_eq!(statement["Effect"], "Allow");
        match &statement["Action"] {
            Value::String(action) => actions.push(action.clone()),
            several => {
                let several = several.as_array().expect("a list").iter();
                actions.extend(several.filter_map(Value::as_str).map(str::to_owned));
            }
        }
    }
    actions.sort();
    actions
}

#[test]
fn policies_grant_what_is_needed() {
    let policies: Vec<Value> = blocks("Credentials that cannot destroy", "json")
        .iter()
        .map(|block| serde_json::from_str(block).expect("JSON"))
        .collect();
    let [host, pruner] = &policies[..] else {
        panic!("{} policies", policies.len());
    };
    let all = ["s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject"];
    assert_eq!(actions(host), all);
    assert_eq!(actions(pruner), all);
    let statements = host["Statement"].as_array().expect("a list");
    let of = |action: &str| {
        let found = statements.iter().find(|statement| statement["Action"] == action);
        found.expect("a statement")
    };
    // A host deletes sessions only, and replaces nothing.
    let resource = of("s3:DeleteObject")["Resource"].as_str().expect("a text");
    assert!(resource.ends_with("/sessions/*"), "{resource}");
    assert_eq!(
        of("s3:PutObject")["Condition"]["Null"]["s3:if-none-match"],
        "false"
    );
}
