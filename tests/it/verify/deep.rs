//! A deep verification of all restore points reads each image once, and finds what reading each
//! disk by itself finds.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Span;
use proptest::prelude::*;
use vmsnap::model::block::Block;
use vmsnap::model::stop::Stop;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Options, Outcome, ProvedPoint, Which, verify};
use vmsnap::repo::{Proof, Repository};

use super::alone::Alone;
use super::{flip, lab, options};
use crate::forged::rewrite;
use crate::lab::{CLUSTER, InFolder, Lab};
use crate::repositories::kinds::{Maker, data, zero};

fn deep(lab: &Lab, which: Which) -> Options {
    Options {
        deep: true,
        ..options(lab, which)
    }
}

fn read(repo: &dyn Repository, options: &Options) -> Outcome {
    verify("vm1", repo, options, &Silent, &Stop::default()).expect("there are restore points")
}

/// Bytes that cannot be compressed, other ones for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// The bytes that this thread has read from files so far, cached ones included.
fn bytes_read() -> u64 {
    let counts = fs::read_to_string("/proc/thread-self/io").expect("the kernel counts what is read");
    let line = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn deep_verify_of_all_points_reads_each_image_a_few_times() {
    const POINTS: u64 = 50;
    let mut lab = Lab::in_memory();
    lab.host.add_domain("vm1", &[("vda", 32 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &noise(0, 32 * CLUSTER)));
    for round in 0..POINTS {
        lab.host.disk("vm1", "vda", |disk| {
            let place = round as usize * 7 % 24 * CLUSTER;
            disk.write(place, &noise(round + 1, 8 * CLUSTER));
        });
        lab.backup("vm1").expect("a restore point");
    }
    let files = super::files(&lab).into_iter();
    let length: u64 = files
        .map(|path| fs::metadata(path).expect("it is there").len())
        .sum();
    let before = bytes_read();
    let outcome = read(lab.repo.as_ref(), &deep(&lab, Which::All));
    let count = bytes_read() - before;
    assert!(outcome.is_sound() && outcome.points.len() == POINTS as usize);
    assert!(
        count <= 4 * length,
        "{count} bytes were read of files of {length} bytes"
    );
}

#[test]
fn damage_of_a_later_image_leaves_earlier_points_sound() {
    let lab = lab();
    let kept = lab.history("vm1").kept;
    flip(&kept[1].dir().join("vda.qcow2"), 70_000, 0);
    let outcome = read(lab.repo.as_ref(), &deep(&lab, Which::All));
    let disks = |point: &ProvedPoint| {
        let disks = point.damage.iter().map(|damage| damage.disk.clone());
        disks.flatten().collect::<std::collections::BTreeSet<String>>()
    };
    let damaged: Vec<Vec<String>> = outcome
        .points
        .iter()
        .map(|point| disks(point).into_iter().collect())
        .collect();
    assert_eq!(damaged, [vec![], vec!["vda".to_owned()], vec!["vda".to_owned()]]);
    let inherited = outcome.points[2].damage[0].inherited_from.as_ref();
    assert_eq!(inherited, Some(&kept[1].manifest.point.id));
    assert_eq!(outcome.points[2].damage.len(), 1, "vdb was read, and is sound");
}

/// The content of a cluster.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Nothing,
    Zero,
    Text,
    Noise,
}

/// A restore point of one disk.
#[derive(Clone, Debug)]
struct Made {
    /// The clusters that it stores.
    clusters: Vec<Fill>,
    /// The bytes that the last cluster lacks, in sectors.
    short: usize,
    /// How many restore points back its parent is; a full one if that is before the first.
    back: usize,
    /// Whether it is verified before the others.
    is_verified: bool,
}

/// A change of an image.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Flip,
    /// The manifest lists the digest of the changed image.
    Forge,
    /// The same, and the first stored cluster can no longer be decompressed, if it is compressed.
    Frame,
    Cut,
    Remove,
}

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        4 => Just(Fill::Nothing),
        1 => Just(Fill::Zero),
        3 => Just(Fill::Text),
        1 => Just(Fill::Noise),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let back = prop_oneof![8 => Just(1usize), 1 => 2..4usize, 1 => Just(100usize)];
    let clusters = prop_oneof![
        5 => proptest::collection::vec(fill(), 6),
        1 => proptest::collection::vec(fill(), 1..9),
    ];
    (clusters, 0..127usize, back, prop::bool::weighted(0.2)).prop_map(
        |(clusters, short, back, is_verified)| Made {
            clusters,
            short,
            back,
            is_verified,
        },
    )
}

