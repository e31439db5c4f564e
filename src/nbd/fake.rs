//! A server for tests: serves bytes from memory over a socket pair, correctly but as awkwardly as
//! configured.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::wire::*;
use crate::model::extents::Run;

/// Flags, command, offset and length of a request.
pub(super) type Seen = (u16, u16, u64, u32);

/// An export and the behaviour of its server.
#[derive(Clone, Debug)]
pub(super) struct FakeExport {
    pub disk: Vec<u8>,
    /// The names of the contexts, with runs over the whole disk.
    pub contexts: Vec<(String, Vec<Run>)>,
    pub structured: bool,
    pub flags: u16,
    pub block_sizes: Option<[u32; 3]>,
    /// Gathers up to this many requests, then answers them, last one first.
    pub gather: usize,
    /// Answers reads in chunks of this many bytes, last one first. Zeroes become holes, and chunks
    /// of different replies are mixed.
    pub fragment: Option<usize>,
    /// The most runs per status reply, for each context in turn.
    pub most_runs: Vec<usize>,
    /// The longest read that it answers unfragmented, in bytes.
    pub longest_unfragmented: u32,
    /// Reads that touch this offset fail with this error.
    pub fail: Option<(u64, u32)>,
    /// Closes the connection after this many requests.
    pub hang_up_after: usize,
    /// Stops answering after this many requests.
    pub silent_after: usize,
    /// The most requests that were in flight together when it answered.
    pub most_together: Arc<AtomicUsize>,
    /// All requests that arrived.
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl FakeExport {
    pub fn new(disk: Vec<u8>) -> Self {
        FakeExport {
            disk,
            contexts: Vec::new(),
            structured: true,
            flags: FLAG_HAS_FLAGS | FLAG_READ_ONLY | FLAG_SEND_DF,
            block_sizes: None,
            gather: 1,
            fragment: None,
            most_runs: vec![usize::MAX],
            longest_unfragmented: u32::MAX,
            fail: None,
            hang_up_after: usize::MAX,
            silent_after: usize::MAX,
            most_together: Arc::default(),
            seen: Arc::default(),
        }
    }

    /// Serves one connection from a thread, which ends when the client disconnects.
    pub fn serve(&self) -> (UnixStream, JoinHandle<()>) {
        let (client, server) = UnixStream::pair().expect("a socket pair");
        let session = Session {
            export: self.clone(),
            stream: server,
            structured: false,
            granted: Vec::new(),
        };
        (client, std::thread::spawn(move || session.run()))
    }
}

struct Session {
    export: FakeExport,
    stream: UnixStream,
    structured: bool,
    /// Indices into the export's contexts; the id of a context is its index plus 100.
    granted: Vec<usize>,
}

type Asked = (u16, u16, u64, u64, u32);

impl Session {
    fn run(mut self) {
        if self.handshake().is_some() {
            self.transmission();
        }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    fn put(&mut self, parts: &[&[u8]]) -> Option<()> {
        self.stream.write_all(&parts.concat()).ok()
    }

    fn option_reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> Option<()> {
        let length = payload.len() as u32;
        self.put(&[
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &length.to_be_bytes(),
            payload,
        ])
    }

    fn handshake(&mut self) -> Option<()> {
        self.put(&[&INIT_MAGIC.to_be_bytes(), &OPTION_MAGIC.to_be_bytes(), &[0, 3]])?;
        assert_eq!(self.take::<4>()?, [0, 0, 0, 3], "client flags");
        loop {
            assert_eq!(u64::from_be_bytes(self.take()?), OPTION_MAGIC);
            let option = u32::from_be_bytes(self.take()?);
            let mut data = vec![0; u32::from_be_bytes(self.take()?) as usize];
            self.stream.read_exact(&mut data).ok()?;
            match option {
                OPT_STRUCTURED_REPLY if self.export.structured => {
                    self.structured = true;
                    self.option_reply(option, REP_ACK, &[])?;
                }
                OPT_SET_META_CONTEXT if self.structured => self.grant(&data)?,
                OPT_GO => {
                    let size = self.export.disk.len() as u64;
                    let info = [&[0, 0][..], &size.to_be_bytes(), &self.export.flags.to_be_bytes()].concat();
                    self.option_reply(option, REP_INFO, &info)?;
                    if let Some(sizes) = self.export.block_sizes {
                        let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_be_bytes()).collect();
                        self.option_reply(option, REP_INFO, &[&[0, 3], &sizes[..]].concat())?;
                    }
                    return self.option_reply(option, REP_ACK, &[]);
                }
                _ => self.option_reply(option, REP_ERR_UNSUP, b"not here")?,
            }
        }
    }

    fn grant(&mut self, data: &[u8]) -> Option<()> {
        fn number(at: &mut &[u8]) -> usize {
            let (head, rest) = at.split_first_chunk::<4>().expect("a number");
            *at = rest;
            u32::from_be_bytes(*head) as usize
        }
        let mut at = data;
        let name = number(&mut at);
        at = &at[name..];
        for _ in 0..number(&mut at) {
            let length = number(&mut at);
            let wanted = at[..length].to_vec();
            at = &at[length..];
            if let Some(index) = self
                .export
                .contexts
                .iter()
                .position(|(name, _)| name.as_bytes() == wanted)
            {
                self.granted.push(index);
                let id = (index as u32 + 100).to_be_bytes();
                self.option_reply(
                    OPT_SET_META_CONTEXT,
                    REP_META_CONTEXT,
                    &[&id[..], &wanted].concat(),
                )?;
            }
        }
        self.option_reply(OPT_SET_META_CONTEXT, REP_ACK, &[])
    }

