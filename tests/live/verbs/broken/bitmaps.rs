//! Bitmaps without checkpoints, checkpoints without bitmaps, and bitmaps that others have changed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmsnap::host::Host;

use super::{assert_next, begun, bitmap, bring, off};
use crate::embed::Lab;
use crate::host::{back_up, names};
use crate::verbs::rng::Rng;
use crate::verbs::story::Story;

const NEXT: &str = "virtnbdbackup.2";

/// Sets the flag `in-use` of one bitmap, as a killed QEMU leaves it. Source: QEMU's
/// `docs/interop/qcow2.txt`, "Bitmaps extension" and "Bitmap directory".
fn break_bitmap(image: &Path, name: &str) {
    const EXTENSION: u32 = 0x2385_2875;
    let file = File::options()
        .read(true)
        .write(true)
        .open(image)
        .expect("it is there");
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).expect("it is long enough");
        bytes
    };
    let u32_at = |at: u64| u32::from_be_bytes(read(at, 4).try_into().expect("four bytes"));
    let u64_at = |at: u64| u64::from_be_bytes(read(at, 8).try_into().expect("eight bytes"));
    let mut at = u64::from(u32_at(100));
    while u32_at(at) != EXTENSION {
        assert_ne!(u32_at(at), 0, "the image has bitmaps");
        at += 8 + u64::from(u32_at(at + 4)).next_multiple_of(8);
    }
    let mut entry = u64_at(at + 24);
    for _ in 0..u32_at(at + 8) {
        let tail = read(entry + 16, 8);
        let name_length = u16::from_be_bytes([tail[2], tail[3]]);
        let extra = u64::from(u32_at(entry + 20));
        if read(entry + 24 + extra, name_length.into()) == name.as_bytes() {
            let flags = u32_at(entry + 12) | 1;
            return file
                .write_all_at(&flags.to_be_bytes(), entry + 12)
                .expect("it is written");
        }
        entry += (24 + extra + u64::from(name_length)).next_multiple_of(8);
    }
    panic!("the image has no bitmap {name}");
}

fn stored(story: &Story, target: &str) -> Vec<String> {
    let names = Lab::get().host.bitmap_names(&story.domain.seen(), target);
    names.expect("they are listed")
}

/// A state of the bitmaps of a shut-off domain with two restore points, and the next backup.
struct State {
    /// Part of the domain's name.
    name: &'static str,
    /// Creates the state.
    make: fn(&mut Story),
    /// The restore points that the next images of `vda` and `vdb` depend on; `None` for a full
    /// image.
    parents: [Option<usize>; 2],
}

/// The bitmaps of one disk that other programs made.
fn foreign(story: &Story, target: &str) -> Vec<String> {
    let mut names = stored(story, target);
    names.retain(|name| !name.starts_with("virtnbdbackup."));
    names
}

/// Backs up each state with a running and a shut-off domain, and restores every restore point.
fn check(states: &[State]) {
    let mut rng = Rng::new();
    for state in states {
        for active in [true, false] {
            let mut story = begun(state.name, &mut rng);
            (state.make)(&mut story);
            let before = ["vda", "vdb"].map(|target| foreign(&story, target));
            bring(&story, active);
            story.write("vda", 2 << 20, 65536, 0x72);
            assert_next(&mut story, &mut rng, state.parents);
            off(&story);
            let after = ["vda", "vdb"].map(|target| foreign(&story, target));
            assert_eq!(after, before, "{}: foreign bitmaps stay", state.name);
            story.prove();
        }
    }
}

#[test]
fn bitmaps_without_checkpoint_are_harmless() {
    check(&[
        State {
            name: "orphans ",
            make: |story| {
                bitmap(story, "vda", "--add", NEXT);
                bitmap(story, "vdb", "--add", "virtnbdbackup.77");
                bitmap(story, "vdb", "--add", "mine");
                assert_eq!(foreign(story, "vdb"), ["mine"]);
            },
            parents: [Some(1), Some(1)],
        },
        State {
            name: "broken orphan ",
            make: |story| {
                bitmap(story, "vdb", "--add", NEXT);
                break_bitmap(&story.domain.image("vdb"), NEXT);
            },
            parents: [Some(1), Some(1)],
        },
        // A killed QEMU leaves every bitmap of the disk inconsistent.
        State {
            name: "killed orphan ",
            make: |story| {
                bitmap(story, "vda", "--add", NEXT);
                story.domain.start();
                story.domain.kill();
            },
            parents: [None, None],
        },
    ]);
}

#[test]
fn lost_and_broken_bitmaps_give_way_to_older_ones() {
    check(&[
        State {
            name: "lost ",
            make: |story| {
                for target in ["vda", "vdb"] {
                    bitmap(story, target, "--remove", &story.made(1));
                }
            },
            parents: [Some(0), Some(0)],
        },
        State {
            name: "lost one ",
            make: |story| bitmap(story, "vdb", "--remove", &story.made(1)),
            parents: [Some(1), Some(0)],
        },
        State {
            name: "broken newest ",
            make: |story| break_bitmap(&story.domain.image("vda"), &story.made(1)),
            parents: [Some(0), Some(1)],
        },
        // A disabled bitmap looks clean but does not record the write.
        State {
            name: "disabled ",
            make: |story| {
                bitmap(story, "vda", "--disable", &story.made(1));
                story.write("vda", 1 << 20, 65536, 0x71);
            },
            parents: [Some(0), Some(1)],
        },
    ]);
}

#[test]
fn disk_without_any_sound_bitmap_gets_a_full_alone() {
    check(&[State {
        name: "lost all ",
        make: |story| {
            for number in [1, 0] {
                bitmap(story, "vda", "--remove", &story.made(number));
            }
        },
        parents: [None, Some(1)],
    }]);
}

#[test]
fn foreign_checkpoints_between_ours_are_kept_and_harmless() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("foreign ", &mut rng);
        bring(&story, active);
        let host = &Lab::get().host;
        let both = [("vda", None), ("vdb", None)];
        back_up(&story.domain, "somebody-elses", &both);
        story.scribble(&mut rng, 5);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        // Other programs use names like ours.
        back_up(&story.domain, "virtnbdbackup.50", &both);
        assert_next(&mut story, &mut rng, [Some(3), Some(3)]);
        for name in ["somebody-elses", "virtnbdbackup.50"] {
            assert!(names(&story.domain).contains(&name.to_owned()), "{name} stays");
            host.delete_checkpoint(&story.domain.seen(), name)
                .expect("it is removed");
        }
        assert_next(&mut story, &mut rng, [Some(5), Some(5)]);
        story.prove();
    }
}
