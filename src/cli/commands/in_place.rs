//! `vmsnap restore --in-place`.

use std::time::Instant;

use super::{CommandResult, Refusal, open_to_read, random};
use crate::cli::args::RestoreArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::ExitCode;
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::{in_place as shown, restore};
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops::in_place::{Mapping, Options, abandon, preview, restore_in_place};
use crate::ops::{self, Context};

/// Brings the disks of a shut-off domain back to a restore point.
pub fn run(args: &RestoreArgs, stop: &Stop) -> CommandResult {
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let failed = |error: ops::Error| {
        if args.output_args.json {
            answer(&Document::FailedRestore(restore::failed_document(&error)).json());
        }
        Refusal::from(error)
    };
    let progress = Progress::new();
    let context = Context {
        host: host.as_ref(),
        repo: repo.as_ref(),
        now: now(),
        monitor: &progress,
        stop: stop.clone(),
        random: &random,
    };
    let (domain, mapping) = chosen(args)?;
    let domain = domain.as_str();
    if args.abandon {
        let found = abandon(domain, &context, args.wait.time()).map_err(failed)?;
        answer(&shown::abandoned_text(domain, found.as_ref()));
        return Ok(ExitCode::Ok);
    }
    let options = Options {
        at: args.at.clone(),
        disks: match &mapping {
            None => args.disks.iter().map(|choice| choice.disk.clone()).collect(),
            Some(_) => Vec::new(),
        },
        mapping,
        discard_current: args.discard_current,
        full: args.full,
        compression: args.compress,
        wait: args.wait.time(),
    };
    if args.dry_run {
        let plan = preview(domain, &context, &options).map_err(failed)?;
        answer(&shown::plan_text(domain, &plan));
        return Ok(ExitCode::Ok);
    }
    let began = Instant::now();
    let outcome = restore_in_place(domain, &context, &options).map_err(failed)?;
    answer(&match args.output_args.json {
        true => Document::InPlace(shown::document(domain, &outcome)).json(),
        false => shown::text(domain, &outcome, began.elapsed()),
    });
    Ok(ExitCode::Ok)
}

/// The domain whose disks are written to, and the disk that is written onto another one.
fn chosen(args: &RestoreArgs) -> Result<(String, Option<Mapping>), Refusal> {
    let mapped = args
        .disks
        .iter()
        .find_map(|choice| Some((&choice.disk, choice.onto.as_ref()?)));
    let Some((disk, (domain, onto))) = mapped else {
        return Ok((args.domain.clone(), None));
    };
    if args.disks.len() > 1 {
        let what =
            "with --disk TARGET=DOMAIN:TARGET, only one disk can be restored at a time: give --disk once";
        return Err(ops::Error::of("", ops::Cause::Usage(what.to_owned())).into());
    }
    let mapping = Mapping {
        domain: args.domain.clone(),
        disk: disk.clone(),
        onto: onto.clone(),
    };
    Ok((domain.clone(), Some(mapping)))
}
