//! Restore points in a repository.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;

use super::clock::{Clocked, as_store};
use crate::model::stop::Stop;
use crate::repo::pack::data::tests::lab::{C, Root, data_block, read, try_write};
use crate::repo::pack::data::{
    BlockId, CollectOptions, CollectReport, Data, DataFacts, Needed, RebuildOptions, RebuildReport,
    RepositoryCheck, Reuse, Subject, Writing,
};
use crate::repo::pack::description::{Cipher, Sizes};
use crate::repo::pack::keys::MasterKey;
use crate::repo::pack_error::{PackError, Result};

/// The clusters of one block.
pub(super) const BLOCK: usize = 2;

/// A repository with the restore points that were committed.
#[derive(Clone)]
pub(super) struct World {
    pub(super) store: Arc<Clocked>,
    points: Arc<Mutex<BTreeMap<u64, Point>>>,
}

/// A restore point of one disk and one small file.
#[derive(Clone)]
pub(super) struct Point {
    pub(super) root: Root,
    pub(super) disk: Vec<u8>,
    pub(super) file: Vec<BlockId>,
    pub(super) file_bytes: Vec<u8>,
    pub(super) time: Timestamp,
}

impl Point {
    fn subject(&self, id: u64) -> Subject {
        Subject {
            domain: "vm1".to_owned(),
            id: id.to_string(),
            disks: vec![("vda".to_owned(), self.root.0, self.root.1)],
            files: vec![("domain.xml".to_owned(), self.file.clone())],
        }
    }

    fn needed(&self) -> Needed {
        Needed {
            disks: vec![self.root],
            blocks: self.file.clone(),
        }
    }
}

/// A restore point that is not committed yet.
pub(super) struct Draft {
    pub(super) data: Data,
    pub(super) writing: Writing,
    pub(super) point: Point,
    parent: Option<Timestamp>,
}

impl World {
    pub(super) fn new() -> World {
        let store: Arc<Clocked> = Arc::default();
        store.put_now("vmsnap.json", b"a description");
        World {
            store,
            points: Arc::default(),
        }
    }

    /// An equal repository, which changes without this one.
    pub(super) fn twin(&self) -> World {
        World {
            store: Arc::new(self.store.twin()),
            points: Arc::new(Mutex::new(self.points().clone())),
        }
    }

