//! Passes secrets to a QEMU program in memory, never on a disk or a command line.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

use super::super::Result;
use super::failed;

/// The secrets that a program needs to open an image, each in an anonymous file in memory.
///
/// The program opens the files through `/proc`, and they disappear with this process. Other
/// programs of the same user could open them too, but they could read this process's memory
/// anyway.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<Vec<(String, File)>>);

impl Keys {
    /// Stores secrets under the names that an image's description uses for them.
    pub fn hold(secrets: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Keys> {
        let mut held = Vec::new();
        for (name, secret) in secrets {
            let failed = |why: String| failed("vmsnap", "pass a secret to QEMU", why);
            let memory = memfd_create("vmsnap-key", MemfdFlags::CLOEXEC);
            let mut file = File::from(memory.map_err(|error| failed(error.to_string()))?);
            file.write_all(&secret)
                .map_err(|error| failed(error.to_string()))?;
            held.push((name, file));
        }
        Ok(Keys(Arc::new(held)))
    }

    /// Returns the arguments that define the secrets (`secret` in QEMU's `qapi/crypto.json`).
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
