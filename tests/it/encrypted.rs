//! Encrypted disks: when they are saved, what the manifest records, and how their domain is
//! restored.

use vmsnap::cli::report;
use vmsnap::model::domain::{Backing, Disk, DiskFormat, Encryption, Layer, Source};
use vmsnap::model::finding::Finding;
use vmsnap::model::left_out::{Exclusion, Kind};
use vmsnap::model::restore_point::{Consistency, FileId, Level};
use vmsnap::ops::backup::{Options, Outcome, preview};
use vmsnap::ops::compare::{Verdict, compare};
use vmsnap::ops::restore::{self, DefineOptions, RestorePlan};
use vmsnap::ops::status::{Subject, status};
use vmsnap::ops::{Cause, Error};

use crate::forged::rewrite;
use crate::lab::{CLUSTER, InFolder, Lab};

const LUKS: &str = "<encryption format='luks'><secret type='passphrase' uuid='u-1'/></encryption>";

fn luks() -> Option<Encryption> {
    Some(Encryption {
        format: "luks".into(),
        engine: None,
        secrets: vec![],
    })
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code.as_str()).collect()
}

/// A domain with an encrypted disk `vda`, which its definition also declares, and a plain disk
/// `vdb`.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.host
        .add_domain("vm1", &[("vda", 2 * CLUSTER), ("vdb", 2 * CLUSTER)]);
    lab.host.set_nvram("vm1", b"variables");
    lab.host.change("vm1", |domain| {
        domain.disks[0].encryption = luks();
        domain.inactive_xml =
            domain
                .inactive_xml
                .replacen("<target dev='vda'", &format!("{LUKS}<target dev='vda'"), 1);
    });
    lab
}

fn decrypting() -> Options {
    Options {
        store_decrypted: true,
        ..Lab::options()
    }
}

fn write(lab: &Lab, disk: &str, byte: u8) {
    lab.host.disk("vm1", disk, |disk| disk.write(0, &[byte; 3000]));
}

fn level(outcome: &Outcome, disk: &str) -> Level {
    outcome.point.disk(disk).expect("it was saved").level
}

/// The plan of restoring the latest restore point.
fn restore_plan(lab: &Lab, define: bool) -> Result<RestorePlan, Error> {
    let options = restore::Options {
        define: define.then(|| DefineOptions {
            name: Some("new".into()),
        }),
        ..lab.restoring()
    };
    restore::plan("vm1", lab.repo.as_ref(), Some(&lab.host), &options)
}

#[test]
fn an_encrypted_disk_is_not_saved_without_the_switch() {
    let mut lab = lab();
    let outcome = lab.backup("vm1").expect("vdb is saved");
    assert!(outcome.point.is_partial());
    assert_eq!(outcome.point.left_out[0].kind, Kind::Encrypted);
    assert_eq!(codes(&outcome.findings), ["disk-encrypted"]);
    let message = &outcome.findings[0].message;
    assert!(
        message.contains("plain text") && message.contains("--store-decrypted"),
        "{message}"
    );
    assert!(outcome.point.disk("vda").is_none());
    assert!(!outcome.dir().join("vda.qcow2").exists());
}

#[test]
fn a_domain_of_encrypted_disks_fails_with_the_finding() {
    let mut lab = lab();
    lab.host.change("vm1", |domain| {
        domain.disks.truncate(1);
    });
    let error = lab.backup("vm1").expect_err("nothing is left");
    assert!(matches!(error.cause, Cause::NothingToBackUp));
    assert_eq!(codes(&error.findings), ["disk-encrypted"]);
    assert!(error.hint().expect("a hint").contains("--store-decrypted"));
}

