//! The works: their preparation, and the commands of each tool.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmsnap::model::block::CLUSTER;

use crate::daemon::{Daemon, URI};
use crate::disk::{self, Fill};
use crate::domain::Source;
use crate::latency;
use crate::measure::{self, Sample};
use crate::pack;
use crate::parts;
use crate::process::{command, run};
use crate::serve;
use crate::table::Table;
use crate::tools::{self, Tool};

pub const GIB: u64 = 1 << 30;
pub const MIB: u64 = 1 << 20;
/// Number of domains of the status.
const DOMAINS: usize = 50;
/// Number of incremental restore points after the full one.
const INCREMENTS: u8 = 5;

/// The settings of all works.
pub struct Bench {
    pub daemon: Daemon,
    /// Amount of data, in GiB.
    pub gib: u64,
    /// How often each tool does each work.
    pub rounds: usize,
}

/// Does a work and returns its table.
type Work = fn(&Bench) -> String;

/// Every work with its name in `BENCH_WORK`.
pub const ALL: [(&str, Work); 17] = [
    ("full-warm", |bench| full_warm(bench).to_string()),
    ("full-cold", |bench| full_cold(bench).to_string()),
    ("full-mixed", |bench| full_mixed(bench).to_string()),
    ("scattered", |bench| scattered(bench).to_string()),
    ("smallest", |bench| smallest(bench).to_string()),
    ("latency", |bench| latency::measure(bench).to_string()),
    ("restore", |bench| restore(bench).to_string()),
    ("restore-compressed", |bench| {
        restore_compressed(bench).to_string()
    }),
    ("pack-full", |bench| pack::full(bench).to_string()),
    ("pack-scattered", |bench| pack::scattered(bench).to_string()),
    ("pack-smallest", |bench| pack::smallest(bench).to_string()),
    ("pack-restore", |bench| pack::restore(bench).to_string()),
    ("pack-line", |bench| pack::line(bench).to_string()),
    ("pack-large", |bench| pack::large(bench).to_string()),
    ("serve", |bench| serve::whole(bench).to_string()),
    ("serve-random", |bench| serve::random(bench).to_string()),
    ("status", |bench| status(bench).to_string()),
];

impl Bench {
    /// Runs every tool `rounds` times. Each round begins with another tool, and every second round
    /// runs backwards: the state that one tool leaves in memory must not always favour the same
    /// next tool.
    pub fn compare(&self, title: String, tools: &[Tool], mut once: impl FnMut(Tool) -> Sample) -> Table {
        let mut table = Table::new(title, tools.iter().map(|tool| tool.name().to_owned()));
        for row in self.turns(tools.len()) {
            table.add(row, once(tools[row]));
        }
        table
    }

    /// The order of all runs: the places of their tools among this many.
    pub fn turns(&self, tools: usize) -> impl Iterator<Item = usize> {
        (0..self.rounds).flat_map(move |round| {
            (0..tools).map(move |turn| match round % 2 {
                0 => (round + turn) % tools,
                _ => (round + tools - 1 - turn) % tools,
            })
        })
    }

    fn full(&self, title: String, size: u64, fill: Fill, prepare: fn(&Path)) -> Table {
        let source = Source::start(&self.daemon, "full", size, fill);
        let mut tools = Tool::installed([
            Tool::Vmsnap,
            Tool::VmsnapPlain,
            Tool::VmsnapLevel3,
            Tool::Virtnbdbackup,
            Tool::VirtnbdbackupCompressed,
            Tool::QemuImg,
            Tool::QemuImgCompressed,
            Tool::Nbdcopy,
            Tool::NbdcopyInOrder,
            Tool::Receiving,
            Tool::Digesting,
            Tool::Copying,
        ]);
        // A backup does not write the zeroes of the other disks.
        tools.retain(|tool| *tool != Tool::Copying || fill == Fill::Random);
        // With incompressible data these show nothing new.
        let compressing = [
            Tool::VmsnapLevel3,
            Tool::VirtnbdbackupCompressed,
            Tool::QemuImgCompressed,
        ];
        tools.retain(|tool| !compressing.contains(tool) || fill == Fill::Mixed);
        self.compare(title, &tools, |tool| {
            prepare(&source.image());
            let output = new_folder(&source, "output");
            let sample = match tool {
                // Every disk holds this much data, whatever its length.
                Tool::Digesting => measure::run(vec![parts::digesting(self.gib * GIB)], None, &output),
                Tool::Copying => {
                    let copy = parts::copying(&source.image(), &output.join("vda.raw"));
                    measure::run(vec![copy], None, &output)
                }
                _ => full_backup(tool, &source, &output),
            };
            source.wait_until_idle();
            tools::vmsnap_scrub(&source);
            remove(&output);
            sample
        })
    }
}

