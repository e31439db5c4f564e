//! Shut-off domains with a disk that cannot be opened and one that can.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::cli_classic_scrub::bitmaps;
use crate::cli_lab::{Repo, text_of, wait_for_readers_to_end};
use crate::daemon::{Daemon, TestDomain, URI};
use crate::process::{command, run};

const MIB: usize = 1 << 20;

fn qemu_img(words: &[&str]) {
    run(command("qemu-img", words));
}

fn write(image: &Path, words: &str) {
    let image = image.display().to_string();
    run(command("qemu-io", &["-f", "qcow2", "-c", words, &image]));
}

fn disk(kind: &str, source: &str, target: &str) -> String {
    format!(
        "<disk type='{kind}'><driver name='qemu' type='qcow2'/>{source}<target dev='{target}' bus='virtio'/></disk>"
    )
}

fn file(path: &Path, target: &str) -> String {
    disk("file", &format!("<source file='{}'/>", path.display()), target)
}

/// The XML of disks `vda` that cannot be opened: a disk that libvirt would not start either, an
/// image without a header, and an image on a missing server.
fn unreachable_disks(lab: &TestDomain) -> [String; 3] {
    let base = lab.path("base.raw");
    fs::write(&base, vec![0; MIB]).expect("written");
    let refused = lab.path("refused.qcow2");
    let name = format!(
        r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}"#,
        base.display()
    );
    let image = refused.display().to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &name, "-F", "raw", &image]);
    let broken = lab.path("broken.qcow2");
    fs::write(&broken, [0; 50]).expect("written");
    let silent = format!(
        "<source protocol='nbd' name='x'><host transport='unix' socket='{}'/></source>",
        lab.path("gone.sock").display()
    );
    [
        file(&refused, "vda"),
        file(&broken, "vda"),
        disk("network", &silent, "vda"),
    ]
}

/// The byte at 1 MiB of the disk in the newest restore point.
fn newest_byte(repo: &Repo, domain: &TestDomain) -> u8 {
    let points = repo.list(domain.name());
    let at = text_of(&points.last().expect("a restore point")["id"]).to_owned();
    let restored = fs::read(repo.restore(domain.name(), &at, "raw").join("vdb.raw"));
    restored.expect("it was restored")[MIB]
}

#[test]
fn an_unreachable_disk_does_not_stop_work_on_the_others() {
    let daemon = Daemon::acquire();
    let lab = TestDomain::new(&daemon, "unreachable");
    for (number, vda) in unreachable_disks(&lab).into_iter().enumerate() {
        let domain = TestDomain::new(&daemon, &format!("beside-{number}"));
        let image = domain.path("vdb.qcow2");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            &image.display().to_string(),
            "256M",
        ]);
        write(&image, "write -P 7 0 200M");
        let devices = vda + &file(&image, "vdb");
        domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));

        // Healing.
        let repo = Repo::new();
        let leave_out = ["--exclude-disk", "vda"];
        let root = repo.root().display().to_string();
        let words = ["backup", domain.name(), "--output", &root, "--connect", URI];
        let mut killed = repo.begin(&[&words[..], &leave_out].concat());
        killed.hold_when("its image", |partial| partial.join("vdb.qcow2").exists());
        killed.signal(Signal::KILL);
        killed.wait(Duration::from_secs(20));
        wait_for_readers_to_end(&domain);
        assert_eq!(bitmaps(&image).len(), 1, "the run had made its bitmap");
        repo.back_up(domain.name(), &leave_out);
        assert_eq!(repo.partials(), [] as [PathBuf; 0]);
        assert_eq!(bitmaps(&image).len(), 1, "that bitmap is gone");

        // Retiring.
        for byte in 1..4 {
            write(&image, &format!("write -P {byte} 1M 64k"));
            let more = [&leave_out[..], &["--keep-checkpoints", "1"]].concat();
            let outcome = repo.back_up(domain.name(), &more);
            assert_eq!(outcome["restorePoint"]["level"], "incremental", "{outcome:#}");
            assert_eq!(newest_byte(&repo, &domain), byte);
        }
        assert_eq!(bitmaps(&image).len(), 1, "the others are retired");

        // Scrubbing.
        let scrub = ["scrub", domain.name(), "--scrub-type", "both", "--connect", URI];
        let scrubbed = repo.run(&scrub);
        assert_eq!(
            scrubbed.code,
            Some(5),
            "the bitmaps of vda are unknown: {scrubbed:#?}"
        );
        let words = "the bitmaps in the image of disk vda could not be listed";
        assert!(scrubbed.stderr.contains(words), "{scrubbed:#?}");
        assert_eq!(bitmaps(&image), [""; 0]);
    }
}

#[test]
fn status_shows_the_disks_beside_an_unreachable_one() {
    let daemon = Daemon::acquire();
    let lab = TestDomain::new(&daemon, "status-unreachable");
    let missing = file(&lab.path("missing.qcow2"), "vda");
    let unreachable = unreachable_disks(&lab).into_iter().chain([missing]);
    for (number, vda) in unreachable.enumerate() {
        let domain = TestDomain::new(&daemon, &format!("status-beside-{number}"));
        let image = domain.path("vdb.qcow2");
        let path = image.display().to_string();
        qemu_img(&["create", "-q", "-f", "qcow2", &path, "1M"]);
        let devices = vda + &file(&image, "vdb");
        domain.define(&domain.xml(daemon.virt_type(), 32, "", &devices));
        let words = ["status", domain.name(), "--machine", "--json", "--connect", URI];
        let found = Repo::new().run(&words);
        let document: serde_json::Value = serde_json::from_str(&found.stdout).expect("JSON");
        let status = &document[domain.name()];
        assert_eq!(status["disks"][0]["disk"], "vdb", "{found:#?}");
        assert_eq!(status["disks"].as_array().map(Vec::len), Some(1), "{found:#?}");
        assert_eq!(status["findings"][0]["disk"], "vda", "{found:#?}");
        // The first disk is refused by rule, and no backup holds it.
        let (code, finding) = match number {
            0 => (0, "disk-skipped"),
            _ => (3, "disk-not-examined"),
        };
        assert_eq!(status["findings"][0]["code"], finding, "{found:#?}");
        assert_eq!(found.code, Some(code), "{found:#?}");
        assert_eq!(status["overallStatus"], u8::from(code != 0), "{found:#?}");
    }
}
