//! Reads a domain's XML: its disks and other properties that matter for a backup.

use std::collections::HashSet;

use roxmltree::Node;

use super::disk::read_disk;
use super::excluded::excluded_disks;
use super::firmware::{read_nvram, read_tpm};
use super::{bad, child, children, parse, text};
use crate::host::Result;
use crate::model::domain::{Agent, Disk};
use crate::model::firmware::{Nvram, Tpm};

const WHAT: &str = "domain XML";

/// The name of the guest agent's channel, which qemu-ga opens in the guest.
const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// The properties from a domain's XML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainDescription {
    /// Its name.
    pub name: String,
    /// Its UUID as written by libvirt; empty if the document has none.
    pub uuid: String,
    /// Its drives, in the document's order.
    pub disks: Vec<Disk>,
    /// The place of its UEFI variables.
    pub nvram: Option<Nvram>,
    /// Its emulated TPM.
    pub tpm: Option<Tpm>,
    /// The state of its guest agent. Only the XML of a running domain shows whether it is
    /// connected.
    pub agent: Agent,
    /// The targets that its metadata excludes from backups, unchecked.
    pub excluded: Vec<String>,
    /// The user and group id of QEMU, if the XML of a running domain contains them as numbers.
    pub owner: Option<(u32, u32)>,
}

/// Reads a domain's XML, live or inactive.
pub fn read_domain(xml: &str) -> Result<DomainDescription> {
    let document = parse(xml, WHAT, "domain")?;
    let domain = document.root_element();
    let name = child(domain, "name").map(text).filter(|name| !name.is_empty());
    let devices: Vec<Node> = children(domain, "devices").collect();
    let each = |kind: &'static str| devices.iter().flat_map(move |devices| children(*devices, kind));

    let disks = each("disk").map(read_disk).collect::<Result<Vec<Disk>>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = disks.iter().find(|disk| !seen.insert(disk.target.as_str())) {
        return Err(bad(WHAT, format!("two disks have the target '{}'", twice.target)));
    }
    Ok(DomainDescription {
        name: name.ok_or_else(|| bad(WHAT, "it has no name"))?,
        uuid: child(domain, "uuid")
            .map(text)
            .unwrap_or_default()
            .trim()
            .to_owned(),
        nvram: child(domain, "os").and_then(read_nvram),
        tpm: each("tpm").find_map(read_tpm),
        agent: each("channel")
            .filter_map(agent_state)
            .next()
            .unwrap_or(Agent::None),
        excluded: excluded_disks(domain),
        owner: children(domain, "seclabel").find_map(dac_label),
        disks,
    })
}

fn agent_state(channel: Node) -> Option<Agent> {
    let target = child(channel, "target")?;
    if target.attribute("name") != Some(AGENT_CHANNEL) {
        return None;
    }
    Some(match target.attribute("state") {
        Some("connected") => Agent::Connected,
        _ => Agent::Disconnected,
    })
}

/// Reads user and group from `<seclabel model='dac'>`, such as `+64055:+108`. Names are not
/// resolved.
fn dac_label(seclabel: Node) -> Option<(u32, u32)> {
    if seclabel.attribute("model") != Some("dac") {
        return None;
    }
    user_and_group(&child(seclabel, "label").map(text)?)
}

fn user_and_group(label: &str) -> Option<(u32, u32)> {
    let (user, group) = label.trim().split_once(':')?;
    let number = |word: &str| word.strip_prefix('+').unwrap_or(word).parse().ok();
    Some((number(user)?, number(group)?))
}

