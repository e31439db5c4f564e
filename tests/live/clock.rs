//! A wall clock for the program that starts at the test's time. Deadlines use another clock and are
//! not affected.
//!
//! The program gets the time from the C library. A small preloaded library adds the number of
//! seconds given in the environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use jiff::{Timestamp, Zoned};

use crate::process::{command, run};

const SHIFT: &str = "VMSNAP_TEST_CLOCK_SHIFT";

const SOURCE: &str = r#"
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, clock, now);
    const char *shift = getenv("VMSNAP_TEST_CLOCK_SHIFT");
    if (result == 0 && clock == CLOCK_REALTIME && shift)
        now->tv_sec += atoll(shift);
    return (int) result;
}
"#;

/// Sets the time and time zone that a command sees: `2026-08-20T02:00:00+02:00[Europe/Berlin]`.
pub fn set(command: &mut Command, time: &str) {
    let time: Zoned = time.parse().expect("a time with its zone");
    let shift = time.timestamp().as_second() - Timestamp::now().as_second();
    let zone = time.time_zone().iana_name().expect("a zone with a name");
    command
        .env("TZ", zone)
        .env(SHIFT, shift.to_string())
        .env("LD_PRELOAD", library());
}

/// Compiles the library once for each test process.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let mine = |ending: &str| folder.join(format!("clock-{}.{ending}", std::process::id()));
        let (source, made, library) = (mine("c"), mine("so"), folder.join("clock.so"));
        fs::write(&source, SOURCE).expect("the folder is ours");
        let files = [Path::new("-o"), &made, &source].map(Path::to_owned);
        let mut compile = command("cc", &["-shared", "-fPIC", "-O1"]);
        compile.args(files);
        run(compile);
        // Renamed into place, because other test processes may be using the existing file.
        fs::rename(&made, &library).expect("the folder is ours");
        fs::remove_file(&source).expect("it was written");
        library
    })
}
