//! Helpers of the NBD client's tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use vmsnap::model::block::{BlockError, BlockSource, CLUSTER, Content};
use vmsnap::model::buffer::BufferPool;
use vmsnap::model::stop::{Stop, WaitLimit};
use vmsnap::nbd::{ExportSource, Mode, SourceOptions};

/// Bytes in a cluster.
pub const C: usize = CLUSTER as usize;

/// The usual options, with eight buffers of 256 KiB.
pub fn options(mode: Mode) -> SourceOptions {
    SourceOptions::new(
        mode,
        BufferPool::new(8, 256 << 10),
        Duration::from_secs(30),
        Stop::default(),
    )
}

/// Long enough for a busy machine.
pub fn limit() -> WaitLimit {
    WaitLimit {
        deadline: Duration::from_secs(30),
        stop: Stop::default(),
    }
}

/// Reads only the clusters that a bitmap marks.
pub fn changes(bitmap: &str) -> Mode {
    Mode::Changes {
        bitmap_context: format!("qemu:dirty-bitmap:{bitmap}"),
    }
}

/// The result of reading an export: its bytes (0 where none came), and the numbers of the clusters
/// that came as data and as zero.
pub struct Got {
    pub bytes: Vec<u8>,
    pub data: BTreeSet<usize>,
    pub zero: BTreeSet<usize>,
}

impl Got {
    pub fn all(&self) -> BTreeSet<usize> {
        self.data.union(&self.zero).copied().collect()
    }
}

/// Reads a source to its end and checks the order and length of its blocks.
pub fn drain(source: &mut ExportSource) -> Result<Got, BlockError> {
    let size = source.size() as usize;
    let mut got = Got {
        bytes: vec![0; size],
        data: BTreeSet::new(),
        zero: BTreeSet::new(),
    };
    let mut end = 0;
    while let Some(block) = source.next_block()? {
        let offset = block.offset as usize;
        assert!(
            offset >= end && offset.is_multiple_of(C),
            "blocks come in order, on clusters"
        );
        end = offset + block.length() as usize;
        assert!(end.is_multiple_of(C) || end == size, "blocks are whole clusters");
        let clusters = offset / C..end.div_ceil(C);
        match block.content {
            Content::Data(buffer) => {
                got.bytes[offset..end].copy_from_slice(&buffer);
                got.data.extend(clusters);
            }
            Content::Zero(_) => got.zero.extend(clusters),
        }
    }
    Ok(got)
}

/// Reads an export to its end; a failure fails the test.
pub fn read(socket: &Path, options: SourceOptions) -> Got {
    let mut source = ExportSource::open(socket, "", options).expect("an export");
    drain(&mut source).expect("a read")
}
