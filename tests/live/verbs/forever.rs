//! `--full never` with a policy, day after day on a running domain: what stays, what it gives back,
//! and what it takes on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::civil::Date;
use jiff::{Span, ToSpan};
use vmsnap::model::left_out::NOTHING_EXCLUDED;
use vmsnap::model::level::FullRule;
use vmsnap::model::period::GroupBy;
use vmsnap::model::restore_point::Level;
use vmsnap::ops::restore::Format;
use vmsnap::ops::retention::{Policy, Quota, RetentionOutcome, Rule};
use vmsnap::ops::status::{Subject, status};
use vmsnap::ops::verify;
use vmsnap::repo::Repository;

use crate::embed::{Kind, Shape, TestDomain, run_ok};
use crate::owner;
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const CLUSTER: usize = 65536;

/// Bytes of an image that are not data, at most.
const FRAME: u64 = MIB / 2;

/// The rules of a policy, each with the number of restore points that it keeps.
type Rules = [(Rule, usize)];

fn policy(rules: &Rules) -> Policy {
    let quota = |number: usize| Quota::AtMost(u32::try_from(number).expect("a small number"));
    rules.iter().fold(Policy::default(), |policy, (rule, number)| {
        policy.with(*rule, quota(*number))
    })
}

/// The days that the rules keep, of those that are there.
fn kept_of(there: &BTreeSet<Date>, rules: &Rules) -> BTreeSet<Date> {
    let mut kept = BTreeSet::new();
    for (rule, number) in rules {
        let mut newest: BTreeMap<(i16, i16), Date> = BTreeMap::new();
        for day in there {
            let week = day.iso_week_date();
            let bucket = match rule {
                Rule::Daily => (day.year(), day.day_of_year()),
                Rule::Weekly => (week.year(), week.week().into()),
                Rule::Monthly => (day.year(), day.month().into()),
                other => panic!("{other:?} is not modelled"),
            };
            newest.insert(bucket, *day);
        }
        kept.extend(newest.values().rev().take(*number));
        if newest.len() < *number {
            kept.extend(there.first());
        }
    }
    kept
}

/// A day's backup.
struct Day {
    id: String,
    /// The digest of the disk.
    disk: blake3::Hash,
    /// The clusters in which the disk differs from the day before.
    changed: BTreeSet<usize>,
}

/// A running domain with one disk full of noise, and its days.
struct Diary<'a> {
    story: Story,
    rules: &'a Rules,
    rng: Rng,
    noise: Noise,
    days: BTreeMap<Date, Day>,
    kept: BTreeSet<Date>,
}

/// A file of data that cannot be compressed, from which QEMU writes.
struct Noise(tempfile::TempDir);

impl Noise {
    fn new() -> Noise {
        Noise(owner::folder("noise-"))
    }

    /// The qemu-io command that writes noise.
    fn write(&self, seed: u64, at: u64, length: u64) -> String {
        let path = self.0.path().join("noise");
        let mut bytes = vec![0; usize::try_from(length).expect("it fits")];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        fs::write(&path, bytes).expect("the folder is ours");
        format!("write -s {} {at} {length}", path.display())
    }
}

