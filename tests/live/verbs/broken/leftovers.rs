//! Leftovers of other programs and of dead runs.

use std::fs;

use virt_sys as sys;
use vmsnap::host::{Host, PlaceWishes, Places};
use vmsnap::model::domain::DomainState;
use vmsnap::ops::Cause;

use super::{assert_next, begun, bring};
use crate::embed::{Kind, Lab, Shape, TestDomain, run_ok, wait_for};
use crate::host::{begin, names, request, run_word};
use crate::mount::Mount;
use crate::verbs::interrupted::{Until, killed_run};
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, codes};

const MIB: u64 = 1 << 20;

#[test]
fn foreign_job_is_left_alone_and_no_backup_starts() {
    let mut rng = Rng::new();
    let mut story = begun("busy ", &mut rng);
    story.domain.start();
    let (job, places) = begin(&story.domain, "theirs", &[("vda", None), ("vdb", None)]).expect("it begins");
    let before = names(&story.domain);
    let refused = story.try_back_up().map(drop).expect_err("it is busy");
    assert!(matches!(refused.cause, Cause::Busy { .. }), "{refused}");
    assert!(refused.hint().expect("a hint").contains("virsh domjobabort"));
    assert_eq!(names(&story.domain), before);
    let active = Lab::get().host.active_job(&story.domain.seen());
    let active = active.expect("it is known").expect("it goes on");
    assert_eq!(active.socket.as_ref(), places.sockets.first());
    let history = story.history();
    assert_eq!((history.kept.len(), history.leftovers.len()), (2, 0));

    story.scribble(&mut rng, 5);
    job.finish().expect("it ends");
    assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
    story.prove();
}

/// A power cut ends the run and QEMU, but leaves their sockets and files.
#[test]
fn next_run_clears_a_run_cut_by_power_loss() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = begun("power cut ", &mut rng);
        story.domain.start();
        let (places, _) = killed_run(&story, Some(&story.made(1)), Until::Begun);
        story.domain.kill();
        // libvirt has removed them. It could not if it had died as well.
        for (_, scratch) in &places.scratch {
            fs::write(scratch, "what the guest overwrote").expect("it is written");
        }
        for target in ["vda", "vdb"] {
            story.learn(target);
        }
        bring(&story, active);
        // The bitmaps were open in the images, so they are marked as broken.
        assert_next(&mut story, &mut rng, [None, None]);
        assert_gone(&places);
        story.prove();
    }
}

#[test]
fn next_run_clears_an_offline_run_cut_by_power_loss() {
    let mut rng = Rng::new();
    for run_is_emptied in [true, false] {
        let mut story = begun("power cut off ", &mut rng);
        let (places, run) = killed_run(&story, Some(&story.made(1)), Until::Begun);
        let mut bystander = crate::process::command("sleep", &["600"])
            .spawn()
            .expect("it starts");
        for socket in &places.sockets {
            let file = vmsnap::host::qemu::pid_file(socket);
            let pid = fs::read_to_string(&file).expect("it is written");
            run_ok("kill", [&"-KILL", &pid.trim()]);
            // The process id now belongs to another process.
            fs::write(&file, bystander.id().to_string()).expect("it is written");
        }
        wait_for("the readers to end", || {
            !run_ok("ps", [&"-eo", &"args"]).contains(&run)
        });
        if run_is_emptied {
            for dir in &places.own_dirs {
                fs::remove_dir_all(dir).expect("it is removed");
            }
        }
        bring(&story, run_is_emptied);
        assert_next(&mut story, &mut rng, [Some(1), Some(1)]);
        assert_gone(&places);
        let lives = bystander.try_wait().expect("it is ours").is_none();
        crate::process::end(&mut bystander);
        assert!(lives, "a process that only has the number is left alone");
        story.prove();
    }
}

