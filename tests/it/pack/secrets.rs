//! What leaves the program: objects, messages, files of the host, and what the system shows of its
//! process.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use age::secrecy::SecretString;
use vmsnap::model::guest::{BootLevel, GuestFacts};
use vmsnap::model::pin::Pin;
use vmsnap::repo::{BootProof, MissedWriteRecord};

use super::server::{BUCKET, Mood, Server};
use crate::lab::{CLUSTER, Lab, tree};
use crate::repositories::kinds::Kind;
use crate::repositories::pack::PackFolder;

const PASSPHRASE: &str = "plainly-readable passphrase";

/// Whether one text contains another.
fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Backups, pins, verifications, missed writes, removals and a collection of an encrypted
/// repository: neither the names nor the content of objects tell anything of the domain.
#[test]
fn no_object_tells_a_name_a_definition_or_a_byte_of_a_disk() {
    const NAME: &str = "ledger-of-alice";
    let kind = PackFolder::default();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut lab = Lab::of(folder, kind.repository());
    lab.host.add_domain(NAME, &[("vda", 8 * CLUSTER)]);
    lab.host.set_nvram(NAME, b"variables-of-the-firmware");
    let told = GuestFacts {
        hostname: Some("host-name-of-the-guest".to_owned()),
        ..GuestFacts::default()
    };
    lab.host.set_guest(NAME, Some(told.clone()));
    let words = b"words that the guest wrote. ";
    for round in 0..3usize {
        lab.host.disk(NAME, "vda", |disk| {
            disk.write(round * CLUSTER, &words.repeat(3 * CLUSTER / words.len()));
        });
        lab.backup(NAME).expect("a restore point");
    }
    lab.assert_verified(NAME);
    let domain = lab.repo.domain(NAME).expect("a name");
    let writer = domain.try_lock().expect("nobody else writes");
    let history = writer.history().expect("it can be read");
    let kept = history.kept.last().expect("some");
    let since = Some("2026-11-28T15:00:00Z".parse().expect("a time"));
    let note = "note-of-the-pin".to_owned();
    writer.pin(kept, &Pin { since, note }).expect("pinned");
    let missed = MissedWriteRecord {
        id: kept.manifest.point.id.clone(),
        manifest: kept.manifest.digest.clone(),
        time: lab.now.timestamp(),
        disks: vec!["vda".to_owned()],
    };
    domain.keep_missed_writes(&missed).expect("recorded");
    let booted = BootProof {
        id: missed.id.clone(),
        manifest: missed.manifest.clone(),
        time: missed.time,
        reached: BootLevel::Read,
        wanted: BootLevel::Agent,
        pattern: None,
        command: Vec::new(),
        shortfall: Some("shortfall-of-the-guest".to_owned()),
        seconds: 7,
    };
    domain.keep_boot_proof(&booted).expect("recorded");
    let oldest = history.kept[0].manifest.point.id.clone();
    let removed = writer.remove_point(&history, &oldest, lab.now.timestamp());
    removed.expect("nothing depends on it");
    let point = &kept.manifest.point;
    assert_eq!(point.guest, Some(told));
    let checkpoint = point.checkpoint.as_ref().expect("it has one").name.clone();
    // A run that is not over has a session, with the name of the host.
    let pending = writer.begin(&point.period, lab.now.timestamp());
    let _pending = pending.expect("it begins");
    let secrets = [
        NAME,
        &point.uuid,
        &point.id,
        &point.period,
        &checkpoint,
        "\"host\"",
        "\"process\"",
        "<domain",
        "qcow2",
        "virtnbdbackup",
        "variables-of-the-firmware",
        "note-of-the-pin",
        "host-name-of-the-guest",
        "shortfall-of-the-guest",
        "words that the guest wrote",
    ];
    let files = kind.files();
    for prefix in [
        "packs/",
        "index/",
        "points/",
        "sessions/",
        "records/pin",
        "records/missed",
        "records/booted",
    ] {
        let of_domain = prefix.strip_prefix("records/").filter(|word| !word.is_empty());
        let is_one = |name: &String| match of_domain {
            Some(word) => name.starts_with("records/") && name.contains(&format!("/{word}-")),
            None => name.starts_with(prefix),
        };
        assert!(
            files.iter().any(|(name, _)| is_one(name)),
            "{prefix} is not tried"
        );
    }
    for (name, content) in files {
        for secret in secrets {
            let is_inside = contains(&content, secret.as_bytes());
            assert!(!name.contains(secret) && !is_inside, "{name} contains {secret}");
        }
    }
}

/// A pack repository in a folder with one restore point, which a passphrase opens.
struct Stage {
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Stage {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("passphrase", PASSPHRASE).expect("written");
        write("second", "a second plainly-readable passphrase").expect("written");
        write("wrong", "a wrong plainly-readable passphrase").expect("written");
        Stage { folder }
    }

