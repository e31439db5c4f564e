//! Runs a verb for each of several domains and keeps the outcome of each.
//!
//! A domain that fails does not stop the others; a request to stop does.

use std::time::{Duration, Instant};

use super::monitor::Ending;
use super::{Cause, Class, Error, Event, Monitor, Result};
use crate::model::stop::{Stop, StopReason};

/// A reason why a run over several domains is not a full success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A pattern on the command line matches no domain.
    Unmatched,
    /// The work on a domain failed, or would fail now (in a dry run).
    Failed(Class),
    /// A disk is missing that should have been saved, or (in a dry run) no backup is possible.
    Partial,
    /// Pruning failed, or is not allowed now, so restore points remain that should have been
    /// removed.
    NotPruned,
    /// Stored data is damaged, or differs from the domain.
    Damaged,
    /// A guest did not come as far as it should.
    NotProven,
    /// Not everything could be examined.
    Incomplete,
    /// There was nothing to do in any domain.
    Nothing,
    /// The run was asked to stop, for this reason.
    Stopped(StopReason),
}

/// The part of a verb's result that a run over several domains needs.
pub trait Judged {
    /// The reasons why the result is no full success, although the verb returned no error.
    fn faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    /// The error in the result, if the verb could do only a part of the work.
    fn error(&self) -> Option<&Error> {
        None
    }
}

/// The work on one domain.
#[derive(Debug)]
pub struct Turn<T> {
    /// The domain's name.
    pub domain: String,
    /// How long the work took; zero if it did not begin or was not measured.
    pub took: Duration,
    /// How the work ended.
    pub ending: Ending,
    /// What the verb returned.
    pub result: Result<T>,
}

impl<T: Judged> Turn<T> {
    /// Creates the record of the work on a domain, with its duration and result.
    pub fn new(domain: &str, took: Duration, result: Result<T>) -> Turn<T> {
        let faults = faults_of(&result);
        let is_stop = |fault: &Fault| matches!(fault, Fault::Failed(Class::Stopped(_)));
        let ending = match &result {
            _ if faults.iter().any(is_stop) => Ending::Stopped,
            Err(_) => Ending::Failed,
            Ok(_) if faults.is_empty() => Ending::Done,
            Ok(_) => Ending::Partial,
        };
        Turn {
            domain: domain.to_owned(),
            took,
            ending,
            result,
        }
    }

    /// The error of the work, if there is one.
    pub fn error(&self) -> Option<&Error> {
        match &self.result {
            Ok(outcome) => outcome.error(),
            Err(error) => Some(error),
        }
    }

    /// The reasons why the work is no full success; none if the domain was skipped.
    pub fn faults(&self) -> Vec<Fault> {
        match self.ending {
            Ending::Skipped => Vec::new(),
            _ => faults_of(&self.result),
        }
    }
}

fn faults_of<T: Judged>(result: &Result<T>) -> Vec<Fault> {
    match result {
        Ok(outcome) => {
            let error = outcome.error().map(|error| Fault::Failed(error.class()));
            outcome.faults().into_iter().chain(error).collect()
        }
        Err(error) => vec![Fault::Failed(error.class())],
    }
}

/// A run over several domains.
#[derive(Clone, Copy)]
pub struct Each<'a> {
    /// The names of the domains, in their order.
    pub domains: &'a [String],
    /// The receiver of events.
    pub monitor: &'a dyn Monitor,
    /// The request to stop. After a request, the work on no further domain begins.
    pub stop: &'a Stop,
}

