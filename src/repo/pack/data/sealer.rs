//! Seals blocks and records, and opens them: compression, encryption, and the check of each.

use std::io;

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use zstd::bulk::{Compressor, Decompressor};

use super::bytes::Bytes;
use super::id::BlockId;
use crate::model::compression::Compression;
use crate::repo::pack::description::Cipher;
use crate::repo::pack::keys::{DerivedKey, MasterKey, random};
use crate::repo::pack::objects::ObjectName;

/// The length of a nonce, in bytes.
const NONCE: usize = 24;

/// The length of the tag of a cipher, in bytes.
const TAG: usize = 16;

/// The length of the tag of a record that is not encrypted, in bytes.
const OPEN_TAG: usize = 32;

/// The kinds of a payload.
const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// What the associated data of a record begins with; the name of its object follows.
const RECORD: &str = "record ";

/// zstd's level for records.
const RECORD_LEVEL: i32 = 3;

/// The largest record, in plain bytes.
pub(super) const LARGEST_RECORD: usize = 64 << 20;

/// The largest number of bytes by which sealing makes a block or record longer.
pub(super) const OVERHEAD: usize = NONCE + TAG + OPEN_TAG + 8;

/// Gives nonces.
type Nonces = fn(&mut [u8]) -> io::Result<()>;

/// The keys of one repository for its blocks and records.
pub(super) struct Sealer {
    ids: DerivedKey,
    seals: DerivedKey,
    /// `None` if nothing is encrypted.
    cipher: Option<XChaCha20Poly1305>,
    nonces: Nonces,
}

/// A sealed block.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) bytes: Vec<u8>,
    pub(super) is_compressed: bool,
}

impl Sealer {
    pub(super) fn new(key: &MasterKey, cipher: Cipher) -> Sealer {
        Sealer::with_nonces(key, cipher, random)
    }

    /// Creates a sealer with given nonces, for tests of the format.
    pub(super) fn with_nonces(key: &MasterKey, cipher: Cipher, nonces: Nonces) -> Sealer {
        let cipher = match cipher {
            Cipher::XChaCha20Poly1305 => Some(XChaCha20Poly1305::new((&*key.encryption()).into())),
            Cipher::None => None,
        };
        Sealer {
            ids: key.block_ids(),
            seals: key.seals(),
            cipher,
            nonces,
        }
    }

    /// The id of a block with these plain bytes.
    pub(super) fn id(&self, bytes: &[u8]) -> BlockId {
        BlockId::new(*blake3::keyed_hash(&self.ids, bytes).as_bytes())
    }

