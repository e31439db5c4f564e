//! The module `host` on shut-off domains.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use vmsnap::host::{Host, HostError, JobHealth};
use vmsnap::model::checkpoint::Bitmap;
use vmsnap::model::domain::DomainState;
use vmsnap::model::restore_point::Consistency;

use crate::embed::{Kind, Lab, TestDomain, run_ok};
use crate::host::{NOW, assert_nothing_left, back_up, begin, bitmaps, dirty, names, reads};
use crate::mount::Mount;

#[test]
fn shut_off_domain_is_read_without_being_started() {
    let domain = TestDomain::define("off ", &[Kind::Qcow2, Kind::Raw]);
    domain.io("vda", "write -P 0x41 0 1M");
    let (job, places) = begin(&domain, "c0", &[("vda", None)]).expect("it begins");
    assert_eq!(domain.seen().state, DomainState::ShutOff);
    assert_eq!(
        (job.consistency(), job.findings()),
        (Consistency::Offline, Vec::new())
    );
    assert_eq!(job.checkpoint().expect("it was made").id.created, NOW);
    assert_eq!(job.health().expect("it is known"), JobHealth::Good);
    assert!(reads(&places.sockets[0], "vda", "0x41", "0", "1M"));
    assert!(
        domain.handle().create().is_err(),
        "it cannot start while it is read"
    );
    job.finish().expect("it ends");
    assert_nothing_left(&domain, &places);
    assert_eq!(bitmaps(&domain, "c0"), [("vda".to_owned(), Bitmap::Sound)]);

    domain.io("vda", "write -P 0x42 4M 64k");
    let (job, places) = begin(&domain, "c1", &[("vda", Some("c0"))]).expect("it begins");
    assert_eq!(dirty(&places.sockets[0], "vda", "c0"), [(4096, 64)]);
    job.finish().expect("it ends");
    assert_eq!(names(&domain), ["c0", "c1"]);
    assert_eq!(domain.seen().state, DomainState::ShutOff);

    // The chain continues when the domain runs, and when it is shut off again.
    domain.start();
    domain.io("vda", "write -P 0x43 8M 64k");
    let (job, places) = begin(&domain, "c2", &[("vda", Some("c1"))]).expect("it begins");
    assert_eq!(dirty(&places.sockets[0], "vda", "backup-vda"), [(8192, 64)]);
    job.finish().expect("it ends");
    domain.io("vda", "write -P 0x44 12M 64k");
    domain.destroy();
    let (job, places) = begin(&domain, "c3", &[("vda", Some("c2"))]).expect("it begins");
    assert_eq!(dirty(&places.sockets[0], "vda", "c2"), [(12288, 64)]);
    assert_eq!(job.abort(), []);
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), ["c0", "c1", "c2"]);
}

#[test]
fn raw_disks_of_a_shut_off_domain_are_read_without_a_checkpoint() {
    let domain = TestDomain::define("off raw ", &[Kind::Raw]);
    run_ok(
        "qemu-io",
        [&"-f", &"raw", &"-c", &"write -P 0x41 0 64k", &domain.image("vda")],
    );
    let places = crate::host::places(&domain, &[("vda", None)]);
    let mut request = crate::host::request(&places, "unused", &[("vda", None)]);
    request.checkpoint = None;
    request.disks[0].checkpointed = false;
    let job = Lab::get()
        .host
        .begin_backup(&domain.seen(), &request)
        .expect("it begins");
    assert!(job.checkpoint().is_none());
    assert!(reads(&places.sockets[0], "vda", "0x41", "0", "64k"));
    drop(job);
    assert_nothing_left(&domain, &places);
}

#[test]
fn partial_failure_is_undone_on_every_disk() {
    let domain = TestDomain::define("half ", &[Kind::Qcow2, Kind::Qcow2Version2]);
    let refused = begin(&domain, "c0", &[("vda", None), ("vdb", None)]).map(|_| ());
    assert!(matches!(refused, Err(HostError::Refused(_))), "{refused:?}");
    let host = &Lab::get().host;
    assert!(
        host.bitmap_names(&domain.seen(), "vda")
            .expect("they are listed")
            .is_empty()
    );
    assert_eq!(names(&domain), [""; 0]);
    let readers = run_ok("ps", [&"-eo", &"args"]);
    assert!(
        !readers.contains(&*domain.image("vda").to_string_lossy()),
        "{readers}"
    );
}

