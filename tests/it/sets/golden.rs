//! Sets that virtnbdbackup wrote (`tests/data/make-sets.sh`), with every verb.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmsnap::model::compression::Compression;
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::Stop;
use vmsnap::ops::Cause;
use vmsnap::ops::each::Judged;
use vmsnap::ops::list::list;
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::restore::{self, Format};
use vmsnap::ops::retention::Policy;
use vmsnap::ops::transfer::{self, Wanted};
use vmsnap::ops::verify::{Options, Which, verify};
use vmsnap::repo::{RepoError, Repository, SmallFile};

use super::{KIB, codes, ids, open, part, read};
use crate::lab::{Lab, tree};

const DOMAIN: &str = "golden";

/// A set that virtnbdbackup wrote.
struct Golden {
    version: &'static str,
    set: &'static str,
    /// The level of each restore point, and its disks.
    points: &'static [(Level, &'static [&'static str])],
}

const ALL: &[&str] = &["vda", "vdb", "vdc"];
const SAVED: &[&str] = &["vda", "vdb"];
const STORY: &[(Level, &[&str])] = &[
    (Level::Full, ALL),
    (Level::Incremental, SAVED),
    (Level::Incremental, SAVED),
    (Level::Incremental, SAVED),
];

const SETS: [Golden; 4] = [
    Golden {
        version: "1.9.15",
        set: "plain",
        points: STORY,
    },
    Golden {
        version: "1.9.15",
        set: "lz4",
        points: &[(Level::Full, SAVED), (Level::Incremental, SAVED)],
    },
    Golden {
        version: "1.9.15",
        set: "copy",
        points: &[(Level::Full, ALL)],
    },
    Golden {
        version: "2.47",
        set: "plain",
        points: STORY,
    },
];

impl Golden {
    fn dir(&self) -> PathBuf {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sets");
        data.join(self.version).join(self.set)
    }

    /// What a disk held when this backup was made.
    fn held(&self, number: usize, target: &str) -> Vec<u8> {
        let path = self
            .dir()
            .with_file_name(format!("{}.{number}.{target}.runs", self.set));
        let text = fs::read_to_string(path).expect("it is in tests/data");
        let mut lines: Vec<Vec<usize>> = text
            .lines()
            .map(|line| {
                line.split(' ')
                    .map(|word| word.parse().expect("a number"))
                    .collect()
            })
            .collect();
        let mut bytes = vec![0; lines.pop().expect("the length")[0]];
        for run in lines {
            bytes[run[0]..run[0] + run[1]].fill(run[2] as u8);
        }
        bytes
    }

    /// What the set holds: from version 2.21 on, virtnbdbackup leaves out ranges that became zero.
    fn holds(&self, number: usize, target: &str) -> Vec<u8> {
        let mut bytes = self.held(number, target);
        if self.version == "2.47" && number >= 2 {
            match target {
                "vda" => bytes[..8 * KIB].fill(0x11),
                "vdb" => bytes[64 * KIB..128 * KIB].fill(0x21),
                _ => {}
            }
        }
        bytes
    }
}

#[test]
fn points_give_back_what_the_set_holds() {
    for golden in SETS {
        let (part, history) = part(&open(&golden.dir()), DOMAIN);
        assert!(history.findings.is_empty(), "{:?}", history.findings);
        let points = history.chains.points();
        assert_eq!(points.len(), golden.points.len());
        for (number, (kept, (level, disks))) in points.iter().zip(golden.points).enumerate() {
            let point = &kept.point;
            assert_eq!(point.level, *level, "{}", point.id);
            let targets: Vec<&str> = point.disks.iter().map(|disk| disk.target.as_str()).collect();
            assert_eq!(targets, *disks, "{}", point.id);
            assert_eq!(history.chains.faults(&point.id), [""; 0]);
            for target in targets {
                let bytes = read(part.as_ref(), &point.id, target).expect("it is sound");
                assert!(
                    bytes == golden.holds(number, target),
                    "{} {number} {target}",
                    golden.version
                );
            }
        }
    }
}

#[test]
fn missing_zeroes_are_reported_where_they_may_be_missing() {
    for golden in SETS {
        let (_, history) = part(&open(&golden.dir()), DOMAIN);
        for (id, (level, _)) in ids(&history).iter().zip(golden.points) {
            let is_reported = codes(&history, id)
                .iter()
                .any(|code| code == "zeroes-may-be-missing");
            let may_lack = golden.version == "2.47" && *level == Level::Incremental;
            assert_eq!(is_reported, may_lack, "{} {id}", golden.version);
        }
    }
}

/// Without the log nothing shows which version wrote a file.
#[test]
fn missing_log_makes_zeroes_doubtful() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    crate::lab::copy_tree(&SETS[0].dir(), folder.path());
    for name in fs::read_dir(folder.path()).expect("a folder") {
        let path = name.expect("an entry").path();
        if path.extension().is_some_and(|ending| ending == "log") {
            fs::remove_file(path).expect("removed");
        }
    }
    let (_, history) = part(&open(folder.path()), DOMAIN);
    let id = &ids(&history)[1];
    let point = &history.get(id).expect("it is there").manifest.point;
    let finding = point
        .findings
        .iter()
        .find(|finding| finding.code == "zeroes-may-be-missing");
    let message = &finding.expect("it is reported").message;
    assert!(
        message.contains("vda.inc.virtnbdbackup.1.data, vdb.inc"),
        "{message}"
    );
    assert!(
        message.contains("virtnbdbackup from 2.21 on leaves such ranges out"),
        "{message}"
    );
}

