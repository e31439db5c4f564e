//! A small S3 server in this process, which can misbehave. It checks no signatures.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// The only bucket.
pub const BUCKET: &str = "backups";

/// How the server answers every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As S3 does.
    Good,
    /// As S3 does, but it ignores `If-None-Match`.
    IgnoresConditions,
    /// As S3 does, but it refuses `If-None-Match` at a PUT.
    RefusesConditions,
    /// As S3 does for a user who may read and create objects, but not delete or replace them.
    MayOnlyAdd,
    /// As S3 does for a user who may only read.
    MayOnlyRead,
    /// As S3 does for a bucket whose objects are locked: each put needs a checksum.
    LocksObjects,
    /// With this status and this error code.
    Refuses(u16, &'static str),
    /// With status 503, this many times.
    Busy(usize),
    /// Never.
    Silent,
    /// It closes the connection in the middle of the answer to a GET.
    Tears,
    /// With bytes that are no HTTP.
    Garbage,
}

pub struct Server {
    port: u16,
    state: Arc<State>,
}

struct State {
    objects: Mutex<Objects>,
    /// The clock moves only with [`Server::pass`].
    now: Mutex<Timestamp>,
    mood: Mutex<Mood>,
    requests: AtomicUsize,
    /// The most objects in one answer to a list.
    page: AtomicUsize,
    line: Mutex<Option<Line>>,
}

/// The line to the server.
#[derive(Clone, Copy)]
struct Line {
    latency: Duration,
    bytes_per_second: f64,
    /// When it has transferred everything that was sent so far.
    free: Instant,
}

/// The content of each object, and when it was written.
type Objects = BTreeMap<String, (Vec<u8>, Timestamp)>;

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    /// Whether it may replace an object.
    fn replaces(&self) -> bool {
        self.method == "PUT" && self.headers.get("if-none-match").is_none_or(|value| value != "*")
    }
}

impl Server {
    pub fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(State {
            objects: Mutex::default(),
            now: Mutex::new("2026-11-28T15:00:00Z".parse().expect("a time")),
            mood: Mutex::new(Mood::Good),
            requests: AtomicUsize::new(0),
            page: AtomicUsize::new(2),
            line: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        // The threads end with the process of the test.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &state));
            }
        });
        Server { port, state }
    }

    /// The location of a prefix in a bucket of this server.
    pub fn location(&self, place: &str) -> String {
        format!("s3:http://127.0.0.1:{}/{place}", self.port)
    }

    pub fn be(&self, mood: Mood) {
        *lock(&self.state.mood) = mood;
    }

    pub fn keys(&self) -> Vec<String> {
        lock(&self.state.objects).keys().cloned().collect()
    }

    pub fn insert(&self, key: &str, content: &[u8]) {
        let now = *lock(&self.state.now);
        lock(&self.state.objects).insert(key.to_owned(), (content.to_vec(), now));
    }

    pub fn remove(&self, key: &str) {
        lock(&self.state.objects).remove(key);
    }

    /// The keys and the content of all objects.
    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let objects = lock(&self.state.objects);
        let objects = objects.iter();
        objects
            .map(|(key, (content, _))| (key.clone(), content.clone()))
            .collect()
    }

    /// Moves the clock of the server forward.
    pub fn pass(&self, hours: i64) {
        *lock(&self.state.now) += SignedDuration::from_hours(hours);
    }

    /// Gives the server a line that adds this latency to each request and carries this much of all
    /// requests together.
    #[allow(dead_code, reason = "a benchmark uses it")]
    pub fn lay_line(&self, latency: Duration, bytes_per_second: f64) {
        let free = Instant::now();
        *lock(&self.state.line) = Some(Line {
            latency,
            bytes_per_second,
            free,
        });
    }

    /// Lists as many objects in one answer as S3 does.
    pub fn list_long_pages(&self) {
        self.state.page.store(1000, Ordering::SeqCst);
    }

    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the line has carried this many bytes.
#[allow(clippy::disallowed_methods, reason = "a slow line is slow")]
fn carry(state: &State, bytes: usize) {
    let (free, latency) = match lock(&state.line).as_mut() {
        None => return,
        Some(line) => {
            let time = Duration::from_secs_f64(bytes as f64 / line.bytes_per_second);
            line.free = line.free.max(Instant::now()) + time;
            (line.free, line.latency)
        }
    };
    thread::sleep(free.saturating_duration_since(Instant::now()) + latency);
}