#[test]
fn foreign_bitmap_of_the_same_name_stays() {
    let domain = TestDomain::define("foreign ", &[Kind::Qcow2]);
    run_ok("qemu-img", [&"bitmap", &"--add", &domain.image("vda"), &"c0"]);
    let refused = begin(&domain, "c0", &[("vda", None)]).map(|_| ());
    assert!(
        matches!(refused, Err(HostError::BitmapExists { .. })),
        "{refused:?}"
    );
    let host = &Lab::get().host;
    assert_eq!(
        host.bitmap_names(&domain.seen(), "vda").expect("they are listed"),
        ["c0"]
    );
}

#[test]
fn bitmap_below_the_top_image_is_not_used() {
    let domain = TestDomain::define("layers ", &[Kind::Qcow2]);
    back_up(&domain, "c0", &[("vda", None)]);
    let (top, base) = (domain.image("vda"), domain.dir.path().join("base.img"));
    std::fs::copy(&top, &base).expect("it is copied");
    std::fs::remove_file(&top).expect("it is removed");
    run_ok(
        "qemu-img",
        [
            &"create", &"-q", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &base, &top,
        ],
    );
    assert_eq!(bitmaps(&domain, "c0"), [("vda".to_owned(), Bitmap::Broken)]);
    let refused = begin(&domain, "c1", &[("vda", Some("c0"))]).map(|_| ());
    assert!(
        refused.is_err(),
        "qemu-nbd would show the lower bitmap as if it were the truth"
    );
}

#[test]
fn a_chain_is_read_wherever_its_images_lie() {
    let mount = Mount::without_direct_io();
    let domain = TestDomain::define("anywhere ", &[Kind::Qcow2]);
    domain.io("vda", "write -P 0x41 0 1M");
    let (top, base) = (domain.image("vda"), mount.path().join("base.img"));
    std::fs::copy(&top, &base).expect("it is copied");
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
        .open(&base);
    direct.expect_err("there is no reading past the page cache here");
    std::fs::remove_file(&top).expect("it is removed");
    run_ok(
        "qemu-img",
        [
            &"create", &"-q", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &base, &top,
        ],
    );
    let (job, places) = begin(&domain, "c0", &[("vda", None)]).expect("it begins");
    assert!(reads(&places.sockets[0], "vda", "0x41", "0", "1M"));
    job.finish().expect("it ends");
    assert_nothing_left(&domain, &places);
}

#[test]
fn checkpoints_of_a_shut_off_domain_go_with_their_bitmaps() {
    let domain = TestDomain::define("off delete ", &[Kind::Qcow2, Kind::Qcow2]);
    back_up(&domain, "c0", &[("vda", None), ("vdb", None)]);
    back_up(&domain, "c1", &[("vda", Some("c0")), ("vdb", Some("c0"))]);
    let host = &Lab::get().host;
    host.delete_checkpoint(&domain.seen(), "c0")
        .expect("it is deleted");
    assert_eq!(names(&domain), ["c1"]);
    for target in ["vda", "vdb"] {
        assert_eq!(
            host.bitmap_names(&domain.seen(), target)
                .expect("they are listed"),
            ["c1"]
        );
    }
    let again = host.delete_checkpoint(&domain.seen(), "c0");
    assert!(
        matches!(again, Err(HostError::NoSuchCheckpoint { .. })),
        "{again:?}"
    );
}

#[test]
fn a_saved_machine_is_no_clean_one() {
    let domain = TestDomain::paused("saved ", &[Kind::Qcow2]);
    domain.handle().managed_save(0).expect("it is saved");
    let (job, places) = begin(&domain, "c0", &[("vda", None)]).expect("it begins");
    assert_eq!(job.consistency(), Consistency::Crash);
    let codes: Vec<String> = job.findings().into_iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["managed-save"]);
    job.finish().expect("it ends");
    assert_nothing_left(&domain, &places);
    domain.start();
    assert_eq!(
        domain.seen().state,
        DomainState::Paused,
        "it can still be restored"
    );
}

#[test]
fn offline_leftovers_of_a_killed_run_are_cleared() {
    let domain = TestDomain::define("stray ", &[Kind::Qcow2]);
    let (job, places) = begin(&domain, "c0", &[("vda", None)]).expect("it begins");
    // As after a kill, the reader is not ended.
    std::mem::forget(job);
    let host = &Lab::get().host;
    host.clear_places(&places).expect("they are cleared");
    assert_nothing_left(&domain, &places);
    host.delete_checkpoint(&domain.seen(), "c0")
        .expect("the image is free again");
    back_up(&domain, "c0", &[("vda", None)]);
}