impl Each<'_> {
    /// Runs the verb for one domain after the other.
    ///
    /// `may_skip` decides whether a domain that fails with this error counts as skipped. `ended` is
    /// called after each domain, before the next one begins, but not for domains on which no work
    /// began.
    pub fn run<T: Judged>(
        &self,
        mut verb: impl FnMut(&str) -> Result<T>,
        may_skip: impl Fn(&str, &Error) -> bool,
        mut ended: impl FnMut(&Turn<T>),
    ) -> Round<T> {
        let mut turns = Vec::with_capacity(self.domains.len());
        for (place, domain) in self.domains.iter().enumerate() {
            if let Some(reason) = self.stop.reason() {
                let stopped = Err(Error::of(domain, Cause::Stopped(reason)));
                turns.push(Turn::new(domain, Duration::ZERO, stopped));
                continue;
            }
            self.monitor.event(Event::DomainBegins {
                domain,
                number: place + 1,
                of: self.domains.len(),
            });
            let began = Instant::now();
            let result = verb(domain);
            let is_skipped = matches!(&result, Err(error) if may_skip(domain, error));
            let mut turn = Turn::new(domain, began.elapsed(), result);
            if is_skipped {
                turn.ending = Ending::Skipped;
            }
            let ending = turn.ending;
            ended(&turn);
            self.monitor.event(Event::DomainEnds { domain, ending });
            turns.push(turn);
        }
        Round {
            turns,
            stopped: self.stop.reason(),
        }
    }
}

/// A run over several domains that has ended.
#[derive(Debug)]
pub struct Round<T> {
    /// The work on each domain, in the order of the domains.
    pub turns: Vec<Turn<T>>,
    /// Why the run was asked to stop; `None` if there was no request.
    pub stopped: Option<StopReason>,
}

impl<T: Judged> Round<T> {
    /// Makes a run from existing results. `status` uses it, because it examines several domains at
    /// the same time.
    pub fn of(domains: &[String], results: Vec<Result<T>>, stop: &Stop) -> Round<T> {
        let turns = domains.iter().zip(results);
        Round {
            turns: turns
                .map(|(domain, result)| Turn::new(domain, Duration::ZERO, result))
                .collect(),
            stopped: stop.reason(),
        }
    }

    /// The outcomes of the domains that have one.
    pub fn outcomes(&self) -> impl Iterator<Item = &T> {
        self.turns.iter().filter_map(|turn| turn.result.as_ref().ok())
    }

    /// Whether no domain has a fault and nobody asked to stop.
    pub fn is_clean(&self) -> bool {
        self.faults(&[]).is_success()
    }

    /// Collects the faults of all domains. A request to stop, if there was one, is a fault too, and
    /// so is each of `unmatched`, the patterns that match no domain.
    pub fn faults(&self, unmatched: &[String]) -> Faults {
        let patterns = unmatched.iter().map(|_| Fault::Unmatched);
        let of_turns = self.turns.iter().flat_map(Turn::faults);
        let stopped = self.stopped.map(Fault::Stopped);
        Faults::of(patterns.chain(of_turns).chain(stopped))
    }
}

/// The faults of a run, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    kinds: Vec<Fault>,
}

impl Faults {
    /// Collects these faults, each once.
    pub fn of(faults: impl IntoIterator<Item = Fault>) -> Faults {
        let mut kinds = Faults::default();
        faults.into_iter().for_each(|fault| kinds.add(fault));
        kinds
    }

    /// Adds a fault, unless the list contains it already.
    pub fn add(&mut self, fault: Fault) {
        if !self.kinds.contains(&fault) {
            self.kinds.push(fault);
        }
    }

