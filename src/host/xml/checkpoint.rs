//! Reads and writes `<domaincheckpoint>`.

use quick_xml::Writer;
use quick_xml::events::BytesText;
use roxmltree::Node;

use super::{bad, child, children, is_valid_target, parse, text, written};
use crate::host::Result;

const WHAT: &str = "checkpoint XML";

/// The contents of a checkpoint's XML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointDescription {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// A text from the program that created it.
    pub description: Option<String>,
    /// The previous checkpoint. No bitmap depends on the parent's bitmap.
    pub parent: Option<String>,
    /// The disks that it covers with a bitmap.
    pub disks: Vec<CoveredDisk>,
}

/// One disk that a checkpoint covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CoveredDisk {
    /// The disk's target.
    pub target: String,
    /// The bitmap's name.
    pub bitmap: String,
    /// The number of bytes changed since the checkpoint, if the XML was requested with sizes.
    /// `None` for a missing or inconsistent bitmap.
    pub dirty_bytes: Option<u64>,
}

/// Reads a checkpoint's XML.
pub(crate) fn read_checkpoint(xml: &str) -> Result<CheckpointDescription> {
    let document = parse(xml, WHAT, "domaincheckpoint")?;
    let checkpoint = document.root_element();
    let name = child(checkpoint, "name")
        .map(text)
        .filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| bad(WHAT, "it has no name"))?;
    let created = child(checkpoint, "creationTime").map(text);
    let created = created.and_then(|seconds| seconds.trim().parse().ok());
    let created = created.ok_or_else(|| bad(WHAT, format!("{name} has no creation time")))?;
    let parent = child(checkpoint, "parent")
        .and_then(|parent| child(parent, "name"))
        .map(text);
    let description = child(checkpoint, "description").map(text);
    let mut disks = Vec::new();
    for list in children(checkpoint, "disks") {
        for disk in children(list, "disk") {
            disks.extend(covered_disk(disk, &name)?);
        }
    }
    Ok(CheckpointDescription {
        name,
        created,
        description,
        parent,
        disks,
    })
}

fn covered_disk(disk: Node, checkpoint: &str) -> Result<Option<CoveredDisk>> {
    if disk.attribute("checkpoint") != Some("bitmap") {
        return Ok(None);
    }
    let target = disk.attribute("name").unwrap_or_default();
    if !is_valid_target(target) {
        return Err(bad(
            WHAT,
            format!("{checkpoint} has the invalid disk target {target:?}"),
        ));
    }
    let dirty_bytes = match disk.attribute("size") {
        None => None,
        Some(size) => {
            let size = size.parse().map_err(|_| {
                bad(
                    WHAT,
                    format!("{checkpoint} has the invalid size {size:?} for disk {target}"),
                )
            })?;
            Some(size)
        }
    };
    Ok(Some(CoveredDisk {
        target: target.to_owned(),
        bitmap: disk.attribute("bitmap").unwrap_or(checkpoint).to_owned(),
        dirty_bytes,
    }))
}

/// Writes the XML of a checkpoint to be created with a job.
///
/// `disks` lists **all** disks of the domain and whether the checkpoint covers them, because
/// libvirt covers disks that are not listed.
pub(crate) fn write_new_checkpoint(name: &str, description: &str, disks: &[(&str, bool)]) -> Result<String> {
    write(name, Some(description), None, None, disks)
}

/// A checkpoint to be registered with libvirt (`VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE`).
///
/// libvirt creates no bitmaps for it: they should already exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownCheckpoint<'a> {
    /// Its name, which is also the name of its bitmaps.
    pub name: &'a str,
    /// When it was created, in seconds since 1970; libvirt requires it.
    pub created: i64,
    /// A text for its description.
    pub description: Option<&'a str>,
    /// The previous checkpoint. libvirt refuses an unknown parent.
    pub parent: Option<&'a str>,
    /// All disks of the domain, with whether it covers them.
    pub disks: &'a [(&'a str, bool)],
}

/// Writes the XML that registers a checkpoint.
pub(crate) fn write_known_checkpoint(checkpoint: &KnownCheckpoint<'_>) -> Result<String> {
    write(
        checkpoint.name,
        checkpoint.description,
        Some(checkpoint.created),
        checkpoint.parent,
        checkpoint.disks,
    )
}

fn write(
    name: &str,
    description: Option<&str>,
    created: Option<i64>,
    parent: Option<&str>,
    disks: &[(&str, bool)],
) -> Result<String> {
    let mut writer = Writer::new(Vec::new());
    let result = writer
        .create_element("domaincheckpoint")
        .write_inner_content(|checkpoint| {
            checkpoint
                .create_element("name")
                .write_text_content(BytesText::new(name))?;
            if let Some(description) = description {
                checkpoint
                    .create_element("description")
                    .write_text_content(BytesText::new(description))?;
            }
            if let Some(parent) = parent {
                checkpoint
                    .create_element("parent")
                    .write_inner_content(|element| {
                        element
                            .create_element("name")
                            .write_text_content(BytesText::new(parent))?;
                        Ok(())
                    })?;
            }
            if let Some(created) = created {
                let seconds = created.to_string();
                checkpoint
                    .create_element("creationTime")
                    .write_text_content(BytesText::new(&seconds))?;
            }
            checkpoint.create_element("disks").write_inner_content(|list| {
                for &(target, covered) in disks {
                    let disk = list.create_element("disk").with_attribute(("name", target));
                    let disk = if covered {
                        disk.with_attributes([("checkpoint", "bitmap"), ("bitmap", name)])
                    } else {
                        disk.with_attribute(("checkpoint", "no"))
                    };
                    disk.write_empty()?;
                }
                Ok(())
            })?;
            Ok(())
        });
    let result = result.map(drop);
    written(result, writer.into_inner(), WHAT)
}

