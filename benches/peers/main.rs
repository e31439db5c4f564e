//! The same work done by vmsnap and by its peers, side by side in one run, on throw-away domains of a real libvirtd.
//!
//! `make bench` installs what is missing and starts it. The environment can make it smaller: `BENCH_SIZE` (GiB of data, 4), `BENCH_ROUNDS` (3),
//! `BENCH_WORK` (names of works, separated by commas; all of them), `BENCH_TOOLS` (programs beside vmsnap; all that are installed). The result is a markdown table on stdout; how it gets on is told on stderr.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark starts programs, waits for them and prints"
)]

mod disk;
mod domain;
mod machine;
mod measure;
mod parts;
mod table;
mod tools;
mod work;

/// The lab of the live tests: a libvirtd, and domains that go when they are dropped.
#[path = "../../tests/live"]
#[allow(dead_code, unused_imports, reason = "the live tests use more of it")]
mod live {
    pub mod daemon;
    pub mod leftovers;
    pub mod owner;
    pub mod process;
}

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
            "BENCH_WORK names '{name}', which is none of {:?}",
            work::ALL.map(|(name, _)| name)
        );
    }
    let tools = std::env::var("BENCH_TOOLS").unwrap_or_default();
    for name in tools.split(',').filter(|name| !name.is_empty()) {
        assert!(
            tools::PEERS.contains(&name),
            "BENCH_TOOLS names '{name}', which is none of {:?}",
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
    number.unwrap_or_else(|| panic!("{name} is not a number of at least 1: {text}"))
}
