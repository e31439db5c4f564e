//! The classic spelling: each command line and the equivalent subcommand.

use std::ffi::OsString;

use vmsnap::cli::args;
use vmsnap::cli::classic::{Misuse, translate};
use vmsnap::cli::exit_code::ExitCode;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn translated(line: &str) -> Result<String, Misuse> {
    let translated = translate(words(&format!("vmsnap {line}")), &args::grammar())?;
    let words: Vec<String> = translated
        .into_iter()
        .map(|word| word.into_string().expect("UTF-8"))
        .collect();
    assert_eq!(words[0], "vmsnap");
    Ok(words[1..].join(" "))
}

fn means(cases: &[(&str, &str)]) {
    for (typed, expected) in cases {
        assert_eq!(translated(typed).as_deref(), Ok(*expected), "{typed}");
    }
}

#[test]
fn the_classic_words_mean_the_subcommands_words() {
    means(&[
        (
            "backup vm1 --keep-daily -1 --keepLast 3",
            "backup vm1 --keep-daily=-1 --keep-last=3",
        ),
        ("", "status"),
        ("--status", "status"),
        ("--domains=vm1", "status --domains=vm1"),
        (
            "--domains vm1,vm2 --domains=*",
            "status --domains=vm1,vm2 --domains=*",
        ),
        (
            "--domains=vm1 --backup --output=/b --groupBy=quarter --prune",
            "backup --domains=vm1 --output=/b --group-by=quarter --prune",
        ),
        (
            "--backup --domains=vm1 --output /b --raw",
            "backup --domains=vm1 --output=/b --raw",
        ),
        (
            "--output=/b --group-by year --status",
            "status --output=/b --group-by=year",
        ),
        (
            "--machine --json --yml --pretty --verbose",
            "status --machine --json --yaml --pretty --verbose",
        ),
        (
            "--domains=vm1 --scrub --scrubType=bitmap --checkpointName=virtnbdbackup.17",
            "scrub --domains=vm1 --scrub-type=bitmap --checkpoint-name=virtnbdbackup.17",
        ),
        (
            "--domains=vm1 --scrub --scrubType=*",
            "scrub --domains=vm1 --scrub-type=*",
        ),
        (
            "--domains=vm1 --scrub --scrubType=both --checkpointName=*",
            "scrub --domains=vm1 --scrub-type=both --checkpoint-name=*",
        ),
        ("--connect=qemu:///session", "status --connect=qemu:///session"),
        ("--backup --socketfile=/run/x", "backup --socketfile=/run/x"),
        ("--domains=a=b", "status --domains=a=b"),
        ("--domains=", "status --domains="),
    ]);
}

#[test]
fn the_subcommands_words_stay() {
    means(&[
        ("status", "status"),
        (
            "backup vm1 --output /b --group-by quarter --prune",
            "backup vm1 --output=/b --group-by=quarter --prune",
        ),
        (
            "backup vm1 vm2 -o /b -nq",
            "backup vm1 vm2 --output=/b --dry-run --quiet",
        ),
        (
            "-c test:///default status vm1",
            "status --connect=test:///default vm1",
        ),
        ("-ctest:///default list", "list --connect=test:///default"),
        (
            "--connect test:///default -vv status",
            "status --connect=test:///default --verbose --verbose",
        ),
        (
            "restore vm1 --repository=/b --to /x",
            "restore vm1 --repository=/b --to=/x",
        ),
        (
            "backup --repository /b -- --odd-name",
            "backup --output=/b -- --odd-name",
        ),
        ("backup --status=false vm1", "backup vm1"),
        ("backup --backup vm1", "backup vm1"),
        ("man backup", "man backup"),
        ("help backup", "help backup"),
        ("--help", "--help"),
        ("-V", "--version"),
        ("--backup -h", "backup --help"),
    ]);
}

