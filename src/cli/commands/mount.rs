//! `vmsnap mount`.

use super::{CommandResult, Refusal, open_to_read};
use crate::cli::args::MountArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::progress::Progress;
use crate::cli::report::mount as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops::mount::{Means, Options, mount};

/// Shows a restore point as files, until a signal or until it is unmounted.
pub fn run(args: &MountArgs, stop: &Stop) -> CommandResult {
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let options = Options {
        at: args.at.clone(),
        dir: args.dir.clone(),
        allow_other: args.allow_other,
    };
    let progress = Progress::new();
    let means = Means {
        repo: repo.as_ref(),
        monitor: &progress,
        stop,
    };
    let outcome = mount(&args.domain, &means, &options, &mut |mounted| {
        answer(&shown::ready_text(&args.domain, mounted, &args.dir));
    });
    let outcome = outcome.map_err(Refusal::from)?;
    answer(&shown::text(&args.domain, &outcome, &args.dir));
    Ok(match (outcome.is_damaged, outcome.failed_reads) {
        (true, _) => ExitCode::Damaged,
        (false, 0) => ExitCode::Ok,
        (false, _) => ExitCode::Failed,
    })
}
