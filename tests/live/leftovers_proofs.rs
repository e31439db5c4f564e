//! The search for leftovers: what it finds, ends and leaves alone.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::daemon::{Daemon, TestDomain};
use crate::leftovers::{Leftover, end, find, forget};
use crate::owner;
use crate::process::{command, is_alive, processes_with, run, wait_until};

/// The id of a process that has ended. It will not be reused soon.
fn gone() -> u32 {
    let mut child = Command::new("true").spawn().expect("true can be run");
    let pid = child.id();
    child.wait().expect("true ends");
    pid
}

/// Starts a program that outlives its test, as if a killed test process had started it.
fn begin(program: &str, words: &[&str]) -> Child {
    let mut command = command(program, words);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it starts")
}

/// One of each thing that a test can leave, with the id of an ended test process.
struct Mess {
    folder: PathBuf,
    domain: String,
    qemu: Child,
    nbd: Child,
    noted: PathBuf,
}

impl Mess {
    fn make(daemon: &Daemon, pid: u32) -> Mess {
        let stem = format!("{}{pid}-1", owner::PREFIX);
        let folder = Path::new("/var/tmp").join(format!("{stem} a mess"));
        fs::create_dir(&folder).expect("it is new");
        let path = |name: &str| folder.join(name).display().to_string();
        let image = path("vda.qcow2");
        run(command(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", &image, "1M"],
        ));
        fs::write(folder.join("backing"), vec![0; 1 << 20]).expect("written");
        run(command("losetup", &["--find", "--show", &path("backing")]));
        fs::create_dir(folder.join("mounted")).expect("it is new");
        run(command("mount", &["-t", "tmpfs", "none", &path("mounted")]));
        drop(UnixListener::bind(folder.join("closed.sock")).expect("bound"));
        let noted = Path::new("/var/tmp").join(format!("vmsnap-lab-proof-{pid}"));
        fs::create_dir(&noted).expect("it is new");
        let journal = serde_json::json!({ "places": {
            "sockets": [noted.join("vda.sock"), "/nowhere"], "ownDirs": [noted], "scratch": [["vda", path("scratch")]],
        }});
        fs::create_dir_all(folder.join("b/vm/1.partial")).expect("it is new");
        fs::write(folder.join("b/vm/1.partial/intent.json"), journal.to_string()).expect("written");

        let domain = format!("{stem}-mess");
        let xml = format!(
            "<domain type='{}'><name>{domain}</name><memory unit='MiB'>32</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>",
            daemon.virt_type()
        );
        fs::write(folder.join("domain.xml"), xml).expect("written");
        daemon.virsh(&["define", &path("domain.xml")]);
        daemon.virsh(&["start", "--paused", &domain]);
        // A QEMU that libvirt does not know, and a server.
        let lost = format!("guest={stem}-lost,debug-threads=on");
        let qemu = begin(
            "qemu-system-x86_64",
            &["-name", &lost, "-S", "-machine", "none", "-display", "none"],
        );
        let socket = path("nbd.sock");
        let nbd = begin(
            "qemu-nbd",
            &["--persistent", "--read-only", "--socket", &socket, &image],
        );
        assert!(wait_until(Duration::from_secs(30), || Path::new(&socket).exists()));
        Mess {
            folder,
            domain,
            qemu,
            nbd,
            noted,
        }
    }

    fn is_known_as(&self, found: &[Leftover]) {
        let processes: Vec<u32> = found
            .iter()
            .filter_map(|leftover| match leftover {
                Leftover::Process { pid, .. } => Some(*pid),
                _ => None,
            })
            .collect();
        assert!(processes.contains(&self.qemu.id()), "the lost QEMU: {found:#?}");
        assert!(processes.contains(&self.nbd.id()), "the server: {found:#?}");
        assert_eq!(processes.len(), 3, "and the domain's QEMU: {found:#?}");
        let has = |leftover: Leftover| assert!(found.contains(&leftover), "{leftover:?}: {found:#?}");
        has(Leftover::Domain(self.domain.clone()));
        has(Leftover::Mount(self.folder.join("mounted")));
        has(Leftover::Socket(
            self.folder.join("nbd.sock").display().to_string(),
        ));
        has(Leftover::Path(self.folder.clone()));
        has(Leftover::Path(self.noted.clone()));
        has(Leftover::Path(
            format!("/etc/libvirt/qemu/{}.xml", self.domain).into(),
        ));
        has(Leftover::Path(
            format!("/var/log/libvirt/qemu/{}.log", self.domain).into(),
        ));
        let is_loop = |leftover: &Leftover| matches!(leftover, Leftover::Loop { backing, .. } if backing.ends_with("a mess/backing"));
        assert!(found.iter().any(is_loop), "{found:#?}");
    }
}

