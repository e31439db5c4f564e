//! Records of verifications that were stopped or overlapped with another one.

use jiff::{Span, Timestamp};
use vmsnap::model::restore_point::Level;
use vmsnap::model::stop::{Stop, StopReason};
use vmsnap::ops::monitor::Silent;
use vmsnap::ops::verify::{Options, Which, verify};
use vmsnap::ops::{Cause, Event, Monitor};

use super::{lately, level, listed, records};
use crate::lab::{CLUSTER, InFolder, Lab};
use crate::verify::{all, flip, lab, options, run, words};

/// Requests a stop after a file whose name ends like this has been read.
struct StopBehind<'a>(&'a Stop, &'a str);

impl Monitor for StopBehind<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::FileEnds { file, .. } = event
            && file.ends_with(self.1)
        {
            self.0.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn damage_is_recorded_if_stopped_before_it_is_located() {
    let mut lab = Lab::new();
    lab.host.add_domain("vm1", &[("vda", 40 * CLUSTER)]);
    lab.host
        .disk("vm1", "vda", |disk| disk.write(0, &[5; 40 * CLUSTER]));
    lab.backup_with("vm1", &Lab::plain()).expect("a restore point");
    flip(&lab.history("vm1").kept[0].dir().join("vda.qcow2"), 2_200_000, 0);
    let stop = Stop::default();
    let monitor = StopBehind(&stop, "vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &monitor,
        &stop,
    );
    let outcome = outcome.expect("something was found");
    assert!(words(&outcome).contains("vda.qcow2"), "{}", words(&outcome));
    assert!(outcome.ended.is_some());
    assert!(listed(&lab)[0].suspected_damage.is_some());
}

#[test]
fn stopped_verify_keeps_damage_it_did_not_reach() {
    let mut lab = lab();
    let first = lab.history("vm1").kept[0].dir().clone();
    for image in ["vda.qcow2", "vdb.qcow2"] {
        flip(&first.join(image), 70_000, 0);
    }
    assert!(!all(&lab).is_sound());
    lab.pass(Span::new().hours(1));
    let stop = Stop::default();
    let monitor = StopBehind(&stop, "vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &monitor,
        &stop,
    );
    assert!(outcome.expect("something was found").ended.is_some());
    let chains = lab.history("vm1").chains;
    let id = &chains.points()[0].point.id;
    assert!(chains.suspected_damage(id, "vda").is_some() && chains.suspected_damage(id, "vdb").is_some());
}

#[test]
fn stopped_verify_keeps_an_unreadable_damage_record() {
    let mut lab = lab();
    let first = lab.history("vm1").kept[0].dir().clone();
    for image in ["vda.qcow2", "vdb.qcow2"] {
        flip(&first.join(image), 70_000, 0);
    }
    assert!(!all(&lab).is_sound());
    let record = records(&lab)
        .into_iter()
        .find(|path| path.to_string_lossy().contains(".damaged."));
    flip(&record.expect("it is remembered"), 20, 1);
    lab.pass(Span::new().hours(1));
    let stop = Stop::default();
    let monitor = StopBehind(&stop, "vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &monitor,
        &stop,
    );
    assert!(outcome.expect("something was found").ended.is_some());
    let chains = lab.history("vm1").chains;
    let id = &chains.points()[0].point.id;
    assert!(chains.suspected_damage(id, "vda").is_some() && chains.suspected_damage(id, "vdb").is_some());
}

#[test]
fn partly_read_point_does_not_prove_its_chain_sound() {
    let lab = lab();
    let kept = lab.history("vm1").kept;
    flip(&kept[0].dir().join("vda.qcow2"), 70_000, 0);
    let second = kept[1]
        .dir()
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let stop = Stop::default();
    let file = format!("{second}/vda.qcow2");
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &StopBehind(&stop, &file),
        &stop,
    );
    assert!(outcome.expect("something was found").ended.is_some());
    let proved: Vec<bool> = listed(&lab).iter().map(|point| point.proof.is_some()).collect();
    assert_eq!(proved, [true, false, false]);
}

/// Requests a stop while a file whose name ends like this is being read.
struct StopAt<'a>(&'a Stop, &'a str);

impl Monitor for StopAt<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::FileBegins { file, .. } = event
            && file.ends_with(self.1)
        {
            self.0.request(StopReason::Interrupted);
        }
    }
}

#[test]
fn damage_found_before_a_stop_is_recorded() {
    let lab = lab();
    let first = &lab.history("vm1").kept[0];
    let names: Vec<&str> = first
        .manifest
        .files
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    let (damaged, later) = (names[0], *names.last().expect("several"));
    flip(&first.dir().join(damaged), 10, 0);
    let stop = Stop::default();
    let outcome = verify(
        "vm1",
        lab.repo.as_ref(),
        &options(&lab, Which::All),
        &StopAt(&stop, later),
        &stop,
    );
    let outcome = outcome.expect("something was found");
    assert!(words(&outcome).contains(damaged), "{}", words(&outcome));
    assert!(matches!(
        outcome.ended.map(|error| error.cause),
        Some(Cause::Stopped(StopReason::Interrupted))
    ));
    assert!(listed(&lab)[0].suspected_damage.is_some());
    let sound = self::lab();
    let nothing = verify(
        "vm1",
        sound.repo.as_ref(),
        &options(&sound, Which::All),
        &Silent,
        &stop,
    );
    assert!(nothing.is_err(), "nothing was read");
}

