//! Models what a power cut leaves of the files.
//!
//! The content of a file is durable as of its last sync, and the names in a folder as of that
//! folder's last sync (fsync(2)). Any part of the later changes may have reached the disk, in any
//! order. Only a rename within a folder is never torn: one of its two names exists.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Parts of this size reach the disk whole or not at all, in bytes.
const SECTOR: usize = 4096;

/// The files below a folder: their current state, and the state that is known to survive.
pub(super) struct CrashDisk {
    root: PathBuf,
    nodes: Vec<Node>,
}

enum Node {
    File(FileNode),
    Dir(DirNode),
}

#[derive(Default)]
struct FileNode {
    now: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Default)]
struct DirNode {
    now: BTreeMap<OsString, usize>,
    synced: BTreeMap<OsString, usize>,
    /// The changes since the last sync.
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Add(OsString, usize),
    Remove(OsString),
    Rename(OsString, OsString),
}

impl CrashDisk {
    /// Reads the files below `root`, which count as durable.
    pub(super) fn read(root: &Path) -> io::Result<CrashDisk> {
        let mut disk = CrashDisk {
            root: root.to_owned(),
            nodes: Vec::new(),
        };
        disk.read_dir(root, &mut BTreeMap::new())?;
        Ok(disk)
    }

    /// `inodes` has the files that were read, because a file may have several names.
    fn read_dir(&mut self, path: &Path, inodes: &mut BTreeMap<u64, usize>) -> io::Result<usize> {
        let own = self.nodes.len();
        self.nodes.push(Node::Dir(DirNode::default()));
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let node = if entry.file_type()?.is_dir() {
                self.read_dir(&entry.path(), inodes)?
            } else if let Some(node) = inodes.get(&entry.metadata()?.ino()) {
                *node
            } else {
                let content = fs::read(entry.path())?;
                self.nodes.push(Node::File(FileNode {
                    now: content.clone(),
                    synced: content,
                }));
                inodes.insert(entry.metadata()?.ino(), self.nodes.len() - 1);
                self.nodes.len() - 1
            };
            entries.insert(entry.file_name(), node);
        }
        self.nodes[own] = Node::Dir(DirNode {
            now: entries.clone(),
            synced: entries,
            changes: Vec::new(),
        });
        Ok(own)
    }

    /// Returns the number of a file or folder.
    ///
    /// # Panics
    /// If there is none: the test has bypassed the store.
    pub(super) fn node(&self, path: &Path) -> usize {
        let below = path.strip_prefix(&self.root);
        let below = below.unwrap_or_else(|_| panic!("{} is below {}", path.display(), self.root.display()));
        below.iter().fold(0, |node, name| match &self.nodes[node] {
            Node::Dir(dir) if dir.now.contains_key(name) => dir.now[name],
            _ => panic!("{} went through the store", path.display()),
        })
    }

    fn folder_of<'a>(&mut self, path: &'a Path) -> (&mut DirNode, &'a OsStr) {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            panic!("{} is in a folder", path.display());
        };
        let parent = self.node(parent);
        match &mut self.nodes[parent] {
            Node::Dir(dir) => (dir, name),
            Node::File(_) => panic!("{} is in a folder", path.display()),
        }
    }

    fn file(&mut self, node: usize) -> &mut FileNode {
        match &mut self.nodes[node] {
            Node::File(file) => file,
            Node::Dir(_) => panic!("node {node} is a file"),
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        let number = self.nodes.len();
        self.nodes.push(node);
        let (dir, name) = self.folder_of(path);
        dir.now.insert(name.to_owned(), number);
        dir.changes.push(Change::Add(name.to_owned(), number));
    }

    pub(super) fn add_dir(&mut self, path: &Path) {
        self.add(path, Node::Dir(DirNode::default()));
    }

    pub(super) fn add_file(&mut self, path: &Path, content: &[u8]) {
        let now = content.to_vec();
        let synced = Vec::new();
        self.add(path, Node::File(FileNode { now, synced }));
    }

    pub(super) fn remove(&mut self, path: &Path) {
        let (dir, name) = self.folder_of(path);
        dir.now.remove(name);
        dir.changes.push(Change::Remove(name.to_owned()));
    }

    /// Gives a file the content of another.
    pub(super) fn fill_clone(&mut self, file: &Path, name: &Path) {
        let (from, to) = (self.node(file), self.node(name));
        let content = self.file(from).now.clone();
        self.file(to).now = content;
    }

    /// Gives a file a second name.
    pub(super) fn link(&mut self, file: &Path, name: &Path) {
        let node = self.node(file);
        let (dir, name) = self.folder_of(name);
        dir.now.insert(name.to_owned(), node);
        dir.changes.push(Change::Add(name.to_owned(), node));
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        assert_eq!(from.parent(), to.parent(), "renames stay in their folder");
        let node = self.node(from);
        let (dir, old) = self.folder_of(from);
        let new = to.file_name().unwrap_or_default();
        dir.now.remove(old);
        dir.now.insert(new.to_owned(), node);
        dir.changes.push(Change::Rename(old.to_owned(), new.to_owned()));
    }

    pub(super) fn sync_dir(&mut self, path: &Path) {
        let node = self.node(path);
        if let Node::Dir(dir) = &mut self.nodes[node] {
            dir.synced = dir.now.clone();
            dir.changes.clear();
        }
    }

    pub(super) fn write(&mut self, node: usize, bytes: &[u8], offset: u64) {
        let file = self.file(node);
        let start = offset as usize;
        let end = start + bytes.len();
        if file.now.len() < end {
            file.now.resize(end, 0);
        }
        file.now[start..end].copy_from_slice(bytes);
    }

    pub(super) fn free(&mut self, node: usize, range: Range<u64>) {
        let file = self.file(node);
        let within = |at: u64| (at as usize).min(file.now.len());
        let range = within(range.start)..within(range.end);
        file.now[range].fill(0);
    }

    pub(super) fn set_len(&mut self, node: usize, length: u64) {
        self.file(node).now.resize(length as usize, 0);
    }

    pub(super) fn sync_file(&mut self, node: usize) {
        let file = self.file(node);
        file.synced = file.now.clone();
    }

    /// Replaces the files by those that survive; `seed` chooses among the possible outcomes.
    pub(super) fn cut_power(&self, seed: u64) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            if path.symlink_metadata()?.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        self.write_dir(0, &self.root, &mut Dice(seed), &mut BTreeMap::new())
    }

    fn write_dir(
        &self,
        node: usize,
        path: &Path,
        dice: &mut Dice,
        written: &mut BTreeMap<usize, PathBuf>,
    ) -> io::Result<()> {
        let Node::Dir(dir) = &self.nodes[node] else {
            return Ok(());
        };
        for (name, node) in dir.survivors(dice) {
            let path = path.join(name);
            match &self.nodes[node] {
                Node::File(_) if written.contains_key(&node) => fs::hard_link(&written[&node], path)?,
                Node::File(file) => {
                    fs::write(&path, file.survivors(dice))?;
                    written.insert(node, path);
                }
                Node::Dir(_) => {
                    fs::create_dir(&path)?;
                    self.write_dir(node, &path, dice, written)?;
                }
            }
        }
        Ok(())
    }
}

