//! Checks the order of the blocks that a sink takes.

use super::{Error, Result};
use crate::model::block::CLUSTER;

/// Checks that blocks come in the disk's order, do not overlap, and fit the disk.
#[derive(Debug)]
pub(crate) struct Order {
    size: u64,
    position: u64,
}

impl Order {
    /// Starts before the first block of a disk of `size` bytes.
    pub(crate) fn new(size: u64) -> Self {
        Order { size, position: 0 }
    }

    /// The first byte after the last block.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Checks a block and moves past it.
    pub(crate) fn accept(&mut self, offset: u64, length: u64) -> Result<()> {
        let refuse = |why| Err(Error::Block { offset, length, why });
        let Some(end) = offset.checked_add(length).filter(|&end| end <= self.size) else {
            return refuse("it extends past the end of the disk");
        };
        if offset < self.position {
            return refuse("it starts before the end of the previous block");
        }
        if !offset.is_multiple_of(CLUSTER) {
            return refuse("it does not start at a cluster boundary");
        }
        if end != self.size && !length.is_multiple_of(CLUSTER) {
            return refuse("it does not end at a cluster boundary");
        }
        self.position = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_out_of_place_are_refused() {
        let mut order = Order::new(3 * CLUSTER + 512);
        order
            .accept(CLUSTER, CLUSTER)
            .expect("the first one may leave a gap");
        for (offset, length) in [
            (0, CLUSTER),
            (CLUSTER, CLUSTER),
            (2 * CLUSTER + 512, CLUSTER),
            (2 * CLUSTER, 512),
            (2 * CLUSTER, 2 * CLUSTER),
            (u64::MAX - CLUSTER + 1, CLUSTER),
        ] {
            assert!(
                matches!(order.accept(offset, length), Err(Error::Block { .. })),
                "{length} bytes at {offset}"
            );
        }
        order
            .accept(3 * CLUSTER, 512)
            .expect("the last cluster may be short");
        assert_eq!(order.position(), 3 * CLUSTER + 512);
    }
}
