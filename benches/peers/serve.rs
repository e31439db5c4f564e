//! Disks that are served over NBD: copied as a whole, and read at random places.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmsnap::model::block::CLUSTER;
use vmsnap::model::stop::{Stop, WaitLimit};
use vmsnap::nbd::Client;

use crate::disk::{self, Fill};
use crate::domain::Source;
use crate::measure;
use crate::process::{command, run, wait_until};
use crate::table::Table;
use crate::tools::{self, Tool};
use crate::work::{Bench, GIB, MIB, new_folder, newest_image, remove, scatter};

/// Number of incremental restore points after the full one.
const INCREMENTS: u8 = 5;
/// The number of random reads in a round.
const READS: u64 = 4000;
/// A prime number, so that each cluster is read once before any is read again.
const STRIDE: u64 = 40_009;
const DEADLINE: Duration = Duration::from_secs(60);

/// A server, killed when dropped.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(mut command: Command, socket: PathBuf) -> Server {
        let what = format!("{command:?}");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        let server = Server { child, socket };
        let is_ready = || std::os::unix::net::UnixStream::connect(&server.socket).is_ok();
        assert!(wait_until(DEADLINE, is_ready), "{what} does not listen");
        server
    }

    /// `vmsnap serve` of the newest restore point.
    fn vmsnap(source: &Source, repository: &str) -> Server {
        let socket = source.dir().join("serve.sock");
        let path = socket.display().to_string();
        let words = [
            "serve",
            source.name(),
            "--repository",
            repository,
            "--socket",
            &path,
        ];
        let mut command = tools::vmsnap(&words);
        of_host(source, &mut command);
        Server::start(command, socket)
    }

    /// `qemu-nbd` of the newest image of a folder, with the cache mode of its defaults.
    fn qemu_nbd(source: &Source, repository: &Path) -> Server {
        let socket = source.dir().join("qemu-nbd.sock");
        let (path, image) = (
            socket.display().to_string(),
            newest_image(repository).display().to_string(),
        );
        let words = [
            "--read-only",
            "--persistent",
            "--shared=8",
            "-x",
            "vda",
            "-f",
            "qcow2",
            "-k",
            &path,
            &image,
        ];
        Server::start(command("qemu-nbd", &words), socket)
    }

    /// nbdkit's `pattern`: bytes that are made in memory, so nothing but the client takes time.
    fn pattern(source: &Source) -> Server {
        let socket = source.dir().join("nbdkit.sock");
        let (path, size) = (socket.display().to_string(), format!("size={}", source.size));
        let words = [
            "--foreground",
            "--exportname",
            "vda",
            "--unix",
            &path,
            "pattern",
            &size,
        ];
        Server::start(command("nbdkit", &words), socket)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///vda?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Keeps what vmsnap keeps on the host in the folder of the domain.
fn of_host(source: &Source, command: &mut Command) {
    command.env("VMSNAP_STATE", source.dir().join("state"));
    command.env("VMSNAP_CACHE", source.dir().join("cache"));
}

/// A domain with a full and several incremental restore points, in a folder and in a pack
/// repository without encryption.
struct Stage {
    source: Source,
    folder: PathBuf,
    pack: String,
}

impl Stage {
    fn new(bench: &Bench) -> Stage {
        let source = Source::start(&bench.daemon, "serve", bench.gib * GIB, Fill::Random);
        let folder = new_folder(&source, "backups");
        for number in 0..=INCREMENTS {
            if number > 0 {
                let offsets = scatter(source.size, 512 * bench.gib, u64::from(number));
                source.write(offsets, CLUSTER, number);
            }
            run(tools::vmsnap_backup(&source, &folder));
        }
        let pack = format!("pack:{}", source.dir().join("pack").display());
        let from = folder.display().to_string();
        for words in [
            &["init", &pack, "--no-encryption"][..],
            &["copy", "--from", &from, "--to", &pack, "--newest", "--quiet"],
        ] {
            let mut command = tools::vmsnap(words);
            of_host(&source, &mut command);
            run(command);
        }
        Stage { source, folder, pack }
    }

    fn cool(&self) {
        for folder in [&self.folder, &self.source.dir().join("pack")] {
            measure::files_below(folder)
                .iter()
                .for_each(|file| disk::cool(file));
        }
    }

    /// Brings the files into the page cache.
    fn warm(&self) {
        for folder in [&self.folder, &self.source.dir().join("pack")] {
            for file in measure::files_below(folder) {
                let mut file = File::open(file).expect("it is ours");
                io::copy(&mut file, &mut io::sink()).expect("it is readable");
            }
        }
    }

    fn server(&self, row: usize) -> Server {
        match row {
            0 => Server::vmsnap(&self.source, &self.folder.display().to_string()),
            1 => Server::vmsnap(&self.source, &self.pack),
            2 => Server::qemu_nbd(&self.source, &self.folder),
            _ => Server::pattern(&self.source),
        }
    }
}

const SERVERS: [&str; 4] = [
    "vmsnap serve",
    "vmsnap serve, pack: without encryption",
    "qemu-nbd -r",
    "nbdkit pattern, which reads nothing",
];

fn title(bench: &Bench, what: &str) -> String {
    format!(
        "{what} of a full restore point of {} GiB and {INCREMENTS} incremental ones of {} MiB",
        bench.gib,
        512 * bench.gib * CLUSTER / MIB
    )
}

/// Copies of the whole disk to a raw file, beside a restore.
pub fn whole(bench: &Bench) -> Table {
    let stage = Stage::new(bench);
    let copies = SERVERS.iter().map(|name| format!("nbdcopy from {name}"));
    let names: Vec<String> = ["vmsnap restore".to_owned()].into_iter().chain(copies).collect();
    let mut table = Table::new(
        title(bench, "serve: a raw copy, not in the page cache,"),
        names.into_iter(),
    );
    for row in bench.turns(1 + SERVERS.len()) {
        stage.cool();
        let output = new_folder(&stage.source, "restored");
        let sample = match row.checked_sub(1) {
            None => {
                let mut restore = tools::vmsnap_restore(&stage.source, &stage.folder, &output);
                restore.args(["--format", "raw"]);
                measure::run(vec![restore], None, &output)
            }
            Some(server) => {
                let server = stage.server(server);
                let copy = tools::nbdcopy(Tool::Nbdcopy, &server.uri(), &output.join("vda.raw"));
                measure::run(vec![copy], None, &output)
            }
        };
        table.add(row, sample);
        remove(&output);
    }
    table
}

/// How long random reads took.
pub struct Reads {
    title: String,
    rows: Vec<(String, Vec<Duration>)>,
}

/// Reads of a cluster at random places, one after another: first of files that are not in the page
/// cache, then of files that are.
pub fn random(bench: &Bench) -> Reads {
    let stage = Stage::new(bench);
    let servers = &SERVERS[..3];
    let states = ["cold", "in the page cache"];
    let names = servers
        .iter()
        .flat_map(|name| states.map(|state| format!("{name}, {state}")));
    let mut found = Reads {
        title: title(bench, "serve-random: reads of 64 KiB at random places"),
        rows: names.map(|name| (name, Vec::new())).collect(),
    };
    for row in bench.turns(servers.len()) {
        for state in 0..states.len() {
            stage.cool();
            if state > 0 {
                stage.warm();
            }
            let server = stage.server(row);
            let limit = WaitLimit {
                deadline: DEADLINE,
                stop: Stop::default(),
            };
            let client = Client::connect_unix(&server.socket, "vda", &[], &limit);
            let mut client = client.expect("it serves the disk");
            let clusters = client.size() / CLUSTER;
            let mut bytes = vec![0; CLUSTER as usize];
            let (name, times) = &mut found.rows[row * states.len() + state];
            for number in 0..READS {
                let began = Instant::now();
                let read = client.read(number * STRIDE % clusters * CLUSTER, &mut bytes);
                read.expect("it is read");
                times.push(began.elapsed());
            }
            eprintln!("  {name}: {READS} reads");
        }
    }
    found
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        writeln!(
            f,
            "| served by | reads | median, ms | 99th percentile, ms | MB/s |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        for (name, times) in &self.rows {
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let at = |part: usize| sorted.get(sorted.len() * part / 100).copied().unwrap_or_default();
            let [median, high] = [at(50), at(99)].map(|time| time.as_secs_f64() * 1e3);
            let sum: f64 = times.iter().map(Duration::as_secs_f64).sum();
            let rate = times.len() as f64 * CLUSTER as f64 / 1e6 / sum.max(1e-9);
            writeln!(
                f,
                "| {name} | {} | {median:.2} | {high:.2} | {rate:.0} |",
                times.len()
            )?;
        }
        Ok(())
    }
}