    /// A short tag that only an owner of this repository's key can make for these bytes.
    pub(super) fn short_tag(&self, bytes: &[u8]) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new_keyed(&self.seals);
        hasher.update(b"cache ").update(bytes);
        let mut tag = [0; 8];
        hasher.finalize_xof().fill(&mut tag);
        tag
    }

    /// Seals the block with this id.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn seal_block(
        &self,
        id: &BlockId,
        bytes: &[u8],
        zstd: Option<&mut Compressor<'_>>,
    ) -> io::Result<Sealed> {
        self.seal_block_in(Vec::new(), id, bytes, zstd)
    }

    /// Seals the block with this id into a buffer, whose content is replaced.
    ///
    /// # Errors
    /// The errors of [`Sealer::seal_block`].
    pub(super) fn seal_block_in(
        &self,
        mut sealed: Vec<u8>,
        id: &BlockId,
        bytes: &[u8],
        zstd: Option<&mut Compressor<'_>>,
    ) -> io::Result<Sealed> {
        let start = self.start();
        let length = start + 1 + bytes.len();
        sealed.reserve((length + TAG).saturating_sub(sealed.len()));
        sealed.resize(length, 0);
        let packed = zstd.and_then(|zstd| compress(zstd, bytes, &mut sealed[start + 1..]));
        match packed {
            Some(length) => {
                sealed[start] = ZSTD;
                sealed.truncate(start + 1 + length);
            }
            None => {
                sealed[start] = RAW;
                sealed[start + 1..].copy_from_slice(bytes);
            }
        }
        self.encrypt(&mut sealed, id.bytes())?;
        Ok(Sealed {
            bytes: sealed,
            is_compressed: packed.is_some(),
        })
    }

    /// Opens the block with this id, which has `length` plain bytes.
    ///
    /// # Errors
    /// The reason why the bytes are not the sealed form of that block.
    pub(super) fn open_block(
        &self,
        id: &BlockId,
        mut sealed: Vec<u8>,
        length: usize,
    ) -> Result<Vec<u8>, &'static str> {
        let payload = self.decrypt(&mut sealed, id.bytes())?;
        let (kind, packed) = payload.split_first().ok_or("it is too short")?;
        let bytes = unpack(*kind, packed, length)?;
        match self.id(&bytes) == *id {
            true => Ok(bytes),
            false => Err("its bytes do not match its id"),
        }
    }

    /// Seals a record for the object with this name.
    ///
    /// # Errors
    /// The record has more than [`LARGEST_RECORD`] bytes, or the system gives no random numbers.
    pub(super) fn seal_record(&self, name: &ObjectName, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(bytes.len()).ok();
        let length = length.filter(|length| *length as usize <= LARGEST_RECORD);
        let length = length.ok_or_else(|| {
            let bytes = bytes.len();
            io::Error::other(format!(
                "{name} would have {bytes} bytes, but at most {LARGEST_RECORD} are allowed"
            ))
        })?;
        let start = self.start_of_record();
        let mut sealed = vec![0; start + 5 + bytes.len()];
        let mut zstd = Compressor::new(RECORD_LEVEL)?;
        match compress(&mut zstd, bytes, &mut sealed[start + 5..]) {
            Some(packed) => {
                sealed[start] = ZSTD;
                sealed.truncate(start + 5 + packed);
            }
            None => {
                sealed[start] = RAW;
                sealed[start + 5..].copy_from_slice(bytes);
            }
        }
        sealed[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
        let context = record_context(name);
        match self.cipher {
            Some(_) => self.encrypt(&mut sealed, context.as_bytes())?,
            None => {
                let tag = self.open_tag(&context, &sealed[start..]);
                sealed[..start].copy_from_slice(&tag);
            }
        }
        Ok(sealed)
    }

    /// Opens the record in the object with this name, of at most `most` plain bytes.
    ///
    /// # Errors
    /// The reason why the bytes are not a record of that object.
    pub(super) fn open_record(
        &self,
        name: &ObjectName,
        mut sealed: Vec<u8>,
        most: usize,
    ) -> Result<Vec<u8>, &'static str> {
        let context = record_context(name);
        let payload = match self.cipher {
            Some(_) => self.decrypt(&mut sealed, context.as_bytes())?,
            None => {
                let (tag, payload) = sealed.split_first_chunk::<OPEN_TAG>().ok_or("it is too short")?;
                if *tag != self.open_tag(&context, payload) {
                    return Err("its content does not match its tag");
                }
                payload
            }
        };
        let mut head = Bytes::new(payload);
        let head = head.u8().zip(head.u32());
        let (kind, length) = head.ok_or("it is too short")?;
        match length as usize <= most {
            true => unpack(kind, &payload[5..], length as usize),
            false => Err("it is too large"),
        }
    }

    /// Opens an unencrypted payload as if its tag were right, for the fuzz targets.
    pub(super) fn open_forged_record(&self, name: &ObjectName, payload: &[u8], most: usize) {
        let tag = self.open_tag(&record_context(name), payload);
        let record = self.open_record(name, [&tag[..], payload].concat(), most);
        assert!(record.map_or(0, |record| record.len()) <= most);
    }

    /// The number of bytes before the payload of a block.
    fn start(&self) -> usize {
        if self.cipher.is_some() { NONCE } else { 0 }
    }

    /// The number of bytes before the payload of a record.
    fn start_of_record(&self) -> usize {
        if self.cipher.is_some() { NONCE } else { OPEN_TAG }
    }

    fn open_tag(&self, context: &str, payload: &[u8]) -> [u8; OPEN_TAG] {
        let mut hasher = blake3::Hasher::new_keyed(&self.seals);
        hasher.update(context.as_bytes()).update(&[0]).update(payload);
        *hasher.finalize().as_bytes()
    }

    /// Encrypts the bytes after the place of the nonce, and appends the tag.
    fn encrypt(&self, sealed: &mut Vec<u8>, context: &[u8]) -> io::Result<()> {
        let Some(cipher) = &self.cipher else {
            return Ok(());
        };
        let (nonce, payload) = sealed.split_at_mut(NONCE);
        (self.nonces)(nonce)?;
        let tag = cipher.encrypt_in_place_detached(XNonce::from_slice(nonce), context, payload);
        let tag = tag.map_err(|_| io::Error::other("a block is too large to be encrypted"))?;
        sealed.extend_from_slice(&tag);
        Ok(())
    }

    /// Decrypts in place, and returns the payload.
    fn decrypt<'a>(&self, sealed: &'a mut [u8], context: &[u8]) -> Result<&'a [u8], &'static str> {
        let Some(cipher) = &self.cipher else {
            return Ok(sealed);
        };
        if sealed.len() < NONCE + TAG {
            return Err("it is too short");
        }
        let (nonce, rest) = sealed.split_at_mut(NONCE);
        let (payload, tag) = rest.split_at_mut(rest.len() - TAG);
        let nonce = XNonce::from_slice(nonce);
        let opened = cipher.decrypt_in_place_detached(nonce, context, payload, Tag::from_slice(tag));
        opened.map_err(|_| "it was changed, or sealed for another place or with another key")?;
        Ok(payload)
    }
}

fn record_context(name: &ObjectName) -> String {
    format!("{RECORD}{name}")
}

/// The compressor of a level; `None` if nothing is to be compressed.
///
/// # Errors
/// There is not enough memory.
pub(super) fn compressor(compression: Compression) -> io::Result<Option<Compressor<'static>>> {
    match compression {
        Compression::None => Ok(None),
        Compression::Zstd(level) => Compressor::new(level.number()).map(Some),
    }
}

/// Compresses into `out`. `None` if the result is not shorter.
fn compress(zstd: &mut Compressor<'_>, bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let room = bytes.len().checked_sub(1)?;
    // The only error of a compressor is that the result does not fit.
    let length = zstd.compress_to_buffer(bytes, &mut out[..room]).ok();
    length.filter(|length| *length > 0)
}

/// The plain bytes of a payload: exactly `length`.
fn unpack(kind: u8, packed: &[u8], length: usize) -> Result<Vec<u8>, &'static str> {
    const LENGTH: &str = "it does not have the recorded length";
    match kind {
        RAW if packed.len() == length => Ok(packed.to_vec()),
        RAW => Err(LENGTH),
        ZSTD => {
            let mut bytes = vec![0; length];
            let zstd = Decompressor::new();
            let done = zstd.and_then(|mut zstd| zstd.decompress_to_buffer(packed, &mut bytes[..]));
            match done {
                Ok(done) if done == length => Ok(bytes),
                Ok(_) => Err(LENGTH),
                Err(_) => Err("it cannot be decompressed"),
            }
        }
        _ => Err("its kind is unknown"),
    }
}
