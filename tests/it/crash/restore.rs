//! Restores that stop at any step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmsnap::host::Host;
use vmsnap::io::{DiskStore, Store};
use vmsnap::model::stop::Stop;
use vmsnap::ops::restore::{self, DefineOptions, Format, Options, Outcome};
use vmsnap::ops::{Cause, Result};
use vmsnap::repo::FolderRepository;
use vmsnap::testkit::{Blow, CrashHost, CrashStore, Fuse};

use super::world::{DOMAIN, TPM_FILE, World, at_step, every_end, tpm_folder};
use crate::lab::{Lab, tree};

const COPY: &str = "copy";

/// A restore into a folder beside the repository.
struct Errand {
    format: Format,
    define: bool,
    /// Whether the folder exists beforehand, with a foreign file in it.
    into_existing: bool,
}

impl Errand {
    fn to(&self, world: &World) -> PathBuf {
        world.lab.folder.path().join("restored")
    }

    fn prepare(&self, world: &World) {
        if self.into_existing {
            let to = self.to(world);
            fs::create_dir(&to).expect("new");
            fs::write(to.join("precious"), b"x").expect("written");
            // A foreign file with a name similar to ours.
            fs::write(to.join(".vmsnap-restore-mine.partial"), b"x").expect("written");
        }
    }

    fn carry_out(&self, world: &World, host: &dyn Host, store: Arc<dyn Store>) -> Result<Outcome> {
        let options = Options {
            at: "latest".to_owned(),
            to: self.to(world),
            pool: None,
            disks: Vec::new(),
            format: Some(self.format),
            define: self.define.then(|| DefineOptions {
                name: Some(COPY.to_owned()),
            }),
        };
        let repo = FolderRepository::open(&world.root(), Arc::clone(&store)).expect("it is there");
        let plan = restore::plan(DOMAIN, &repo, Some(host), &options)?;
        restore::restore(
            DOMAIN,
            plan,
            &restore::Means {
                repo: &repo,
                store: store.as_ref(),
                host: Some(host),
                monitor: &world.lab.recorder,
                stop: &Stop::default(),
            },
        )
    }

    fn crash(&self, world: &World, fuse: &Fuse, store: CrashStore) -> Result<Outcome> {
        let host = CrashHost::new(world.lab.host.clone(), fuse);
        self.carry_out(world, &host, Arc::new(store))
    }

    fn steps(&self, world: &World) -> Vec<String> {
        let world = world.fork();
        self.prepare(&world);
        let fuse = Fuse::default();
        self.crash(&world, &fuse, CrashStore::new(&fuse))
            .expect("it is not disturbed");
        fuse.steps()
    }

    /// The files that a complete restore writes.
    fn expected(&self, world: &World) -> BTreeMap<String, Vec<u8>> {
        let disks = &world.moments.last().expect("there is one").disks;
        let name = |disk: &str| format!("{disk}.{}", self.format.word());
        let mut files: BTreeMap<String, Vec<u8>> = disks
            .iter()
            .map(|(disk, bytes)| (name(disk), bytes.clone()))
            .collect();
        if self.define {
            files.insert(format!("{COPY}_VARS.fd"), b"variables".to_vec());
        }
        files
    }

    /// Every file with a final name is whole, and foreign files are unchanged. Returns the names
    /// that exist.
    fn assert_whole_or_absent(&self, world: &World) -> Vec<String> {
        let to = self.to(world);
        let mut there = Vec::new();
        for (name, bytes) in self.expected(world) {
            let path = to.join(&name);
            if path.exists() {
                assert!(
                    content(&path) == bytes,
                    "{name} has its final name but is not whole"
                );
                there.push(name);
            }
        }
        let states = self.tpm_files(world);
        for state in &states {
            assert_eq!(
                fs::read(state).expect("a state"),
                b"keys",
                "it is whole or absent"
            );
        }
        if self.into_existing {
            for name in ["precious", ".vmsnap-restore-mine.partial"] {
                assert_eq!(fs::read(to.join(name)).expect("somebody's file"), b"x");
            }
        }
        there
    }

    /// The files of states in libvirt's folder that have their final names.
    fn tpm_files(&self, world: &World) -> Vec<PathBuf> {
        let folder = tpm_folder(&world.lab);
        let paths = states(world).into_iter().map(|path| folder.join(path));
        paths.filter(|path| path.ends_with(TPM_FILE)).collect()
    }

    /// A second restore into the same folder is refused while a file of the first is there. It
    /// succeeds once those files, which are all whole, have been removed.
    fn assert_second_succeeds(&self, world: &World, there: &[String]) {
        let to = self.to(world);
        let again = |host: &dyn Host| self.carry_out(world, host, Arc::new(DiskStore));
        let host = world.lab.host.fork();
        if !there.is_empty() && !host.is_defined(COPY, "").expect("the domain is looked up").0 {
            let error = again(&host).expect_err("it would overwrite a file");
            assert!(
                matches!(&error.cause, Cause::Exists(path) if there.iter().any(|name| path.ends_with(name))),
                "{error}"
            );
        }
        for name in there {
            fs::remove_file(to.join(name)).expect("the user removes it");
        }
        // A domain that was defined also causes a refusal, so the user removes it as well.
        let second = again(&undefined(world)).expect("nothing is in its way");
        assert_eq!(second.written.len(), 2);
        let whole: Vec<String> = self.expected(world).into_keys().collect();
        assert_eq!(self.assert_whole_or_absent(world), whole);
        let mut found = tree(&to);
        found.retain(|name| !whole.contains(name));
        let others: &[&str] = match self.into_existing {
            true => &[".vmsnap-restore-mine.partial", "precious"],
            false => &[],
        };
        assert_eq!(found, others, "nothing else is left");
        if self.define {
            let uuid = second.plan.define.expect("it was defined").uuid;
            let state = tpm_folder(&world.lab).join(uuid).join("tpm2").join(TPM_FILE);
            assert_eq!(fs::read(state).expect("it is restored"), b"keys");
        }
        let states = states(world);
        assert!(!states.iter().any(|path| path.contains(".partial")), "{states:?}");
    }
}

