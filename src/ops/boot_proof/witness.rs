//! Sees how far the guest of a trial domain comes.

use std::time::{Duration, Instant};

use regex::bytes::{Regex, RegexBuilder};

use super::console::Console;
use super::{Options, USUAL_PATTERN};
use crate::host::trial::{GuestExit, Trial};
use crate::io::as_png;
use crate::model::guest::{BootLevel, GuestFacts};
use crate::model::restore_point::RestorePoint;
use crate::model::text::{shown, with_sources};
use crate::ops::Cause;
use crate::ops::boot::{self, BootPlan, Booted, Ending, Means, Onlooker, Sight};
use crate::ops::monitor::Event;

/// The longest time for one answer of the agent.
const ANSWER: Duration = Duration::from_secs(5);

/// The time between two questions to the agent, in looks at the domain.
const BETWEEN_QUESTIONS: u32 = 4;

/// The witness of one trial domain.
pub(super) struct Witness<'a> {
    means: &'a Means<'a>,
    domain: &'a str,
    wanted: BootLevel,
    /// Whether the user has named the pattern, so that it has to appear whatever else is seen.
    needs_pattern: bool,
    pattern: Regex,
    command: &'a [String],
    deadline: Duration,
    wants_picture: bool,
    /// What was recorded when the restore point was made.
    recorded: Option<GuestFacts>,
    /// The targets of the disks that the domain has.
    disks: Vec<String>,
    console: Option<Console>,
    began: Instant,
    looks_until_question: u32,
    seen_levels: Vec<BootLevel>,
    /// What differs from the recorded facts, as far as the agent has reported.
    difference: Option<String>,
    program: Program,
    is_late: bool,
    picture: Result<Vec<u8>, String>,
}

/// The user's program in the guest.
enum Program {
    NotStarted,
    /// With this number.
    Runs(u64),
    Succeeded,
    /// For this reason, as part of a sentence.
    Failed(String),
}

/// What a witness has seen.
pub(super) struct Seen {
    pub(super) reached: BootLevel,
    /// Why the guest did not come far enough; `None` if it did.
    pub(super) shortfall: Option<String>,
    pub(super) took: Duration,
    /// The picture of its screen, or why there is none.
    pub(super) picture: Result<Vec<u8>, String>,
    /// The end of the console's text.
    pub(super) console: String,
    pub(super) last_line: String,
}

/// Reads a pattern for the text of a console. `^` and `$` match at every line.
///
/// # Errors
/// It is no pattern, or too large.
pub fn of_lines(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).multi_line(true).build()
}

