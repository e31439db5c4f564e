//! Disks that are left out: output and exit codes.

use serde_json::Value;

use super::*;

const SHAREABLE: &str = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                         <source file='/nowhere/shared.qcow2'/><target dev='vdb' bus='virtio'/><shareable/></disk>";
const RAW: &str = "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/nowhere/r.img'/>\
                   <target dev='vdb' bus='virtio'/></disk>";
const ENCRYPTED: &str = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/nowhere/e.qcow2'>\
                         <encryption format='luks'><secret type='passphrase' uuid='00000000-0000-4000-8000-0000000000ee'/>\
                         </encryption></source><target dev='vdb' bus='virtio'/></disk>";
const DRIVE: &str = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";

fn node(domains: &[(&str, u32)], devices: &str) -> Node {
    let mut node = Node::new(domains);
    node.devices = devices.to_owned();
    node.write();
    node
}

fn document(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).expect("one document")
}

#[test]
fn a_partial_backup_is_kept_and_ends_with_nine() {
    let node = node(&[("vm1", SHUT_OFF), ("vm2", SHUT_OFF)], SHAREABLE);
    let finished = node.vmsnap(&["--backup", "--domains=vm1,vm2", "--output=OUT", "--prune"]);
    ends(
        &finished,
        9,
        "vmsnap: 2 of 2 partial, without:\n  vm1: vdb\n  vm2: vdb\n",
    );
    assert_eq!(
        finished.stdout.matches("1 disk (PARTIAL: without vdb), ").count(),
        2,
        "{finished:#?}"
    );
    assert_eq!(
        finished
            .stdout
            .matches("pruned nothing: the backup is partial")
            .count(),
        2
    );
    assert_eq!(
        finished.stderr.matches("vdb is not backed up").count(),
        2,
        "{finished:#?}"
    );
    assert_eq!((node.restore_points("vm1"), node.restore_points("vm2")), (1, 1));

    let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT", "--json", "-q"]);
    ends(&finished, 9, "vm1: note: disk vdb is not backed up: ");
    let domain = &document(&finished)["domains"][0];
    assert_eq!(domain["outcome"], "partial");
    assert_eq!(domain["findings"][0]["code"], "disk-skipped");
    assert_eq!(domain["restorePoint"]["partial"], true);
    assert_eq!(domain["restorePoint"]["leftOut"][0]["disk"], "vdb");
    assert_eq!(domain["error"], Value::Null);

    let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT", "--dry-run"]);
    ends(&finished, 9, "");
    assert!(
        finished.stdout.contains(" (PARTIAL: without vdb)\n"),
        "{finished:#?}"
    );
    let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT", "--dry-run", "--json"]);
    assert_eq!(document(&finished)["domains"][0]["partial"], true);

    let finished = node.vmsnap(&["list", "-r", "OUT"]);
    assert!(finished.stdout.contains("  PARTIAL  "), "{finished:#?}");
}

#[test]
fn excluded_disk_is_no_failure() {
    let node = node(&[("vm1", SHUT_OFF)], SHAREABLE);
    for words in [
        ["--backup", "--domains=vm1", "--output=OUT", "--excludeDisk=vdb"],
        ["backup", "vm1", "--output=OUT", "--exclude-disk=vdx,vm?:vdb"],
    ] {
        let finished = node.vmsnap(&words);
        ends(
            &finished,
            0,
            "vm1: disk vdb is left out: --exclude-disk names it\n",
        );
        assert!(
            finished.stdout.contains(", 1 disk (excluded: vdb), no data, "),
            "{finished:#?}"
        );
    }
    let environment = [("VMSNAP_EXCLUDE_DISK", "vm1:vdb")];
    let finished = node.vmsnap_with(&["backup", "vm1", "-o", "OUT", "--json"], &environment);
    ends(&finished, 0, "");
    let domain = &document(&finished)["domains"][0];
    assert_eq!(
        (&domain["outcome"], &domain["findings"][0]["code"]),
        (&"ok".into(), &"disk-excluded".into())
    );
    let finished = node.vmsnap_with(&["status", "vm1"], &environment);
    assert!(
        finished
            .stdout
            .contains("  Left out: vdb, --exclude-disk names it\n"),
        "{finished:#?}"
    );
}

