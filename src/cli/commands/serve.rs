//! `vmsnap serve`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{CommandResult, open_to_read};
use crate::cli::args::ServeArgs;
use crate::cli::exit_code::ExitCode;
use crate::cli::log::{self, Entry, Level};
use crate::cli::progress::Progress;
use crate::cli::report::document::Document;
use crate::cli::report::serve as shown;
use crate::cli::stdout::answer;
use crate::model::stop::Stop;
use crate::ops::serve::{Means, Options, Place, Served, serve};

/// Serves disks until a signal asks to stop. That is the usual end, and a success.
pub fn run(args: &ServeArgs, stop: &Stop) -> CommandResult {
    let repo = open_to_read(args.repository.dir.as_ref(), &args.secret, stop)?;
    let place = match (&args.socket, args.listen) {
        (Some(path), _) => Place::Socket(path.clone()),
        (None, Some(address)) => {
            if !address.ip().is_loopback() {
                let what = format!(
                    "anybody who can reach {address} can read the disks: there is no encryption and no authentication"
                );
                log::tell(&Entry::of(Level::Warning, &args.domain, &what));
            }
            Place::Address(address)
        }
        (None, None) => Place::PrivateFolder(private_folder()),
    };
    let options = Options {
        at: args.at.clone(),
        disks: args.disks.clone(),
        place,
    };
    let progress = Progress::new();
    let means = Means {
        repo: repo.as_ref(),
        monitor: &progress,
        stop,
    };
    let began = Instant::now();
    let is_json = args.output_args.json;
    let ready = |served: &Served| {
        answer(&match is_json {
            true => Document::Serve(shown::document(&args.domain, served)).json_line(),
            false => shown::text(&args.domain, served),
        });
    };
    let outcome = serve(&args.domain, &means, &options, ready)?;
    answer(&match is_json {
        true => Document::Served(shown::ended_document(&args.domain, &outcome)).json_line(),
        false => shown::ended_text(&args.domain, &outcome, began.elapsed()),
    });
    Ok(match (outcome.has_damage(), outcome.has_failures()) {
        (true, _) => ExitCode::Damaged,
        (false, true) => ExitCode::Failed,
        (false, false) => ExitCode::Ok,
    })
}

/// The folder for sockets of this user.
fn private_folder() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/vmsnap-serve");
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime.filter(|folder| folder.is_absolute() && folder.is_dir()) {
        Some(folder) => folder.join("vmsnap-serve"),
        None => Path::new("/tmp").join(format!("vmsnap-serve-{}", user.as_raw())),
    }
}
