//! Starts an S3 server with `scripts/s3.sh`, and runs vmsnap with credentials for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use serde_json::Value;
use vmsnap::repo::ObjectStore;
use vmsnap::testkit::bucket_with;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/s3.sh");

/// The file with the private key, in the folder of the server.
const IDENTITY: &str = "identity.txt";

/// A server that ends when this is dropped, or when this process ends.
pub struct Server {
    folder: tempfile::TempDir,
    /// The lines `NAME=VALUE` that the script has written for clients.
    facts: BTreeMap<String, String>,
    /// The secret of the user, or a wrong one.
    secret: String,
    region: String,
    /// The public key of the person for whom repositories are encrypted.
    public: String,
}

impl Server {
    /// Starts a server that the script knows by this name. The first start installs it.
    pub fn start(name: &str) -> Server {
        let folder = super::temp_dir();
        let started = script(&["start", path_text(&folder.path().join("s3")), name]);
        let facts = std::fs::read_to_string(started.trim()).expect("facts for clients");
        let facts: BTreeMap<String, String> = facts
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let identity = age::x25519::Identity::generate();
        let file = folder.path().join(IDENTITY);
        std::fs::write(file, identity.to_string().expose_secret()).expect("written");
        Server {
            folder,
            public: identity.to_public().to_string(),
            secret: facts["SECRET"].clone(),
            region: facts["REGION"].clone(),
            facts,
        }
    }

    /// What the script says about the server.
    pub fn fact(&self, name: &str) -> &str {
        &self.facts[name]
    }

    /// The location of a repository with this prefix in the usual bucket.
    pub fn location(&self, prefix: &str) -> String {
        self.location_in(self.fact("BUCKET"), prefix)
    }

    /// The same in another bucket.
    pub fn location_in(&self, bucket: &str, prefix: &str) -> String {
        format!("s3:{}/{bucket}/{prefix}", self.fact("ENDPOINT"))
    }

    /// From now on the program has a wrong secret.
    pub fn forget_secret(&mut self) {
        self.secret = "0".repeat(64);
    }

    /// From now on the program has this region.
    pub fn set_region(&mut self, region: &str) {
        self.region = region.to_owned();
    }

    /// Moves the clock of the server to this many hours after the true time.
    pub fn set_hours_ahead(&self, hours: u32) {
        let clock = PathBuf::from(self.fact("CLOCK"));
        let new = clock.with_extension("new");
        std::fs::write(&new, format!("+{hours}h\n")).expect("written");
        std::fs::rename(new, clock).expect("renamed");
    }

    fn variables(&self) -> [(&'static str, &str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", self.fact("KEY")),
            ("AWS_SECRET_ACCESS_KEY", &self.secret),
            ("AWS_REGION", &self.region),
        ]
    }

    /// The objects at a location, as vmsnap sees them.
    pub fn objects(&self, location: &str) -> Arc<dyn ObjectStore> {
        bucket_with(location, &self.variables()).expect("it opens")
    }

    /// The file with the private key.
    pub fn identity_file(&self) -> PathBuf {
        self.folder.path().join(IDENTITY)
    }

    /// Creates a repository for the owner of the private key.
    pub fn init(&self, location: &str) -> Value {
        self.document(&["init", location, "--encrypt-to", &self.public])
    }

    /// Runs the program with the server's credentials and the private key.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let file = self.identity_file();
        self.run_with(("VMSNAP_IDENTITY_FILE", &file), arguments)
    }

    /// Runs the program with the server's credentials and this passphrase.
    pub fn run_with_passphrase(&self, passphrase: &str, arguments: &[&str]) -> Output {
        let file = self.folder.path().join("passphrase");
        std::fs::write(&file, passphrase).expect("written");
        self.run_with(("VMSNAP_PASSPHRASE_FILE", &file), arguments)
    }

    fn run_with(&self, (variable, file): (&str, &Path), arguments: &[&str]) -> Output {
        let home = self.folder.path();
        let mut program = Command::new(env!("CARGO_BIN_EXE_vmsnap"));
        program
            .args(arguments)
            .current_dir(home)
            .env_clear()
            .env("HOME", home)
            .env("VMSNAP_STATE", home.join("state"))
            .env("VMSNAP_CACHE", home.join("cache"))
            .env(variable, file)
            .envs(self.variables())
            .stdin(Stdio::null());
        program.output().expect("the program runs")
    }

    /// The JSON document that the program prints.
    pub fn document(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("one JSON document")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = script(&["stop", path_text(&self.folder.path().join("s3"))]);
        assert!(stopped.is_empty() || std::thread::panicking(), "{stopped}");
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Runs the script and returns what it prints.
fn script(arguments: &[&str]) -> String {
    let mut command = Command::new(SCRIPT);
    command
        .args(arguments)
        .env("S3_OWNER", std::process::id().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().expect("the script starts");
    assert!(output.status.success(), "scripts/s3.sh {arguments:?} fails");
    String::from_utf8(output.stdout).expect("text")
}

/// Checks that the program refuses with this code and message.
pub fn refused(output: &Output, code: i32, part: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(part), "{part}: {text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}
