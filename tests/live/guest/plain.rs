//! The guest's system on a QEMU started by the test, without libvirt.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use super::image::GuestImage;
use super::{MEMORY_MIB, SerialLog};
use crate::process::{Finished, command, run_within};

/// Kernel options of every guest. Only the guest's own output and serious messages are on the
/// console.
pub const KERNEL_OPTIONS: &str = "console=ttyS0 quiet loglevel=3 panic=-1";

/// The time for KVM to boot a kernel. If KVM works, a fraction of it is enough even on a busy
/// machine.
const HELLO_DEADLINE: Duration = Duration::from_secs(20);

/// Boots the guest's system and waits until it powers off. `accelerator` is `kvm` or `tcg`,
/// `options` are added to the kernel command line, and `disk` is a raw disk. The console is written
/// to a file. Returns `None` if the system was killed at the deadline.
pub fn boot(
    accelerator: &str,
    options: &str,
    disk: Option<&Path>,
    console: &Path,
    deadline: Duration,
) -> Option<Finished> {
    let image = GuestImage::build_or_cached();
    // QEMU is killed if this process dies.
    let words = "--pdeathsig KILL qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none -machine q35";
    let mut args: Vec<String> = words.split(' ').map(String::from).collect();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("-accel", accelerator.to_owned());
    option("-m", MEMORY_MIB.to_string());
    option("-kernel", image.kernel.display().to_string());
    option("-initrd", image.initrd.display().to_string());
    option("-append", format!("{KERNEL_OPTIONS} {options}"));
    option("-serial", format!("file:{}", console.display()));
    if let Some(disk) = disk {
        option(
            "-drive",
            format!("if=none,id=data,format=raw,file={}", disk.display()),
        );
        option("-device", "virtio-blk-pci,drive=data".to_owned());
    }
    let (finished, ended) = run_within(command("setpriv", &args), deadline);
    if !finished.stderr.is_empty() {
        eprintln!("qemu-system-x86_64 said: {}", finished.stderr);
    }
    ended.then_some(finished)
}

/// Whether this user can run the guest's kernel with KVM. Tried once per boot of this machine.
pub fn boots_with_kvm() -> bool {
    static BOOTS: OnceLock<bool> = OnceLock::new();
    *BOOTS.get_or_init(|| {
        if fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return false;
        }
        let boot_id =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the kernel has a boot id");
        let image = GuestImage::build_or_cached();
        let kept = image
            .kernel
            .with_file_name(format!("boots-with-kvm-{}", boot_id.trim()));
        if let Ok(answer) = fs::read_to_string(&kept) {
            return answer == "yes";
        }
        let boots = says_hello("kvm");
        // If the result cannot be kept, the next run tries again.
        let _ = fs::write(&kept, if boots { "yes" } else { "no" });
        boots
    })
}

fn says_hello(accelerator: &str) -> bool {
    let work = crate::owner::folder("plain-");
    let console = SerialLog::new(work.path().join("console"));
    let finished = boot(
        accelerator,
        "vmsnap.mode=hello",
        None,
        console.path(),
        HELLO_DEADLINE,
    );
    finished.is_some_and(|finished| finished.ok())
        && console.text().lines().any(|line| line.trim() == "hello")
}
