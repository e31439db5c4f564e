//! Usage errors, missing programs, help, completions and manual pages.

use std::fs::File;
use std::process::Stdio;

use super::*;
use crate::process::{command, run};

#[test]
fn every_mistake_has_its_message_and_its_code() {
    let node = Node::new(&[("vm1", RUNNING)]);
    let cases: [(&[&str], i32, &str); 16] = [
        (&["--backup"], 1, "No domains specified"),
        (&["--backup", "--domains="], 1, "No domains specified"),
        (&["--domains= , "], 1, "No domains specified"),
        (&["--domains=nope*"], 1, "No matching domains found for: nope*"),
        (
            &["--backup", "--domains=nope", "--output=OUT"],
            1,
            "No matching domains found for: nope",
        ),
        (&["--backup", "--domains=vm1"], 2, "No output directory specified"),
        (
            &["--backup", "--domains=vm1", "--output="],
            2,
            "No output directory specified",
        ),
        (
            &["--backup", "--domains=vm1", "--output=/nowhere/at/all"],
            2,
            "/nowhere/at/all cannot be used",
        ),
        (
            &["--domains=vm1", "--output="],
            2,
            "No output directory specified",
        ),
        (&["--connect=nonsense:///"], 3, "cannot connect to nonsense:///"),
        (
            &["--backup", "--scrub", "--domains=vm1"],
            7,
            "Only one command can be run at a time",
        ),
        (&["--domain=vm1"], 64, "did you mean '--domains'?"),
        (&["vm1"], 64, "there is no command 'vm1'"),
        (
            &["-S"],
            64,
            "vmsnap: there is no switch '-S': `vmsnap COMMAND --help` lists the switches of a command\n",
        ),
        (
            &["backup", "vm1", "-output", "/b"],
            64,
            "vmsnap: there is no switch '-output': did you mean '--output'?\n",
        ),
        (&["--domains"], 64, "a value is required for '--domains <LIST>'"),
    ];
    for (words, code, message) in cases {
        let finished = node.vmsnap(words);
        ends(&finished, code, message);
        assert_eq!(finished.stdout, "", "{words:?}");
    }
}

#[test]
fn missing_programs_are_named_with_their_packages() {
    let node = Node::new(&[("off", SHUT_OFF), ("vm1", RUNNING)]);
    let nothing = [("PATH", "/nowhere")];
    let status = node.vmsnap_with(&[], &nothing);
    ends(&status, 4, "vmsnap: Missing dependencies (qemu-img)\n");
    assert!(
        status.stderr.contains("qemu-utils (Debian) or qemu-img (Fedora)"),
        "{status:#?}"
    );
    assert_eq!(status.stdout, VM1, "the other domains are still printed");
    let backup = node.vmsnap_with(&["--backup", "--domains=off", "--output=OUT"], &nothing);
    ends(&backup, 4, "vmsnap: Missing dependencies (qemu-img, qemu-nbd)\n");
    ends(&node.vmsnap_with(&["--domains=vm1"], &nothing), 0, "");
}

#[test]
fn completions_and_manual_pages_are_printed() {
    let node = Node::new(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let script = node.vmsnap(&["completions", shell]);
        ends(&script, 0, "");
        assert!(script.stdout.contains("group-by"), "{shell}");
    }
    ends(&node.vmsnap(&["completions", "cmd.exe"]), 64, "bash");
    let page = node.vmsnap(&["man", "status"]);
    ends(&page, 0, "");
    assert!(
        page.stdout.contains(".SH \"EXIT STATUS\"") && page.stdout.contains("vmsnap\\-status"),
        "{page:#?}"
    );
    ends(&node.vmsnap(&["man", "nothing"]), 64, "use one of backup, ");
    for words in [
        &["--help"][..],
        &["backup", "--help"],
        &["--backup", "--help"],
        &["help", "status"],
    ] {
        let help = node.vmsnap(words);
        ends(&help, 0, "");
        assert!(help.stdout.contains("Examples:\n"), "{help:#?}");
        assert!(lines(&help.stdout).len() < 75, "short: {}", help.stdout);
    }
}

/// The completions that bash offers for the last word, with the script of `vmsnap completions
/// bash`.
fn offered(script: &str, words: &[&str]) -> Vec<String> {
    let ask = format!(
        "{script}\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _vmsnap vmsnap \"${{COMP_WORDS[COMP_CWORD]}}\" \
         \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let words = [&["--norc", "-c", &ask, "bash"], words].concat();
    run(command("bash", &words)).lines().map(str::to_owned).collect()
}

#[test]
fn the_completions_of_bash_complete() {
    let script = Node::new(&[]).vmsnap(&["completions", "bash"]).stdout;
    assert_eq!(offered(&script, &["vmsnap", "sta"]), ["status"]);
    assert_eq!(offered(&script, &["vmsnap", "backup", "--group"]), ["--group-by"]);
    assert!(offered(&script, &["vmsnap", "scrub", "--"]).contains(&"--scrub-type".to_owned()));
}

/// Runs the program with these arguments and this stdout.
fn into(node: &Node, words: &[&str], stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let output = node.program(words).stdout(stdout).stderr(Stdio::piped()).output();
    let output = output.expect("it starts");
    (
        output.status.code(),
        String::from_utf8(output.stderr).expect("UTF-8"),
    )
}

const ANSWERS: [&[&str]; 8] = [
    &[],
    &["--json"],
    &["status", "--yaml", "--machine"],
    &["--help"],
    &["backup", "--help"],
    &["--version"],
    &["man"],
    &["completions", "fish"],
];

#[test]
fn an_answer_that_could_not_be_written_is_a_failure() {
    let node = Node::new(&[("vm1", RUNNING), ("off", SHUT_OFF)]);
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("it is there")
    };
    for words in ANSWERS {
        let (code, stderr) = into(&node, words, full());
        assert_eq!(code, Some(3), "{words:?}: {stderr}");
        assert!(
            stderr.starts_with("vmsnap: cannot write the output to stdout: No space left"),
            "{words:?}: {stderr}"
        );
    }
    // The command is still carried out.
    let (code, stderr) = into(&node, &["--backup", "--domains=off", "--output=OUT"], full());
    assert_eq!((code, node.restore_points("off")), (Some(3), 1), "{stderr}");
    let (code, _) = into(&node, &["--backup", "--domains=off,gone", "--output=OUT"], full());
    assert_eq!((code, node.restore_points("off")), (Some(1), 2));
}

#[test]
fn closed_output_pipe_is_no_failure_and_stops_no_backup() {
    let node = Node::new(&[("vm1", RUNNING), ("off", SHUT_OFF), ("off2", SHUT_OFF)]);
    let closed = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    for words in ANSWERS {
        assert_eq!(
            into(&node, words, closed()),
            (Some(0), String::new()),
            "{words:?}"
        );
    }
    let words = ["backup", "off", "off2", "--output=OUT", "--quiet"];
    assert_eq!(into(&node, &words, closed()).0, Some(0));
    assert_eq!((node.restore_points("off"), node.restore_points("off2")), (1, 1));
}
