//! The golden pack repositories: each released format is kept in `tests/data`, and every verb works
//! on a copy of it. `tests/data/make-pack.sh` made them.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::SignedDuration;
use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::domain::{DomainState, Source};
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::collect::{Collection, collect};
use vmsnap::ops::compare::compare;
use vmsnap::ops::integrity::{self, Rebuild};
use vmsnap::ops::list::{Listed, list};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::retention::{self, Policy, Quota, Rule};
use vmsnap::ops::transfer::{self, Wanted, transfer};
use vmsnap::repo::{FolderRepository, Opener, PackLocation, PackRepository, Passphrase, Repository, Secret};

use crate::lab::{Lab, copy_tree};
use crate::repositories::pack::host;

const KIB: usize = 1024;
const DOMAIN: &str = "golden";
const OTHER: &str = "small";
const UUID: &str = "6f0c2f7e-9d7b-4e0c-8a51-2d8f4f0a1b11";

/// A repository that `tests/data/make-pack.sh` made.
pub struct GoldenPack {
    /// Its folder below `tests/data`.
    folder: &'static str,
    passphrase: Option<&'static str>,
}

const OPEN: GoldenPack = GoldenPack {
    folder: "pack-1/open",
    passphrase: None,
};

const ENCRYPTED: GoldenPack = GoldenPack {
    folder: "pack-1/encrypted",
    passphrase: Some("golden passphrase"),
};

/// Makes a test of each of these functions for every repository.
macro_rules! for_every_pack {
    ($($name:ident),* $(,)?) => {
        mod open {
            $(#[test]
            fn $name() {
                super::$name(&super::OPEN);
            })*
        }

        mod encrypted {
            $(#[test]
            fn $name() {
                super::$name(&super::ENCRYPTED);
            })*
        }
    };
}

for_every_pack! {
    points_are_listed,
    points_give_back_their_bytes,
    everything_is_verified_and_checked,
    chain_goes_on,
    points_are_copied_into_a_folder,
    policy_removes_and_collections_free_space,
    lost_index_is_rebuilt,
}

/// The disks of the restore points of [`DOMAIN`]: the copied one, and those of the chain.
fn disks() -> [[Vec<u8>; 2]; 4] {
    let mut vda = vec![0; 448 * KIB];
    let mut vdb = vec![0; 150 * KIB];
    vda[..64 * KIB].fill(0x11);
    vda[130 * KIB..135 * KIB].fill(0x12);
    vdb[64 * KIB..].fill(0x21);
    let copied = [vda.clone(), vdb.clone()];
    vda[60 * KIB..70 * KIB].fill(0x13);
    let first = [vda.clone(), vdb.clone()];
    vda[128 * KIB..192 * KIB].fill(0);
    vda[320 * KIB..448 * KIB].fill(0x15);
    let second = [vda.clone(), vdb.clone()];
    vda[192 * KIB..256 * KIB].fill(0x14);
    vdb[64 * KIB..128 * KIB].fill(0);
    vdb[..KIB].fill(0x22);
    [copied, first, second, [vda, vdb]]
}

/// The disk of the two restore points of [`OTHER`] that were not removed.
fn other_disks() -> [Vec<u8>; 2] {
    let mut disk = vec![0x31; 192 * KIB];
    disk[128 * KIB..].fill(0);
    disk[64 * KIB..128 * KIB].fill(0x32);
    let before = disk.clone();
    disk[128 * KIB..].fill(0x33);
    [before, disk]
}

impl GoldenPack {
    /// Copies it into a folder, as if it was written three days ago.
    fn unpack(&self, root: &Path) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(self.folder);
        fs::create_dir_all(root).expect("created");
        copy_tree(&from, root);
        make_old(root);
    }

    fn open(&self, folder: &Path) -> Box<dyn Repository> {
        let location = PackLocation::Folder(folder.join("pack"));
        let stop = Stop::default();
        let pack = PackRepository::open(&location, &stop).expect("it is there");
        let opener = self.passphrase.map(|text| Opener {
            secret: Secret::Passphrase(Passphrase::new(text).expect("valid")),
            recovery: None,
        });
        let unlocked = pack.unlocked(opener.as_ref(), host(folder), &stop);
        Box::new(unlocked.expect("it opens"))
    }

    /// A lab with a copy of the repository, a few days after its last backup.
    fn lab(&self) -> Lab {
        let folder = tempfile::tempdir().expect("a temporary folder");
        self.unpack(&folder.path().join("pack"));
        let repo = self.open(folder.path());
        let mut lab = Lab::of(folder, repo);
        lab.at("2026-12-03T02:00:00+01:00[Europe/Berlin]");
        lab
    }
}