impl<'a> Witness<'a> {
    pub(super) fn new(
        domain: &'a str,
        wanted: BootLevel,
        options: &'a Options,
        point: &RestorePoint,
        plan: &BootPlan,
        means: &'a Means<'a>,
    ) -> Result<Witness<'a>, Cause> {
        let usual = || of_lines(USUAL_PATTERN).map_err(|error| Cause::Usage(error.to_string()));
        let pattern = options.pattern.clone().map_or_else(usual, Ok)?;
        let recorded = point.guest.clone().filter(GuestFacts::is_comparable);
        Ok(Witness {
            means,
            domain,
            wanted,
            needs_pattern: options.pattern.is_some(),
            pattern,
            command: &options.command,
            deadline: options.deadline,
            wants_picture: options.pictures.is_some(),
            recorded,
            disks: plan.disks.iter().map(|disk| disk.target.clone()).collect(),
            console: None,
            began: Instant::now(),
            looks_until_question: 0,
            seen_levels: Vec::new(),
            difference: None,
            program: Program::NotStarted,
            is_late: false,
            picture: Err("the guest ended before a picture could be taken".to_owned()),
        })
    }

    fn has_seen(&self, level: BootLevel) -> bool {
        self.seen_levels.contains(&level)
    }

    fn note(&mut self, level: BootLevel) {
        if self.has_seen(level) {
            return;
        }
        self.seen_levels.push(level);
        let what = match level {
            BootLevel::Nothing => return,
            BootLevel::Read => "the guest reads its disks",
            BootLevel::Console => "the console shows the expected text",
            BootLevel::Agent => "the guest agent answers",
            BootLevel::Same => "host name and file systems are the same",
            BootLevel::Command => "the command has succeeded",
        };
        self.means.monitor.event(Event::Step {
            domain: self.domain,
            what,
        });
    }

    fn reached(&self) -> BootLevel {
        let highest = self.seen_levels.iter().max();
        highest.copied().unwrap_or(BootLevel::Nothing)
    }

    /// Whether the guest came as far as it should.
    fn is_satisfied(&self) -> bool {
        let has_pattern = !self.needs_pattern || self.has_seen(BootLevel::Console);
        self.reached() >= self.wanted && has_pattern
    }

    /// Whether nothing can be expected any more.
    fn is_hopeless(&self) -> bool {
        let lacks_record = self.wanted == BootLevel::Same && self.recorded.is_none();
        matches!(self.program, Program::Failed(_)) || lacks_record && self.has_seen(BootLevel::Agent)
    }

    /// Asks the agent for what is still missing. What it does not answer is asked again later.
    fn ask(&mut self, trial: &dyn Trial) {
        if !self.has_seen(BootLevel::Agent) {
            match trial.agent_answers(ANSWER) {
                Ok(true) => self.note(BootLevel::Agent),
                _ => return,
            }
        }
        if self.wanted >= BootLevel::Same
            && !self.has_seen(BootLevel::Same)
            && let Some(recorded) = &self.recorded
        {
            let Ok(Some(facts)) = trial.guest_facts(ANSWER) else {
                return;
            };
            let disks: Vec<&str> = self.disks.iter().map(String::as_str).collect();
            self.difference = facts.differs_from(recorded, &disks);
            match self.difference {
                None => self.note(BootLevel::Same),
                // It may still be mounting them.
                Some(_) => return,
            }
        }
        if self.wanted >= BootLevel::Command {
            self.run(trial);
        }
    }

    fn run(&mut self, trial: &dyn Trial) {
        self.program = match self.program {
            Program::NotStarted => match trial.run_in_guest(self.command, ANSWER) {
                Ok(number) => Program::Runs(number),
                Err(error) => Program::Failed(format!("could not be started: {}", with_sources(&error))),
            },
            Program::Runs(number) => match trial.guest_exit(number, ANSWER) {
                Ok(Some(GuestExit::Code(0))) => Program::Succeeded,
                Ok(Some(GuestExit::Code(code))) => Program::Failed(format!("ended with code {code}")),
                Ok(Some(GuestExit::Signal(signal))) => {
                    Program::Failed(format!("was ended by signal {signal}"))
                }
                // A busy agent answers later.
                Ok(None) | Err(_) => Program::Runs(number),
            },
            _ => return,
        };
        if matches!(self.program, Program::Succeeded) {
            self.note(BootLevel::Command);
        }
    }

    fn take_picture(&mut self, trial: &dyn Trial) {
        if self.wants_picture {
            let picture = trial.screenshot().map_err(|error| with_sources(&error));
            self.picture = picture.and_then(|picture| as_png(&picture));
        }
    }

    /// What a witness has seen of a domain that has ended so, and has read this many bytes.
    pub(super) fn end(mut self, ending: Ending, is_damaged: bool, bytes_read: u64) -> Seen {
        if bytes_read > 0 {
            self.note(BootLevel::Read);
        }
        // The last words of a guest that has ended by itself.
        self.read_console();
        let took = self.began.elapsed();
        let shortfall = match self.is_satisfied() && !is_damaged {
            true => None,
            false => Some(self.shortfall(ending, is_damaged)),
        };
        let console = self.console.as_ref().map(Console::text).unwrap_or_default();
        let lines = console.lines().map(str::trim);
        let last_line = lines.rev().find(|line| !line.is_empty()).unwrap_or_default();
        Seen {
            reached: self.reached(),
            shortfall,
            took,
            picture: self.picture,
            last_line: shown(last_line).to_string(),
            console,
        }
    }

    fn read_console(&mut self) {
        let Some(console) = &mut self.console else {
            return;
        };
        console.read();
        if console.is_matched() {
            self.note(BootLevel::Console);
        }
    }

    /// Why the guest did not come far enough: the first thing that is missing.
    fn shortfall(&self, ending: Ending, is_damaged: bool) -> String {
        if is_damaged {
            return "the guest asked for data of the restore point that are damaged".to_owned();
        }
        let end = match (ending, self.is_late) {
            (Ending::Ended, _) => "before the guest shut down".to_owned(),
            (_, true) => format!("within {} s", self.deadline.as_secs()),
            _ => "before the domain was ended".to_owned(),
        };
        let needs_console = self.needs_pattern || self.wanted == BootLevel::Console;
        if self.reached() == BootLevel::Nothing {
            return format!("the guest did not read from its disks {end}");
        }
        if needs_console && !self.has_seen(BootLevel::Console) {
            let pattern = shown(self.pattern.as_str());
            return format!("its console did not show '{pattern}' {end}");
        }
        if !self.has_seen(BootLevel::Agent) {
            return format!("its guest agent did not answer {end}");
        }
        if self.wanted == BootLevel::Same && self.recorded.is_none() {
            return "nothing was recorded about its guest when it was made, because no guest agent answered then".to_owned();
        }
        if self.recorded.is_some() && !self.has_seen(BootLevel::Same) {
            return match &self.difference {
                Some(difference) => format!("{} {end}", shown(difference)),
                None => format!("its guest agent reported neither host name nor file systems {end}"),
            };
        }
        match &self.program {
            Program::Failed(why) => format!("the command {}", shown(why)),
            _ => format!("the command did not end {end}"),
        }
    }
}

impl Onlooker for Witness<'_> {
    fn begin(&mut self, plan: &BootPlan) -> Result<(), Cause> {
        let path = plan.console();
        let console = Console::listen(&path, self.pattern.clone()).map_err(|source| Cause::Io {
            operation: "listen at",
            path: path.clone(),
            source,
        })?;
        boot::give_qemu(&path, self.means.host)?;
        self.console = Some(console);
        Ok(())
    }

    fn started(&mut self, _booted: &Booted<'_>) {
        self.began = Instant::now();
        self.means.monitor.event(Event::Step {
            domain: self.domain,
            what: "the guest starts",
        });
    }

    fn look(&mut self, sight: &Sight<'_>) -> bool {
        if sight.bytes_read > 0 {
            self.note(BootLevel::Read);
        }
        self.read_console();
        if self.wanted >= BootLevel::Agent {
            match self.looks_until_question.checked_sub(1) {
                Some(left) => self.looks_until_question = left,
                None => {
                    self.looks_until_question = BETWEEN_QUESTIONS;
                    self.ask(sight.trial);
                }
            }
        }
        self.is_late = self.began.elapsed() >= self.deadline;
        if self.is_satisfied() || self.is_hopeless() || self.is_late {
            self.take_picture(sight.trial);
            return true;
        }
        false
    }
}
