//! Loop devices of one test, detached with it.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::ioctl;

use crate::owner;
use crate::process::{COMMAND_DEADLINE, command, run, try_run, wait_until};

/// The byte that fills a new device.
pub const OLD: u8 = 0xaa;

/// A block device over a file in its own folder, detached when dropped, even after a panic.
pub struct Loop {
    folder: tempfile::TempDir,
    device: PathBuf,
}

impl Loop {
    /// A device of this many bytes, a multiple of 512, all [`OLD`].
    pub fn of(bytes: usize) -> Loop {
        let folder = owner::folder_on_disk("loop ");
        fs::write(folder.path().join("backing"), vec![OLD; bytes]).expect("written");
        let device = attach(&folder.path().join("backing"));
        Loop { folder, device }
    }

    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The path of the device as an argument of a command.
    pub fn word(&self) -> String {
        self.device.display().to_string()
    }

    /// The backing file.
    pub fn backing(&self) -> PathBuf {
        self.path("backing")
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut device = File::open(&self.device).expect("it is attached");
        device.read_to_end(&mut bytes).expect("it is readable");
        bytes
    }

    pub fn first_byte(&self) -> u8 {
        let mut byte = [0];
        let mut device = File::open(&self.device).expect("it is attached");
        device.read_exact(&mut byte).expect("it is readable");
        byte[0]
    }

    /// Adds a partition without a partition table, which the kernel may be unable to read. `start`
    /// and `sectors` count sectors.
    pub fn add_partition(&self, start: u64, sectors: u64) -> PathBuf {
        change_partition(&self.device, ADD, start, sectors).expect("the kernel adds a partition");
        let node = PathBuf::from(format!("{}p1", self.word()));
        assert!(
            wait_until(std::time::Duration::from_secs(10), || node.exists()),
            "{} is made",
            node.display()
        );
        node
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        detach(&self.device);
    }
}

/// Another device over an existing file, detached when dropped, even after a panic.
pub struct Attached(PathBuf);

impl Attached {
    pub fn to(file: &Path) -> Attached {
        Attached(attach(file))
    }

    pub fn device(&self) -> &Path {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

fn attach(file: &Path) -> PathBuf {
    let file = file.display().to_string();
    let said = run(command("losetup", &["--partscan", "--find", "--show", &file]));
    said.trim().into()
}

fn detach(device: &Path) {
    let device = device.display().to_string();
    // Partitions are removed first; most devices have none.
    let _ = change_partition(Path::new(&device), DELETE, 0, 0);
    try_run(command("losetup", &["--detach", &device]), COMMAND_DEADLINE);
}

/// `BLKPG_ADD_PARTITION` and `BLKPG_DEL_PARTITION` (linux/blkpg.h). The programs `addpart` and
/// `delpart` do the same, but some releases lack them.
const ADD: i32 = 1;
const DELETE: i32 = 2;

/// `struct blkpg_partition`; the names stay empty.
#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Request {
    operation: i32,
    flags: i32,
    length: i32,
    data: *const Partition,
}

/// Adds or deletes partition 1 of a device. `start` is its first sector and `sectors` its number of
/// sectors, of 512 bytes each.
fn change_partition(device: &Path, operation: i32, start: u64, sectors: u64) -> std::io::Result<()> {
    const BLKPG: ioctl::Opcode = ioctl::opcode::none(0x12, 105);
    let partition = Partition {
        start: start as i64 * 512,
        length: sectors as i64 * 512,
        number: 1,
        names: [0; 128],
    };
    let request = Request {
        operation,
        flags: 0,
        length: size_of::<Partition>() as i32,
        data: &raw const partition,
    };
    let device = File::open(device)?;
    // SAFETY: BLKPG takes a pointer to a `struct blkpg_ioctl_arg`, whose data outlives the call.
    unsafe { ioctl::ioctl(&device, ioctl::Setter::<BLKPG, Request>::new(request)) }?;
    Ok(())
}
