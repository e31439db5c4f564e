//! A user of the classic spelling: settings, a clock, and output without the parts that vary
//! between runs.

use crate::cli_lab::{Machine, Repo};
use crate::clock;
use crate::daemon::URI;
use crate::process::{COMMAND_DEADLINE, Finished, try_run};

/// A user with German settings, a clock, and a backup folder whose name contains a blank.
pub struct User {
    pub repo: Repo,
}

impl User {
    pub fn new() -> User {
        User { repo: Repo::new() }
    }

    /// Runs the program with these words at 02:00 in Berlin on that day. `OUT` stands for the
    /// backup folder.
    pub fn on(&self, day: &str, words: &[&str]) -> Finished {
        self.at(&format!("{day}T02:00:00[Europe/Berlin]"), words)
    }

    /// Runs the program with these words at that time, which names its zone.
    pub fn at(&self, time: &str, words: &[&str]) -> Finished {
        let out = self.repo.root().display().to_string();
        let mut words: Vec<String> = words.iter().map(|word| word.replace("OUT", &out)).collect();
        words.push(format!("--connect={URI}"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.repo.command(&words);
        clock::set(&mut command, time);
        for name in ["LANG", "LC_ALL", "LANGUAGE"] {
            command.env(name, "de_DE.UTF-8");
        }
        let finished = try_run(command, COMMAND_DEADLINE);
        self.repo.assert_nothing_beside();
        finished
    }

    /// The names of a domain's period folders.
    pub fn periods(&self, machine: &Machine) -> Vec<String> {
        let entries = std::fs::read_dir(self.repo.root().join(machine.name()));
        let names = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().expect("UTF-8")).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }
}

/// Replaces the parts of a text that vary between runs: domain names become `VM`, ids `ID`,
/// durations `TIME`, rates `RATE` and stored sizes `SIZE`.
pub fn golden(text: &str, machines: &[&Machine]) -> String {
    let mut text = text.to_owned();
    for (number, machine) in machines.iter().enumerate() {
        text = text.replace(machine.name(), &format!("VM{}", number + 1));
    }
    let words = text.split_inclusive([' ', '\n']).map(|word| {
        let bare = word.trim_end_matches([' ', '\n', ',', ';', ':', ')']);
        let end = &word[bare.len()..];
        if bare.starts_with("20") && bare.contains('T') && bare.contains('Z') {
            format!("ID{end}")
        } else if bare.ends_with("B/s") {
            format!("RATE{end}")
        } else {
            word.to_owned()
        }
    });
    let text: String = words.collect();
    let lines = text
        .split_inclusive('\n')
        .map(|line| match line.split_once(" in ") {
            Some((before, after)) if after.contains("RATE") => {
                let (_, rest) = after.split_once("RATE").expect("the line contains RATE");
                format!("{before} in TIME (RATE{rest}")
            }
            _ => without_idle_time(line),
        });
    lines.map(|line| without_stored_size(&line)).collect()
}

/// Replaces the size of compressed images, which depends on the version of zstd.
fn without_stored_size(line: &str) -> String {
    match line.split_once(", stored in ") {
        Some((before, after)) => {
            let (_, rest) = after.split_once(", ").expect("the state of the guest follows");
            format!("{before}, stored in SIZE, {rest}")
        }
        None => line.to_owned(),
    }
}

/// Replaces the duration in a line without a rate, which is printed when nothing was copied.
fn without_idle_time(line: &str) -> String {
    for nothing in [", no changes, ", ", no data, ", ", only zeroes, "] {
        if let Some((before, after)) = line.split_once(nothing)
            && let Some((_, rest)) = after.split_once(" s, ")
        {
            return format!("{before}{nothing}TIME, {rest}");
        }
    }
    line.to_owned()
}

#[track_caller]
pub fn says(finished: &Finished, machines: &[&Machine], code: i32, stdout: &str, stderr: &str) {
    // The times of progress reports depend on the machine, so these lines are skipped.
    let told = finished
        .stderr
        .split_inclusive('\n')
        .filter(|line| !line.contains(" %, "));
    let found = (
        finished.code,
        golden(&finished.stdout, machines),
        golden(&told.collect::<String>(), machines),
    );
    assert_eq!(
        found,
        (Some(code), stdout.to_owned(), stderr.to_owned()),
        "{finished:#?}"
    );
}
