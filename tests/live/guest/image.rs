//! Kernel and initramfs of the test guest, made from packages of Debian or Ubuntu and kept.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use super::cpio::CpioWriter;
use crate::process::{COMMAND_DEADLINE, command, run, try_run};

const INIT: &str = include_str!("init.sh");

/// Increment this when the images are built differently, so that existing ones are rebuilt.
const RECIPE: &str = "2";

/// The packages that depend on the newest kernel for virtual machines: Debian's, Ubuntu's.
const KERNEL_METAPACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];

/// The files taken from packages besides the kernel: the package, the file in it, its path in the
/// image.
const PROGRAMS: [(&str, &str, &str); 2] = [
    ("busybox-static", "bin/busybox", "bin/busybox"),
    ("qemu-guest-agent", "usr/sbin/qemu-ga", "usr/sbin/qemu-ga"),
];

/// The drivers, each after those it depends on. ext4 is built into the kernel.
const MODULES: [&str; 7] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
];

/// Kernels before 5.16 have this driver within `virtio_pci`.
const NEWER_MODULE: &str = "virtio_pci_legacy_dev";

const DIRECTORIES: [&str; 11] = [
    "bin", "sbin", "dev", "proc", "sys", "run", "tmp", "usr", "usr/sbin", "modules", "lib64",
];

/// The guest's system: a kernel and an initramfs that stays its root file system.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

impl GuestImage {
    /// The folder with all modules of the kernel, whose name is the kernel's version.
    pub fn modules(&self) -> PathBuf {
        let modules = self.kernel.with_file_name("lib").join("modules");
        let mut entries = fs::read_dir(&modules).expect("they were kept");
        entries.next().expect("one version").expect("an entry").path()
    }

    /// The images of an earlier run, or new ones (30 MB of packages). Panics if they cannot be
    /// made.
    pub fn build_or_cached() -> GuestImage {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .expect("a folder of cargo's target folder");
        let digest = blake3::hash(format!("{RECIPE}\n{INIT}\n{PROGRAMS:?}\n{MODULES:?}").as_bytes());
        let dir = target.join(format!("guest-{}", &digest.to_hex()[..16]));
        let images = GuestImage {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd"),
        };
        // Other test threads and processes wait for the one that builds.
        let lock = File::create(target.join("guest.lock")).expect("cargo's target folder can be written to");
        lock.lock().expect("a lock file can be locked");
        if !dir.exists() {
            let work = crate::owner::folder_in(target, "guest-");
            build(work.path());
            fs::rename(work.path().join("images"), &dir).expect("both are in the target folder");
        }
        images
    }
}

/// Builds `images/vmlinuz` and `images/initrd` in the folder.
fn build(work: &Path) {
    let kernel_package = kernel_package();
    let modules_package = first_dependency(&kernel_package, "linux-modules-");
    let mut packages = vec![kernel_package.as_str()];
    packages.extend(modules_package.as_deref());
    packages.extend(PROGRAMS.map(|(package, ..)| package));
    download(work, &packages);
    let root = work.join("root");
    for entry in fs::read_dir(work).expect("it is ours").flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            run(command("dpkg-deb", &[Path::new("-x"), &entry.path(), &root]));
        }
    }
    let images = work.join("images");
    fs::create_dir(&images).expect("it is new");
    let version = kernel_package.trim_start_matches("linux-image-");
    fs::copy(
        root.join("boot").join(format!("vmlinuz-{version}")),
        images.join("vmlinuz"),
    )
    .expect("the kernel package holds a kernel");
    write_initrd(&root, version, &images.join("initrd"));
    keep_modules(&root, version, &images);
}

/// Keeps all modules, from which libguestfs takes those that it needs, and lists their
/// dependencies.
fn keep_modules(root: &Path, version: &str, images: &Path) {
    let kept = images.join("lib/modules");
    fs::create_dir_all(&kept).expect("its folder is new");
    fs::rename(modules_folder(root, version), kept.join(version)).expect("both are in the target folder");
    run(command("depmod", &[Path::new("-b"), images, Path::new(version)]));
}

/// The folder with the modules in the packages. Newer ones use /usr/lib instead of /lib, which is a
/// link to it.
fn modules_folder(root: &Path, version: &str) -> PathBuf {
    let tops = ["lib/modules", "usr/lib/modules"].map(|top| root.join(top).join(version));
    let top = tops.into_iter().find(|top| top.exists());
    top.expect("the kernel package holds modules")
}