fn harm() -> impl Strategy<Value = (usize, Harm, f64)> {
    let harm = prop_oneof![
        2 => Just(Harm::Flip),
        3 => Just(Harm::Forge),
        4 => Just(Harm::Frame),
        1 => Just(Harm::Cut),
        1 => Just(Harm::Remove),
    ];
    (0..8usize, harm, 0.0..1.0)
}

/// The blocks of a restore point, whose disk has this size.
fn blocks(made: &Made, number: usize, size: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (cluster, fill) in made.clusters.iter().enumerate() {
        let length = CLUSTER.min(size - cluster * CLUSTER);
        let seed = (number * 100 + cluster) as u64;
        match fill {
            Fill::Nothing => {}
            Fill::Zero => blocks.push(zero(cluster, length)),
            Fill::Text => {
                let text = format!("restore point {number}, cluster {cluster}. ").repeat(4000);
                blocks.push(data(cluster, &text.as_bytes()[..length]));
            }
            Fill::Noise => blocks.push(data(cluster, &noise(seed, length))),
        }
    }
    blocks
}

fn make(lab: &Lab, points: &[Made]) -> Vec<String> {
    let domain = lab.repo.domain("vm1").expect("a name");
    let mut ids: Vec<String> = Vec::new();
    for (number, made) in points.iter().enumerate() {
        let size = made.clusters.len() * CLUSTER - made.short * 512;
        let parent = number.checked_sub(made.back).map(|parent| ids[parent].as_str());
        let maker = Maker::new(domain.as_ref(), number as i64);
        ids.push(maker.make(size as u64, blocks(made, number, size), parent));
    }
    // As in older manifests: a forged parent is then no other one.
    for index in 0..points.len() {
        rewrite(lab, index, |manifest| {
            manifest.point.disks[0].parent_manifest = None;
        });
    }
    ids
}

fn apply(lab: &Lab, point: usize, harm: Harm, place: f64) {
    let path = lab.history("vm1").kept[point].dir().join("vda.qcow2");
    let Ok(mut bytes) = fs::read(&path) else { return };
    let at = (place * bytes.len() as f64) as usize;
    match harm {
        Harm::Remove => return fs::remove_file(path).expect("it is there"),
        Harm::Cut => bytes.truncate(at),
        Harm::Flip | Harm::Forge => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x11;
            }
        }
        Harm::Frame => {
            // Data comes first in an image, after its header.
            if let Some(start) = bytes.get_mut(CLUSTER..CLUSTER + 8) {
                start.fill(0xff);
            }
        }
    }
    if matches!(harm, Harm::Forge | Harm::Frame) {
        rewrite(lab, point, |manifest| {
            let mut files = manifest.files.iter_mut();
            let entry = files.find(|file| file.name == "vda.qcow2").expect("listed");
            entry.size = bytes.len() as u64;
            entry.blake3 = blake3::hash(&bytes).to_hex().to_string();
            entry.pieces = None;
        });
    }
    fs::write(&path, bytes).expect("it can be written");
}

/// The records of verifications in the lab's repository.
struct Records {
    dir: PathBuf,
    kept: Vec<(PathBuf, Vec<u8>)>,
}

impl Records {
    fn of(lab: &Lab) -> Records {
        let dir = lab.root().join("vm1/.verified");
        let read = |path: PathBuf| {
            let bytes = fs::read(&path).expect("it can be read");
            (path, bytes)
        };
        let kept = Records::paths(&dir).into_iter().map(read).collect();
        Records { dir, kept }
    }

