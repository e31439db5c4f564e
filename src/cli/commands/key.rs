//! `vmsnap key`.

use super::{CommandResult, Refusal, repository_to_read};
use crate::cli::args::{KeyAddArgs, KeyArgs, KeyCommand, KeyExportArgs, KeyListArgs, KeyRemoveArgs};
use crate::cli::clock::now;
use crate::cli::exit_code::ExitCode;
use crate::cli::report::document::Document;
use crate::cli::report::pack as shown;
use crate::cli::secrets;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops;
use crate::ops::init::Recipient;
use crate::ops::key::{NewSlot, SlotOwner, done};

/// Carries out a command about the keys of a repository.
pub fn run(args: &KeyArgs, stop: &Stop) -> CommandResult {
    match &args.command {
        KeyCommand::List(args) => list(args, stop)?,
        KeyCommand::Add(args) => add(args, stop)?,
        KeyCommand::Remove(args) => remove(args, stop)?,
        KeyCommand::Export(args) => export(args, stop)?,
    }
    Ok(ExitCode::Ok)
}

fn list(args: &KeyListArgs, stop: &Stop) -> Result<(), Refusal> {
    let location = repository_to_read(args.repository.dir.as_ref())?;
    let facts = ops::init::facts(location, stop)?;
    answer(&match args.output_args.json {
        true => Document::Keys(shown::keys_document(&facts)).json(),
        false => shown::keys(&facts),
    });
    Ok(())
}

fn add(args: &KeyAddArgs, stop: &Stop) -> Result<(), Refusal> {
    let location = repository_to_read(args.repository.dir.as_ref())?;
    let recipient = args.encrypt_to.as_ref().map(|text| text.parse::<Recipient>());
    let recipient = done(recipient.transpose())?;
    let opener = secrets::opener(&args.opener.secret, args.opener.recovery_file.as_deref(), stop)?;
    let passphrase = match recipient {
        Some(_) => None,
        None => {
            let otherwise = "use --new-passphrase-file FILE or --encrypt-to RECIPIENT";
            let path = args.new_passphrase_file.as_deref();
            Some(secrets::new_passphrase(path, otherwise, stop)?)
        }
    };
    let owner = match (&recipient, &passphrase) {
        (Some(recipient), _) => SlotOwner::Recipient(recipient),
        (None, Some(passphrase)) => SlotOwner::Passphrase(passphrase),
        (None, None) => return Err(Refusal::new(ExitCode::Usage, "no new key was given")),
    };
    let new = NewSlot {
        owner,
        label: &args.label,
        now: now().timestamp(),
    };
    let slot = ops::key::add(location, &opener, &new, stop)?;
    answer(&shown::added(&slot));
    Ok(())
}

fn remove(args: &KeyRemoveArgs, stop: &Stop) -> Result<(), Refusal> {
    let location = repository_to_read(args.repository.dir.as_ref())?;
    let opener = secrets::opener(&args.opener.secret, args.opener.recovery_file.as_deref(), stop)?;
    let slot = ops::key::remove(location, &opener, &args.slot, stop)?;
    answer(&shown::removed(&slot));
    Ok(())
}

fn export(args: &KeyExportArgs, stop: &Stop) -> Result<(), Refusal> {
    let location = repository_to_read(args.repository.dir.as_ref())?;
    let slot = ops::key::export(location, args.slot.as_deref(), &args.to, stop)?;
    answer(&shown::exported(&slot, &args.to));
    Ok(())
}
