//! Measures the same work with vmsnap and with its peers on temporary domains of a real libvirtd.
//!
//! `make bench` installs missing packages and starts it. These variables limit it:
//!
//! * `BENCH_SIZE`: GiB of data (4).
//! * `BENCH_ROUNDS`: how often each tool does each work (3).
//! * `BENCH_WORK`: names of works, separated by commas (all).
//! * `BENCH_TOOLS`: programs beside vmsnap, separated by commas (all that are installed).
//!
//! The tables go to stdout as Markdown, progress to stderr.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark starts programs, waits for them and prints"
)]

mod disk;
mod domain;
mod latency;
mod machine;
mod measure;
mod pack;
mod parts;
mod serve;
mod table;
mod tools;
mod work;

/// The lab of the live tests: a libvirtd, and domains that are removed when they are dropped.
#[path = "../../tests/live"]
#[allow(dead_code, unused_imports, reason = "the live tests use more of it")]
mod live {
    pub mod daemon;
    pub mod leftovers;
    pub mod owner;
    pub mod process;
}

/// The S3 server of the tests.
#[path = "../../tests/it/pack/server.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod server;

use live::{daemon, leftovers, owner, process};

use std::str::FromStr;

use work::Bench;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if parts::run(&words) {
        return;
    }
    measure::end_children_first();
    let names = std::env::var("BENCH_WORK").unwrap_or_default();
    let wanted: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
    for name in &wanted {
        let known = work::ALL.iter().any(|(known, _)| known == name);
        assert!(
            known,
            "BENCH_WORK names '{name}', which is not one of {:?}",
            work::ALL.map(|(name, _)| name)
        );
    }
    let tools = std::env::var("BENCH_TOOLS").unwrap_or_default();
    for name in tools.split(',').filter(|name| !name.is_empty()) {
        assert!(
            tools::PEERS.contains(&name),
            "BENCH_TOOLS names '{name}', which is not one of {:?}",
            tools::PEERS
        );
    }
    let bench = Bench {
        daemon: daemon::Daemon::acquire(),
        gib: setting("BENCH_SIZE", 4),
        rounds: setting("BENCH_ROUNDS", 3),
    };
    let mut tables = Vec::new();
    for (name, work) in work::ALL {
        if wanted.is_empty() || wanted.contains(&name) {
            eprintln!("{name}");
            let table = work(&bench);
            eprintln!("{table}");
            tables.push(table);
        }
    }
    println!("{}", machine::describe(&bench));
    for table in tables {
        println!("{table}");
    }
}

/// A number of at least 1 from the environment.
fn setting<N: FromStr + PartialOrd + From<u8>>(name: &str, usual: N) -> N {
    let Ok(text) = std::env::var(name) else {
        return usual;
    };
    let number = text.parse().ok().filter(|number| *number >= N::from(1));
    number.unwrap_or_else(|| panic!("{name} must be a number of at least 1, not '{text}'"))
}
