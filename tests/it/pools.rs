//! Restores into storage pools: the disks become volumes.

use std::fs;
use std::path::{Path, PathBuf};

use vmsnap::host::{Host, HostError, Refusal, VolumeKind};
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::restore::{self, DefineOptions, Format, Options, Outcome, RestorePlan};
use vmsnap::ops::{Cause, Class, Event, Monitor, Result};

use crate::lab::{CLUSTER, InFolder, Lab, read_qcow2, tree};

const SIZE: usize = 2 * CLUSTER + 1536;

/// A lab with a restore point of two disks, and a pool `pool` with a foreign volume.
fn lab(kind: VolumeKind) -> Lab {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", SIZE), ("vdb", SIZE)]);
    lab.host.set_nvram("vm1", b"variables");
    for (disk, byte) in [("vda", 1), ("vdb", 2)] {
        lab.host.disk("vm1", disk, |disk| disk.write(0, &[byte; 70_000]));
    }
    lab.backup_with("vm1", &Lab::plain()).expect("a restore point");
    let (pool, nvram) = (folder(&lab), nvram_folder(&lab));
    for dir in [&pool, &nvram] {
        fs::create_dir(dir).expect("new");
    }
    fs::write(pool.join("foreign"), "x").expect("written");
    lab.host.add_pool("pool", kind, &pool, 1 << 30);
    lab.host.set_nvram_folder(&nvram);
    lab
}

fn folder(lab: &Lab) -> PathBuf {
    lab.folder.path().join("pool")
}

fn nvram_folder(lab: &Lab) -> PathBuf {
    lab.folder.path().join("nvram")
}

fn options() -> Options {
    Options {
        at: "latest".to_owned(),
        to: PathBuf::new(),
        pool: Some("pool".to_owned()),
        disks: Vec::new(),
        format: None,
        define: None,
    }
}

fn plan(lab: &Lab, options: &Options) -> Result<RestorePlan> {
    restore::plan("vm1", lab.repo.as_ref(), Some(&lab.host), options)
}

fn restored_with(lab: &Lab, options: &Options, monitor: &dyn Monitor, stop: &Stop) -> Result<Outcome> {
    let means = restore::Means {
        host: Some(&lab.host),
        ..lab.means(monitor, stop)
    };
    restore::restore("vm1", plan(lab, options)?, &means)
}

fn restored(lab: &Lab, options: &Options) -> Result<Outcome> {
    restored_with(lab, options, &lab.recorder, &Stop::default())
}

/// The pool holds these names and the foreign file, and the hypervisor knows all of them.
fn assert_holds(lab: &Lab, names: &[&str]) {
    let mut expected: Vec<&str> = [&["foreign"], names].concat();
    expected.sort_unstable();
    assert_eq!(tree(&folder(lab)), expected);
    assert_eq!(lab.host.volumes("pool"), expected);
    assert_eq!(fs::read(folder(lab).join("foreign")).expect("it is there"), b"x");
}

#[test]
fn disks_become_volumes_of_a_folder() {
    let lab = lab(VolumeKind::Files);
    let outcome = restored(&lab, &options()).expect("restored");
    assert_holds(&lab, &["vm1-vda.qcow2", "vm1-vdb.qcow2"]);
    for (disk, restored) in ["vda", "vdb"].into_iter().zip(&outcome.plan.disks) {
        assert_eq!(restored.to, folder(&lab).join(format!("vm1-{disk}.qcow2")));
        assert!(read_qcow2(&restored.to) == lab.disk("vm1", disk));
    }
    let raw = Options {
        format: Some(Format::Raw),
        disks: vec!["vdb".to_owned()],
        ..options()
    };
    restored(&lab, &raw).expect("restored");
    let volume = folder(&lab).join("vm1-vdb.raw");
    assert!(fs::read(volume).expect("it is there") == lab.disk("vm1", "vdb"));
    assert_holds(&lab, &["vm1-vda.qcow2", "vm1-vdb.qcow2", "vm1-vdb.raw"]);
}

#[test]
fn disks_become_devices_and_the_rest_of_a_device_is_zero() {
    let lab = lab(VolumeKind::Devices);
    let outcome = restored(&lab, &options()).expect("restored");
    assert_holds(&lab, &["vm1-vda", "vm1-vdb"]);
    for disk in ["vda", "vdb"] {
        let mut expected = lab.disk("vm1", disk);
        expected.resize(1 << 20, 0);
        let volume = fs::read(folder(&lab).join(format!("vm1-{disk}"))).expect("it is there");
        assert!(volume == expected, "{disk}");
    }
    assert!(outcome.plan.disks.iter().all(|disk| disk.format == Format::Raw));
    let qcow2 = Options {
        format: Some(Format::Qcow2),
        define: Some(DefineOptions {
            name: Some("other".to_owned()),
        }),
        ..options()
    };
    let error = plan(&lab, &qcow2).expect_err("a device is raw");
    assert_eq!(error.class(), Class::Usage, "{error}");
}

#[test]
fn existing_volumes_are_refused_and_stay() {
    for (kind, name) in [
        (VolumeKind::Files, "vm1-vdb.qcow2"),
        (VolumeKind::Devices, "vm1-vdb"),
    ] {
        for is_known in [true, false] {
            let lab = lab(kind);
            fs::write(folder(&lab).join(name), "precious").expect("written");
            if is_known {
                lab.host.refresh_pool("pool").expect("refreshed");
            }
            let error = restored(&lab, &options()).expect_err("it exists");
            match &error.cause {
                Cause::VolumeExists {
                    pool,
                    name: found,
                    is_unfinished: false,
                } if is_known => {
                    assert_eq!((pool.as_str(), found.as_str()), ("pool", name));
                    assert!(error.hint().is_some_and(|hint| hint.contains("virsh vol-delete")));
                }
                Cause::Exists(path) if !is_known => assert!(path.ends_with(name)),
                other => panic!("{other}"),
            }
            let content = fs::read(folder(&lab).join(name)).expect("it is there");
            assert_eq!(content, b"precious");
            assert_eq!(tree(&folder(&lab)).len(), 2, "nothing was made");
        }
    }
}