    fn request(&mut self) -> Option<Asked> {
        let head: [u8; 28] = self.take()?;
        let u64_at = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(head[..4], REQUEST_MAGIC.to_be_bytes());
        let flags = u16::from_be_bytes([head[4], head[5]]);
        let command = u16::from_be_bytes([head[6], head[7]]);
        let length = u32::from_be_bytes(head[24..].try_into().expect("4 bytes"));
        Some((flags, command, u64_at(8), u64_at(16), length))
    }

    fn transmission(&mut self) {
        let mut served = 0;
        loop {
            let mut asked = Vec::new();
            self.stream.set_read_timeout(None).expect("no timeout");
            while let Some(request) = self.request() {
                self.export
                    .seen
                    .lock()
                    .expect("no panic")
                    .push((request.0, request.1, request.3, request.4));
                asked.push(request);
                served += 1;
                if request.1 == CMD_DISC || served > self.export.hang_up_after {
                    return;
                }
                if asked.len() >= self.export.gather {
                    break;
                }
                self.stream
                    .set_read_timeout(Some(Duration::from_millis(2)))
                    .expect("a timeout");
            }
            if asked.is_empty() {
                return;
            }
            if served > self.export.silent_after {
                continue;
            }
            self.export.most_together.fetch_max(asked.len(), Ordering::SeqCst);
            let mut replies: Vec<Vec<Vec<u8>>> =
                asked.iter().rev().map(|request| self.answer(*request)).collect();
            // Interleaves the chunks of all replies.
            while replies.iter().any(|chunks| !chunks.is_empty()) {
                for chunks in &mut replies {
                    if !chunks.is_empty() && self.stream.write_all(&chunks.remove(0)).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// The chunks of the answer to one request.
    fn answer(&self, (flags, command, cookie, offset, length): Asked) -> Vec<Vec<u8>> {
        self.check(command, offset, length);
        let end = offset + u64::from(length);
        let failure = match self.export.fail {
            Some((at, errno)) if command == CMD_READ && (offset..end).contains(&at) => Some(errno),
            _ if flags & CMD_FLAG_DF != 0 && length > self.export.longest_unfragmented => Some(75),
            _ => None,
        };
        if !self.structured {
            let head = |errno: u32| {
                [
                    &SIMPLE_REPLY_MAGIC.to_be_bytes()[..],
                    &errno.to_be_bytes(),
                    &cookie.to_be_bytes(),
                ]
                .concat()
            };
            return match failure {
                Some(errno) => vec![head(errno)],
                None => vec![[head(0), self.export.disk[offset as usize..end as usize].to_vec()].concat()],
            };
        }
        if let Some(errno) = failure {
            let payload = [&errno.to_be_bytes()[..], &[0, 4], b"fake"].concat();
            return vec![chunk(true, REPLY_ERROR, cookie, &payload)];
        }
        match command {
            CMD_READ => self.read(flags, cookie, offset, end),
            _ => self.status(cookie, offset, u64::from(length)),
        }
    }

    fn check(&self, command: u16, offset: u64, length: u32) {
        let size = self.export.disk.len() as u64;
        assert!(
            length > 0 && offset + u64::from(length) <= size,
            "request within the export"
        );
        if let Some([minimum, _, maximum]) = self.export.block_sizes {
            assert!(
                offset.is_multiple_of(minimum.into()),
                "offset {offset} is aligned to {minimum}"
            );
            assert!(
                length.is_multiple_of(minimum),
                "length {length} is aligned to {minimum}"
            );
            assert!(
                command != CMD_READ || length <= maximum,
                "length {length} is at most {maximum}"
            );
        }
    }

    fn read(&self, flags: u16, cookie: u64, offset: u64, end: u64) -> Vec<Vec<u8>> {
        let piece = match self.export.fragment {
            Some(piece) if flags & CMD_FLAG_DF == 0 => piece,
            _ => (end - offset) as usize,
        };
        let bytes = &self.export.disk[offset as usize..end as usize];
        let mut chunks: Vec<Vec<u8>> = bytes
            .chunks(piece)
            .enumerate()
            .map(|(index, bytes)| {
                let at = (offset + (index * piece) as u64).to_be_bytes();
                if self.export.fragment.is_some() && bytes.iter().all(|byte| *byte == 0) {
                    let length = (bytes.len() as u32).to_be_bytes();
                    chunk(false, REPLY_OFFSET_HOLE, cookie, &[&at[..], &length].concat())
                } else {
                    chunk(false, REPLY_OFFSET_DATA, cookie, &[&at[..], bytes].concat())
                }
            })
            .rev()
            .collect();
        chunks.push(chunk(true, REPLY_NONE, cookie, &[]));
        chunks
    }

    fn status(&self, cookie: u64, offset: u64, length: u64) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        for (turn, index) in self.granted.iter().enumerate() {
            let most = self.export.most_runs[turn % self.export.most_runs.len()];
            let mut payload = Vec::from((*index as u32 + 100).to_be_bytes());
            let mut at = 0;
            let mut sent = 0;
            for run in &self.export.contexts[*index].1 {
                let start = at.max(offset);
                let end = (at + run.length).min(offset + length);
                at += run.length;
                if start < end && sent < most {
                    payload.extend(((end - start) as u32).to_be_bytes());
                    payload.extend(run.flags.to_be_bytes());
                    sent += 1;
                }
            }
            chunks.push(chunk(
                turn + 1 == self.granted.len(),
                REPLY_BLOCK_STATUS,
                cookie,
                &payload,
            ));
        }
        chunks
    }
}

/// A chunk of a structured reply.
fn chunk(done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    [
        &STRUCTURED_REPLY_MAGIC.to_be_bytes()[..],
        &u16::from(done).to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ]
    .concat()
}
