//! `vmsnap restore --pool`: the disks become volumes of libvirt's storage pools.

use std::fs;

use rustix::process::Signal;

use crate::cli_lab::{Change, Machine, Repo, STOP_DEADLINE, json, text_of};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::kinds_lab::{Pool, make, text};
use crate::process::{command, run};

const MIB: usize = 1 << 20;

fn args<'a>(name: &'a str, root: &'a str, pool: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = [
        "restore",
        name,
        "--repository",
        root,
        "--pool",
        pool,
        "--connect",
        URI,
    ];
    [&words[..], more].concat()
}

/// The names of a pool's volumes that libvirt shows, sorted.
fn volumes(daemon: &Daemon, pool: &str) -> Vec<String> {
    let listed = daemon.virsh(&["vol-list", pool]);
    let lines = listed
        .lines()
        .skip(2)
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let mut names: Vec<String> = lines
        .filter_map(|line| line.split_whitespace().next())
        .map(String::from)
        .collect();
    names.sort();
    names
}

#[test]
fn disks_become_volumes_of_a_pool_and_the_domain_uses_them() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "pooled", &[4 * MIB, MIB]);
    machine.change(0, MIB, MIB, Change::Data(0x31));
    machine.change(1, 0, 65536, Change::Data(0x32));
    let repo = Repo::new();
    let root = repo.root().display().to_string();
    repo.back_up(machine.name(), &[]);

    let back = TestDomain::new(&daemon, "pooled-back");
    let folder = back.path("pool");
    fs::create_dir(&folder).expect("it is new");
    make(&folder, 0o755);
    let pool = back.name();
    let _pool = Pool::new(&daemon, pool, &folder);
    let define = ["--define", "--name", back.name(), "--json"];
    let dry = repo.run(&args(machine.name(), &root, pool, &["--dry-run"]));
    assert_eq!(dry.code, Some(0), "{dry:#?}");
    assert!(
        dry.stdout.contains(&format!("volume of the storage pool {pool}")),
        "{dry:#?}"
    );
    assert_eq!(volumes(&daemon, pool), [""; 0], "a dry run makes nothing");

    let ended = repo.run(&args(machine.name(), &root, pool, &define));
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let document = json(&ended);
    assert_eq!(text_of(&document["pool"]), pool);
    let names = ["vda", "vdb"].map(|disk| format!("{}-{disk}.qcow2", back.name()));
    assert_eq!(volumes(&daemon, pool), names);
    for (disk, name) in names.iter().enumerate() {
        assert_eq!(text_of(&document["disks"][disk]["volume"]), name);
        let (path, raw) = (folder.join(name), back.path("raw"));
        let info = daemon.virsh(&["vol-dumpxml", name, "--pool", pool]);
        assert!(info.contains("<format type='qcow2'/>"), "{info}");
        let size = format!("<capacity unit='bytes'>{}</capacity>", machine.disks[disk].len());
        assert!(
            info.contains(&size),
            "libvirt has looked at the finished image: {info}"
        );
        run(command(
            "qemu-img",
            &["convert", "-f", "qcow2", "-O", "raw", text(&path), text(&raw)],
        ));
        assert!(fs::read(&raw).expect("it was made") == machine.disks[disk]);
    }

    // The new domain starts, and its backups are incremental.
    back.start_paused();
    let again = Repo::new();
    again.back_up(back.name(), &[]);
    let next = again.back_up(back.name(), &[]);
    assert_eq!(next["restorePoint"]["level"], "incremental", "{next:#}");
    machine.assert_restored(&again.restore(back.name(), "latest", "raw"), &machine.disks);

    let raw = ["--format", "raw", "--disk", "vdb"];
    let first = repo.run(&args(machine.name(), &root, pool, &raw));
    assert_eq!(first.code, Some(0), "{first:#?}");
    let refused = repo.run(&args(machine.name(), &root, pool, &raw));
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    assert!(refused.stderr.contains("already has a volume"), "{refused:#?}");
    let bytes = fs::read(folder.join(format!("{}-vdb.raw", machine.name()))).expect("it is there");
    assert!(bytes == machine.disks[1]);
}

#[test]
fn unusable_pools_are_refused_by_name() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "no-pool", &[MIB]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let root = repo.root().display().to_string();
    repo.back_up(machine.name(), &[]);
    let refused = repo.run(&args(machine.name(), &root, "vmsnap-no-such-pool", &[]));
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    assert!(
        refused.stderr.contains("there is no storage pool named"),
        "{refused:#?}"
    );

    let folder = machine.domain.path("pool");
    fs::create_dir(&folder).expect("it is new");
    let pool = machine.name();
    daemon.virsh(&["pool-define-as", pool, "dir", "--target", text(&folder)]);
    struct Defined<'a>(&'a Daemon, &'a str);
    impl Drop for Defined<'_> {
        fn drop(&mut self) {
            self.0.try_virsh(&["pool-undefine", self.1]);
        }
    }
    let _defined = Defined(&daemon, pool);
    let refused = repo.run(&args(machine.name(), &root, pool, &[]));
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    assert!(
        refused.stderr.contains(&format!("virsh pool-start {pool}")),
        "{refused:#?}"
    );
    for wrong in [&["--to", "/tmp/x"][..], &["--in-place"]] {
        let finished = repo.run(&args(machine.name(), &root, pool, wrong));
        assert_eq!(finished.code, Some(64), "{finished:#?}");
    }
}

#[test]
fn a_stopped_or_killed_restore_leaves_no_finished_volume() {
    let daemon = Daemon::acquire();
    let mut machine = Machine::define(&daemon, "pool-stopped", &[256 * MIB]);
    machine.fill(0, 1);
    let repo = Repo::new();
    let root = repo.root().display().to_string();
    repo.back_up(machine.name(), &[]);
    let folder = machine.domain.path("pool");
    fs::create_dir(&folder).expect("it is new");
    let pool = machine.name();
    let _pool = Pool::new(&daemon, pool, &folder);
    let names = || -> Vec<String> {
        let entries = fs::read_dir(&folder).expect("it is there").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let is_begun = || {
        let entries = fs::read_dir(&folder).expect("it is there").flatten();
        entries
            .filter_map(|entry| entry.metadata().ok())
            .any(|found| found.len() > 4 * MIB as u64)
    };
    let words = args(machine.name(), &root, pool, &["--format", "raw"]);
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let run = repo.begin(&words);
        run.hold_once("the volume is being written", is_begun);
        run.signal(signal);
        run.go_on();
        assert_eq!(run.wait(STOP_DEADLINE).code, code);
        match signal {
            Signal::KILL => {
                let left = names();
                assert!(
                    left.len() == 1 && left[0].starts_with(".vmsnap-restore-"),
                    "{left:?}"
                );
            }
            _ => {
                assert_eq!(names(), [""; 0]);
                assert_eq!(volumes(&daemon, pool), [""; 0]);
            }
        }
    }
    let ended = repo.run(&words);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stderr.contains("left by a restore that did not finish"),
        "{ended:#?}"
    );
    let name = format!("{}-vda.raw", machine.name());
    assert_eq!(names(), [name.as_str()]);
    assert_eq!(volumes(&daemon, pool), [name.as_str()]);
    assert!(fs::read(folder.join(&name)).expect("it is there") == machine.disks[0]);
}
