//! Names the users of an image on which another process holds QEMU's lock.

use std::fs;
use std::path::PathBuf;

use crate::host::usage::{self, User};

/// The prefix of the domain's name in the argument after `-name`.
const GUEST: &str = "guest=";

/// Describes the users of these files for a message.
pub fn users(files: &[PathBuf]) -> String {
    let mut found: Vec<String> = files
        .iter()
        .flat_map(|file| usage::users_now(file))
        .map(named)
        .collect();
    found.sort();
    found.dedup();
    match found.is_empty() {
        // The process has ended since, or this user may not inspect it.
        true => "another process holds QEMU's lock on it".to_owned(),
        false => found.join("; "),
    }
}

fn named(mut usage: usage::Usage) -> String {
    if let User::Process { pid, name } = &mut usage.user
        && let Some(guest) = guest_of(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
    {
        name.push_str(&format!(", guest {guest}"));
    }
    usage.to_string()
}

/// Reads the domain's name from the arguments of a QEMU process that libvirt has started.
///
/// The argument after `-name` is `guest=web,debug-threads=on`.
fn guest_of(arguments: &[u8]) -> Option<String> {
    let mut words = arguments.split(|byte| *byte == 0);
    words.find(|word| *word == b"-name")?;
    let value = String::from_utf8_lossy(words.next()?).into_owned();
    let rest = value.strip_prefix(GUEST)?;
    // A comma in the name is written twice.
    let rest = rest.replace(",,", "\0");
    let name = rest.split(',').next().unwrap_or_default();
    Some(name.replace('\0', ","))
}

#[test]
fn the_guest_of_a_qemu_is_read_from_its_arguments() {
    let guest = |words: &[&str]| guest_of(words.join("\0").as_bytes());
    let line = ["qemu-system-x86_64", "-name", "guest=web,debug-threads=on", "-S"];
    assert_eq!(guest(&line).as_deref(), Some("web"));
    assert_eq!(
        guest(&["q", "-name", "guest=a,,b c,debug-threads=on"]).as_deref(),
        Some("a,b c")
    );
    for other in [
        &["qemu-img", "info"][..],
        &["q", "-name"],
        &["q", "-name", "web"],
        &[],
    ] {
        assert_eq!(guest(other), None, "{other:?}");
    }
}
