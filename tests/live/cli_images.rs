//! The program on domains whose disks are encrypted, are stored elsewhere, or have chains that
//! their headers describe wrongly.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cli_lab::{Repo, codes, outcome_of, text_of};
use crate::daemon::{Daemon, TestDomain};
use crate::embed::run_ok;
use crate::kinds_lab::{Pool, Secret, Server, bring_back, create_encrypted, make, text};
use crate::verbs::rng::Rng;

const MIB: usize = 1 << 20;

fn qemu_img(arguments: &[&str]) {
    let arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(std::ffi::OsStr::new).collect();
    let done = crate::embed::run("qemu-img", &arguments);
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

fn disk(kind: &str, format: &str, source: &str, backing: &str) -> String {
    format!(
        "<disk type='{kind}'><driver name='qemu' type='{format}'/>{source}{backing}<target dev='vda' bus='virtio'/></disk>"
    )
}

fn file(path: &Path, format: &str, backing: &str) -> String {
    disk(
        "file",
        format,
        &format!("<source file='{}'/>", path.display()),
        backing,
    )
}

fn define(daemon: &Daemon, label: &str, disk: impl FnOnce(&TestDomain) -> String) -> TestDomain {
    let domain = TestDomain::new(daemon, label);
    let devices = disk(&domain);
    domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
    domain
}

/// The content of the disk at the newest restore point.
fn newest(repo: &Repo, domain: &TestDomain) -> Vec<u8> {
    let points = repo.list(domain.name());
    let at = text_of(&points.last().expect("a restore point")["id"]).to_owned();
    let folder = repo.restore(domain.name(), &at, "raw");
    fs::read(folder.join("vda.raw")).expect("it was restored")
}

/// Changes the header extension with the backing file's format into an unknown one.
fn forget_backing_format(image: &Path) {
    let mut bytes = fs::read(image).expect("it is an image");
    let kind = 0xe279_2acau32.to_be_bytes();
    let at = bytes.windows(4).position(|window| window == kind);
    bytes[at.expect("it records the format")..][..4].copy_from_slice(&[0x0a, 0x0b, 0x0c, 0x0d]);
    fs::write(image, bytes).expect("the folder is ours");
}

/// Makes a random chain in the domain's folder and returns the XML of its disk.
fn random_chain(domain: &TestDomain, rng: &mut Rng) -> String {
    let depth = 1 + rng.below(4);
    let mut below: Option<(PathBuf, &str)> = None;
    for level in 0..depth {
        let is_top = level + 1 == depth;
        let format = if level == 0 && !is_top && rng.below(2) == 0 {
            "raw"
        } else {
            "qcow2"
        };
        let image = domain.path(&format!("{level}.img"));
        let mut create = vec![
            "create".to_owned(),
            "-q".to_owned(),
            "-f".to_owned(),
            format.to_owned(),
        ];
        if let Some((path, format)) = &below {
            create.extend(["-b", text(path), "-F", format].map(str::to_owned));
        }
        if format == "qcow2" {
            let options = match (rng.below(4), level) {
                (0, _) => "compat=0.10".to_owned(),
                (1, _) => "cluster_size=4096".to_owned(),
                (2, 0) => format!(
                    "data_file={},data_file_raw=off",
                    text(&domain.path(&format!("{level}.data")))
                ),
                _ => "cluster_size=65536".to_owned(),
            };
            create.extend(["-o".to_owned(), options]);
        }
        create.extend([text(&image).to_owned(), "2M".to_owned()]);
        qemu_img(&create.iter().map(String::as_str).collect::<Vec<_>>());
        let data = domain.path(&format!("{level}.data"));
        if data.exists() {
            fs::set_permissions(&data, Permissions::from_mode(0o666)).expect("the folder is ours");
        }
        let (at, byte) = (rng.below(24) * 65536, 1 + rng.below(255));
        let write = format!("write -q -P {byte} {at} 192k");
        run_ok("qemu-io", [&"-f", &format, &"-c", &write, &image]);
        if below.is_some() && rng.below(4) == 0 {
            forget_backing_format(&image);
        }
        below = Some((image, format));
    }
    let other = domain.path("other.img");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&other), "2M"]);
    run_ok("qemu-io", [&"-f", &"qcow2", &"-c", &"write -q -P 7 0 2M", &other]);
    let backing = match rng.below(4) {
        0 => "<backingStore/>".to_owned(),
        1 => format!(
            "<backingStore type='file'><format type='qcow2'/><source file='{}'/><backingStore/></backingStore>",
            other.display()
        ),
        _ => String::new(),
    };
    file(&below.expect("one level at least").0, "qcow2", &backing)
}

