//! Tests of the XML of trial domains.

use super::*;
use crate::host::xml::read_domain;
use crate::model::domain::{Backing, Source};

const RICH: &str = r#"<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm1</name>
  <uuid>5c3f3e8a-0f0d-4d8e-9a0e-0f4c1f6f2b11</uuid>
  <genid>5c3f3e8a-0f0d-4d8e-9a0e-0f4c1f6f2b12</genid>
  <maxMemory slots='4' unit='GiB'>64</maxMemory>
  <memory unit='GiB'>8</memory>
  <currentMemory unit='GiB'>4</currentMemory>
  <memoryBacking><hugepages/></memoryBacking>
  <vcpu placement='static' cpuset='4-7'>4</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='4'/></cputune>
  <numatune><memory mode='strict' nodeset='1'/></numatune>
  <resource><partition>/production</partition></resource>
  <os><type arch='x86_64' machine='q35'>hvm</type><loader type='pflash'>/old/firmware.fd</loader></os>
  <cpu mode='host-passthrough'><numa><cell id='0' cpus='0-3' memory='8' unit='GiB'/></numa></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='lun' sgio='filtered'>
      <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
      <source file='/var/tmp/o/vda.qcow2'><seclabel model='dac' relabel='no'/></source>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <shareable/>
      <readonly/>
    </disk>
    <disk type='file' device='disk'><source file='/excluded.img'/><target dev='vdb'/></disk>
    <disk type='network' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source protocol='https' name='/install.iso'><host name='example.org'/></source>
      <target dev='sda' bus='sata'/><readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:01:02:03'/>
      <source bridge='br0'/>
      <virtualport type='openvswitch'/>
      <model type='virtio'/>
      <driver name='vhost' queues='4'/>
      <boot order='2'/>
    </interface>
    <interface type='hostdev'><source><address type='pci' domain='0' bus='3' slot='0' function='0'/></source></interface>
    <serial type='tcp'>
      <source mode='bind' host='0.0.0.0' service='4555'/>
      <protocol type='telnet'/>
      <target type='isa-serial' port='0'/>
    </serial>
    <serial type='unix'><source mode='bind' path='/run/second.sock'/><target port='1'/></serial>
    <console type='tcp'><source mode='bind' host='0.0.0.0' service='4555'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/run/agent.sock'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
    <graphics type='vnc' port='5901' autoport='no' passwd='a&amp;b'><listen type='address' address='10.0.0.5'/></graphics>
    <graphics type='egl-headless'/>
    <video><model type='virtio'><acceleration accel3d='yes'/></model></video>
    <sound model='ich9'/>
    <hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>
    <filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>
    <memory model='dimm'><target><size unit='GiB'>1</size><node>0</node></target></memory>
    <pstore backend='acpi-erst'><path>/old/pstore</path></pstore>
    <somethingnew/>
    <memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <seclabel type='static' model='dac'><label>+1:+1</label></seclabel>
  <qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=/old/extra.img'/></qemu:commandline>
</domain>
"#;

fn edits() -> TrialEdits {
    let served = Served {
        socket: "/var/tmp/o/it's.sock".into(),
        export: "vda".to_owned(),
    };
    TrialEdits {
        disks: [("vda".to_owned(), served)].into(),
        ..TrialEdits::default()
    }
}

fn trial(edits: &TrialEdits) -> (String, Vec<String>) {
    as_trial(RICH, edits).expect("the domain can be edited")
}

#[test]
fn nothing_of_the_host_is_used() {
    let (xml, lacks) = trial(&edits());
    let gone = [
        "hugepages",
        "cpuset",
        "cputune",
        "numatune",
        "/production",
        "maxMemory",
        "seclabel",
        "/excluded.img",
        "install.iso",
        "br0",
        "openvswitch",
        "vhost",
        "4555",
        "second.sock",
        "agent.sock",
        "/dev/tpm0",
        "5901",
        "10.0.0.5",
        "egl-headless",
        "accel3d",
        "sound",
        "<hostdev",
        "/srv",
        "cache=",
        "io=",
        "lun",
        "sgio",
        "shareable",
        "genid",
        "dimm",
        "pstore",
        "somethingnew",
        "extra.img",
    ];
    for word in gone {
        assert!(!xml.contains(word), "{word} in {xml}");
    }
    let kept = [
        "<memory unit='GiB'>8</memory>",
        "<cell id='0'",
        "52:54:00:01:02:03",
        "<boot order='2'/>",
        "discard='unmap'",
        "org.qemu.guest_agent.0",
        "com.redhat.spice.0",
        "passwd='a&amp;b'",
        "/dev/urandom",
        "<loader readonly='yes' type='pflash'>",
        "<memballoon",
    ];
    for word in kept {
        assert!(xml.contains(word), "{word} not in {xml}");
    }
    assert!(
        xml.contains("<interface type='user'><link state='down'/>"),
        "{xml}"
    );
    assert_eq!(
        lacks,
        [
            "commandline",
            "disk vdb",
            "interface (hostdev)",
            "tpm (tpm-crb)",
            "graphics (egl-headless)",
            "sound (ich9)",
            "hostdev (pci)",
            "filesystem (mount)",
            "memory (dimm)",
            "pstore",
            "somethingnew",
        ]
    );
}