#[test]
fn checkpoints_and_times_come_from_the_set() {
    let (_, history) = part(&open(&SETS[3].dir()), DOMAIN);
    let points = history.chains.points();
    let names: Vec<_> = points
        .iter()
        .map(|kept| {
            kept.point
                .checkpoint
                .as_ref()
                .map(|checkpoint| checkpoint.name.as_str())
        })
        .collect();
    let expected = [
        Some("virtnbdbackup.0"),
        Some("virtnbdbackup.1"),
        Some("virtnbdbackup.2"),
        None,
    ];
    assert_eq!(names, expected);
    for pair in points.windows(2) {
        assert!(pair[0].point.time < pair[1].point.time && pair[0].point.sequence < pair[1].point.sequence);
    }
    // The differential backup depends on the last checkpoint, not on the backup before it.
    let parents: Vec<_> = points.iter().map(|kept| kept.point.parent.as_deref()).collect();
    let id = |number: usize| Some(points[number].point.id.as_str());
    assert_eq!(parents, [None, id(0), id(1), id(2)]);
}

#[test]
fn every_point_is_verified_and_says_what_was_proved() {
    for golden in SETS {
        for deep in [false, true] {
            let options = Options {
                which: Which::All,
                deep,
                verified_since: None,
                now: "2026-12-01T00:00:00Z".parse().expect("a time"),
            };
            let repository = open(&golden.dir());
            let outcome =
                verify(DOMAIN, &repository, &options, &Silent, &Stop::default()).expect("it verifies");
            assert!(
                outcome.is_sound(),
                "{:?}",
                outcome.all_damage().collect::<Vec<_>>()
            );
            assert_eq!(outcome.points.len(), golden.points.len());
            let codes: Vec<&str> = outcome
                .findings
                .iter()
                .map(|finding| finding.code.as_str())
                .collect();
            let count = |wanted: &str| codes.iter().filter(|code| **code == wanted).count();
            assert_eq!(count("weak-checksums"), 1);
            assert_eq!(count("proof-not-kept"), 1);
            let unchecked = match (golden.version, golden.set) {
                // Compressed data has checksums of its own, positions in increments do not.
                ("1.9.15", "lz4") => golden.points.len() - 1,
                (_, "lz4") => 0,
                // Raw files have none.
                ("2.47", _) => 1,
                (_, _) => golden.points.len(),
            };
            assert_eq!(
                count("checksum-missing"),
                unchecked,
                "{} {}",
                golden.version,
                golden.set
            );
        }
    }
}

#[test]
fn nothing_is_written_to_a_set() {
    for golden in SETS {
        let before = tree(&golden.dir());
        let repository = open(&golden.dir());
        let part = repository.domain(DOMAIN).expect("a name that fits");
        let refused = part.try_lock().err().expect("it is refused");
        assert!(matches!(refused, RepoError::ReadOnly { .. }), "{refused}");
        assert!(
            refused
                .to_string()
                .contains("holds backups of virtnbdbackup, which vmsnap can only read")
        );
        assert!(repository.ensure_identity().is_err());
        assert_eq!(tree(&golden.dir()), before);
    }
}