/// Chains of random depth, formats, versions and cluster sizes, with data files, without recorded
/// formats, and with definitions that contradict the headers.
#[test]
fn random_chains_read_alike_running_and_shut_off() {
    let daemon = Daemon::acquire();
    let (mut same, mut refused) = (0, 0);
    for seed in 1..=12 {
        let mut rng = Rng::seeded(seed);
        let domain = define(&daemon, &format!("chain{seed}"), |domain| {
            random_chain(domain, &mut rng)
        });
        let (off, on) = (Repo::new(), Repo::new());
        let shut_off = off.backup(&[domain.name()], &[]);
        if !domain.try_virsh(&["start", "--paused"]).ok() {
            assert_eq!(
                shut_off.code,
                Some(9),
                "libvirt refuses chain {seed}: {shut_off:#?}"
            );
            assert!(
                shut_off.stderr.contains(text(domain.dir())),
                "it names the file: {shut_off:#?}"
            );
            refused += 1;
            continue;
        }
        on.back_up(domain.name(), &[]);
        if shut_off.code != Some(0) {
            assert!(
                shut_off.stderr.contains(text(domain.dir())),
                "it names the file: {shut_off:#?}"
            );
            refused += 1;
            continue;
        }
        assert!(
            newest(&off, &domain) == newest(&on, &domain),
            "chain {seed} differs"
        );
        same += 1;
    }
    assert!(same >= 6 && refused >= 1, "{same} same, {refused} refused");
}

#[test]
fn an_unrecorded_backing_format_leads_to_no_other_file() {
    let daemon = Daemon::acquire();
    let domain = define(&daemon, "hostile", |domain| {
        let (secret, base, top) = (
            domain.path("secret"),
            domain.path("base.raw"),
            domain.path("top.qcow2"),
        );
        fs::write(&secret, b"TOPSECRET".repeat(MIB / 9)).expect("the folder is ours");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&secret),
            "-F",
            "raw",
            text(&base),
            "1M",
        ]);
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&base),
            "-F",
            "raw",
            text(&top),
            "1M",
        ]);
        forget_backing_format(&top);
        file(&top, "qcow2", "")
    });
    let repo = Repo::new();
    let refused = repo.backup(&[domain.name()], &[]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("base.raw"), "{refused:#?}");
    assert!(
        !domain.try_virsh(&["start", "--paused"]).ok(),
        "libvirt refuses it, too"
    );
}

#[test]
fn a_fifo_as_a_disk_is_refused_at_once() {
    let daemon = Daemon::acquire();
    let domain = define(&daemon, "fifo", |domain| {
        let fifo = domain.path("fifo");
        run_ok("mkfifo", [&fifo]);
        file(&fifo, "qcow2", "")
    });
    let repo = Repo::new();
    let refused = repo.backup(&[domain.name()], &[]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("is a FIFO"), "{refused:#?}");
}

/// Makes an encrypted image and returns the XML of its disk.
fn encrypted(domain: &TestDomain, format: &str, secret: &Secret<'_>) -> String {
    let image = domain.path("encrypted");
    create_encrypted(&image, format, "4M");
    let source = format!(
        "<source file='{}'>{}</source>",
        image.display(),
        secret.encryption()
    );
    disk("file", format, &source, "")
}

fn guest_writes(domain: &TestDomain, byte: u8, at: usize) {
    guest_fills(domain, byte, at, 65536);
}

fn guest_fills(domain: &TestDomain, byte: u8, at: usize, length: usize) {
    let command = format!(
        r#"qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P {byte} {at} {length}""#
    );
    let said = domain.virsh(&["qemu-monitor-command", "--hmp", &command]);
    assert!(!said.contains("rror") && !said.contains("failed"), "{said}");
}

