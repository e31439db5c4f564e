//! The module `host` on running and paused domains.

use std::path::Path;
use std::time::Duration;

use vmsnap::host::{
    BackupJob, BackupRequest, CheckpointRequest, DiskRequest, Host, HostError, JobHealth, PlaceWishes, Places,
};
use vmsnap::model::checkpoint::Bitmap;
use vmsnap::model::domain::{Agent, Backing, DiskFormat, DomainState, Source};
use vmsnap::model::restore_point::Consistency;
use vmsnap::model::stop::{Stop, StopReason};

use crate::embed::{DISK, Kind, Lab, TestDomain, run, run_ok};

/// The creation time of checkpoints of shut-off domains.
pub const NOW: i64 = 1_800_000_000;

/// A word that makes names unique.
pub fn run_word() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A request for a checkpoint on all these disks: `(target, since)`.
pub fn request(places: &Places, checkpoint: &str, disks: &[(&str, Option<&str>)]) -> BackupRequest {
    let disk = |&(target, since): &(&str, Option<&str>)| DiskRequest {
        target: target.to_owned(),
        since: since.map(str::to_owned),
        checkpointed: true,
    };
    BackupRequest {
        checkpoint: Some(CheckpointRequest {
            name: checkpoint.to_owned(),
            mark: "a test".to_owned(),
        }),
        disks: disks.iter().map(disk).collect(),
        places: places.clone(),
        freeze: Some(Duration::from_secs(10)),
        now: NOW,
        stop: Stop::default(),
    }
}

/// Chooses places as a backup does.
pub fn places(domain: &TestDomain, disks: &[(&str, Option<&str>)]) -> Places {
    let targets: Vec<String> = disks.iter().map(|(target, _)| (*target).to_owned()).collect();
    let chosen = Lab::get()
        .host
        .places(&domain.seen(), &targets, &PlaceWishes::default(), &run_word());
    chosen.expect("there are places")
}

/// Begins a job.
pub fn begin(
    domain: &TestDomain,
    checkpoint: &str,
    disks: &[(&str, Option<&str>)],
) -> Result<(Box<dyn BackupJob>, Places), HostError> {
    let places = places(domain, disks);
    let begun = Lab::get()
        .host
        .begin_backup(&domain.seen(), &request(&places, checkpoint, disks));
    if begun.is_err() {
        Lab::get().host.clear_places(&places).expect("they are cleared");
    }
    Ok((begun?, places))
}

/// Makes a complete backup job without reading the data.
pub fn back_up(domain: &TestDomain, checkpoint: &str, disks: &[(&str, Option<&str>)]) {
    let (job, _) = begin(domain, checkpoint, disks).expect("it begins");
    job.finish().expect("it ends");
}

/// The dirty ranges that an export reports, in KiB: `(offset, length)`.
pub fn dirty(socket: &Path, export: &str, bitmap: &str) -> Vec<(u64, u64)> {
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export={export},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        socket.display()
    );
    let json = run_ok("qemu-img", [&"map", &"--output=json", &"--image-opts", &options]);
    let extents: Vec<serde_json::Value> = serde_json::from_str(&json).expect("it is JSON");
    let kib = |extent: &serde_json::Value, key: &str| extent[key].as_u64().expect("a number") / 1024;
    // qemu-img shows a dirty range as a hole.
    let is_dirty = |extent: &&serde_json::Value| extent["data"] == false;
    extents
        .iter()
        .filter(is_dirty)
        .map(|extent| (kib(extent, "start"), kib(extent, "length")))
        .collect()
}

/// Whether a range of an export reads as this pattern everywhere.
pub fn reads(socket: &Path, export: &str, pattern: &str, offset: &str, length: &str) -> bool {
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export={export}",
        socket.display()
    );
    let command = format!("read -P {pattern} {offset} {length}");
    let arguments = ["-r", "--image-opts", "-c", &command, &options];
    let output = run("qemu-io", &arguments.map(AsRef::as_ref));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() || text.contains("Pattern"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    !text.contains("Pattern verification failed")
}