/// Sorts checkpoints by their creation: parents before children, and by time otherwise.
///
/// A clock that was set back does not change the order of a checkpoint and its ancestors.
pub(crate) fn oldest_first(mut checkpoints: Vec<CheckpointDescription>) -> Vec<CheckpointDescription> {
    checkpoints.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let mut ordered: Vec<CheckpointDescription> = Vec::with_capacity(checkpoints.len());
    while !checkpoints.is_empty() {
        let waits_for = |parent: &String| checkpoints.iter().any(|other| other.name == *parent);
        let ready = checkpoints
            .iter()
            .position(|one| !one.parent.as_ref().is_some_and(waits_for));
        // libvirt never returns a cycle of parents; if there is one, the oldest by time comes
        // first.
        ordered.push(checkpoints.remove(ready.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_checkpoint_lists_every_disk() {
        let xml = write_new_checkpoint("virtnbdbackup.4", "run <1>", &[("vda", true), ("sda", false)]);
        assert_eq!(
            xml.expect("plain"),
            "<domaincheckpoint><name>virtnbdbackup.4</name><description>run &lt;1&gt;</description><disks>\
             <disk name=\"vda\" checkpoint=\"bitmap\" bitmap=\"virtnbdbackup.4\"/>\
             <disk name=\"sda\" checkpoint=\"no\"/></disks></domaincheckpoint>"
        );
    }

    #[test]
    fn checkpoint_xml_for_registration_round_trips() {
        let known = KnownCheckpoint {
            name: "virtnbdbackup.4",
            created: 1_700_000_000,
            description: Some("run <1>"),
            parent: Some("virtnbdbackup.3"),
            disks: &[("vda", true), ("vdb", false), ("vdc", true)],
        };
        let read = read_checkpoint(&write_known_checkpoint(&known).expect("plain")).expect("it is ours");
        assert_eq!(
            (read.name.as_str(), read.created),
            ("virtnbdbackup.4", 1_700_000_000)
        );
        assert_eq!(read.description.as_deref(), Some("run <1>"));
        assert_eq!(read.parent.as_deref(), Some("virtnbdbackup.3"));
        let covered: Vec<&str> = read.disks.iter().map(|disk| disk.target.as_str()).collect();
        assert_eq!(covered, ["vda", "vdc"]);
    }

    #[test]
    fn size_shows_a_sound_bitmap() {
        let xml = "<domaincheckpoint><name>c1</name><creationTime>1700000000</creationTime><disks>\
                   <disk name='vda' checkpoint='bitmap' bitmap='c1' size='1048576'/>\
                   <disk name='vdb' checkpoint='bitmap' bitmap='c1'/>\
                   <disk name='sda' checkpoint='no'/></disks></domaincheckpoint>";
        let read = read_checkpoint(xml).expect("well-formed");
        let sizes: Vec<(&str, Option<u64>)> = read
            .disks
            .iter()
            .map(|disk| (disk.target.as_str(), disk.dirty_bytes))
            .collect();
        assert_eq!(sizes, [("vda", Some(1_048_576)), ("vdb", None)]);
    }

    #[test]
    fn hostile_checkpoints_are_refused() {
        for xml in [
            "<domaincheckpoint/>",
            "<domaincheckpoint><name>a</name></domaincheckpoint>",
            "<domaincheckpoint><name>a</name><creationTime>soon</creationTime></domaincheckpoint>",
            "<domaincheckpoint><name>a</name><creationTime>1</creationTime><disks>\
             <disk name='../x' checkpoint='bitmap'/></disks></domaincheckpoint>",
            "<domaincheckpoint><name>a</name><creationTime>1</creationTime><disks>\
             <disk name='vda' checkpoint='bitmap' size='-1'/></disks></domaincheckpoint>",
        ] {
            assert!(read_checkpoint(xml).is_err(), "{xml}");
        }
    }

    fn description(name: &str, created: i64, parent: Option<&str>) -> CheckpointDescription {
        CheckpointDescription {
            name: name.to_owned(),
            created,
            description: None,
            parent: parent.map(str::to_owned),
            disks: Vec::new(),
        }
    }

    fn names(checkpoints: Vec<CheckpointDescription>) -> Vec<String> {
        checkpoints
            .into_iter()
            .map(|checkpoint| checkpoint.name)
            .collect()
    }

    #[test]
    fn parents_precede_children_despite_a_clock_set_back() {
        let ordered = oldest_first(vec![
            description("c2", 50, Some("c1")),
            description("c1", 200, Some("c0")),
            description("c0", 100, None),
            description("other", 150, None),
        ]);
        assert_eq!(names(ordered), ["c0", "other", "c1", "c2"]);
    }

    #[test]
    fn a_lost_parent_and_a_circle_hold_nothing_up() {
        let ordered = oldest_first(vec![
            description("b", 2, Some("a")),
            description("a", 1, Some("b")),
            description("orphan", 3, Some("gone")),
        ]);
        assert_eq!(names(ordered).len(), 3);
    }
}
