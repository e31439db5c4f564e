//! Checks the rules of ARCHITECTURE.md: imports, circles of modules, `unsafe`, lengths of files and
//! codes of findings. Also checks names of tests, and that no dependency needs a newer Rust than
//! vmsnap states.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/glossary.rs"]
mod glossary;

/// Each room with the rooms that its files may name. No room may import the bare crate root.
const MAY_IMPORT: [(&str, &[&str]); 11] = [
    ("model", &[]),
    ("wait", &[]),
    ("io", &["model"]),
    ("nbd", &["model", "wait"]),
    ("image", &["model", "io"]),
    ("repo", &["model", "io", "image", "wait"]),
    ("host", &["model", "nbd", "wait"]),
    ("ops", &["model", "wait", "io", "nbd", "image", "repo", "host"]),
    ("cli", &["model", "ops", "demo"]),
    ("demo", &["model", "ops", "host", "repo", "image", "io"]),
    ("testkit", &["model", "io", "nbd", "image", "repo", "host", "ops"]),
];

/// The maximum number of lines in a file.
const MOST_LINES: usize = 800;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&root().join(dir), &mut found);
    found.sort();
    assert!(!found.is_empty(), "no Rust files in {dir}");
    found
}

fn collect(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).expect("a folder of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let name = path
                .strip_prefix(root())
                .expect("below the root")
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&path).expect("a text file");
            found.push((name, text));
        }
    }
}

/// The code of a line, without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