/// Asserts that nothing of a job is left: no job, no socket, no scratch file, no folder of ours.
pub fn assert_nothing_left(domain: &TestDomain, places: &Places) {
    assert_eq!(
        Lab::get().host.active_job(&domain.seen()).expect("it is known"),
        None
    );
    for path in places
        .sockets
        .iter()
        .chain(places.scratch.iter().map(|(_, file)| file))
        .chain(&places.own_dirs)
    {
        assert!(!path.exists(), "{}", path.display());
    }
    assert!(domain.strangers().is_empty(), "{:?}", domain.strangers());
}

/// The names of the checkpoints, oldest first.
pub fn names(domain: &TestDomain) -> Vec<String> {
    let checkpoints = Lab::get()
        .host
        .checkpoints(&domain.seen())
        .expect("they are listed");
    checkpoints
        .into_iter()
        .map(|checkpoint| checkpoint.name)
        .collect()
}

/// The state of a checkpoint's bitmap on each disk.
pub fn bitmaps(domain: &TestDomain, checkpoint: &str) -> Vec<(String, Bitmap)> {
    let checkpoints = Lab::get()
        .host
        .checkpoints(&domain.seen())
        .expect("they are listed");
    let checkpoint = checkpoints
        .into_iter()
        .find(|one| one.name == checkpoint)
        .expect("it is listed");
    checkpoint
        .disks
        .into_iter()
        .map(|disk| (disk.target, disk.bitmap))
        .collect()
}

#[test]
fn hypervisor_reports_its_capabilities() {
    let capabilities = Lab::get().host.capabilities().expect("it answers");
    assert_eq!(capabilities.incremental, Ok(()));
    assert!(capabilities.versions.starts_with("libvirt ") && capabilities.versions.contains("QEMU "));
}

#[test]
fn a_domain_is_described_as_it_is() {
    let domain = TestDomain::define(
        "-\u{e4}\u{1f600} it's \"<&>\" ",
        &[Kind::Qcow2, Kind::Raw, Kind::Qcow2Version2],
    );
    let host = &Lab::get().host;
    assert!(
        host.domain_names()
            .expect("they are listed")
            .contains(&domain.name)
    );
    let off = domain.seen();
    assert_eq!(
        (off.name.as_str(), off.state, off.id),
        (domain.name.as_str(), DomainState::ShutOff, None)
    );
    assert!(off.persistent && off.tpm.is_none() && off.nvram.is_none());
    assert_eq!(off.agent, Agent::None);
    let formats: Vec<&DiskFormat> = off.disks.iter().map(|disk| &disk.format).collect();
    assert_eq!(
        formats,
        [&DiskFormat::Qcow2, &DiskFormat::Raw, &DiskFormat::Qcow2V2]
    );
    assert_eq!(off.disks[0].source, Source::File(domain.image("vda")));
    assert!(off.inactive_xml.contains("52:54:00:aa:bb:cc"));
    assert_eq!(host.nvram(&off).expect("it has none"), None);

    domain.start();
    let on = domain.seen();
    assert_eq!(on.state, DomainState::Paused);
    assert!(on.id.is_some());
    // The definition leaves the chain to the headers. Of a running domain, libvirt reports where it
    // ends.
    let mut expected = off.disks.clone();
    expected.iter_mut().for_each(|disk| disk.backing = Backing::End);
    assert_eq!(on.disks, expected);
    let sizes = host.disk_sizes(&on, "vda").expect("it has a size");
    assert_eq!(sizes.virtual_size, DISK);
    assert!(sizes.actual_size < DISK);
}

#[test]
fn names_that_no_domain_has_are_errors() {
    let host = &Lab::get().host;
    assert!(matches!(
        host.domain("there is none"),
        Err(HostError::NoSuchDomain { .. })
    ));
    for name in ["", ".", "..", "a/b", "a\0b"] {
        assert!(
            matches!(host.domain(name), Err(HostError::Refused(_))),
            "{name:?}"
        );
    }
}

