//! The output of `list`, and the restore point that `--at` selects.

use vmsnap::cli::report::list::{Columns, text};
use vmsnap::cli::report::status::text as status_text;
use vmsnap::model::guest::BootLevel;
use vmsnap::model::restore_point::Consistency;
use vmsnap::ops::list::{BootProof, DomainList, list};
use vmsnap::ops::restore::{Format, Options, plan};
use vmsnap::ops::verify::Which;
use vmsnap::ops::{Cause, Class};

use crate::lab::{CLUSTER, InFolder, Lab, NAMES};
use crate::verify::{options as verification, run as verified};

fn options(lab: &Lab, at: &str) -> Options {
    Options {
        at: at.to_owned(),
        to: lab.free_path(),
        pool: None,
        disks: vec![],
        format: Some(Format::Qcow2),
        define: None,
    }
}

#[test]
fn a_point_is_found_by_id_checkpoint_time_and_as_the_latest() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    let first = lab.backup("vm1").expect("full").point.id;
    let second = lab.backup("vm1").expect("incremental").point.id;
    let cases = [
        ("latest", &second),
        (first.as_str(), &first),
        (NAMES[0], &first),
        (NAMES[1], &second),
        ("2026-11-03T02:05:00+01:00", &first),
        ("2030-01-01T00:00:00Z", &second),
    ];
    for (at, expected) in cases {
        let found = plan("vm1", lab.repo.as_ref(), None, &options(&lab, at)).expect("a plan");
        assert_eq!(&found.point.id, expected, "{at}");
    }
    for at in ["2020-01-01T00:00:00Z", "nonsense", "virtnbdbackup.9"] {
        let error = plan("vm1", lab.repo.as_ref(), None, &options(&lab, at)).expect_err("no such point");
        assert_eq!(error.class(), Class::NotFound, "{at}: {error}");
    }
}

#[test]
fn list_distinguishes_whole_from_broken_points() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER)]);
    lab.backup("vm1").expect("full");
    lab.backup("vm1").expect("incremental");
    let image = lab.history("vm1").kept[1].dir().join("vda.qcow2");
    std::fs::write(image, b"short").expect("written");
    let listed = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("readable");
    let whole: Vec<bool> = listed[0]
        .points
        .iter()
        .map(vmsnap::ops::list::Listed::is_whole)
        .collect();
    assert_eq!(whole, [true, false]);
    assert!(listed[0].points[1].faults[0].contains("has 5 bytes instead of"));
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", CLUSTER), ("vdb", CLUSTER)]);
    lab.backup("vm1").expect("full");
    let to = lab.free_path();
    std::fs::create_dir(&to).expect("new");
    std::fs::write(to.join("vdb.qcow2"), b"precious").expect("written");
    let error = plan("vm1", lab.repo.as_ref(), None, &options_to(to.clone())).expect_err("vdb.qcow2 exists");
    assert!(matches!(error.cause, Cause::Exists(_)), "{error}");
    assert_eq!(std::fs::read(to.join("vdb.qcow2")).expect("there"), b"precious");
    let file = to.join("one.qcow2");
    let error = plan("vm1", lab.repo.as_ref(), None, &options_to(file)).expect_err("two disks, one file");
    assert_eq!(error.class(), Class::Usage, "{error}");
}

fn options_to(to: std::path::PathBuf) -> Options {
    Options {
        at: "latest".into(),
        to,
        pool: None,
        disks: vec![],
        format: Some(Format::Qcow2),
        define: None,
    }
}

/// Runs `vmsnap list` and returns its exit code and standard output. Its stderr has to contain
/// `stderr`.
fn typed(lab: &Lab, arguments: &[&str], stderr: &str) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmsnap"))
        .arg("list")
        .args(arguments)
        .arg("--repository")
        .arg(lab.root())
        .output()
        .expect("the program runs");
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.contains(stderr), "{told}");
    (
        output.status.code(),
        String::from_utf8(output.stdout).expect("text"),
    )
}

#[test]
fn a_list_that_failed_does_not_claim_emptiness() {
    let empty = Lab::new();
    let (code, stdout) = typed(&empty, &[], "");
    assert_eq!(
        (code, stdout.starts_with("No restore points in ")),
        (Some(0), true)
    );

    let lab = Lab::with_three_points();
    let (code, stdout) = typed(&lab, &["nobody"], "No matching domains found for: nobody");
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    let folder = lab.root().join("vm1");
    std::fs::rename(&folder, lab.folder.path().join("moved")).expect("moved");
    std::os::unix::fs::symlink("vm1", &folder).expect("linked");
    let (code, stdout) = typed(&lab, &[], &folder.display().to_string());
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    let (code, stdout) = typed(&lab, &["--json"], &folder.display().to_string());
    let document: serde_json::Value = serde_json::from_str(&stdout).expect("a document");
    assert_eq!(
        (code, document["domains"].as_array().map(Vec::len)),
        (Some(3), Some(0))
    );
}