    /// Whether everything that was requested was done.
    pub(crate) fn is_success(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The faults, in the order in which they occurred.
    pub fn kinds(&self) -> &[Fault] {
        &self.kinds
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ops::monitor::Silent;

    /// An outcome with these faults, and an error that ended the work.
    #[derive(Debug, Default)]
    struct Made(Vec<Fault>, Option<Error>);

    impl Judged for Made {
        fn faults(&self) -> Vec<Fault> {
            self.0.clone()
        }

        fn error(&self) -> Option<&Error> {
            self.1.as_ref()
        }
    }

    fn failure(domain: &str) -> Error {
        Error::of(domain, Cause::NothingToBackUp)
    }

    fn made(domain: &str) -> Result<Made> {
        match domain {
            "fails" => Err(failure(domain)),
            "empty" => Err(Error::of(domain, Cause::NoRestorePoints)),
            "partial" => Ok(Made(vec![Fault::Partial], None)),
            "breaks" => Ok(Made(Vec::new(), Some(failure(domain)))),
            _ => Ok(Made::default()),
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn run(domains: &[&str], stop: &Stop, mut ended: impl FnMut(&Turn<Made>)) -> Round<Made> {
        let domains = names(domains);
        let each = Each {
            domains: &domains,
            monitor: &Silent,
            stop,
        };
        let may_skip = |_: &str, error: &Error| matches!(error.cause, Cause::NoRestorePoints);
        each.run(made, may_skip, &mut ended)
    }

    fn endings(round: &Round<Made>) -> Vec<Ending> {
        round.turns.iter().map(|turn| turn.ending).collect()
    }

    #[test]
    fn a_failure_does_not_stop_the_other_domains() {
        let domains = ["fails", "empty", "partial", "breaks", "vm1"];
        let round = run(&domains, &Stop::default(), |_| {});
        let expected = [
            Ending::Failed,
            Ending::Skipped,
            Ending::Partial,
            Ending::Partial,
            Ending::Done,
        ];
        assert_eq!(endings(&round), expected);
        let faults = [Fault::Failed(Class::Failed), Fault::Partial];
        assert_eq!(
            round.faults(&[]).kinds(),
            faults,
            "each kind once, none of the skipped one"
        );
        let unmatched = round.faults(&names(&["nope", "nix"]));
        assert_eq!(unmatched.kinds()[0], Fault::Unmatched);
        assert_eq!(unmatched.kinds().len(), 3);
        assert!(!round.is_clean());
        assert_eq!(round.outcomes().count(), 3);
        let errors: Vec<bool> = round.turns.iter().map(|turn| turn.error().is_some()).collect();
        assert_eq!(errors, [true, true, false, true, false]);
    }

    #[test]
    fn a_stop_ends_the_run_after_the_domain() {
        let stop = Stop::default();
        let mut seen = Vec::new();
        let round = run(&["vm1", "vm2", "vm3"], &stop, |turn| {
            seen.push(turn.domain.clone());
            stop.request(StopReason::Interrupted);
        });
        assert_eq!(seen, ["vm1"], "the others never began");
        assert_eq!(endings(&round), [Ending::Done, Ending::Stopped, Ending::Stopped]);
        let met = round.faults(&[]);
        assert_eq!(
            met.kinds(),
            [
                Fault::Failed(Class::Stopped(StopReason::Interrupted)),
                Fault::Stopped(StopReason::Interrupted)
            ]
        );
    }

    #[test]
    fn a_run_without_faults_is_a_success() {
        let round = run(&["vm1", "empty"], &Stop::default(), |_| {});
        assert!(round.is_clean() && round.faults(&[]).is_success());
        let round = Round::of(&names(&["vm1"]), vec![made("vm1")], &Stop::default());
        assert!(round.is_clean());
    }

    #[test]
    fn the_monitor_hears_each_domain_begin_and_end() {
        struct Heard(Mutex<Vec<String>>);
        impl Monitor for Heard {
            fn event(&self, event: Event<'_>) {
                let what = match event {
                    Event::DomainBegins { domain, number, of } => format!("{domain} {number}/{of}"),
                    Event::DomainEnds { domain, ending } => format!("{domain} {}", ending.word()),
                    _ => return,
                };
                self.0.lock().expect("no thread panicked").push(what);
            }
        }
        let heard = Heard(Mutex::default());
        let domains = names(&["fails", "vm1"]);
        let each = Each {
            domains: &domains,
            monitor: &heard,
            stop: &Stop::default(),
        };
        each.run(made, |_, _| false, |_| {});
        let heard = heard.0.into_inner().expect("no thread panicked");
        assert_eq!(heard, ["fails 1/2", "fails failed", "vm1 2/2", "vm1 done"]);
    }
}
