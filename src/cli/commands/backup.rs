//! `vmsnap backup`.

use std::time::Duration;

use super::prune::not_empty;
use super::{
    CommandResult, Refusal, exclusions, group_by, random, repository_path, session_hint, tell_error,
    tell_missing, tell_summary, tell_unmatched, tell_versions, with_access,
};
use crate::cli::args::BackupArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::log::{self, Entry, Level};
use crate::cli::progress::Progress;
use crate::cli::report::backup as shown;
use crate::cli::report::document::Document;
use crate::cli::select::{Selection, patterns, select};
use crate::cli::stdout::answer;
use crate::model::left_out::{Kind, UNASKED};
use crate::model::stop::Stop;
use crate::ops::backup::{Options, Outcome, Preview, backup, preview};
use crate::ops::each::{Each, Turn};
use crate::ops::monitor::Silent;
use crate::ops::{self, Access, Context, Host, Monitor, PlaceWishes, Repository};

/// The programs that the backup of a shut-off domain needs.
const PROGRAMS: [&str; 2] = ["qemu-img", "qemu-nbd"];

/// Makes a restore point of each given domain. A failure does not stop the backups of the others.
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
        keep: args.keep.policy().map(not_empty).transpose()?,
        force: args.force,
        copy: args.copy,
        compression: args.compress,
        full: args.full,
        wait: args.wait.time(),
    };
    if let Some(what) = options.contradiction() {
        return Err(Refusal::new(ExitCode::Usage, what));
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
            "--socketfile can only be used with one domain",
        ));
    }
    let hint = session_hint(&args.connect, host.uri());
    tell_unmatched(&selection.unmatched, hint.as_deref());
    tell_versions(host.as_ref(), selection.domains.len(), names.len());
    let exclude = exclusions(&args.exclude_disk, &selection, &names, host.as_ref())?;
    let options_of = |domain: &str| Options {
        exclude: exclude.get(domain).cloned().unwrap_or_default(),
        ..options.clone()
    };
    let run = Run {
        selection: &selection,
        host: host.as_ref(),
        options_of: &options_of,
        stop,
        json: args.output_args.json,
    };
    let open = |access: &Access<'_>| match args.dry_run {
        true => ops::open_as_if_created_repository(path, access),
        false => ops::open_or_create_repository(path, access),
    };
    let repo = with_access(&args.secret, stop, open)?;
    Ok(match args.dry_run {
        true => run.preview(repo.as_ref()),
        false => run.back_up(repo.as_ref()),
    })
}

/// A backup of several domains, or its dry run.
struct Run<'a> {
    selection: &'a Selection,
    host: &'a dyn Host,
    options_of: &'a dyn Fn(&str) -> Options,
    stop: &'a Stop,
    json: bool,
}

impl Run<'_> {
    fn each<'a>(&'a self, monitor: &'a dyn Monitor) -> Each<'a> {
        Each {
            domains: &self.selection.domains,
            monitor,
            stop: self.stop,
        }
    }

    fn context<'a>(&'a self, repo: &'a dyn Repository, monitor: &'a dyn Monitor) -> Context<'a> {
        Context {
            host: self.host,
            repo,
            now: now(),
            monitor,
            stop: self.stop.clone(),
            random: &random,
        }
    }

    fn back_up(&self, repo: &dyn Repository) -> ExitCode {
        let progress = Progress::new();
        let verb = |domain: &str| backup(domain, &self.context(repo, &progress), &(self.options_of)(domain));
        let ended = |turn: &Turn<Outcome>| {
            tell_success(turn);
            tell_error(turn);
            if !self.json {
                answer(&shown::lines(turn));
            }
        };
        let round = self.each(&progress).run(verb, |_, _| false, ended);
        let turns = &round.turns;
        let unmatched = &self.selection.unmatched;
        tell_summary(unmatched, turns.iter().filter_map(shown::failure), turns.len());
        tell_left_out(turns);
        tell_missing(&round, &PROGRAMS);
        let code = ExitCode::of_faults(&round.faults(unmatched), Verb::Backup);
        if self.json {
            answer(&Document::Backup(shown::document(turns, unmatched, code)).json());
        }
        code
    }

    fn preview(&self, repo: &dyn Repository) -> ExitCode {
        let verb = |domain: &str| preview(domain, &self.context(repo, &Silent), &(self.options_of)(domain));
        let ended = |turn: &Turn<Preview>| {
            tell_error(turn);
            if let (Ok(preview), false) = (&turn.result, self.json) {
                answer(&shown::plan_text(&turn.domain, preview));
            }
        };
        let round = self.each(&Silent).run(verb, |_, _| false, ended);
        tell_missing(&round, &PROGRAMS);
        let unmatched = &self.selection.unmatched;
        let code = ExitCode::of_faults(&round.faults(unmatched), Verb::Backup);
        if self.json {
            let document = shown::plan_document(&round.turns, unmatched, code);
            answer(&Document::DryRun(document).json());
        }
        code
    }
}

/// If there are several domains, lists at the end those that lack a disk.
fn tell_left_out(done: &[Turn<Outcome>]) {
    if done.len() < 2 {
        return;
    }
    for (kinds, level, what) in [
        (
            &UNASKED[..],
            Level::Notice,
            "backups are partial; disks not saved",
        ),
        (
            &[Kind::Raw],
            Level::Info,
            "domains were saved without their raw disks (--raw saves them too)",
        ),
    ] {
        let lacking: Vec<String> = done.iter().filter_map(|done| shown::lacks(done, kinds)).collect();
        if !lacking.is_empty() {
            let text = format!("{} of {} {what}:", lacking.len(), done.len());
            log::tell(&Entry {
                lines: &lacking,
                ..Entry::new(level, &text)
            });
        }
    }
}

/// Logs a successful backup if log entries have fields; otherwise stdout alone reports it.
fn tell_success(turn: &Turn<Outcome>) {
    if let (Ok(outcome), true) = (&turn.result, log::has_fields()) {
        let point = &outcome.point;
        let message = format!("{} {}", shown::kind(point), point.id);
        log::tell(&Entry {
            restore_point: Some(&point.id),
            ..Entry::of(Level::Info, &turn.domain, &message)
        });
    }
}