/// Three restore points with fixed sizes. `verify --deep` has read the last one, and `verify` the
/// first two some days later.
fn three_listed(lab: &Lab) -> Vec<DomainList> {
    let mut deep = verification(lab, Which::All);
    deep.deep = true;
    verified(lab, &deep).expect("sound");
    let mut listed = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("readable");
    let points = &mut listed[0].points;
    for (point, size) in points.iter_mut().zip([4_310_000_000, 88_200_000, 999_000_000]) {
        point.size = size;
        point.point.disks[0].data_bytes = 2 * size;
    }
    points[0].point.consistency = Consistency::Filesystem;
    points[1].point.consistency = Consistency::Crash;
    points[2].point.consistency = Consistency::Offline;
    for point in &mut points[..2] {
        let proof = point.proof.as_mut().expect("it was verified");
        proof.deep_time = Some(proof.time);
        proof.deep = false;
        proof.time = "2026-11-20T02:00:00Z".parse().expect("a time");
    }
    listed
}

#[test]
fn a_list_fits_on_80_columns() {
    let lab = Lab::with_three_points();
    let mut listed = three_listed(&lab);
    let narrow = text(&listed, &lab.repo.location(), Columns::Fitting(80));
    let expected = "\
Restore points of vm1:
  ID (UTC)              KIND     DATA     SIZE  GUEST   CHAIN  VERIFIED
  2026-11-03T01-00-00Z  full  8.62 GB  4.31 GB  frozen  whole  2026-11-20
  2026-11-03T01-10-00Z  inc    176 MB  88.2 MB  crash   whole  2026-11-20
  2026-11-03T01-20-00Z  inc      2 GB   999 MB  off     whole  2026-11-03 deep
";
    assert_eq!(narrow, expected);

    // Cells that are longer than the others in their columns.
    listed[0].points[0].size = 1_020;
    listed[0].points[0].point.disks[0].data_bytes = 999_999;
    listed[0].points[0].faults = vec!["gone".to_owned()];
    listed[0].points[1].suspected_damage = Some("damaged".to_owned());
    let widest = text(&listed, &lab.repo.location(), Columns::Fitting(80));
    assert!(
        widest.contains("  BROKEN  ") && widest.contains("  DAMAGED  "),
        "{widest}"
    );
    let too_wide: Vec<&str> = widest.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(too_wide.is_empty(), "{too_wide:#?}");
}

/// Records a boot proof of a restore point.
fn boot(lab: &Lab, place: usize, reached: BootLevel, shortfall: Option<&str>) {
    let history = lab.history("vm1");
    let manifest = &history.kept[place].manifest;
    let proof = BootProof {
        id: manifest.point.id.clone(),
        manifest: manifest.digest.clone(),
        time: "2026-11-21T02:00:00Z".parse().expect("a time"),
        reached,
        wanted: BootLevel::Same,
        pattern: None,
        command: Vec::new(),
        shortfall: shortfall.map(str::to_owned),
        seconds: 9,
    };
    let domain = lab.repo.domain("vm1").expect("a name that fits");
    domain.keep_boot_proof(&proof).expect("recorded");
}

