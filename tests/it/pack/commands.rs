//! `vmsnap init`, `vmsnap key` and `vmsnap repository` on the command line, and the refusals of the
//! other commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::Person;

pub struct Stage {
    folder: tempfile::TempDir,
    /// What the program keeps on its host.
    own: tempfile::TempDir,
}

impl Stage {
    pub fn new() -> Stage {
        Stage {
            folder: tempfile::tempdir().expect("a temporary folder"),
            own: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn file(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).expect("written");
        self.path(name).display().to_string()
    }

    pub fn pack(&self) -> String {
        format!("pack:{}", self.path("pack").display())
    }

    /// Runs the program in the folder, without any credentials of the user.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vmsnap"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("VMSNAP_STATE", self.own.path().join("state"))
            .env("VMSNAP_CACHE", self.own.path().join("cache"))
            .stdin(Stdio::null())
            .output()
            .expect("the program runs")
    }

    fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("readable");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("there").file_name()).collect();
        names.sort();
        names
            .into_iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn document(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

pub fn refused(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty(), "{output:?}");
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn keys_are_added_listed_exported_and_removed() {
    let stage = Stage::new();
    let (pack, person) = (stage.pack(), Person::new());
    let identity = person.file.path().display().to_string();
    let created = stage.run(&[
        "init",
        &pack,
        "--encrypt-to",
        &person.public,
        "--label",
        "laptop",
        "--json",
    ]);
    let created = document(&created);
    assert_eq!(created["cipher"], "xchacha20-poly1305");
    assert_eq!(created["conditionalPuts"], "honoured");
    let passphrase = stage.file("passphrase", "correct horse battery\n");
    let add = [
        "key",
        "add",
        "-r",
        &pack,
        "--identity-file",
        &identity,
        "--new-passphrase-file",
        &passphrase,
    ];
    let added = stage.run(&add);
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    let listed = document(&stage.run(&["key", "list", "-r", &pack, "--json"]));
    let slots = listed["slots"].as_array().expect("a list");
    assert_eq!(
        (slots.len(), &slots[0]["label"], &slots[0]["kind"]),
        (2, &"laptop".into(), &"x25519".into())
    );
    let slot = slots[0]["id"].as_str().expect("an id");
    let to = stage.path("recovery.age").display().to_string();
    let exported = stage.run(&["key", "export", slot, "-r", &pack, "--to", &to]);
    assert_eq!(exported.status.code(), Some(0), "{exported:?}");
    assert_eq!(
        fs::read(&to).expect("exported"),
        fs::read(stage.path("pack").join(format!("keys/{slot}.age"))).expect("there")
    );
    refused(
        &stage.run(&["key", "export", slot, "-r", &pack, "--to", &to]),
        3,
        &["cannot write", "exists"],
    );
    let removed = stage.run(&[
        "key",
        "remove",
        slot,
        "-r",
        &pack,
        "--passphrase-file",
        &passphrase,
    ]);
    assert_eq!(removed.status.code(), Some(0), "{removed:?}");
    let last = document(&stage.run(&["key", "list", "-r", &pack, "--json"]));
    let last = last["slots"][0]["id"].as_str().expect("an id").to_owned();
    refused(
        &stage.run(&[
            "key",
            "remove",
            &last,
            "-r",
            &pack,
            "--passphrase-file",
            &passphrase,
        ]),
        64,
        &["was not removed", "vmsnap key add"],
    );
    let recover = [
        "key",
        "add",
        "-r",
        &pack,
        "--identity-file",
        &identity,
        "--recovery-file",
        &to,
    ];
    let recover = stage.run(&[&recover[..], &["--encrypt-to", &person.public]].concat());
    assert_eq!(recover.status.code(), Some(0), "{recover:?}");
}

#[test]
fn repository_is_described_without_its_key() {
    let stage = Stage::new();
    let passphrase = stage.file("passphrase", "correct horse battery");
    let created = stage.run(&["init", &stage.pack(), "--passphrase-file", &passphrase]);
    assert_eq!(created.status.code(), Some(0), "{created:?}");
    assert!(
        stdout(&created).contains("`vmsnap backup DOMAIN --output LOCATION` backs up into it"),
        "{created:?}"
    );
    let info = stage.run(&["repository", "info", &stage.pack()]);
    let text = stdout(&info);
    for part in [
        "encryption: xchacha20-poly1305",
        "conditional puts: honoured",
        "key slots: 1",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    refused(
        &stage.run(&["init", &stage.pack(), "--passphrase-file", &passphrase]),
        64,
        &["already a pack repository"],
    );
    let wrong = stage.file("wrong", "correct horse batterx");
    let add = [
        "key",
        "add",
        "-r",
        &stage.pack(),
        "--passphrase-file",
        &wrong,
        "--new-passphrase-file",
        &passphrase,
    ];
    refused(&stage.run(&add), 2, &["opens no key slot", "--recovery-file"]);
}

#[test]
fn a_lost_description_is_damage_and_not_a_new_beginning() {
    let stage = Stage::new();
    let created = stage.run(&["init", &stage.pack(), "--no-encryption"]);
    assert_eq!(created.status.code(), Some(0), "{created:?}");
    let description = stage.path("pack/vmsnap.json");
    let text = fs::read(&description).expect("there");
    fs::remove_file(&description).expect("removed");
    let list = ["list", "--repository", &stage.pack()];
    refused(&stage.run(&list), 2, &["no pack repository", "vmsnap init"]);
    fs::create_dir_all(stage.path("pack/packs/0a")).expect("new");
    fs::write(stage.path("pack/packs/0a/0a00000000000000000000000000000a"), b"x").expect("written");
    refused(
        &stage.run(&list),
        11,
        &["vmsnap.json", "it is missing", "restore the object"],
    );
    fs::write(description, text).expect("written");
    assert_eq!(stage.run(&list).status.code(), Some(0));
}

#[test]
fn without_encryption_there_is_nothing_to_list() {
    let stage = Stage::new();
    let created = document(&stage.run(&["init", &stage.pack(), "--no-encryption", "--json"]));
    assert_eq!(
        (&created["cipher"], created["slots"].as_array().map(Vec::len)),
        (&"none".into(), Some(0))
    );
    let listed = stage.run(&["key", "list", "-r", &stage.pack()]);
    assert!(stdout(&listed).contains("is not encrypted"), "{listed:?}");
    let export = stage.run(&["key", "export", "-r", &stage.pack(), "--to", "x"]);
    refused(&export, 64, &["is not encrypted"]);
}

#[test]
fn encryption_is_the_default_and_needs_a_secret() {
    let stage = Stage::new();
    let asked = stage.run(&["init", &stage.pack()]);
    refused(
        &asked,
        64,
        &[
            "no terminal",
            "--passphrase-file FILE, --encrypt-to RECIPIENT or --no-encryption",
        ],
    );
    let short = stage.file("short", "1234567\n");
    refused(
        &stage.run(&["init", &stage.pack(), "--passphrase-file", &short]),
        64,
        &["shorter than 8"],
    );
    refused(
        &stage.run(&["init", &stage.pack(), "--encrypt-to", "age1x"]),
        64,
        &["is not a recipient"],
    );
    refused(
        &stage.run(&["init", &stage.pack(), "--passphrase-file", "missing"]),
        3,
        &["cannot use missing"],
    );
    assert_eq!(stage.entries(), ["short"], "nothing was created");
}

/// A command asks for the key before it does anything, and creates no folder whose name is a
/// location.
#[test]
fn other_commands_open_pack_repositories() {
    let stage = Stage::new();
    let (pack, person, stranger) = (stage.pack(), Person::new(), Person::new());
    document(&stage.run(&["init", &pack, "--encrypt-to", &person.public, "--json"]));
    let before = stage.entries();
    let [own, wrong] = [&person, &stranger].map(|person| person.file.path().display().to_string());
    let commands = [
        &["list"][..],
        &["verify"],
        &["prune", "vm1", "--keep-last", "1"],
        &["pin", "vm1", "x"],
        &["restore", "vm1", "--to", "out"],
    ];
    for command in commands {
        let with = |more: &[&str]| stage.run(&[command, &["-r", &pack], more].concat());
        refused(
            &with(&[]),
            64,
            &["no passphrase was given", "--passphrase-file FILE"],
        );
        refused(&with(&["--identity-file", &wrong]), 2, &["opens no key slot"]);
    }
    let opens = |command: &[&str]| stage.run(&[command, &["-r", &pack, "--identity-file", &own]].concat());
    let listed = document(&opens(&["list", "--json"]));
    assert_eq!(listed["domains"].as_array().map(Vec::len), Some(0), "{listed}");
    refused(
        &opens(&["restore", "vm1", "--to", "out"]),
        1,
        &["no restore points"],
    );
    refused(&opens(&["verify"]), 1, &["it has no restore points"]);
    let path = stage.path("pack").display().to_string();
    refused(
        &stage.run(&["list", "-r", &path]),
        2,
        &["holds a pack repository", "its location is pack:"],
    );
    let after: Vec<String> = stage
        .entries()
        .into_iter()
        .filter(|name| name != ".cache")
        .collect();
    assert_eq!(after, before);
}

#[test]
fn invalid_locations_create_nothing() {
    let stage = Stage::new();
    for (location, part) in [
        ("s3:backups", "use s3:https://HOST/BUCKET/PREFIX"),
        ("s3:http://s3.example.org/backups", "for this machine only"),
        (
            "s3:https://key:hunter2@host/backups",
            "do not belong in a location",
        ),
        ("/backups", "is not the location of a pack repository"),
        ("pack:", "the folder is missing"),
    ] {
        let output = stage.run(&["init", location, "--no-encryption"]);
        refused(&output, 64, &[part]);
        assert!(!stderr(&output).contains("hunter2"));
    }
    refused(
        &stage.run(&["list", "-r", "s3:backups"]),
        64,
        &["use s3:https://"],
    );
    assert!(stage.entries().is_empty());
}

#[test]
fn missing_repository_is_reported_with_leftovers() {
    let stage = Stage::new();
    fs::create_dir_all(stage.path("pack/keys")).expect("created");
    let missing = [
        "there is no pack repository",
        "`vmsnap init LOCATION` creates one",
    ];
    refused(&stage.run(&["repository", "info", &stage.pack()]), 2, &missing);
    fs::write(stage.path("pack/keys/0123456789abcdef.age"), "x").expect("written");
    refused(
        &stage.run(&["repository", "info", &stage.pack()]),
        2,
        &["an init was interrupted there"],
    );
    let again = stage.run(&["init", &stage.pack(), "--no-encryption"]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(
        stderr(&again).contains("you can delete them: keys/0123456789abcdef.age"),
        "{again:?}"
    );
}

#[cfg(not(feature = "object-store"))]
#[test]
fn buckets_need_a_program_with_object_stores() {
    let stage = Stage::new();
    let output = stage.run(&["init", "s3://backups", "--no-encryption"]);
    refused(&output, 2, &["built without support for object stores"]);
}

#[cfg(feature = "object-store")]
#[test]
fn bucket_without_credentials_is_refused() {
    let stage = Stage::new();
    let output = stage.run(&["init", "s3:http://127.0.0.1:9/backups", "--no-encryption"]);
    refused(&output, 2, &["no credentials were found", "AWS_ACCESS_KEY_ID"]);
}

/// Hostile labels and names in a repository cannot control the terminal.
#[test]
fn hostile_records_are_shown_escaped() {
    let stage = Stage::new();
    let person = Person::new();
    let created = document(&stage.run(&["init", &stage.pack(), "--encrypt-to", &person.public, "--json"]));
    let slot = created["slots"][0]["id"].as_str().expect("an id");
    let record: &Path = &stage.path("pack").join(format!("keys/{slot}.json"));
    let text = fs::read_to_string(record).expect("readable");
    fs::write(record, text.replace(&person.public, "\\u001b[2Jevil\\nline")).expect("written");
    let listed = stage.run(&["key", "list", "-r", &stage.pack()]);
    assert!(
        !stdout(&listed).contains('\u{1b}') && stdout(&listed).lines().count() == 2,
        "{listed:?}"
    );
}

#[test]
fn prune_and_collect_delete_unused_data() {
    let stage = Stage::new();
    let pack = stage.pack();
    document(&stage.run(&["init", &pack, "--no-encryption", "--json"]));
    let ids = super::collect::fill(&stage.path("host"), &stage.path("pack"));
    let pruned = document(&stage.run(&["prune", "-r", &pack, "--keep-last", "1", "--json"]));
    assert_eq!(pruned["domains"][0]["removed"], serde_json::json!([ids[0]]));
    assert_eq!(
        (
            &pruned["collection"]["deleted"]["packs"],
            &pruned["collection"]["condemned"]["packs"]
        ),
        (&0.into(), &0.into()),
        "the packs are younger than a day: {pruned}"
    );
    let collect = ["repository", "collect", &pack, "--grace", "0s"];
    let dry = stage.run(&[&collect[..], &["--dry-run"]].concat());
    assert!(stdout(&dry).contains("would condemn"), "{dry:?}");
    let planned = document(&stage.run(&[&collect[..], &["--dry-run", "--json"]].concat()));
    let condemned = &planned["collection"]["condemned"]["packs"];
    assert!(
        condemned.as_u64() > Some(0) && planned["dryRun"] == true,
        "{planned}"
    );
    let first = document(&stage.run(&[&collect[..], &["--json"]].concat()));
    assert_eq!(&first["collection"]["condemned"]["packs"], condemned);
    assert!(first.get("dryRun").is_none(), "{first}");
    // A grace period of nothing is over at once.
    assert!(first["collection"]["notBefore"].is_string(), "{first}");
    let second = stage.run(&collect);
    let text = stdout(&second);
    assert!(
        text.contains(": deleted ") && !text.contains("none of"),
        "{second:?}"
    );
    let listed = document(&stage.run(&["verify", "-r", &pack, "--deep", "--json"]));
    assert_eq!(
        listed["domains"][0]["restorePoints"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    let spared = document(&stage.run(&["prune", "-r", &pack, "--keep-last", "1", "--no-collect", "--json"]));
    assert!(spared["collection"].is_null(), "{spared}");
}

#[test]
fn collections_are_refused_where_they_make_no_sense() {
    let stage = Stage::new();
    fs::create_dir(stage.path("images")).expect("created");
    let images = stage.path("images").display().to_string();
    refused(
        &stage.run(&["repository", "collect", &images]),
        64,
        &["is not a pack repository"],
    );
    document(&stage.run(&["init", &stage.pack(), "--no-encryption", "--json"]));
    let grace = ["repository", "collect", &stage.pack(), "--grace", "soon"];
    refused(&stage.run(&grace), 64, &["such as 36h, 2d or 1w"]);
}
