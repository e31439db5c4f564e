//! Restores that define the domain.

use std::fs;
use std::path::Path;

use vmsnap::model::domain::{DomainState, Source};
use vmsnap::model::restore_point::Level;
use vmsnap::ops::restore::{DefineOptions, Format, Outcome};

use crate::embed::{Kind, Lab, Shape, TestDomain, escape};
use crate::verbs::rng::Rng;
use crate::verbs::story::{Story, assert_same, levels, reason};

const DISKS: [(Kind, u64); 2] = [(Kind::Qcow2, 4 << 20), (Kind::Qcow2, (1 << 20) + 512)];
const HEAD: &str = "<metadata><note:it xmlns:note='urn:example:note' a=\"1 &lt; 2\">\n   it's <note:b/> &amp; more\
                    <!-- kept --></note:it></metadata>";
const ORIGINAL_MAC: &str = "52:54:00:aa:bb:cc";

/// Firmware that never runs, because the domain stays paused.
fn firmware(dir: &Path) -> String {
    let (code, variables) = (dir.join("code.fd"), dir.join("variables & more.fd"));
    fs::write(&code, vec![0xf4; 512 * 1024]).expect("it is written");
    let mut bytes = vec![0xff; 128 * 1024];
    bytes[1000..1010].copy_from_slice(b"BootOrder!");
    fs::write(&variables, bytes).expect("it is written");
    format!(
        "<loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram>",
        code.display(),
        escape(&variables.display().to_string())
    )
}

/// A story of a UEFI domain, and the folder of its firmware.
fn uefi_story(name: &str, rng: &mut Rng) -> (Story, tempfile::TempDir) {
    let dir = crate::owner::folder("firmware-");
    let mut story = Story::of(TestDomain::shaped(
        name,
        &Shape {
            disks: &DISKS,
            head: HEAD,
            os: &firmware(dir.path()),
            devices: "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/>\
                      <readonly/></disk>",
        },
    ));
    story.domain.start();
    story.scribble(rng, 15);
    story.back_up();
    story.scribble(rng, 10);
    story.back_up();
    (story, dir)
}

fn restored_to(story: &Story) -> tempfile::TempDir {
    let parent = story.folder.path();
    tempfile::Builder::new()
        .prefix("it's \"back\" & ")
        .tempdir_in(parent)
        .expect("a folder")
}

/// Restores and defines. Returns the defined domain, which is removed when dropped.
pub(super) fn bring_back(
    story: &Story,
    at: &str,
    format: Format,
    name: Option<&str>,
) -> (Outcome, TestDomain) {
    let to = restored_to(story);
    let define = DefineOptions {
        name: name.map(str::to_owned),
    };
    let outcome = story
        .restore(at, to.path(), format, Some(define))
        .expect("it is restored");
    let defined = outcome
        .plan
        .define
        .as_ref()
        .expect("the definition was requested")
        .name
        .clone();
    (outcome, TestDomain::adopted(&defined, to))
}

