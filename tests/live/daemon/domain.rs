//! Domains of tests: each in its own folder, removed with it, even after a panic.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::Daemon;
use super::home::Home;
use crate::leftovers;
use crate::process::{Finished, processes_with, wait_until};

/// The time for libvirt to handle a QEMU that has ended: it waits for jobs on a domain up to 30
/// seconds.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

const LOST: &str = "libvirt had lost its QEMU";

/// A domain on the lab's daemon, destroyed and undefined when dropped. Its folder is removed.
pub struct TestDomain {
    // Dropped in this order: the folder before the right to use the daemon.
    home: Home,
    name: String,
    daemon: Daemon,
}

impl TestDomain {
    /// A name and a folder; nothing is defined yet. The label ends the name and may contain any
    /// character that libvirt allows.
    pub fn new(daemon: &Daemon, label: &str) -> TestDomain {
        let home = Home::new();
        let name = format!("{}-{label}", home.name());
        TestDomain {
            home,
            name,
            daemon: daemon.clone(),
        }
    }

    /// Like [`TestDomain::new`], with exactly this name. The check for leftovers does not recognise
    /// the name.
    pub fn named(daemon: &Daemon, name: &str) -> TestDomain {
        let mut domain = TestDomain::new(daemon, "");
        domain.name = name.to_owned();
        domain
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder, which QEMU's user can enter. QEMU can write only to files that libvirt has given
    /// it.
    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    /// A path in its folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(file)
    }

    /// The XML of a small domain with this name, a clock, ACPI and the given parts. `virt_type` is
    /// the daemon's, or `qemu`; `os` goes into `<os>`, `devices` into `<devices>`.
    pub fn xml(&self, virt_type: &str, memory_mib: u32, os: &str, devices: &str) -> String {
        let name = escape(&self.name);
        format!(
            "<domain type='{virt_type}'>\n\
             <name>{name}</name>\n\
             <memory unit='MiB'>{memory_mib}</memory>\n\
             <vcpu>1</vcpu>\n\
             <os><type arch='x86_64' machine='q35'>hvm</type>{os}</os>\n\
             <features><acpi/></features>\n\
             <on_crash>destroy</on_crash>\n\
             <devices>\n{devices}\n<memballoon model='none'/>\n</devices>\n\
             </domain>\n"
        )
    }

    /// Defines the domain from its XML.
    pub fn define(&self, xml: &str) {
        let file = self.path("domain.xml");
        std::fs::write(&file, xml).expect("the folder is ours");
        self.daemon
            .virsh(&["define", "--validate", &file.display().to_string()]);
    }

    /// Starts the domain.
    pub fn start(&self) {
        self.virsh(&["start"]);
    }

    /// Starts the domain paused, because no guest is needed.
    pub fn start_paused(&self) {
        self.virsh(&["start", "--paused"]);
    }

    /// Destroys the domain, as a power cut would.
    pub fn destroy(&self) {
        self.virsh(&["destroy"]);
        self.settle();
    }

    /// Waits until libvirt has handled every QEMU that ended before. libvirt 9.0 does so in order,
    /// on a single thread. An end may still be queued when its domain is already shut off; libvirt
    /// may then end a newly started QEMU.
    pub fn settle(&self) {
        let home = Home::new();
        let name = format!("{}-last", home.name());
        let started = create_idle(&self.daemon, &home, &name, "qemu");
        assert!(started.ok(), "{started:#?}");
        let found = processes_with(&format!("guest={name},"));
        let [(pid, _)] = found[..] else {
            panic!("it has one QEMU: {found:?}");
        };
        let pid = Pid::from_raw(pid as i32).expect("a process id is not zero");
        kill_process(pid, Signal::KILL).expect("it is ours");
        let is_gone = || !self.daemon.try_virsh(&["dominfo", "--domain", &name]).ok();
        assert!(wait_until(SETTLE_DEADLINE, is_gone), "libvirt notices");
        leftovers::forget(&name);
    }

