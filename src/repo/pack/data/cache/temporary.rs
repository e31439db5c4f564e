//! The file of a private cache. It ends with the process, so it is never synced.

use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;

use redb::StorageBackend;

/// A temporary file.
#[derive(Debug)]
pub(super) struct Temporary(pub(super) File);

impl StorageBackend for Temporary {
    fn len(&self) -> Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.0.write_all_at(data, offset)
    }
}