/// A deep verification of the newest point reads the image of the first, which was verified
/// recently and is damaged since.
#[test]
fn deep_verify_records_parent_damage_with_the_parent() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    flip(&lab.history("vm1").kept[0].dir().join("vda.qcow2"), 100_000, 3);
    let latest = Options {
        deep: true,
        ..options(&lab, Which::Latest)
    };
    assert!(!lately(&mut lab, &latest).is_sound());
    let first = lab.history("vm1").kept[0].proof.clone().expect("it was read");
    assert!(!first.is_sound(), "its image is the damaged one");
    let shallow = options(&lab, Which::All);
    assert!(
        !lately(&mut lab, &shallow).is_sound(),
        "the damage is still recorded"
    );
    assert_eq!(level(&mut lab, "vda"), Level::Full, "nothing depends on it");
}

/// As above, but the verification stops before it determines which restore point is damaged.
#[test]
fn shallow_verify_keeps_damage_of_a_stopped_deep_one() {
    let mut lab = lab();
    assert!(all(&lab).is_sound());
    let kept = lab.history("vm1").kept;
    let newest = kept.last().expect("several").manifest.point.id.clone();
    flip(&kept[0].dir().join("vda.qcow2"), 100_000, 3);
    lab.pass(Span::new().hours(24));
    let deep = Options {
        deep: true,
        verified_since: Some(Timestamp::UNIX_EPOCH),
        ..options(&lab, Which::Latest)
    };
    let stop = Stop::default();
    let behind_vda = format!("disk vdb of {newest}");
    let stopped = verify(
        "vm1",
        lab.repo.as_ref(),
        &deep,
        &StopAt(&stop, &behind_vda),
        &stop,
    );
    let stopped = stopped.expect("something was found");
    assert!(
        stopped.ended.is_some() && !stopped.is_sound(),
        "{}",
        words(&stopped)
    );
    let shallow = options(&lab, Which::All);
    assert!(
        !lately(&mut lab, &shallow).is_sound(),
        "the damage is still recorded"
    );
    let first = lab.history("vm1").kept[0].proof.clone().expect("it was read");
    assert!(!first.is_sound(), "its image is the damaged one");
    assert_eq!(level(&mut lab, "vda"), Level::Full, "nothing depends on it");
}

/// Does something once, when the first file is about to be read.
struct Meanwhile<'a>(std::sync::Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>);

impl<'a> Meanwhile<'a> {
    fn new(action: impl FnOnce() + Send + 'a) -> Meanwhile<'a> {
        Meanwhile(std::sync::Mutex::new(Some(Box::new(action))))
    }
}

impl Monitor for Meanwhile<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::FileBegins { .. } = event {
            let action = self.0.lock().expect("no panic").take();
            action.into_iter().for_each(|action| action());
        }
    }
}

/// A second verification begins later but ends first. The image was still sound when it read it.
#[test]
fn later_verify_with_older_reads_does_not_hide_damage() {
    let lab = lab();
    let earlier = options(&lab, Which::All);
    let later = Options {
        now: lab
            .now
            .checked_add(Span::new().minutes(10))
            .expect("a time")
            .timestamp(),
        ..earlier.clone()
    };
    let image = lab.history("vm1").kept[0].dir().join("vda.qcow2");
    let meanwhile = Meanwhile::new(|| {
        assert!(run(&lab, &later).expect("proved").is_sound());
        flip(&image, 100_000, 3);
    });
    let outcome = verify("vm1", lab.repo.as_ref(), &earlier, &meanwhile, &Stop::default()).expect("proved");
    assert!(!outcome.is_sound());
    assert!(
        listed(&lab)[0].suspected_damage.is_some(),
        "no verification has disproved it"
    );
    // A verification that knows of the damage disproves it.
    flip(&image, 100_000, 3);
    assert!(all(&lab).is_sound());
    assert!(listed(&lab)[0].suspected_damage.is_none());
}

/// The reverse: a verification with an earlier time reads the image while it is damaged. The outer
/// one reads it after its repair.
#[test]
fn damage_found_meanwhile_survives_an_earlier_verify() {
    let lab = lab();
    let options = options(&lab, Which::All);
    let earlier = Options {
        now: lab
            .now
            .checked_sub(Span::new().minutes(10))
            .expect("a time")
            .timestamp(),
        ..options.clone()
    };
    let image = lab.history("vm1").kept[2].dir().join("vda.qcow2");
    let meanwhile = Meanwhile::new(|| {
        flip(&image, 70_000, 3);
        assert!(!run(&lab, &earlier).expect("proved").is_sound());
        flip(&image, 70_000, 3);
    });
    assert!(
        verify("vm1", lab.repo.as_ref(), &options, &meanwhile, &Stop::default())
            .expect("proved")
            .is_sound()
    );
    assert!(listed(&lab)[2].suspected_damage.is_some());
}