    pub(super) fn points(&self) -> MutexGuard<'_, BTreeMap<u64, Point>> {
        self.points.lock().expect("no test panics with it")
    }

    /// Opens the data, as a new process does.
    pub(super) fn open(&self) -> Data {
        let facts = DataFacts {
            id: "6f9619ff-8b86-4011-b42d-00c04fc964ff",
            sizes: Sizes {
                block_bytes: (BLOCK * C) as u64,
                pack_bytes: (2 * BLOCK * C + 1000) as u64,
            },
            cipher: Cipher::XChaCha20Poly1305,
        };
        let key = MasterKey::from_hex(&"07".repeat(32)).expect("valid");
        let stop = Stop::default();
        Data::open(as_store(&self.store), &facts, &key, None, &stop).expect("it opens")
    }

    /// Writes everything of a restore point with this disk. With a parent, only differing clusters.
    pub(super) fn draft(&self, parent: Option<u64>, disk: &[u8]) -> Result<Draft> {
        self.draft_reusing(Reuse::Known, parent, disk)
    }

    /// The same for a writer that uses only these stored blocks.
    pub(super) fn draft_reusing(&self, reuse: Reuse, parent: Option<u64>, disk: &[u8]) -> Result<Draft> {
        let stop = Stop::default();
        let data = self.open().reusing(reuse);
        let writing = data.begin_writing("host", &stop)?;
        let parent = parent.and_then(|id| self.points().get(&id).cloned());
        let before = parent.as_ref().map(|parent| &parent.disk);
        let clusters = disk.chunks(C).enumerate();
        let changed = clusters.filter(|(number, cluster)| {
            before.is_none_or(|before| before.get(number * C..number * C + cluster.len()) != Some(cluster))
        });
        let blocks = changed.map(|(number, cluster)| data_block((number * C) as u64, cluster));
        let written = try_write(
            &data,
            disk.len() as u64,
            parent.as_ref().map(|point| point.root),
            blocks,
        );
        let (root, _) = written.map_err(|why| PackError::Seal(std::io::Error::other(why)))?;
        let file_bytes = disk[..100.min(disk.len())].to_vec();
        let file = data.put(&file_bytes, &stop)?;
        data.flush(&stop)?;
        Ok(Draft {
            data,
            writing,
            parent: parent.map(|parent| parent.time),
            point: Point {
                root,
                disk: disk.to_vec(),
                file,
                file_bytes,
                time: Timestamp::MIN,
            },
        })
    }

    pub(super) fn check(&self, draft: &Draft) -> Result<()> {
        let needed = draft.point.needed();
        draft
            .data
            .check_before_commit(&draft.writing, &needed, draft.parent, &Stop::default())
    }

    /// Commits without any check.
    pub(super) fn commit(&self, draft: Draft) -> (u64, Result<()>) {
        let mut point = draft.point;
        point.time = self.store.now();
        let id = {
            let mut points = self.points();
            let id = points.last_key_value().map_or(0, |(last, _)| last + 1);
            points.insert(id, point);
            id
        };
        (id, draft.writing.end(&Stop::default()))
    }

    pub(super) fn backup(&self, parent: Option<u64>, disk: &[u8]) -> Result<u64> {
        let draft = self.draft(parent, disk)?;
        self.check(&draft)?;
        let (id, ended) = self.commit(draft);
        ended.map(|()| id)
    }

    pub(super) fn remove(&self, id: u64) {
        self.points().remove(&id);
    }

    pub(super) fn collect_with(&self, options: &CollectOptions<'_>) -> Result<CollectReport> {
        let mut live = |_: &Stop| Ok(self.points().values().map(Point::needed).collect());
        self.open().collect(&mut live, options, &Stop::default())
    }

    pub(super) fn collect(&self) -> Result<CollectReport> {
        self.collect_with(&CollectOptions::new("collector"))
    }

    /// Checks the repository as a whole.
    pub(super) fn check_whole(&self, deep: bool) -> Result<RepositoryCheck> {
        self.check_until(deep, &Stop::default())
    }

    pub(super) fn check_until(&self, deep: bool, stop: &Stop) -> Result<RepositoryCheck> {
        let points = || self.points().clone();
        let mut subjects = |_: &Stop| Ok(points().iter().map(|(id, point)| point.subject(*id)).collect());
        self.open().inspect(&mut subjects, deep, stop)
    }

    /// Rebuilds the index.
    pub(super) fn rebuild(&self, options: &RebuildOptions<'_>) -> Result<RebuildReport> {
        self.open().rebuild_index(options, &Stop::default())
    }

    /// Everything that is committed can be read, also by a process that has just started.
    pub(super) fn assert_sound(&self, what: &str) {
        let data = self.open();
        data.refresh(&Stop::default()).expect("it lists");
        for (id, point) in self.points().iter() {
            match read(&data, point.root, 0) {
                Ok(bytes) => assert!(bytes == point.disk, "{what}: wrong bytes in {id}"),
                Err(error) => panic!("{what}: {id}: {error}"),
            }
            let file = data.get(&point.file, 1000, &Stop::default());
            let file = file.unwrap_or_else(|error| panic!("{what}: {id}: {error}"));
            assert!(file == point.file_bytes, "{what}: wrong file in {id}");
        }
    }

    /// After enough time and calls, only what is needed is there.
    pub(super) fn assert_collected(&self, what: &str) -> CollectReport {
        self.assert_sound(what);
        let mut last = None;
        for _ in 0..5 {
            self.store.pass(100);
            let report = self.collect().unwrap_or_else(|error| panic!("{what}: {error}"));
            let is_clean = report.needed.packs == report.all.packs && report.rewritten.packs == 0;
            last = Some(report);
            if is_clean && self.names("condemned/").is_empty() && self.names("sessions/").is_empty() {
                break;
            }
        }
        self.assert_sound(what);
        let report = last.expect("it was called");
        assert_eq!(self.names("condemned/"), [""; 0], "{what}");
        assert_eq!(self.names("sessions/"), [""; 0], "{what}");
        assert_eq!(report.needed.packs, report.all.packs, "{what}: {report:?}");
        assert_eq!(
            self.names("packs/").len() as u64,
            report.all.packs,
            "{what}: {report:?}"
        );
        assert_eq!(report.waiting, [], "{what}");
        report
    }

    pub(super) fn names(&self, prefix: &str) -> Vec<String> {
        self.store.inner.names(prefix)
    }
}
