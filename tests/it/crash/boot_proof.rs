//! Boot proofs whose process ends at any step.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vmsnap::io::{DiskStore, Store};
use vmsnap::model::guest::BootLevel;
use vmsnap::model::stop::Stop;
use vmsnap::ops::Result;
use vmsnap::ops::boot::{Means, Memory, clear};
use vmsnap::ops::boot_proof::{Options, Outcome, prove};
use vmsnap::ops::verify::Which;
use vmsnap::repo::{BootProof, FolderRepository, Repository};
use vmsnap::testkit::{Blow, CrashHost, CrashStore, Fuse, SimGuest};

use super::world::{DOMAIN, World, at_step, every_end};
use crate::lab::{Lab, tree};

fn path(world: &World, name: &str) -> PathBuf {
    world.lab.folder.path().join(name)
}

fn prepare(world: &World) {
    for name in ["state", "scratch", "pictures"] {
        fs::create_dir(path(world, name)).expect("new");
    }
    world.lab.host.set_trial_guest(SimGuest {
        console: b"vm1 login: ".to_vec(),
        screen: b"P6\n1 1\n255\n\x01\x02\x03".to_vec(),
        ..SimGuest::default()
    });
}

fn open(world: &World, store: Arc<dyn Store>) -> FolderRepository {
    FolderRepository::open(&world.root(), store).expect("it is there")
}

fn run(world: &World, fuse: &Fuse) -> Result<Outcome> {
    let host = CrashHost::new(world.lab.host.clone(), fuse);
    let repo = open(world, Arc::new(CrashStore::new(fuse)));
    let options = Options {
        which: Which::Latest,
        proven_since: None,
        level: None,
        pattern: None,
        command: Vec::new(),
        deadline: Duration::from_secs(600),
        memory: Memory::Own,
        scratch: path(world, "scratch"),
        pictures: Some(path(world, "pictures")),
    };
    let means = Means {
        repo: &repo,
        store: &CrashStore::new(fuse),
        host: &host,
        state: &path(world, "state"),
        monitor: &world.lab.recorder,
        stop: &Stop::default(),
        glance: Duration::from_millis(1),
    };
    let now = world.lab.now.timestamp();
    prove(DOMAIN, &means, &options, &|| now)
}

/// The boot proof of the newest restore point.
fn kept(world: &World) -> Option<BootProof> {
    let repo = open(world, Arc::new(DiskStore));
    let history = repo.domain(DOMAIN).expect("there").history().expect("readable");
    history.kept.last().expect("a restore point").boot_proof.clone()
}

#[test]
fn a_boot_proof_ends_anywhere_and_the_next_succeeds() {
    let mut world = World::new();
    world.backup(&Lab::options());
    let counting = world.fork();
    prepare(&counting);
    let fuse = Fuse::default();
    run(&counting, &fuse).expect("it is not disturbed");
    let steps = fuse.steps();
    for wanted in ["start the domain", ".boot.json", ".png"] {
        assert!(steps.iter().any(|step| step.contains(wanted)), "{steps:#?}");
    }
    let mut known = [0, 0];
    for (number, blow) in every_end(&steps, &Blow::ALL) {
        at_step(&steps, number, &blow, || {
            let world = world.fork();
            prepare(&world);
            let fuse = Fuse::at(number, blow);
            let ended = run(&world, &fuse);
            if fuse.is_dead() {
                world.lab.host.client_died();
            }
            let proof = kept(&world);
            assert!(proof.iter().all(BootProof::is_proven), "{proof:?} {ended:?}");
            known[usize::from(proof.is_some())] += 1;
            clear(&world.lab.host, &DiskStore, &path(&world, "state"));
            assert!(world.lab.host.running_trials().is_empty());
            assert_eq!(tree(&path(&world, "scratch")), [""; 0]);
            let outcome = run(&world, &Fuse::default()).expect("nothing is in its way");
            assert_eq!(outcome.points[0].proof.reached, BootLevel::Console);
            assert_eq!(kept(&world).as_ref(), Some(&outcome.points[0].proof));
            let pictures = tree(&path(&world, "pictures"));
            assert_eq!(pictures.len(), 2, "{pictures:?}");
            world.assert_all_give_back();
        });
    }
    assert!(known[0] > 0 && known[1] > 0, "{known:?}");
}