fn assert_gone(places: &Places) {
    let scratch = places.scratch.iter().map(|(_, file)| file);
    for path in places.sockets.iter().chain(scratch).chain(&places.own_dirs) {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

/// A boot sector that keeps writing 4 KiB at every odd multiple of 64 KiB below 16 MiB, each time
/// with other content.
const RESTLESS: [u8; 33] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xbe, 0x40, 0x7c, // mov si, 0x7c40: the request
    // 0x7c07, again:
    0xb8, 0x00, 0x43, // mov ax, 0x4300: write (INT 13h extensions)
    0xb2, 0x80, // mov dl, 0x80: the first disk
    0xcd, 0x13, // int 0x13
    0xff, 0x06, 0x00, 0x80, // inc word [0x8000]: the buffer
    0x81, 0x44, 0x08, 0x00, 0x01, // add word [si+8], 256: the sector
    0x81, 0x64, 0x08, 0xff, 0x7f, // and word [si+8], 0x7fff
    0xbe, 0x40, 0x7c, // mov si, 0x7c40
    0xeb, 0xe6, // jmp again
];

/// The request: size 16, 8 sectors, buffer 0000:8000, starting at sector 128.
const REQUEST: [u8; 16] = [16, 0, 8, 0, 0x00, 0x80, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0];

/// A paused domain with one restore point whose guest never stops writing.
fn restless(name: &str) -> Story {
    let disks = [(Kind::Qcow2, 16 * MIB)];
    let shape = Shape {
        disks: &disks,
        os: "<boot dev='hd'/>",
        ..Shape::default()
    };
    let mut story = Story::of(TestDomain::shaped(name, &shape));
    // Only overwritten data takes scratch space.
    story.write("vda", 0, 16 * MIB, 0x41);
    let mut sector = [0; 512];
    sector[..RESTLESS.len()].copy_from_slice(&RESTLESS);
    sector[0x40..0x50].copy_from_slice(&REQUEST);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    // qemu-io does not support quotes.
    let folder = crate::owner::folder("sector-");
    let file = folder.path().join("sector");
    fs::write(&file, sector).expect("it is written");
    let command = format!("write -s {} 0 512", file.display());
    story.domain.io("vda", &command);
    story.learn("vda");
    story.domain.start();
    story.back_up();
    story
}

/// The number of write requests to the disk.
fn writes(story: &Story) -> i64 {
    let stats = story
        .domain
        .handle()
        .get_block_stats("vda")
        .expect("QEMU has statistics");
    stats.wr_req
}

/// Whether the guest is paused because of a write error.
fn is_stuck(story: &Story) -> bool {
    let state = story.domain.handle().get_state().expect("it is known");
    state == (sys::VIR_DOMAIN_PAUSED, sys::VIR_DOMAIN_PAUSED_IOERROR as i32)
}

/// Asserts that the guest continues to write. Then stops it, backs it up and checks its disk.
fn assert_goes_on(story: &mut Story) {
    assert_eq!(story.domain.seen().state, DomainState::Running);
    let before = writes(story);
    wait_for("the guest to write", || writes(story) > before + 100);
    story.domain.handle().suspend().expect("it pauses");
    story.learn("vda");
    let outcome = story.back_up();
    assert!(outcome.point.disks[0].parent.is_some());
    assert_eq!(codes(&outcome.findings), [""; 0]);
    assert!(story.domain.strangers().is_empty());
    story.prove_those_left();
}

#[test]
fn guest_stopped_by_a_dead_runs_full_scratch_goes_on() {
    let mut story = restless("stopped ");
    let scratch = Mount::of(MIB);
    story.options.places.scratch_dir = Some(scratch.path().to_owned());
    let (places, _) = killed_run(&story, Some(&story.made(0)), Until::Begun);
    story.domain.handle().resume().expect("it runs");
    wait_for("the scratch space to be full", || is_stuck(&story));
    story.options.places.scratch_dir = None;

    let outcome = story.try_back_up().expect("the next run ends it");
    assert!(codes(&outcome.findings).contains(&"healed-partial"));
    assert!(outcome.point.disks[0].parent.is_some());
    assert_gone(&places);
    assert_goes_on(&mut story);
}

#[test]
fn scratch_full_after_the_copy_is_reported_and_guest_goes_on() {
    let mut story = restless("full at last ");
    let scratch = Mount::of(MIB);
    let (host, domain) = (&Lab::get().host, story.domain.seen());
    let wishes = PlaceWishes {
        scratch_dir: Some(scratch.path().to_owned()),
        ..PlaceWishes::default()
    };
    let places = host.places(&domain, &["vda".to_owned()], &wishes, &run_word());
    let request = request(&places.expect("there are places"), "theirs", &[("vda", None)]);
    let job = host.begin_backup(&domain, &request).expect("it begins");
    story.domain.handle().resume().expect("it runs");
    wait_for("the scratch space to be full", || is_stuck(&story));
    let findings = job.finish().expect("it ends");
    assert_eq!(codes(&findings), ["guest-stood-still"]);
    assert_goes_on(&mut story);
}

/// The guest continues, whether the run notices or finishes earlier.
#[test]
fn full_scratch_fails_at_most_this_run_and_guest_goes_on() {
    let mut story = restless("scratch ");
    let scratch = Mount::of(MIB);
    story.domain.handle().resume().expect("it runs");
    for _ in 0..3 {
        story.options.places.scratch_dir = Some(scratch.path().to_owned());
        let before = writes(&story);
        wait_for("the guest to write", || writes(&story) > before + 100);
        match story.try_back_up() {
            Ok(outcome) => {
                assert!(outcome.point.disks[0].parent.is_some());
                let told = codes(&outcome.findings);
                assert!(told.is_empty() || told == ["guest-stood-still"], "{told:?}");
            }
            Err(error) => {
                assert!(matches!(error.cause, Cause::GuestPaused(_)), "{error}");
                let hint = error.hint().expect("a hint");
                assert!(hint.contains("--scratch-dir"), "{hint}");
            }
        }
        assert_eq!(fs::read_dir(scratch.path()).expect("it is readable").count(), 0);
        story.options.places.scratch_dir = None;
        story
            .try_back_up()
            .map(drop)
            .expect("with room the backup succeeds");
    }
    assert_goes_on(&mut story);
}
