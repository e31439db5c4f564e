//! `vmsnap backup`.

use std::time::{Duration, Instant};

use super::{CommandResult, Refusal, group_by, now, repository_path, tell_unmatched};
use crate::cli::args::BackupArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::progress::Progress;
use crate::cli::report::{self, backup as shown};
use crate::cli::select::{patterns, select};
use crate::cli::{answer, tell};
use crate::model::stop::Stop;
use crate::ops::backup::{Options, backup, preview};
use crate::ops::{self, Context, Host, PlaceWishes, Repository};

/// Makes a restore point of each domain meant. One that fails does not stop the others.
pub fn run(args: &BackupArgs, stop: &Stop) -> CommandResult {
    let options = Options {
        group_by: group_by(&args.group_by)?,
        raw: args.raw,
        freeze: (args.freeze_timeout > 0).then(|| Duration::from_secs(args.freeze_timeout)),
        places: PlaceWishes {
            socket: args.socketfile.clone(),
            scratch_dir: args.scratch_dir.clone(),
        },
        keep_checkpoints: args.keep_checkpoints as usize,
        prune: args.prune,
    };
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
    let mut codes: Vec<ExitCode> = tell_unmatched(&selection.unmatched).into_iter().collect();
    if args.dry_run {
        let repo = ops::open_repository(path)?;
        codes.extend(dry_run(&selection.domains, host.as_ref(), &repo, &options, stop));
        return Ok(ExitCode::worst(codes));
    }
    let repo = ops::open_or_create_repository(path)?;
    let progress = Progress::new(args.output_args.quiet);
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
        };
        let result = backup(domain, &context, &options);
        let domain = shown::Done {
            domain: domain.clone(),
            took: began.elapsed(),
            result,
        };
        if !args.output_args.json {
            match &domain.result {
                Ok(_) => answer(&domain.lines()),
                Err(_) => tell(domain.lines().trim_end()),
            }
        }
        done.push(domain);
    }
    codes.extend(
        done.iter()
            .filter_map(|done| done.result.as_ref().err())
            .map(ExitCode::of_backup_error),
    );
    if done.iter().any(shown::Done::prune_failed) {
        codes.push(ExitCode::Failed);
    }
    codes.extend(stop.signal().map(ExitCode::Signal));
    let code = ExitCode::worst(codes);
    if args.output_args.json {
        answer(&shown::json(&done, &selection.unmatched, code));
    } else {
        tell_summary(&done);
    }
    Ok(code)
}

/// With several domains the failures are named again at the end, where one looks.
fn tell_summary(done: &[shown::Done]) {
    let failed: Vec<&shown::Done> = done.iter().filter(|done| done.result.is_err()).collect();
    if done.len() > 1 && !failed.is_empty() {
        tell(&format!(
            "vmsnap: {} of {} domains failed:",
            failed.len(),
            done.len()
        ));
        for domain in failed {
            tell(&format!("  {}", domain.lines().trim_end()));
        }
    }
}

fn dry_run(
    domains: &[String],
    host: &dyn Host,
    repo: &Repository,
    options: &Options,
    stop: &Stop,
) -> Vec<ExitCode> {
    let mut codes = Vec::new();
    for domain in domains {
        let context = Context {
            host,
            repo,
            now: now(),
            monitor: &ops::monitor::Silent,
            stop: stop.clone(),
        };
        match preview(domain, &context, options) {
            Ok(preview) => {
                answer(&shown::plan_text(domain, &preview));
                if preview.backup.disks.is_empty() {
                    codes.push(ExitCode::BackupFailed);
                }
            }
            Err(error) => {
                tell(&format!("vmsnap: {}", report::error_text(&error)));
                codes.push(ExitCode::of_backup_error(&error));
            }
        }
    }
    codes
}
