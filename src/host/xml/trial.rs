//! Turns the XML of a domain into that of a trial domain, which disturbs neither the host nor other
//! domains: no host devices, no shares, no fixed ports or paths, no network unless it is named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::splice::{Splice, escape, name_end};
use super::{bad, child, children, parse, path_text};
use crate::host::Result;

const WHAT: &str = "domain XML";

/// The edits for a trial domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrialEdits {
    /// The served disks beneath the overlays, by target. All other disks are removed, and all media
    /// of drives.
    pub disks: BTreeMap<String, Served>,
    /// The libvirt network for all network cards; `None` leaves them without a link.
    pub network: Option<String>,
    /// The memory.
    pub memory: Memory,
    /// The unix socket of a listener that gets the output of the first serial port.
    pub console: Option<PathBuf>,
    /// Whether it gets a graphics card if it has none, so that it has a screen.
    pub screen: bool,
}

/// The memory of a trial domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// What the domain had.
    #[default]
    Own,
    /// This many KiB.
    Fixed(u64),
    /// What the domain had, but at most this many KiB.
    AtMost(u64),
}

/// A disk that an NBD server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The unix socket of the server.
    pub socket: PathBuf,
    /// The name of the export.
    pub export: String,
}

/// Devices that exist only within QEMU. A trial domain keeps them; of all others that have no rule
/// here it gets none.
const KEPT: [&str; 8] = [
    "emulator",
    "controller",
    "hub",
    "iommu",
    "memballoon",
    "panic",
    "watchdog",
    "crypto",
];

/// Parts of a definition that bind a domain to the resources of a certain host.
const BOUND: [&str; 9] = [
    "cputune",
    "numatune",
    "memtune",
    "memoryBacking",
    "blkiotune",
    "resource",
    "seclabel",
    "maxMemory",
    "genid",
];

/// Returns the XML of the trial domain, and the devices that it lacks, in words.
///
/// # Errors
/// The XML is invalid, or lacks a disk that is served.
pub fn as_trial(xml: &str, edits: &TrialEdits) -> Result<(String, Vec<String>)> {
    let document = parse(xml, WHAT, "domain")?;
    let domain = document.root_element();
    let mut editor = Editor {
        splice: Splice::of(xml),
        edits,
        missing: edits.disks.keys().map(String::as_str).collect(),
        lacks: Vec::new(),
        has_console: false,
    };
    for name in BOUND {
        children(domain, name).for_each(|node| editor.splice.remove(node));
    }
    for vcpu in children(domain, "vcpu").filter_map(|vcpu| vcpu.attribute_node("cpuset")) {
        editor.splice.remove_attribute(vcpu);
    }
    // Arguments for QEMU that libvirt does not understand, and neither does vmsnap.
    for node in domain
        .children()
        .filter(|node| node.is_element() && node.tag_name().namespace().is_some())
    {
        editor.lacks.push(node.tag_name().name().to_owned());
        editor.splice.remove(node);
    }
    for loader in children(domain, "os").flat_map(|os| children(os, "loader")) {
        editor.protect(loader);
    }
    editor.set_memory(domain);
    for devices in children(domain, "devices") {
        for device in devices.children().filter(Node::is_element) {
            editor.device(device)?;
        }
        editor.add_devices(domain, devices)?;
    }
    if let Some(target) = editor.missing.first() {
        return Err(bad(WHAT, format!("it has no disk {target}")));
    }
    let (edited, lacks) = (editor.splice.apply()?, editor.lacks);
    parse(&edited, WHAT, "domain")?;
    Ok((edited, lacks))
}

/// Gives each network card without an address one of these: the same in each definition that is
/// made with them.
pub fn with_addresses(xml: &str, mut addresses: impl Iterator<Item = String>) -> Result<String> {
    let document = parse(xml, WHAT, "domain")?;
    let mut splice = Splice::of(xml);
    for devices in children(document.root_element(), "devices") {
        for interface in children(devices, "interface") {
            let first = interface.first_element_child();
            if let Some(first) = first.filter(|_| child(interface, "mac").is_none())
                && let Some(address) = addresses.next()
            {
                let mac = format!("<mac address='{}'/>", escape(&address));
                splice.insert(first.range().start, mac);
            }
        }
    }
    splice.apply()
}

struct Editor<'a> {
    splice: Splice<'a>,
    edits: &'a TrialEdits,
    missing: BTreeSet<&'a str>,
    lacks: Vec<String>,
    has_console: bool,
}

