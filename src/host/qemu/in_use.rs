//! Names the processes that keep QEMU's lock on an image.

use std::fs;
use std::path::PathBuf;

use crate::host::usage::{self, User};

/// How the name of the domain begins after `-name`.
const GUEST: &str = "guest=";

/// Who uses any of these files, in words.
pub fn users(files: &[PathBuf]) -> String {
    let mut found: Vec<String> = files
        .iter()
        .flat_map(|file| usage::users_now(file))
        .map(named)
        .collect();
    found.sort();
    found.dedup();
    match found.is_empty() {
        // It has ended since, or belongs to somebody whose processes may not be looked at.
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

/// The domain of a QEMU that libvirt has started, as the arguments after `-name` say: `guest=web,debug-threads=on`.
fn guest_of(arguments: &[u8]) -> Option<String> {
    let mut words = arguments.split(|byte| *byte == 0);
    words.find(|word| *word == b"-name")?;
    let value = String::from_utf8_lossy(words.next()?).into_owned();
    let rest = value.strip_prefix(GUEST)?;
    // QEMU doubles the commas of a name.
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
