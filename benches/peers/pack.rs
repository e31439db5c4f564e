//! The works with pack repositories, in folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use age::secrecy::ExposeSecret;
use vmsnap::model::block::CLUSTER;
use vmsnap::testkit::SimulatedMap;

use crate::disk::{self, Fill};
use crate::domain::Source;
use crate::measure::{self, Sample};
use crate::parts;
use crate::process::{command, run, try_run};
use crate::server::{BUCKET, Server};
use crate::table::Table;
use crate::tools::{self, Tool};
use crate::work::{Bench, GIB, MIB, compressed_by, new_folder, remove, scatter};

/// A full backup. The uncompressed folder is what the others are compared with.
pub fn full(bench: &Bench) -> Table {
    let title = format!(
        "pack-full: the disk of full-mixed to pack repositories, {} GiB, in the page cache",
        2 * bench.gib
    );
    let source = Source::start(&bench.daemon, "pack", 2 * bench.gib * GIB, Fill::Mixed);
    let tools = Tool::installed([
        Tool::VmsnapPlain,
        Tool::Vmsnap,
        Tool::VmsnapPack,
        Tool::VmsnapOpenPack,
        Tool::Restic,
        Tool::Rclone,
    ]);
    let raw = raw_copy(&source, &tools);
    let folder = new_folder(&source, "for-rclone");
    if tools.contains(&Tool::Rclone) {
        back_up(&source, &Place::new(&source, Tool::Vmsnap, &folder), Tool::Vmsnap);
        tools::vmsnap_scrub(&source);
    }
    bench.compare(title, &tools, |tool| {
        disk::warm(&source.image());
        let output = new_folder(&source, "output");
        let place = Place::new(&source, tool, &output);
        let sample = match tool {
            Tool::Rclone => measure::run(vec![rclone(&source, &folder, &output)], None, &output),
            Tool::Restic => measure::run(vec![restic_backup(&source, &raw, &output)], None, &output),
            _ => back_up(&source, &place, tool),
        };
        source.wait_until_idle();
        tools::vmsnap_scrub(&source);
        remove(&output);
        sample
    })
}

/// An incremental backup of many scattered clusters.
pub fn scattered(bench: &Bench) -> Table {
    let count = 2048 * bench.gib;
    let title = format!(
        "pack-scattered: incremental to pack repositories, {} MiB in {count} scattered clusters of a {} GiB disk",
        count * CLUSTER / MIB,
        bench.gib
    );
    let mut pairs = Pairs::start(bench, bench.gib * GIB, Fill::Random);
    let size = bench.gib * GIB;
    bench.compare(title, &pairs.tools(), |tool| {
        pairs.increment(tool, || scatter(size, count, 0).collect(), CLUSTER)
    })
}

/// The smallest increment of a large disk.
pub fn smallest(bench: &Bench) -> Table {
    let title = "pack-smallest: incremental to pack repositories, 1 MiB of a sparse 100 GiB disk";
    let mut pairs = Pairs::start(bench, 100 * GIB, Fill::Nothing);
    pairs.sources.retain(|(tool, ..)| *tool != Tool::Restic);
    bench.compare(title.to_owned(), &pairs.tools(), |tool| {
        pairs.increment(tool, || vec![GIB], MIB)
    })
}

/// A restore of the newest of several restore points.
pub fn restore(bench: &Bench) -> Table {
    const INCREMENTS: u8 = 5;
    let count = 512 * bench.gib;
    let title = format!(
        "pack-restore: a full restore point of {} GiB and {INCREMENTS} incremental ones of {} MiB, to qcow2, not in the page cache",
        bench.gib,
        count * CLUSTER / MIB
    );
    let size = bench.gib * GIB;
    let mut pairs = Pairs::start(bench, size, Fill::Random);
    for number in 1..=INCREMENTS {
        for tool in pairs.tools() {
            let offsets = || scatter(size, count, u64::from(number)).collect();
            pairs.increment(tool, offsets, CLUSTER);
        }
    }
    bench.compare(title, &pairs.tools(), |tool| {
        let (source, place) = pairs.of(tool);
        let repository = source.dir().join("backups");
        let files = measure::files_below(&repository);
        files.iter().for_each(|file| disk::cool(file));
        let output = new_folder(source, "restored");
        let command = match tool {
            Tool::Restic => restic_restore(source, &repository, &output),
            _ => place.restore(source, &output),
        };
        let sample = measure::run(vec![command], None, &output);
        remove(&output);
        sample
    })
}