#[test]
fn the_served_disk_is_beneath_its_overlay() {
    let (xml, _) = trial(&edits());
    let domain = read_domain(&xml).expect("a domain");
    let [disk, drive] = domain.disks.as_slice() else {
        panic!("{:?}", domain.disks);
    };
    assert_eq!((disk.target.as_str(), drive.target.as_str()), ("vda", "sda"));
    assert_eq!(drive.source, Source::Empty);
    assert_eq!(disk.source, Source::File("/var/tmp/o/vda.qcow2".into()));
    assert!(!disk.readonly, "an overlay has to be written to");
    let Backing::Layer(layer) = &disk.backing else {
        panic!("{:?}", disk.backing);
    };
    assert!(matches!(layer.source, Source::Network(_)), "{layer:?}");
    assert!(matches!(layer.backing, Backing::End), "{layer:?}");
    assert!(xml.contains("socket='/var/tmp/o/it&apos;s.sock'"), "{xml}");
}

#[test]
fn a_console_replaces_the_first_port_or_is_added() {
    let console = TrialEdits {
        console: Some("/var/tmp/o/console.sock".into()),
        ..edits()
    };
    let (xml, _) = trial(&console);
    let first = "<serial type='unix'><source mode='connect' path='/var/tmp/o/console.sock'/><target type='isa-serial' port='0'/></serial>";
    assert!(xml.contains(first), "{xml}");
    assert!(
        xml.contains("<serial type='pty'><target port='1'/></serial>"),
        "{xml}"
    );
    let small = "<domain type='kvm'><name>a</name><devices><disk type='file'><source file='/o'/>\
                 <target dev='vda'/></disk></devices></domain>";
    let (xml, _) = as_trial(small, &console).expect("it can be edited");
    assert!(
        xml.contains(
            "<serial type='unix'><source mode='connect' path='/var/tmp/o/console.sock'/></serial></devices>"
        ),
        "{xml}"
    );
}

#[test]
fn memory_and_network_are_set_on_request() {
    let wanted = TrialEdits {
        network: Some("isolated & small".to_owned()),
        memory: Memory::Fixed(1 << 20),
        ..edits()
    };
    let (xml, _) = trial(&wanted);
    assert!(xml.contains("<memory unit='KiB'>1048576</memory>"), "{xml}");
    for gone in ["currentMemory", "<numa>", "link state"] {
        assert!(!xml.contains(gone), "{gone} in {xml}");
    }
    let card = "<interface type='network'><source network='isolated &amp; small'/><mac address='52:54:00:01:02:03'/>\
                <model type='virtio'/><boot order='2'/></interface>";
    assert!(xml.contains(card), "{xml}");
}

#[test]
fn a_disk_that_the_definition_lacks_is_an_error() {
    let mut wanted = edits();
    let served = wanted.disks["vda"].clone();
    wanted.disks.insert("vdz".to_owned(), served);
    let refused = as_trial(RICH, &wanted).expect_err("there is no vdz");
    assert!(refused.to_string().contains("it has no disk vdz"), "{refused}");
    as_trial("<domain><devices/></domain>", &wanted).expect_err("there is no disk at all");
    as_trial("no XML", &wanted).expect_err("it cannot be parsed");
}

#[test]
fn network_cards_without_an_address_get_one() {
    let xml = "<domain><devices><interface type='user'><model type='e1000'/></interface><interface type='user'>\
               <mac address='52:54:00:00:00:01'/></interface><interface type='user'><source/></interface></devices></domain>";
    let addresses = ["52:54:00:00:00:aa", "52:54:00:00:00:bb"].map(str::to_owned);
    let xml = with_addresses(xml, addresses.into_iter()).expect("it can be edited");
    let places = ["00:aa'/><model", "00:01'/>", "00:bb'/><source"].map(|place| xml.find(place));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{xml}");
}
