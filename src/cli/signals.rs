//! Ctrl-C and SIGTERM: the first asks the work to stop and clean up, the second ends the program at once.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::model::stop::Stop;

/// How long the work may take to clean up. What it leaves after that, the next run ends.
const PATIENCE: Duration = Duration::from_millis(4500);

/// Begins to listen. The wish to stop arrives in what is returned.
pub fn listen() -> Stop {
    let stop = Stop::default();
    match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        Ok(signals) => {
            let asked = stop.clone();
            thread::spawn(move || pass_on(signals, &asked));
        }
        Err(error) => super::tell_error(&format!(
            "signals cannot be caught ({error}): Ctrl-C will end it at once"
        )),
    }
    stop
}

fn pass_on(mut signals: Signals, stop: &Stop) {
    let mut last_resort: Option<Sender<()>> = None;
    for signal in signals.forever() {
        if last_resort.is_some() {
            std::process::exit(128 + signal);
        }
        stop.request(signal);
        super::tell("vmsnap: stopping; the job is being ended (again to end at once)");
        let (alive, end) = channel::<()>();
        last_resort = Some(alive);
        thread::spawn(move || {
            if end.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                super::tell("vmsnap: cleaning up takes too long; the next backup will finish it");
                std::process::exit(128 + signal);
            }
        });
    }
}
