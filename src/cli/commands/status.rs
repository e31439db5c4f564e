//! `vmsnap status`.

use std::path::Path;

use super::{
    CommandResult, Refusal, exclusions, failures, group_by, repository_path, session_hint, tell_error,
    tell_missing, tell_summary, tell_unmatched, tell_versions, with_access,
};
use crate::cli::args::StatusArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::{ExitCode, Verb};
use crate::cli::log::{self, Entry, Level};
use crate::cli::pretty;
use crate::cli::report::backup::plan_lines;
use crate::cli::report::status::{Form, Look, write};
use crate::cli::select::select;
use crate::cli::stdout::{answer, answer_in_colour};
use crate::model::finding::Finding;
use crate::model::left_out::LeftOut;
use crate::model::stop::Stop;
use crate::model::text::shown;
use crate::ops::each::Round;
use crate::ops::status::{DomainStatus, Subject, statuses};
use crate::ops::{self, Repository};

/// The pattern to report if no domain is given and the host has none.
const EVERY_DOMAIN: &str = "*";

/// Shows the status of the given domains, or of all.
pub fn run(args: &StatusArgs, stop: &Stop) -> CommandResult {
    let group_by = group_by(&args.group_by)?;
    let typed = domains_asked_for(args)?;
    let path = args
        .output
        .as_ref()
        .map(|path| repository_path(Some(path)))
        .transpose()?;
    let repo = path
        .map(|path| {
            with_access(&args.secret, stop, |access| {
                ops::open_or_empty_repository(path, access)
            })
        })
        .transpose()?;
    let host = ops::connect(args.connect.connect.as_deref())?;
    let names = host.domain_names().map_err(|error| ops::Error::of("", error))?;
    let selection = match typed {
        Some(typed) => select(&typed, &names),
        // On a host without domains nothing matches.
        None if names.is_empty() => select(&[EVERY_DOMAIN.to_owned()], &names),
        None => select(&names, &names),
    };
    let hint = session_hint(&args.connect, host.uri());
    tell_unmatched(&selection.unmatched, hint.as_deref());
    tell_versions(host.as_ref(), selection.domains.len(), names.len());
    let exclude = exclusions(&args.exclude_disk, &selection, &names, host.as_ref())?;
    let subject = Subject {
        store_decrypted: args.store_decrypted && !args.no_store_decrypted,
        exclude: &exclude,
        host: host.as_ref(),
        repo: repo.as_deref(),
        group_by,
        full: args.full,
        today: now().date(),
    };
    let results = statuses(&selection.domains, &subject, stop);
    let round = Round::of(&selection.domains, results, stop);
    let faults = round.faults(&selection.unmatched);
    let not_examined = round
        .outcomes()
        .filter_map(|status| not_examined_line(&status.domain, status.not_examined()));
    let failures: Vec<String> = failures(&round).chain(not_examined).collect();
    round.turns.iter().for_each(tell_error);
    tell_missing(&round, &["qemu-img"]);
    let mut found: Vec<DomainStatus> = round
        .turns
        .into_iter()
        .filter_map(|turn| turn.result.ok())
        .collect();
    for status in &mut found {
        tell_not_examined(status);
        tell_details(status);
        if let (Some(repo), Some(typed)) = (&repo, &args.output) {
            show_as_typed(status, repo.as_ref(), typed);
        }
    }
    let look = Look {
        form: match (args.yaml, args.json) {
            (true, _) => Form::Yaml,
            (false, true) => Form::Json,
            (false, false) => Form::Text,
        },
        machine: args.machine,
        pretty: args.pretty,
    };
    let text = write(&found, look);
    match look.form {
        Form::Text => answer_in_colour(&text),
        Form::Json | Form::Yaml => answer(&text),
    }
    tell_summary(&selection.unmatched, failures, selection.domains.len());
    Ok(ExitCode::of_faults(&faults, Verb::Other))
}