impl Editor<'_> {
    fn set_memory(&mut self, domain: Node) {
        let memory = match self.edits.memory {
            Memory::Own => return,
            Memory::Fixed(memory) => memory,
            // Memory that cannot be read is not more than any limit.
            Memory::AtMost(most) => match child(domain, "memory").and_then(kibibytes) {
                Some(own) if own > most => most,
                _ => return,
            },
        };
        for node in children(domain, "memory") {
            let text = format!("<memory unit='KiB'>{memory}</memory>");
            self.splice.replace(node.range(), text);
        }
        children(domain, "currentMemory").for_each(|node| self.splice.remove(node));
        // The cells divide the old memory among them.
        let cells = children(domain, "cpu").flat_map(|cpu| children(cpu, "numa"));
        cells.for_each(|node| self.splice.remove(node));
    }

    fn device(&mut self, device: Node) -> Result<()> {
        let name = device.tag_name().name();
        match name {
            "disk" => self.disk(device)?,
            "interface" => self.interface(device),
            "serial" | "parallel" | "console" => self.port(device)?,
            "channel" => self.channel(device),
            "graphics" => self.graphics(device),
            "video" => {
                let models = children(device, "model").flat_map(|model| children(model, "acceleration"));
                models.for_each(|node| self.splice.remove(node));
            }
            "tpm" => {
                let backend = child(device, "backend").and_then(|backend| backend.attribute("type"));
                if backend != Some("emulator") {
                    self.leave_out(device);
                }
            }
            "input" => {
                if matches!(device.attribute("type"), Some("passthrough" | "evdev")) {
                    self.leave_out(device);
                }
            }
            "rng" => {
                let backend = child(device, "backend").and_then(|backend| backend.attribute("model"));
                if backend != Some("random") {
                    self.leave_out(device);
                }
            }
            name if KEPT.contains(&name) => {}
            _ => self.leave_out(device),
        }
        Ok(())
    }

    /// Keeps the guest from writing to the host's firmware.
    fn protect(&mut self, loader: Node) {
        match loader.attribute_node("readonly") {
            Some(node) => self.splice.set_value(node, "yes"),
            None if loader.attribute("type") == Some("pflash") => {
                self.splice.insert(name_end(loader), " readonly='yes'".to_owned());
            }
            None => {}
        }
    }

    fn leave_out(&mut self, device: Node) {
        let name = device.tag_name().name();
        let kind = device.attribute("type").or_else(|| device.attribute("model"));
        let text = kind.map_or_else(|| name.to_owned(), |kind| format!("{name} ({kind})"));
        // libvirt gives domains a sound backend without being asked.
        if name != "audio" {
            self.lacks.push(text);
        }
        self.splice.remove(device);
    }

    fn disk(&mut self, disk: Node) -> Result<()> {
        let target = child(disk, "target").and_then(|target| target.attribute("dev"));
        let target = target.unwrap_or_default();
        if let Some(served) = self.edits.disks.get(target) {
            self.missing.remove(target);
            return self.put_beneath(disk, served);
        }
        if matches!(disk.attribute("device"), Some("cdrom" | "floppy")) {
            // An empty drive.
            for name in ["source", "backingStore", "auth", "encryption", "mirror"] {
                children(disk, name).for_each(|node| self.splice.remove(node));
            }
            if let Some(kind) = disk.attribute_node("type") {
                self.splice.set_value(kind, "file");
            }
            return Ok(());
        }
        self.lacks.push(format!("disk {target}"));
        self.splice.remove(disk);
        Ok(())
    }

    /// Puts the served disk beneath an overlay. The definition's settings of caches do not fit
    /// every file system, and those of sharing do not fit an overlay.
    fn put_beneath(&mut self, disk: Node, served: &Served) -> Result<()> {
        let socket = path_text(&served.socket, "socket")?;
        let source = child(disk, "source").ok_or_else(|| bad(WHAT, "a disk has no source"))?;
        let beneath = format!(
            "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='{}'>\
             <host transport='unix' socket='{}'/></source><backingStore/></backingStore>",
            escape(&served.export),
            escape(socket)
        );
        self.splice.insert(source.range().end, beneath);
        children(source, "seclabel").for_each(|node| self.splice.remove(node));
        // QEMU pulls nothing into a read-only image.
        for name in ["backingStore", "shareable", "transient", "readonly"] {
            children(disk, name).for_each(|node| self.splice.remove(node));
        }
        for driver in children(disk, "driver") {
            for name in ["cache", "io"] {
                if let Some(node) = driver.attribute_node(name) {
                    self.splice.remove_attribute(node);
                }
            }
        }
        if let Some(device) = disk.attribute_node("device").filter(|node| node.value() == "lun") {
            self.splice.set_value(device, "disk");
        }
        for name in ["rawio", "sgio"] {
            if let Some(node) = disk.attribute_node(name) {
                self.splice.remove_attribute(node);
            }
        }
        Ok(())
    }

    /// Connects a network card to the named network, or to none.
    fn interface(&mut self, interface: Node) {
        if interface.attribute("type") == Some("hostdev") {
            return self.leave_out(interface);
        }
        let mut text = match &self.edits.network {
            Some(name) => {
                let name = escape(name);
                format!("<interface type='network'><source network='{name}'/>")
            }
            // Only a user network needs nothing of the host.
            None => "<interface type='user'><link state='down'/>".to_owned(),
        };
        for name in ["mac", "model", "boot", "rom", "address", "alias"] {
            for node in children(interface, name) {
                text.push_str(self.splice.source(node));
            }
        }
        text.push_str("</interface>");
        self.splice.replace(interface.range(), text);
    }

    /// A serial or parallel port, or a console: without a path or port of the host.
    fn port(&mut self, port: Node) -> Result<()> {
        let name = port.tag_name().name();
        let target = child(port, "target").and_then(|target| target.attribute("type"));
        if name == "console" && matches!(target, None | Some("serial")) {
            // The first serial port, which libvirt adds again.
            self.splice.remove(port);
            return Ok(());
        }
        let console = self.edits.console.as_deref();
        let console = console.filter(|_| name == "serial" && !self.has_console);
        if let Some(path) = console {
            // All other settings of the first port apply to its old place.
            self.has_console = true;
            let kept = ["target", "address", "alias"];
            let kept = kept.iter().flat_map(|name| children(port, name));
            let kept: String = kept.map(|node| self.splice.source(node)).collect();
            let text = format!("<serial type='unix'>{}{kept}</serial>", console_source(path)?);
            self.splice.replace(port.range(), text);
            return Ok(());
        }
        for child in ["source", "protocol", "log"] {
            children(port, child).for_each(|node| self.splice.remove(node));
        }
        if let Some(node) = port.attribute_node("tty") {
            self.splice.remove_attribute(node);
        }
        match port.attribute_node("type") {
            Some(node) => self.splice.set_value(node, "pty"),
            None => self.splice.insert(name_end(port), " type='pty'".to_owned()),
        }
        Ok(())
    }

    /// Adds the console and the graphics card that the domain lacks.
    fn add_devices(&mut self, domain: Node, devices: Node) -> Result<()> {
        let mut text = String::new();
        if let Some(path) = self.edits.console.as_deref().filter(|_| !self.has_console) {
            self.has_console = true;
            text.push_str(&format!("<serial type='unix'>{}</serial>", console_source(path)?));
        }
        if self.edits.screen && child(devices, "video").is_none() && is_pc(domain) {
            text.push_str("<video><model type='vga'/></video>");
        }
        let last = devices.last_element_child();
        let last = last.ok_or_else(|| bad(WHAT, "it has no devices"))?;
        self.splice.insert(last.range().end, text);
        Ok(())
    }

    /// A channel to the guest: libvirt chooses the path on the host.
    fn channel(&mut self, channel: Node) {
        match channel.attribute("type") {
            Some("unix") => {
                children(channel, "source").for_each(|node| self.splice.remove(node));
            }
            Some("spicevmc" | "qemu-vdagent" | "pty") => {}
            _ => self.leave_out(channel),
        }
    }

    /// A display: at a free port of this machine's own address.
    fn graphics(&mut self, graphics: Node) {
        match graphics.attribute("type") {
            Some(kind @ ("vnc" | "spice")) => {
                let mut text = format!("<graphics type='{kind}' autoport='yes' listen='127.0.0.1'");
                if let Some(password) = graphics.attribute("passwd") {
                    text.push_str(&format!(" passwd='{}'", escape(password)));
                }
                text.push_str("/>");
                self.splice.replace(graphics.range(), text);
            }
            _ => self.leave_out(graphics),
        }
    }
}