/// Backups to a bucket at the other end of a slow line.
pub fn line(bench: &Bench) -> Table {
    const LATENCY: Duration = Duration::from_millis(30);
    const BYTES_PER_SECOND: u64 = 12_500_000;
    let size = 64 * MIB * bench.gib;
    let ideal = size as f64 / BYTES_PER_SECOND as f64;
    let title = format!(
        "pack-line: to a bucket on a line of 100 Mbit/s with 30 ms for each request; {} MiB take {ideal:.1} s",
        size / MIB
    );
    let rows = ["a full backup of incompressible data", "the next one, of 1 MiB"];
    let mut table = Table::new(title, rows.iter().map(|name| (*name).to_owned()));
    let source = Source::start(&bench.daemon, "pack", size, Fill::Random);
    for round in 0..bench.rounds {
        let server = Server::start();
        server.list_long_pages();
        server.lay_line(LATENCY, BYTES_PER_SECOND as f64);
        let location = server.location(&format!("{BUCKET}/line"));
        let output = new_folder(&source, "output");
        let to_bucket = |mut command: Command| {
            command
                .env("AWS_ACCESS_KEY_ID", "key")
                .env("AWS_SECRET_ACCESS_KEY", "secret");
            of_host(&source, command)
        };
        run(to_bucket(tools::vmsnap(&["init", &location, "--no-encryption"])));
        for row in 0..rows.len() {
            if row > 0 {
                let byte = u8::try_from(round % 250).expect("it is small") + 1;
                source.write_unique(std::iter::once(0), MIB, byte);
            }
            let stored = || {
                server
                    .objects()
                    .iter()
                    .map(|(_, content)| content.len() as u64)
                    .sum::<u64>()
            };
            let before = stored();
            let backup = tools::vmsnap_backup(&source, Path::new(&location));
            let mut sample = measure::run(vec![to_bucket(backup)], Some(source.qemu()), &output);
            sample.written = stored() - before;
            table.add(row, sample);
        }
        tools::vmsnap_scrub(&source);
        remove(&output);
    }
    table
}

/// A run that changes a few blocks of a very large disk. The map and the index are simulated, so it
/// needs no domain: 3 GiB of disk space, and some minutes.
pub fn large(bench: &Bench) -> Table {
    const BLOCKS: u64 = 10 << 20;
    const CHANGED: u64 = 1000;
    let title = format!(
        "pack-large: {CHANGED} scattered clusters of a simulated disk of {} TiB with {BLOCKS} blocks; first with an empty cache",
        BLOCKS >> 20
    );
    let folder = tempfile::tempdir_in("/var/tmp").expect("a temporary folder");
    let repository = folder.path().join("repository");
    let (cache, empty) = (folder.path().join("cache"), folder.path().join("empty"));
    for new in [&repository, &cache, &empty] {
        fs::create_dir(new).expect("the folder is ours");
    }
    let map = SimulatedMap {
        repository: &repository,
        cache: &cache,
        blocks: BLOCKS,
    };
    let created = try_run(parts::creating_a_map(&map), Duration::from_secs(3600));
    assert!(created.ok(), "{created:#?}");
    let root = created.stdout.trim();
    let with_empty = SimulatedMap { cache: &empty, ..map };
    let rows = [("a new cache", with_empty), ("a filled cache", map)];
    let mut table = Table::new(title, rows.iter().map(|(name, _)| (*name).to_owned()));
    for _ in 0..bench.rounds {
        fs::remove_dir_all(&empty).expect("the folder is ours");
        fs::create_dir(&empty).expect("the folder is ours");
        for (row, (_, map)) in rows.iter().enumerate() {
            let before = measure::written(&repository);
            let change = parts::changing_a_map(map, root, CHANGED);
            let mut sample = measure::run(vec![change], None, &repository);
            sample.written = sample.written.saturating_sub(before);
            table.add(row, sample);
        }
    }
    table
}

/// A repository of vmsnap.
struct Place {
    folder: PathBuf,
    location: PathBuf,
    identity: Option<PathBuf>,
}

impl Place {
    /// Creates the repository of this tool in an empty folder.
    fn new(source: &Source, tool: Tool, folder: &Path) -> Place {
        let pack = PathBuf::from(format!("pack:{}", folder.display()));
        let (location, identity) = match tool {
            Tool::VmsnapPack => (pack, Some(source.dir().join("identity"))),
            Tool::VmsnapOpenPack => (pack, None),
            Tool::Restic => {
                run(restic(source, folder, &["init"]));
                return Place {
                    folder: folder.to_owned(),
                    location: folder.to_owned(),
                    identity: None,
                };
            }
            _ => (folder.to_owned(), None),
        };
        let place = Place {
            folder: folder.to_owned(),
            location,
            identity,
        };
        if matches!(tool, Tool::VmsnapPack | Tool::VmsnapOpenPack) {
            let mut init = tools::vmsnap(&["init", &place.location.display().to_string()]);
            match &place.identity {
                Some(file) => init.arg("--encrypt-to").arg(new_identity(file)),
                None => init.arg("--no-encryption"),
            };
            run(of_host(source, init));
        }
        place
    }

    fn opened(&self, source: &Source, mut command: Command) -> Command {
        if let Some(file) = &self.identity {
            command.arg("--identity-file").arg(file);
        }
        of_host(source, command)
    }

    fn restore(&self, source: &Source, output: &Path) -> Command {
        self.opened(source, tools::vmsnap_restore(source, &self.location, output))
    }
}

