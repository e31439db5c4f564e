//! Trial domains whose process ends at any step.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use vmsnap::host::Host;
use vmsnap::io::DiskStore;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::Result;
use vmsnap::ops::boot::{Means, Options, Outcome, boot, clear, plan};
use vmsnap::repo::FolderRepository;
use vmsnap::testkit::{Blow, CrashHost, CrashStore, Fuse};

use super::world::{DOMAIN, TPM_FILE, World, at_step, every_end, tpm_folder};
use crate::lab::{Lab, tree};

/// A folder with somebody's file, in which disks are kept.
const IMAGES: &str = "images";

fn world() -> World {
    let mut world = World::new();
    world.backup(&Lab::options());
    world
}

fn path(world: &World, name: &str) -> std::path::PathBuf {
    world.lab.folder.path().join(name)
}

fn prepare(world: &World) {
    for name in ["state", "scratch", IMAGES] {
        fs::create_dir(path(world, name)).expect("new");
    }
    fs::write(path(world, IMAGES).join("precious"), b"x").expect("written");
}

fn run(world: &World, keeps: bool, fuse: &Fuse) -> Result<Outcome> {
    let host = CrashHost::new(world.lab.host.clone(), fuse);
    let store = CrashStore::new(fuse);
    let repo = FolderRepository::open(&world.root(), Arc::new(DiskStore)).expect("it is there");
    let options = Options {
        at: "latest".to_owned(),
        keep: keeps.then(|| path(world, IMAGES)),
        scratch: path(world, "scratch"),
        ..Options::default()
    };
    let stop = Stop::default();
    let state = path(world, "state");
    let means = Means {
        repo: &repo,
        store: &store,
        host: &host,
        state: &state,
        monitor: &world.lab.recorder,
        stop: &stop,
        glance: Duration::from_millis(1),
    };
    let plan = plan(DOMAIN, &repo, &host, &options)?;
    boot(DOMAIN, plan, &means, |_| {
        if !keeps {
            stop.request(StopReason::Interrupted);
        }
    })
}

/// Either nothing is left of the new domain, or it is whole and defined.
fn assert_gone_or_kept(world: &World, is_kept: bool) {
    let host = &world.lab.host;
    let name = format!("{DOMAIN}-boot");
    let mut expected = vec!["precious".to_owned()];
    if is_kept {
        let kept = host.domain(&name).expect("it is defined");
        let running = host.running_trials();
        assert!(running.contains_key(&kept.uuid), "it goes on");
        for disk in &kept.disks {
            expected.push(format!("{}.qcow2", disk.target));
        }
        expected.push(format!("{name}_VARS.fd"));
    } else {
        assert!(host.domain(&name).is_err(), "it is not defined");
        assert!(host.running_trials().is_empty());
        let folder = tpm_folder(&world.lab);
        let states = match folder.exists() {
            true => tree(&folder),
            false => Vec::new(),
        };
        let ours = states.iter().filter(|path| path.ends_with(TPM_FILE)).count();
        assert_eq!(ours, 0, "{states:?}");
    }
    let mut found = tree(&path(world, IMAGES));
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(tree(&path(world, "scratch")), [""; 0]);
    let records = path(world, "state/boot");
    assert!(
        !records.exists() || tree(&records).is_empty(),
        "{:?}",
        tree(&records)
    );
}

#[test]
fn a_trial_ends_anywhere_and_the_next_run_clears() {
    let world = world();
    for keeps in [false, true] {
        let counting = world.fork();
        prepare(&counting);
        let fuse = Fuse::default();
        run(&counting, keeps, &fuse).expect("it is not disturbed");
        assert_gone_or_kept(&counting, keeps);
        let steps = fuse.steps();
        for wanted in ["start the domain", "create"] {
            assert!(steps.iter().any(|step| step.contains(wanted)), "{steps:#?}");
        }
        let mut outcomes = [0, 0];
        for (number, blow) in every_end(&steps, &Blow::ALL) {
            at_step(&steps, number, &blow, || {
                let world = world.fork();
                prepare(&world);
                let fuse = Fuse::at(number, blow);
                let ended = run(&world, keeps, &fuse);
                if fuse.is_dead() {
                    world.lab.host.client_died();
                }
                let cleared = clear(&world.lab.host, &DiskStore, &path(&world, "state"));
                let is_defined = world.lab.host.domain(&format!("{DOMAIN}-boot")).is_ok();
                assert!(keeps || !is_defined);
                if ended.is_ok() && !fuse.is_dead() {
                    assert_eq!(is_defined, keeps, "{:?}", cleared);
                }
                outcomes[usize::from(is_defined)] += 1;
                assert_gone_or_kept(&world, is_defined);
                world.assert_all_give_back();
            });
        }
        assert!(outcomes[0] > 0 && (outcomes[1] > 0) == keeps, "{outcomes:?}");
    }
}
