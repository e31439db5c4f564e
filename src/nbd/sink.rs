//! Writes blocks to an export, one request at a time.

use std::path::Path;

use super::client::Client;
use super::error::{Error, Result};
use crate::model::block::{Block, BlockError, BlockSink, Content, Written};
use crate::model::stop::WaitLimit;

/// An export that takes blocks. Ranges that are never written stay as they are.
#[derive(Debug)]
pub struct ExportSink {
    client: Client,
    /// The export's name, for messages.
    name: String,
    written: Written,
}

impl ExportSink {
    /// Connects to a unix socket and opens `export` for writing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the export is read-only; others as for [`Client::connect_unix`].
    pub fn open(path: &Path, export: &str, limit: &WaitLimit) -> Result<ExportSink> {
        let client = Client::connect_unix(path, export, &[], limit)?;
        if client.read_only() {
            let what = format!("export '{export}' is read-only");
            return Err(Error::Unsupported { what });
        }
        let written = Written {
            file_bytes: client.size(),
            ..Written::default()
        };
        let name = export.to_owned();
        Ok(ExportSink {
            client,
            name,
            written,
        })
    }

    fn error(&self, error: Error) -> BlockError {
        error.into_block_error(format!("cannot write to export '{}'", self.name))
    }
}

impl BlockSink for ExportSink {
    fn write(&mut self, block: Block) -> std::result::Result<(), BlockError> {
        let length = block.length();
        match &block.content {
            Content::Data(bytes) => {
                let written = self.client.write(block.offset, bytes);
                written.map_err(|error| self.error(error))?;
                self.written.data_bytes += length;
            }
            Content::Zero(_) => {
                let written = self.client.write_zeroes(block.offset, length);
                written.map_err(|error| self.error(error))?;
                self.written.zero_bytes += length;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> std::result::Result<Written, BlockError> {
        let flushed = self.client.flush();
        flushed.map_err(|error| self.error(error))?;
        Ok(self.written.clone())
    }
}
