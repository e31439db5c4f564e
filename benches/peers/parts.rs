//! Parts of a backup that this program does alone, to show what they cost in any program.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use vmsnap::io::DirectFile;
use vmsnap::model::block::ImageFile;
use vmsnap::model::buffer::Buffer;
use vmsnap::ops::copy::{self, BUFFER_SIZE, BUFFERS};
use vmsnap::testkit::SimulatedMap;

/// With this argument and a number of bytes, this program computes a digest.
const DIGEST: &str = "--digest";
/// With this argument and two paths, it copies the first file to the second through a socket, with
/// a digest.
const COPY: &str = "--copy-through-socket";
/// With this argument and a path, it sends the file to its standard output, which is a socket.
const SEND: &str = "--send";

/// With this argument, two folders and a number of blocks, it creates a simulated map.
const CREATE_MAP: &str = "--create-map";
/// With this argument, the same ones, a root and a number of blocks, it changes that many.
const CHANGE_MAP: &str = "--change-map";

/// Runs the part that the arguments name, if they name one.
pub fn run(words: &[String]) -> bool {
    match words {
        [word, bytes, ..] if word == DIGEST => digest(bytes.parse().expect("a number of bytes")),
        [word, input, output, ..] if word == COPY => through_socket(input, Path::new(output)),
        [word, input, ..] if word == SEND => send(input),
        [word, repository, cache, blocks, ..] if word == CREATE_MAP => {
            let root = map(repository, cache, blocks).create().expect("it is written");
            println!("{root}");
        }
        [word, repository, cache, blocks, root, count, ..] if word == CHANGE_MAP => {
            let count = count.parse().expect("a number of blocks");
            let map = map(repository, cache, blocks);
            map.change(root, count).expect("it is written");
        }
        _ => return false,
    }
    true
}

/// The command that computes a digest of this number of bytes.
pub fn digesting(bytes: u64) -> Command {
    this_program(&[DIGEST, &bytes.to_string()])
}

/// The command that receives a file from a socket, computes its digest, and writes it.
pub fn copying(input: &Path, output: &Path) -> Command {
    this_program(&[COPY, &input.display().to_string(), &output.display().to_string()])
}

/// The command that creates a simulated map, and prints the id of its root.
pub fn creating_a_map(map: &SimulatedMap<'_>) -> Command {
    let words = words_of(map);
    this_program(&[CREATE_MAP, &words[0], &words[1], &words[2]])
}

/// The command that changes this number of blocks.
pub fn changing_a_map(map: &SimulatedMap<'_>, root: &str, count: u64) -> Command {
    let words = words_of(map);
    let count = count.to_string();
    this_program(&[CHANGE_MAP, &words[0], &words[1], &words[2], root, &count])
}

fn words_of(map: &SimulatedMap<'_>) -> [String; 3] {
    let (repository, cache) = (map.repository.display(), map.cache.display());
    [repository.to_string(), cache.to_string(), map.blocks.to_string()]
}

fn map<'a>(repository: &'a str, cache: &'a str, blocks: &str) -> SimulatedMap<'a> {
    SimulatedMap {
        repository: Path::new(repository),
        cache: Path::new(cache),
        blocks: blocks.parse().expect("a number of blocks"),
    }
}

fn this_program(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(words);
    command
}

/// Computes the digest of this number of bytes, which are in the processor's cache.
fn digest(bytes: u64) {
    let piece = vec![1; 256 * 1024];
    let mut hasher = blake3::Hasher::new();
    for _ in 0..bytes / piece.len() as u64 {
        hasher.update(&piece);
    }
    println!("{}", hasher.finalize());
}

/// Receives and hashes on one thread, and writes past the page cache on another, with as many
/// buffers as vmsnap. The sender is a separate process. Nothing waits for it, so its processor time
/// does not count.
#[allow(clippy::zombie_processes, reason = "its processor time would count as ours")]
fn through_socket(input: &str, output: &Path) {
    let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut sender = this_program(&[SEND, input]);
    let theirs = Stdio::from(OwnedFd::from(theirs));
    sender.stdin(Stdio::null()).stdout(theirs);
    sender.spawn().expect("this program can be started");
    // It holds the sender's socket. The receiver sees the end only when all copies are closed.
    drop(sender);
    let (filled, to_write) = sync_channel::<Buffer>(BUFFERS);
    let file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(output);
    let mut file = DirectFile::new(file.expect("the file is new"));
    let writer = thread::spawn(move || {
        let mut end = 0;
        for piece in to_write {
            file.write_at(&piece, end).expect("it can be written");
            end += piece.len() as u64;
        }
        file.sync().expect("it can be synced");
    });
    let pool = copy::pool();
    let mut hasher = blake3::Hasher::new();
    loop {
        let taken = pool.take_within(Duration::from_secs(60));
        let mut piece = taken.expect("the writer returns buffers");
        let (count, _) = recv(&socket, &mut piece[..], RecvFlags::WAITALL).expect("it can be received");
        piece.set_len(count);
        if count == 0 {
            break;
        }
        hasher.update(&piece);
        filled.send(piece).expect("the writer accepts it");
    }
    drop(filled);
    writer.join().expect("no panic");
    println!("{}", hasher.finalize());
}

/// Sends a file through the socket that is the standard output.
fn send(input: &str) {
    let file = File::open(input).expect("it can be opened");
    let socket = io::stdout().as_fd().try_clone_to_owned();
    let mut socket = UnixStream::from(socket.expect("a second handle"));
    let mut piece = vec![0; BUFFER_SIZE];
    let mut at = 0;
    loop {
        let count = file.read_at(&mut piece, at).expect("it can be read");
        if count == 0 {
            break;
        }
        socket.write_all(&piece[..count]).expect("it is received");
        at += count as u64;
    }
}