#[test]
fn a_list_shows_the_last_boot_proofs() {
    let lab = Lab::with_three_points();
    verified(&lab, &verification(&lab, Which::All)).expect("sound");
    boot(&lab, 0, BootLevel::Agent, None);
    boot(&lab, 2, BootLevel::Read, None);
    boot(
        &lab,
        1,
        BootLevel::Agent,
        Some("no ext4 file system is mounted at \"/srv\""),
    );
    let listed = list(lab.repo.as_ref(), &["vm1".to_owned()]).expect("a list");
    let shown = |columns| text(&listed, &lab.repo.location(), columns);
    let line =
        "  2026-11-03T01-10-00Z: not proven to boot: no ext4 file system is mounted at \"/srv\" (2026-11-21)";
    let normal = shown(Columns::Fitting(120));
    let rows: Vec<&str> = normal.lines().collect();
    assert!(
        rows[2].ends_with("  2026-11-03, booted") && rows[3].ends_with("  2026-11-03"),
        "{normal}"
    );
    assert!(
        rows[4].ends_with("  2026-11-03"),
        "only its firmware may have run: {normal}"
    );
    assert_eq!(rows[5..], [line], "{normal}");
    // The mark goes before any column.
    let width = rows[2].chars().count() - 1;
    let narrow = shown(Columns::Fitting(width));
    assert!(!narrow.contains("booted") && narrow.contains("GUEST"), "{narrow}");
    let wide = shown(Columns::Wide);
    let rows: Vec<&str> = wide.lines().collect();
    assert!(rows[2].contains("  2026-11-21 agent  "), "{wide}");
    assert!(rows[3].contains("  2026-11-21 not proven  "), "{wide}");
    assert!(rows[5..].contains(&line), "{wide}");

    let (code, stdout) = typed(&lab, &["--json"], "");
    assert_eq!(code, Some(0));
    let document: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let points = &document["domains"][0]["restorePoints"];
    assert_eq!(
        points[0]["bootProof"],
        serde_json::json!({
            "time": "2026-11-21T02:00:00Z", "reached": "agent", "wanted": "same", "proven": true,
            "shortfall": null, "seconds": 9,
        })
    );
    assert_eq!(points[1]["bootProof"]["proven"], false);
    assert_eq!(points[2]["bootProof"]["reached"], "read");

    let newest = lab.status("vm1").boot_proof.expect("it was booted");
    assert_eq!(newest.reached, BootLevel::Read, "the newest restore point counts");
    let of_newest = |shortfall| {
        boot(&lab, 2, BootLevel::Agent, shortfall);
        status_text(&lab.status("vm1"), false)
    };
    let proven = of_newest(None);
    let line = ", sound\n  Last boot proof: 2026-11-21T02:00:00Z, proven (agent)\n";
    assert!(proven.contains(line), "{proven}");
    let failed = of_newest(Some("it did not answer"));
    let line = "  Last boot proof: 2026-11-21T02:00:00Z, NOT PROVEN: it did not answer\n";
    assert!(failed.contains(line), "{failed}");
}

#[test]
fn columns_of_a_list_are_left_out_on_narrow_lines() {
    let lab = Lab::with_three_points();
    let mut listed = three_listed(&lab);
    let titles = |listed: &[DomainList], width| {
        let shown = text(listed, &lab.repo.location(), Columns::Fitting(width));
        let widest = shown.lines().map(|line| line.chars().count()).max();
        let titles = shown.lines().nth(1).expect("a table").to_owned();
        let titles: Vec<String> = titles.split_whitespace().map(str::to_owned).collect();
        (titles.join(" "), widest.expect("lines") <= width)
    };
    let cases = [
        (200, "ID (UTC) KIND DATA SIZE GUEST CHAIN VERIFIED", true),
        (78, "ID (UTC) KIND DATA SIZE GUEST CHAIN VERIFIED", true),
        (77, "ID (UTC) KIND DATA SIZE CHAIN VERIFIED", true),
        (61, "ID (UTC) KIND SIZE CHAIN VERIFIED", true),
        (60, "ID (UTC) KIND CHAIN VERIFIED", true),
        (46, "ID (UTC) CHAIN VERIFIED", true),
        (45, "ID (UTC) CHAIN", true),
        (10, "ID (UTC) CHAIN", false),
    ];
    for (width, expected, fits) in cases {
        assert_eq!(titles(&listed, width), (expected.to_owned(), fits), "{width}");
    }
    // The longest cells of all columns: the terminal's width is kept nevertheless.
    listed[0].points[2].point.id.push_str("-2");
    listed[0].points[1].suspected_damage = Some("damaged".to_owned());
    assert_eq!(
        titles(&listed, 80),
        ("ID (UTC) KIND DATA SIZE CHAIN VERIFIED".to_owned(), true)
    );
}

#[test]
fn list_wide_has_checkpoints_periods_and_deep_days() {
    let lab = Lab::with_three_points();
    let wide = text(&three_listed(&lab), &lab.repo.location(), Columns::Wide);
    let lines: Vec<&str> = wide.lines().collect();
    assert_eq!(
        lines[1]
            .split("  ")
            .filter(|title| !title.is_empty())
            .map(str::trim)
            .collect::<Vec<_>>(),
        [
            "ID (UTC)",
            "LEVEL",
            "DATA",
            "SIZE",
            "CHECKPOINT",
            "CONSISTENCY",
            "CHAIN",
            "VERIFIED",
            "BOOTED",
            "PERIOD"
        ]
    );
    assert_eq!(
        lines[2],
        format!(
            "  2026-11-03T01-00-00Z  full         8.62 GB  4.31 GB  {}  file systems frozen  whole  \
             2026-11-20 (deep 2026-11-03)  -       vmsnap-backup-monthly-2026-11",
            NAMES[0]
        )
    );
    let (code, stdout) = typed(&lab, &["--wide"], "");
    assert_eq!(
        (code, stdout.matches("vmsnap-backup-monthly-2026-11").count()),
        (Some(0), 3)
    );
    let (code, stdout) = typed(&lab, &[], "");
    assert_eq!((code, stdout.contains("vmsnap-backup-monthly")), (Some(0), false));
}