#[test]
fn leftovers_of_a_killed_test_run_are_found_and_ended() {
    let daemon = Daemon::acquire();
    // Trying KVM needs the gate, perhaps in another thread for which this one would wait.
    daemon.virt_type();
    // Other processes remove leftovers only while they hold this.
    let _gate = crate::daemon::gate();
    let pid = gone();
    let mut mess = Mess::make(&daemon, pid);
    assert!(owner::is_gone(pid));
    let is_its = |owner: u32| owner == pid;
    let found = find(&is_its);
    mess.is_known_as(&found);

    end(&found);

    // These are our own children, so only this process can reap them.
    for child in [&mut mess.qemu, &mut mess.nbd] {
        child.wait().expect("it has ended");
    }
    assert_eq!(find(&is_its), []);
    assert!(!mess.folder.exists() && !mess.noted.exists());
    let listed = daemon.virsh(&["list", "--all", "--name"]);
    assert!(!listed.lines().any(|name| name == mess.domain));
    assert_eq!(processes_with(&mess.domain), []);
}

/// A user who works in a folder of the tests, and has files with a similar name.
#[test]
fn foreign_things_are_left_alone() {
    let _daemon = Daemon::acquire();
    let _gate = crate::daemon::gate();
    let pid = gone();
    let folder = Path::new("/var/tmp").join(format!("{}{pid}-1", owner::PREFIX));
    fs::create_dir(&folder).expect("it is new");
    let theirs = owner::folder_on_disk("theirs-");
    fs::write(theirs.path().join("kept"), "kept").expect("written");
    symlink(theirs.path(), folder.join("link")).expect("made");
    let mut shell = command("sleep", &["1000"]);
    let mut shell = shell.current_dir(&folder).spawn().expect("it starts");
    // This test process exists.
    assert!(!owner::is_gone(std::process::id()));

    let is_its = |owner: u32| owner == pid;
    let found = find(&is_its);
    assert_eq!(found, [Leftover::Path(folder.clone())]);
    end(&found);

    let lives = is_alive(shell.id());
    crate::process::end(&mut shell);
    assert!(lives, "a user's program goes on");
    assert!(!folder.exists());
    assert!(theirs.path().join("kept").exists(), "links are not followed");
}

#[test]
fn only_names_of_test_processes_count() {
    let own = std::process::id();
    assert_eq!(owner::owner_of(&format!("{}-cli x", owner::stem())), Some(own));
    assert_eq!(owner::owner_of("vmsnap-test-999999999-1-x"), Some(999_999_999));
    assert!(owner::is_gone(999_999_999));
    for name in [
        "vmsnap-test-",
        "vmsnap-test-x-1",
        "vmsnap-test",
        "web",
        "a vmsnap-test-9-1",
    ] {
        assert_eq!(owner::owner_of(name), None, "{name}");
    }
    let line = "qemu -name guest=vmsnap-test-12-3-a,x -drive /var/tmp/vmsnap-test-34-1/a";
    assert_eq!(owner::owners_in(line), [12, 34]);
    assert_eq!(
        owner::owners_in("/var/tmp/vmsnap-1234-1 vmsnap-test vmsnap-test-12"),
        [0; 0]
    );
}

/// The folder of a running domain's QEMU. libvirt shortens the domain's name in it, so the name
/// alone may fit the folder of another test's domain.
fn folder_of(domain: &TestDomain) -> PathBuf {
    let id = domain.virsh(&["domid"]);
    let short: String = domain.name().chars().take(20).collect();
    Path::new("/var/lib/libvirt/qemu").join(format!("domain-{}-{short}", id.trim()))
}

#[test]
fn forgetting_a_domain_leaves_the_folder_of_another() {
    let daemon = Daemon::acquire();
    let domain = TestDomain::new(&daemon, "name-longer-than-libvirt-keeps");
    domain.define(&domain.xml(daemon.virt_type(), 32, "", ""));
    domain.start_paused();
    let folder = folder_of(&domain);
    assert!(folder.exists(), "a running domain has a folder: {folder:?}");
    let shortened: String = domain.name().chars().take(20).collect();
    forget(&format!("{shortened}-of-another"));
    assert!(folder.exists(), "{folder:?}");
    domain.destroy();
    assert!(!folder.exists(), "libvirt removes {folder:?}");
}
