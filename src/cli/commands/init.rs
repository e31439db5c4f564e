//! `vmsnap init` and `vmsnap repository`.

use super::{CommandResult, Refusal, collect, integrity};
use crate::cli::args::{InfoArgs, InitArgs, RepositoryCommand, RepositoryCommandArgs};
use crate::cli::clock::now;
use crate::cli::exit_code::ExitCode;
use crate::cli::log::{self, Entry, Level};
use crate::cli::report::document::Document;
use crate::cli::report::pack as shown;
use crate::cli::secrets;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::init::{Options, Protection, Recipient};
use crate::ops::key::done;

/// Creates a pack repository.
pub fn run(args: &InitArgs, stop: &Stop) -> CommandResult {
    let options = Options {
        protection: protection(args, stop)?,
        label: args.label.clone(),
        now: now().timestamp(),
    };
    let made = ops::init::init(&args.location, options, stop)?;
    if !made.leftovers.is_empty() {
        let what = format!(
            "{} holds {} objects that interrupted runs left; you can delete them: {}",
            made.facts.location,
            made.leftovers.len(),
            shown::some(&made.leftovers)
        );
        log::tell(&Entry::new(Level::Warning, &what));
    }
    answer(&match args.output_args.json {
        true => Document::Init(shown::document(&made.facts)).json(),
        false => shown::created(&made.facts),
    });
    Ok(ExitCode::Ok)
}

fn protection(args: &InitArgs, stop: &Stop) -> Result<Protection, Refusal> {
    if args.no_encryption {
        return Ok(Protection::None);
    }
    if !args.encrypt_to.is_empty() {
        let recipients = args.encrypt_to.iter().map(|text| text.parse());
        let recipients: Result<Vec<Recipient>, _> = recipients.collect();
        return Ok(Protection::Recipients(done(recipients)?));
    }
    let otherwise = "use --passphrase-file FILE, --encrypt-to RECIPIENT or --no-encryption";
    let path = args.passphrase_file.clone().or_else(secrets::passphrase_file);
    let passphrase = secrets::new_passphrase(path.as_deref(), otherwise, stop)?;
    Ok(Protection::Passphrase(passphrase))
}

/// Carries out a command about a repository as a whole.
pub fn repository(args: &RepositoryCommandArgs, stop: &Stop) -> CommandResult {
    match &args.command {
        RepositoryCommand::Info(args) => info(args, stop),
        RepositoryCommand::Collect(args) => collect::run(args, stop),
        RepositoryCommand::Check(args) => integrity::check(args, stop),
        RepositoryCommand::RebuildIndex(args) => integrity::rebuild_index(args, stop),
    }
}

fn info(args: &InfoArgs, stop: &Stop) -> CommandResult {
    let facts = ops::init::facts(&args.location, stop)?;
    answer(&match args.output_args.json {
        true => Document::Info(shown::document(&facts)).json(),
        false => shown::text(&facts),
    });
    Ok(ExitCode::Ok)
}
