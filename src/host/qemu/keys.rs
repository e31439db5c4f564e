//! Secrets on their way to a QEMU program: in memory only, never on a disk and never on a command line.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use super::super::Result;
use super::failed;

/// Secrets that a program needs to open an image, each in a file without a name that goes with this process.
///
/// A program that runs as the same user reads it by way of `/proc`; nobody who could not read our memory anyway can.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<Vec<(String, File)>>);

impl Keys {
    /// Holds secrets under the names by which an image's description asks for them.
    pub fn hold(secrets: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Keys> {
        let mut held = Vec::new();
        for (name, secret) in secrets {
            let failed = |why: String| failed("QEMU", "be given a secret", why);
            let memory = memfd_create("vmsnap-key", MemfdFlags::CLOEXEC);
            let mut file = File::from(memory.map_err(|error| failed(error.to_string()))?);
            file.write_all(&secret)
                .map_err(|error| failed(error.to_string()))?;
            held.push((name, file));
        }
        Ok(Keys(Arc::new(held)))
    }

    /// The arguments that make the secrets known to a program (`secret` in QEMU's `qapi/crypto.json`).
    pub fn arguments(&self) -> Vec<OsString> {
        let us = std::process::id();
        let object = |(name, file): &(String, File)| {
            let file = file.as_raw_fd();
            format!("secret,id={name},format=raw,file=/proc/{us}/fd/{file}")
        };
        let objects = self.0.iter().map(object);
        objects
            .flat_map(|object| [OsString::from("--object"), object.into()])
            .collect()
    }
}
