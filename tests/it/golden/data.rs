//! The golden repositories in `tests/data`: what they hold, and how their files are unpacked.

use std::fs;
use std::path::Path;

use vmsnap::model::restore_point::Level;

const KIB: usize = 1024;

/// A repository that an earlier version wrote with `tests/data/make.sh`, as the script was then.
pub struct Golden {
    /// Its folder below `tests/data`.
    pub folder: &'static str,
    /// Its restore points with id, level and format, oldest first. The last one is a standalone
    /// copy with the same disks as the point before it.
    pub points: [(&'static str, Level, u32); 4],
    /// Makes the content of `vda` and `vdb` at each restore point.
    pub disks: fn() -> [[Vec<u8>; 2]; 4],
}

/// Written by version 0.2.0: all images are plain.
pub const FORMAT_1: Golden = Golden {
    folder: "format-1",
    points: [
        ("2026-11-27T18-31-37Z", Level::Full, 1),
        ("2026-11-27T18-31-41Z", Level::Incremental, 1),
        ("2026-11-27T18-31-45Z", Level::Incremental, 1),
        ("2026-11-27T18-31-55Z", Level::Full, 1),
    ],
    disks: plain_disks,
};

/// Written by the version after 0.2.0: the images are compressed, except those of the second point.
/// `vda` has clusters that cannot be compressed, and some that hardly can.
pub const FORMAT_2: Golden = Golden {
    folder: "format-2",
    points: [
        ("2026-11-28T07-46-58Z", Level::Full, 2),
        ("2026-11-28T07-47-04Z", Level::Incremental, 1),
        ("2026-11-28T07-47-06Z", Level::Incremental, 2),
        ("2026-11-28T07-47-08Z", Level::Full, 2),
    ],
    disks: compressed_disks,
};

fn plain_disks() -> [[Vec<u8>; 2]; 4] {
    let mut vda = vec![0; 256 * KIB];
    let mut vdb = vec![0; 150 * KIB];
    vda[..64 * KIB].fill(0x11);
    vda[130 * KIB..135 * KIB].fill(0x12);
    vdb[64 * KIB..].fill(0x21);
    let first = [vda.clone(), vdb.clone()];
    vda[60 * KIB..70 * KIB].fill(0x13);
    vda[128 * KIB..192 * KIB].fill(0);
    let second = [vda.clone(), vdb.clone()];
    vda[192 * KIB..].fill(0x14);
    vdb[64 * KIB..128 * KIB].fill(0);
    vdb[..KIB].fill(0x22);
    let third = [vda, vdb];
    [first, second, third.clone(), third]
}

fn compressed_disks() -> [[Vec<u8>; 2]; 4] {
    let mut vda = vec![0; 448 * KIB];
    let mut vdb = vec![0; 150 * KIB];
    let noise = noise();
    vda[..64 * KIB].fill(0x11);
    vda[130 * KIB..135 * KIB].fill(0x12);
    vda[256 * KIB..320 * KIB].copy_from_slice(&noise);
    vda[320 * KIB..].fill(0x15);
    vda[320 * KIB..360 * KIB].copy_from_slice(&noise[..40 * KIB]);
    vda[384 * KIB..424 * KIB].copy_from_slice(&noise[..40 * KIB]);
    vdb[64 * KIB..].fill(0x21);
    let first = [vda.clone(), vdb.clone()];
    vda[60 * KIB..70 * KIB].fill(0x13);
    vda[128 * KIB..192 * KIB].fill(0);
    let second = [vda.clone(), vdb.clone()];
    vda[192 * KIB..256 * KIB].fill(0x14);
    vda[320 * KIB..324 * KIB].fill(0x16);
    vdb[64 * KIB..128 * KIB].fill(0);
    vdb[..KIB].fill(0x22);
    let third = [vda, vdb];
    [first, second, third.clone(), third]
}

impl Golden {
    /// Writes the repository's files below a folder.
    pub fn unpack(&self, to: &Path) {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        unpack(&data.join(self.folder), to);
    }
}

fn unpack(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            unpack(&path, &target);
        } else if path.extension().is_some_and(|ending| ending == "runs") {
            let text = fs::read_to_string(&path).expect("readable");
            fs::write(target.with_extension(""), unpacked(&text)).expect("written");
        } else {
            fs::copy(&path, target).expect("copied");
        }
    }
}

/// Unpacks a file that `tests/data/make.sh` wrote as runs of bytes.
fn unpacked(text: &str) -> Vec<u8> {
    let number = |word: &str| word.parse::<usize>().expect("a number");
    let noise = noise();
    let mut runs: Vec<&str> = text.lines().collect();
    let length = runs.pop().expect("the length comes last");
    let mut bytes = vec![0; number(length)];
    for line in runs {
        let words: Vec<&str> = line.split(' ').collect();
        let [offset, length] = [0, 1].map(|index| number(words[index]));
        let run = &mut bytes[offset..offset + length];
        match words[2..] {
            ["noise", start] => run.copy_from_slice(&noise[number(start)..number(start) + length]),
            [byte] => run.fill(byte.parse().expect("a byte")),
            _ => panic!("{line}"),
        }
    }
    bytes
}

/// The bytes that the script calls noise: 64 KiB that cannot be compressed.
fn noise() -> Vec<u8> {
    let mut state: u64 = 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..64 * KIB).map(next).collect()
}
