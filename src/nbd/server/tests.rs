//! The server on a real socket: served bytes, errors, and clients that misbehave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::model::block::BlockErrorKind;
use crate::model::stop::WaitLimit;
use crate::nbd::Client;
use crate::nbd::error::Error;
use crate::nbd::options::{encode_go, encode_option};
use crate::nbd::wire::*;

const MIB: usize = 1 << 20;

/// A disk in memory. Every other 64 KiB read as zero.
#[derive(Debug)]
struct Disk {
    bytes: Vec<u8>,
    /// Reads that touch this offset fail.
    damaged: Option<usize>,
    /// How often the disk was read.
    reads: Mutex<usize>,
    /// How often its status was asked for, and how often at most until the asker has to wait for
    /// the test.
    asked: Mutex<usize>,
    gate: Option<Arc<std::sync::Barrier>>,
}

fn is_hole(offset: u64) -> bool {
    offset / 65536 % 2 == 1
}

impl Disk {
    fn new(size: usize) -> Disk {
        let byte = |at: usize| {
            if is_hole(at as u64) {
                0
            } else {
                (at / 7 % 251) as u8
            }
        };
        Disk {
            bytes: (0..size).map(byte).collect(),
            damaged: None,
            reads: Mutex::default(),
            asked: Mutex::default(),
            gate: None,
        }
    }
}

impl ExportDisk for Disk {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn status_at(&self, offset: u64) -> Result<(u64, bool), BlockError> {
        let end = (offset / 65536 + 1) * 65536;
        let number = {
            let mut asked = self.asked.lock().expect("no panic");
            *asked += 1;
            *asked
        };
        if let Some(gate) = self.gate.as_ref().filter(|_| number == 1) {
            gate.wait();
            gate.wait();
        }
        Ok((end.min(self.size()) - offset, is_hole(offset)))
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<(), BlockError> {
        *self.reads.lock().expect("no panic") += 1;
        let range = offset as usize..offset as usize + out.len();
        if self.damaged.is_some_and(|at| range.contains(&at)) {
            return Err(BlockError::new(BlockErrorKind::Damaged, "a test"));
        }
        out.copy_from_slice(&self.bytes[range]);
        Ok(())
    }
}

struct Stage {
    folder: tempfile::TempDir,
    disk: Arc<Disk>,
    server: Server,
    stop: Stop,
}

impl Stage {
    fn new(disk: Disk, limits: Limits) -> Stage {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Arc::new(disk);
        let listener = Listener::unix(&folder.path().join("s")).expect("it is free");
        let export = ServedExport {
            name: "vda".to_owned(),
            disk: Arc::clone(&disk) as Arc<dyn ExportDisk>,
        };
        let stop = Stop::default();
        let server = Server::start(listener, vec![export], limits, &stop).expect("it starts");
        Stage {
            folder,
            disk,
            server,
            stop,
        }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("s")
    }

    fn client(&self) -> Client {
        client(&self.socket(), &[BASE_ALLOCATION]).expect("it is served")
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set");
        stream
    }

