//! Disks served by vmsnap to libnbd's and QEMU's programs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmsnap::io::DiskStore;
use vmsnap::model::stop::Stop;
use vmsnap::ops::Context;
use vmsnap::ops::backup::{Options, backup};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::serve::{self, DiskServer, Place, start};
use vmsnap::repo::{
    Creation, FolderRepository, HostFolders, PackLocation, PackRepository, Protection, Repository,
    UnlockedHost,
};
use vmsnap::testkit::SimHost;

use crate::support::{run, temp_dir};

const CLUSTER: usize = 65536;
const SIZE: usize = 40 * 1024 * 1024;

struct Stage {
    folder: tempfile::TempDir,
    repo: Box<dyn Repository>,
    /// The content of the disk.
    disk: Vec<u8>,
}

fn folder(root: &Path) -> Box<dyn Repository> {
    let opened = FolderRepository::open_or_create(&root.join("backups"), Arc::new(DiskStore));
    Box::new(opened.expect("a new repository"))
}

fn pack(root: &Path) -> Box<dyn Repository> {
    let creation = Creation {
        protection: Protection::None,
        label: String::new(),
        now: "2026-11-28T15:00:00Z".parse().expect("a time"),
    };
    let (location, stop) = (PackLocation::Folder(root.join("pack")), Stop::default());
    PackRepository::create(&location, &creation, &stop).expect("created");
    let own = UnlockedHost {
        folders: HostFolders {
            state: Some(root.join("state")),
            cache: Some(root.join("cache")),
        },
        store: Arc::new(DiskStore),
    };
    let opened = PackRepository::open(&location, &stop).expect("it is there");
    Box::new(opened.unlocked(None, own, &stop).expect("it opens"))
}

impl Stage {
    /// A disk with data, zeroes and holes, and a full and an incremental restore point of it.
    fn new(repository: fn(&Path) -> Box<dyn Repository>) -> Stage {
        let folder = temp_dir();
        let repo = repository(folder.path());
        let host = SimHost::default();
        host.add_domain("vm1", &[("vda", SIZE), ("vdb", 3 * CLUSTER)]);
        let mut noise = vec![0; 10 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut disk = vec![0; SIZE];
        let mut write = |place: usize, bytes: &[u8]| {
            disk[place..place + bytes.len()].copy_from_slice(bytes);
            host.disk("vm1", "vda", |disk| disk.write(place, bytes));
        };
        write(0, &noise);
        write(20 << 20, &vec![7; 1 << 20]);
        write(SIZE - 512, &[3; 512]);
        for minute in [0, 1] {
            let now: jiff::Zoned = "2026-11-03T02:00:00+01:00[Europe/Berlin]"
                .parse()
                .expect("a time");
            let context = Context {
                host: &host,
                repo: repo.as_ref(),
                now: now
                    .checked_add(jiff::Span::new().minutes(minute))
                    .expect("in range"),
                monitor: &Silent,
                stop: Stop::default(),
                random: &|| 7,
            };
            let options = Options {
                freeze: None,
                ..Options::default()
            };
            if minute == 1 {
                write(3 << 20, &[9; CLUSTER]);
                write(30 << 20, &noise[..CLUSTER]);
            }
            backup("vm1", &context, &options).expect("a restore point");
        }
        Stage { folder, repo, disk }
    }

    fn serve(&self) -> (DiskServer, String) {
        let options = serve::Options {
            at: "latest".to_owned(),
            disks: Vec::new(),
            place: Place::Socket(self.path("socket")),
        };
        let server = start("vm1", self.repo.as_ref(), &options, &Stop::default()).expect("it starts");
        let uri = server.served().disks[0].uri.clone();
        (server, uri)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The disk in a raw file.
    fn raw(&self) -> String {
        std::fs::write(self.path("expected.raw"), &self.disk).expect("written");
        self.text("expected.raw")
    }

    fn assert_is_disk(&self, name: &str) {
        let found = std::fs::read(self.path(name)).expect("a file");
        assert!(found == self.disk, "{name}");
    }
}

/// The ranges of a map: start, length, and whether it reads as zero.
fn ranges(map: &str, zero: impl Fn(&serde_json::Value) -> bool) -> Vec<(u64, u64, bool)> {
    let map: serde_json::Value = serde_json::from_str(map).expect("JSON");
    let ranges = map.as_array().expect("a list").iter();
    let range = |range: &serde_json::Value| {
        let number = |key: &str| range[key].as_u64();
        let start = number("offset").filter(|_| range.get("start").is_none());
        let start = start.or(number("start")).expect("a start");
        (start, number("length").expect("a length"), zero(range))
    };
    ranges.map(range).collect()
}

/// The same ranges from the content of the disk, by clusters.
fn expected(disk: &[u8]) -> Vec<(u64, u64, bool)> {
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    for (number, cluster) in disk.chunks(CLUSTER).enumerate() {
        let is_zero = cluster.iter().all(|byte| *byte == 0);
        match found.last_mut() {
            Some((_, length, was_zero)) if *was_zero == is_zero => *length += cluster.len() as u64,
            _ => found.push(((number * CLUSTER) as u64, cluster.len() as u64, is_zero)),
        }
    }
    found
}

fn clients_get_the_disk(repository: fn(&Path) -> Box<dyn Repository>) {
    let stage = Stage::new(repository);
    let (server, uri) = stage.serve();
    let raw = stage.raw();
    let listed = run("nbdinfo", &["--json", "--list", &uri.replace("///vda", "///")]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let exports = listed["exports"].as_array().expect("a list");
    let names: Vec<_> = exports
        .iter()
        .filter_map(|export| export["export-name"].as_str())
        .collect();
    assert_eq!(names, ["vda", "vdb"], "{listed:#}");
    assert_eq!(exports[0]["is_read_only"], true, "{listed:#}");
    assert_eq!(exports[0]["can_multi_conn"], true, "{listed:#}");
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), SIZE.to_string());
    let map = run("nbdinfo", &["--json", "--map", &uri]);
    let zero = |range: &serde_json::Value| range["type"] == 3;
    assert_eq!(ranges(&map, zero), expected(&stage.disk));
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let zero = |range: &serde_json::Value| range["zero"] == true;
    assert_eq!(ranges(&map, zero), expected(&stage.disk));
    run("nbdcopy", &[&uri, &stage.text("nbdcopy.raw")]);
    stage.assert_is_disk("nbdcopy.raw");
    // One request after another, and small ones.
    let slowly = [
        "--synchronous",
        "--request-size=65536",
        &uri,
        &stage.text("slowly.raw"),
    ];
    run("nbdcopy", &slowly);
    stage.assert_is_disk("slowly.raw");
    let convert = ["convert", "-f", "raw", "-O", "raw", &uri, &stage.text("qemu.raw")];
    run("qemu-img", &convert);
    stage.assert_is_disk("qemu.raw");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, &raw]);
    // An overlay keeps the changes of a test.
    let overlay = stage.text("overlay.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &uri, &overlay],
    );
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 1M 64k", &overlay]);
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 7 20M 1M", &uri]);
    let outcome = server.end();
    assert!(!outcome.has_damage() && !outcome.has_failures(), "{outcome:?}");
    assert_eq!(outcome.visits.refused, 0);
}

#[test]
fn clients_get_a_disk_of_a_folder() {
    clients_get_the_disk(folder);
}

#[test]
fn clients_get_a_disk_of_a_pack_repository() {
    clients_get_the_disk(pack);
}