#[test]
fn every_room_imports_only_what_it_may() {
    let mut wrong = Vec::new();
    for (file, text) in rust_files("src") {
        let inside = file.strip_prefix("src/").expect("a source file");
        let Some((room, _)) = inside.split_once('/').or_else(|| inside.split_once('.')) else {
            continue;
        };
        if room == "lib" || room == "main" {
            continue;
        }
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == room);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{file} is in a room that the table lacks"));
        for (number, line) in text.lines().enumerate() {
            for rest in code(line).split("crate::").skip(1) {
                let word: String = rest
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                    .collect();
                if word != room && !allowed.contains(&word.as_str()) {
                    wrong.push(format!("{file}:{}: {room} must not import {word}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Names that belong to one kind of repository.
const OF_A_FOLDER: [&str; 8] = [
    "repo::folder",
    "FolderRepository",
    "layout::",
    "ChainImage",
    "ChainSource",
    "ChainDisk",
    "flock",
    "try_lock_shared",
];

#[test]
fn ops_see_a_repository_through_its_interface_only() {
    let mut wrong = Vec::new();
    for (file, text) in rust_files("src/ops") {
        for (number, line) in text.lines().enumerate() {
            let found = OF_A_FOLDER.iter().find(|word| code(line).contains(**word));
            wrong.extend(found.map(|word| format!("{file}:{}: {word}", number + 1)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let files = rust_files("src");
    let files = files
        .iter()
        .map(|(file, text)| (file.trim_start_matches("src/"), text.as_str()));
    let circles = circles::Crate::read(files).circles();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn the_glossary_explains_the_words_of_types() {
    let glossary = fs::read_to_string(root().join("docs/glossary.md")).expect("docs/glossary.md");
    let rooms = ["src/model", "src/ops", "src/repo", "src/host"];
    let files: Vec<(String, String)> = rooms.iter().flat_map(|room| rust_files(room)).collect();
    let texts = files.iter().map(|(_, text)| text.as_str());
    let unexplained = glossary::unexplained(&glossary, texts);
    assert!(unexplained.is_empty(), "{unexplained:#?}");
}

#[test]
fn unsafe_code_is_in_one_file() {
    let mut wrong = Vec::new();
    for (file, text) in rust_files("src") {
        let lines = text.lines().enumerate();
        let words = lines.filter(|(_, line)| {
            code(line)
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == "unsafe")
        });
        if file != "src/host/ffi.rs" {
            wrong.extend(words.map(|(number, _)| format!("{file}:{}", number + 1)));
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe outside src/host/ffi.rs: {}",
        wrong.join(", ")
    );
}

/// The maximum number of lines in ARCHITECTURE.md.
const MOST_LINES_OF_ARCHITECTURE: usize = 150;

#[test]
fn architecture_page_is_short_and_its_paths_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let lines = text.lines().count();
    assert!(
        lines <= MOST_LINES_OF_ARCHITECTURE,
        "ARCHITECTURE.md has {lines} lines"
    );
    let words = text.split('`').skip(1).step_by(2);
    let paths = words.filter(|word| word.contains('/') && !word.contains(char::is_uppercase));
    for path in paths {
        let is_there = [root().join(path), root().join("src").join(path)]
            .iter()
            .any(|path| path.exists());
        assert!(is_there, "ARCHITECTURE.md names {path}, which is not there");
    }
}

#[test]
fn architecture_page_shows_the_imports_that_are_checked() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let rooms = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let is_room = |room: &&str| {
        let path = root().join("src").join(room);
        path.is_dir() || path.with_extension("rs").is_file()
    };
    let rooms: BTreeSet<&str> = rooms.filter(is_room).collect();
    let checked: BTreeSet<&str> = MAY_IMPORT.iter().map(|(room, _)| *room).collect();
    assert_eq!(rooms, checked);
}

#[test]
fn every_file_begins_with_what_it_is() {
    for dir in ["src", "tests", "benches"] {
        for (file, text) in rust_files(dir) {
            assert!(
                text.starts_with("//! "),
                "{file} does not begin with a doc comment"
            );
        }
    }
}

#[test]
fn comments_have_at_most_100_columns() {
    for (file, text) in ["src", "tests", "benches"].into_iter().flat_map(rust_files) {
        let mut in_diagram = false;
        for (number, line) in text.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            if is_comment && line.contains("```") {
                in_diagram = !in_diagram;
            }
            let columns = line.chars().count();
            assert!(
                !is_comment || in_diagram || columns <= 100,
                "{file}:{} has a comment of {columns} columns",
                number + 1
            );
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for dir in ["src", "tests"] {
        for (file, text) in rust_files(dir) {
            let lines = text.lines().count();
            assert!(
                lines <= MOST_LINES,
                "{file} has {lines} lines, more than {MOST_LINES}"
            );
        }
    }
}

/// The names of the tests in a file: functions after an attribute `#[test]`.
fn tests_in(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        let function = line.strip_prefix("fn ").filter(|_| is_test);
        if let Some(name) = function.and_then(|rest| rest.split('(').next()) {
            found.push(name);
        }
        let belongs = line.is_empty() || line.starts_with("//") || line.starts_with('#');
        is_test = line == "#[test]" || (is_test && belongs);
    }
    found
}

#[test]
fn test_names_are_short() {
    const MOST: usize = 60;
    let mut number = 0;
    let mut long = Vec::new();
    for dir in ["src", "tests"] {
        for (file, text) in rust_files(dir) {
            for name in tests_in(&text) {
                number += 1;
                if name.len() > MOST {
                    long.push(format!("{file}: {name}"));
                }
            }
        }
    }
    assert!(number > 900, "{number}");
    assert!(long.is_empty(), "longer than {MOST} characters: {long:#?}");
}

#[test]
fn tests_are_never_switched_off() {
    for dir in ["src", "tests"] {
        for (file, text) in rust_files(dir) {
            let off = concat!("#[", "ignore");
            assert!(!text.contains(off), "{file} switches a test off");
        }
    }
}

/// The words between backticks that have the shape of a path to a test.
fn named_tests(text: &str) -> Vec<String> {
    let words = text.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| {
        let mut parts = word.split("::");
        let is_name = |part: &str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        word.contains("::") && parts.all(is_name)
    };
    words.filter(is_path).map(str::to_owned).collect()
}

/// Whether a path names a test. `live::status::name` is in `tests/live/status.rs`, and
/// `repo::lock::tests::name` is next to `src/repo/lock.rs`.
fn is_test(path: &str) -> bool {
    let mut parts: Vec<&str> = path.split("::").filter(|part| *part != "tests").collect();
    let dir = if matches!(parts[0], "it" | "live" | "interop") {
        "tests"
    } else {
        "src"
    };
    let function = format!("fn {}(", parts.pop().unwrap_or_default());
    let module = parts.join("/");
    let files =
        [".rs", "/mod.rs", "_tests.rs", "/tests.rs"].map(|end| root().join(format!("{dir}/{module}{end}")));
    let mut texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    // A path may also name a whole file of tests.
    let whole = root().join(format!("{dir}/{}.rs", path.replace("::", "/")));
    let folder = whole.with_extension("").join("mod.rs");
    whole.is_file() || folder.is_file() || texts.any(|text| text.contains(&function))
}

#[test]
fn every_test_that_a_page_names_exists() {
    for (page, least) in [
        ("safety", 150),
        ("security", 25),
        ("offsite", 3),
        ("classic", 20),
        ("performance", 1),
    ] {
        let page = format!("docs/{page}.md");
        let text = fs::read_to_string(root().join(&page)).expect("a page");
        let named = named_tests(&text);
        assert!(named.len() >= least, "{page}: {named:?}");
        let missing: Vec<&String> = named.iter().filter(|path| !is_test(path)).collect();
        assert!(missing.is_empty(), "{page} names missing tests: {missing:#?}");
    }
}

#[test]
fn each_fault_of_the_node_program_has_a_test() {
    let text = fs::read_to_string(root().join("docs/classic.md")).expect("docs/classic.md");
    let (_, section) = text
        .split_once("## What the Node program gets wrong")
        .expect("the section");
    for fault in 1..=15 {
        let row = section
            .lines()
            .find(|line| line.starts_with(&format!("| {fault} |")));
        let row = row.unwrap_or_else(|| panic!("there is no row for fault {fault}"));
        assert!(!named_tests(row).is_empty(), "fault {fault} has no test: {row}");
    }
}

/// The strings between double quotes in a line of code.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    code(line).split('"').skip(1).step_by(2)
}

/// The functions of a file whose first parameter, besides `self`, is the code of a finding.
fn takers_of_codes(text: &str) -> Vec<&str> {
    let makes = text.match_indices("code: &str,").filter_map(|(at, _)| {
        let (_, signature) = text[..at].rsplit_once("fn ")?;
        let (name, before) = signature.split_once('(')?;
        matches!(before.trim(), "" | "&mut self," | "&self,").then_some(name)
    });
    let own = ["new", "of_disk"];
    makes.filter(|name| !own.contains(name)).collect()
}

/// The codes of the findings that a file makes.
fn codes(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        // The code is on the same line or alone on the next one.
        let makes = line.contains("Finding::new(") || line.contains("Finding::of_disk(");
        let constant = line.contains("const ") && line.contains(": &str = ");
        let step = line.trim_start().starts_with("(\"") && line.contains("self.");
        let next = lines.get(number + 1).filter(|_| line.ends_with('(')).copied();
        if makes || step {
            found.extend(quoted(line).chain(next.into_iter().flat_map(quoted)).next());
        } else if constant && text.contains("Finding") {
            found.extend(quoted(line).next());
        }
    }
    for helper in takers_of_codes(text) {
        for (at, call) in text.match_indices(&format!("{helper}(")) {
            let rest = &text[at + call.len()..];
            let arguments = rest.split_once(';').map_or(rest, |(arguments, _)| arguments);
            found.extend(arguments.lines().flat_map(quoted));
        }
    }
    let is_code = |word: &&str| {
        word.contains('-') && !word.ends_with('-') && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
    };
    found.into_iter().filter(is_code).map(str::to_owned).collect()
}

#[test]
fn the_json_page_has_every_code_of_a_finding() {
    let page = fs::read_to_string(root().join("docs/json.md")).expect("docs/json.md");
    let listed: BTreeSet<&str> = page.split('`').skip(1).step_by(2).collect();
    let mut all = BTreeSet::new();
    for room in ["src/model", "src/host", "src/repo", "src/ops"] {
        let files = rust_files(room);
        let product = files.iter().filter(|(file, _)| !file.contains("tests"));
        all.extend(product.flat_map(|(file, text)| codes(text).into_iter().map(|code| (code, file.clone()))));
    }
    assert!(all.len() > 35, "{all:?}");
    let missing: Vec<_> = all
        .iter()
        .filter(|(code, _)| !listed.contains(code.as_str()))
        .collect();
    assert!(missing.is_empty(), "docs/json.md lacks {missing:#?}");
}

/// The packages in a lock file, each with its version.
fn locked_packages(file: &str) -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(root().join(file)).expect("it is there");
    let value = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim_matches('"').to_owned());
    let lines: Vec<&str> = text.lines().collect();
    let pairs = lines.windows(2);
    pairs
        .filter_map(|pair| Some((value(pair[0], "name = ")?, value(pair[1], "version = ")?)))
        .collect()
}

/// The crates that the fuzz targets' lock file names as dependencies of vmsnap.
fn fuzz_dependencies_of_vmsnap() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("fuzz/Cargo.lock")).expect("it is there");
    let (_, block) = text.split_once("name = \"vmsnap\"\n").expect("it is locked");
    let block = block.split("[[package]]").next().unwrap_or_default();
    let quoted = block.lines().filter_map(|line| line.strip_prefix(" \""));
    quoted
        .filter_map(|line| line.split(['"', ' ']).next().map(str::to_owned))
        .collect()
}

/// This workspace never builds the fuzz targets, so their lock file is easily forgotten.
#[test]
fn fuzz_lock_file_has_the_same_dependencies() {
    let (ours, theirs) = (locked_packages("Cargo.lock"), locked_packages("fuzz/Cargo.lock"));
    assert!(
        ours.len() > 50 && theirs.len() > 30,
        "{} {}",
        ours.len(),
        theirs.len()
    );
    let is_ours = |name: &str| ours.iter().any(|(ours, _)| ours == name);
    let other: Vec<_> = theirs
        .difference(&ours)
        .filter(|(name, _)| is_ours(name))
        .collect();
    assert!(other.is_empty(), "fuzz/Cargo.lock has other versions: {other:?}");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("it is there");
    let (_, needed) = manifest.split_once("\n[dependencies]\n").expect("there are some");
    let needed = needed.split("\n[").next().unwrap_or_default();
    let needed = needed.lines().filter(|line| !line.contains("optional = true"));
    let needed = needed.filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()));
    let missing: Vec<_> = needed
        .filter(|name| !fuzz_dependencies_of_vmsnap().contains(name))
        .collect();
    assert!(
        missing.is_empty(),
        "fuzz/Cargo.lock lacks {missing:?}: run cargo metadata there"
    );
}

/// The major and minor number of a Rust version.
fn rust_version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|number| number.parse().expect("a number"));
    (numbers.next().expect("a major"), numbers.next().expect("a minor"))
}

