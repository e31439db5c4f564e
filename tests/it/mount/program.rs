//! The files of mounted restore points, seen through the kernel.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::thread;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::{CHANGE, Story, VDA, VDB, pread};
use crate::lab::{CLUSTER, InFolder};

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

#[test]
fn every_point_of_a_folder_and_a_pack_is_mounted_exactly() {
    let story = Story::new();
    for repository in [story.images(), story.pack()] {
        for (id, disks) in &story.points {
            let mounted = story.mount(&repository, &["--at", id]);
            assert_eq!(
                names(&mounted.dir),
                ["domain.xml", "nvram.fd", "vda.raw", "vdb.raw"]
            );
            for (name, disk) in ["vda.raw", "vdb.raw"].iter().zip(disks) {
                assert!(mounted.read(name) == *disk, "{name} of {id} in {repository}");
            }
            let kept = story.lab.history("vm1").kept;
            let kept = kept
                .iter()
                .find(|kept| kept.manifest.point.id == *id)
                .expect("there");
            let definition = fs::read(kept.dir().join("domain.xml")).expect("it was saved");
            assert_eq!(mounted.read("domain.xml"), definition);
            assert_eq!(mounted.read("nvram.fd"), b"variables");
            let (stdout, stderr) = mounted.end(0);
            assert!(stdout.contains(id) && stdout.contains("vda.raw"), "{stdout}");
            assert!(stdout.contains("unmounted"), "{stdout}");
            assert!(!stderr.contains("failed"), "{stderr}");
        }
    }
}

#[test]
fn reads_at_odd_places_and_past_the_end_are_exact() {
    let story = Story::new();
    let [disk, small] = story.latest();
    for repository in [story.images(), story.pack()] {
        let mounted = story.mount(&repository, &[]);
        let file = mounted.open("vda.raw");
        let mut offset = 0;
        for (number, length) in (1..VDA).zip([1, 4095, 4097, 3, 70_001, 131_073].into_iter().cycle()) {
            let start = (offset * 7 + number) % VDA;
            let end = VDA.min(start + length);
            let read = pread(&file, start as u64, length).expect("it reads");
            assert!(read == disk[start..end], "{length} bytes at {start}");
            offset = start + length;
            if number > 300 {
                break;
            }
        }
        for past in [VDA as u64, VDA as u64 + 1, 1 << 40] {
            assert!(pread(&file, past, 10).expect("it reads").is_empty(), "at {past}");
        }
        let file = mounted.open("vdb.raw");
        assert!(pread(&file, VDB as u64 - 700, 9000).expect("it reads") == small[VDB - 700..]);
        mounted.end(0);
    }
}

#[test]
fn attributes_are_those_of_private_read_only_files() {
    let story = Story::new();
    let mounted = story.mount(&story.images(), &[]);
    let time = story
        .lab
        .history("vm1")
        .kept
        .pop()
        .expect("one")
        .manifest
        .point
        .time;
    for (name, size) in [("vda.raw", VDA), ("vdb.raw", VDB)] {
        let found = fs::metadata(mounted.path(name)).expect("there");
        assert_eq!((found.len(), found.mtime()), (size as u64, time.as_second()));
        assert_eq!(found.permissions().mode() & 0o7777, 0o400);
        assert_eq!(found.uid(), rustix::process::geteuid().as_raw());
        let taken = found.blocks() * 512;
        assert!(taken > 0 && taken < size as u64, "{name} has holes: {taken}");
        let refused = OpenOptions::new().write(true).open(mounted.path(name));
        assert_eq!(
            refused.expect_err("read-only").kind(),
            io::ErrorKind::ReadOnlyFilesystem
        );
    }
    let folder = fs::metadata(&mounted.dir).expect("there");
    assert_eq!(folder.permissions().mode() & 0o7777, 0o500);
    for refused in [
        fs::write(mounted.path("new"), "x"),
        fs::remove_file(mounted.path("vda.raw")),
        fs::read(mounted.path("vdc.raw")).map(drop),
    ] {
        refused.expect_err("nothing can be changed, and there is no other file");
    }
    mounted.end(0);
}

/// The ranges of data in a file, as the kernel reports them.
fn data_ranges(file: &File) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = seek(file, SeekFrom::Hole(start)).expect("the end at least");
                found.push((start, at));
            }
            Err(Errno::NXIO) => return found,
            Err(error) => panic!("cannot seek: {error}"),
        }
    }
}