#[test]
fn full_and_incremental_jobs_show_frozen_moment_and_changes() {
    let domain = TestDomain::paused("inc ", &[Kind::Qcow2, Kind::Qcow2]);
    domain.io("vda", "write -P 0x41 0 1M");
    let disks = [("vda", None), ("vdb", None)];
    let (job, places) = begin(&domain, "virtnbdbackup.0", &disks).expect("it begins");
    assert_eq!(job.consistency(), Consistency::Crash);
    assert_eq!(job.findings(), []);
    assert_eq!(job.health().expect("it is known"), JobHealth::Good);
    let made = job.checkpoint().expect("it was made").clone();
    assert_eq!(made.id.name, "virtnbdbackup.0");
    assert!(made.id.created > 1_600_000_000 && made.xml.contains("<domaincheckpoint>"));
    let active = Lab::get()
        .host
        .active_job(&domain.seen())
        .expect("it is known")
        .expect("there is one");
    assert_eq!(
        (active.operation.as_str(), active.socket.as_ref()),
        ("backup", places.sockets.first())
    );

    domain.io("vda", "write -P 0x42 0 1M");
    assert!(
        reads(&places.sockets[0], "vda", "0x41", "0", "1M"),
        "the export keeps the old content"
    );
    job.finish().expect("it ends");
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), ["virtnbdbackup.0"]);

    domain.io("vda", "write -z 4M 1M");
    domain.io("vda", "discard 8M 1M");
    let since = Some("virtnbdbackup.0");
    let (job, places) =
        begin(&domain, "virtnbdbackup.1", &[("vda", since), ("vdb", since)]).expect("it begins");
    assert_eq!(
        dirty(&places.sockets[0], "vda", "backup-vda"),
        [(0, 1024), (4096, 1024), (8192, 1024)]
    );
    assert_eq!(dirty(&places.sockets[0], "vdb", "backup-vdb"), []);
    assert!(reads(&places.sockets[0], "vda", "0x42", "0", "1M"));
    job.finish().expect("it ends");
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), ["virtnbdbackup.0", "virtnbdbackup.1"]);
    let sound = |target: &str| (target.to_owned(), Bitmap::Sound);
    assert_eq!(bitmaps(&domain, "virtnbdbackup.1"), [sound("vda"), sound("vdb")]);
    assert_eq!(
        domain.seen().state,
        DomainState::Paused,
        "the domain stays paused"
    );
}

#[test]
fn plugged_in_disk_is_read_whole_beside_changes_of_others() {
    let domain = TestDomain::paused("hotplug ", &[Kind::Qcow2]);
    back_up(&domain, "c0", &[("vda", None)]);
    domain.attach("vdb");
    domain.io("vda", "write -P 0x41 1M 64k");
    domain.io("vdb", "write -P 0x42 0 64k");
    let (job, places) = begin(&domain, "c1", &[("vda", Some("c0")), ("vdb", None)]).expect("it begins");
    assert_eq!(dirty(&places.sockets[0], "vda", "backup-vda"), [(1024, 64)]);
    assert!(reads(&places.sockets[0], "vdb", "0x42", "0", "64k"));
    job.finish().expect("it ends");
    assert_eq!(bitmaps(&domain, "c1").len(), 2);

    // An unrequested disk is in neither the job nor the checkpoint.
    back_up(&domain, "c2", &[("vda", Some("c1"))]);
    assert_eq!(bitmaps(&domain, "c2"), [("vda".to_owned(), Bitmap::Sound)]);
}

#[test]
fn raw_and_version_2_disks_are_read_without_a_checkpoint() {
    let domain = TestDomain::paused("raw ", &[Kind::Raw, Kind::Qcow2Version2, Kind::Qcow2]);
    domain.io("vda", "write -P 0x41 0 64k");
    let disks = [("vda", None), ("vdb", None), ("vdc", None)];
    let places = places(&domain, &disks);
    let mut request = request(&places, "c0", &disks);
    request.disks[0].checkpointed = false;
    request.disks[1].checkpointed = false;
    let job = Lab::get()
        .host
        .begin_backup(&domain.seen(), &request)
        .expect("it begins");
    assert!(reads(&places.sockets[0], "vda", "0x41", "0", "64k"));
    assert!(reads(&places.sockets[0], "vdb", "0", "0", "64k"));
    job.finish().expect("it ends");
    assert_eq!(bitmaps(&domain, "c0"), [("vdc".to_owned(), Bitmap::Sound)]);
    assert_nothing_left(&domain, &places);
}