#[test]
#[allow(clippy::disallowed_methods, reason = "only cargo knows the dependencies")]
fn no_dependency_needs_a_newer_rust_than_we_state() {
    // Offline and for this platform, because the crates it needs have already been built.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--locked",
            "--offline",
            "--all-features",
            "--format-version",
            "1",
        ])
        .args(["--filter-platform", &host])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    let stated = |package: &serde_json::Value| package["rust_version"].as_str().map(rust_version);
    let ours = packages.iter().find(|package| package["name"] == "vmsnap");
    let ours = ours.and_then(stated).expect("Cargo.toml states rust-version");
    let versions: Vec<_> = packages
        .iter()
        .filter_map(|package| Some((package, stated(package)?)))
        .collect();
    assert!(versions.len() > 50, "{} packages state a version", versions.len());
    let newer = versions.iter().filter(|(_, version)| *version > ours);
    let newer: Vec<String> = newer
        .map(|(package, version)| format!("{} needs {version:?}", package["name"]))
        .collect();
    assert!(newer.is_empty(), "Cargo.toml states {ours:?}: {newer:#?}");
}

/// The text of the constant whose name `code` begins with, if this file has such a constant.
fn constant<'a>(text: &'a str, code: &str) -> Option<&'a str> {
    let end = code.find(|c: char| !c.is_ascii_uppercase() && c != '_')?;
    let (_, after) = text.split_once(&format!("const {}: &str = \"", &code[..end]))?;
    after.split('"').next()
}

