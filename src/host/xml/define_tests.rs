//! Tests of the edits on a domain with many kinds of elements.

use super::*;
use crate::host::xml::read_domain;
use crate::model::domain::{DiskFormat, Source};
use crate::model::firmware::Nvram;
use proptest::prelude::*;

const RICH: &str = r#"<?xml version='1.0' encoding='UTF-8'?>
<!-- before --><domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' >
  <name>a&amp;b <![CDATA[<x>]]></name>
  <uuid>5c3f3e8a-0f0d-4d8e-9a0e-0f4c1f6f2b11</uuid>
  <metadata>
    <app:note xmlns:app="urn:x>y"><![CDATA[ <disk><target dev='vda'/></disk> ]]></app:note>
    <name>not the domain's</name>
  </metadata>
  <sysinfo type='smbios'><system>
    <entry name='uuid'>5c3f3e8a-0f0d-4d8e-9a0e-0f4c1f6f2b11</entry><entry name='serial'>7</entry>
  </system></sysinfo>
  <os>
    <type arch='x86_64'>hvm</type>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/old_VARS.fd</nvram>
  </os>
  <devices>
    <disk   type="file"  device='disk' >
      <driver type="qcow2" name='qemu' cache='none' discard_no_unref='on'>
        <metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>
      </driver>
      <source file="/images/o'ld.qcow2" startupPolicy='optional' index='1'>
        <seclabel model='dac' relabel='no'/>
        <encryption format='luks'/>
      </source>
      <backingStore type='file'>
        <format type='qcow2'/><source file='/images/base.qcow2'/><backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <future:thing xmlns:future='urn:f' a = "1"/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='pool/i'><host name='h'/></source>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <source file='/untouched.raw'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:01:02:03'/>
      <source network='default'/>
    </interface>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-name "q&amp;a"'/>
  </qemu:commandline>
</domain>
<!-- after -->
"#;

fn with_disk(target: &str, source: NewSource) -> Edits {
    Edits {
        disks: BTreeMap::from([(target.to_owned(), source)]),
        ..Edits::default()
    }
}

#[test]
fn no_edits_change_no_byte() {
    assert_eq!(redefine(RICH, &Edits::default()).expect("well-formed"), RICH);
}

#[test]
fn a_new_name_and_uuid_change_only_themselves() {
    let edits = Edits {
        name: Some("it's <b> & \"c\"".into()),
        uuid: Some("11111111-2222-3333-4444-555555555555".into()),
        drop_macs: true,
        ..Edits::default()
    };
    let expected = RICH
        .replace(
            "a&amp;b <![CDATA[<x>]]>",
            "it&apos;s &lt;b&gt; &amp; &quot;c&quot;",
        )
        .replace(
            "5c3f3e8a-0f0d-4d8e-9a0e-0f4c1f6f2b11",
            "11111111-2222-3333-4444-555555555555",
        )
        .replace("\n      <mac address='52:54:00:01:02:03'/>", "");
    let edited = redefine(RICH, &edits).expect("well-formed");
    assert_eq!(edited, expected);
    assert_eq!(
        read_domain(&edited).expect("well-formed").name,
        "it's <b> & \"c\""
    );
}

#[test]
fn a_disk_moves_to_another_file_and_keeps_its_settings() {
    let moved = NewSource::file(Path::new("/new/it's \"v\" & <w>.qcow2"), ImageFormat::Qcow2);
    let edited = redefine(RICH, &with_disk("vda", moved)).expect("well-formed");
    let start = RICH.find("      <source file=\"/images").expect("it is there");
    let end = RICH.find("      <target dev='vda' bus").expect("it is there");
    let expected = format!(
        "{}      <source file=\"/new/it&apos;s &quot;v&quot; &amp; &lt;w&gt;.qcow2\" startupPolicy='optional'>\n        \
         <seclabel model='dac' relabel='no'/>\n      </source>\n{}",
        &RICH[..start],
        &RICH[end..]
    );
    assert_eq!(edited, expected);
}