impl DirNode {
    fn survivors(&self, dice: &mut Dice) -> BTreeMap<OsString, usize> {
        let mut names = self.synced.clone();
        let fate = dice.fate();
        for change in &self.changes {
            if !dice.survives(fate) {
                continue;
            }
            match change {
                Change::Add(name, node) => {
                    names.insert(name.clone(), *node);
                }
                Change::Remove(name) => {
                    names.remove(name);
                }
                Change::Rename(from, to) => {
                    if let Some(node) = names.remove(from) {
                        names.insert(to.clone(), node);
                    }
                }
            }
        }
        names
    }
}

impl FileNode {
    fn survivors(&self, dice: &mut Dice) -> Vec<u8> {
        if self.now == self.synced {
            return self.now.clone();
        }
        let fate = dice.fate();
        let length = if dice.survives(fate) {
            self.now.len()
        } else {
            self.synced.len()
        };
        let mut found = self.synced.clone();
        found.resize(length, 0);
        for (index, sector) in found.chunks_mut(SECTOR).enumerate() {
            let start = index * SECTOR;
            if start < self.now.len() && dice.survives(fate) {
                let end = self.now.len().min(start + sector.len());
                sector[..end - start].copy_from_slice(&self.now[start..end]);
            }
        }
        found
    }
}

/// How much of the unsynced changes reaches the disk.
#[derive(Clone, Copy)]
enum Fate {
    Nothing,
    Everything,
    Some,
}

/// Pseudo-random numbers that repeat with the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn fate(&mut self) -> Fate {
        match self.roll(4) {
            0 => Fate::Nothing,
            1 => Fate::Everything,
            _ => Fate::Some,
        }
    }

    fn survives(&mut self, fate: Fate) -> bool {
        match fate {
            Fate::Nothing => false,
            Fate::Everything => true,
            Fate::Some => self.roll(2) == 0,
        }
    }
}