/// Reads the user and the group of new QEMU processes from the XML of a hypervisor's capabilities;
/// `None` if libvirt does not set them.
pub(crate) fn dac_owner(capabilities: &str) -> Result<Option<(u32, u32)>> {
    let document = parse(capabilities, "capabilities", "capabilities")?;
    let host = child(document.root_element(), "host");
    let mut models = host.into_iter().flat_map(|host| children(host, "secmodel"));
    let dac = models.find(|model| child(*model, "model").is_some_and(|name| text(name) == "dac"));
    let mut labels = dac.into_iter().flat_map(|dac| children(dac, "baselabel"));
    Ok(labels.find_map(|label| user_and_group(&text(label))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::domain::{Device, DiskFormat, Source};

    const RICH: &str = r#"<?xml version="1.0"?>
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <!-- <name>not this</name> -->
  <name>a&amp;b "c" <![CDATA[<d>]]></name>
  <uuid>5c3f3e8a-0f0d-4d8e-9a0e-0f4c1f6f2b11</uuid>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/a_VARS.fd</nvram>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/images/it&apos;s &lt;a&gt;.qcow2' index='3'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type="block" device="disk">
      <driver name="qemu" type="raw"/>
      <source dev="/dev/vg/lv"/>
      <target dev="vdb" bus="virtio"/>
      <readonly/><shareable/><transient/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='network' device='disk'>
      <driver type='raw'/><source protocol='rbd' name='pool/image'/><target dev='vdc'/>
    </disk>
    <disk type='file'><driver type='vmdk'/><source file='/x'/><target dev='vdd'/></disk>
    <disk type='file'>
      <driver type='raw'/>
      <source file='/x'><slices><slice type='storage' offset='0' size='4096'/></slices></source>
      <target dev='vde'/>
    </disk>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
  <seclabel type='dynamic' model='apparmor'><label>libvirt-5c3f</label></seclabel>
  <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+108</label></seclabel>
  <qemu:commandline><qemu:arg value='-S'/></qemu:commandline>
</domain>"#;

    #[test]
    fn a_rich_document_is_read_in_full() {
        let domain = read_domain(RICH).expect("it is well-formed");
        assert_eq!(domain.name, "a&b \"c\" <d>");
        assert_eq!(domain.uuid, "5c3f3e8a-0f0d-4d8e-9a0e-0f4c1f6f2b11");
        assert_eq!(
            domain.nvram,
            Some(Nvram::raw("/var/lib/libvirt/qemu/nvram/a_VARS.fd"))
        );
        assert_eq!(domain.tpm.as_ref().and_then(Tpm::folder), Some("tpm2"));
        assert_eq!(domain.agent, Agent::Connected);
        assert_eq!(domain.owner, Some((64055, 108)));

        let disk = |target: &str| {
            domain
                .disks
                .iter()
                .find(|disk| disk.target == target)
                .expect("it is listed")
        };
        assert_eq!(disk("vda").source, Source::File("/images/it's <a>.qcow2".into()));
        assert_eq!(disk("vda").format, DiskFormat::Qcow2);
        assert_eq!(disk("vdb").source, Source::Block("/dev/vg/lv".into()));
        assert!(disk("vdb").readonly && disk("vdb").shareable && disk("vdb").transient);
        assert_eq!(
            (disk("sda").device, &disk("sda").source),
            (Device::Cdrom, &Source::Empty)
        );
        assert_eq!(disk("vdc").source.text(), "rbd:pool/image");
        assert_eq!(disk("vdd").format, DiskFormat::Other("vmdk".into()));
        assert!(disk("vde").is_slice && !disk("vda").is_slice);
        let order: Vec<&str> = domain.disks.iter().map(|disk| disk.target.as_str()).collect();
        assert_eq!(order, ["vda", "vdb", "sda", "vdc", "vdd", "vde"]);
    }

    #[test]
    fn a_bare_document_has_no_agent_no_firmware_no_tpm() {
        let domain = read_domain("<domain><name>x</name></domain>").expect("it is well-formed");
        assert_eq!(domain.agent, Agent::None);
        assert!(domain.disks.is_empty() && domain.nvram.is_none() && domain.tpm.is_none());
        assert_eq!(domain.owner, None);
    }

    #[test]
    fn an_agent_channel_without_a_listener_is_disconnected() {
        let xml = "<domain><name>x</name><devices><channel type='unix'>\
                   <target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>";
        assert_eq!(read_domain(xml).expect("well-formed").agent, Agent::Disconnected);
    }

    #[test]
    fn hostile_documents_are_refused() {
        let disk = |target: &str| {
            format!(
                "<domain><name>x</name><devices><disk type='file'><target dev='{target}'/></disk></devices></domain>"
            )
        };
        let twice = disk("vda").replace("</devices>", "<disk><target dev='vda'/></disk></devices>");
        let cases = [
            String::new(),
            "<domain>".to_owned(),
            "<network><name>x</name></network>".to_owned(),
            "<domain/>".to_owned(),
            "<domain><name/></domain>".to_owned(),
            "<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>".to_owned(),
            disk("../../etc"),
            disk("a/b"),
            disk(""),
            disk(".."),
            disk("-x"),
            disk("vd\u{e4}"),
            disk(&"v".repeat(65)),
            twice,
        ];
        for case in cases {
            assert!(read_domain(&case).is_err(), "{case}");
        }
    }
}
