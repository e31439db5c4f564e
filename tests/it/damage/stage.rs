//! The repository whose files are damaged: four restore points of two disks, on request another
//! domain, and the leftover of a killed run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use vmsnap::host::Host;
use vmsnap::model::firmware::Tpm;
use vmsnap::model::tpm_state::{TpmFile, TpmState};

use crate::lab::{CLUSTER, DEAD, InFolder, Lab, tree};

pub const DISKS: [&str; 2] = ["vda", "vdb"];
/// The number of restore points: a full one, then incremental ones.
pub const POINTS: usize = 4;

/// One restore point of the domain.
pub struct Moment {
    pub id: String,
    pub dir: PathBuf,
    /// The bytes of each disk at that moment, in the order of [`DISKS`].
    pub disks: [Vec<u8>; 2],
}

pub struct Stage {
    pub lab: Lab,
    pub points: Vec<Moment>,
    /// The folders of another domain with the same story, if it was requested.
    pub foreign: Vec<PathBuf>,
    /// The folder that a killed run left.
    pub leftover: PathBuf,
}

impl Stage {
    pub fn new() -> Stage {
        Stage::beside_another(false)
    }

    /// The stage, with another domain that has the same story if `has_other` is set.
    pub fn beside_another(has_other: bool) -> Stage {
        let mut lab = Lab::new();
        let points = story(&mut lab, "vm1", 1);
        let foreign = if has_other {
            story(&mut lab, "vm2", 100)
        } else {
            Vec::new()
        };
        let leftover = leave_a_dead_run(&lab);
        Stage {
            lab,
            points,
            foreign: foreign.into_iter().map(|moment| moment.dir).collect(),
            leftover,
        }
    }

    /// The folder of the period that holds all restore points.
    pub fn period(&self) -> PathBuf {
        self.points[0].dir.parent().expect("a period").to_owned()
    }

    /// The guest writes this byte to every disk.
    pub fn write(&self, byte: u8) {
        for disk in DISKS {
            self.lab
                .host
                .disk("vm1", disk, |disk| disk.write(CLUSTER + 7, &[byte; 100]));
        }
    }

    /// The content of every kept file of the domain, which a later run must not change.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let root = self.lab.root().join("vm1");
        let is_kept = |path: &String| {
            let found = root.join(path).symlink_metadata().expect("it is there");
            found.is_file() && found.len() < 1 << 30 && !path.contains(".partial") && path != ".lock"
        };
        let files = tree(&root).into_iter().filter(is_kept);
        files
            .map(|path| {
                let content = fs::read(root.join(&path)).expect("readable");
                (path, content)
            })
            .collect()
    }
}

fn story(lab: &mut Lab, domain: &str, seed: u8) -> Vec<Moment> {
    lab.host
        .add_domain(domain, &[(DISKS[0], 4 * CLUSTER + 512), (DISKS[1], 2 * CLUSTER)]);
    lab.host.change(domain, |found| {
        found.inactive_xml = definition(domain, &found.uuid);
    });
    lab.host.add_tpm(
        domain,
        Tpm {
            version: "2.0".to_owned(),
            ..Tpm::default()
        },
    );
    lab.host.set_tpm_folder(&lab.folder.path().join("swtpm"));
    let mut points = Vec::new();
    for number in 0..POINTS as u8 {
        let byte = seed + number;
        // Each point has its own UEFI variables and TPM, so that an exchanged file is recognisable.
        lab.host.set_nvram(domain, &[byte; 300]);
        lab.host.set_tpm_state(domain, Ok(Some(tpm_state(byte))));
        lab.host.disk(domain, DISKS[0], |disk| {
            let start = usize::from(number) * CLUSTER;
            disk.write(start, &[byte; CLUSTER]);
            disk.zero(start, 100);
        });
        lab.host.disk(domain, DISKS[1], |disk| {
            disk.write(usize::from(number) * 1000, &[byte; 1000]);
        });
        let outcome = lab.backup(domain).expect("a backup");
        assert_eq!(
            outcome.point.parent,
            points.last().map(|last: &Moment| last.id.clone())
        );
        points.push(Moment {
            dir: outcome.dir(),
            id: outcome.point.id,
            disks: DISKS.map(|disk| lab.disk(domain, disk)),
        });
    }
    points
}

fn tpm_state(byte: u8) -> TpmState {
    TpmState {
        files: vec![TpmFile {
            name: "tpm2-00.permall".to_owned(),
            content: vec![byte; 700],
            owner: (0, 0),
            changed: 0,
        }],
        is_whole: true,
    }
}

fn definition(name: &str, uuid: &str) -> String {
    let disks = DISKS.map(|disk| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='/images/{disk}.qcow2'/><target dev='{disk}' bus='virtio'/></disk>"
        )
    });
    format!(
        "<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory>65536</memory>\
         <os><type arch='x86_64'>hvm</type><nvram>/vars/{name}.fd</nvram></os>\
         <devices>{}</devices></domain>\n",
        disks.join("")
    )
}

/// A run was killed and its job has ended since, as after a restart of QEMU. Its checkpoint still
/// exists.
fn leave_a_dead_run(lab: &Lab) -> PathBuf {
    let leftover = lab.leave_dead_run("vm1", DEAD);
    let domain = lab.host.domain("vm1").expect("it is there");
    lab.host.abort_job(&domain).expect("it ends");
    leftover
}

/// Whether a path is a file directly in this folder.
pub fn is_below(path: &Path, dir: &Path) -> bool {
    path.parent() == Some(dir)
}
