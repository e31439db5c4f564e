//! `vmsnap restore`.

use std::path::Path;
use std::time::Instant;

use super::{CommandResult, Refusal, in_place, open_to_read};
use crate::cli::args::{FormatArg, RestoreArgs};
use crate::cli::exit_code::ExitCode;
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::restore as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::restore::{DefineOptions, Format, Means, Options, plan, restore};

/// Restores the chosen disks. Connects to the hypervisor for `--define` and `--pool`, and to find
/// out whether a domain uses the path given with `--to`.
pub fn run(args: &RestoreArgs, stop: &Stop) -> CommandResult {
    if args.in_place {
        return in_place::run(args, stop);
    }
    let to = args.to.clone().unwrap_or_default();
    if let Some(choice) = args.disks.iter().find(|choice| choice.onto.is_some()) {
        let what = format!(
            "--disk {}=… names a disk of another domain: this needs --in-place instead of --to or --pool",
            choice.disk
        );
        return Err(ops::Error::of("", ops::Cause::Usage(what)).into());
    }
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let host = match args.define || args.pool.is_some() {
        true => Some(ops::connect(args.connect.connect.as_deref())?),
        false if could_be_in_use(&to) => ops::connect_to_look(args.connect.connect.as_deref()),
        false => None,
    };
    let options = Options {
        at: args.at.clone(),
        to,
        pool: args.pool.clone(),
        disks: args.disks.iter().map(|choice| choice.disk.clone()).collect(),
        format: args.format.map(|format| match format {
            FormatArg::Qcow2 => Format::Qcow2,
            FormatArg::Raw => Format::Raw,
        }),
        define: args.define.then(|| DefineOptions {
            name: args.name.clone(),
        }),
    };
    let failed = |error: ops::Error| {
        if args.output_args.json && !args.dry_run {
            answer(&Document::FailedRestore(shown::failed_document(&error)).json());
        }
        Refusal::from(error)
    };
    let plan = plan(&args.domain, repo.as_ref(), host.as_deref(), &options).map_err(failed)?;
    if args.dry_run {
        answer(&shown::plan_text(&args.domain, &plan));
        return Ok(ExitCode::Ok);
    }
    let progress = Progress::new();
    let began = Instant::now();
    let means = Means {
        repo: repo.as_ref(),
        store: &ops::DiskStore,
        host: host.as_deref(),
        monitor: &progress,
        stop,
    };
    let outcome = restore(&args.domain, plan, &means).map_err(failed)?;
    let text = if args.output_args.json {
        Document::Restore(shown::document(&args.domain, &outcome)).json()
    } else {
        shown::text(&args.domain, &outcome, began.elapsed())
    };
    answer(&text);
    Ok(ExitCode::Ok)
}

/// Whether a domain could use the path `to`: the path exists, or its name looks like that of a
/// file. No domain uses a new folder.
fn could_be_in_use(to: &Path) -> bool {
    to.exists() || to.extension().is_some()
}