    fn paths(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    /// Makes the records those of the moment when this was made.
    fn put_back(&self) {
        for path in Records::paths(&self.dir) {
            fs::remove_file(path).expect("it is there");
        }
        for (path, bytes) in &self.kept {
            fs::write(path, bytes).expect("it can be written");
        }
    }
}

/// Everything that a verification says and records.
fn results(lab: &Lab, outcome: &Outcome) -> (String, Vec<Option<Proof>>) {
    let kept = lab.history("vm1").kept;
    let said = format!(
        "{:#?}\n{:#?}\n{:#?}\n{:?}",
        outcome.points,
        outcome.damage,
        outcome.findings,
        outcome.ended.as_ref().map(ToString::to_string)
    );
    (said, kept.into_iter().map(|kept| kept.proof).collect())
}

#[test]
fn damage_that_only_a_deep_verify_finds_is_inherited() {
    let text = |clusters| Made {
        clusters,
        short: 0,
        back: 1,
        is_verified: false,
    };
    let lab = Lab::in_memory();
    let ids = make(
        &lab,
        &[
            text(vec![Fill::Text, Fill::Text]),
            text(vec![Fill::Nothing, Fill::Text]),
            text(vec![Fill::Text, Fill::Nothing]),
            text(vec![Fill::Nothing, Fill::Text]),
        ],
    );
    apply(&lab, 1, Harm::Frame, 0.0);
    let files = read(lab.repo.as_ref(), &options(&lab, Which::All));
    assert!(
        files.is_sound(),
        "the digests are those in the manifests: {files:?}"
    );
    let found = read(lab.repo.as_ref(), &deep(&lab, Which::All));
    let damage: Vec<_> = found.points.iter().map(|point| &point.damage).collect();
    assert_eq!(
        damage.iter().map(|damage| damage.len()).collect::<Vec<_>>(),
        [0, 1, 1, 1]
    );
    let what = &damage[1][0].what;
    let expected = format!("disk vda of {} cannot be restored: ", ids[1]);
    assert!(
        what.starts_with(&expected) && what.contains("compressed cluster is damaged"),
        "{what}"
    );
    // The last one stores the cluster again, but a damaged image is no parent.
    for (point, parent) in [(2, &ids[1]), (3, &ids[2])] {
        assert_eq!(damage[point][0].inherited_from.as_ref(), Some(parent));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn one_pass_finds_what_reading_each_disk_finds(
        points in proptest::collection::vec(made(), 1..8),
        harms in proptest::collection::vec(harm(), 0..4),
        skips: bool,
    ) {
        let mut lab = Lab::in_memory();
        let ids = make(&lab, &points);
        let since = lab.now.timestamp();
        for (id, made) in ids.iter().zip(&points) {
            if skips && made.is_verified {
                read(lab.repo.as_ref(), &deep(&lab, Which::At(id.clone())));
            }
        }
        for (point, harm, place) in &harms {
            apply(&lab, point % points.len(), *harm, *place);
        }
        lab.pass(Span::new().hours(1));
        let options = Options {
            verified_since: Some(since),
            ..deep(&lab, Which::All)
        };
        let records = Records::of(&lab);
        let each = read(&Alone(lab.repo.as_ref()), &options);
        let each = results(&lab, &each);
        records.put_back();
        let one_pass = read(lab.repo.as_ref(), &options);
        let said = results(&lab, &one_pass);
        prop_assert_eq!(&said, &each);

        // Each restore point by itself. Damage that only a deep verification finds counts for the
        // parent that has it, and is found there only if the parent is read deep too.
        let is_forged = harms.iter().any(|(_, harm, _)| matches!(harm, Harm::Forge | Harm::Frame));
        for point in one_pass.points.iter().filter(|_| !skips) {
            records.put_back();
            let alone = read(lab.repo.as_ref(), &deep(&lab, Which::At(point.id.clone())));
            let itself = alone.points.iter().find(|other| other.id == point.id);
            let itself = itself.expect("it was verified");
            if !is_forged {
                prop_assert_eq!(&itself.damage, &point.damage);
            }
            prop_assert!(itself.damage.is_empty() || !point.damage.is_empty(), "{point:?}");
        }
    }
}