#[test]
fn disks_are_restored_and_the_list_warns() {
    let golden = &SETS[3];
    let repository = open(&golden.dir());
    let lists = list(&repository, &[DOMAIN.to_owned()]).expect("it lists");
    assert_eq!(lists[0].points.len(), 4);
    assert!(lists[0].points.iter().all(|listed| listed.is_whole()));
    assert_eq!(lists[0].points[1].cautions().count(), 1);
    let lab = Lab::new();
    let to = lab.free_path();
    let options = restore::Options {
        at: "virtnbdbackup.2".to_owned(),
        to: to.clone(),
        format: Some(Format::Raw),
        ..lab.restoring()
    };
    let plan = restore::plan(DOMAIN, &repository, None, &options).expect("it can be restored");
    let warned: Vec<&str> = plan
        .findings
        .iter()
        .map(|finding| finding.message.as_str())
        .collect();
    assert!(
        warned
            .iter()
            .any(|what| what.contains("vda.inc.virtnbdbackup.1.data")),
        "{warned:?}"
    );
    assert!(
        warned
            .iter()
            .any(|what| what.contains("vda.inc.virtnbdbackup.2.data")),
        "{warned:?}"
    );
    let means = restore::Means {
        repo: &repository,
        ..lab.means(&Silent, &lab.stop)
    };
    restore::restore(DOMAIN, plan, &means).expect("it is restored");
    for target in SAVED {
        let bytes = fs::read(to.join(format!("{target}.raw"))).expect("the restored disk");
        assert!(bytes == golden.holds(2, target), "{target}");
    }
}

#[test]
fn copies_are_restore_points_of_vmsnap() {
    for golden in SETS {
        let from = open(&golden.dir());
        let lab = Lab::new();
        let means = || transfer::Means {
            from: &from,
            to: lab.repo.as_ref(),
            now: lab.now.clone(),
            monitor: &Silent,
            stop: &lab.stop,
        };
        let options = transfer::Options {
            wanted: Wanted::All,
            policy: Policy::default(),
            compression: Compression::default(),
            wait: Duration::ZERO,
        };
        let outcome = transfer::transfer(DOMAIN, &means(), &options).expect("it copies");
        assert!(
            outcome.faults().is_empty() && outcome.failure.is_none(),
            "{outcome:?}"
        );
        assert_eq!(outcome.copied.as_ref().map(Vec::len), Some(golden.points.len()));
        let (copies, history) = part(lab.repo.as_ref(), DOMAIN);
        let originals = part(&from, DOMAIN).1;
        for (number, (id, (level, targets))) in ids(&originals).iter().zip(golden.points).enumerate() {
            let copy = history.get(id).expect("it was copied");
            assert_eq!(copy.manifest.point.level, *level, "{id}");
            assert_eq!(codes(&history, id), codes(&originals, id));
            for target in *targets {
                let bytes = read(copies.as_ref(), id, target).expect("it is sound");
                assert!(bytes == golden.holds(number, target), "{id} {target}");
            }
            let definition = copies
                .read_file(copy, SmallFile::Definition)
                .expect("it is there");
            assert!(String::from_utf8_lossy(&definition).contains("<name>golden</name>"));
            assert!(
                copies
                    .read_file(copy, SmallFile::Nvram)
                    .is_ok_and(|vars| vars == [b'V'; 4096])
            );
        }
        let again = transfer::transfer(DOMAIN, &means(), &options).expect("it works again");
        assert_eq!(
            again.copied.as_ref().map(Vec::len),
            Some(0),
            "copies are recognised"
        );
    }
}

#[test]
fn unknown_domains_have_no_points() {
    let repository = open(&SETS[0].dir());
    assert_eq!(repository.domains().expect("it lists"), [DOMAIN]);
    let lab = Lab::new();
    let error = restore::plan("other", &repository, None, &lab.restoring()).expect_err("there is none");
    assert!(matches!(error.cause, Cause::NoRestorePoints), "{error:?}");
}
