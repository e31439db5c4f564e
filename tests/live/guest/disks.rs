//! The disks of guests: one with a file system only, and one from which a machine boots.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::DISK_MIB;
use super::image::GuestImage;
use crate::process::{command, run};

/// The file system's block device on a bootable disk, as the guest sees it.
pub const DATA_PARTITION: &str = "/dev/vda2";

/// The boot code of the master boot record, which starts the active partition (Debian's
/// `syslinux-common`).
const BOOT_CODE: &str = "/usr/lib/syslinux/mbr/mbr.bin";

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// The start of the first partition, which holds the boot loader, the kernel and the initramfs.
const BOOT_START: u64 = MIB;

/// The end of the first partition and the start of the second, which holds the data.
const DATA_START: u64 = 64 * MIB;

const DATA_SIZE: u64 = DISK_MIB as u64 * MIB;

/// Types of partitions in the master boot record.
const FAT16_LBA: u8 = 0x0e;
const LINUX: u8 = 0x83;

/// Makes a qcow2 image with an empty ext4 file system and no partitions.
pub fn make_data_disk(dir: &Path, disk: &Path) {
    make_disk(dir, disk, DATA_SIZE, |raw| make_file_system(raw, 0));
}

/// Makes a qcow2 image from which SeaBIOS boots the guest's system with these kernel options. The
/// first partition is FAT with SYSLINUX, the kernel and the initramfs; the second is an empty ext4
/// file system.
pub fn make_bootable_disk(dir: &Path, disk: &Path, image: &GuestImage, options: &str) {
    make_disk(dir, disk, DATA_START + DATA_SIZE, |raw| {
        write_boot_sector(raw);
        make_boot_partition(dir, raw, image, options);
        make_file_system(raw, DATA_START);
    });
}

/// Fills an empty raw image of this size in bytes and converts it to qcow2.
fn make_disk(dir: &Path, disk: &Path, size: u64, fill: impl FnOnce(&Path)) {
    let raw = dir.join("disk.raw");
    let file = File::create(&raw).expect("the folder is ours");
    file.set_len(size).expect("a file can be sparse");
    fill(&raw);
    let words = ["convert", "-f", "raw", "-O", "qcow2"].map(Path::new);
    run(command("qemu-img", &[&words[..], &[&raw, disk]].concat()));
    fs::remove_file(raw).expect("it is ours");
}

/// Makes an ext4 file system of [`DATA_SIZE`] at this offset in bytes.
fn make_file_system(raw: &Path, offset: u64) {
    // All tables are written now, so that the guest does not write them later.
    let extended = format!("lazy_itable_init=0,lazy_journal_init=0,offset={offset}");
    let raw = raw.display().to_string();
    let blocks = (DATA_SIZE / 4096).to_string();
    let words = ["-q", "-F", "-t", "ext4", "-b", "4096", "-E"];
    run(command(
        "mke2fs",
        &[&words[..], &[&extended, &raw, &blocks]].concat(),
    ));
}

/// Writes the master boot record: the boot code, two partitions and the signature.
fn write_boot_sector(raw: &Path) {
    let mut sector = [0; SECTOR as usize];
    let code = fs::read(BOOT_CODE).unwrap_or_else(|error| panic!("cannot read {BOOT_CODE}: {error}"));
    assert!(code.len() <= 440, "{BOOT_CODE} is too long for a boot sector");
    sector[..code.len()].copy_from_slice(&code);
    sector[446..462].copy_from_slice(&partition(true, FAT16_LBA, BOOT_START, DATA_START));
    sector[462..478].copy_from_slice(&partition(false, LINUX, DATA_START, DATA_START + DATA_SIZE));
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = File::options().write(true).open(raw).expect("the image is ours");
    file.write_all_at(&sector, 0).expect("the image is ours");
}

/// An entry of the partition table. Start and end are offsets in bytes; the old fields for
/// cylinders, heads and sectors say that only the sector numbers count.
fn partition(active: bool, kind: u8, start: u64, end: u64) -> [u8; 16] {
    let number = |offset: u64| u32::try_from(offset / SECTOR).expect("the disk is small");
    let mut entry = [0xff; 16];
    entry[0] = if active { 0x80 } else { 0 };
    entry[1] = 0xfe;
    entry[4] = kind;
    entry[5] = 0xfe;
    entry[8..12].copy_from_slice(&number(start).to_le_bytes());
    entry[12..].copy_from_slice(&number(end - start).to_le_bytes());
    entry
}

/// Makes the first partition, without a mount or a loop device.
fn make_boot_partition(dir: &Path, raw: &Path, image: &GuestImage, options: &str) {
    let config = dir.join("syslinux.cfg");
    // No output of SYSLINUX on the serial port: the first line there is the guest's own.
    let text = format!("DEFAULT guest\nLABEL guest\n  LINUX vmlinuz\n  INITRD initrd\n  APPEND {options}\n");
    fs::write(&config, text).expect("the folder is ours");
    let raw = raw.display().to_string();
    let partition = format!("{raw}@@{BOOT_START}");
    let sectors = ((DATA_START - BOOT_START) / SECTOR).to_string();
    let before = (BOOT_START / SECTOR).to_string();
    let geometry = ["-h", "255", "-s", "63", "-T", &sectors, "-H", &before, "::"];
    run(command("mformat", &[&["-i", &partition], &geometry[..]].concat()));
    let files = [&image.kernel, &image.initrd, &config].map(|path| path.display().to_string());
    let [kernel, initrd, config_path] = &files;
    run(command(
        "mcopy",
        &["-i", &partition, kernel, initrd, config_path, "::"],
    ));
    run(command(
        "syslinux",
        &["--install", "--offset", &BOOT_START.to_string(), &raw],
    ));
    fs::remove_file(config).expect("it is ours");
}

#[test]
fn partitions_are_described_by_their_sectors() {
    let entry = partition(true, FAT16_LBA, BOOT_START, DATA_START);
    assert_eq!(entry[..8], [0x80, 0xfe, 0xff, 0xff, 0x0e, 0xfe, 0xff, 0xff]);
    assert_eq!(entry[8..12], 2048_u32.to_le_bytes());
    assert_eq!(entry[12..], (63 * 2048_u32).to_le_bytes());
}