/// Gives all files a time that lies three days back.
fn make_old(folder: &Path) {
    let old = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => make_old(&path),
            false => {
                let file = File::options().write(true).open(&path).expect("it opens");
                file.set_modified(old).expect("its time is set");
            }
        }
    }
}

fn listed(lab: &Lab, domain: &str) -> Vec<Listed> {
    let listed = list(lab.repo.as_ref(), &[domain.to_owned()]).expect("readable");
    assert!(listed[0].findings.is_empty(), "{:?}", listed[0].findings);
    listed.into_iter().next().expect("one domain").points
}

fn ids(lab: &Lab, domain: &str) -> Vec<String> {
    let points = listed(lab, domain).into_iter();
    points.map(|listed| listed.point.id).collect()
}

/// Adds the golden domain, shut off, as it was after its last backup.
fn add_domain(lab: &Lab) {
    let [.., last] = disks();
    let sizes = [("vda", last[0].len()), ("vdb", last[1].len())];
    lab.host.add_domain(DOMAIN, &sizes);
    let kept = lab.history(DOMAIN).kept;
    let checkpoints = kept
        .iter()
        .filter_map(|kept| kept.manifest.point.checkpoint.as_ref());
    let names: Vec<String> = checkpoints.map(|checkpoint| checkpoint.name.clone()).collect();
    for (target, bytes) in ["vda", "vdb"].into_iter().zip(last) {
        lab.host.disk(DOMAIN, target, |disk| {
            disk.write(0, &bytes);
            for name in &names {
                disk.add_bitmap(name).expect("a new name");
            }
        });
    }
    lab.host.change(DOMAIN, |domain| {
        domain.uuid = UUID.to_owned();
        domain.state = DomainState::ShutOff;
        for disk in &mut domain.disks {
            disk.source = Source::File(format!("/srv/golden/golden-{}.qcow2", disk.target).into());
        }
    });
}

fn points_are_listed(golden: &GoldenPack) {
    let lab = golden.lab();
    assert_eq!(lab.repo.domains().expect("readable"), [DOMAIN, OTHER]);
    let points = listed(&lab, DOMAIN);
    let levels: Vec<Level> = points.iter().map(|listed| listed.point.level).collect();
    use Level::{Full, Incremental};
    assert_eq!(levels, [Full, Full, Incremental, Incremental]);
    let copies: Vec<bool> = points
        .iter()
        .map(|listed| listed.point.copied_from.is_some())
        .collect();
    assert_eq!(copies, [true, false, false, false]);
    let pins = points.iter().map(|listed| listed.pin.as_ref());
    let notes: Vec<Option<&str>> = pins.map(|pin| Some(pin?.note.as_str())).collect();
    assert_eq!(notes, [None, None, Some("keep this"), None]);
    for listed in points.iter().chain(&listed(&lab, OTHER)) {
        assert!(listed.is_whole(), "{listed:?}");
        let proof = listed.proof.as_ref().expect("the script verified it");
        assert!(proof.deep && proof.is_sound(), "{proof:?}");
    }
    assert_eq!(listed(&lab, OTHER).len(), 2, "the first was removed");
    let history = lab.history(OTHER);
    assert_eq!(history.chains.removed().count(), 1);
}

fn points_give_back_their_bytes(golden: &GoldenPack) {
    let lab = golden.lab();
    for (id, disks) in ids(&lab, DOMAIN).iter().zip(disks()) {
        for (target, bytes) in ["vda", "vdb"].into_iter().zip(disks) {
            let restored = lab.restored(DOMAIN, id, target).expect("restored");
            assert!(restored == bytes, "{id} {target}");
        }
    }
    for (id, bytes) in ids(&lab, OTHER).iter().zip(other_disks()) {
        assert!(lab.restored(OTHER, id, "vda").expect("restored") == bytes, "{id}");
    }
}

fn everything_is_verified_and_checked(golden: &GoldenPack) {
    let lab = golden.lab();
    lab.assert_verified(DOMAIN);
    lab.assert_verified(OTHER);
    let check = integrity::check(lab.repo.as_ref(), true, &Stop::default());
    let check = check.expect("it checks").expect("a pack repository");
    assert_eq!((check.damage, check.notes), (vec![], vec![]));
    assert_eq!((check.domains, check.points, check.unlisted.packs), (2, 6, 0));
}

