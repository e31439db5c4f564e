//! Decompresses clusters of images. Invalid input of any kind is an error.

use std::fmt;

use zstd::bulk;
use zstd::zstd_safe::{find_frame_compressed_size, get_error_name};

use super::layout::{CompressedCluster, Fault};
use crate::image::Result;

/// Decompresses clusters one at a time. It keeps the last one that was read in part, because small
/// reads often ask for the same cluster again.
///
/// Memory: a cluster, its compressed form (at most two clusters), and the tables of zstd. A frame
/// is decompressed in one call, so the window size that it claims takes no memory.
#[derive(Default)]
pub struct Decompressor {
    zstd: Option<bulk::Decompressor<'static>>,
    stored: Vec<u8>,
    bytes: Vec<u8>,
    /// Which cluster `bytes` is: the image's number and the offset in its file.
    held: Option<(usize, u64)>,
}

/// Which cluster to read, and which part of it.
#[derive(Clone, Copy, Debug)]
pub struct ClusterPart {
    /// The number of the image among those that use the decompressor.
    pub image: usize,
    /// The cluster size of that image, in bytes.
    pub size: u64,
    /// Where the cluster is stored.
    pub cluster: CompressedCluster,
    /// Where the part begins in the decompressed cluster, in bytes.
    pub within: u64,
}

impl Decompressor {
    /// Whether the decompressed bytes of this cluster are kept.
    pub fn holds(&self, part: &ClusterPart) -> bool {
        self.held == Some((part.image, part.cluster.start))
    }

    /// Fills `out` with bytes of a cluster; `fetch` reads the stored bytes from the file. The part
    /// must end within the cluster.
    ///
    /// # Errors
    /// The errors of `fetch`, and the error that `fault` makes if the stored bytes are invalid.
    pub fn read(
        &mut self,
        out: &mut [u8],
        part: &ClusterPart,
        fetch: impl FnOnce(&mut Vec<u8>) -> Result<()>,
        fault: impl FnOnce(Fault) -> crate::image::Error,
    ) -> Result<()> {
        let size = usize::try_from(part.size).unwrap_or(usize::MAX);
        if !self.holds(part) {
            self.stored.clear();
            fetch(&mut self.stored)?;
            if part.within == 0 && out.len() == size {
                return decompress(&mut self.zstd, &self.stored, out).map_err(fault);
            }
            self.held = None;
            self.bytes.resize(size, 0);
            decompress(&mut self.zstd, &self.stored, &mut self.bytes).map_err(fault)?;
            self.held = Some((part.image, part.cluster.start));
        }
        let start = usize::try_from(part.within).unwrap_or(usize::MAX);
        out.copy_from_slice(&self.bytes[start..start + out.len()]);
        Ok(())
    }
}

/// Decompresses the frame at the start of `stored` into all of `out`. Other bytes may follow the
/// frame, as in the last sector of a compressed cluster.
fn decompress(
    zstd: &mut Option<bulk::Decompressor<'static>>,
    stored: &[u8],
    out: &mut [u8],
) -> std::result::Result<(), Fault> {
    let damaged = |what: String| Fault::Decompression(what);
    let frame =
        find_frame_compressed_size(stored).map_err(|code| damaged(get_error_name(code).to_owned()))?;
    let frame = stored
        .get(..frame)
        .ok_or_else(|| damaged("its frame is cut off".to_owned()))?;
    let zstd = match zstd {
        Some(zstd) => zstd,
        empty => {
            let new = bulk::Decompressor::new().map_err(|error| damaged(error.to_string()))?;
            empty.insert(new)
        }
    };
    let expected = out.len();
    match zstd.decompress_to_buffer(frame, out) {
        Ok(length) if length == expected => Ok(()),
        Ok(length) => Err(damaged(format!(
            "it decompresses to {length} bytes instead of {expected}"
        ))),
        Err(error) => Err(damaged(error.to_string())),
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decompressor(holds {:?})", self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 65536;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 3).expect("it compresses")
    }

    fn decompressed(stored: &[u8]) -> std::result::Result<Vec<u8>, Fault> {
        let mut out = vec![0xee; SIZE];
        decompress(&mut None, stored, &mut out).map(|()| out)
    }

    #[test]
    fn bytes_after_the_frame_are_ignored() {
        let bytes: Vec<u8> = (0..SIZE).map(|n| (n / 100) as u8).collect();
        let mut stored = frame(&bytes);
        stored.extend([0xaa; 500]);
        assert_eq!(decompressed(&stored), Ok(bytes));
    }

    #[test]
    fn anything_but_one_whole_cluster_is_damage() {
        let sound = frame(&[7; SIZE]);
        let cases: [(&str, Vec<u8>); 6] = [
            ("nothing", Vec::new()),
            ("no frame", vec![0xff; 512]),
            ("truncated", sound[..sound.len() - 1].to_vec()),
            ("too short", frame(&[7; SIZE - 1])),
            ("too long", frame(&[7; SIZE + 1])),
            ("a bomb", frame(&vec![0; 64 << 20])),
        ];
        for (what, stored) in cases {
            let refused = decompressed(&stored);
            assert!(
                matches!(refused, Err(Fault::Decompression(_))),
                "{what}: {refused:?}"
            );
        }
    }

    #[test]
    fn a_frame_may_not_claim_a_large_window() {
        // A frame header without a content size whose window is 2 GiB; then one empty last block.
        let stored = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        assert!(decompressed(&stored).is_err());
    }

    #[test]
    fn a_cluster_is_read_from_the_file_once_for_several_parts() {
        let bytes: Vec<u8> = (0..SIZE).map(|n| (n / 77) as u8).collect();
        let stored = frame(&bytes);
        let mut decompressor = Decompressor::default();
        let mut fetched = 0;
        for within in [0, 100, 40_000] {
            let part = ClusterPart {
                image: 0,
                size: SIZE as u64,
                cluster: CompressedCluster::new(65536, stored.len() as u64),
                within,
            };
            let mut out = [0; 1000];
            let fetch = |into: &mut Vec<u8>| {
                fetched += 1;
                into.extend(&stored);
                Ok(())
            };
            decompressor
                .read(&mut out, &part, fetch, |fault| panic!("{fault}"))
                .expect("it is sound");
            assert_eq!(out, bytes[within as usize..within as usize + 1000]);
        }
        assert_eq!(fetched, 1);
    }
}
