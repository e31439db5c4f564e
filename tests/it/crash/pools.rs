//! Restores into a storage pool that stop at any step.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use vmsnap::host::{Host, VolumeKind};
use vmsnap::io::{DiskStore, Store};
use vmsnap::model::stop::Stop;
use vmsnap::ops::restore::{self, DefineOptions, Options, Outcome};
use vmsnap::ops::{Cause, Result};
use vmsnap::repo::FolderRepository;
use vmsnap::testkit::{Blow, CrashHost, CrashStore, Fuse};

use super::world::{DOMAIN, World, at_step, every_end};
use crate::lab::{Lab, read_qcow2, tree};

const COPY: &str = "copy";
const MARK: &[u8] = b"vmsnap: the restore onto this volume has not ended";

fn pool(world: &World) -> PathBuf {
    world.lab.folder.path().join("pool")
}

/// Adds a pool with a foreign volume.
fn prepare(world: &World, kind: VolumeKind) {
    let nvram = world.lab.folder.path().join("nvram");
    for dir in [pool(world), nvram.clone()] {
        fs::create_dir(dir).expect("new");
    }
    fs::write(pool(world).join("foreign"), "x").expect("written");
    world.lab.host.add_pool("pool", kind, &pool(world), 1 << 30);
    world.lab.host.set_nvram_folder(&nvram);
}

fn carry_out(world: &World, host: &dyn Host, store: Arc<dyn Store>) -> Result<Outcome> {
    let options = Options {
        at: "latest".to_owned(),
        to: PathBuf::new(),
        pool: Some("pool".to_owned()),
        disks: Vec::new(),
        format: None,
        define: Some(DefineOptions {
            name: Some(COPY.to_owned()),
        }),
    };
    let repo = FolderRepository::open(&world.root(), Arc::clone(&store)).expect("it is there");
    let plan = restore::plan(DOMAIN, &repo, Some(host), &options)?;
    let means = restore::Means {
        repo: &repo,
        store: store.as_ref(),
        host: Some(host),
        monitor: &world.lab.recorder,
        stop: &Stop::default(),
    };
    restore::restore(DOMAIN, plan, &means)
}

fn crash(world: &World, fuse: &Fuse) -> Result<Outcome> {
    let host = CrashHost::new(world.lab.host.clone(), fuse);
    carry_out(world, &host, Arc::new(CrashStore::new(fuse)))
}

/// The volumes with their final names. Each is complete, or shows that it is not.
fn assert_whole_or_marked(world: &World, kind: VolumeKind) -> Vec<String> {
    let disks = &world.moments.last().expect("there is one").disks;
    let mut there = Vec::new();
    for (disk, bytes) in disks {
        let name = match kind {
            VolumeKind::Files => format!("{COPY}-{disk}.qcow2"),
            VolumeKind::Devices => format!("{COPY}-{disk}"),
        };
        let path = pool(world).join(&name);
        if !path.exists() {
            continue;
        }
        match kind {
            VolumeKind::Files => assert!(read_qcow2(&path) == *bytes, "{name} is not whole"),
            VolumeKind::Devices => {
                let found = fs::read(&path).expect("it is there");
                let is_whole = found.starts_with(bytes);
                // As libvirt has made it.
                let is_new = found.iter().all(|byte| *byte == 0xaa);
                assert!(is_whole || is_new || found.starts_with(MARK), "{name}");
            }
        }
        there.push(name);
    }
    assert_eq!(fs::read(pool(world).join("foreign")).expect("it is there"), b"x");
    there
}

#[test]
fn restore_into_a_pool_ends_anywhere_and_the_next_succeeds() {
    let mut world = World::new();
    world.backup(&Lab::options());
    world.backup(&Lab::options());
    for kind in [VolumeKind::Files, VolumeKind::Devices] {
        let steps = {
            let world = world.fork();
            prepare(&world, kind);
            let fuse = Fuse::default();
            crash(&world, &fuse).expect("it is not disturbed");
            fuse.steps()
        };
        let made = steps.iter().filter(|step| *step == "create the volume").count();
        assert_eq!(made, 2, "{steps:#?}");
        for (number, blow) in every_end(&steps, &Blow::ALL) {
            at_step(&steps, number, &blow, || {
                let world = world.fork();
                prepare(&world, kind);
                let fuse = Fuse::at(number, blow);
                let outcome = crash(&world, &fuse);
                let there = assert_whole_or_marked(&world, kind);
                if outcome.is_ok() && !fuse.is_dead() {
                    assert_eq!(there.len(), 2);
                }
                assert_next_succeeds(&world, kind, &there);
            });
        }
    }
}

/// A second restore is refused while a volume of the first is there, and succeeds after the user
/// has deleted it. Nothing else is left in the pool.
fn assert_next_succeeds(world: &World, kind: VolumeKind, there: &[String]) {
    let host = world.lab.host.fork();
    host.remove_domain(COPY);
    if !there.is_empty() {
        let error = carry_out(world, &host, Arc::new(DiskStore)).expect_err("a volume exists");
        assert!(
            matches!(&error.cause, Cause::VolumeExists { .. } | Cause::Exists(_)),
            "{error}"
        );
    }
    for name in there {
        fs::remove_file(pool(world).join(name)).expect("the user deletes it");
    }
    let variables = world
        .lab
        .folder
        .path()
        .join("nvram")
        .join(format!("{COPY}_VARS.fd"));
    let _ = fs::remove_file(variables);
    host.refresh_pool("pool").expect("refreshed");
    carry_out(world, &host, Arc::new(DiskStore)).expect("nothing is in its way");
    let whole = assert_whole_or_marked(world, kind);
    let mut expected: Vec<String> = [vec!["foreign".to_owned()], whole].concat();
    expected.sort();
    assert_eq!(expected.len(), 3);
    assert_eq!(tree(&pool(world)), expected);
    assert_eq!(host.volumes("pool"), expected);
    let left = tree(&world.lab.folder.path().join("nvram"));
    assert_eq!(left, [format!("{COPY}_VARS.fd")]);
}
