//! `vmsnap serve` on the command line: its output, its end, its socket, and what it holds back.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmsnap::model::level::FullRule;
use vmsnap::nbd::Error;
use vmsnap::ops::backup::Options;

use crate::lab::{CLUSTER, InFolder, Lab};
use crate::repositories::serve::{client, data_clusters};

/// A running server, killed when dropped.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(lab: &Lab, words: &[&str]) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
            .args(["serve", "vm1", "--repository"])
            .arg(lab.root())
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        Running { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line
    }

    /// The document that says that clients can connect.
    fn ready(&mut self) -> Value {
        let line = self.line();
        let document: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("no document: {error}: {line}{}", self.stderr());
        });
        assert_eq!(document["event"], "ready");
        document
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it runs");
    }

    fn stderr(&mut self) -> String {
        let mut said = String::new();
        let pipe = self.child.stderr.as_mut().expect("a pipe");
        pipe.read_to_string(&mut said).expect("text");
        said
    }

    /// Waits for the end. Returns the status, and what was printed.
    fn ended(mut self) -> (ExitStatus, String, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("text");
        let said = self.stderr();
        (self.child.wait().expect("it ends"), rest, said)
    }

    fn stopped(self) -> (ExitStatus, String, String) {
        self.signal(Signal::TERM);
        self.ended()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// A domain with a disk of 4 MiB of noise and some zeroes, and three restore points without
/// compression.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 80 * CLUSTER), ("vdb", CLUSTER)]);
    for round in 0..3u8 {
        lab.host.disk("vm1", "vda", |disk| match round {
            0 => disk.write(0, &noise(0, 64 * CLUSTER)),
            _ => disk.write(usize::from(round) * 9 * CLUSTER, &noise(round, CLUSTER)),
        });
        let options = Options {
            full: FullRule::Never,
            ..Lab::plain()
        };
        lab.backup_with("vm1", &options).expect("a restore point");
    }
    lab
}

fn socket(lab: &Lab) -> (PathBuf, String) {
    let path = lab.folder.path().join("socket");
    let text = path.display().to_string();
    (path, text)
}

fn read(socket: &Path) -> Vec<u8> {
    let mut client = client(socket);
    let mut bytes = vec![0; client.size() as usize];
    client.read(0, &mut bytes).expect("it is served");
    bytes
}

#[test]
fn a_signal_ends_it_cleanly_with_exit_zero() {
    let lab = lab();
    let (path, text) = socket(&lab);
    for signal in [Signal::TERM, Signal::INT] {
        let mut running = Running::start(&lab, &["--socket", &text]);
        let line = running.line();
        assert!(
            line.starts_with(&format!("vm1: serving restore point {} (", lab.latest("vm1"))),
            "{line}"
        );
        assert_eq!(
            running.line(),
            format!("  disk vda: nbd+unix:///vda?socket={text}\n")
        );
        assert_eq!(
            running.line(),
            format!("  disk vdb: nbd+unix:///vdb?socket={text}\n")
        );
        assert!(read(&path) == lab.disk("vm1", "vda"));
        // A client that is connected does not hold up the end.
        let _idle = client(&path);
        running.signal(signal);
        let (status, rest, said) = running.ended();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(rest.starts_with("vm1: served 4.19 MB in "), "{rest}");
        assert!(rest.ends_with(", over 2 connections\n"), "{rest}");
        assert!(!path.exists());
    }
}

#[test]
fn documents_name_the_exports_and_count_reads() {
    let lab = lab();
    let (path, text) = socket(&lab);
    let mut running = Running::start(&lab, &["--socket", &text, "--disk", "vda", "--json"]);
    let ready = running.ready();
    assert_eq!(ready["restorePoint"], lab.latest("vm1"));
    let exports = ready["exports"].as_array().expect("a list");
    assert_eq!(exports.len(), 1);
    assert_eq!(exports[0]["uri"], format!("nbd+unix:///vda?socket={text}"));
    assert_eq!(exports[0]["virtualSize"], 80 * CLUSTER);
    read(&path);
    let (status, rest, _) = running.stopped();
    assert_eq!(status.code(), Some(0));
    let ended: Value = serde_json::from_str(&rest).expect("one document");
    assert_eq!(
        (&ended["event"], &ended["connections"]),
        (&"ended".into(), &1.into())
    );
    assert_eq!(ended["exports"][0]["bytesRead"], 64 * CLUSTER, "without zeroes");
    assert_eq!(ended["exports"][0]["damagedReads"], 0);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let lab = lab();
    let (path, text) = socket(&lab);
    let mut first = Running::start(&lab, &["--socket", &text, "--json"]);
    first.ready();
    let (status, rest, said) = Running::start(&lab, &["--socket", &text, "--json"]).ended();
    assert_eq!((status.code(), rest.as_str()), (Some(64), ""));
    assert!(said.contains("another process listens on"), "{said}");
    assert!(read(&path) == lab.disk("vm1", "vda"), "the first one goes on");
    first.signal(Signal::KILL);
    first.ended();
    assert!(path.exists(), "a killed server leaves its socket");
    let mut second = Running::start(&lab, &["--socket", &text, "--json"]);
    second.ready();
    assert!(read(&path) == lab.disk("vm1", "vda"));
    assert_eq!(second.stopped().0.code(), Some(0));
    fs::write(&path, "a file").expect("written");
    let (status, _, said) = Running::start(&lab, &["--socket", &text]).ended();
    assert_eq!(status.code(), Some(64), "{said}");
    assert_eq!(fs::read_to_string(&path).expect("it stays"), "a file");
}

