//! Backups of virtnbdbackup as a repository that is only read.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use vmsnap::repo::{DomainRepository, History, RepoError, Repository, SetsRepository, WrittenStream};

use crate::repositories::kinds::read_disk;

mod command;
mod damage;
mod golden;
mod made;

const KIB: usize = 1024;

/// The definition that virtnbdbackup saves beside a set's streams.
const DEFINITION: &str = "<domain type='kvm'><name>vm1</name><uuid>6f0c2f7e-9d7b-4e0c-8a51-2d8f4f0a1b11</uuid><devices>\
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/vda'/><target dev='vda'/></disk>\
    </devices></domain>";

/// A set of a domain with one disk: a full backup and incremental ones, written without
/// virtnbdbackup. Each changes some ranges of the disk.
pub struct MadeSet {
    /// The content of the disk at each restore point.
    pub contents: Vec<Vec<u8>>,
}

impl MadeSet {
    /// Writes a set of three restore points. `compressed` is the size of compressed pieces.
    pub fn write(dir: &Path, compressed: Option<usize>, with_checksums: bool) -> MadeSet {
        fs::create_dir_all(dir).expect("a folder");
        let mut content = vec![0; 300 * KIB];
        content[..100 * KIB].fill(1);
        let full = WrittenStream::full("vda", &content, 64 * KIB);
        let mut contents = vec![content.clone()];
        let mut streams = vec![("vda.full.data".to_owned(), full)];
        for (number, (start, length)) in [(1, (70 * KIB, 30 * KIB)), (2, (200 * KIB, 100 * KIB))] {
            content[start..start + length].fill(number as u8 + 1);
            let stream = WrittenStream::incremental("vda", number, &content, &[(start, length)]);
            streams.push((format!("vda.inc.virtnbdbackup.{number}.data"), stream));
            contents.push(content.clone());
        }
        for (name, stream) in &streams {
            let bytes = WrittenStream {
                compressed,
                ..stream.clone()
            }
            .bytes();
            if with_checksums {
                let sum = WrittenStream::checksum(&bytes);
                fs::write(dir.join(format!("{name}.chksum")), sum).expect("written");
            }
            fs::write(dir.join(name), bytes).expect("written");
        }
        for number in 0..3 {
            fs::write(
                dir.join(format!("vmconfig.virtnbdbackup.{number}.xml")),
                DEFINITION,
            )
            .expect("written");
        }
        let list = r#"["virtnbdbackup.0", "virtnbdbackup.1", "virtnbdbackup.2"]"#;
        fs::write(dir.join("vm1.cpt"), list).expect("written");
        MadeSet { contents }
    }
}

/// The sets in a folder.
pub fn open(folder: &Path) -> SetsRepository {
    let location = PathBuf::from(format!("sets:{}", folder.display()));
    SetsRepository::open(&location, TimeZone::UTC).expect("there are sets")
}

fn part(repository: &dyn Repository, domain: &str) -> (Box<dyn DomainRepository>, History) {
    let part = repository.domain(domain).expect("a name that fits");
    let history = part.history().expect("it can be read");
    (part, history)
}

fn ids(history: &History) -> Vec<String> {
    let points = history.chains.points().iter();
    points.map(|kept| kept.point.id.clone()).collect()
}

fn codes(history: &History, id: &str) -> Vec<String> {
    let point = &history.get(id).expect("it is there").manifest.point;
    point
        .findings
        .iter()
        .map(|finding| finding.code.clone())
        .collect()
}

/// A disk at a restore point, read from front to back and at random, with the same result.
fn read(part: &dyn DomainRepository, id: &str, target: &str) -> Result<Vec<u8>, RepoError> {
    let bytes = read_disk(part, id, target)?;
    let history = part.history()?;
    let disk = part.open_disk(&history, id, target, &vmsnap::model::stop::Stop::default())?;
    let mut random = vec![0xee; bytes.len()];
    for (number, piece) in random.chunks_mut(10_000).enumerate().rev() {
        disk.read_at(piece, (number * 10_000) as u64)?;
    }
    assert!(random == bytes, "{id} {target}: both readers agree");
    Ok(bytes)
}
