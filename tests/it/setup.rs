//! The script that installs what `make demo` and `make test` need.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A folder of programs that stand in for Debian's.
pub struct Stage(tempfile::TempDir);

impl Stage {
    /// `dpkg_query` is what the program of that name does; whatever apt-get is asked for, it writes down.
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

    /// Lets a program of this name do this.
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

    /// Runs a script of ours with these programs in front of the machine's.
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
    // Of these two it knows one: dpkg-query names it, and fails because of the other.
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