#[test]
fn tcp_is_served_on_the_loopback_address() {
    let lab = lab();
    let mut running = Running::start(&lab, &["--listen", "0", "--json"]);
    let ready = running.ready();
    let uri = ready["exports"][0]["uri"].as_str().expect("a URI");
    assert!(
        uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/vda"),
        "{uri}"
    );
    let address = uri.trim_start_matches("nbd://").trim_end_matches("/vda");
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGIC");
    let (status, _, said) = running.stopped();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!said.contains("no encryption"), "{said}");
}

#[test]
fn damage_is_reported_once_and_decides_the_exit_code() {
    let lab = lab();
    let (path, text) = socket(&lab);
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    let mut bytes = fs::read(&image).expect("it can be read");
    // Beyond the first piece, which holds the header.
    bytes[2 * CLUSTER * 16 + 1000] ^= 1;
    fs::write(&image, bytes).expect("written");
    let mut running = Running::start(&lab, &["--socket", &text, "--json"]);
    running.ready();
    let disk = lab.disk("vm1", "vda");
    let mut client = client(&path);
    let mut failed = Vec::new();
    for round in 0..2 {
        for (number, cluster) in disk.chunks(CLUSTER).enumerate() {
            let mut bytes = vec![0; CLUSTER];
            match client.read((number * CLUSTER) as u64, &mut bytes) {
                Ok(()) => assert!(bytes == cluster, "cluster {number}"),
                Err(Error::Server { errno: 5, .. }) => failed.push((round, number)),
                Err(error) => panic!("{error}"),
            }
        }
    }
    // One piece of 1 MiB, each time.
    assert!(
        failed.contains(&(0, 31)) && failed.contains(&(1, 31)),
        "{failed:?}"
    );
    assert!(failed.len() <= 2 * 17, "{failed:?}");
    let (status, rest, said) = running.stopped();
    assert_eq!(status.code(), Some(11), "{said}");
    let ended: Value = serde_json::from_str(&rest).expect("one document");
    assert_eq!(ended["exports"][0]["damagedReads"], failed.len());
    let findings = ended["findings"].as_array().expect("a list");
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0]["code"], "served-data-damaged");
    assert_eq!(said.matches("vda.qcow2").count(), 1, "{said}");
}

/// A changed table could say that data read as zero.
#[test]
fn a_damaged_table_never_turns_data_into_zeroes() {
    let lab = lab();
    let (path, text) = socket(&lab);
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    let sound = fs::read(&image).expect("it can be read");
    // The entry of each cluster has the bit for a cluster that nothing else refers to.
    let is_entry = |bytes: &&[u8]| bytes[0] == 0x80 && bytes[1..5] == [0; 4];
    let last = sound.chunks(8).enumerate().rfind(|(_, bytes)| is_entry(bytes));
    let (place, _) = last.expect("a table");
    let mut bytes = sound.clone();
    // Bit 0 of an entry: the cluster reads as zero.
    bytes[place * 8 + 7] |= 1;
    assert!(bytes != sound);
    fs::write(&image, &bytes).expect("written");
    let mut running = Running::start(&lab, &["--socket", &text, "--json"]);
    running.ready();
    let mut client = client(&path);
    let status = client.block_status(0, client.size());
    let error = status.expect_err("the table is damaged");
    assert!(matches!(error, Error::Server { errno: 5, .. }), "{error}");
    assert_eq!(running.stopped().0.code(), Some(11));
    fs::write(&image, &sound).expect("written");
    let mut running = Running::start(&lab, &["--socket", &text, "--json"]);
    running.ready();
    let clusters = data_clusters(&mut crate::repositories::serve::client(&path));
    assert_eq!(clusters, (0..64).collect::<Vec<_>>());
    assert_eq!(running.stopped().0.code(), Some(0));
}

#[test]
fn a_merge_beside_a_server_leaves_its_bytes() {
    let lab = lab();
    let (path, text) = socket(&lab);
    let first = lab.history("vm1").kept[0].manifest.point.id.clone();
    let mut running = Running::start(&lab, &["--socket", &text, "--json", "--at", &first]);
    running.ready();
    let before = read(&path);
    let prune = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(["prune", "vm1", "--keep-last", "1", "--repository"])
        .arg(lab.root())
        .output()
        .expect("the program runs");
    assert_eq!(prune.status.code(), Some(0), "{prune:?}");
    assert_eq!(lab.history("vm1").kept.len(), 1, "the restore point is removed");
    assert!(read(&path) == before, "and still served");
    let (status, _, said) = running.stopped();
    assert_eq!(status.code(), Some(0), "{said}");
    lab.assert_gives_back("vm1", "vda");
}
