//! A host with a domain, which is backed up into a repository on a server.

use std::path::Path;
use std::sync::Arc;

use vmsnap::io::DiskStore;
use vmsnap::model::stop::Stop;
use vmsnap::ops::backup::{Options, Outcome, backup};
use vmsnap::ops::monitor::{Monitor, Silent};
use vmsnap::ops::{Context, Result};
use vmsnap::repo::{HostFolders, IdentityFile, Opener, PackRepository, Secret, UnlockedHost, UnlockedPack};
use vmsnap::testkit::SimHost;

use super::server::Server;

pub const CLUSTER: usize = 65536;

/// More than one leaf of a map, and no whole number of clusters.
const SIZE: usize = 70 * 1024 * 1024 + 1536;

/// A host with a hypervisor of its own. Two of them have the same domain.
pub struct Stage {
    pub host: SimHost,
    folder: tempfile::TempDir,
    location: String,
    /// The restore points that were made, with the content of the disk.
    pub points: Vec<(String, Vec<u8>)>,
}

impl Stage {
    /// A host that uses a repository that exists.
    pub fn new(location: &str) -> Stage {
        let host = SimHost::default();
        host.add_domain("vm1", &[("vda", SIZE)]);
        Stage {
            host,
            folder: super::temp_dir(),
            location: location.to_owned(),
            points: Vec::new(),
        }
    }

    /// Opens the repository, as a process does.
    fn open(&self, server: &Server) -> UnlockedPack {
        let stop = Stop::default();
        let objects = server.objects(&self.location);
        let pack = PackRepository::open_in(&self.location, objects, &stop).expect("it is there");
        let opener = Opener {
            secret: Secret::Identities(IdentityFile::read(&server.identity_file()).expect("valid")),
            recovery: None,
        };
        let folder = |name: &str| Some(self.folder.path().join(name));
        let own = UnlockedHost {
            folders: HostFolders {
                state: folder("state"),
                cache: folder("cache"),
            },
            store: Arc::new(DiskStore),
        };
        pack.unlocked(Some(&opener), own, &stop).expect("it opens")
    }

    pub fn disk(&self) -> Vec<u8> {
        self.host.disk("vm1", "vda", |disk| disk.bytes().to_vec())
    }

    /// The guest writes: 3 MiB that cannot be compressed at a place of this round, and some bytes
    /// at the end of the disk.
    pub fn write(&self, round: u8) {
        let mut noise = vec![0; 3 << 20];
        let mut seed = blake3::Hasher::new();
        seed.update(&[round]).finalize_xof().fill(&mut noise);
        self.host.disk("vm1", "vda", |disk| {
            disk.write(usize::from(round % 16) * 64 * CLUSTER + 700, &noise);
            disk.write(SIZE - 600, &[round; 600]);
            disk.zero(usize::from(round) * CLUSTER, CLUSTER);
        });
    }

    /// Backs up the domain at this minute.
    pub fn try_backup(&self, server: &Server, minute: i64, monitor: &dyn Monitor) -> Result<Outcome> {
        let repo = self.open(server);
        let start: jiff::Zoned = "2026-11-03T02:00:00+01:00[Europe/Berlin]"
            .parse()
            .expect("a time");
        let context = Context {
            host: &self.host,
            repo: &repo,
            now: start
                .checked_add(jiff::Span::new().minutes(minute))
                .expect("in range"),
            monitor,
            stop: Stop::default(),
            random: &move || minute.unsigned_abs(),
        };
        let options = Options {
            freeze: None,
            ..Options::default()
        };
        backup("vm1", &context, &options)
    }

    /// Makes this many restore points, and writes before each.
    pub fn make_points(&mut self, server: &Server, number: u8) {
        for _ in 0..number {
            let round = self.points.len() as u8 + 1;
            self.write(round);
            let outcome = self.try_backup(server, 10 * i64::from(round), &Silent);
            let id = outcome.expect("a restore point").point.id;
            self.points.push((id, self.disk()));
        }
    }

    /// Checks that the program restores these restore points from a location, byte by byte.
    pub fn assert_restored(&self, server: &Server, location: &str, points: &[(String, Vec<u8>)]) {
        for (number, (id, disk)) in points.iter().enumerate() {
            let folder = super::temp_dir();
            let to = folder.path().join(format!("restored {number}"));
            server.document(&[
                "restore",
                "vm1",
                "-r",
                location,
                "--at",
                id,
                "--to",
                path_text(&to),
                "--format",
                "raw",
            ]);
            let restored = std::fs::read(to.join("vda.raw")).expect("the restored disk");
            assert!(restored == *disk, "{location}: {id} is not what it was");
        }
    }
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
