//! A pack repository read without vmsnap: `age` opens the key, and `read_pack.py`, which was
//! written after `docs/pack-format.md`, restores the disks.
#![allow(clippy::disallowed_methods, reason = "tests start programs and wait for them")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use vmsnap::io::DiskStore;
use vmsnap::model::stop::Stop;
use vmsnap::ops::Context;
use vmsnap::ops::backup::{Options, backup};
use vmsnap::ops::monitor::Silent;
use vmsnap::repo::{
    Creation, HostFolders, IdentityFile, Opener, PackLocation, PackRepository, Protection, Secret,
    UnlockedHost, UnlockedPack,
};
use vmsnap::testkit::SimHost;

use crate::support::temp_dir;

const CLUSTER: usize = 65536;
/// More than one leaf of a map.
const SIZE: usize = 130 * 1024 * 1024 + 1536;

struct Stage {
    folder: tempfile::TempDir,
    host: SimHost,
    repo: UnlockedPack,
}

impl Stage {
    /// A domain with a disk, and a repository that the owner of `identity.txt` opens, or anybody.
    fn new(is_encrypted: bool) -> Stage {
        let folder = temp_dir();
        let identity = age::x25519::Identity::generate();
        let file = folder.path().join("identity.txt");
        std::fs::write(&file, identity.to_string().expose_secret()).expect("written");
        let public = identity.to_public().to_string().parse().expect("a public key");
        let creation = Creation {
            protection: match is_encrypted {
                true => Protection::Recipients(vec![public]),
                false => Protection::None,
            },
            label: String::new(),
            now: "2026-11-28T15:00:00Z".parse().expect("a time"),
        };
        let (location, stop) = (PackLocation::Folder(folder.path().join("pack")), Stop::default());
        PackRepository::create(&location, &creation, &stop).expect("created");
        let opener = Opener {
            secret: Secret::Identities(IdentityFile::read(&file).expect("valid")),
            recovery: None,
        };
        let own = UnlockedHost {
            folders: HostFolders {
                state: Some(folder.path().join("state")),
                cache: Some(folder.path().join("cache")),
            },
            store: Arc::new(DiskStore),
        };
        let repo = PackRepository::open(&location, &stop).expect("it is there");
        let repo = repo.unlocked(is_encrypted.then_some(&opener), own, &stop);
        let host = SimHost::default();
        host.add_domain("vm \"1\"", &[("vda", SIZE)]);
        Stage {
            repo: repo.expect("it opens"),
            folder,
            host,
        }
    }

    fn write(&self, place: usize, bytes: &[u8]) {
        self.host.disk("vm \"1\"", "vda", |disk| disk.write(place, bytes));
    }

    /// Backs up the domain. Returns the id of the restore point and the content of the disk.
    fn backup(&self, minute: i64) -> (String, Vec<u8>) {
        let now: jiff::Zoned = "2026-11-03T02:00:00+01:00[Europe/Berlin]"
            .parse()
            .expect("a time");
        let context = Context {
            host: &self.host,
            repo: &self.repo,
            now: now
                .checked_add(jiff::Span::new().minutes(minute))
                .expect("in range"),
            monitor: &Silent,
            stop: Stop::default(),
            random: &move || minute.unsigned_abs(),
        };
        let options = Options {
            freeze: None,
            ..Options::default()
        };
        let outcome = backup("vm \"1\"", &context, &options).expect("a restore point");
        let held = self.host.disk("vm \"1\"", "vda", |disk| disk.bytes().to_vec());
        (outcome.point.id, held)
    }

    /// What `age -d` prints about the key; nothing without encryption.
    fn key(&self) -> Vec<u8> {
        let Ok(mut slots) = self.folder.path().join("pack/keys").read_dir() else {
            return Vec::new();
        };
        let is_age = |path: &Path| path.extension().is_some_and(|ending| ending == "age");
        let slot = slots.find_map(|slot| Some(slot.ok()?.path()).filter(|path| is_age(path)));
        let opened = Command::new("age")
            .arg("-d")
            .arg("-i")
            .arg(self.folder.path().join("identity.txt"))
            .arg(slot.expect("a key slot"))
            .output();
        let opened = opened.expect("age is installed");
        assert!(opened.status.success(), "{opened:?}");
        opened.stdout
    }

    /// Restores the disk with the reader.
    fn read(&self, id: &str) -> Vec<u8> {
        let to = self.folder.path().join("disk");
        // Another Python in PATH would lack the packages of the distribution.
        let mut reader = Command::new("/usr/bin/python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/read_pack.py"))
            .arg(self.folder.path().join("pack"))
            .args(["vm \"1\"", id, "vda"])
            .arg(&to)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut input = reader.stdin.take().expect("a pipe");
        // A reader that fails early closes the pipe; its own message says why.
        let _ = std::io::Write::write_all(&mut input, &self.key());
        drop(input);
        let ended = reader.wait_with_output().expect("it ends");
        assert!(
            ended.status.success(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
        std::fs::read(to).expect("the disk")
    }
}

#[test]
fn a_reader_of_the_document_restores_every_point() {
    for is_encrypted in [true, false] {
        let stage = Stage::new(is_encrypted);
        let mut noise = vec![0; 3 * 1024 * 1024];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        stage.write(5000, &noise);
        stage.write(SIZE - 700, &[7; 700]);
        stage.write(90 * CLUSTER, &[9; 40 * CLUSTER]);
        let mut points = vec![stage.backup(0)];
        for round in 1..4usize {
            stage.write(round * 11 * CLUSTER + 17, &[round as u8; 5000]);
            stage.write((2040 + round) * CLUSTER, &[round as u8; 3 * CLUSTER]);
            stage.host.disk("vm \"1\"", "vda", |disk| {
                disk.zero((90 + round) * CLUSTER, CLUSTER)
            });
            points.push(stage.backup(round as i64));
        }
        for (id, disk) in points {
            assert!(stage.read(&id) == disk, "{id}, encrypted: {is_encrypted}");
        }
    }
}