#[test]
fn encrypted_disks_are_saved_as_plain_text_only_on_request() {
    let daemon = Daemon::acquire();
    for format in ["qcow2", "raw"] {
        let folder = crate::owner::folder("secret-");
        let secret = Secret::new(&daemon, folder.path(), false);
        let domain = define(&daemon, &format!("luks-{format}"), |domain| {
            encrypted(domain, format, &secret)
        });
        let mut expected = vec![0; 4 * MIB];
        domain.start_paused();
        // Unwritten parts of a raw LUKS disk read as noise.
        guest_fills(&domain, 0, 0, 4 * MIB);
        guest_writes(&domain, 0x41, 0);
        expected[..65536].fill(0x41);

        let repo = Repo::new();
        let refused = repo.backup(&[domain.name()], &["--raw", "--json"]);
        assert_eq!(refused.code, Some(9), "{refused:#?}");
        assert!(refused.stderr.contains("--store-decrypted"), "{refused:#?}");

        let switches = ["--raw", "--store-decrypted"];
        let saved = repo.backup(&[domain.name()], &["--raw", "--store-decrypted", "--json"]);
        let outcome = outcome_of(&saved, domain.name());
        assert!(outcome.to_string().contains("stored-decrypted"), "{outcome}");
        let plain = |bytes: &[u8]| newest(&repo, &domain) == bytes;
        assert!(plain(&expected), "the running domain's bytes");
        guest_writes(&domain, 0x42, 2 * MIB);
        expected[2 * MIB..][..65536].fill(0x42);
        domain.destroy();
        let off = repo.back_up(domain.name(), &switches);
        let level = if format == "qcow2" { "incremental" } else { "full" };
        assert_eq!(off["restorePoint"]["level"], level, "{off}");
        assert!(plain(&expected), "the shut-off domain's bytes");

        // The restored domain starts without a secret and sees the plain text.
        let to = domain.path("restored");
        let name = format!("{}-new", domain.name());
        let restored = bring_back(&repo, domain.name(), &to, &name);
        assert_eq!(codes(&restored), ["restored-decrypted"]);
        let new = TestDomain::named(&daemon, &name);
        new.start_paused();
        let read = r#"qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "read -P 66 2M 64k""#;
        let said = new.virsh(&["qemu-monitor-command", "--hmp", read]);
        assert!(!said.contains("ailed"), "{said}");
        assert!(!new.virsh(&["dumpxml"]).contains("<encryption"));
    }
}

#[test]
fn a_private_secret_is_a_refusal_that_says_so() {
    let daemon = Daemon::acquire();
    let folder = crate::owner::folder("secret-");
    let secret = Secret::new(&daemon, folder.path(), true);
    let domain = define(&daemon, "private", |domain| encrypted(domain, "qcow2", &secret));
    let repo = Repo::new();
    let refused = repo.backup(&[domain.name()], &["--store-decrypted"]);
    assert_eq!(refused.code, Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("private"), "{refused:#?}");
    assert!(repo.partials().is_empty() && crate::cli_lab::checkpoints(&domain).is_empty());
}

#[test]
fn volumes_and_servers_are_backed_up_in_both_states() {
    let daemon = Daemon::acquire();
    let server_home = crate::owner::folder("secret-");
    for kind in ["volume", "network"] {
        let mut server = None;
        let mut pool = None;
        let domain = define(&daemon, kind, |domain| {
            let image = domain.path("image.qcow2");
            qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "2M"]);
            if kind == "volume" {
                pool = Some(Pool::new(&daemon, domain.name(), domain.dir()));
                let source = format!("<source pool='{}' volume='image.qcow2'/>", domain.name());
                return disk("volume", "qcow2", &source, "");
            }
            make(server_home.path(), 0o755);
            let socket = server_home.path().join("s");
            server = Some(Server::start(&image, &socket));
            let source = Server::source(&socket);
            disk("network", "qcow2", &source, "")
        });
        // Keep the pool until here, so that it is dropped before the domain's folder.
        let _pool = pool;
        let repo = Repo::new();
        let mut expected = vec![0; 2 * MIB];
        domain.start_paused();
        guest_writes(&domain, 0x51, 0);
        expected[..65536].fill(0x51);
        assert_eq!(repo.back_up(domain.name(), &[])["restorePoint"]["level"], "full");
        assert!(newest(&repo, &domain) == expected, "{kind}: running");
        guest_writes(&domain, 0x52, MIB);
        expected[MIB..][..65536].fill(0x52);
        assert_eq!(
            repo.back_up(domain.name(), &[])["restorePoint"]["level"],
            "incremental"
        );
        domain.destroy();
        assert_eq!(
            repo.back_up(domain.name(), &[])["restorePoint"]["level"],
            "incremental"
        );
        assert!(newest(&repo, &domain) == expected, "{kind}: shut off");
        let to = domain.path("restored");
        let name = format!("{}-new", domain.name());
        bring_back(&repo, domain.name(), &to, &name);
        let new = TestDomain::named(&daemon, &name);
        assert!(new.virsh(&["dumpxml"]).contains("<disk type='file'"));
        drop(server);
    }
}