/// A full backup by one tool. The domain has no checkpoint of vmsnap.
pub fn full_backup(tool: Tool, source: &Source, output: &Path) -> Sample {
    let job = match tool {
        Tool::QemuImg | Tool::QemuImgCompressed | Tool::Nbdcopy | Tool::NbdcopyInOrder | Tool::Receiving => {
            Some(source.begin_job())
        }
        _ => None,
    };
    let uri = job.as_ref().map(|job| job.uri()).unwrap_or_default();
    let command = match tool {
        Tool::Virtnbdbackup => tools::virtnbdbackup(source, "full", output),
        Tool::VirtnbdbackupCompressed => {
            let mut command = tools::virtnbdbackup(source, "full", output);
            command.arg("--compress");
            command
        }
        Tool::QemuImg => tools::qemu_img("raw", &uri, &output.join("vda.qcow2")),
        Tool::QemuImgCompressed => tools::qemu_img_compressed(&uri, &output.join("vda.qcow2")),
        Tool::Nbdcopy | Tool::NbdcopyInOrder | Tool::Receiving => {
            tools::nbdcopy(tool, &uri, &output.join("vda.raw"))
        }
        Tool::Vmsnap => tools::vmsnap_backup(source, output),
        Tool::VmsnapPlain => compressed_by("none", tools::vmsnap_backup(source, output)),
        Tool::VmsnapLevel3 => compressed_by("zstd:3", tools::vmsnap_backup(source, output)),
        Tool::VmsnapPack
        | Tool::VmsnapOpenPack
        | Tool::Restic
        | Tool::Rclone
        | Tool::Digesting
        | Tool::Copying
        | Tool::Virsh => panic!("{tool:?} makes no backup"),
    };
    measure::run(vec![command], Some(source.qemu()), output)
}

/// A backup by vmsnap with this method of compression.
pub fn compressed_by(method: &str, mut backup: Command) -> Command {
    backup.args(["--compress", method]);
    backup
}

fn full_warm(bench: &Bench) -> Table {
    let title = format!(
        "full-warm: {} GiB of incompressible data, in the page cache",
        bench.gib
    );
    bench.full(title, bench.gib * GIB, Fill::Random, disk::warm)
}

fn full_cold(bench: &Bench) -> Table {
    let title = format!(
        "full-cold: {} GiB of incompressible data, not in the page cache",
        bench.gib
    );
    bench.full(title, bench.gib * GIB, Fill::Random, disk::cool_with_memory)
}

fn full_mixed(bench: &Bench) -> Table {
    let title = format!(
        "full-mixed: {} GiB, 3/8 incompressible, 1/8 text, 1/4 written zeroes, 1/4 holes, in the page cache",
        2 * bench.gib
    );
    bench.full(title, 2 * bench.gib * GIB, Fill::Mixed, disk::warm)
}

/// A domain for each tool that makes incremental backups, each with a full backup.
struct Pair {
    ours: Source,
    theirs: Option<Source>,
}

impl Pair {
    fn start(bench: &Bench, size: u64, fill: Fill) -> Pair {
        let tools = Tool::installed([Tool::Vmsnap, Tool::Virtnbdbackup]);
        let start = |label| Source::start(&bench.daemon, label, size, fill);
        let pair = Pair {
            ours: start("ours"),
            theirs: tools.contains(&Tool::Virtnbdbackup).then(|| start("theirs")),
        };
        for tool in pair.tools() {
            let source = pair.source(tool);
            full_backup(tool, source, &new_folder(source, "backups"));
        }
        pair
    }