fn console_source(path: &Path) -> Result<String> {
    let path = path_text(path, "console's socket")?;
    Ok(format!("<source mode='connect' path='{}'/>", escape(path)))
}

/// Whether the machine is one that can have a VGA card.
fn is_pc(domain: Node) -> bool {
    let mut types = children(domain, "os").flat_map(|os| children(os, "type"));
    types.any(|kind| matches!(kind.attribute("arch"), None | Some("x86_64" | "i686")))
}

/// The size in an element with a unit, in KiB, which is also the unit of an element without one.
/// The units are those of virScaleInteger in libvirt's virutil.c.
fn kibibytes(node: Node) -> Option<u64> {
    let number: u64 = node.text()?.trim().parse().ok()?;
    let unit = node.attribute("unit").unwrap_or("KiB").to_ascii_lowercase();
    let (prefix, is_decimal) = match unit.strip_suffix("ib") {
        Some(prefix) => (prefix, false),
        None => match unit.as_str() {
            "b" | "bytes" | "byte" => ("", false),
            unit => (unit.trim_end_matches('b'), unit.ends_with('b')),
        },
    };
    let power = match prefix {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        "e" => 6,
        _ => return None,
    };
    let base: u64 = if is_decimal { 1000 } else { 1024 };
    Some(number.checked_mul(base.checked_pow(power)?)? / 1024)
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;
