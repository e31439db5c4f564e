//! `vmsnap verify --boot`.

use std::path::PathBuf;

use super::{before, which};
use crate::cli::args::VerifyArgs;
use crate::cli::clock::now;
use crate::cli::commands::boot::{GLANCE, clear_leftovers, state_folder};
use crate::cli::commands::kept::KeptDomains;
use crate::cli::commands::{CommandResult, Refusal, open_to_read, tell_missing};
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::progress::Progress;
use crate::cli::report::boot_proof as shown;
use crate::cli::report::document::Document;
use crate::cli::stdout::answer;
use crate::model::guest::BootLevel;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::boot::{Means, Memory};
use crate::ops::boot_proof::{Options, Outcome, prove};
use crate::ops::each::Turn;

/// The folder for temporary files.
const SCRATCH: &str = "/var/tmp";

/// Starts restore points of the given domains, or of all domains in the repository. A domain whose
/// guest does not start does not stop the others.
pub(super) fn run(args: &VerifyArgs, stop: &Stop) -> CommandResult {
    let usage = |what: String| Refusal::new(ExitCode::Usage, what);
    let absolute = |path: PathBuf| {
        std::path::absolute(&path).map_err(|error| usage(format!("{}: {error}", path.display())))
    };
    if let Some(folder) = args.screenshots.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(usage(format!(
            "--screenshots: there is no folder {}",
            folder.display()
        )));
    }
    let since = args.older_than.as_deref().map(|age| before(&now(), age));
    let options = Options {
        which: which(args),
        proven_since: since.transpose()?,
        level: args.level.as_deref().and_then(level),
        pattern: args.console_pattern.clone(),
        command: args.command.clone().map_or_else(Vec::new, |words| words.0),
        deadline: args.deadline,
        memory: Memory::AtMost(args.memory),
        scratch: absolute(args.scratch_dir.clone().unwrap_or_else(|| SCRATCH.into()))?,
        pictures: args.screenshots.clone(),
    };
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let domains = KeptDomains::select(repo.as_ref(), args.domains.all(), "verify", "--repository")?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let state = state_folder()?;
    clear_leftovers(host.as_ref(), &state);
    let progress = Progress::new();
    let means = Means {
        repo: repo.as_ref(),
        store: &ops::DiskStore,
        host: host.as_ref(),
        state: &state,
        monitor: &progress,
        stop,
        glance: GLANCE,
    };
    let verb = |domain: &str| prove(domain, &means, &options, &|| now().timestamp());
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
        answer(&Document::BootProof(document).json());
    }
    Ok(code)
}

/// The level with this word.
fn level(word: &str) -> Option<BootLevel> {
    BootLevel::ALL.into_iter().find(|level| level.word() == word)
}