/// The package of the newest kernel, on which the distribution's metapackage depends.
fn kernel_package() -> String {
    let found = KERNEL_METAPACKAGES
        .iter()
        .find_map(|metapackage| first_dependency(metapackage, "linux-image-"));
    found.unwrap_or_else(|| panic!("none of {KERNEL_METAPACKAGES:?} depends on a kernel"))
}

/// The first dependency of a package whose name has this prefix. Ubuntu has a separate package for
/// a kernel's modules.
fn first_dependency(package: &str, prefix: &str) -> Option<String> {
    let listing = try_run(
        command("apt-cache", &["depends", "--important", package]),
        COMMAND_DEADLINE,
    );
    let mut dependencies = listing
        .stdout
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    dependencies
        .find(|name| name.starts_with(prefix))
        .map(ToOwned::to_owned)
}

/// Downloads packages into the folder without installing them.
fn download(dir: &Path, packages: &[&str]) {
    let mut words = vec!["download"];
    words.extend(packages);
    let download = || {
        let mut command = command("apt-get", &words);
        command.current_dir(dir);
        try_run(command, COMMAND_DEADLINE * 2)
    };
    let first = download();
    if first.ok() {
        return;
    }
    // Old package lists name versions that the mirrors no longer have.
    let update = try_run(command("apt-get", &["update", "-q"]), COMMAND_DEADLINE * 2);
    let second = download();
    assert!(
        second.ok(),
        "cannot download {packages:?}: {first:#?}\n{update:#?}\n{second:#?}"
    );
}

fn write_initrd(root: &Path, version: &str, initrd: &Path) {
    let out = File::create(initrd).expect("its folder is new");
    let mut archive = CpioWriter::new(BufWriter::new(out));
    for path in DIRECTORIES {
        archive.directory(path).unwrap();
    }
    // The kernel opens it for /init before anything is mounted.
    archive.char_device("dev/console", 5, 1).unwrap();
    archive.file("init", INIT.as_bytes()).unwrap();
    archive.symlink("bin/sh", "busybox").unwrap();
    for (_, from, to) in PROGRAMS {
        archive.file(to, &read(&unpacked(root, from))).unwrap();
    }
    for library in libraries(&unpacked(root, "usr/sbin/qemu-ga")) {
        // The program names the loader by this path. /init sets the path of the other libraries.
        let name = library
            .file_name()
            .and_then(|name| name.to_str())
            .expect("libraries have plain names");
        archive.file(&format!("lib64/{name}"), &read(&library)).unwrap();
    }
    let modules = modules(root, version);
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("modules/order", order.as_bytes()).unwrap();
    for (name, data) in modules {
        archive.file(&format!("modules/{name}"), &data).unwrap();
    }
    archive.finish().unwrap();
}

/// The path of a file from the packages. Newer releases install into `/usr/bin` instead of `/bin`,
/// which is only a link there.
fn unpacked(root: &Path, name: &str) -> PathBuf {
    let path = root.join(name);
    if path.exists() {
        path
    } else {
        root.join("usr").join(name)
    }
}

/// The shared libraries of a program and its loader, from this machine, where QEMU needs the same
/// ones.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listing = run(command("ldd", &[program]));
    assert!(
        !listing.contains("not found"),
        "libraries of {} are missing:\n{listing}",
        program.display()
    );
    let paths = listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// The drivers that are not built into the kernel: file name and content.
fn modules(root: &Path, version: &str) -> Vec<(String, Vec<u8>)> {
    let top = &modules_folder(root, version);
    let builtin =
        fs::read_to_string(top.join("modules.builtin")).expect("the kernel package lists what is built in");
    let mut found = Vec::new();
    for name in MODULES {
        if builtin.lines().any(|line| line.ends_with(&format!("/{name}.ko"))) {
            continue;
        }
        let Some(file) = find_module(top, name) else {
            assert_eq!(name, NEWER_MODULE, "the kernel {version} has no such module");
            continue;
        };
        let compressed = file.extension().is_some_and(|extension| extension == "xz");
        if compressed {
            run(command("xz", &[Path::new("--decompress"), &file]));
        }
        let file = if compressed { file.with_extension("") } else { file };
        found.push((format!("{name}.ko"), read(&file)));
    }
    found
}

fn find_module(top: &Path, name: &str) -> Option<PathBuf> {
    let names = [format!("{name}.ko"), format!("{name}.ko.xz")];
    let mut folders = vec![top.join("kernel")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            if entry.file_type().ok()?.is_dir() {
                folders.push(entry.path());
            } else if names.iter().any(|name| entry.file_name() == name.as_str()) {
                return Some(entry.path());
            }
        }
    }
    None
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
