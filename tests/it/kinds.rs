//! Disks that are not files on the host: volumes, network images, NVMe namespaces and devices of
//! other processes.

use vmsnap::host::xml::read_domain;
use vmsnap::model::finding::Finding;
use vmsnap::model::left_out::{Exclusion, Kind};
use vmsnap::model::restore_point::Level;
use vmsnap::ops::backup::{Options, Outcome};
use vmsnap::ops::restore::{self, DefineOptions, RestorePlan};

use crate::lab::{CLUSTER, Lab};

const QCOW2: &str = "<driver name='qemu' type='qcow2'/>";
const RAW: &str = "<driver name='qemu' type='raw'/>";

/// A `<disk>` of this type with the target `vdb`.
fn disk(kind: &str, driver: &str, source: &str) -> String {
    format!("<disk type='{kind}' device='disk'>{driver}{source}<target dev='vdb' bus='virtio'/></disk>")
}

fn volume(name: &str) -> String {
    disk("volume", QCOW2, &format!("<source pool='fast' volume='{name}'/>"))
}

fn network(inner: &str) -> String {
    let source =
        format!("<source protocol='nbd' name='export'><host name='store' port='10809'/>{inner}</source>");
    disk("network", QCOW2, &source)
}

fn nvme() -> String {
    let address = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>";
    disk(
        "nvme",
        RAW,
        &format!("<source type='pci' managed='yes' namespace='1'>{address}</source>"),
    )
}

const VHOST_USER: &str = "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>\
    <source type='unix' path='/run/spdk.sock'/><target dev='vdb' bus='virtio'/></disk>";
const VHOST_VDPA: &str = "<disk type='vhostvdpa' device='disk'><driver name='qemu' type='raw'/>\
    <source dev='/dev/vhost-vdpa-0'/><target dev='vdb' bus='virtio'/></disk>";

/// A domain whose disk `vda` is a file and whose disk `vdb` is given.
fn lab(vdb: &str) -> Lab {
    let lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 2 * CLUSTER), ("vdb", 2 * CLUSTER)]);
    redefine(&lab, vdb);
    lab
}

/// Replaces the domain's disk `vdb`.
fn redefine(lab: &Lab, vdb: &str) {
    lab.host.change("vm1", |domain| {
        let from = domain.inactive_xml.rfind("<disk ").expect("the disk vdb");
        let end = domain.inactive_xml.rfind("</disk>").expect("its end") + "</disk>".len();
        domain.inactive_xml.replace_range(from..end, vdb);
        domain.disks = read_domain(&domain.inactive_xml).expect("a definition").disks;
        assert_eq!(domain.disks[1].target, "vdb");
    });
}

fn backup(lab: &mut Lab, options: &Options, byte: u8) -> Outcome {
    lab.host.disk("vm1", "vdb", |disk| disk.write(0, &[byte; 3000]));
    lab.backup_with("vm1", options).expect("a backup")
}

fn level(outcome: &Outcome) -> (Level, &str) {
    let disk = outcome.point.disk("vdb").expect("it was saved");
    (disk.level, disk.reason.as_str())
}

#[test]
fn volumes_and_network_disks_are_incremental() {
    let other_export = network("").replace("'export'", "'other'");
    for (xml, other) in [(volume("a"), volume("b")), (network(""), other_export)] {
        let mut lab = lab(&xml);
        let first = backup(&mut lab, &Lab::options(), 1);
        assert!(!first.point.is_partial());
        assert_eq!(level(&first).0, Level::Full);
        let second = backup(&mut lab, &Lab::options(), 2);
        assert_eq!(level(&second).0, Level::Incremental);
        lab.assert_gives_back("vm1", "vdb");
        // The guest now has another image under the same target.
        redefine(&lab, &other);
        let third = backup(&mut lab, &Lab::options(), 3);
        let (level, reason) = level(&third);
        assert_eq!(level, Level::Full, "{xml}: {reason}");
        lab.assert_gives_back("vm1", "vdb");
    }
}

#[test]
fn an_nvme_namespace_is_raw_and_saved_in_full() {
    let mut lab = lab(&nvme());
    let without = lab.backup("vm1").expect("vda is saved");
    assert!(!without.point.is_partial(), "raw disks keep their rule");
    assert_eq!(without.point.left_out[0].kind, Kind::Raw);
    let raw = Options {
        raw: true,
        ..Lab::options()
    };
    for byte in [1, 2] {
        let outcome = backup(&mut lab, &raw, byte);
        assert_eq!(
            level(&outcome),
            (Level::Full, "a raw disk cannot carry a dirty bitmap")
        );
        lab.assert_gives_back("vm1", "vdb");
    }
}