/// The programs that a text starts: the names in calls of these functions.
fn started_programs(text: &str) -> BTreeSet<&str> {
    let calls = ["command(", "Command::new(", "run(", "run_ok(", "run_with_input("];
    let mut found = BTreeSet::new();
    for call in calls {
        for (at, _) in text.match_indices(call) {
            // `guest.run("x")` and `qmp_command("x")` do not start a program.
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.') {
                continue;
            }
            let rest = text[at + call.len()..].trim_start();
            let program = match rest.strip_prefix('"') {
                Some(rest) => rest.split('"').next(),
                None => constant(text, rest),
            };
            // In other files a function with such a name takes options.
            found.extend(program.filter(|word| !word.starts_with('-')));
        }
    }
    found
}

#[test]
fn a_package_brings_every_program_that_a_test_starts() {
    let script = fs::read_to_string(root().join("scripts/setup.sh")).expect("scripts/setup.sh");
    let (_, list) = script
        .split_once("declare -A PROGRAMS=(\n")
        .expect("the list of programs");
    let (list, _) = list.split_once("\n)\n").expect("its end");
    let listed: BTreeSet<&str> = list
        .split('"')
        .skip(1)
        .step_by(2)
        .flat_map(str::split_whitespace)
        .collect();
    let mut started = 0;
    let mut missing = Vec::new();
    for dir in ["src/testkit", "tests", "benches"] {
        for (file, text) in rust_files(dir) {
            if file == "tests/tidy.rs" {
                continue;
            }
            for program in started_programs(&text) {
                started += 1;
                if !listed.contains(program) {
                    missing.push(format!("{file} starts '{program}'"));
                }
            }
        }
    }
    assert!(started > 40, "{started}");
    assert!(
        missing.is_empty(),
        "PROGRAMS in scripts/setup.sh lacks what tests start: {missing:#?}"
    );
}

/// The check after the live tests recognises leftovers by the names of folders.
#[test]
fn live_tests_make_folders_that_bear_their_name() {
    let mut wrong = Vec::new();
    for (file, text) in rust_files("tests/live") {
        let nameless = [
            "tempfile::tempdir()",
            "NamedTempFile",
            ".tempdir()",
            "tempdir_in(\"/",
        ];
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| nameless.iter().any(|word| code(line).contains(word)));
        wrong.extend(lines.map(|(number, _)| format!("{file}:{}", number + 1)));
    }
    assert!(wrong.is_empty(), "use tests/live/owner.rs: {}", wrong.join(", "));
}