fn chain_goes_on(golden: &GoldenPack) {
    let mut lab = golden.lab();
    lab.at("2026-11-29T02:00:00+01:00[Europe/Berlin]");
    add_domain(&lab);
    let last = ids(&lab, DOMAIN).pop().expect("some");
    let status = lab.status(DOMAIN);
    let latest = status.latest.as_ref().map(|(id, _)| id);
    assert_eq!(latest, Some(&last));
    lab.host
        .disk(DOMAIN, "vda", |disk| disk.write(70 * KIB, &[0x15; 3000]));
    let outcome = lab.backup(DOMAIN).expect("a backup");
    assert_eq!(
        outcome.point.level,
        Level::Incremental,
        "{:?}",
        outcome.point.disks
    );
    assert_eq!(outcome.point.parent, Some(last));
    for target in ["vda", "vdb"] {
        lab.assert_gives_back(DOMAIN, target);
    }
    lab.assert_verified(DOMAIN);
    let same = compare(DOMAIN, &lab.context(&Silent), &Lab::comparing()).expect("compared");
    assert!(same.is_same(), "{:?}", same.disks);
    assert!(lab.host.domain(DOMAIN).is_ok());
}

fn points_are_copied_into_a_folder(golden: &GoldenPack) {
    let lab = golden.lab();
    let root = lab.folder.path().join("images");
    let store = std::sync::Arc::new(DiskStore);
    let folder = FolderRepository::open_or_create(&root, store).expect("a new repository");
    let means = transfer::Means {
        from: lab.repo.as_ref(),
        to: &folder,
        now: lab.now.clone(),
        monitor: &Silent,
        stop: &lab.stop,
    };
    let options = transfer::Options {
        wanted: Wanted::All,
        policy: Policy::default(),
        compression: vmsnap::model::compression::Compression::default(),
        wait: Duration::ZERO,
    };
    let outcome = transfer(DOMAIN, &means, &options).expect("copied");
    assert!(outcome.failure.is_none(), "{:?}", outcome.failure);
    let expected = ids(&lab, DOMAIN);
    let copied = outcome.copied.expect("no dry run");
    assert_eq!(
        copied.iter().map(|point| &point.id).collect::<Vec<_>>(),
        expected.iter().collect::<Vec<_>>()
    );
    let mut other = Lab::of(tempfile::tempdir().expect("a temporary folder"), Box::new(folder));
    other.now = lab.now.clone();
    for (id, disks) in expected.iter().zip(disks()) {
        assert!(
            other.restored(DOMAIN, id, "vda").expect("restored") == disks[0],
            "{id}"
        );
    }
}

fn policy_removes_and_collections_free_space(golden: &GoldenPack) {
    let lab = golden.lab();
    let before = ids(&lab, DOMAIN);
    let means = retention::Means {
        repo: lab.repo.as_ref(),
        now: lab.now.clone(),
        monitor: &Silent,
        stop: &lab.stop,
    };
    let options = retention::Options {
        policy: Policy::default().with(Rule::Last, Quota::AtMost(1)),
        wait: Duration::ZERO,
    };
    retention::prune(DOMAIN, &means, &options).expect("pruned");
    let kept = ids(&lab, DOMAIN);
    assert_eq!(kept, [before[2].clone(), before[3].clone()], "one is pinned");
    let how = Collection {
        grace: SignedDuration::ZERO,
        dry_run: false,
    };
    let collected = || {
        let report = collect(lab.repo.as_ref(), &how, &lab.stop).expect("it collects");
        report.expect("a pack repository")
    };
    let first = collected();
    assert!(first.condemned.packs > 0 && first.deleted.packs == 0, "{first:?}");
    make_old(&lab.folder.path().join("pack"));
    let second = collected();
    assert_eq!(second.deleted.packs, first.condemned.packs, "{second:?}");
    let disks = disks();
    for (id, disks) in kept.iter().zip(&disks[2..]) {
        assert!(
            lab.restored(DOMAIN, id, "vda").expect("restored") == disks[0],
            "{id}"
        );
    }
    everything_is_sound(&lab);
}

fn everything_is_sound(lab: &Lab) {
    lab.assert_verified(DOMAIN);
    lab.assert_verified(OTHER);
    let check = integrity::check(lab.repo.as_ref(), true, &Stop::default());
    let check = check.expect("it checks").expect("a pack repository");
    assert_eq!(check.damage, []);
}

fn lost_index_is_rebuilt(golden: &GoldenPack) {
    let lab = golden.lab();
    fs::remove_dir_all(lab.folder.path().join("pack/index")).expect("removed");
    let rebuilt = integrity::rebuild_index(lab.repo.as_ref(), &Rebuild::default(), &Stop::default());
    let rebuilt = rebuilt.expect("it rebuilds").expect("a pack repository");
    assert_eq!(rebuilt.listed, rebuilt.all);
    everything_is_sound(&lab);
}
