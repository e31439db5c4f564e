//! Refuses disks that something besides the domain itself uses.

use std::io;
use std::path::Path;

use crate::host::usage::{self, Usage, User};
use crate::host::{DomainFiles, Host};
use crate::model::finding::Finding;
use crate::ops::{Cause, Error, Result, monitor};

/// Checks the image or device of each disk. A missing file is not an error here, because opening it
/// will fail later.
pub(super) fn check(domain: &str, targets: &[String], host: &dyn Host) -> Result<Vec<Finding>> {
    let named = host.domain_files().map_err(|error| Error::of(domain, error))?;
    let mut findings = Vec::new();
    for target in targets {
        let role = role(target);
        let own = named
            .files
            .iter()
            .find(|file| file.domain == domain && file.role == role);
        if let Some(file) = own {
            let found = check_path(domain, &role, &file.path, &named);
            let found = found.map_err(|cause| Error::of_disk(domain, target, cause))?;
            monitor::add_new(&mut findings, found);
        }
    }
    Ok(findings)
}

/// What a disk's image is for its domain, in the words of [`Host::domain_files`].
fn role(target: &str) -> String {
    format!("disk {target}")
}

fn check_path(
    domain: &str,
    role: &str,
    path: &Path,
    named: &DomainFiles,
) -> std::result::Result<Vec<Finding>, Cause> {
    let found = match usage::users_of(path, named) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(|source| Cause::Io {
            operation: "examine",
            path: path.to_owned(),
            source,
        })?,
    };
    let users: Vec<Usage> = found
        .users
        .into_iter()
        .filter(|usage| !is_itself(usage, domain, role))
        .collect();
    match users.is_empty() {
        true => Ok(found.findings),
        false => Err(Cause::InUse {
            path: path.to_owned(),
            users,
        }),
    }
}

/// Whether this is the domain's own use of the whole image as that disk.
fn is_itself(usage: &Usage, domain: &str, as_disk: &str) -> bool {
    match &usage.user {
        User::Domain {
            name,
            role,
            is_active: false,
        } => name == domain && role == as_disk && usage.part.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::DomainFile;

    fn named(domain: &str, role: &str, path: &Path, is_active: bool) -> DomainFile {
        DomainFile {
            domain: domain.to_owned(),
            is_active,
            role: role.to_owned(),
            path: path.to_owned(),
            is_qcow2: false,
        }
    }

    #[test]
    fn only_the_domain_itself_may_name_the_image() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("vda.img");
        std::fs::write(&path, "bytes").expect("written");
        let own = named("vm1", "disk vda", &path, false);
        let check = |more: &[DomainFile]| {
            let files = DomainFiles {
                files: [std::slice::from_ref(&own), more].concat(),
                findings: Vec::new(),
            };
            check_path("vm1", "disk vda", &path, &files)
        };
        assert_eq!(check(&[]).expect("free"), []);
        for other in [
            named("vm2", "disk vda", &path, false),
            named("vm2", "the backing file of disk vda", &path, false),
            named("vm1", "the backing file of disk vdb", &path, false),
            named("vm1", "disk vda", &path, true),
        ] {
            let refused = check(std::slice::from_ref(&other));
            assert!(matches!(refused, Err(Cause::InUse { .. })), "{other:?}");
        }
        let missing = check_path(
            "vm1",
            "disk vda",
            &folder.path().join("x"),
            &DomainFiles::default(),
        );
        assert_eq!(missing.expect("reported when it is opened"), []);
    }
}
