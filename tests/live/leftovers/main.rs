//! Fails if ended test processes have left anything on this machine, names it, and removes it. Run
//! it after the live tests, even after a failure.

#![allow(
    clippy::disallowed_methods,
    dead_code,
    reason = "shared with the live tests, which start programs and need more of it"
)]

#[path = "mod.rs"]
mod leftovers;
#[path = "../owner.rs"]
mod owner;
#[path = "../process.rs"]
mod process;

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use leftovers::{LAB_DIR, Leftover, end, of_the_gone};
use process::wait_until;

/// The time for things to end by themselves, such as a daemon being stopped or the watcher of an
/// embedded hypervisor.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let found = settle();
    if found.is_empty() {
        println!("The live tests have left nothing.");
        return ExitCode::SUCCESS;
    }
    eprintln!("The live tests have left this, which is ended now:");
    for leftover in &found {
        eprintln!("    {leftover}");
    }
    for leftover in of_the_gone() {
        eprintln!("    and it does not end: {leftover}");
    }
    ExitCode::FAILURE
}

/// Waits until nothing is left. At the deadline ends what is left and returns it.
fn settle() -> Vec<Leftover> {
    let mut found = Vec::new();
    let is_clean = wait_until(PATIENCE, || {
        // No test starts or stops a daemon during this check.
        let gate = File::open(Path::new(LAB_DIR).join("gate")).ok();
        let _locked = gate.as_ref().map(File::lock);
        found = of_the_gone();
        found.is_empty()
    });
    if !is_clean {
        end(&found);
    }
    found
}