#[test]
fn encryption_anywhere_in_the_chain_counts() {
    let encrypted = |path: &str| Layer {
        encryption: luks(),
        ..Layer::new(Source::File(path.into()), DiskFormat::Qcow2)
    };
    let change: [fn(&mut Disk, Layer); 3] = [
        |disk, layer| disk.encryption = layer.encryption,
        |disk, layer| {
            disk.backing = Backing::Layer(Box::new(Layer {
                backing: Backing::Layer(Box::new(layer)),
                ..Layer::new(Source::File("/middle".into()), DiskFormat::Qcow2)
            }));
        },
        |disk, layer| disk.data_file = Some(Box::new(layer)),
    ];
    for change in change {
        let mut lab = lab();
        lab.host
            .change("vm1", |domain| change(&mut domain.disks[1], encrypted("/x")));
        let error = lab.backup("vm1").expect_err("both are encrypted");
        assert_eq!(codes(&error.findings), ["disk-encrypted", "disk-encrypted"]);
        let outcome = lab.backup_with("vm1", &decrypting()).expect("both are saved");
        assert_eq!(
            outcome.point.disk("vdb").expect("it was saved").decrypted,
            Some(true)
        );
    }
}

#[test]
fn with_the_switch_its_plain_text_is_saved_and_recorded() {
    let mut lab = lab();
    for round in 1..=3u8 {
        write(&lab, "vda", round);
        let outcome = lab.backup_with("vm1", &decrypting()).expect("a backup");
        assert!(!outcome.point.is_partial());
        assert_eq!(
            level(&outcome, "vda"),
            if round == 1 {
                Level::Full
            } else {
                Level::Incremental
            }
        );
        assert_eq!(codes(&outcome.point.findings), ["stored-decrypted"]);
        let recorded = |disk: &str| outcome.point.disk(disk).expect("it was saved").decrypted;
        assert_eq!((recorded("vda"), recorded("vdb")), (Some(true), Some(false)));
        lab.assert_gives_back("vm1", "vda");
    }
    let listed = vmsnap::ops::list::list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("a list");
    let json = serde_json::to_value(report::list::document(&listed)).expect("JSON");
    let disks = &json["domains"][0]["restorePoints"][2]["disks"];
    assert_eq!(
        (&disks[0]["decrypted"], &disks[1]["decrypted"]),
        (&true.into(), &false.into())
    );

    let restored = restore_plan(&lab, false).expect("a plan");
    assert_eq!(codes(&restored.findings), ["restored-decrypted"]);
    let defined = restore_plan(&lab, true).expect("a plan");
    assert_eq!(codes(&defined.findings), ["restored-decrypted"]);
    let xml = defined.define.expect("it was asked for").xml;
    assert!(!xml.contains("<encryption") && !xml.contains("u-1"), "{xml}");
}

#[test]
fn a_raw_encrypted_disk_needs_both_switches() {
    let mut lab = lab();
    lab.host
        .change("vm1", |domain| domain.disks[0].format = DiskFormat::Raw);
    let neither = lab.backup("vm1").expect("vdb is saved");
    assert!(!neither.point.is_partial(), "raw disks keep their rule");
    let left = &neither.point.left_out[0];
    assert!(left.reason.contains("--raw") && left.reason.contains("--store-decrypted"));
    assert_eq!(left.kind, Kind::Raw);
    let raw = Options {
        raw: true,
        ..Lab::options()
    };
    let only_raw = lab.backup_with("vm1", &raw).expect("vdb is saved");
    assert!(only_raw.point.is_partial());
    let both = Options {
        raw: true,
        ..decrypting()
    };
    let both = lab.backup_with("vm1", &both).expect("both are saved");
    assert_eq!(codes(&both.point.findings), ["stored-decrypted"]);
}

#[test]
fn an_excluded_encrypted_disk_makes_no_backup_partial() {
    let mut lab = lab();
    let options = Options {
        exclude: vec![Exclusion {
            disk: "vda".into(),
            is_expected: true,
        }],
        ..Lab::options()
    };
    let outcome = lab.backup_with("vm1", &options).expect("vdb is saved");
    assert!(!outcome.point.is_partial());
    assert_eq!(codes(&outcome.findings), ["disk-excluded"]);
}