#[test]
fn a_disk_moves_to_a_raw_block_device() {
    let device = NewSource {
        path: "/dev/vg/new".into(),
        format: ImageFormat::Raw,
        is_block: true,
    };
    let edited = redefine(RICH, &with_disk("vda", device)).expect("well-formed");
    let domain = read_domain(&edited).expect("well-formed");
    assert_eq!(domain.disks[0].source, Source::Block("/dev/vg/new".into()));
    assert_eq!(domain.disks[0].format, DiskFormat::Raw);
    for gone in [
        "metadata_cache",
        "discard_no_unref",
        "base.qcow2",
        "o'ld",
        "encryption",
    ] {
        assert!(!edited.contains(gone), "{gone}");
    }
    assert!(edited.contains("startupPolicy='optional'") && edited.contains("cache='none'"));
    assert!(edited.contains("<future:thing xmlns:future='urn:f' a = \"1\"/>"));
}

#[test]
fn a_network_disk_becomes_a_file_and_gets_a_driver() {
    let moved = NewSource::file(Path::new("/new/b.qcow2"), ImageFormat::Qcow2);
    let edited = redefine(RICH, &with_disk("vdb", moved)).expect("well-formed");
    let domain = read_domain(&edited).expect("well-formed");
    assert_eq!(domain.disks[1].source, Source::File("/new/b.qcow2".into()));
    assert_eq!(domain.disks[1].format, DiskFormat::Qcow2);
    assert!(!edited.contains("rbd") && !edited.contains("<host"));
    assert!(edited.contains("<source file='/untouched.raw'/>"));
}

/// The sources contain all elements and attributes of other kinds that libvirt's schema allows.
#[test]
fn nothing_of_an_old_source_stays_in_a_restored_disk() {
    let sources = [
        (
            "volume",
            "<source pool='p' volume='v' mode='direct' startupPolicy='optional' index='3'><slices><slice type='storage' offset='0' size='1'/></slices></source>",
        ),
        (
            "network",
            "<source protocol='https' name='a' query='t=1' tls='yes' tlsHostname='x'><host name='h' port='443'/>\
          <auth username='u'><secret type='iscsi' usage='s'/></auth><ssl verify='no'/><cookies><cookie name='c'>v</cookie></cookies>\
          <readahead size='1'/><timeout seconds='6'/><reconnect delay='1'/><initiator><iqn name='i'/></initiator></source>\
          <auth username='old'><secret type='ceph' uuid='o'/></auth>",
        ),
        (
            "nvme",
            "<source type='pci' managed='yes' namespace='1'><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>",
        ),
        (
            "block",
            "<source dev='/dev/x'><reservations managed='yes'/><encryption format='luks' engine='qemu'>\
          <secret type='passphrase' uuid='e'/></encryption></source><encryption format='luks'/>",
        ),
        (
            "file",
            "<source file='/o'><dataStore type='file'><format type='raw'/><source file='/data'/></dataStore></source>\
          <backingStore type='file'><format type='qcow2'/><source file='/base'><encryption format='luks'/></source></backingStore>",
        ),
        ("network", ""),
    ];
    for (kind, source) in sources {
        let xml = format!(
            "<domain><name>x</name><devices><disk type='{kind}' device='disk'><driver name='qemu' type='raw'/>{source}\
             <target dev='vda' bus='virtio'/><serial>s</serial></disk></devices></domain>"
        );
        let moved = NewSource::file(Path::new("/new/a.qcow2"), ImageFormat::Qcow2);
        let edited = redefine(&xml, &with_disk("vda", moved)).expect("well-formed");
        let policy = if kind == "volume" {
            " startupPolicy='optional'"
        } else {
            ""
        };
        let empty = edited.contains("file='/new/a.qcow2'/>")
            || edited.contains(&format!("file='/new/a.qcow2'{policy}></source>"))
            || edited.contains(&format!("{policy} file='/new/a.qcow2'></source>"));
        assert!(empty, "{edited}");
        for gone in [
            "pool",
            "volume",
            "protocol",
            "auth",
            "secret",
            "encryption",
            "host",
            "slice",
            "cookie",
            "ssl",
            "tls",
            "address",
            "reservations",
            "backingStore",
            "dataStore",
            "managed",
            "namespace",
            "index",
            "mode",
            "query",
            "dev='/dev",
        ] {
            assert!(!edited.contains(gone), "{gone}: {edited}");
        }
        assert!(
            edited.contains("<disk type='file'") && edited.contains("type='qcow2'"),
            "{edited}"
        );
        assert!(edited.contains("<serial>s</serial>"), "{edited}");
    }
}