    /// The number of crashes of the domain's QEMU by failed assertions. virtlogd may write the last
    /// one late.
    pub fn qemu_crashes(&self) -> usize {
        let log = fs::read(log_of(&self.name)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let failed = |line: &&str| line.contains("Assertion `") && line.ends_with("failed.");
        log.lines().filter(failed).count()
    }

    /// Makes libvirt lose its QEMU by removing the state file between a stop and a start of the
    /// daemon. A daemon killed at a bad moment has the same effect.
    pub fn lose_qemu(&self) {
        self.daemon.stop();
        let state = Path::new("/run/libvirt/qemu").join(format!("{}.xml", self.name));
        fs::remove_file(state).expect("the domain runs");
        self.daemon.start();
    }

    /// The domain's QEMU if libvirt has lost it: libvirt shows the domain as shut off, but the
    /// process lives.
    pub fn lost_qemu(&self) -> Option<u32> {
        let is_off = self.state() == "shut off";
        lost_qemus(&self.name)
            .pop()
            .filter(|_| is_off && self.state() == "shut off")
    }

    /// Its state in virsh's words: `running`, `paused`, `shut off`.
    pub fn state(&self) -> String {
        self.virsh(&["domstate"]).trim().to_owned()
    }

    /// Runs a virsh command whose first option is the domain: `&["blockresize", "vda", "1G"]`.
    /// Panics if it fails.
    pub fn virsh(&self, args: &[&str]) -> String {
        let finished = self.try_virsh(args);
        assert!(
            finished.ok(),
            "virsh {args:?} of {:?} failed: {finished:#?}",
            self.name
        );
        finished.stdout
    }

    /// Runs a virsh command like [`TestDomain::virsh`], and returns the result even of a failure.
    pub fn try_virsh(&self, args: &[&str]) -> Finished {
        let (verb, rest) = args.split_first().expect("a virsh command has a name");
        let mut words = vec![*verb, "--domain", &self.name];
        words.extend(rest);
        self.daemon.try_virsh(&words)
    }
}

impl Drop for TestDomain {
    fn drop(&mut self) {
        let removed = catch_unwind(AssertUnwindSafe(|| remove(&self.daemon, &self.name)));
        // A second panic would abort all tests, so panics are caught here.
        match removed {
            Ok(wrong) if wrong.is_empty() => {}
            Ok(wrong) if thread::panicking() => eprintln!("{:?}: {wrong:#?}", self.name),
            Ok(wrong) => panic!("{:?} was not removed cleanly: {wrong:#?}", self.name),
            Err(_) if thread::panicking() => eprintln!("{:?} could not be removed", self.name),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Whether QEMU under this daemon can use KVM, tried with a domain.
pub fn kvm_works(daemon: &Daemon) -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let home = Home::new();
    let name = format!("{}-kvm", home.name());
    let started = create_idle(daemon, &home, &name, "kvm");
    let wrong = remove(daemon, &name);
    assert!(wrong.is_empty(), "the domain that tries KVM: {wrong:#?}");
    if !started.ok() {
        eprintln!(
            "KVM does not work under libvirtd here, domains will be slow: {}",
            started.stderr
        );
    }
    started.ok()
}

/// The log of libvirt and QEMU about a domain.
fn log_of(name: &str) -> PathBuf {
    Path::new("/var/log/libvirt/qemu").join(format!("{name}.log"))
}

/// Creates a paused transient domain, which disappears with its QEMU.
fn create_idle(daemon: &Daemon, home: &Home, name: &str, virt_type: &str) -> Finished {
    let file = home.path().join("domain.xml");
    let xml = format!(
        "<domain type='{virt_type}'><name>{name}</name><memory unit='MiB'>32</memory>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    );
    std::fs::write(&file, xml).expect("the folder is ours");
    daemon.try_virsh(&["create", "--paused", &file.display().to_string()])
}

/// Destroys and undefines the domain, ends a QEMU of the domain that libvirt has lost, and removes
/// its log. Returns what was wrong.
fn remove(daemon: &Daemon, name: &str) -> Vec<String> {
    // The test may have stopped the daemon before it panicked, or the daemon has crashed.
    daemon.revive();
    let mut wrong = Vec::new();
    let exists = || daemon.try_virsh(&["dominfo", "--domain", name]).ok();
    if exists() {
        // Destroying a transient domain suffices. Undefining an active domain would leave a
        // transient one.
        let said = daemon.try_virsh(&["destroy", "--domain", name]);
        leftovers::undefine(name);
        if exists() {
            wrong.push(format!("it is still there; virsh destroy said {said:?}"));
        }
    }
    for lost in lost_qemus(name) {
        wrong.push(format!("{LOST}, process {lost}"));
        leftovers::end_process(lost);
    }
    if wrong.iter().all(|wrong| wrong.starts_with(LOST)) {
        if thread::panicking() {
            // Print how and why its QEMU ended, because the log is removed.
            let log = fs::read(log_of(name)).unwrap_or_default();
            let end = String::from_utf8_lossy(&log[log.len().saturating_sub(3000)..]).into_owned();
            eprintln!("the end of the log of {name:?}:\n{end}");
        }
        leftovers::forget(name);
    }
    wrong
}

/// The QEMUs of a domain that libvirt shows as shut off.
fn lost_qemus(name: &str) -> Vec<u32> {
    let found = processes_with(&format!("guest={name},"));
    found.into_iter().map(|(pid, _)| pid).collect()
}

/// Escapes a name for XML text.
fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}
