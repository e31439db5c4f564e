//! `vmsnap demo`: backs up and restores a temporary domain and compares every byte. It is also the
//! smoke test.

use std::path::{Path, PathBuf};

use super::{CommandResult, Refusal, random};
use crate::cli::args::DemoArgs;
use crate::cli::clock::now;
use crate::cli::exit_code::ExitCode;
use crate::cli::pretty;
use crate::cli::progress::Progress;
use crate::cli::report::{self, list::Columns};
use crate::cli::stdout::{answer, answer_in_colour};
use crate::demo::{self, Embed, Machine, Part, Write};
use crate::model::left_out::NOTHING_EXCLUDED;
use crate::model::period::GroupBy;
use crate::model::restore_point::Level;
use crate::model::stop::Stop;
use crate::model::text::with_sources;
use crate::ops::backup::{Options, Outcome, backup};
use crate::ops::{self, Context, Repository, restore};

const DOMAIN: &str = "vmsnap-demo";
const MIB: usize = 1 << 20;
const SIZE: usize = 64 * MIB;

/// A folder below `dir` that does not exist yet.
pub fn folder(dir: &Path) -> PathBuf {
    dir.join(format!("vmsnap-demo-{:08x}", random() as u32))
}

/// Runs the demonstration. The exit code is 0 only if all restored bytes are right.
pub fn run(args: &DemoArgs, stop: &Stop) -> CommandResult {
    say("This takes about ten seconds. It needs no libvirt daemon and changes nothing on this host.");
    say("Starting libvirt's QEMU driver inside this process, in a temporary folder ...");
    let embed = Embed::start(&args.folder).map_err(failed)?;
    if embed.is_nobody() {
        say("libvirt's own user for QEMU does not exist on this machine: the demo runs as the user nobody.");
    }
    let result = story(&embed, stop);
    let folder = embed.folder();
    drop(embed);
    if result.is_ok() {
        let left = if folder.exists() {
            "could not be removed"
        } else {
            "was removed"
        };
        say(&format!("\nThe temporary folder {left}: {}", folder.display()));
        say(&next_commands(&program(), own_domain().as_deref()));
    }
    match (result, stop.reason()) {
        (_, Some(reason)) => Ok(ExitCode::of_stop(reason)),
        (result, None) => result,
    }
}

fn story(embed: &Embed, stop: &Stop) -> CommandResult {
    let mut machine = Machine::start(embed, DOMAIN, SIZE).map_err(failed)?;
    say(&format!(
        "A temporary domain '{DOMAIN}' was started (paused, without an operating system) with a disk of {}.\n",
        pretty::bytes(SIZE as u64)
    ));
    let repo = ops::open_or_create_folder(&embed.folder().join("backups"))?;

    say("The guest writes 24 MiB in several places.");
    guest(&mut machine, stop, &FIRST)?;
    let first = make_point(embed, repo.as_ref(), stop, Level::Full)?;
    let at_first = machine.model().to_vec();

    say(
        "\nThe guest overwrites 2 MiB, writes zeroes over 4 MiB, discards 3 MiB, and writes 64 KiB elsewhere.",
    );
    guest(&mut machine, stop, &THEN)?;
    let second = make_point(embed, repo.as_ref(), stop, Level::Incremental)?;
    let at_second = machine.model().to_vec();

    say("\nThe guest writes more data, which is in no restore point.");
    guest(&mut machine, stop, &LAST)?;

    say("\nvmsnap list:");
    let listed = ops::list::list(repo.as_ref(), &[DOMAIN.to_owned()])?;
    say(report::list::text(&listed, &repo.location(), Columns::Fitting(80)).trim_end());
    say("\nvmsnap status:");
    let subject = ops::status::Subject {
        store_decrypted: false,
        exclude: &NOTHING_EXCLUDED,
        host: embed.host(),
        repo: Some(repo.as_ref()),
        group_by: GroupBy::Month,
        full: crate::model::level::FullRule::Period,
        today: now().date(),
    };
    let status = ops::status::status(DOMAIN, &subject)?;
    answer_in_colour(&report::status::text(&status, false));

    say("");
    for (outcome, expected) in [(&first, &at_first), (&second, &at_second)] {
        compare(embed, repo.as_ref(), stop, &outcome.point.id, expected)?;
    }
    say("\nBoth restore points were restored byte for byte.");
    Ok(ExitCode::Ok)
}

/// The three commands to try next, ready to be copied.
fn next_commands(program: &str, domain: Option<&str>) -> String {
    let note = match domain {
        Some(_) => "",
        None => "; vm1 stands for one of your domains",
    };
    let domain = domain.unwrap_or("vm1");
    format!(
        "\nTry it on a domain of your own (as root{note}):\n  \
         {program} status\n  \
         {program} backup {domain} --output /backups\n  \
         {program} restore {domain} --repository /backups --to /var/tmp/drill"
    )
}

/// The name by which this program was started, as a word for the shell.
fn program() -> String {
    let typed = std::env::args().next();
    typed
        .filter(|typed| is_plain(typed))
        .unwrap_or_else(|| "vmsnap".to_owned())
}

/// The first domain of this host whose name needs no quotes in a shell, running ones first.
fn own_domain() -> Option<String> {
    let names = ops::connect_to_look(None)?.domain_names().ok()?;
    names.into_iter().find(|name| is_plain(name))
}

/// Whether the word needs no quotes in a shell and is not a switch.
fn is_plain(word: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    !word.is_empty() && !word.starts_with('-') && word.chars().all(is_safe)
}