#[test]
fn aborted_job_leaves_and_reports_nothing() {
    let domain = TestDomain::paused("abort ", &[Kind::Qcow2]);
    back_up(&domain, "c0", &[("vda", None)]);
    domain.io("vda", "write -P 0x41 0 64k");
    let (job, places) = begin(&domain, "c1", &[("vda", Some("c0"))]).expect("it begins");
    assert_eq!(job.abort(), []);
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), ["c0"]);

    let (job, places) = begin(&domain, "c1", &[("vda", Some("c0"))]).expect("it begins again");
    assert_eq!(
        dirty(&places.sockets[0], "vda", "backup-vda"),
        [(0, 64)],
        "nothing was lost"
    );
    drop(job);
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), ["c0"], "dropping aborts");
}

#[test]
fn a_running_guest_without_an_agent_is_not_asked_to_freeze() {
    let domain = TestDomain::paused("agent ", &[Kind::Qcow2]);
    domain.handle().resume().expect("it runs");
    let (job, places) = begin(&domain, "c0", &[("vda", None)]).expect("it begins");
    assert_eq!(
        (job.consistency(), job.findings()),
        (Consistency::Crash, Vec::new())
    );
    assert_eq!(domain.seen().state, DomainState::Running);
    job.finish().expect("it ends");
    assert_nothing_left(&domain, &places);
    assert_eq!(domain.seen().state, DomainState::Running);
}

#[test]
fn job_ended_by_others_is_gone() {
    let domain = TestDomain::paused("gone ", &[Kind::Qcow2]);
    let (job, places) = begin(&domain, "c0", &[("vda", None)]).expect("it begins");
    Lab::get().host.abort_job(&domain.seen()).expect("it is ended");
    assert!(matches!(job.health().expect("it is known"), JobHealth::Gone(_)));
    assert_eq!(job.abort(), []);
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), [""; 0]);

    let (job, places) = begin(&domain, "c0", &[("vda", None)]).expect("it begins");
    domain.destroy();
    assert!(matches!(job.health().expect("it is known"), JobHealth::Gone(_)));
    assert_eq!(job.abort(), []);
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), [""; 0]);
    assert!(
        Lab::get()
            .host
            .bitmap_names(&domain.seen(), "vda")
            .expect("they are listed")
            .is_empty()
    );
}

#[test]
fn a_wish_to_stop_is_heard_before_anything_begins() {
    let domain = TestDomain::paused("stop ", &[Kind::Qcow2]);
    let places = places(&domain, &[("vda", None)]);
    let request = request(&places, "c0", &[("vda", None)]);
    request.stop.request(StopReason::Terminated);
    let begun = Lab::get().host.begin_backup(&domain.seen(), &request).map(|_| ());
    assert!(matches!(begun, Err(HostError::Stopped)), "{begun:?}");
    Lab::get().host.clear_places(&places).expect("they are cleared");
    assert_nothing_left(&domain, &places);
    assert_eq!(names(&domain), [""; 0]);
}

#[test]
fn nothing_at_a_place_is_ever_overwritten() {
    let domain = TestDomain::paused("precious ", &[Kind::Qcow2]);
    let host = &Lab::get().host;
    let precious = domain.dir.path().join("precious.img");
    std::fs::write(&precious, "data").expect("it is written");
    let wishes = PlaceWishes {
        socket: Some(precious.clone()),
        scratch_dir: None,
    };
    let targets = ["vda".to_owned()];
    assert!(
        host.places(&domain.seen(), &targets, &wishes, &run_word())
            .is_err()
    );

    let scratch_dir = Some(domain.dir.path().to_owned());
    let wishes = PlaceWishes {
        socket: Some(domain.dir.path().join("s")),
        scratch_dir,
    };
    let places = host
        .places(&domain.seen(), &targets, &wishes, &run_word())
        .expect("there are places");
    assert_eq!(places.sockets, [domain.dir.path().join("s")]);
    assert!(places.scratch[0].1.starts_with(domain.dir.path()));
    std::fs::write(&places.scratch[0].1, "data").expect("it is written");
    let begun = host
        .begin_backup(&domain.seen(), &request(&places, "c0", &[("vda", None)]))
        .map(|_| ());
    assert!(matches!(begun, Err(HostError::Refused(_))), "{begun:?}");
    assert_eq!(
        std::fs::read(&places.scratch[0].1).expect("it is still there"),
        b"data"
    );
    assert_eq!(std::fs::read(&precious).expect("it is still there"), b"data");
}
