//! Missed writes when recording them or the comparison itself fails.

use vmsnap::cli::exit_code::ExitCode;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::compare::Verdict;

use super::{answer, lab, run};
use crate::lab::{CLUSTER, InFolder, Lab, NAMES};

#[test]
fn missed_write_is_recorded_even_if_comparison_then_fails() {
    // The job cannot be ended; the export breaks on the same disk; the export breaks on the next
    // disk.
    let failures: [&dyn Fn(&Lab); 3] = [
        &|lab| lab.host.fail_end(true),
        &|lab| lab.host.fail_reads_after(Some((20 * CLUSTER) as u64)),
        &|lab| {
            let image = lab.history("vm1").kept[0].dir().join("vdb.qcow2");
            let size = image.metadata().expect("it is there").len();
            std::fs::write(&image, vec![0; size as usize]).expect("overwritten");
        },
    ];
    for (case, fail) in failures.iter().enumerate() {
        let mut lab = lab();
        lab.host
            .disk("vm1", "vda", |disk| disk.swap_content(12 * CLUSTER, &[77; 10]));
        fail(&lab);
        run(&mut lab, None).expect_err("it fails");
        lab.host.fail_end(false);
        lab.host.fail_reads_after(None);
        let told = lab.recorder.findings();
        assert!(
            told.iter().any(|finding| finding.code == "missed-write"),
            "case {case}: {told:?}"
        );
        let point = lab.backup("vm1").expect("healed").point;
        let disk = point.disk("vda").expect("it is there");
        assert_eq!(disk.level, Level::Full, "case {case}");
        assert!(
            disk.reason.contains("found a write that a bitmap"),
            "case {case}: {}",
            disk.reason
        );
        assert_eq!(
            lab.restored("vm1", "latest", "vda").expect("restored"),
            lab.disk("vm1", "vda")
        );
    }
}

/// The newest point cannot be compared for a while, because its bitmap or its image is missing.
#[test]
fn missed_write_found_by_older_point_counts_for_newest() {
    let away = |lab: &Lab| {
        let image = lab.history("vm1").kept[1].dir().join("vda.qcow2");
        let away = lab.folder.path().join("away");
        (image, away)
    };
    for is_bitmap in [true, false] {
        let mut lab = lab();
        lab.host
            .disk("vm1", "vda", |disk| disk.swap_content(12 * CLUSTER, &[77; 10]));
        let (image, away) = away(&lab);
        if is_bitmap {
            lab.host.disk("vm1", "vda", |disk| disk.remove_bitmap(NAMES[1]));
        } else {
            std::fs::rename(&image, &away).expect("away");
        }
        let outcome = run(&mut lab, None).expect("compared");
        let oldest = lab.history("vm1").kept[0].manifest.point.id.clone();
        assert_eq!(
            (outcome.disks[0].point.as_str(), outcome.disks[0].differing),
            (oldest.as_str(), 1)
        );
        assert_eq!(run(&mut lab, None).expect("again").verdict(), Verdict::Differs);
        assert_eq!(lab.history("vm1").chains.standing_missed_writes().count(), 1);
        if !is_bitmap {
            std::fs::rename(&away, &image).expect("back");
        }
        let point = lab.backup("vm1").expect("saved").point;
        let disk = point.disk("vda").expect("it is there");
        assert_eq!(disk.level, Level::Full);
        assert!(
            disk.reason.contains("found a write that a bitmap"),
            "{}",
            disk.reason
        );
        lab.assert_gives_back("vm1", "vda");
        assert_eq!(lab.history("vm1").chains.standing_missed_writes().count(), 0);
    }
}

#[test]
fn missed_write_that_cannot_be_recorded_is_still_reported() {
    let mut lab = lab();
    lab.host
        .disk("vm1", "vda", |disk| disk.swap_content(12 * CLUSTER, &[77; 10]));
    std::fs::write(lab.root().join("vm1/.verified"), "in the way").expect("written");
    let outcome = run(&mut lab, None).expect("compared");
    let (lines, code) = answer(&outcome);
    assert_eq!(code, ExitCode::Damaged, "{lines}");
    assert!(lines.contains("cannot be recorded"), "{lines}");
    let told = lab.recorder.findings();
    assert!(
        told.iter().any(|finding| finding.code == "missed-write-not-kept"),
        "{told:?}"
    );
}