/// The tags of the lines in which the new XML differs from the old one.
fn changed_tags(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let tag = |line: &str| {
        let rest = line.trim_start().trim_start_matches('<');
        let end = rest.find([' ', '>', '/']).unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    let mut changed: Vec<String> = Vec::new();
    let mut at = 0;
    for line in old {
        // A line that is missing was removed. A line with the same tag was changed.
        match new.get(at) {
            Some(found) if *found == line => at += 1,
            Some(found) if tag(found) == tag(line) => {
                changed.push(tag(line));
                at += 1;
            }
            _ => changed.push(format!("-{}", tag(line))),
        }
    }
    assert_eq!(at, new.len(), "nothing was added");
    changed.dedup();
    changed
}

#[test]
fn a_domain_comes_back_beside_its_original_under_a_new_name() {
    let mut rng = Rng::new();
    let (story, firmware) = uefi_story("uefi ", &mut rng);
    let original = story.domain.seen();
    for (number, format) in [(0, Format::Raw), (1, Format::Qcow2)] {
        let point = story.list().points[number].point.clone();
        let name = format!("-clone {number} <&> of {}", story.domain.name);
        let (outcome, clone) = bring_back(&story, &point.id, format, Some(&name));
        let plan = outcome
            .plan
            .define
            .as_ref()
            .expect("the definition was requested");
        let seen = clone.seen();
        assert_eq!(seen.name, name);
        assert_eq!(seen.state, DomainState::ShutOff);
        assert_ne!(seen.uuid, original.uuid);
        assert_eq!(Some(&seen.uuid), plan.new_uuid.as_ref());
        assert!(
            !seen.inactive_xml.contains(ORIGINAL_MAC)
                && seen.inactive_xml.contains("<mac address='52:54:00:")
        );

        let kept = story.history();
        let dir = Path::new(&kept.get(&point.id).expect("it is kept").location);
        let saved = fs::read_to_string(dir.join("domain.xml")).expect("it is readable");
        let mut tags = changed_tags(&saved, &plan.xml);
        tags.sort();
        tags.dedup();
        let expected: &[&str] = match format {
            Format::Raw => &["-mac", "driver", "name", "nvram", "source", "uuid"],
            Format::Qcow2 => &["-mac", "name", "nvram", "source", "uuid"],
        };
        assert_eq!(tags, expected);
        let note = |xml: &str| {
            let (from, to) = (xml.find("<note:it"), xml.find("</note:it>"));
            xml[from.expect("it is there")..to.expect("it is there")].to_owned()
        };
        assert!(note(&saved).contains("<!-- kept -->"));
        assert_eq!(note(&plan.xml), note(&saved));
        assert_eq!(note(&seen.inactive_xml), note(&original.inactive_xml));

        let variables = seen.nvram.as_ref().and_then(|nvram| nvram.file());
        let variables = variables.expect("it has UEFI variables");
        assert!(variables.starts_with(clone.dir.path()));
        assert_eq!(
            fs::read(variables).expect("they are there"),
            fs::read(firmware.path().join("variables & more.fd")).expect("they are there")
        );
        clone.start();
        assert_eq!(clone.seen().state, DomainState::Paused);
        clone.destroy();
        for target in ["vda", "vdb"] {
            let path = clone.dir.path().join(format!("{target}.{}", format.word()));
            let disk = seen.disk(target).expect("it has the disk");
            assert_eq!(disk.source, Source::File(path.clone()));
            assert_same(&path, format.word(), story.reference(number, target), target);
        }
    }
    assert_eq!(story.domain.seen().inactive_xml, original.inactive_xml);
    story.prove();
}

#[test]
fn lost_domain_comes_back_unchanged_and_is_backed_up_again() {
    let mut rng = Rng::new();
    let (mut story, _firmware) = uefi_story("lost ", &mut rng);
    let original = story.domain.seen();
    story.domain.destroy();
    let flags = virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | virt_sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM;
    story
        .domain
        .handle()
        .undefine_flags(flags)
        .expect("it is undefined");

    let (_, back) = bring_back(&story, "latest", Format::Qcow2, None);
    let seen = back.seen();
    assert_eq!((&seen.name, &seen.uuid), (&original.name, &original.uuid));
    assert!(seen.inactive_xml.contains(ORIGINAL_MAC));
    for target in ["vda", "vdb"] {
        let path = back.dir.path().join(format!("{target}.qcow2"));
        assert_same(&path, "qcow2", story.reference(1, target), target);
    }
    story.domain = back;
    story.domain.start();
    story.scribble(&mut rng, 10);
    let full = story.back_up();
    assert_eq!(levels(&full), [("vda", Level::Full), ("vdb", Level::Full)]);
    let reason = reason(&full, "vda");
    assert!(reason.contains("vda was at"), "{reason}");
    story.scribble(&mut rng, 10);
    let next = story.back_up();
    assert_eq!(
        levels(&next),
        [("vda", Level::Incremental), ("vdb", Level::Incremental)]
    );
    story.prove();
}

#[test]
fn domain_with_forgotten_checkpoints_continues_by_bitmaps() {
    let mut rng = Rng::new();
    for active in [true, false] {
        let mut story = Story::of(TestDomain::shaped(
            "forgotten ",
            &Shape {
                disks: &DISKS,
                ..Shape::default()
            },
        ));
        story.scribble(&mut rng, 10);
        story.back_up();
        story.scribble(&mut rng, 5);
        story.back_up();
        let xml = story.domain.seen().inactive_xml;
        let flags = virt_sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
        story
            .domain
            .handle()
            .undefine_flags(flags)
            .expect("it is undefined");
        virt::domain::Domain::define_xml(&Lab::get().connection, &xml).expect("it is defined");
        if active {
            story.domain.start();
        }
        story.scribble(&mut rng, 5);
        for _ in 0..2 {
            let next = story.back_up();
            assert_eq!(
                levels(&next),
                [("vda", Level::Incremental), ("vdb", Level::Incremental)]
            );
            story.scribble(&mut rng, 5);
        }
        story.prove();
    }
}

#[test]
fn domain_comes_back_after_a_disk_was_plugged_in_for_one_run() {
    let mut rng = Rng::new();
    let mut story = Story::of(TestDomain::shaped(
        "guest disk ",
        &Shape {
            disks: &DISKS[..1],
            ..Shape::default()
        },
    ));
    story.domain.start();
    story.domain.attach("vdb");
    story.learn("vdb");
    story.scribble(&mut rng, 10);
    let id = story.back_up().point.id;
    let (_, clone) = bring_back(&story, &id, Format::Qcow2, Some("guest disk's clone"));
    let path = clone.dir.path().join("vda.qcow2");
    assert_eq!(
        clone.seen().disk("vda").expect("it has the disk").source,
        Source::File(path.clone())
    );
    assert_same(&path, "qcow2", story.reference(0, "vda"), "vda");
    let path = clone.dir.path().join("vdb.qcow2");
    assert_same(&path, "qcow2", story.reference(0, "vdb"), "vdb");
    story.prove();
}
