//! Parts of a backup, done by this program itself and by nothing else: what the work takes whoever does it.

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
use vmsnap::ops::copy::{self, BUFFERS, REQUEST};

/// With this word and a number of bytes this program computes a digest and ends.
const DIGEST: &str = "--digest";
/// With this word and two paths it copies the first one's file to the second one's through a socket, with a digest.
const COPY: &str = "--copy-through-socket";
/// With this word and a path it sends that file to its standard output, which is a socket.
const SEND: &str = "--send";

/// Does what the words of this program ask for, if it is a part.
pub fn run(words: &[String]) -> bool {
    match words {
        [word, bytes, ..] if word == DIGEST => digest(bytes.parse().expect("a number of bytes")),
        [word, input, output, ..] if word == COPY => through_socket(input, Path::new(output)),
        [word, input, ..] if word == SEND => send(input),
        _ => return false,
    }
    true
}

/// This program, which computes a digest of so many bytes.
pub fn digesting(bytes: u64) -> Command {
    this_program(&[DIGEST, &bytes.to_string()])
}

/// This program, which receives a file from a socket, computes its digest, and writes it.
pub fn copying(input: &Path, output: &Path) -> Command {
    this_program(&[COPY, &input.display().to_string(), &output.display().to_string()])
}

fn this_program(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(words);
    command
}

/// Computes the digest of so many bytes that lie in the processor's cache.
fn digest(bytes: u64) {
    let piece = vec![1; 256 * 1024];
    let mut hasher = blake3::Hasher::new();
    for _ in 0..bytes / piece.len() as u64 {
        hasher.update(&piece);
    }
    println!("{}", hasher.finalize());
}

/// Receives and hashes on one thread and writes past the page cache on another one, with vmsnap's memory. The sender is a process of its own that is not waited for: its
/// processor time is not counted.
#[allow(clippy::zombie_processes, reason = "its processor time would count as ours")]
fn through_socket(input: &str, output: &Path) {
    let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut sender = this_program(&[SEND, input]);
    let theirs = Stdio::from(OwnedFd::from(theirs));
    sender.stdin(Stdio::null()).stdout(theirs);
    sender.spawn().expect("this program can be started");
    // It holds the other socket, whose end is not told while one of ours is open.
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
        let mut piece = taken.expect("the disk gives buffers back");
        let (count, _) = recv(&socket, &mut piece[..], RecvFlags::WAITALL).expect("it can be received");
        piece.set_len(count);
        if count == 0 {
            break;
        }
        hasher.update(&piece);
        filled.send(piece).expect("the writer takes it");
    }
    drop(filled);
    writer.join().expect("no panic");
    println!("{}", hasher.finalize());
}

/// Sends a file to whoever is at the other end of the standard output.
fn send(input: &str) {
    let file = File::open(input).expect("it can be opened");
    let socket = io::stdout().as_fd().try_clone_to_owned();
    let mut socket = UnixStream::from(socket.expect("a second handle"));
    let mut piece = vec![0; REQUEST];
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