#[test]
fn changed_encryption_keeps_chain_only_in_the_same_file() {
    let file = |inode| FileId {
        inode,
        born: "2026-11-01T00:00:00Z".parse().expect("a time"),
    };
    let mut lab = lab();
    lab.host.set_file("vda", file(1));
    lab.backup_with("vm1", &decrypting()).expect("a full");
    lab.host.change("vm1", |domain| domain.disks[0].encryption = None);
    write(&lab, "vda", 7);
    let same = lab.backup("vm1").expect("it is plain now");
    assert_eq!(
        level(&same, "vda"),
        Level::Incremental,
        "the same file and bitmap"
    );
    assert_eq!(
        same.point.disk("vda").expect("it was saved").decrypted,
        Some(false)
    );
    lab.assert_gives_back("vm1", "vda");
    lab.host.set_file("vda", file(2));
    lab.host
        .change("vm1", |domain| domain.disks[0].encryption = luks());
    let new = lab.backup_with("vm1", &decrypting()).expect("a full");
    assert_eq!(level(&new, "vda"), Level::Full, "a conversion makes a new file");
    lab.assert_gives_back("vm1", "vda");
}

#[test]
fn status_preview_and_comparison_know_encrypted_disks() {
    let mut lab = lab();
    lab.backup_with("vm1", &decrypting()).expect("a full");
    let next = lab.preview("vm1").expect("a plan").planned.backup;
    assert!(next.is_partial());
    let next = preview("vm1", &lab.context(&lab.recorder), &decrypting()).expect("a plan");
    assert!(!next.planned.backup.is_partial());

    for store_decrypted in [false, true] {
        let subject = Subject {
            store_decrypted,
            ..lab.subject()
        };
        let found = status("vm1", &subject).expect("a status");
        assert_eq!(found.disks.len(), 2, "its bitmaps are shown in any case");
        let expected: &[&str] = if store_decrypted { &[] } else { &["disk-encrypted"] };
        assert_eq!(codes(&found.findings), expected);
    }

    let outcome = compare("vm1", &lab.context(&lab.recorder), &Lab::comparing()).expect("a comparison");
    assert_eq!(outcome.verdict(), Verdict::Same);
    assert_eq!(outcome.disks.len(), 2, "nothing is stored by a comparison");
    let reported = lab.recorder.findings();
    let by_comparison = reported.iter().filter(|found| found.message.contains("compare"));
    assert_eq!(by_comparison.count(), 0, "{reported:?}");
}

/// Rewrites the restore point as an earlier version would have recorded it.
fn age(lab: &Lab, consistency: Consistency) {
    rewrite(lab, 0, |manifest| {
        manifest.point.consistency = consistency;
        for disk in &mut manifest.point.disks {
            disk.decrypted = None;
        }
    });
}

#[test]
fn an_earlier_point_of_a_running_domain_is_plain_text() {
    let mut lab = lab();
    lab.backup_with("vm1", &decrypting()).expect("a full");
    age(&lab, Consistency::Crash);
    let plan = restore_plan(&lab, true).expect("QEMU had decrypted it");
    assert_eq!(codes(&plan.findings), ["restored-decrypted"]);
    assert!(!plan.define.expect("it was asked for").xml.contains("<encryption"));
}

#[test]
fn an_earlier_point_of_a_shut_off_domain_defines_no_domain() {
    let mut lab = lab();
    lab.backup_with("vm1", &decrypting()).expect("a full");
    age(&lab, Consistency::Offline);
    let refused = restore_plan(&lab, true)
        .map(|_| ())
        .expect_err("the encryption is unknown");
    assert_eq!(refused.disk.as_deref(), Some("vda"));
    let Cause::Usage(what) = &refused.cause else {
        panic!("{refused}");
    };
    assert!(what.contains("cipher text") && what.contains("LUKS"), "{what}");
    assert!(!lab.free_path().exists(), "nothing was begun");
    let plan = restore_plan(&lab, false).expect("the bytes are given back");
    assert_eq!(codes(&plan.findings), ["restored-perhaps-encrypted"]);
    lab.assert_gives_back("vm1", "vda");
}