/// Writes a new private key of age to a file, and returns the recipient that belongs to it.
fn new_identity(file: &Path) -> String {
    let identity = age::x25519::Identity::generate();
    fs::write(file, identity.to_string().expose_secret()).expect("the folder is ours");
    identity.to_public().to_string()
}

/// Keeps what vmsnap keeps on the host in the folder of the domain.
fn of_host(source: &Source, mut command: Command) -> Command {
    command.env("VMSNAP_STATE", source.dir().join("state"));
    command.env("VMSNAP_CACHE", source.dir().join("cache"));
    command
}

/// A backup by vmsnap.
fn back_up(source: &Source, place: &Place, tool: Tool) -> Sample {
    let backup = tools::vmsnap_backup(source, &place.location);
    let backup = match tool {
        Tool::VmsnapPlain => compressed_by("none", backup),
        _ => backup,
    };
    let backup = place.opened(source, backup);
    measure::run(vec![backup], Some(source.qemu()), &place.folder)
}

/// A domain for each tool that makes incremental backups, each with a full backup.
struct Pairs {
    sources: Vec<(Tool, Source, Place)>,
    byte: u8,
}

impl Pairs {
    fn start(bench: &Bench, size: u64, fill: Fill) -> Pairs {
        let tools = Tool::installed([
            Tool::VmsnapPlain,
            Tool::VmsnapPack,
            Tool::VmsnapOpenPack,
            Tool::Restic,
        ]);
        let sources = tools
            .into_iter()
            .filter(|tool| *tool != Tool::Restic || fill != Fill::Nothing);
        let sources = sources.map(|tool| {
            let source = Source::start(&bench.daemon, "pack", size, fill);
            let place = Place::new(&source, tool, &new_folder(&source, "backups"));
            match tool {
                Tool::Restic => {
                    let raw = raw_copy(&source, &[tool]);
                    run(restic_backup(&source, &raw, &source.dir().join("backups")));
                }
                _ => {
                    back_up(&source, &place, tool);
                }
            }
            (tool, source, place)
        });
        Pairs {
            sources: sources.collect(),
            byte: 0,
        }
    }

    fn tools(&self) -> Vec<Tool> {
        self.sources.iter().map(|(tool, ..)| *tool).collect()
    }

    fn of(&self, tool: Tool) -> (&Source, &Place) {
        let found = self.sources.iter().find(|(of, ..)| *of == tool);
        let (_, source, place) = found.expect("the tool has a domain");
        (source, place)
    }

    /// Writes to the disk, and makes a backup.
    fn increment(&mut self, tool: Tool, offsets: impl Fn() -> Vec<u64>, length: u64) -> Sample {
        self.byte = self.byte % 250 + 1;
        let (source, place) = self.of(tool);
        source.write_unique(offsets().into_iter(), length, self.byte);
        disk::warm(&source.image());
        let output = source.dir().join("backups");
        source.wait_until_idle();
        let before = measure::written(&output);
        let mut sample = match tool {
            Tool::Restic => {
                let raw = raw_copy(source, &[tool]);
                measure::run(vec![restic_backup(source, &raw, &output)], None, &output)
            }
            _ => back_up(source, place, tool),
        };
        sample.written = sample.written.saturating_sub(before);
        sample
    }
}

/// A raw copy of the disk, if restic is among the tools: it has no other way to read a domain.
fn raw_copy(source: &Source, tools: &[Tool]) -> PathBuf {
    let raw = source.dir().join("disk.raw");
    if tools.contains(&Tool::Restic) {
        let (from, to) = (source.image().display().to_string(), raw.display().to_string());
        run(command(
            "qemu-img",
            &["convert", "-U", "-f", "qcow2", "-O", "raw", &from, &to],
        ));
    }
    raw
}

/// restic with these arguments, and a repository in this folder.
fn restic(source: &Source, repository: &Path, words: &[&str]) -> Command {
    let mut command = command("restic", words);
    command
        .env("RESTIC_REPOSITORY", repository)
        .env("RESTIC_PASSWORD", "correct horse battery staple")
        .env("RESTIC_CACHE_DIR", source.dir().join("restic-cache"))
        .env("HOME", source.dir());
    command
}

fn restic_backup(source: &Source, raw: &Path, repository: &Path) -> Command {
    if !repository.join("config").exists() {
        run(restic(source, repository, &["init"]));
    }
    restic(
        source,
        repository,
        &["backup", "--quiet", &raw.display().to_string()],
    )
}

fn restic_restore(source: &Source, repository: &Path, output: &Path) -> Command {
    let output = output.display().to_string();
    restic(source, repository, &["restore", "latest", "--target", &output])
}

/// A copy of a folder repository by rclone.
fn rclone(source: &Source, from: &Path, to: &Path) -> Command {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    let mut command = command("rclone", &["copy", &from, &to]);
    command.env("HOME", source.dir());
    command
}
