//! Handles Ctrl-C, SIGTERM and SIGHUP. The first signal asks the verb to stop and clean up. A
//! second one, or a cleanup that takes too long, ends the program. While a guest's file systems are
//! frozen, the end waits up to a minute.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::exit_code::ExitCode;
use crate::model::stop::{Stop, StopReason};

/// How long the cleanup may take. The next run cleans up the rest.
const CLEAN_UP: Duration = Duration::from_millis(4500);

/// The longest time from the first signal to the end of the program while a guest's file systems
/// are frozen. The next run would thaw them too late.
const FOR_EXIT_HOLDS: Duration = Duration::from_secs(60);

/// Installs the signal handlers. The returned value reports the first signal.
pub fn listen() -> Stop {
    let stop = Stop::default();
    let mut wanted = vec![SIGINT, SIGTERM];
    // Started by nohup, the program must outlive the terminal.
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    match Signals::new(wanted) {
        Ok(signals) => {
            let asked = stop.clone();
            thread::spawn(move || pass_on(signals, &asked));
        }
        Err(error) => super::log::error(&format!(
            "cannot catch signals ({error}): Ctrl-C will end vmsnap without cleanup"
        )),
    }
    stop
}

/// Whether this process was started with a signal ignored (proc(5), `SigIgn`).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

fn reason_of(signal: i32) -> StopReason {
    match signal {
        SIGINT => StopReason::Interrupted,
        SIGHUP => StopReason::HungUp,
        _ => StopReason::Terminated,
    }
}

fn pass_on(mut signals: Signals, stop: &Stop) {
    let mut again: Option<Sender<()>> = None;
    for signal in signals.forever() {
        if let Some(again) = &again {
            // The waiting thread ends only with the program.
            let _ = again.send(());
            continue;
        }
        let reason = reason_of(signal);
        stop.request(reason);
        super::log::notice("stopping and cleaning up (a second signal skips the cleanup)");
        let (sender, receiver) = channel();
        again = Some(sender);
        let stop = stop.clone();
        thread::spawn(move || end_by_force(&receiver, &stop, ExitCode::of_stop(reason)));
    }
}

/// Ends the program if the verb does not stop in time, or at a second signal.
fn end_by_force(again: &Receiver<()>, stop: &Stop, code: ExitCode) {
    let asked = Instant::now();
    if again.recv_timeout(CLEAN_UP) == Err(RecvTimeoutError::Timeout) && !stop.is_exit_held() {
        super::log::notice(
            "the cleanup is taking too long: vmsnap ends now, and the next run finishes the cleanup",
        );
    }
    if stop.is_exit_held() {
        super::log::notice("waiting until the guest's file systems are thawed");
    }
    while stop.is_exit_held() && asked.elapsed() < FOR_EXIT_HOLDS {
        let _ = again.recv_timeout(Duration::from_millis(100));
    }
    std::process::exit(code.number());
}