#[test]
fn a_mark_in_the_metadata_leaves_a_disk_out() {
    let mut node = node(&[("vm1", SHUT_OFF)], SHAREABLE);
    node.metadata =
        "<metadata><vmsnap:backup xmlns:vmsnap='urn:vmsnap:domain:1'><vmsnap:exclude disk='vdb'/>\
                     </vmsnap:backup></metadata>"
            .to_owned();
    node.write();
    let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT"]);
    ends(
        &finished,
        0,
        "vm1: disk vdb is left out: the domain's metadata excludes it\n",
    );
}

#[test]
fn a_misspelt_exclusion_is_refused_or_reported() {
    let node = node(&[("vm1", SHUT_OFF)], "");
    for word in ["vm1:", "vd*", "vm1:vda,vdb"] {
        let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT", "--exclude-disk", word]);
        ends(&finished, 64, "--exclude-disk");
    }
    assert_eq!(node.restore_points("vm1"), 0);
    let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT", "--exclude-disk", "vdz,vm9:vda"]);
    ends(
        &finished,
        0,
        "vm1: note: the domain has no disk 'vdz', which --exclude-disk excludes\n",
    );
    ends(
        &finished,
        0,
        "note: --exclude-disk vm9:vda matches no domain on this host\n",
    );
}

/// Asserts whether `backup --dry-run` and `status` leave out the encrypted disk `vdb`.
#[track_caller]
fn leaves_encrypted_out(node: &Node, words: &[&str], variable: Option<&str>, expected: bool) {
    let environment: Vec<(&str, &str)> = variable
        .map(|value| ("VMSNAP_STORE_DECRYPTED", value))
        .into_iter()
        .collect();
    let backup = [
        &["--backup", "--domains=vm1", "--output=OUT", "--dry-run", "--json"],
        words,
    ]
    .concat();
    let finished = node.vmsnap_with(&backup, &environment);
    let domain = &document(&finished)["domains"][0];
    assert_eq!(domain["partial"], expected, "{finished:#?}");
    assert_eq!(finished.code, Some(if expected { 9 } else { 0 }), "{finished:#?}");
    let finished = node.vmsnap_with(&[&["--status"], words].concat(), &environment);
    assert_eq!(
        finished.stdout.contains("  Left out: vdb, it is encrypted"),
        expected,
        "{finished:#?}"
    );
}

#[test]
fn store_decrypted_by_switch_and_variable() {
    let node = node(&[("vm1", SHUT_OFF)], ENCRYPTED);
    leaves_encrypted_out(&node, &[], None, true);
    for value in ["yes", "1", "True", "on"] {
        leaves_encrypted_out(&node, &[], Some(value), false);
    }
    for value in ["no", "0", "FALSE", "off", ""] {
        leaves_encrypted_out(&node, &[], Some(value), true);
        leaves_encrypted_out(&node, &["--storeDecrypted"], Some(value), false);
    }
    leaves_encrypted_out(&node, &["--storeDecrypted"], None, false);
    // The command line overrides the variable.
    for off in ["--storeDecrypted=false", "--no-store-decrypted"] {
        leaves_encrypted_out(&node, &[off], Some("yes"), true);
    }
}

#[test]
fn raw_disks_keep_the_classic_rule_and_are_named() {
    let node = node(&[("vm1", SHUT_OFF)], &format!("{RAW}{DRIVE}"));
    let finished = node.vmsnap(&["--backup", "--domains=vm1", "--output=OUT"]);
    ends(
        &finished,
        0,
        "vm1: note: disk vdb is not backed up: it is raw; give --raw",
    );
    assert!(
        finished
            .stdout
            .contains(", 1 disk (raw, not saved: vdb), no data, "),
        "{finished:#?}"
    );
    assert!(
        !finished.stderr.contains("sda"),
        "a CD drive is no disk: {finished:#?}"
    );
}

#[test]
fn the_document_of_a_failed_domain_has_its_findings() {
    let mut node = node(&[("vm1", SHUT_OFF)], "");
    node.replace = Some(SHAREABLE.to_owned());
    node.write();
    let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT", "--json"]);
    ends(&finished, 9, "there is nothing to back up");
    let domain = &document(&finished)["domains"][0];
    assert_eq!(
        (&domain["outcome"], &domain["findings"][0]["code"]),
        (&"failed".into(), &"disk-skipped".into())
    );
    let finished = node.vmsnap(&["backup", "vm1", "-o", "OUT", "--json", "--dry-run"]);
    ends(&finished, 9, "");
    assert_eq!(
        document(&finished)["domains"][0]["findings"][0]["code"],
        "disk-skipped"
    );
}