    fn tools(&self) -> Vec<Tool> {
        let theirs = self.theirs.as_ref().map(|_| Tool::Virtnbdbackup);
        [Tool::Vmsnap].into_iter().chain(theirs).collect()
    }

    fn source(&self, tool: Tool) -> &Source {
        match (&self.theirs, tool) {
            (Some(theirs), Tool::Virtnbdbackup) => theirs,
            _ => &self.ours,
        }
    }

    fn backups(&self, tool: Tool) -> PathBuf {
        self.source(tool).dir().join("backups")
    }

    fn increment(&self, tool: Tool) -> Sample {
        let (source, output) = (self.source(tool), self.backups(tool));
        let command = match tool {
            Tool::Virtnbdbackup => tools::virtnbdbackup(source, "inc", &output),
            _ => tools::vmsnap_backup(source, &output),
        };
        source.wait_until_idle();
        let before = measure::written(&output);
        let mut sample = measure::run(vec![command], Some(source.qemu()), &output);
        sample.written = sample.written.saturating_sub(before);
        sample
    }
}

/// Offsets of `count` clusters, evenly scattered over a disk.
pub fn scatter(size: u64, count: u64, phase: u64) -> impl Iterator<Item = u64> {
    let stride = size / count / CLUSTER * CLUSTER;
    (0..count).map(move |n| n * stride + phase * CLUSTER % stride)
}

fn scattered(bench: &Bench) -> Table {
    let count = 2048 * bench.gib;
    let title = format!(
        "scattered: incremental, {} MiB in {count} scattered clusters of a {} GiB disk",
        count * CLUSTER / MIB,
        bench.gib
    );
    let pair = Pair::start(bench, bench.gib * GIB, Fill::Random);
    let mut byte = 0;
    bench.compare(title, &pair.tools(), |tool| {
        let source = pair.source(tool);
        byte = byte % 250 + 1;
        source.write(scatter(source.size, count, 0), CLUSTER, byte);
        disk::warm(&source.image());
        pair.increment(tool)
    })
}

fn smallest(bench: &Bench) -> Table {
    let title = "smallest: incremental, 1 MiB of a sparse 100 GiB disk";
    let pair = Pair::start(bench, 100 * GIB, Fill::Nothing);
    let calls = Source::start(&bench.daemon, "calls", 100 * GIB, Fill::Nothing);
    let mut tools = pair.tools();
    tools.push(Tool::Virsh);
    let mut byte = 0;
    bench.compare(title.to_owned(), &tools, |tool| {
        byte = byte % 250 + 1;
        if tool == Tool::Virsh {
            return libvirt_calls(&calls);
        }
        pair.source(tool).write([GIB].into_iter(), MIB, byte);
        pair.increment(tool)
    })
}

/// The smallest amount of work that every tool needs: one connection, and a job with a checkpoint,
/// started and ended.
fn libvirt_calls(source: &Source) -> Sample {
    let (name, job) = (source.name(), source.job_document());
    let checkpoint = source.dir().join("checkpoint.xml").display().to_string();
    let xml = "<domaincheckpoint><name>bench</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>";
    fs::write(&checkpoint, xml).expect("the folder is ours");
    let words = format!("backup-begin {name} {job} {checkpoint}; domjobabort {name}");
    let sample = measure::run(
        vec![command("virsh", &["--connect", URI, &words])],
        Some(source.qemu()),
        &source.dir().join("nothing"),
    );
    run(command(
        "virsh",
        &["--connect", URI, "checkpoint-delete", name, "bench"],
    ));
    sample
}