    fn pack(&self) -> String {
        format!("pack:{}", self.folder.path().join("pack").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let folder = self.folder.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnap"));
        command
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .env("HOME", folder)
            .env("VMSNAP_STATE", folder.join("own/state"))
            .env("VMSNAP_CACHE", folder.join("own/cache"))
            .env("VMSNAP_PASSPHRASE_FILE", "passphrase")
            .env("AWS_ACCESS_KEY_ID", "testkey")
            .env("AWS_SECRET_ACCESS_KEY", "plainly-readable credential")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    /// The master key in hexadecimal digits, from the first key slot.
    fn master_key(&self) -> String {
        let pack = self.folder.path().join("pack");
        let names = tree(&pack).into_iter();
        let slot = names.into_iter().find(|name| name.ends_with(".age"));
        let file = std::fs::read(pack.join(slot.expect("a slot"))).expect("readable");
        let identity = age::scrypt::Identity::new(SecretString::from(PASSPHRASE.to_owned()));
        let decryptor = age::Decryptor::new(age::armor::ArmoredReader::new(&file[..]));
        let identities = std::iter::once(&identity as &dyn age::Identity);
        let mut reader = decryptor
            .expect("an age file")
            .decrypt(identities)
            .expect("it opens");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("readable");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value["key"].as_str().expect("a key").to_owned()
    }
}

/// The bytes of hexadecimal digits.
fn bytes_of(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("digits"))
        .collect()
}

/// All commands with all messages: no output and no file of the host contains a secret.
#[test]
fn secrets_are_in_no_message_and_no_file_of_the_host() {
    let stage = Stage::new();
    let pack = stage.pack();
    let init = stage.run(&["init", &pack, "-vv"]);
    assert_eq!(init.status.code(), Some(0), "{init:?}");
    let key = stage.master_key();
    let lab = Lab::with_three_points();
    let images = lab.root().display().to_string();
    let commands: &[&[&str]] = &[
        &["copy", "--from", &images, "--to", &pack],
        &["list", "-r", &pack],
        &["verify", "--all", "--deep", "-r", &pack],
        &["pin", "vm1", "latest", "-r", &pack],
        &["unpin", "vm1", "latest", "-r", &pack],
        &["restore", "vm1", "-r", &pack, "--to", "restored"],
        &["prune", "--keep-last", "2", "-r", &pack],
        &["repository", "info", &pack],
        &["repository", "collect", &pack],
        &["key", "list", "-r", &pack],
        &["key", "export", "-r", &pack, "--to", "recovery.age"],
        &["key", "add", "-r", &pack, "--new-passphrase-file", "second"],
        &["list", "-r", &pack, "--passphrase-file", "second"],
    ];
    let wrong: &[&[&str]] = &[
        &["list", "-r", &pack, "--passphrase-file", "wrong"],
        &["list", "-r", &pack, "--identity-file", "passphrase"],
        &["init", "pack:other", "--encrypt-to", "plainly"],
        &[
            "key",
            "add",
            "-r",
            &pack,
            "--recovery-file",
            "second",
            "--encrypt-to",
            "x",
        ],
        &[
            "init",
            "s3:http://127.0.0.1:1/backups",
            "--passphrase-file",
            "second",
        ],
    ];
    let mut outputs = vec![init];
    for format in ["text", "json"] {
        for (commands, expected) in [(commands, true), (wrong, false)] {
            // All commands write their log in the same way.
            let is_tried = |command: &&&[&str]| format == "text" || command[0] == "list";
            for command in commands.iter().filter(is_tried) {
                let with = ["-vv", "--log-format", format];
                let output = stage.run(&[command, &with[..]].concat());
                assert_eq!(output.status.success(), expected, "{command:?}: {output:?}");
                outputs.push(output);
            }
        }
    }
    let secrets = [
        b"plainly-readable".to_vec(),
        key.as_bytes().to_vec(),
        bytes_of(&key),
    ];
    for output in outputs {
        for text in [&output.stdout, &output.stderr] {
            for secret in &secrets {
                assert!(!contains(text, secret), "{output:?}");
            }
        }
    }
    let own = stage.folder.path().join("own");
    let files = tree(&own).into_iter().map(|name| own.join(name));
    let files: Vec<_> = files.filter(|path| path.is_file()).collect();
    assert!(files.len() > 1, "{files:?}");
    for path in files {
        let content = std::fs::read(&path).expect("readable");
        for secret in &secrets {
            assert!(!contains(&content, secret), "{}", path.display());
        }
    }
}

/// What the system shows of a process that has read a passphrase, and that its memory is not
/// dumped.
#[test]
fn process_shows_no_secret_and_leaves_no_core_dump() {
    let server = Server::start();
    server.be(Mood::Silent);
    let stage = Stage::new();
    let location = server.location(BUCKET);
    let mut command = stage.command(&["init", &location]);
    let mut child = command.stderr(Stdio::null()).spawn().expect("the program runs");
    while server.requests() == 0 {
        std::thread::yield_now();
    }
    let shown = Path::new("/proc").join(child.id().to_string());
    let read = |name: &str| std::fs::read(shown.join(name)).expect("the process runs");
    let (arguments, environment) = (read("cmdline"), read("environ"));
    let limits = String::from_utf8(read("limits")).expect("text");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert!(contains(&arguments, location.as_bytes()), "{arguments:?}");
    for text in [arguments, environment] {
        assert!(!contains(&text, PASSPHRASE.as_bytes()));
    }
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let soft = core.and_then(|line| line.split_whitespace().nth(4).map(str::to_owned));
    assert_eq!(soft.as_deref(), Some("0"), "{limits}");
}