const FIRST: [Write; 3] = [
    Write::Data {
        offset: 0,
        length: 8 * MIB,
        byte: 0xa1,
    },
    Write::Data {
        offset: 20 * MIB,
        length: 12 * MIB,
        byte: 0xb2,
    },
    Write::Data {
        offset: 60 * MIB,
        length: 4 * MIB,
        byte: 0xc3,
    },
];

const THEN: [Write; 4] = [
    Write::Data {
        offset: MIB,
        length: 2 * MIB,
        byte: 0xd4,
    },
    Write::Zero {
        offset: 22 * MIB,
        length: 4 * MIB,
    },
    Write::Discard {
        offset: 28 * MIB,
        length: 3 * MIB,
    },
    Write::Data {
        offset: 40 * MIB + 4096,
        length: 65536,
        byte: 0xe5,
    },
];

const LAST: [Write; 1] = [Write::Data {
    offset: 0,
    length: SIZE,
    byte: 0xff,
}];

fn guest(machine: &mut Machine, stop: &Stop, writes: &[Write]) -> Result<(), Refusal> {
    for write in writes {
        go_on(stop)?;
        machine.write(*write).map_err(failed)?;
    }
    Ok(())
}

fn make_point(
    embed: &Embed,
    repo: &dyn Repository,
    stop: &Stop,
    expected: Level,
) -> Result<Outcome, Refusal> {
    go_on(stop)?;
    let context = Context {
        host: embed.host(),
        repo,
        now: now(),
        monitor: &Progress::silent(),
        stop: stop.clone(),
        random: &random,
    };
    let outcome = backup(DOMAIN, &context, &Options::default())?;
    let point = &outcome.point;
    if point.level != expected {
        return Err(wrong(format!(
            "the level of the backup is wrong: expected {}, found {}",
            expected.word(),
            point.level.word()
        )));
    }
    let disk = &point.disks[0];
    say(&format!(
        "Restore point {} ({}): {} of data, {} of zeroes.",
        point.id,
        point.level.word(),
        pretty::bytes(disk.data_bytes),
        pretty::bytes(disk.zero_bytes)
    ));
    Ok(outcome)
}

/// Restores the disk from a restore point and compares it with the disk as it was backed up.
fn compare(
    embed: &Embed,
    repo: &dyn Repository,
    stop: &Stop,
    id: &str,
    expected: &[u8],
) -> Result<(), Refusal> {
    go_on(stop)?;
    let to = embed.folder().join(format!("restored-{id}.raw"));
    let options = restore::Options {
        at: id.to_owned(),
        to: to.clone(),
        pool: None,
        disks: vec![],
        format: Some(restore::Format::Raw),
        define: None,
    };
    let plan = restore::plan(DOMAIN, repo, None, &options)?;
    let means = restore::Means {
        repo,
        store: &ops::DiskStore,
        host: None,
        monitor: &Progress::silent(),
        stop,
    };
    restore::restore(DOMAIN, plan, &means)?;
    match first_difference(&to, expected)
        .map_err(|error| wrong(format!("cannot read {}: {error}", to.display())))?
    {
        None => {
            say(&format!(
                "Restored {id}: all {} are identical to the disk at the time of the backup.",
                pretty::bytes(expected.len() as u64)
            ));
            Ok(())
        }
        Some(offset) => Err(wrong(format!(
            "the disk restored from {id} differs from the disk that was backed up, at byte offset {offset}"
        ))),
    }
}

fn first_difference(path: &Path, expected: &[u8]) -> std::io::Result<Option<usize>> {
    let found = std::fs::read(path)?;
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    Ok(differs.or((found.len() != expected.len()).then(|| found.len().min(expected.len()))))
}

fn go_on(stop: &Stop) -> Result<(), Refusal> {
    match stop.reason() {
        Some(reason) => Err(Refusal::new(ExitCode::of_stop(reason), "stopped on request")),
        None => Ok(()),
    }
}

fn failed(error: demo::Error) -> Refusal {
    if let demo::Error::Missing { parts } = &error {
        let mut refusal = Refusal::new(ExitCode::Missing, error.to_string());
        refusal.hint = Some(to_install(parts));
        return refusal;
    }
    Refusal::new(ExitCode::Failed, with_sources(&error))
}

/// The commands that install these parts.
fn to_install(parts: &[Part]) -> String {
    let debian: Vec<&str> = parts.iter().map(|part| part.debian()).collect();
    let fedora: Vec<&str> = parts.iter().map(|part| part.fedora()).collect();
    format!(
        "run as root: apt-get install --no-install-recommends {} (Debian, Ubuntu), dnf install {} (Fedora)",
        debian.join(" "),
        fedora.join(" ")
    )
}

fn wrong(message: String) -> Refusal {
    Refusal::new(ExitCode::Damaged, message)
}

fn say(line: &str) {
    answer(&format!("{line}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_commands_can_be_copied() {
        let expected = "\nTry it on a domain of your own (as root):\n  \
            target/release/vmsnap status\n  \
            target/release/vmsnap backup web1 --output /backups\n  \
            target/release/vmsnap restore web1 --repository /backups --to /var/tmp/drill";
        assert_eq!(next_commands("target/release/vmsnap", Some("web1")), expected);
        let without = next_commands("vmsnap", None);
        assert!(
            without.contains("vm1 stands for one of your domains"),
            "{without}"
        );
        assert!(
            without.contains("\n  vmsnap backup vm1 --output /backups\n"),
            "{without}"
        );
    }

    #[test]
    fn only_words_that_need_no_quotes_are_offered() {
        for word in ["web1", "target/release/vmsnap", "a_b-c.d"] {
            assert!(is_plain(word), "{word:?}");
        }
        for word in ["", "-rf", "a b", "$(x)", "a;b", "\u{e4}", "*", "a\nb", "it's"] {
            assert!(!is_plain(word), "{word:?}");
        }
    }
}
