//! `vmsnap verify`.

use std::time::{Duration, Instant};

use jiff::{Span, Timestamp, Zoned};

use super::{CommandResult, Refusal, Tally, random, repository_to_read};
use crate::cli::args::VerifyArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::ExitCode;
use crate::cli::log::{self, Entry, Level};
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::{compare as comparison, verify as shown};
use crate::cli::select::{patterns, select};
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::model::text::shown as as_shown;
use crate::ops::verify::{Options, Which, verify};
use crate::ops::{self, Cause, Context, PlaceWishes, Repository, compare};

/// Proves restore points of the domains meant: of all that are in the repository when none is named. One that is damaged stops no other.
pub fn run(args: &VerifyArgs, stop: &Stop) -> CommandResult {
    if args.compare_live {
        return compare_live(args, stop);
    }
    let now = now();
    let options = Options {
        which: match (args.all, args.at.as_str()) {
            (true, _) => Which::All,
            (false, "latest") => Which::Latest,
            (false, at) => Which::At(at.to_owned()),
        },
        deep: args.deep,
        not_since: args
            .older_than
            .as_deref()
            .map(|age| before(&now, age))
            .transpose()?,
        now: now.timestamp(),
    };
    let repo = ops::open_repository(repository_to_read(args.repository.dir.as_ref())?)?;
    let names = repo.domain_names().map_err(|error| ops::Error::of("", error))?;
    let mut typed = args.domains.all();
    if typed.is_empty() {
        if names.is_empty() {
            return Err(Refusal::new(ExitCode::NoDomains, nothing_in(&repo)));
        }
        typed.push("*".to_owned());
    }
    let selection = select(&typed, &names);
    let named = patterns(&typed, &names);
    let mut tally = Tally::default();
    tally.unmatched(&selection.unmatched);
    let progress = Progress::new();
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for domain in &selection.domains {
        if stop.requested() {
            break;
        }
        let began = Instant::now();
        match verify(domain, &repo, &options, &progress, stop) {
            Ok(outcome) => {
                if !outcome.is_sound() {
                    tally.count(ExitCode::Damaged);
                }
                if let Some(error) = &outcome.ended {
                    tally.failed(error, ExitCode::of_error(error));
                }
                if outcome.needs_newer() {
                    tally.count(ExitCode::Failed);
                }
                let proved = shown::Proved {
                    domain: domain.clone(),
                    took: began.elapsed(),
                    outcome,
                };
                if !args.json {
                    answer(&proved.lines());
                }
                done.push(proved);
            }
            // A first backup that was killed leaves such a folder. Nobody has asked for this one.
            Err(error) if !named.contains(domain) && was_never_saved(&repo, domain, &error) => {
                log::tell(&Entry::of(Level::Notice, domain, &error.cause.to_string()));
            }
            Err(error) => {
                tally.failed(&error, ExitCode::of_error(&error));
                failed.push(error);
            }
        }
    }
    if let Some(signal) = stop.signal() {
        tally.count(ExitCode::Signal(signal));
    }
    if tally.is_clean() && done.iter().all(|proved| proved.outcome.points.is_empty()) {
        log::error(&nothing_in(&repo));
        tally.count(ExitCode::NoDomains);
    }
    let code = tally.end(&[]);
    if args.json {
        let document = shown::document(&done, &failed, &selection.unmatched, code);
        answer(&Document::Verify(document).json());
    }
    Ok(code)
}

/// Whether there is a folder of the domain, as a first backup leaves it that was killed. A folder that has gone since it was listed is more than
/// that.
fn was_never_saved(repo: &Repository, domain: &str, error: &ops::Error) -> bool {
    let has_folder = || repo.domain(domain).is_ok_and(|folder| folder.dir().is_dir());
    matches!(error.cause, Cause::NoRestorePoints) && has_folder()
}

fn nothing_in(repo: &Repository) -> String {
    format!("there is nothing to verify in {}", repo.root().display())
}

/// Compares the domains meant with their newest restore points. One that differs stops no other.
fn compare_live(args: &VerifyArgs, stop: &Stop) -> CommandResult {
    let typed = args.domains.all();
    if patterns(&typed, &[]).is_empty() {
        let what = "--compare-live needs a domain: name one, or '*' for all";
        return Err(Refusal::new(ExitCode::NoDomains, what));
    }
    let repo = ops::open_repository(repository_to_read(args.repository.dir.as_ref())?)?;
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
    let mut tally = Tally::default();
    tally.unmatched(&selection.unmatched);
    let progress = Progress::new();
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for domain in &selection.domains {
        if stop.requested() {
            break;
        }
        let context = Context {
            host: host.as_ref(),
            repo: &repo,
            now: now(),
            monitor: &progress,
            stop: stop.clone(),
            random: &random,
        };
        match compare::compare(domain, &context, &options) {
            Ok(outcome) => {
                tally.count(comparison::exit_code(&outcome));
                if !args.json {
                    answer(&comparison::lines(domain, &outcome));
                }
                done.push((domain.clone(), outcome));
            }
            // A domain that no backup is made of. Nobody has asked for this one.
            Err(error) if matches!(error.cause, Cause::NoRestorePoints) && !named.contains(domain) => {
                log::tell(&Entry::of(Level::Notice, domain, &error.cause.to_string()));
            }
            Err(error) => {
                tally.failed(&error, ExitCode::of_error(&error));
                failed.push(error);
            }
        }
    }
    if let Some(signal) = stop.signal() {
        tally.count(ExitCode::Signal(signal));
    }
    if tally.is_clean() && done.is_empty() {
        log::error("there is nothing to compare: none of these domains has a restore point");
        tally.count(ExitCode::NoDomains);
    }
    let code = tally.end(&["qemu-img", "qemu-nbd"]);
    if args.json {
        let document = comparison::document(&done, &failed, &selection.unmatched, code);
        answer(&Document::Compare(document).json());
    }
    Ok(code)
}

/// The moment that lies this long before now, which is at most [`MOST_YEARS`].
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
                "--older-than takes at most {MOST_YEARS} years, and '{age}' is more (m are minutes, mo months)"
            ))
        })
}

/// Whoever types more years than this has meant something else.
const MOST_YEARS: i64 = 10;
