//! Bitmaps and checkpoints that do not belong together, and bitmaps that somebody has been at.

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

/// Sets the flag `in-use` of one bitmap, as it stays when QEMU is killed (`docs/interop/qcow2.txt` in QEMU, "Bitmaps extension" and
/// "Bitmap directory").
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

#[test]
fn bitmaps_without_a_checkpoint_cost_nothing_whatever_their_names() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("orphans ", &mut rng);
        bitmap(&story, "vda", "--add", NEXT);
        bitmap(&story, "vdb", "--add", "virtnbdbackup.77");
        bitmap(&story, "vdb", "--add", "mine");
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        off(&story);
        assert!(
            stored(&story, "vdb").contains(&"mine".to_owned()),
            "it is not ours to remove"
        );
        story.prove();
    }
}

#[test]
fn a_broken_bitmap_without_a_checkpoint_costs_nothing_where_the_others_are_sound() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("broken orphan ", &mut rng);
        bitmap(&story, "vdb", "--add", NEXT);
        break_bitmap(&story.domain.image("vdb"), NEXT);
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        story.prove();
    }
}

#[test]
fn a_bitmap_without_a_checkpoint_that_was_open_when_qemu_was_killed_is_in_no_way() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("killed orphan ", &mut rng);
        bitmap(&story, "vda", "--add", NEXT);
        story.domain.start();
        story.domain.kill();
        bring(&story, active);
        assert_next(&mut story, &mut rng, [None, None]);
        story.prove();
    }
}

#[test]
fn a_checkpoint_whose_newest_bitmaps_are_gone_is_passed_over_for_the_one_before() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("lost ", &mut rng);
        for target in ["vda", "vdb"] {
            bitmap(&story, target, "--remove", &story.made(1));
        }
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(0), Some(0)]);
        story.prove();
    }
}

#[test]
fn a_disk_that_has_lost_a_bitmap_is_passed_over_alone() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("lost one ", &mut rng);
        bitmap(&story, "vdb", "--remove", &story.made(1));
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(1), Some(0)]);
        story.prove();
    }
}

#[test]
fn a_disk_that_has_lost_all_its_bitmaps_gets_a_full_alone() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("lost all ", &mut rng);
        for number in [1, 0] {
            bitmap(&story, "vda", "--remove", &story.made(number));
        }
        bring(&story, active);
        assert_next(&mut story, &mut rng, [None, Some(1)]);
        story.prove();
    }
}

#[test]
fn a_broken_bitmap_is_passed_over_for_an_older_one_that_is_sound() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("broken newest ", &mut rng);
        break_bitmap(&story.domain.image("vda"), &story.made(1));
        bring(&story, active);
        assert_next(&mut story, &mut rng, [Some(0), Some(1)]);
        story.prove();
    }
}

/// A bitmap that does not record looks clean: what it does not tell would be missing in the restore point.
#[test]
fn a_bitmap_that_somebody_has_disabled_is_not_trusted() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("disabled ", &mut rng);
        bitmap(&story, "vda", "--disable", &story.made(1));
        story.write("vda", 1 << 20, 65536, 0x71);
        bring(&story, active);
        story.write("vda", 2 << 20, 65536, 0x72);
        assert_next(&mut story, &mut rng, [Some(0), Some(1)]);
        story.prove();
    }
}

#[test]
fn checkpoints_of_others_in_between_are_kept_and_in_no_way_also_when_they_go_later() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("foreign ", &mut rng);
        bring(&story, active);
        let host = &Lab::get().host;
        let both = [("vda", None), ("vdb", None)];
        back_up(&story.domain, "somebody-elses", &both);
        story.scribble(&mut rng, 5);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        // One with a name such as ours: other programs give the same.
        back_up(&story.domain, "virtnbdbackup.50", &both);
        assert_next(&mut story, &mut rng, [Some(3), Some(3)]);
        for name in ["somebody-elses", "virtnbdbackup.50"] {
            assert!(names(&story.domain).contains(&name.to_owned()), "{name} stays");
            host.delete_checkpoint(&story.domain.seen(), name)
                .expect("it goes");
        }
        assert_next(&mut story, &mut rng, [Some(5), Some(5)]);
        story.prove();
    }
}