fn serve(stream: TcpStream, state: &State) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut stream = stream;
    while let Some(request) = read(&mut reader) {
        state.requests.fetch_add(1, Ordering::SeqCst);
        let mood = {
            let mut mood = lock(&state.mood);
            match &mut *mood {
                Mood::Busy(0) => *mood = Mood::Good,
                Mood::Busy(left) => *left -= 1,
                _ => {}
            }
            mood.clone()
        };
        let answer = match mood {
            Mood::Silent => loop {
                thread::park();
            },
            Mood::Garbage => b"\xff\x00\r\n\r\n".to_vec(),
            Mood::Refuses(status, code) => error(status, code),
            Mood::Busy(_) => error(503, "SlowDown"),
            Mood::Tears if request.method == "GET" && request.query.is_empty() => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\nETag: \"x\"\r\nLast-Modified: Sat, 28 Nov 2026 15:00:00 GMT\r\n\r\n{".to_vec()
            }
            Mood::RefusesConditions if request.method == "PUT" && !request.replaces() => {
                error(501, "NotImplemented")
            }
            Mood::MayOnlyRead if !matches!(request.method.as_str(), "GET" | "HEAD") => {
                error(403, "AccessDenied")
            }
            Mood::MayOnlyAdd if request.method == "DELETE" || request.replaces() => {
                error(403, "AccessDenied")
            }
            mood => answer(&request, state, &mood),
        };
        carry(state, request.body.len() + answer.len());
        let is_last = matches!(mood_name(&answer), Answer::Torn);
        if stream.write_all(&answer).is_err() || is_last {
            return;
        }
    }
}

enum Answer {
    Whole,
    Torn,
}

fn mood_name(answer: &[u8]) -> Answer {
    match answer.ends_with(b"\r\n\r\n{") || answer.starts_with(b"\xff") {
        true => Answer::Torn,
        false => Answer::Whole,
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    Some(Request {
        method,
        key: path.trim_start_matches('/').to_owned(),
        query: query
            .map(|(name, value)| (name.to_owned(), value.replace("%2F", "/")))
            .collect(),
        headers,
        body,
    })
}

fn reply(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let date = "Last-Modified: Sat, 28 Nov 2026 15:00:00 GMT\r\nETag: \"x\"";
    let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{date}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn error(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>a \u{1b}[2J test</Message></Error>"
    );
    reply(status, "", body.as_bytes())
}

fn answer(request: &Request, state: &State, mood: &Mood) -> Vec<u8> {
    let (bucket, key) = request.key.split_once('/').unwrap_or((&request.key, ""));
    if bucket != BUCKET {
        return error(404, "NoSuchBucket");
    }
    let mut objects = lock(&state.objects);
    match request.method.as_str() {
        "GET" if key.is_empty() => list(request, &objects, state),
        "GET" => match objects.get(key) {
            None => error(404, "NoSuchKey"),
            Some((content, _)) => get(request, content),
        },
        "HEAD" => match objects.get(key) {
            None => reply(404, "", b""),
            Some((content, _)) => {
                let mut answer = reply(200, "", content);
                answer.truncate(answer.len() - content.len());
                answer
            }
        },
        "PUT" => {
            let is_conditional =
                request.headers.contains_key("if-none-match") && *mood != Mood::IgnoresConditions;
            let has_checksum = ["content-md5", "x-amz-checksum-sha256"]
                .iter()
                .any(|name| request.headers.contains_key(*name));
            if *mood == Mood::LocksObjects && !has_checksum {
                let message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
                let body = format!("<Error><Code>InvalidRequest</Code><Message>{message}</Message></Error>");
                return reply(400, "", body.as_bytes());
            }
            if is_conditional && objects.contains_key(key) {
                return error(412, "PreconditionFailed");
            }
            let now = *lock(&state.now);
            objects.insert(key.to_owned(), (request.body.clone(), now));
            reply(200, "", b"")
        }
        "DELETE" => {
            objects.remove(key);
            reply(204, "", b"")
        }
        _ => error(501, "NotImplemented"),
    }
}

fn get(request: &Request, content: &[u8]) -> Vec<u8> {
    let range = request.headers.get("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()?))
    });
    match range {
        None => reply(200, "", content),
        Some((start, _)) if start >= content.len() => error(416, "InvalidRange"),
        Some((start, end)) => {
            let end = end.min(content.len() - 1);
            let header = format!("Content-Range: bytes {start}-{end}/{}\r\n", content.len());
            reply(206, &header, &content[start..=end])
        }
    }
}

/// The answer to ListObjectsV2, in pages of two.
fn list(request: &Request, objects: &Objects, state: &State) -> Vec<u8> {
    let parameter = |name: &str| request.query.get(name).map_or("", String::as_str);
    let (prefix, after) = (parameter("prefix"), parameter("start-after"));
    let found: Vec<_> = objects
        .iter()
        .filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after)
        .collect();
    let page = state.page.load(Ordering::SeqCst);
    let is_truncated = found.len() > page;
    let mut body = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><Name>{BUCKET}</Name><IsTruncated>{is_truncated}</IsTruncated>"
    );
    if is_truncated {
        body += "<NextContinuationToken>opaque</NextContinuationToken>";
    }
    for (key, (content, time)) in found.iter().take(page) {
        let time = time.strftime("%Y-%m-%dT%H:%M:%S.000Z");
        body += &format!(
            "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>\"x\"</ETag><Size>{}</Size></Contents>",
            content.len()
        );
    }
    reply(
        200,
        "Content-Type: application/xml\r\n",
        (body + "</ListBucketResult>").as_bytes(),
    )
}
