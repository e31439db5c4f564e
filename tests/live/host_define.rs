//! Defining a restored domain under another name.

use std::collections::BTreeMap;

use virt::domain::Domain as Handle;
use vmsnap::host::xml::{Edits, ImageFormat, NewSource, redefine};
use vmsnap::host::{Host, HostError};
use vmsnap::model::domain::{DiskFormat, Source};

use crate::embed::{Kind, Lab, TestDomain, run_ok};

struct Undefine(Handle);

impl Drop for Undefine {
    fn drop(&mut self) {
        // The domain may not have been defined.
        let _ = self.0.undefine();
    }
}

#[test]
fn a_domain_comes_back_with_a_new_name_uuid_address_and_disk() {
    let host = &Lab::get().host;
    let original = TestDomain::define("original & co ", &[Kind::Qcow2]);
    let seen = original.seen();
    assert!(
        matches!(host.define(&seen.inactive_xml), Err(HostError::Refused(_))),
        "the name is taken"
    );

    let image = original.dir.path().join("restored \"it\".img");
    run_ok("qemu-img", [&"create", &"-q", &"-f", &"raw", &image, &"32M"]);
    let name = format!("-restored <{}>", original.name);
    let mut edits = Edits {
        name: Some(name.clone()),
        disks: BTreeMap::from([("vda".to_owned(), NewSource::file(&image, ImageFormat::Raw))]),
        drop_macs: true,
        ..Edits::default()
    };
    let same_uuid = redefine(&seen.inactive_xml, &edits).expect("it is edited");
    assert!(
        matches!(host.define(&same_uuid), Err(HostError::Refused(_))),
        "the UUID is taken"
    );

    edits.uuid = Some(uuid::Uuid::new_v4().to_string());
    host.define(&redefine(&seen.inactive_xml, &edits).expect("it is edited"))
        .expect("it is defined");
    let handle = Handle::lookup_by_name(&Lab::get().connection, &name).expect("it is there");
    let _undefine = Undefine(handle);
    let restored = host.domain(&name).expect("it is there");
    assert_eq!(Some(restored.uuid.clone()), edits.uuid);
    assert_eq!(restored.disks[0].source, Source::File(image));
    assert_eq!(restored.disks[0].format, DiskFormat::Raw);
    assert!(restored.inactive_xml.contains("<mac address='52:54:00:"));
    assert!(!restored.inactive_xml.contains("52:54:00:aa:bb:cc"));
    assert_eq!(original.seen().uuid, seen.uuid);
}

#[test]
fn names_that_harm_libvirt_are_refused_before_it_sees_them() {
    for name in [".", "..", "a/b", ""] {
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
        );
        assert!(Lab::get().host.define(&xml).is_err(), "{name:?}");
    }
}

#[test]
fn another_host_on_the_same_hypervisor_sees_the_same_domains() {
    let domain = TestDomain::define("second ", &[]);
    let second = vmsnap::host::libvirt::LibvirtHost::connect(Some(&Lab::get().uri)).expect("it opens");
    assert_eq!(second.domain(&domain.name).expect("it is there"), domain.seen());
    let refused = vmsnap::host::libvirt::LibvirtHost::connect(Some("nothing:///there")).map(|_| ());
    assert!(matches!(refused, Err(HostError::Connect { .. })), "{refused:?}");
}
