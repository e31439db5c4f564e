//! Describes the machine and the versions that were measured.

use std::fs;

use crate::process::{COMMAND_DEADLINE, command, try_run};
use crate::work::Bench;

/// The description, as a Markdown list.
pub fn describe(bench: &Bench) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut lines = vec![
        format!(
            "* processor: {}, {cores} cores",
            field("/proc/cpuinfo", "model name")
        ),
        format!("* memory: {}", field("/proc/meminfo", "MemTotal")),
        format!("* kernel: {}", first_line("/proc/sys/kernel/osrelease")),
        format!(
            "* file system: {}",
            said("df", &["--output=fstype,source", "/var/tmp"]).replace('\n', " ")
        ),
        format!("* BENCH_SIZE={} BENCH_ROUNDS={}", bench.gib, bench.rounds),
    ];
    for (program, word) in [
        (env!("CARGO_BIN_EXE_vmsnap"), "--version"),
        ("virsh", "--version=daemon"),
        ("qemu-img", "--version"),
        ("nbdcopy", "--version"),
        ("virtnbdbackup", "--version"),
    ] {
        let name = program.rsplit('/').next().unwrap_or(program);
        let version = said(program, &[word]);
        lines.push(format!(
            "* {name}: {}",
            version.lines().next().unwrap_or("not installed")
        ));
    }
    lines.join("\n") + "\n"
}

fn said(program: &str, words: &[&str]) -> String {
    let command = command("env", &[&[program], words].concat());
    try_run(command, COMMAND_DEADLINE).stdout.trim().to_owned()
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or("");
    let value = line.split_once(':').map_or("unknown", |(_, value)| value.trim());
    value.to_owned()
}
