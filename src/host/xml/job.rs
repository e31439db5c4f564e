//! Writes `<domainbackup>`, and reads the socket of a job from it.

use std::io;
use std::path::{Path, PathBuf};

use quick_xml::Writer;

use super::{child, parse, path_text, written};
use crate::host::Result;

const WHAT: &str = "backup XML";

/// One disk in a backup document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BackupDisk<'a> {
    /// A disk that is read.
    Read {
        /// The disk's target.
        target: &'a str,
        /// The checkpoint since which changes are read; `None` for the whole disk.
        since: Option<&'a str>,
        /// The scratch file, in which QEMU keeps what the guest overwrites during the job.
        scratch: &'a Path,
    },
    /// A disk that is left out. It has to be listed, because libvirt includes disks that are not
    /// listed.
    LeftOut {
        /// The disk's target.
        target: &'a str,
    },
}

/// Writes the document that starts a pull-mode job on a unix socket.
///
/// Each disk names the checkpoint since which its changes are read, because that may differ from
/// disk to disk. A disk that is read in full names none.
pub(crate) fn write_backup(socket: &Path, disks: &[BackupDisk<'_>]) -> Result<String> {
    let socket = path_text(socket, "socket")?;
    let mut scratches = Vec::with_capacity(disks.len());
    for disk in disks {
        scratches.push(match disk {
            BackupDisk::Read { scratch, .. } => path_text(scratch, "scratch file")?,
            BackupDisk::LeftOut { .. } => "",
        });
    }
    let mut writer = Writer::new(Vec::new());
    let result = writer
        .create_element("domainbackup")
        .with_attribute(("mode", "pull"))
        .write_inner_content(|backup| {
            let server = backup.create_element("server");
            server
                .with_attributes([("transport", "unix"), ("socket", socket)])
                .write_empty()?;
            backup.create_element("disks").write_inner_content(|list| {
                disks
                    .iter()
                    .zip(&scratches)
                    .try_for_each(|(disk, scratch)| write_disk(list, disk, scratch))
            })?;
            Ok(())
        });
    let result = result.map(drop);
    written(result, writer.into_inner(), WHAT)
}

fn write_disk(list: &mut Writer<Vec<u8>>, disk: &BackupDisk<'_>, scratch: &str) -> io::Result<()> {
    match *disk {
        BackupDisk::LeftOut { target } => {
            let element = list.create_element("disk");
            element
                .with_attributes([("name", target), ("backup", "no")])
                .write_empty()?;
        }
        BackupDisk::Read { target, since, .. } => {
            let mut element = list.create_element("disk").with_attributes([
                ("name", target),
                ("backup", "yes"),
                ("type", "file"),
            ]);
            element = match since {
                Some(checkpoint) => {
                    element.with_attributes([("backupmode", "incremental"), ("incremental", checkpoint)])
                }
                None => element.with_attribute(("backupmode", "full")),
            };
            element.write_inner_content(|disk| {
                disk.create_element("scratch")
                    .with_attribute(("file", scratch))
                    .write_empty()?;
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Reads a job's unix socket from the output of `virDomainBackupGetXMLDesc`.
///
/// `None` for push mode and for TCP.
pub(crate) fn backup_socket(xml: &str) -> Result<Option<PathBuf>> {
    let document = parse(xml, WHAT, "domainbackup")?;
    let server = child(document.root_element(), "server");
    let socket = server.and_then(|server| server.attribute("socket"));
    Ok(socket.map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn every_disk_is_listed_and_names_its_own_parent() {
        let disks = [
            BackupDisk::Read {
                target: "vda",
                since: Some("virtnbdbackup.3"),
                scratch: Path::new("/images/.vmsnap-vda-r.scratch"),
            },
            BackupDisk::Read {
                target: "vdb",
                since: None,
                scratch: Path::new("/images/<it's> & \"b\".scratch"),
            },
            BackupDisk::LeftOut { target: "sda" },
        ];
        let xml = write_backup(Path::new("/run/it's.sock"), &disks).expect("the paths are plain");
        assert_eq!(
            xml,
            "<domainbackup mode=\"pull\"><server transport=\"unix\" socket=\"/run/it&apos;s.sock\"/><disks>\
             <disk name=\"vda\" backup=\"yes\" type=\"file\" backupmode=\"incremental\" incremental=\"virtnbdbackup.3\">\
             <scratch file=\"/images/.vmsnap-vda-r.scratch\"/></disk>\
             <disk name=\"vdb\" backup=\"yes\" type=\"file\" backupmode=\"full\">\
             <scratch file=\"/images/&lt;it&apos;s&gt; &amp; &quot;b&quot;.scratch\"/></disk>\
             <disk name=\"sda\" backup=\"no\"/></disks></domainbackup>"
        );
        assert_eq!(
            backup_socket(&xml).expect("it is ours"),
            Some("/run/it's.sock".into())
        );
    }

    #[test]
    fn a_path_that_xml_cannot_hold_is_refused() {
        for socket in [OsStr::from_bytes(b"/run/\xff"), OsStr::new("/run/a\nb")] {
            assert!(write_backup(Path::new(socket), &[]).is_err(), "{socket:?}");
        }
    }

    #[test]
    fn a_job_without_a_unix_socket_has_none() {
        assert_eq!(
            backup_socket("<domainbackup mode='push'/>").expect("well-formed"),
            None
        );
        let tcp = "<domainbackup mode='pull'><server transport='tcp' name='localhost' port='10809'/></domainbackup>";
        assert_eq!(backup_socket(tcp).expect("well-formed"), None);
        assert!(backup_socket("<domain/>").is_err());
    }
}