#[test]
fn a_device_of_another_process_makes_a_backup_partial() {
    for (xml, kind) in [(VHOST_USER, "'vhostuser'"), (VHOST_VDPA, "'vhostvdpa'")] {
        let mut lab = lab(xml);
        let raw = Options {
            raw: true,
            ..Lab::options()
        };
        let outcome = lab.backup_with("vm1", &raw).expect("vda is saved");
        assert!(outcome.point.is_partial());
        let left = &outcome.point.left_out[0];
        assert_eq!((left.disk.as_str(), left.kind), ("vdb", Kind::Skipped));
        for words in [kind, "QEMU cannot read the disk", "where its content is stored"] {
            assert!(left.reason.contains(words), "{}", left.reason);
        }
    }
}

fn back_up_without_vdb(lab: &mut Lab) {
    let options = Options {
        exclude: vec![Exclusion {
            disk: "vdb".into(),
            is_expected: true,
        }],
        ..Lab::options()
    };
    lab.backup_with("vm1", &options).expect("vda is saved");
}

/// The plan of a restore with `--define` of a backup that leaves `vdb` out.
fn defined_without(vdb: &str) -> RestorePlan {
    let mut lab = lab(vdb);
    back_up_without_vdb(&mut lab);
    lab.host.remove_domain("vm1");
    let options = restore::Options {
        define: Some(DefineOptions { name: None }),
        ..lab.restoring()
    };
    restore::plan("vm1", lab.repo.as_ref(), Some(&lab.host), &options).expect("a plan")
}

fn not_restored(plan: &RestorePlan) -> &Finding {
    let mut found = plan
        .findings
        .iter()
        .filter(|found| found.code == "disk-not-restored");
    let finding = found.next().expect("vdb is reported");
    assert_eq!(found.next(), None, "once");
    assert_eq!(finding.disk.as_deref(), Some("vdb"));
    finding
}

#[test]
fn a_defined_domain_says_what_a_missing_disk_needs() {
    let secret = "<encryption format='luks'><secret type='passphrase' uuid='u-1'/></encryption>";
    let by_usage = "<encryption format='luks'><secret type='passphrase' usage='/images/e'/></encryption>";
    let encrypted = |secrets: &str| disk("file", QCOW2, &format!("<source file='/e'>{secrets}</source>"));
    let store =
        format!("<dataStore type='file'><format type='raw'/><source file='/d'>{secret}</source></dataStore>");
    let backing = format!(
        "<backingStore type='file'><format type='qcow2'/><source file='/base'>{secret}</source></backingStore>"
    );
    let cases = [
        (disk("file", QCOW2, "<source file='/images/vdb'/>"), "/images/vdb"),
        (disk("block", RAW, "<source dev='/dev/vg/lv'/>"), "/dev/vg/lv"),
        (volume("a b"), "the storage pool 'fast' with the volume 'a b'"),
        (network(""), "the server of nbd://store:10809/export"),
        (
            network("<auth username='u'/><cookies/>"),
            "the server of nbd://store:10809/export with the same settings (auth, cookies)",
        ),
        (nvme(), "the device nvme 0000:01:00.0/1"),
        (
            VHOST_USER.to_owned(),
            "the process that serves vhost-user /run/spdk.sock",
        ),
        (VHOST_VDPA.to_owned(), "the device vhost-vdpa /dev/vhost-vdpa-0"),
        (encrypted(secret), "/e, libvirt's secret u-1"),
        (encrypted(by_usage), "/e, libvirt's secret /images/e"),
        (encrypted(&store), "/e, libvirt's secret u-1"),
        // A secret is named once, even if several images need it.
        (
            encrypted(secret).replace("<target", &format!("{backing}<target")),
            "/e, libvirt's secret u-1",
        ),
    ];
    for (xml, needs) in cases {
        let plan = defined_without(&xml);
        let message = &not_restored(&plan).message;
        let expected = format!(
            "disk vdb is not in the restore point (--exclude-disk names it): the defined domain still uses the disk's old source and needs {needs}"
        );
        assert_eq!(message, &expected);
        let defined = plan.define.expect("it was asked for").xml;
        assert!(
            defined.contains(&xml),
            "the definition of vdb stays as it was: {defined}"
        );
    }
}

#[test]
fn a_copy_of_a_domain_shares_no_disk_with_it() {
    let mut lab = lab(&volume("a"));
    back_up_without_vdb(&mut lab);
    let options = restore::Options {
        define: Some(DefineOptions {
            name: Some("vm2".into()),
        }),
        ..lab.restoring()
    };
    let refused = restore::plan("vm1", lab.repo.as_ref(), Some(&lab.host), &options).map(|_| ());
    let message = refused.expect_err("vm1 has the volume").to_string();
    assert!(message.contains("volume fast/a"), "{message}");
}
