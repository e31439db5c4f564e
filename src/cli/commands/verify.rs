//! `vmsnap verify`.

use std::time::Duration;

mod boot_proof;

use jiff::{Span, Timestamp, Zoned};

use super::kept::KeptDomains;
use super::{
    CommandResult, Refusal, open_to_read, random, session_hint, tell_error, tell_missing, tell_skipped,
    tell_unmatched,
};
use crate::cli::args::VerifyArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::log::{self, Entry, Level};
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::{compare as comparison, verify as shown};
use crate::cli::select::{patterns, select};
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::model::text::shown as as_shown;
use crate::ops::compare::{Meaning, UncomparedDisk};
use crate::ops::each::{Each, Fault, Turn};
use crate::ops::monitor::Ending;
use crate::ops::verify::{Options, Outcome, Which, verify};
use crate::ops::{self, Cause, Context, PlaceWishes, compare};

/// Verifies restore points of the given domains, or of all domains in the repository. Damage to one
/// domain's restore points does not stop the verification of the others.
pub fn run(args: &VerifyArgs, stop: &Stop) -> CommandResult {
    if args.compare_live {
        return compare_live(args, stop);
    }
    if args.boot {
        return boot_proof::run(args, stop);
    }
    if args.scratch_dir.is_some() {
        let what = "--scratch-dir needs --compare-live or --boot";
        return Err(Refusal::new(ExitCode::Usage, what));
    }
    let now = now();
    let options = Options {
        which: which(args),
        deep: args.deep,
        verified_since: args
            .older_than
            .as_deref()
            .map(|age| before(&now, age))
            .transpose()?,
        now: now.timestamp(),
    };
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let domains = KeptDomains::select(repo.as_ref(), args.domains.all(), "verify", "--repository")?;
    let progress = Progress::new();
    let verb = |domain: &str| verify(domain, repo.as_ref(), &options, &progress, stop);
    let show = |turn: &Turn<Outcome>| {
        if !args.json {
            answer(&shown::lines(turn));
        }
    };
    let round = domains.run(&progress, stop, verb, show);
    let unmatched = &domains.selection.unmatched;
    let faults = domains.faults(&round, "verify", |outcome| !outcome.points.is_empty());
    tell_missing(&round, &[]);
    let code = ExitCode::of_faults(&faults, Verb::Other);
    if args.json {
        let document = shown::document(&round.turns, unmatched, code);
        answer(&Document::Verify(document).json());
    }
    Ok(code)
}

/// Compares the given domains with their newest restore points. A difference in one domain does not
/// stop the comparison of the others.
fn compare_live(args: &VerifyArgs, stop: &Stop) -> CommandResult {
    let typed = args.domains.all();
    if patterns(&typed, &[]).is_empty() {
        let what = "--compare-live needs a domain: name one, or '*' for all";
        return Err(Refusal::new(ExitCode::NoDomains, what));
    }
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let names = host.domain_names().map_err(|error| ops::Error::of("", error))?;
    let selection = select(&typed, &names);
    let named = patterns(&typed, &names);
    let (seed, _) = uuid::Uuid::new_v4().as_u64_pair();
    let options = compare::Options {
        sample: (!args.full).then_some(u64::from(args.sample)),
        seed,
        places: PlaceWishes {
            socket: None,
            scratch_dir: args.scratch_dir.clone(),
        },
        wait: Duration::from_secs(args.wait),
    };
    let hint = session_hint(&args.connect, host.uri());
    tell_unmatched(&selection.unmatched, hint.as_deref());
    let progress = Progress::new();
    let each = Each {
        domains: &selection.domains,
        monitor: &progress,
        stop,
    };
    let verb = |domain: &str| {
        let context = Context {
            host: host.as_ref(),
            repo: repo.as_ref(),
            now: now(),
            monitor: &progress,
            stop: stop.clone(),
            random: &random,
        };
        compare::compare(domain, &context, &options)
    };
    // A glob also matches domains that were never backed up.
    let may_skip = |domain: &str, error: &ops::Error| {
        matches!(error.cause, Cause::NoRestorePoints) && !named.iter().any(|name| name == domain)
    };
    let ended = |turn: &Turn<compare::Outcome>| match (&turn.result, turn.ending) {
        (_, Ending::Skipped) => tell_skipped(turn),
        (Ok(outcome), _) => {
            tell_uncompared(&turn.domain, outcome, args.json);
            if !args.json {
                answer(&comparison::lines(&turn.domain, outcome));
            }
        }
        (Err(_), _) => tell_error(turn),
    };
    let round = each.run(verb, may_skip, ended);
    let mut faults = round.faults(&selection.unmatched);
    if faults.is_success() && round.outcomes().next().is_none() {
        log::error("there is nothing to compare: none of these domains has a restore point");
        faults.add(Fault::Nothing);
    }
    tell_missing(&round, &["qemu-img", "qemu-nbd"]);
    let code = ExitCode::of_faults(&faults, Verb::Other);
    if args.json {
        let document = comparison::document(&round.turns, &selection.unmatched, code);
        answer(&Document::Compare(document).json());
    }
    Ok(code)
}

/// Logs which disks should have been compared and were not, unless the lines on stdout show that.
fn tell_uncompared(domain: &str, outcome: &compare::Outcome, json: bool) {
    if !json && !log::has_fields() {
        return;
    }
    let is_due = |disk: &&UncomparedDisk| disk.meaning != Meaning::NothingToCompare;
    for disk in outcome.uncompared.iter().filter(is_due) {
        log::tell(&Entry {
            disk: Some(&disk.target),
            ..Entry::of(Level::Warning, domain, &format!("not compared: {}", disk.why))
        });
    }
}

/// The restore points that the arguments name.
fn which(args: &VerifyArgs) -> Which {
    match (args.all, args.at.as_str()) {
        (true, _) => Which::All,
        (false, "latest") => Which::Latest,
        (false, at) => Which::At(at.to_owned()),
    }
}

/// The moment this long before now; at most [`MOST_YEARS`].
fn before(now: &Zoned, age: &str) -> Result<Timestamp, Refusal> {
    let refused = |what: String| Refusal::new(ExitCode::Usage, what);
    let span: Option<Span> = age.parse().ok().filter(|span: &Span| !span.is_negative());
    let span = span.ok_or_else(|| {
        refused(format!(
            "--older-than takes a time like 7d or 12h, not '{}'",
            as_shown(age)
        ))
    })?;
    let earliest = now.checked_sub(Span::new().years(MOST_YEARS)).ok();
    let moment = now.checked_sub(span).ok();
    moment
        .filter(|moment| earliest.is_some_and(|earliest| *moment >= earliest))
        .map(|moment| moment.timestamp())
        .ok_or_else(|| {
            let age = as_shown(age);
            refused(format!(
                "--older-than takes at most {MOST_YEARS} years; '{age}' is longer (m is minutes, mo is months)"
            ))
        })
}

/// The largest accepted number of years; more is probably a mistake.
const MOST_YEARS: i64 = 10;