#[test]
fn unusable_pools_are_refused_with_what_to_do() {
    let lab = lab(VolumeKind::Files);
    let other = Options {
        pool: Some("no such".to_owned()),
        ..options()
    };
    let error = plan(&lab, &other).expect_err("there is none");
    assert!(
        matches!(
            &error.cause,
            Cause::Host(HostError::Refused(Refusal::NoSuchPool { .. }))
        ),
        "{error}"
    );
    lab.host.stop_pool("pool");
    let error = plan(&lab, &options()).expect_err("it is not active");
    assert!(
        error
            .to_string()
            .contains("start it with `virsh pool-start pool`"),
        "{error}"
    );
    lab.host
        .add_pool("pool", VolumeKind::Files, &folder(&lab), 3 * CLUSTER as u64);
    let error = restored(&lab, &options()).expect_err("it is full");
    assert!(
        matches!(&error.cause, Cause::PoolFull { free, needed, .. } if *free < *needed),
        "{error}"
    );
    assert_holds(&lab, &[]);
    let none = restore::plan("vm1", lab.repo.as_ref(), None, &options());
    assert_eq!(none.expect_err("it needs a hypervisor").class(), Class::Usage);
}

#[test]
fn a_failed_restore_deletes_its_volumes() {
    for kind in [VolumeKind::Files, VolumeKind::Devices] {
        let lab = lab(kind);
        let kept = lab.history("vm1").kept.pop().expect("a restore point");
        let image = kept.dir().join("vdb.qcow2");
        let mut bytes = fs::read(&image).expect("an image");
        bytes[CLUSTER + 10] ^= 1;
        fs::write(&image, bytes).expect("written");
        let error = restored(&lab, &options()).expect_err("it is damaged");
        assert_eq!(error.class(), Class::Damaged, "{error}");
        assert_holds(&lab, &[]);
    }
}

/// Asks to stop when the second disk begins.
struct Stopper(Stop);

impl Monitor for Stopper {
    fn event(&self, event: Event<'_>) {
        if let Event::DiskBegins { disk: "vdb", .. } = event {
            self.0.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn an_interrupted_restore_deletes_its_volumes() {
    for kind in [VolumeKind::Files, VolumeKind::Devices] {
        let lab = lab(kind);
        let stop = Stop::default();
        let error = restored_with(&lab, &options(), &Stopper(stop.clone()), &stop).expect_err("stopped");
        assert!(error.is_stopped(), "{error}");
        assert_holds(&lab, &[]);
    }
}

/// A killed restore leaves a device with its final name: it is known by its first bytes.
#[test]
fn a_device_of_a_killed_restore_is_told_from_a_good_one() {
    let lab = lab(VolumeKind::Devices);
    let volume = folder(&lab).join("vm1-vda");
    let mark = b"vmsnap: the restore onto this volume has not ended";
    // The first bytes are written last.
    struct Looker<'a>(&'a Path, std::sync::atomic::AtomicBool);
    impl Monitor for Looker<'_> {
        fn event(&self, event: Event<'_>) {
            if let Event::DiskAt { disk: "vda", .. } = event {
                let bytes = fs::read(self.0).expect("it is there");
                let is_marked = bytes.starts_with(b"vmsnap: the restore onto this volume has not ended");
                self.1.store(is_marked, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
    let looker = Looker(&volume, std::sync::atomic::AtomicBool::default());
    restored_with(&lab, &options(), &looker, &Stop::default()).expect("restored");
    assert!(
        looker.1.load(std::sync::atomic::Ordering::Relaxed),
        "it was marked"
    );
    let mut bytes = fs::read(&volume).expect("it is there");
    assert!(!bytes.starts_with(mark));
    bytes[..mark.len()].copy_from_slice(mark);
    bytes[mark.len()..mark.len() + 28].copy_from_slice(b", so the volume lacks data\n\0");
    fs::write(&volume, bytes).expect("written");
    let error = restored(&lab, &options()).expect_err("it exists");
    assert!(error.to_string().contains("of an unfinished restore"), "{error}");
}

#[test]
fn a_defined_domain_uses_the_volumes() {
    for (kind, words) in [
        (VolumeKind::Files, "<source file='POOL/copy-vda.qcow2'/>"),
        (VolumeKind::Devices, "<source dev='POOL/copy-vda'/>"),
    ] {
        let lab = lab(kind);
        let define = Options {
            define: Some(DefineOptions {
                name: Some("copy".to_owned()),
            }),
            ..options()
        };
        let outcome = restored(&lab, &define).expect("restored");
        let xml = outcome.plan.define.expect("it was defined").xml;
        let words = words.replace("POOL", &folder(&lab).display().to_string());
        assert!(xml.contains(&words), "{xml}");
        let nvram = nvram_folder(&lab).join("copy_VARS.fd");
        assert_eq!(fs::read(&nvram).expect("restored"), b"variables");
        assert!(xml.contains(&nvram.display().to_string()), "{xml}");
        assert!(lab.host.is_defined("copy", "").expect("known").0);
    }
}