#[test]
fn holes_are_reported_and_hold_only_zeroes() {
    let story = Story::new();
    let [disk, _] = story.latest();
    for repository in [story.images(), story.pack()] {
        let mounted = story.mount(&repository, &[]);
        let ranges = data_ranges(&mounted.open("vda.raw"));
        let in_data = |offset: u64| ranges.iter().any(|(start, end)| (*start..*end).contains(&offset));
        for (number, cluster) in disk.chunks(CLUSTER).enumerate() {
            let is_zero = cluster.iter().all(|byte| *byte == 0);
            assert_eq!(
                in_data((number * CLUSTER) as u64),
                !is_zero,
                "cluster {number}: {ranges:?}"
            );
        }
        let last = seek(mounted.open("vda.raw"), SeekFrom::Data(VDA as u64));
        assert_eq!(last, Err(Errno::NXIO));
        mounted.end(0);
    }
}

#[test]
fn several_readers_read_at_once() {
    let story = Story::new();
    let [disk, small] = story.latest();
    for repository in [story.images(), story.pack()] {
        let mounted = story.mount(&repository, &[]);
        let (vda, vdb) = (mounted.path("vda.raw"), mounted.path("vdb.raw"));
        thread::scope(|scope| {
            for reader in 0..12usize {
                let (vda, vdb) = (&vda, &vdb);
                scope.spawn(move || {
                    let file = File::open(vda).expect("it can be opened");
                    for start in (reader * 1000..VDA).step_by(50_021) {
                        let end = VDA.min(start + 9000);
                        let read = pread(&file, start as u64, end - start).expect("it reads");
                        assert!(read == disk[start..end], "at {start}");
                    }
                    assert!(fs::read(vdb).expect("it can be read") == *small);
                });
            }
        });
        mounted.end(0);
    }
}

/// Damages the data in a restore point's image.
fn damage(story: &Story, point: usize) {
    let kept = story.lab.history("vm1").kept;
    let image = kept[point].dir().join("vda.qcow2");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .expect("it is there");
    let mut byte = [0];
    // In the middle of the data, far from the header and the tables.
    let offset = 24 * CLUSTER as u64 + 99;
    file.read_exact_at(&mut byte, offset).expect("readable");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("writable");
}

/// The bytes of a file page by page: `None` where a read fails.
fn pages(file: &File, size: usize) -> Vec<Option<Vec<u8>>> {
    let starts = (0..size).step_by(4096);
    let read = |start: usize| pread(file, start as u64, 4096.min(size - start));
    starts
        .map(|start| match read(start) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "at {start}");
                None
            }
        })
        .collect()
}

#[test]
fn damaged_blocks_fail_and_all_others_are_right() {
    let story = Story::new();
    damage(&story, 0);
    let [disk, small] = story.latest();
    let mounted = story.mount(&story.images(), &[]);
    let pages = pages(&mounted.open("vda.raw"), VDA);
    let failed = pages.iter().filter(|page| page.is_none()).count();
    assert!(failed > 0 && failed < pages.len(), "{failed} of {}", pages.len());
    for (page, expected) in pages.iter().zip(disk.chunks(4096)) {
        assert!(page.as_ref().is_none_or(|page| page == expected), "no wrong byte");
    }
    // What the damaged image does not hold can be read.
    let read = pread(&mounted.open("vda.raw"), CHANGE as u64, 8).expect("of a newer image");
    assert_eq!(read, b"a change");
    assert!(mounted.read("vdb.raw") == *small);
    let (stdout, stderr) = mounted.end(11);
    assert!(
        stdout.contains("reads failed; stored data is damaged"),
        "{stdout}"
    );
    let reports: Vec<&str> = stderr
        .lines()
        .filter(|line| line.contains("a read of vda.raw failed"))
        .collect();
    assert_eq!(reports.len(), 1, "{stderr}");
    assert!(reports[0].contains("vda.qcow2"), "{stderr}");
}

#[test]
fn damaged_block_of_a_pack_fails_and_others_are_right() {
    let story = Story::new();
    let pack = story.pack();
    let packs = crate::lab::tree(&story.beside("pack"));
    let packs = packs.iter().filter(|name| name.starts_with("packs/"));
    // One byte of the first block of each pack.
    for pack in packs
        .map(|name| story.beside("pack").join(name))
        .filter(|path| path.is_file())
    {
        let mut bytes = fs::read(&pack).expect("readable");
        bytes[40] ^= 1;
        fs::write(&pack, bytes).expect("writable");
    }
    let mounted = story.mount(&pack, &[]);
    let mut failed = 0;
    for (name, disk) in ["vda.raw", "vdb.raw"].iter().zip(story.latest()) {
        for (page, expected) in pages(&mounted.open(name), disk.len())
            .iter()
            .zip(disk.chunks(4096))
        {
            failed += usize::from(page.is_none());
            assert!(page.as_ref().is_none_or(|page| page == expected), "no wrong byte");
        }
    }
    assert!(failed > 0 && failed < (VDA + VDB) / 4096, "{failed}");
    let (stdout, _) = mounted.end(11);
    assert!(stdout.contains("stored data is damaged"), "{stdout}");
}