/// Fault 15: `--prune=false` prunes, `--backup=false` backs up.
#[test]
fn a_boolean_means_what_it_says_and_the_last_one_wins() {
    means(&[
        ("--backup --prune=true", "backup --prune"),
        ("--backup --prune=false", "backup"),
        ("--backup --no-prune", "backup"),
        ("--backup --prune --no-prune", "backup"),
        ("--backup --no-prune --prune", "backup --prune"),
        ("--backup --prune --prune", "backup --prune"),
        ("--backup=false --output=/b", "status --output=/b"),
        ("--no-backup", "status"),
        ("--backup --backup=false", "status"),
        ("--backup=false --scrub", "scrub"),
        ("--json=true --json=false", "status"),
        ("--verbose=true --verbose", "status --verbose --verbose"),
        ("-vv --no-verbose", "status"),
        (
            "backup vm1 --prune=false --raw=true --no-dry-run",
            "backup vm1 --raw",
        ),
        ("restore vm1 --define=false", "restore vm1"),
    ]);
    for wrong in [
        "--prune=maybe",
        "--backup=1",
        "--json=",
        "backup --prune false",
        "--backup true",
    ] {
        let misuse = translated(wrong).expect_err("neither true nor false");
        assert_eq!(misuse.code(), ExitCode::Usage, "{wrong}");
    }
}

/// A variable can turn this flag on, so turning it off has to be a word of its own.
#[test]
fn store_decrypted_is_turned_on_and_off_in_either_spelling() {
    means(&[
        (
            "--backup --domains=vm1 --storeDecrypted --output=/b",
            "backup --domains=vm1 --store-decrypted --output=/b",
        ),
        ("--status --storeDecrypted=true", "status --store-decrypted"),
        ("--backup --storeDecrypted=false", "backup --no-store-decrypted"),
        (
            "backup vm1 --no-store-decrypted",
            "backup vm1 --no-store-decrypted",
        ),
        ("--backup --noStoreDecrypted", "backup --no-store-decrypted"),
        (
            "--backup --no-store-decrypted --storeDecrypted",
            "backup --store-decrypted",
        ),
        (
            "--backup --store-decrypted --storeDecrypted=false",
            "backup --no-store-decrypted",
        ),
    ]);
}

#[test]
fn a_variable_that_is_neither_yes_nor_no_is_a_usage_error() {
    for command in ["backup", "status"] {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_vmsnap"));
        program.arg(command).env("VMSNAP_STORE_DECRYPTED", "perhaps");
        let output = program.output().expect("the program runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{stderr}");
        for words in [
            "perhaps",
            "--store-decrypted",
            "VMSNAP_STORE_DECRYPTED must be yes or no",
        ] {
            assert!(stderr.contains(words), "{stderr}");
        }
    }
}

/// Fault 15: `--domains=101` matches nothing.
#[test]
fn a_number_is_a_name() {
    means(&[
        ("--domains=101", "status --domains=101"),
        ("--domains 007,1e3", "status --domains=007,1e3"),
        ("status 101", "status 101"),
    ]);
}

#[test]
fn classic_switches_of_other_commands_are_ignored() {
    means(&[
        (
            "--domains=vm1 --backup --output=/b --pretty --machine --yaml --scrubType=x",
            "backup --domains=vm1 --output=/b",
        ),
        ("backup vm1 --output /b --pretty", "backup vm1 --output=/b"),
        (
            "--status --raw --prune --checkpointName=x --socketfile=/s",
            "status",
        ),
        (
            "--scrub --scrubType=both --raw --prune --pretty",
            "scrub --scrub-type=both",
        ),
    ]);
    for strict in ["list --pretty", "restore vm1 --raw", "demo --json"] {
        assert_eq!(
            translated(strict).expect_err("no such switch").code(),
            ExitCode::Usage,
            "{strict}"
        );
    }
}