    /// A connection after a handshake without structured replies.
    fn simple(&self) -> UnixStream {
        let mut stream = self.raw();
        let mut bytes = vec![0, 0, 0, 3];
        bytes.extend(encode_option(OPT_EXPORT_NAME, b"vda"));
        stream.write_all(&bytes).expect("it listens");
        stream.read_exact(&mut [0; 18 + 10]).expect("it answers");
        stream
    }
}

fn client(socket: &Path, contexts: &[&str]) -> crate::nbd::Result<Client> {
    let limit = WaitLimit {
        deadline: Duration::from_secs(60),
        stop: Stop::default(),
    };
    Client::connect_unix(socket, "vda", contexts, &limit)
}

fn request(command: u16, offset: u64, length: u32) -> [u8; 28] {
    let request = Request {
        flags: 0,
        command,
        cookie: offset,
        offset,
        length,
    };
    request.encode()
}

/// Waits until the server has closed the connection.
fn is_closed(mut stream: UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn bytes_and_zeroes_are_served() {
    let stage = Stage::new(Disk::new(5 * MIB + 1000), Limits::default());
    let mut client = stage.client();
    assert_eq!(client.size(), stage.disk.size());
    assert!(client.read_only() && client.structured());
    let mut bytes = vec![9; stage.disk.bytes.len()];
    client.read(0, &mut bytes).expect("it is served");
    assert!(bytes == stage.disk.bytes);
    client.read(65000, &mut bytes[..MIB]).expect("it is served");
    assert!(bytes[..MIB] == stage.disk.bytes[65000..65000 + MIB]);
    let status = client.block_status(100, 200_000).expect("it is granted");
    let runs: Vec<_> = status[0].iter().map(|run| (run.length, run.flags)).collect();
    assert_eq!(runs, [(65436, 0), (65536, 3), (65536, 0), (3492, 3)]);
}

#[test]
fn zeroes_come_as_holes_without_being_read() {
    let stage = Stage::new(Disk::new(MIB), Limits::default());
    let mut stream = stage.raw();
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(encode_option(OPT_STRUCTURED_REPLY, &[]));
    bytes.extend(encode_option(OPT_GO, &encode_go("vda")));
    bytes.extend(request(CMD_READ, 0, 3 * 65536));
    stream.write_all(&bytes).expect("sent");
    // Greeting, acknowledgement, two pieces of information, acknowledgement.
    let handshake = 18 + 20 + (20 + 12) + (20 + 14) + 20;
    let mut found = vec![0; handshake + 2 * (28 + 65536) + 32];
    stream.read_exact(&mut found).expect("the reply");
    let (data, rest) = found[handshake..].split_at(28 + 65536);
    assert!(data[28..] == stage.disk.bytes[..65536]);
    let (hole, last) = rest.split_at(32);
    let chunk = parse_chunk(&hole[4..20]).expect("valid");
    assert_eq!((chunk.kind, chunk.done), (REPLY_OFFSET_HOLE, false));
    assert_eq!(parse_hole(&hole[20..]).expect("valid"), (65536, 65536));
    assert!(parse_chunk(&last[4..20]).expect("valid").done);
    assert!(last[28..] == stage.disk.bytes[2 * 65536..3 * 65536]);
    assert_eq!(*stage.disk.reads.lock().expect("no panic"), 2);
}

#[test]
fn simple_replies_carry_long_reads() {
    let stage = Stage::new(Disk::new(3 * MIB), Limits::default());
    let mut stream = stage.simple();
    stream
        .write_all(&request(CMD_READ, 5, 3 * MIB as u32 - 5))
        .expect("sent");
    let mut head = [0; 16];
    stream.read_exact(&mut head).expect("a reply");
    assert_eq!(
        parse_simple_reply(&head[4..]).expect("valid"),
        SimpleReply { errno: 0, cookie: 5 }
    );
    let mut bytes = vec![0; 3 * MIB - 5];
    stream.read_exact(&mut bytes).expect("all bytes");
    assert!(bytes == stage.disk.bytes[5..]);
}

#[test]
fn damage_is_an_error_and_the_rest_is_served() {
    let mut disk = Disk::new(4 * MIB);
    disk.damaged = Some(2 * MIB + 7);
    let stage = Stage::new(disk, Limits::default());
    let mut client = stage.client();
    let mut bytes = vec![0; 65536];
    let error = client
        .read(2 * MIB as u64, &mut bytes)
        .expect_err("it is damaged");
    assert!(matches!(error, Error::Server { errno: 5, .. }), "{error:?}");
    client
        .read(2 * MIB as u64 + 65536 * 2, &mut bytes)
        .expect("it is sound");
    assert!(bytes == stage.disk.bytes[2 * MIB + 131_072..][..65536]);
    // A long read without structure has begun when it fails: the connection ends.
    let mut stream = stage.simple();
    stream
        .write_all(&request(CMD_READ, 0, 4 * MIB as u32))
        .expect("sent");
    let mut received = Vec::new();
    let ended = stream.read_to_end(&mut received);
    assert!(
        ended.is_ok() && received.len() < 4 * MIB,
        "{ended:?} {}",
        received.len()
    );
    // A short one is refused.
    let mut stream = stage.simple();
    stream
        .write_all(&request(CMD_READ, 2 * MIB as u64, 512))
        .expect("sent");
    let mut head = [0; 16];
    stream.read_exact(&mut head).expect("a reply");
    assert_eq!(parse_simple_reply(&head[4..]).expect("valid").errno, 5);
}

#[test]
fn writes_are_refused_and_the_session_goes_on() {
    let stage = Stage::new(Disk::new(MIB), Limits::default());
    let mut stream = stage.simple();
    stream.write_all(&request(CMD_WRITE, 0, 100_000)).expect("sent");
    stream.write_all(&vec![1; 100_000]).expect("sent");
    stream.write_all(&request(CMD_TRIM, 1, 512)).expect("sent");
    stream.write_all(&request(CMD_READ, u64::MAX, 1)).expect("sent");
    let mut errors = std::collections::BTreeMap::new();
    for _ in 0..3 {
        let mut head = [0; 16];
        stream.read_exact(&mut head).expect("a reply");
        let reply = parse_simple_reply(&head[4..]).expect("valid");
        errors.insert(reply.cookie, reply.errno);
    }
    assert_eq!(errors, [(0, 1), (1, 1), (u64::MAX, 22)].into());
    let mut bytes = vec![1; MIB];
    stage.client().read(0, &mut bytes).expect("it is served");
    assert!(bytes == stage.disk.bytes, "nothing was written");
}

#[test]
fn garbage_ends_its_own_connection_only() {
    // Connections that have ended keep their places for a moment.
    let limits = Limits {
        connections: 200,
        ..Limits::default()
    };
    let stage = Stage::new(Disk::new(MIB), limits);
    let mut client = stage.client();
    let too_long = [&[0, 0, 0, 3][..], &encode_option(OPT_GO, &[])[..12], &[255; 4]].concat();
    let no_magic = [&[0, 0, 0, 3][..], &[7; 16]].concat();
    for bytes in [&[0xff; 64][..], b"GET / HTTP/1.1\r\n\r\n", &too_long, &no_magic] {
        let mut stream = stage.raw();
        // The server may close the connection before it has everything.
        let _ = stream.write_all(bytes);
        assert!(is_closed(stream), "{bytes:?}");
    }
    let mut stream = stage.simple();
    stream.write_all(&[3; 28]).expect("sent");
    assert!(is_closed(stream), "no request");
    let mut stream = stage.simple();
    stream.write_all(&request(CMD_WRITE, 0, u32::MAX)).expect("sent");
    assert!(is_closed(stream), "a write that is too long");
    // Clients that vanish at once, and in the middle of requests.
    for _ in 0..50 {
        drop(UnixStream::connect(stage.socket()).expect("it listens"));
        let mut stream = stage.simple();
        for _ in 0..100 {
            stream.write_all(&request(CMD_READ, 0, MIB as u32)).expect("sent");
        }
        stream.write_all(&request(CMD_READ, 0, 1)[..20]).expect("sent");
    }
    let mut bytes = vec![0; MIB];
    client.read(0, &mut bytes).expect("it is still served");
    assert!(bytes == stage.disk.bytes);
}

#[test]
fn slow_clients_are_given_up() {
    let short = Duration::from_millis(300);
    let limits = Limits {
        handshake: short,
        ..Limits::default()
    };
    let stage = Stage::new(Disk::new(MIB), limits);
    assert!(is_closed(stage.raw()), "no handshake");
    // The other clients have all the time they need for their handshakes.
    let limits = Limits {
        patience: short,
        ..Limits::default()
    };
    let stage = Stage::new(Disk::new(MIB), limits);
    let mut client = stage.client();
    let mut stream = stage.simple();
    stream.write_all(&request(CMD_READ, 0, 1)[..27]).expect("sent");
    assert!(is_closed(stream), "a request without its end");
    // One that asks and does not take the replies.
    let mut stream = stage.simple();
    for _ in 0..20 {
        stream.write_all(&request(CMD_READ, 0, MIB as u32)).expect("sent");
    }
    crate::wait::until(Duration::from_secs(60), Duration::from_millis(50), || {
        (stage.server.shared.connected.load(Ordering::SeqCst) == 1).then_some(())
    })
    .expect("it is disconnected");
    // Waiting between requests is no offence.
    let mut bytes = vec![0; 100];
    client.read(0, &mut bytes).expect("it is served");
    assert!(bytes == stage.disk.bytes[..100]);
}

#[test]
fn further_connections_are_refused_until_one_ends() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let stage = Stage::new(Disk::new(MIB), limits);
    let mut clients = [stage.client(), stage.client()];
    // A session that answers has been counted.
    for client in &mut clients {
        client.read(0, &mut [0; 10]).expect("it is served");
    }
    client(&stage.socket(), &[]).expect_err("there is no place");
    assert_eq!(
        stage.server.visits(),
        Visits {
            served: 2,
            refused: 1
        }
    );
    drop(clients);
    let again = crate::wait::until(Duration::from_secs(60), Duration::from_millis(20), || {
        client(&stage.socket(), &[]).ok()
    });
    let mut bytes = vec![0; 100];
    again
        .expect("there is a place again")
        .read(7, &mut bytes)
        .expect("it is served");
    assert!(bytes == stage.disk.bytes[7..107]);
}

#[test]
fn many_clients_and_requests_get_the_right_bytes() {
    let stage = Stage::new(Disk::new(4 * MIB), Limits::default());
    thread::scope(|scope| {
        for number in 0..8u64 {
            let stage = &stage;
            scope.spawn(move || {
                let mut stream = stage.simple();
                let place = |step: u64| (number * 77_777 + step * 13_131) % (3 * MIB as u64);
                for step in 0..40 {
                    stream
                        .write_all(&request(CMD_READ, place(step), 70_000))
                        .expect("sent");
                }
                for _ in 0..40 {
                    let mut head = [0; 16];
                    stream.read_exact(&mut head).expect("a reply");
                    let reply = parse_simple_reply(&head[4..]).expect("valid");
                    assert_eq!(reply.errno, 0);
                    let mut bytes = vec![0; 70_000];
                    stream.read_exact(&mut bytes).expect("its bytes");
                    let start = reply.cookie as usize;
                    assert!(bytes == stage.disk.bytes[start..start + 70_000], "{start}");
                }
            });
        }
    });
}

#[test]
fn the_end_of_the_server_ends_its_connections() {
    let mut stage = Stage::new(Disk::new(MIB), Limits::default());
    let idle = stage.simple();
    let greeting = stage.raw();
    stage.server.end();
    assert!(is_closed(idle) && is_closed(greeting));
    assert!(!stage.socket().exists());
    let stage = Stage::new(Disk::new(MIB), Limits::default());
    let idle = stage.simple();
    stage.stop.request(StopReason::Terminated);
    assert!(is_closed(idle), "the stop of the caller ends it, too");
}

#[test]
fn a_status_ends_with_its_client() {
    let gate = Arc::new(std::sync::Barrier::new(2));
    let disk = Disk {
        gate: Some(Arc::clone(&gate)),
        ..Disk::new(8 * MIB)
    };
    let stage = Stage::new(disk, Limits::default());
    let socket = stage.socket();
    let asking = thread::spawn(move || {
        let mut client = client(&socket, &[BASE_ALLOCATION]).expect("it is served");
        client.block_status(0, 8 * MIB as u64)
    });
    gate.wait();
    // The server ends while the first range is looked up.
    stage.stop.request(StopReason::Interrupted);
    gate.wait();
    assert!(asking.join().expect("no panic").is_err());
    drop(stage.server);
    assert_eq!(*stage.disk.asked.lock().expect("no panic"), 1);
}
