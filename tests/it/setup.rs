//! The script that installs what `make demo` and `make test` need.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A folder of programs that replace those of Debian.
pub struct Stage(tempfile::TempDir);

impl Stage {
    /// `dpkg_query` is the script of that program. The stand-in for apt-get only logs its
    /// arguments.
    pub fn new(dpkg_query: &str) -> Stage {
        let stage = Stage(tempfile::tempdir().expect("a folder"));
        stage.program("dpkg-query", dpkg_query);
        stage.program("id", "echo 0");
        stage.program(
            "apt-cache",
            "shift; for package; do echo \"$package:\"; echo '  Candidate: 1.0'; done",
        );
        let log = stage.log().display().to_string();
        stage.program("apt-get", &format!("echo \"$*\" >> '{log}'"));
        stage
    }

    /// Adds a program with this name and script.
    pub fn program(&self, name: &str, what: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{what}\n")).expect("the folder is ours");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("the file is ours");
    }

    fn log(&self) -> std::path::PathBuf {
        self.0.path().join("apt-get.log")
    }

    fn set_up(&self, levels: &[&str]) -> Output {
        self.script("scripts/setup.sh", levels)
    }

    /// Runs one of the project's scripts with these programs first in `PATH`.
    pub fn script(&self, script: &str, words: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
        let usual = std::env::var("PATH").unwrap_or_default();
        Command::new("bash")
            .arg(script)
            .args(words)
            .env("PATH", format!("{}:{usual}", self.0.path().display()))
            .env("CARGO", "true")
            .output()
            .expect("bash starts")
    }

    fn asked(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }
}

#[test]
fn packages_that_a_new_machine_has_never_heard_of_are_installed() {
    // The machine knows one of the two packages. dpkg-query prints it, but fails because of the
    // other.
    let stage = Stage::new("echo 'installed build-essential'; echo 'no packages found' >&2; exit 1");
    let output = stage.set_up(&["build"]);
    assert!(output.status.success(), "{output:?}");
    let asked = stage.asked();
    assert!(asked.contains("pkg-config libvirt-dev"), "{asked}");
    assert!(!asked.contains("build-essential"), "{asked}");
}

#[test]
fn where_everything_is_there_nothing_is_installed() {
    let stage = Stage::new("shift 3; for package; do echo \"installed $package\"; done");
    let output = stage.set_up(&["build", "demo"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stage.asked(), "");
}

#[test]
fn without_package_manager_missing_packages_are_named() {
    let stage = Stage::new("exit 1");
    stage.program("id", "echo 1000");
    let output = stage.set_up(&["build"]);
    assert!(!output.status.success(), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("apt-get install --no-install-recommends build-essential pkg-config libvirt-dev"),
        "{told}"
    );
}