#[test]
fn two_commands_are_one_too_many() {
    for line in [
        "--backup --scrub",
        "--status --backup",
        "--status --backup --scrub",
        "backup --scrub vm1",
        "list --status",
    ] {
        let misuse = translated(line).expect_err("several commands");
        assert_eq!(misuse, Misuse::SeveralCommands, "{line}");
        assert_eq!(misuse.code().number(), 7);
        assert_eq!(misuse.message(), "Only one command can be run at a time");
    }
}

#[test]
fn a_misspelt_word_is_refused_with_the_nearest() {
    let cases = [
        ("--bakcup --domains=vm1", "did you mean '--backup'?"),
        ("--domain=vm1", "did you mean '--domains'?"),
        ("--dommains vm1 --backup", "did you mean '--domains'?"),
        ("--backup --grupBy=year", "did you mean '--group-by'?"),
        ("--backup --GroupBy2=year", "did you mean '--group-by'?"),
        ("--scrub --scrubTyp=both", "did you mean '--scrub-type'?"),
        ("backup vm1 --dryrun", "did you mean '--dry-run'?"),
        ("--no-prun --backup", "there is no switch '--no-prun'"),
        ("--zzz", "`vmsnap status --help` lists the switches"),
        (
            "-z",
            "there is no switch '-z': `vmsnap COMMAND --help` lists the switches of a command",
        ),
        (
            "-S",
            "there is no switch '-S': `vmsnap COMMAND --help` lists the switches of a command",
        ),
        ("backup vm1 -O /b", "there is no switch '-O': did you mean '-o'?"),
        (
            "backup vm1 -nz",
            "there is no switch '-z' in '-nz': `vmsnap COMMAND --help` lists the switches of a command",
        ),
        (
            "-domains=vm1 --backup",
            "there is no switch '-domains': did you mean '--domains'?",
        ),
        (
            "backup vm1 -output /b",
            "there is no switch '-output': did you mean '--output'?",
        ),
        (
            "--backup -groupBy=year",
            "there is no switch '-groupBy': did you mean '--group-by'?",
        ),
        (
            "-dommains=vm1",
            "there is no switch '-d' in '-dommains=vm1': did you mean '--domains'?",
        ),
        (
            "-ä",
            "there is no switch '-ä': `vmsnap COMMAND --help` lists the switches of a command",
        ),
        ("bakup vm1", "did you mean `vmsnap backup`?"),
        ("vm1", "there is no command 'vm1'"),
        ("--backup vm1 --output=/b", "there is no command 'vm1'"),
        ("--backup -- vm1", "there is no command 'vm1'"),
    ];
    for (line, expected) in cases {
        let misuse = translated(line).expect_err("a usage error");
        assert!(
            misuse.message().contains(expected),
            "{line}: {}",
            misuse.message()
        );
        assert_eq!(misuse.code().number(), 64, "{line}");
    }
}

#[test]
fn a_value_as_a_separate_word_keeps_the_flags_meaning() {
    let cases = [
        (
            "--backup --prune true",
            "--prune takes no separate value: write --prune=true",
        ),
        (
            "--backup --prune false",
            "--prune takes no separate value: write --prune=false",
        ),
        (
            "--backup --no-prune true",
            "--no-prune takes no value: remove 'true', or write --prune=false",
        ),
        (
            "--backup --no-prune false",
            "--no-prune takes no value: remove 'false', or write --prune=false",
        ),
    ];
    for (line, expected) in cases {
        let misuse = translated(line).expect_err("a usage error");
        assert_eq!(misuse.message(), expected, "{line}");
        assert_eq!(misuse.code().number(), 64, "{line}");
    }
}

#[test]
fn arguments_that_are_not_utf_8_pass_unchanged() {
    use std::os::unix::ffi::OsStringExt;
    let path = OsString::from_vec(b"--output=/b\xff".to_vec());
    let typed = vec!["vmsnap".into(), "--backup".into(), path.clone()];
    let translated = translate(typed, &args::grammar()).expect("understood");
    assert_eq!(translated[2], path);
}