#[test]
fn the_firmware_path_is_set_in_each_spelling() {
    let edits = Edits {
        nvram: Some("/new/VARS & co.fd".into()),
        ..Edits::default()
    };
    let edited = redefine(RICH, &edits).expect("well-formed");
    assert_eq!(edited, RICH.replace(">/old_VARS.fd<", ">/new/VARS &amp; co.fd<"));
    for os in [
        "<os><nvram template='/t' /></os>",
        "<os><nvram/></os>",
        "<os><nvram></nvram></os>",
        "<os><type>hvm</type></os>",
        "<os><nvram type='file'><source file='/old'/></nvram></os>",
        "<os><nvram type='block'><source dev='/dev/old'/></nvram></os>",
        "<os><nvram type='network'><source protocol='nbd' name='n'><host name='h'/></source></nvram></os>",
    ] {
        let xml = format!("<domain><name>x</name>{os}</domain>");
        let edited = redefine(&xml, &edits).unwrap_or_else(|error| panic!("{os}: {error}"));
        assert_eq!(
            read_domain(&edited).expect("well-formed").nvram,
            edits.nvram.as_deref().map(Nvram::raw),
            "{edited}"
        );
    }
    assert!(redefine("<domain><name>x</name></domain>", &edits).is_err());
    assert!(redefine("<domain><name>x</name><os/></domain>", &edits).is_err());
}

#[test]
fn the_path_of_a_tpm_is_changed_where_the_definition_names_one() {
    let edits = Edits {
        tpm: Some("/new/it's".into()),
        ..Edits::default()
    };
    let domain = |backend: &str| {
        format!("<domain><name>x</name><devices><tpm model='tpm-crb'>{backend}</tpm></devices></domain>")
    };
    let named = domain("<backend type='emulator' version='2.0'><source type='dir' path='/old'/></backend>");
    assert_eq!(
        redefine(&named, &edits).expect("well-formed"),
        named.replace("/old", "/new/it&apos;s")
    );
    for unnamed in [
        "<backend type='emulator' version='2.0'/>",
        "<backend type='external'><source type='unix' mode='connect' path='/s'/></backend>",
    ] {
        let unnamed = domain(unnamed);
        assert_eq!(redefine(&unnamed, &edits).expect("well-formed"), unnamed);
    }
}

#[test]
fn missing_uuid_is_inserted_after_the_name() {
    let edits = Edits {
        uuid: Some("11111111-2222-3333-4444-555555555555".into()),
        ..Edits::default()
    };
    let edited = redefine("<domain><name>x</name></domain>", &edits).expect("well-formed");
    assert_eq!(
        edited,
        "<domain><name>x</name><uuid>11111111-2222-3333-4444-555555555555</uuid></domain>"
    );
}

#[test]
fn a_disk_that_is_not_there_is_an_error() {
    let moved = NewSource::file(Path::new("/x"), ImageFormat::Raw);
    let error = redefine(RICH, &with_disk("vdz", moved)).expect_err("there is no vdz");
    assert!(error.to_string().contains("vdz"), "{error}");
}

proptest! {
    #[test]
    fn any_name_and_path_read_back_as_they_were_given(name in "[^\\p{Cc}\u{fffe}\u{ffff}]{1,40}", path in "/[^\\p{Cc}\u{fffe}\u{ffff}]{1,40}") {
        let edits = Edits { name: Some(name.clone()), ..with_disk("vda", NewSource::file(Path::new(&path), ImageFormat::Raw)) };
        let read = read_domain(&redefine(RICH, &edits).expect("well-formed")).expect("well-formed");
        prop_assert_eq!(read.name, name);
        prop_assert_eq!(&read.disks[0].source, &Source::File(path.into()));
    }

    #[test]
    fn mutilated_documents_never_panic(cut in 0..RICH.len(), length in 0..60usize, patch in "[<>/'\"&a= \n]{0,8}") {
        let mut xml = RICH.to_owned();
        let floor = |mut at: usize| { while !RICH.is_char_boundary(at) { at -= 1; } at };
        xml.replace_range(floor(cut)..floor((cut + length).min(RICH.len())), &patch);
        let edits = Edits {
            name: Some("n".into()),
            uuid: Some("u".into()),
            nvram: Some("/n".into()),
            tpm: Some("/t".into()),
            drop_macs: true,
            ..with_disk("vda", NewSource::file(Path::new("/x"), ImageFormat::Raw))
        };
        let _ = redefine(&xml, &edits);
        let _ = read_domain(&xml);
    }
}
