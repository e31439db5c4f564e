//! A temporary domain whose disk is known byte by byte.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use virt::domain::Domain;
use virt::sys;

use super::embed::Embed;
use super::{Error, Result};
use crate::image::qcow2::{Qcow2Options, Qcow2Writer};
use crate::io::{DiskStore, Store};
use crate::model::block::{BlockError, BlockSink};
use crate::model::stop::Stop;

/// A write of the simulated guest. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Writes bytes of one value.
    Data {
        /// The start.
        offset: usize,
        /// The length.
        length: usize,
        /// The value.
        byte: u8,
    },
    /// Writes zeroes.
    Zero {
        /// The start.
        offset: usize,
        /// The length.
        length: usize,
    },
    /// Discards a range. The disk is set up so that discarded ranges read as zero.
    Discard {
        /// The start.
        offset: usize,
        /// The length.
        length: usize,
    },
}

/// A temporary domain with one disk, `vda`. When it is dropped, the domain is destroyed and
/// undefined, and its disk removed.
pub struct Machine {
    name: String,
    domain: Domain,
    image: PathBuf,
    model: Vec<u8>,
}

impl Machine {
    /// Makes a disk of `size` bytes, defines a domain with it and starts it paused.
    pub fn start(embed: &Embed, name: &str, size: usize) -> Result<Machine> {
        let image = embed.folder().join(format!("{name}.qcow2"));
        make_image(&image, size as u64)?;
        let xml = domain_xml(name, &image);
        let define = |xml: &str| Domain::define_xml(embed.connection(), xml);
        let domain = define(&xml).map_err(Error::libvirt("define the temporary domain"))?;
        let machine = Machine {
            name: name.to_owned(),
            domain,
            image,
            model: vec![0; size],
        };
        machine
            .domain
            .create_with_flags(sys::VIR_DOMAIN_START_PAUSED)
            .map_err(Error::libvirt("start the temporary domain"))?;
        Ok(machine)
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk's image.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The expected content of the disk, byte by byte, after the writes so far.
    pub fn model(&self) -> &[u8] {
        &self.model
    }

    /// Performs a write of the simulated guest.
    pub fn write(&mut self, write: Write) -> Result<()> {
        let (command, range, byte) = match write {
            Write::Data { offset, length, byte } => (
                format!("write -P {byte} {offset} {length}"),
                offset..offset + length,
                byte,
            ),
            Write::Zero { offset, length } => {
                (format!("write -z {offset} {length}"), offset..offset + length, 0)
            }
            Write::Discard { offset, length } => {
                (format!("discard {offset} {length}"), offset..offset + length, 0)
            }
        };
        let monitor = format!("qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"{command}\"");
        let answer = self
            .domain
            .qemu_monitor_command(&monitor, sys::VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
            .map_err(Error::libvirt("write to the disk of the temporary domain"))?;
        if !answer.trim().is_empty() {
            return Err(Error::Guest { command, answer });
        }
        self.model[range].fill(byte);
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Errors do not matter here, because the folder with everything in it is removed next.
        let _ = self.domain.destroy();
        let _ = self
            .domain
            .undefine_flags(sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA);
        let _ = std::fs::remove_file(&self.image);
    }
}

/// Makes an empty image: the writer finishes without any block.
fn make_image(path: &Path, size: u64) -> Result<()> {
    let file = DiskStore.create_image(path).map_err(Error::io("create", path))?;
    let options = Qcow2Options {
        path: path.to_owned(),
        size,
        backing: None,
        detect_zeroes: true,
        stop: Stop::default(),
    };
    let mut image = Qcow2Writer::new(file, options).map_err(BlockError::from)?;
    image.finish()?;
    Ok(())
}

/// The definition of the domain, without network, guest system and devices that need configuration.
fn domain_xml(name: &str, image: &Path) -> String {
    let usable = Access::READ_OK | Access::WRITE_OK;
    let kind = if access("/dev/kvm", usable).is_ok() {
        "kvm"
    } else {
        "qemu"
    };
    let image = image
        .display()
        .to_string()
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('\'', "&apos;");
    format!(
        "<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <seclabel type='none'/>
</domain>"
    )
}
