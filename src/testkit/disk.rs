//! A disk in memory, with dirty bitmaps that behave like QEMU's.

use std::collections::BTreeMap;

use crate::model::block::CLUSTER;

/// A disk in memory: its bytes, and for each bitmap the clusters written since the bitmap was made.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    bytes: Vec<u8>,
    bitmaps: BTreeMap<String, Vec<bool>>,
}

impl MemDisk {
    /// Creates a disk of `size` zero bytes.
    pub fn new(size: usize) -> Self {
        MemDisk {
            bytes: vec![0; size],
            bitmaps: BTreeMap::new(),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes as the guest does.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.mark(offset, bytes.len());
    }

    /// Writes zeroes as the guest does, or discards on a disk where that makes zeroes.
    pub fn zero(&mut self, offset: usize, length: usize) {
        self.bytes[offset..offset + length].fill(0);
        self.mark(offset, length);
    }

    /// Resizes the disk. New space is zero and dirty; removed space is removed from the bitmaps,
    /// too.
    pub fn resize(&mut self, size: usize) {
        let old = self.bytes.len();
        self.bytes.resize(size, 0);
        for bitmap in self.bitmaps.values_mut() {
            bitmap.resize(clusters(size), false);
        }
        if size > old {
            self.mark(old, size - old);
        }
    }

    /// Shrinks the disk to `size` and grows it again. The space after `size` is zero, and no bitmap
    /// records this.
    pub fn shrink_and_grow(&mut self, size: usize) {
        let before = self.bytes.len();
        self.bytes.truncate(size);
        self.bytes.resize(before, 0);
        for bitmap in self.bitmaps.values_mut() {
            bitmap[size.div_ceil(CLUSTER as usize)..].fill(false);
        }
    }

    /// Changes content without marking it, as if another image with bitmaps of the same names
    /// replaced this one.
    pub fn swap_content(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn mark(&mut self, offset: usize, length: usize) {
        if length == 0 {
            return;
        }
        let first = offset / CLUSTER as usize;
        let last = (offset + length - 1) / CLUSTER as usize;
        for bitmap in self.bitmaps.values_mut() {
            bitmap[first..=last].fill(true);
        }
    }

    /// Adds a bitmap; an existing one of this name is an error.
    pub fn add_bitmap(&mut self, name: &str) -> Result<(), String> {
        if self.bitmaps.contains_key(name) {
            return Err(name.to_owned());
        }
        self.bitmaps
            .insert(name.to_owned(), vec![false; clusters(self.bytes.len())]);
        Ok(())
    }

    /// Removes a bitmap, and returns whether it existed.
    pub fn remove_bitmap(&mut self, name: &str) -> bool {
        self.bitmaps.remove(name).is_some()
    }

    /// Renames a bitmap, if it exists.
    pub(crate) fn rename_bitmap(&mut self, from: &str, to: &str) {
        if let Some(bits) = self.bitmaps.remove(from) {
            self.bitmaps.insert(to.to_owned(), bits);
        }
    }

    /// The names of its bitmaps.
    pub fn bitmap_names(&self) -> Vec<String> {
        self.bitmaps.keys().cloned().collect()
    }

    /// For each cluster, whether it was written since a bitmap was made; `None` if there is no such
    /// bitmap.
    pub fn dirty(&self, name: &str) -> Option<&[bool]> {
        self.bitmaps.get(name).map(Vec::as_slice)
    }
}

fn clusters(size: usize) -> usize {
    size.div_ceil(CLUSTER as usize)
}
