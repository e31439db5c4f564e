//! `vmsnap boot`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{CommandResult, Refusal, open_to_read};
use crate::cli::args::BootArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::log::{self, Entry, Level};
use crate::cli::progress::Progress;
use crate::cli::report::boot as shown;
use crate::cli::report::document::Document;
use crate::cli::secrets;
use crate::cli::stdout::answer;
use crate::model::file_name;
use crate::model::stop::Stop;
use crate::ops::background;
use crate::ops::boot::{BootPlan, Booted, Ending, Means, Memory, Options, Outcome, boot, clear, plan};
use crate::ops::{self, Host};

/// The time between two looks at the domain.
pub(super) const GLANCE: Duration = Duration::from_millis(250);

/// Starts a domain from a restore point, and stays until it ends.
pub fn run(args: &BootArgs, stop: &Stop) -> CommandResult {
    if args.detach {
        return in_background(args);
    }
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let state = state_folder()?;
    if !args.dry_run {
        clear_leftovers(host.as_ref(), &state);
    }
    let options = Options {
        at: args.at.clone(),
        name: args.name.clone(),
        network: args.network.clone(),
        memory: args.memory.map_or(Memory::Own, Memory::Fixed),
        is_watched: false,
        keep: args.keep.clone(),
        scratch: absolute(&args.scratch_dir)?,
    };
    let plan = plan(&args.domain, repo.as_ref(), host.as_ref(), &options)?;
    if args.dry_run {
        answer(&shown::plan_text(&args.domain, &plan));
        return Ok(ExitCode::Ok);
    }
    let progress = match args.detached {
        true => Progress::lines(),
        false => Progress::new(),
    };
    let means = Means {
        repo: repo.as_ref(),
        store: &ops::DiskStore,
        host: host.as_ref(),
        state: &state,
        monitor: &progress,
        stop,
        glance: GLANCE,
    };
    let began = Instant::now();
    let log = log_file(&state, &plan);
    let mut lost = Ok(());
    let ready = |booted: &Booted<'_>| {
        answer(&match args.output_args.json {
            true => Document::Boot(shown::document(&args.domain, booted)).json_line(),
            false => shown::ready_text(&args.domain, booted, args.detached),
        });
        if args.detached {
            lost = background::detach(&log);
        }
    };
    let outcome = boot(&args.domain, plan, &means, ready)?;
    if let Err(error) = lost {
        let what = format!("this process could not leave the terminal: {error}");
        log::tell(&Entry::of(Level::Warning, &args.domain, &what));
    }
    answer(&match args.output_args.json {
        true => Document::Booted(shown::ended_document(&args.domain, &outcome)).json_line(),
        false => shown::ended_text(&args.domain, &outcome, began.elapsed()),
    });
    Ok(code(args, &outcome, stop))
}

/// The exit code. The end of a domain that is not kept is a success.
fn code(args: &BootArgs, outcome: &Outcome, stop: &Stop) -> ExitCode {
    if outcome.has_damage() {
        return ExitCode::Damaged;
    }
    match (outcome.ending, stop.reason()) {
        (Ending::Stopped, Some(reason)) if args.keep.is_some() => ExitCode::of_stop(reason),
        (Ending::Ended, _) if args.keep.is_some() => ExitCode::Failed,
        _ if outcome.has_failures() => ExitCode::Failed,
        _ => ExitCode::Ok,
    }
}

/// Starts this program again as a process that goes on in the background once the domain runs.
fn in_background(args: &BootArgs) -> CommandResult {
    let words = std::env::args_os().skip(1).map(|word| match word == "--detach" {
        true => "--detached".into(),
        false => word,
    });
    match background::begin(words) {
        Ok((text, code)) => {
            answer(&text);
            // A process that has ended has reported why.
            Ok(code.map_or(ExitCode::Ok, ExitCode::of_number))
        }
        Err(error) => {
            let what = format!(
                "{}: cannot start a process in the background: {error}",
                args.domain
            );
            Err(Refusal::new(ExitCode::Failed, what))
        }
    }
}

/// The file for what a process in the background prints: one for each name of a domain.
fn log_file(state: &Path, plan: &BootPlan) -> PathBuf {
    let name = file_name::escape(&plan.name).unwrap_or_else(|| plan.uuid.clone());
    state.join("boot").join(format!("{name}.log"))
}

/// The folder of this host's state, with the records of trial domains.
pub(super) fn state_folder() -> Result<PathBuf, Refusal> {
    secrets::host_folders().state.ok_or_else(|| {
        let what = "no folder for the state of this host is known: set VMSNAP_STATE or HOME";
        Refusal::new(ExitCode::Usage, what)
    })
}

/// Removes what killed runs have left of trial domains, also of others than the present one, and
/// reports that.
pub(super) fn clear_leftovers(host: &dyn Host, state: &Path) {
    for finding in clear(host, &ops::DiskStore, state) {
        log::tell(&Entry::new(Level::Notice, &finding.message));
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Refusal> {
    let found = std::path::absolute(path);
    found.map_err(|error| Refusal::new(ExitCode::Usage, format!("{}: {error}", path.display())))
}