/// The given domains; `None` if there are none. An empty switch (`--domains=$UNSET`) does not
/// select all domains.
fn domains_asked_for(args: &StatusArgs) -> Result<Option<Vec<String>>, Refusal> {
    let typed = args.domains.all();
    if typed.is_empty() {
        return Ok(None);
    }
    if typed.iter().all(|item| item.trim_matches([' ', ',']).is_empty()) {
        return Err(Refusal::new(ExitCode::NoDomains, "No domains specified"));
    }
    Ok(Some(typed))
}

/// Shows the path as it was typed, because scripts compare it; the repository's own path is
/// resolved.
fn show_as_typed(status: &mut DomainStatus, repo: &dyn Repository, typed: &Path) {
    if let Some(dir) = &mut status.dir
        && let Ok(below) = Path::new(&dir.location).strip_prefix(repo.location())
    {
        dir.location = typed.join(below).display().to_string();
    }
}

/// Prints which disks could not be examined. Because of them the exit code is not 0.
fn tell_not_examined(status: &DomainStatus) {
    for finding in status.not_examined() {
        log::tell(&Entry {
            disk: finding.disk.as_deref(),
            ..Entry::of(Level::Error, &status.domain, without_disk(finding))
        });
    }
}

/// The disks of a domain that could not be examined, in one line for the summary; `None` if there
/// are none.
fn not_examined_line<'a>(domain: &str, findings: impl Iterator<Item = &'a Finding>) -> Option<String> {
    let disks = findings.map(|finding| {
        let disk = finding.disk.as_deref().unwrap_or_default();
        format!("disk {}: {}", shown(disk), without_disk(finding))
    });
    let disks: Vec<String> = disks.collect();
    (!disks.is_empty()).then(|| format!("{}, {}", shown(domain), disks.join("; ")))
}

/// The message of a finding without its first words `disk NAME`, for lines that already name it.
fn without_disk(finding: &Finding) -> &str {
    let disk = finding.disk.as_deref().unwrap_or_default();
    let rest = finding.message.strip_prefix("disk ");
    let rest = rest.and_then(|rest| rest.strip_prefix(disk)?.strip_prefix(' '));
    rest.unwrap_or(&finding.message)
}

/// Prints the details of `--verbose`.
fn tell_details(status: &DomainStatus) {
    let what = format!(
        "{}, checkpoints: {}, eligible disks: {}, inconsistencies: {}",
        status.state.word(),
        status.checkpoints.len(),
        status.disks.len(),
        status.inconsistencies.len()
    );
    log::tell(&Entry::of(Level::Debug, &status.domain, &what));
    let next = status.next.as_ref();
    let left_out = status.left_out.iter().map(LeftOut::finding);
    let known: Vec<Finding> = left_out.chain(status.findings.iter().cloned()).collect();
    let steps = next.map(|next| plan_lines(next, status.writer.as_deref(), &known));
    for step in steps.into_iter().flatten() {
        let what = format!("the next backup: {step}");
        log::tell(&Entry::of(Level::Debug, &status.domain, &what));
    }
    for disk in &status.disks {
        let changed = disk.changed_bytes.map_or("not known".to_owned(), pretty::bytes);
        let what = format!(
            "virtual size: {}; changed since the newest checkpoint: {changed}",
            pretty::bytes(disk.virtual_size)
        );
        log::tell(&Entry {
            disk: Some(&disk.target),
            ..Entry::of(Level::Trace, &status.domain, &what)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_has_one_line_in_the_summary() {
        let finding = |disk: &str, why: &str| {
            Finding::of_disk(
                "disk-not-examined",
                disk,
                format!("disk {disk} cannot be examined: {why}"),
            )
        };
        let findings = [
            finding("vda", "no such file"),
            finding("vdb", "not a qcow2 image"),
        ];
        assert_eq!(
            not_examined_line("vm1", findings.iter()).as_deref(),
            Some(
                "vm1, disk vda: cannot be examined: no such file; disk vdb: cannot be examined: not a qcow2 image"
            )
        );
        assert_eq!(not_examined_line("vm1", [].iter()), None);
    }
}
