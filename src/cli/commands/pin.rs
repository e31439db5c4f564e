//! `vmsnap pin` and `vmsnap unpin`.

use super::{CommandResult, Refusal, open_to_read};
use crate::cli::args::{PinArgs, PinnedArgs, UnpinArgs};
use crate::cli::clock::now;
use crate::cli::exit_code::ExitCode;
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::pin as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::pin::{Means, PinRequest, change_pin};

/// Pins a restore point.
pub fn pin(args: &PinArgs, stop: &Stop) -> CommandResult {
    let change = PinRequest::Pin {
        note: args.note.clone(),
        now: now().timestamp(),
    };
    run(&args.point, &change, stop)
}

/// Unpins a restore point.
pub fn unpin(args: &UnpinArgs, stop: &Stop) -> CommandResult {
    run(&args.point, &PinRequest::Unpin, stop)
}

fn run(args: &PinnedArgs, change: &PinRequest, stop: &Stop) -> CommandResult {
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let json = args.output_args.json;
    let failed = |error: ops::Error| {
        if json {
            answer(&Document::FailedPin(shown::failed_document(&error)).json());
        }
        Refusal::from(error)
    };
    let progress = Progress::new();
    let means = Means {
        repo: repo.as_ref(),
        wait: args.wait.time(),
        monitor: &progress,
        stop,
    };
    let outcome = change_pin(&args.domain, &args.id, change, &means).map_err(failed)?;
    answer(&match json {
        true => Document::Pin(shown::document(&args.domain, &outcome)).json(),
        false => shown::text(&args.domain, &outcome),
    });
    Ok(ExitCode::Ok)
}
