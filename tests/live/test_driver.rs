//! The program against libvirt's `test:///` driver, as cron and scripts call it. The domains' disks
//! are real images. No QEMU runs, so shut-off domains can be backed up, and backups of running ones
//! always fail.

mod backup;
mod partial;
mod status;
mod words;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::owner;
use crate::process::{COMMAND_DEADLINE, Finished, command, run, try_run};

/// States in the driver's XML.
const SHUT_OFF: u32 = 5;
const RUNNING: u32 = 1;

/// A domain name that must never reach a shell.
const NASTY: &str = "a $(touch PWNED) `touch PWNED`; touch PWNED & \"b\" 'c' *?[x]";

/// A hypervisor described by a node file of the driver.
struct Node {
    folder: tempfile::TempDir,
    domains: Vec<(String, u32)>,
    /// Further devices of each domain.
    devices: String,
    /// The part of each domain's XML that is not a device.
    metadata: String,
    /// Replaces the disk `vda`.
    replace: Option<String>,
}

impl Node {
    /// A hypervisor with domains of these names and states, each with a disk `vda`.
    fn new(domains: &[(&str, u32)]) -> Node {
        let folder = owner::folder("test driver ");
        let node = Node {
            folder,
            domains: domains
                .iter()
                .map(|(name, state)| ((*name).to_owned(), *state))
                .collect(),
            devices: String::new(),
            metadata: String::new(),
            replace: None,
        };
        for number in 0..node.domains.len() {
            let image = node.image(number);
            let create = [
                "create",
                "-q",
                "-f",
                "qcow2",
                image.to_str().expect("UTF-8"),
                "1M",
            ];
            run(command("qemu-img", &create));
        }
        node.write();
        fs::create_dir(node.backups()).expect("it is made");
        node
    }

    /// Writes the node file. libvirt reads it at each start of the program.
    fn write(&self) {
        let domains = self.domains.iter().enumerate().map(|(number, (name, state))| {
            let image = escape(self.image(number).to_str().expect("UTF-8"));
            let vda = format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>\
                 <target dev='vda' bus='virtio'/></disk>"
            );
            format!(
                "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>\
                 <name>{}</name><uuid>00000000-0000-4000-8000-{number:012}</uuid><memory>8192</memory>\
                 <os><type>hvm</type></os>{}<devices>{}{}</devices>\
                 <test:runstate>{state}</test:runstate></domain>",
                escape(name),
                self.metadata,
                self.replace.as_ref().unwrap_or(&vda),
                self.devices,
            )
        });
        let xml = format!("<node>{}</node>", domains.collect::<String>());
        fs::write(self.path("node.xml"), xml).expect("it is written");
    }

    fn set_state(&mut self, number: usize, state: u32) {
        self.domains[number].1 = state;
        self.write();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, number: usize) -> PathBuf {
        self.path(&format!("disk {number}.qcow2"))
    }

    fn backups(&self) -> PathBuf {
        self.path("my backups")
    }

    /// Runs the program in the node's folder. `OUT` stands for the backup folder.
    fn vmsnap(&self, words: &[&str]) -> Finished {
        self.vmsnap_with(words, &[])
    }

    fn vmsnap_with(&self, words: &[&str], environment: &[(&str, &str)]) -> Finished {
        let mut program = self.program(words);
        program.envs(environment.iter().copied());
        try_run(program, COMMAND_DEADLINE)
    }

    /// The command of the program with these arguments.
    fn program(&self, words: &[&str]) -> Command {
        let out = self.backups();
        let out = out.to_str().expect("UTF-8");
        let words: Vec<String> = words.iter().map(|word| word.replace("OUT", out)).collect();
        let mut program = command(env!("CARGO_BIN_EXE_vmsnap"), &words);
        let node = self.path("node.xml").display().to_string();
        let uri = format!("test://{}", node.replace(" ", "%20"));
        program.current_dir(self.folder.path());
        program.env("VMSNAP_CONNECT", uri);
        for name in [
            "VMSNAP_REPOSITORY",
            "VMSNAP_COMPRESS",
            "VMSNAP_EXCLUDE_DISK",
            "VMSNAP_FULL",
            "VMSNAP_STORE_DECRYPTED",
        ] {
            program.env_remove(name);
        }
        program
    }

    /// The folders of a domain's periods.
    fn periods(&self, domain: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.backups().join(domain)).into_iter().flatten();
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.is_dir()).collect()
    }

    fn restore_points(&self, domain: &str) -> usize {
        let periods = self.periods(domain);
        let points = periods
            .iter()
            .flat_map(|period| fs::read_dir(period).expect("a folder"));
        let paths = points.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.join("manifest.json").is_file()).count()
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;")
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[track_caller]
fn ends(finished: &Finished, code: i32, stderr: &str) {
    assert_eq!(finished.code, Some(code), "{finished:#?}");
    assert!(finished.stderr.contains(stderr), "{finished:#?}");
}

const VM1: &str = "Status for vm1:
  Overall status: OK
  No checkpoints found for vm1
  Eligible disks found for vm1:
    vda
      Virtual size: 1099506450432
      Actual size: 1099511627776
      No bitmaps found for vda
  State: running
";