/// The content of libvirt's folder with the states of TPMs.
fn states(world: &World) -> Vec<String> {
    let folder = tpm_folder(&world.lab);
    match folder.exists() {
        true => tree(&folder),
        false => Vec::new(),
    }
}

/// The hypervisor without the domain that a crashed restore may have defined.
fn undefined(world: &World) -> vmsnap::testkit::SimHost {
    let host = world.lab.host.fork();
    host.remove_domain(COPY);
    host
}

/// The disk in a restored image, or the bytes of any other file.
fn content(path: &Path) -> Vec<u8> {
    if path.extension().is_some_and(|ending| ending == "qcow2") {
        crate::lab::read_qcow2(path)
    } else {
        fs::read(path).expect("it is there")
    }
}

fn errands() -> [Errand; 4] {
    [
        (Format::Qcow2, false, false),
        (Format::Raw, false, true),
        (Format::Qcow2, true, true),
        (Format::Raw, true, false),
    ]
    .map(|(format, define, into_existing)| Errand {
        format,
        define,
        into_existing,
    })
}

fn world() -> World {
    let mut world = World::new();
    world.backup(&Lab::options());
    world.backup(&Lab::options());
    world
}

#[test]
fn restore_ends_anywhere_and_the_next_one_clears_up() {
    let world = world();
    for errand in errands() {
        let steps = errand.steps(&world);
        for (number, blow) in every_end(&steps, &Blow::ALL) {
            at_step(&steps, number, &blow, || {
                let mut world = world.fork();
                errand.prepare(&world);
                let fuse = Fuse::at(number, blow);
                let outcome = errand.crash(&world, &fuse, CrashStore::new(&fuse));
                let there = errand.assert_whole_or_absent(&world);
                if outcome.is_ok() && !fuse.is_dead() {
                    assert_eq!(there.len(), errand.expected(&world).len());
                }
                // A failed step undoes the state of the TPM, unless the domain needs it.
                if blow == Blow::Fails {
                    let is_defined = world.lab.host.is_defined(COPY, "").expect("it is known").0;
                    assert_eq!(
                        errand.tpm_files(&world).len(),
                        usize::from(is_defined && errand.define)
                    );
                }
                errand.assert_second_succeeds(&world, &there);
                world.assert_kept(None);
            });
        }
    }
}

#[test]
fn finished_restore_survives_a_power_cut() {
    let world = world();
    for errand in errands() {
        for seed in 0..8 {
            let world = world.fork();
            errand.prepare(&world);
            let fuse = Fuse::default();
            let store = CrashStore::with_power(&fuse, world.lab.folder.path()).expect("it can be read");
            errand
                .crash(&world, &fuse, store.clone())
                .expect("it is not disturbed");
            store.cut_power(seed).expect("files are written");
            let there = errand.assert_whole_or_absent(&world);
            assert_eq!(
                there.len(),
                errand.expected(&world).len(),
                "seed {seed}: {there:?}"
            );
            assert_eq!(errand.tpm_files(&world).len(), usize::from(errand.define));
        }
    }
}

#[test]
fn power_cut_in_a_restore_leaves_only_whole_files() {
    let world = world();
    for errand in errands() {
        let steps = errand.steps(&world);
        for number in 0..steps.len() {
            at_step(&steps, number, &"power cut", || {
                let world = world.fork();
                errand.prepare(&world);
                let fuse = Fuse::at(number, Blow::KilledBefore);
                let store = CrashStore::with_power(&fuse, world.lab.folder.path()).expect("it can be read");
                // The process may have been killed after its success.
                let _ = errand.crash(&world, &fuse, store.clone());
                store.cut_power(number as u64).expect("files are written");
                let there = errand.assert_whole_or_absent(&world);
                errand.assert_second_succeeds(&world, &there);
            });
        }
    }
}

#[test]
fn files_of_a_running_restore_are_left_alone() {
    let world = world();
    let [errand, ..] = errands();
    let to = errand.to(&world);
    fs::create_dir(&to).expect("new");
    let living = to.join(".vmsnap-restore-0123456789abcdef0123456789abcdef.partial");
    let dead = to.join(".vmsnap-restore-00000000000000000000000000000000.partial");
    let (_file, claim) = DiskStore.create_claimed(&living).expect("new");
    fs::write(&dead, b"half a disk").expect("written");
    let outcome = errand
        .carry_out(&world, &world.lab.host, Arc::new(DiskStore))
        .expect("restored");
    let findings = outcome.plan.findings;
    assert!(
        findings
            .iter()
            .any(|found| found.code == "healed-restore" && found.message.contains("-0000000")),
        "{findings:?}"
    );
    assert!(living.exists() && !dead.exists());
    drop(claim);
}