impl<'a> Diary<'a> {
    fn begin(name: &str, rules: &'a Rules) -> Diary<'a> {
        let mut rng = Rng::new();
        let shape = Shape {
            disks: &[(Kind::Qcow2, SIZE)],
            ..Shape::default()
        };
        let domain = TestDomain::shaped(name, &shape);
        let noise = Noise::new();
        domain.io("vda", &noise.write(rng.next(), 0, SIZE));
        domain.start();
        domain.handle().resume().expect("it runs");
        let mut story = Story::of(domain);
        story.options.full = FullRule::Never;
        story.options.keep = Some(policy(rules));
        Diary {
            story,
            rules,
            rng,
            noise,
            days: BTreeMap::new(),
            kept: BTreeSet::new(),
        }
    }

    fn today(&self) -> Date {
        self.story.context().now.date()
    }

    /// Writes, backs up, and lets this much time pass. The policy is applied to what is there.
    fn day(&mut self, then: Span) {
        let (today, before) = (self.today(), self.story.bytes("vda").to_vec());
        self.guest_writes();
        let bytes = self.story.bytes("vda");
        let clusters = bytes.chunks(CLUSTER).zip(before.chunks(CLUSTER)).enumerate();
        let differ = clusters.filter(|(_, (new, old))| new != old);
        let changed = differ.map(|(number, _)| number).collect();
        let disk = blake3::hash(bytes);

        let outcome = self.story.try_back_up().expect("a restore point");
        let point = outcome.point;
        let is_first = self.days.is_empty();
        let level = if is_first { Level::Full } else { Level::Incremental };
        assert_eq!(point.level, level, "{today}: {}", point.disks[0].reason);
        assert!(outcome.findings.is_empty(), "{today}: {:?}", outcome.findings);
        let id = point.id;
        self.days.insert(today, Day { id, disk, changed });

        self.kept.insert(today);
        let kept = kept_of(&self.kept, self.rules);
        let gone: BTreeSet<&str> = self.kept.difference(&kept).map(|day| self.id(day)).collect();
        match &outcome.retention {
            Some(RetentionOutcome::Applied { plan, removed }) => {
                assert!(plan.obstacle.is_none(), "{today}: {plan:?}");
                assert_eq!(removed.iter().map(String::as_str).collect::<BTreeSet<_>>(), gone);
            }
            other => panic!("{today}: {other:?}"),
        }
        self.kept = kept;
        self.story.pass(then);
    }

    /// Noise at one place that is written each day and at a random one, and random changes.
    fn guest_writes(&mut self) {
        let anywhere = self.rng.below(SIZE / MIB) * MIB;
        for (at, length) in [(3 * MIB, MIB / 2), (anywhere, MIB / 4)] {
            let command = self.noise.write(self.rng.next(), at, length);
            self.story.domain.io("vda", &command);
        }
        // The model of the story does not know the noise yet.
        self.story.learn("vda");
        self.story.scribble(&mut self.rng, 4);
        let model = self.story.bytes("vda").to_vec();
        self.story.learn("vda");
        assert!(
            model == self.story.bytes("vda"),
            "the image holds what was written"
        );
    }

    fn id(&self, day: &Date) -> &str {
        &self.days[day].id
    }

    /// Whether everything is as it has to be.
    fn check(&self) {
        let history = self.story.history();
        assert!(history.findings.is_empty(), "{:?}", history.findings);
        let ids = |day| self.id(day).to_owned();
        let found: Vec<String> = { history.kept.iter() }
            .map(|kept| kept.manifest.point.id.clone())
            .collect();
        assert_eq!(found, self.kept.iter().map(ids).collect::<Vec<_>>());
        for (number, kept) in history.kept.iter().enumerate() {
            let level = if number == 0 {
                Level::Full
            } else {
                Level::Incremental
            };
            assert_eq!(kept.manifest.point.level, level, "only the oldest is a full");
        }
        self.check_size();
        self.check_leftovers();
        self.check_verdicts();
        for (number, day) in self.kept.iter().enumerate() {
            let image = Path::new(&history.kept[number].location).join("vda.qcow2");
            run_ok("qemu-img", [&"check", &"-q", &"-f", &"qcow2", &image]);
            self.check_restore(day);
            if number == 0 || number + 1 == self.kept.len() {
                self.check_by_hand(day, &image);
            }
        }
    }

    /// The full takes no more than the disk, and each other restore point no more than what has
    /// changed since the one before it.
    fn check_size(&self) {
        let kept: Vec<&Date> = self.kept.iter().collect();
        let changed = |between: RangeInclusive<Date>| -> u64 {
            let days = self.days.range(between);
            let clusters: BTreeSet<&usize> = days.flat_map(|(_, day)| &day.changed).collect();
            (clusters.len() * CLUSTER) as u64
        };
        let since = |pair: &[&Date]| changed(pair[0].tomorrow().expect("a day")..=*pair[1]);
        let increments: u64 = kept.windows(2).map(since).sum();
        let most = SIZE + increments + kept.len() as u64 * FRAME;
        let allocated = allocated(self.story.repo.root());
        let made: u64 = self
            .days
            .values()
            .map(|day| (day.changed.len() * CLUSTER) as u64)
            .sum();
        println!(
            "{} restore points of {}: {allocated} bytes of at most {most}; {increments} bytes in \
             increments, {made} bytes changed in all",
            kept.len(),
            self.days.len()
        );
        assert!(allocated <= most, "{allocated} bytes are more than {most}");
    }

    fn check_leftovers(&self) {
        let history = self.story.history();
        assert!(history.leftovers.is_empty(), "{:?}", history.leftovers);
        let domain = self.story.repo.domain(&self.story.domain.name).expect("a name");
        let interrupted = domain.interrupted_removals().expect("it can be read");
        assert!(interrupted.is_empty(), "{interrupted:?}");
        for path in files(self.story.repo.root()) {
            let name = path.file_name().expect("a name").to_string_lossy();
            let is_left = [".merged-", ".continued", ".patch", ".new", "merging", "intent"]
                .iter()
                .any(|part| name.contains(part));
            assert!(!is_left, "{}", path.display());
        }
        assert_eq!(self.story.domain.strangers(), [""; 0]);
    }

    fn check_verdicts(&self) {
        let context = self.story.context();
        let name = &self.story.domain.name;
        let options = verify::Options {
            which: verify::Which::All,
            deep: true,
            verified_since: None,
            now: context.now.timestamp(),
        };
        let verdict = verify::verify(name, context.repo, &options, context.monitor, &context.stop);
        let verdict = verdict.expect("it ends");
        assert!(verdict.is_sound(), "{verdict:?}");
        let subject = Subject {
            host: context.host,
            repo: Some(context.repo),
            group_by: GroupBy::default(),
            full: FullRule::Never,
            today: self.today(),
            store_decrypted: false,
            exclude: &NOTHING_EXCLUDED,
        };
        let status = status(name, &subject).expect("a status");
        assert!(status.is_consistent(), "{:?}", status.inconsistencies);
        let job = context.host.active_job(&self.story.domain.seen());
        assert_eq!(job.expect("it is known"), None);
    }

    fn check_restore(&self, day: &Date) {
        let to = self.story.folder.path().join("restored");
        self.story
            .restore(self.id(day), &to, Format::Raw, None)
            .expect("it is restored");
        assert_eq!(digest(&to.join("vda.raw")), self.days[day].disk, "{day}");
        fs::remove_dir_all(&to).expect("it is removed");
    }

    fn check_by_hand(&self, day: &Date, image: &Path) {
        let raw = self.story.folder.path().join("by-hand.raw");
        run_ok(
            "qemu-img",
            [&"convert", &"-f", &"qcow2", &"-O", &"raw", &image, &raw],
        );
        assert_eq!(digest(&raw), self.days[day].disk, "{day} by hand");
        fs::remove_file(raw).expect("it is there");
    }

    /// How many bytes of the oldest image merges have freed in its file; `None` if it was not
    /// continued.
    fn freed(&self) -> Option<u64> {
        let history = self.story.history();
        history.kept[0]
            .manifest
            .file("vda.qcow2")
            .expect("it is listed")
            .unused
    }
}

fn digest(path: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(path).expect("it is readable"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("it is readable").flatten() {
        match entry.file_type().expect("it is known").is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

fn allocated(folder: &Path) -> u64 {
    let paths = files(folder).into_iter();
    paths
        .map(|path| path.metadata().expect("it is there").blocks() * 512)
        .sum()
}

/// Forty days and, so that the policy moves the full too, more months than it keeps.
#[test]
fn forty_days_and_a_year_of_a_running_domain_keep_the_policy() {
    let rules = [(Rule::Daily, 7), (Rule::Weekly, 4), (Rule::Monthly, 12)];
    let mut diary = Diary::begin("year ", &rules);
    let first = diary.today();
    for _ in 0..40 {
        diary.day(1.day());
    }
    // Seven days, three more weeks, a month, and the first day.
    assert!((9..=12).contains(&diary.kept.len()), "{:?}", diary.kept);
    assert!(diary.kept.contains(&first), "no month is over its quota");
    diary.check();
    for _ in 0..14 {
        diary.day(1.month());
    }
    assert!(!diary.kept.contains(&first), "the full has moved");
    assert!(diary.freed().is_some_and(|bytes| bytes > 0), "in its file");
    diary.check();
}

/// The full moves each day, in one file.
#[test]
fn a_week_of_a_running_domain_moves_its_full_each_day() {
    let mut diary = Diary::begin("week ", &[(Rule::Daily, 7)]);
    for number in 1..=40 {
        diary.day(1.day());
        assert_eq!(diary.freed().is_some(), number > 7, "day {number}");
    }
    assert_eq!(diary.kept.len(), 7);
    diary.check();
}
