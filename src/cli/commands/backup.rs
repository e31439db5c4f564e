//! `vmsnap backup`.

use std::time::{Duration, Instant};

use super::{
    CommandResult, Refusal, Tally, exclusions, group_by, random, repository_path, tell_summary, tell_versions,
};
use crate::cli::args::BackupArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::ExitCode;
use crate::cli::log::{self, Entry, Level};
use crate::cli::progress::Progress;
use crate::cli::report::backup as shown;
use crate::cli::report::document::Document;
use crate::cli::select::{Selection, patterns, select};
use crate::cli::stdout::answer;
use crate::model::left_out::{Kind, UNASKED};
use crate::model::stop::Stop;
use crate::ops::backup::{Options, Outcome, backup, preview};
use crate::ops::{self, Context, Host, PlaceWishes, Repository};

/// The programs that the backup of a shut-off domain needs.
const PROGRAMS: [&str; 2] = ["qemu-img", "qemu-nbd"];

/// Makes a restore point of each domain meant. One that fails does not stop the others.
pub fn run(args: &BackupArgs, stop: &Stop) -> CommandResult {
    let options = Options {
        group_by: group_by(&args.group_by)?,
        raw: args.raw,
        store_decrypted: args.store_decrypted && !args.no_store_decrypted,
        exclude: Vec::new(),
        freeze: (args.freeze_timeout > 0).then(|| Duration::from_secs(args.freeze_timeout)),
        places: PlaceWishes {
            socket: args.socketfile.clone(),
            scratch_dir: args.scratch_dir.clone(),
        },
        keep_checkpoints: args.keep_checkpoints as usize,
        prune: args.prune,
        force: args.force,
        copy: args.copy,
        wait: args.wait.time(),
    };
    if options.copy && options.prune {
        return Err(Refusal::new(
            ExitCode::Usage,
            "--copy and --prune exclude each other: a copy belongs to no period, and it prunes nothing",
        ));
    }
    let typed = args.domains.all();
    if patterns(&typed, &[]).is_empty() {
        return Err(Refusal::new(ExitCode::NoDomains, "No domains specified"));
    }
    let path = repository_path(args.output.as_ref())?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let names = host.domain_names().map_err(|error| ops::Error::of("", error))?;
    let selection = select(&typed, &names);
    if selection.domains.len() > 1 && options.places.socket.is_some() {
        return Err(Refusal::new(
            ExitCode::Usage,
            "--socketfile is for the backup of one domain",
        ));
    }
    let mut tally = Tally::default();
    tally.unmatched(&selection.unmatched);
    tell_versions(host.as_ref(), selection.domains.len(), names.len());
    let exclude = exclusions(&args.exclude_disk, &selection, &names, host.as_ref())?;
    let options_of = |domain: &String| Options {
        exclude: exclude.get(domain).cloned().unwrap_or_default(),
        ..options.clone()
    };
    if args.dry_run {
        let repo = ops::open_as_if_created_repository(path)?;
        let json = args.output_args.json;
        return Ok(dry_run(
            &selection,
            host.as_ref(),
            &repo,
            &options_of,
            stop,
            json,
            tally,
        ));
    }
    let repo = ops::open_or_create_repository(path)?;
    let progress = Progress::new();
    let mut done = Vec::new();
    for domain in &selection.domains {
        if let Some(signal) = stop.signal() {
            done.push(shown::Done::not_reached(domain, signal));
            continue;
        }
        let began = Instant::now();
        let context = Context {
            host: host.as_ref(),
            repo: &repo,
            now: now(),
            monitor: &progress,
            stop: stop.clone(),
            random: &random,
        };
        let result = backup(domain, &context, &options_of(domain));
        match &result {
            Ok(outcome) => tell_success(domain, outcome),
            Err(error) => tally.failed(error, ExitCode::of_backup_error(error)),
        }
        let domain = shown::Done {
            domain: domain.clone(),
            took: began.elapsed(),
            result,
        };
        if domain.is_partial() {
            tally.count(ExitCode::BackupFailed);
        }
        if domain.prune_failed() {
            tally.count(ExitCode::Failed);
        }
        if !args.output_args.json {
            answer(&domain.lines());
        }
        done.push(domain);
    }
    if let Some(signal) = stop.signal() {
        tally.count(ExitCode::Signal(signal));
    }
    tell_summary(
        &selection.unmatched,
        done.iter().filter_map(shown::Done::failure),
        done.len(),
    );
    tell_left_out(&done);
    let code = tally.end(&PROGRAMS);
    if args.output_args.json {
        answer(&Document::Backup(shown::document(&done, &selection.unmatched, code)).json());
    }
    Ok(code)
}

/// With several domains those that lack a disk are named again at the end, where one looks.
fn tell_left_out(done: &[shown::Done]) {
    if done.len() < 2 {
        return;
    }
    for (kinds, level, what) in [
        (&UNASKED[..], Level::Notice, "partial, without"),
        (
            &[Kind::Raw],
            Level::Info,
            "without their raw disks (--raw saves them too)",
        ),
    ] {
        let lacking: Vec<String> = done.iter().filter_map(|done| done.lacks(kinds)).collect();
        if !lacking.is_empty() {
            let text = format!("{} of {} {what}:", lacking.len(), done.len());
            log::tell(&Entry {
                lines: &lacking,
                ..Entry::new(level, &text)
            });
        }
    }
}

/// For a journal or a log file of its own: a person reads it on stdout.
fn tell_success(domain: &str, outcome: &Outcome) {
    if log::has_fields() {
        let point = &outcome.point;
        let message = format!("{} {}", shown::kind(point), point.id);
        log::tell(&Entry {
            restore_point: Some(&point.id),
            ..Entry::of(Level::Info, domain, &message)
        });
    }
}

fn dry_run(
    selection: &Selection,
    host: &dyn Host,
    repo: &Repository,
    options_of: &dyn Fn(&String) -> Options,
    stop: &Stop,
    json: bool,
    mut tally: Tally,
) -> ExitCode {
    let mut plans = Vec::new();
    let mut failed = Vec::new();
    for domain in &selection.domains {
        let context = Context {
            host,
            repo,
            now: now(),
            monitor: &ops::monitor::Silent,
            stop: stop.clone(),
            random: &random,
        };
        match preview(domain, &context, &options_of(domain)) {
            Ok(preview) => {
                if preview.writer.is_some() {
                    tally.count(ExitCode::Failed);
                } else if preview.planned.obstacle.is_some()
                    || preview.planned.backup.disks.is_empty()
                    || preview.planned.backup.is_partial()
                {
                    tally.count(ExitCode::BackupFailed);
                }
                if json {
                    plans.push((domain.clone(), preview));
                } else {
                    answer(&shown::plan_text(domain, &preview));
                }
            }
            Err(error) => {
                tally.failed(&error, ExitCode::of_backup_error(&error));
                failed.push(error);
            }
        }
    }
    let code = tally.end(&PROGRAMS);
    if json {
        let document = shown::plan_document(&plans, &failed, &selection.unmatched, code);
        answer(&Document::DryRun(document).json());
    }
    code
}
