//! The check that packages run on the oldest supported releases. Stand-ins replace the programs
//! that read the packages.

use std::process::Output;

use crate::setup::Stage;

const NOT_INSTALLED: &str = "exit 1";

/// Checks a file with this name; `reader` prints `answer` about it.
fn check(reader: &str, answer: &str, file: &str) -> Output {
    let stage = Stage::new(NOT_INSTALLED);
    stage.program(reader, &format!("cat <<'TEXT'\n{answer}\nTEXT"));
    stage.script("scripts/floor.sh", &[file])
}

fn refuses(output: &Output, message: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(message), "{stderr}");
    assert!(stderr.contains("Build on Debian 12 or Ubuntu 22.04"), "{stderr}");
}

/// Checks a program whose `objdump -p` output lists these symbol versions.
fn program(versions: &[&str]) -> Output {
    let lines: String = versions
        .iter()
        .map(|version| format!("    0x09691a75 0x00 06 {version}\n"))
        .collect();
    let answer = format!(
        "Dynamic Section:\n  NEEDED               libc.so.6\n\nVersion References:\n  required from libc.so.6:\n{lines}"
    );
    check("objdump", &answer, "vmsnap")
}

#[test]
fn program_with_old_symbols_is_accepted() {
    let output = program(&["GLIBC_2.2.5", "GLIBC_2.35", "LIBVIRT_6.0.0", "LIBVIRT_QEMU_0.8.3"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn program_with_newer_symbols_is_refused() {
    refuses(
        &program(&["GLIBC_2.36"]),
        "vmsnap needs GLIBC_2.36. Ubuntu 22.04 has at most GLIBC_2.35",
    );
    refuses(
        &program(&["GLIBC_2.4", "LIBVIRT_10.1.0"]),
        "vmsnap needs LIBVIRT_10.1.0",
    );
}

#[test]
fn program_with_unknown_symbol_versions_is_refused() {
    refuses(
        &program(&["GLIBC_2.4", "LIBVIRT_PRIVATE_9.0.0"]),
        "LIBVIRT_PRIVATE_9.0.0",
    );
    refuses(&program(&["GLIBC_ABI_DT_RELR"]), "GLIBC_ABI_DT_RELR");
    refuses(&program(&[]), "vmsnap requires no symbol versions");
}

#[test]
fn package_with_old_dependencies_is_accepted() {
    let output = check(
        "dpkg-deb",
        "libc6 (>= 2.34), libgcc-s1 (>= 4.2), libvirt0 (>= 6.0.0~rc1)",
        "x.deb",
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn package_with_newer_or_unknown_dependencies_is_refused() {
    refuses(
        &check("dpkg-deb", "libc6 (>= 2.39), libvirt0", "x.deb"),
        "x.deb depends on libc6 2.39. Ubuntu 22.04 has 2.35",
    );
    refuses(
        &check("dpkg-deb", "libc6 (>= 2.34), libxml2 (>= 2.9)", "x.deb"),
        "x.deb depends on libxml2",
    );
    refuses(&check("dpkg-deb", "", "x.deb"), "x.deb depends on nothing");
}
