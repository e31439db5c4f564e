//! `vmsnap demo` on machines where something is missing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::owner;
use crate::process::{COMMAND_DEADLINE, Finished, command, try_run};

/// Mounts the folder $1 over `/etc` and executes the program that follows.
const WITH_ETC: &str = "mount --bind \"$1\" /etc; shift; exec \"$@\"";

/// Runs the demo in `dir`, with its own home folder and an `/etc` without libvirt's user for QEMU.
fn demo_without_user(dir: &Path, home: &Path) -> Finished {
    let etc = owner::folder("etc-");
    for name in ["passwd", "group"] {
        let text = fs::read_to_string(Path::new("/etc").join(name)).expect("it is there");
        let others = text.lines().filter(|line| !line.contains("libvirt"));
        let others: String = others.map(|line| format!("{line}\n")).collect();
        fs::write(etc.path().join(name), others).expect("it is written");
    }
    for name in ["nsswitch.conf", "ld.so.cache", "localtime"] {
        let _ = fs::copy(Path::new("/etc").join(name), etc.path().join(name));
    }
    let mut words = vec!["--mount".into(), "sh".into(), "-ec".into(), WITH_ETC.into()];
    words.extend(["sh".into(), etc.path().as_os_str().to_owned()]);
    words.extend([env!("CARGO_BIN_EXE_vmsnap"), "demo", "--dir"].map(Into::into));
    words.push(dir.as_os_str().to_owned());
    let mut demo = command("unshare", &words);
    demo.env("HOME", home).env_remove("XDG_RUNTIME_DIR");
    try_run(demo, COMMAND_DEADLINE)
}

#[test]
fn the_demo_runs_where_libvirts_user_for_qemu_is_missing() {
    // Short names: the paths of libvirt's sockets in this folder are long, and socket paths are
    // limited.
    let (dir, home) = (owner::folder("d-"), owner::folder("home-"));
    // Like /var/tmp: all users may create files, and remove only their own.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).expect("it is ours");
    let finished = demo_without_user(dir.path(), home.path());
    assert!(finished.ok(), "{finished:#?}");
    assert!(
        finished
            .stdout
            .contains("Both restore points were restored byte for byte"),
        "{finished:#?}"
    );
    for folder in [dir.path(), home.path()] {
        let left: Vec<_> = fs::read_dir(folder).expect("it is ours").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn folder_without_permission_is_named() {
    let dir = owner::folder("demo-");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("it is ours");
    let finished = demo_without_user(dir.path(), dir.path());
    assert_eq!(finished.code, Some(3), "{finished:#?}");
    assert!(
        finished.stderr.contains("choose another folder with --dir"),
        "{finished:#?}"
    );
    let left: Vec<_> = fs::read_dir(dir.path()).expect("it is ours").collect();
    assert!(left.is_empty(), "{left:?}");
}