fn restore(bench: &Bench) -> Table {
    let count = 512 * bench.gib;
    let title = format!(
        "restore: a full restore point of {} GiB and {INCREMENTS} incremental ones of {} MiB, to qcow2, not in the page cache",
        bench.gib,
        count * CLUSTER / MIB
    );
    let pair = Pair::start(bench, bench.gib * GIB, Fill::Random);
    for tool in pair.tools() {
        let source = pair.source(tool);
        for number in 1..=INCREMENTS {
            source.write(scatter(source.size, count, u64::from(number)), CLUSTER, number);
            pair.increment(tool);
        }
    }
    let mut tools = pair.tools();
    tools.extend(Tool::installed([Tool::QemuImg]));
    bench.compare(title, &tools, |tool| {
        let (source, backups) = (pair.source(tool), pair.backups(tool));
        measure::files_below(&backups)
            .iter()
            .for_each(|file| disk::cool(file));
        let output = new_folder(source, "restored");
        let command = match tool {
            Tool::Virtnbdbackup => tools::virtnbdrestore(source, &backups, &output),
            Tool::QemuImg => {
                let newest = newest_image(&backups).display().to_string();
                tools::qemu_img("qcow2", &newest, &output.join("vda.qcow2"))
            }
            _ => tools::vmsnap_restore(source, &backups, &output),
        };
        let sample = measure::run(vec![command], None, &output);
        remove(&output);
        sample
    })
}

fn restore_compressed(bench: &Bench) -> Table {
    let count = 512 * bench.gib;
    let title = format!(
        "restore-compressed: a full restore point of the disk of full-mixed and {INCREMENTS} incremental ones of {} MiB in scattered clusters, to qcow2, not in the page cache",
        count * CLUSTER / MIB
    );
    let source = Source::start(&bench.daemon, "packed", 2 * bench.gib * GIB, Fill::Mixed);
    let tools = [Tool::Vmsnap, Tool::VmsnapPlain];
    let folders = tools.map(|tool| new_folder(&source, &format!("{tool:?}")));
    for number in 0..=INCREMENTS {
        if number > 0 {
            source.write(scatter(source.size, count, u64::from(number)), CLUSTER, number);
        }
        measure::run(
            vec![
                tools::vmsnap_backup(&source, &folders[0]),
                compressed_by("none", tools::vmsnap_backup(&source, &folders[1])),
            ],
            Some(source.qemu()),
            &folders[0],
        );
    }
    bench.compare(title, &tools, |tool| {
        let backups = &folders[usize::from(tool == Tool::VmsnapPlain)];
        measure::files_below(backups)
            .iter()
            .for_each(|file| disk::cool(file));
        let output = new_folder(&source, "restored");
        let sample = measure::run(
            vec![tools::vmsnap_restore(&source, backups, &output)],
            None,
            &output,
        );
        remove(&output);
        sample
    })
}

/// The image of the newest restore point. The names of the folders sort by time.
pub fn newest_image(repository: &Path) -> PathBuf {
    let files = measure::files_below(repository).into_iter();
    let images = files.filter(|file| file.ends_with("vda.qcow2"));
    images.max().expect("there are restore points")
}

fn status(bench: &Bench) -> Table {
    let title = format!("status: {DOMAINS} domains that are shut off");
    let define = |_| Source::define(&bench.daemon, "status", GIB, Fill::Nothing);
    let sources: Vec<Source> = (0..DOMAINS).map(define).collect();
    bench.compare(title, &[Tool::Vmsnap, Tool::Virsh], |tool| {
        let commands = match tool {
            Tool::Virsh => status_calls(&sources),
            _ => {
                let mut words = vec!["status", "--json", "--connect", URI];
                words.extend(sources.iter().map(Source::name));
                vec![tools::vmsnap(&words)]
            }
        };
        measure::run(commands, None, &sources[0].dir().join("nothing"))
    })
}

/// The calls that a program without libvirt's API makes for a status.
fn status_calls(sources: &[Source]) -> Vec<Command> {
    let virsh = |words: &[&str]| command("virsh", &[&["--connect", URI], words].concat());
    let mut commands = vec![virsh(&["list", "--all", "--name"])];
    for source in sources {
        let image = source.image().display().to_string();
        commands.push(virsh(&["domstate", source.name()]));
        commands.push(virsh(&["checkpoint-list", source.name(), "--name"]));
        commands.push(virsh(&["domblklist", source.name(), "--details"]));
        commands.push(command("qemu-img", &["info", "--output=json", &image]));
    }
    commands
}

pub fn new_folder(source: &Source, name: &str) -> PathBuf {
    let folder = source.dir().join(name);
    fs::create_dir(&folder).expect("the folder is ours");
    folder
}

pub fn remove(folder: &Path) {
    fs::remove_dir_all(folder).expect("the folder is ours");
}
