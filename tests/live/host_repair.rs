//! Checkpoints of running domains: removed, found broken, repaired.

use vmsnap::host::{Host, HostError};
use vmsnap::model::checkpoint::Bitmap;

use crate::embed::{Kind, Lab, TestDomain, run_ok};
use crate::host::{back_up, begin, bitmaps, names};

#[test]
fn blocking_bitmap_without_checkpoint_is_named() {
    let domain = TestDomain::define("orphan ", &[Kind::Qcow2]);
    run_ok("qemu-img", [&"bitmap", &"--add", &domain.image("vda"), &"c0"]);
    domain.start();
    match begin(&domain, "c0", &[("vda", None)]).map(|_| ()) {
        Err(HostError::BitmapExists { name }) => assert_eq!(name, "c0"),
        other => panic!("{other:?}"),
    }
    assert_eq!(names(&domain), [""; 0]);
    assert!(domain.strangers().is_empty());
}

#[test]
fn checkpoints_of_a_running_domain_go_with_their_bitmaps() {
    let domain = TestDomain::paused("delete ", &[Kind::Qcow2]);
    for (name, since) in [("c0", None), ("c1", Some("c0")), ("c2", Some("c1"))] {
        back_up(&domain, name, &[("vda", since)]);
    }
    let host = &Lab::get().host;
    host.delete_checkpoint(&domain.seen(), "c1")
        .expect("it is deleted");
    assert_eq!(names(&domain), ["c0", "c2"]);
    let left = host.checkpoints(&domain.seen()).expect("they are listed");
    assert!(
        left.iter().all(|checkpoint| checkpoint.is_sound_for("vda")),
        "{left:?}"
    );
    let again = host.delete_checkpoint(&domain.seen(), "c1");
    assert!(
        matches!(again, Err(HostError::NoSuchCheckpoint { .. })),
        "{again:?}"
    );
    back_up(&domain, "c3", &[("vda", Some("c0"))]);
    assert_eq!(names(&domain), ["c0", "c2", "c3"]);
}

#[test]
fn checkpoint_missing_a_bitmap_is_broken_and_deletable() {
    let domain = TestDomain::paused("lost ", &[Kind::Qcow2, Kind::Qcow2]);
    back_up(&domain, "c0", &[("vda", None), ("vdb", None)]);
    domain.destroy();
    run_ok("qemu-img", [&"bitmap", &"--remove", &domain.image("vda"), &"c0"]);
    domain.start();
    let state = |target: &str, bitmap| (target.to_owned(), bitmap);
    assert_eq!(
        bitmaps(&domain, "c0"),
        [state("vda", Bitmap::Broken), state("vdb", Bitmap::Sound)]
    );
    Lab::get()
        .host
        .delete_checkpoint(&domain.seen(), "c0")
        .expect("it is deleted");
    assert_eq!(names(&domain), [""; 0]);
    // The bitmap of the other disk was removed too: the name is free again on both.
    back_up(&domain, "c0", &[("vda", None), ("vdb", None)]);
}

#[test]
fn bitmaps_of_a_killed_qemu_are_broken_and_can_be_deleted() {
    let domain = TestDomain::paused("killed ", &[Kind::Qcow2]);
    back_up(&domain, "c0", &[("vda", None)]);
    domain.destroy();
    domain.start();
    domain.kill();
    assert_eq!(
        bitmaps(&domain, "c0"),
        [("vda".to_owned(), Bitmap::Broken)],
        "according to the image"
    );
    domain.start();
    assert_eq!(
        bitmaps(&domain, "c0"),
        [("vda".to_owned(), Bitmap::Broken)],
        "according to QEMU"
    );
    let refused = begin(&domain, "c1", &[("vda", Some("c0"))]).map(|_| ());
    assert!(
        matches!(refused, Err(HostError::Libvirt { code: 109, .. })),
        "{refused:?}"
    );
    Lab::get()
        .host
        .delete_checkpoint(&domain.seen(), "c0")
        .expect("it is deleted");
    back_up(&domain, "c0", &[("vda", None)]);
    assert_eq!(bitmaps(&domain, "c0"), [("vda".to_owned(), Bitmap::Sound)]);
}
