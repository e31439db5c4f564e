//! Messages on a host where libvirt cannot be reached.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use vmsnap::ops;

use crate::no_rights::without_rights;

fn uri_of(socket: &Path) -> String {
    format!("qemu+unix:///system?socket={}", socket.display())
}

/// Leaves a socket that refuses connections, as a killed daemon does. It never listens: a listener
/// that is closed still accepts connections while a process that was just forked has it open.
fn dead_socket(path: &Path) -> std::io::Result<()> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    Ok(bind(&socket, &SocketAddrUnix::new(path)?)?)
}

#[test]
fn a_host_without_a_running_libvirt_gets_a_command_to_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("none");
    // The socket of a killed daemon stays, and refuses connections.
    dead_socket(&socket).expect("a socket");
    let uri = uri_of(&socket);
    for verb in ["status", "scrub --scrub-type both vm1", "backup vm1 --output"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsnap"));
        command.args(verb.split(' '));
        if verb.ends_with("--output") {
            command.arg(folder.path().join("backups"));
        }
        let output = command
            .args(["--connect", &uri])
            .output()
            .expect("the program runs");
        let stderr = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(3), "{verb}: {stderr}");
        assert!(stderr.contains("Failed to connect socket to"), "{verb}: {stderr}");
        let names_command = [
            "`systemctl start libvirtd.socket`",
            "`systemctl start virtqemud.socket`",
        ];
        let names_packages = "`apt install libvirt-daemon-system qemu-system-x86 qemu-utils`";
        let installed = names_command.iter().any(|command| stderr.contains(command));
        assert!(installed != stderr.contains(names_packages), "{verb}: {stderr}");
    }
}

#[test]
fn missing_permission_names_the_group_to_join() {
    let folder = tempfile::tempdir().expect("a folder");
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).expect("a folder");
    let socket = closed.join("sock");
    let _listens = UnixListener::bind(&socket).expect("a socket");
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o0)).expect("it is ours");
    let refused = without_rights(|| ops::connect(Some(&uri_of(&socket))).map(drop));
    let error = refused.expect_err("no user may connect");
    let hint = error.hint().expect("there is advice");
    assert!(
        hint.contains("run as root") && hint.contains("usermod -aG libvirt"),
        "{hint}"
    );
}

#[test]
fn a_uri_that_libvirt_does_not_know_blames_no_daemon() {
    let error = ops::connect(Some("foo:///bar"))
        .map(drop)
        .expect_err("there is none");
    let hint = error.hint().expect("there is advice");
    assert!(hint.contains("`virsh --connect URI list`"), "{hint}");
    assert!(!hint.contains("systemctl"), "{hint}");
}

/// Runs the demo in an environment where these parts are missing. It names the packages to install
/// and leaves nothing.
fn demo_lacks(environment: &[(&str, &str)], parts: &str, packages: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .args(["demo", "--dir"])
        .arg(folder.path())
        .envs(environment.iter().copied())
        .output()
        .expect("the program runs");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    let message = format!(
        "vmsnap: Missing dependencies ({parts})\n\
         hint: run as root: apt-get install --no-install-recommends {packages} (Debian, Ubuntu), dnf install "
    );
    assert!(stderr.starts_with(&message), "{stderr}");
    let left: Vec<_> = fs::read_dir(folder.path()).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
    let stdout = String::from_utf8(output.stdout).expect("text");
    assert!(stdout.starts_with("This takes about ten seconds."), "{stdout}");
    assert!(!stdout.contains("Try it on"), "{stdout}");
}

#[test]
fn a_demo_without_driver_or_emulator_names_their_packages() {
    let (no_driver, no_emulator) = (("LIBVIRT_DRIVER_DIR", "/nowhere"), ("PATH", "/nowhere"));
    let no_files = ("LIBVIRT_STORAGE_FILE_DIR", "/nowhere");
    demo_lacks(
        &[no_driver],
        "libvirt's QEMU driver",
        "libvirt-daemon-driver-qemu libvirt-daemon",
    );
    demo_lacks(&[no_emulator], "qemu-system-x86_64", "qemu-system-x86");
    demo_lacks(&[no_files], "libvirt_storage_file_fs.so", "libvirt-daemon");
    demo_lacks(
        &[no_driver, no_emulator],
        "libvirt's QEMU driver, qemu-system-x86_64",
        "libvirt-daemon-driver-qemu libvirt-daemon qemu-system-x86",
    );
}

/// The exit code, and the lines on stderr, each of which is JSON.
fn json_lines(words: &[&str]) -> (Option<i32>, Vec<serde_json::Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmsnap")).args(words).output();
    let output = output.expect("the program runs");
    assert!(output.stdout.is_empty(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).expect("text");
    let lines = stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    (output.status.code(), lines.collect())
}

#[test]
fn a_usage_error_is_json_where_the_log_is() {
    let cases: [(&[&str], i32, &str); 6] = [
        (&["restore", "vm1", "--log-format", "json"], 64, "--to <PATH>"),
        (
            &["--log-format=json", "backup", "vm1", "--freeze-timeout=x"],
            64,
            "invalid value 'x'",
        ),
        (
            &["backup", "--outptu=/b", "--log-format=json"],
            64,
            "there is no switch '--outptu'",
        ),
        (
            &["--status", "--backup", "--logFormat=json"],
            7,
            "Only one command can be run",
        ),
        (
            &["frobnicate", "--log-format", "json"],
            64,
            "there is no command 'frobnicate'",
        ),
        (
            &["list", "--wide", "--json", "--log-format=json"],
            64,
            "cannot be used with",
        ),
    ];
    for (words, code, message) in cases {
        let (found, lines) = json_lines(words);
        assert_eq!((found, lines.len()), (Some(code), 1), "{words:?}: {lines:?}");
        assert_eq!(lines[0]["level"], "error", "{words:?}");
        let text = lines[0]["message"].as_str().expect("a text");
        assert!(text.contains(message), "{words:?}: {text}");
    }
    let (_, lines) = json_lines(cases[0].0);
    let hint = lines[0]["hint"].as_str().expect("a hint");
    assert!(hint.starts_with("Usage: vmsnap restore"), "{hint}");
}
