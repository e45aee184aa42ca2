//! Weights read and written piece by piece: memory does not depend on the size of the model.

use crate::blocking::wait;
use crate::stream::{BlobWriter, CHUNK_LEN};
use crate::verified::VerifiedChunks;
use crate::{BlobStore, StoreError};
use bytes::{Bytes, BytesMut};
use std::sync::{Arc, Mutex, PoisonError};
use tapestry_core::{CHUNK_BYTES, Digest, Dtype, TensorSpec, WeightsManifest};
use tapestry_weights::{WeightSource, WeightsError, bytes_to_f32};

/// Chunks that a reader keeps: two, because a range or a tensor's rows often lie across a border.
const NUM_CACHED: usize = 2;

/// Bytes read at once on the way to values: whole elements of every type.
const PIECE_LEN: usize = 256 << 10;

/// Reads weights out of a blob store, from ordinary synchronous code. Keeps two chunks in memory.
///
/// Every chunk is checked against its digest when it is read.
#[derive(Debug)]
pub struct WeightsReader {
    store: BlobStore,
    manifest: Arc<WeightsManifest>,
    starts: Vec<u64>,
    cache: Mutex<Vec<(usize, Bytes)>>,
    verified: VerifiedChunks,
}

impl WeightsReader {
    /// A reader of the weights that `manifest` describes. Nothing is read yet.
    ///
    /// # Errors
    /// Where the manifest describes nothing possible.
    pub fn open(store: BlobStore, manifest: WeightsManifest) -> Result<Self, StoreError> {
        manifest.check()?;
        let starts = manifest.offsets().map(|(_, start)| start).collect();
        let verified = VerifiedChunks::new(manifest.data.chunks.len());
        Ok(Self { store, manifest: Arc::new(manifest), starts, cache: Mutex::new(vec![]), verified })
    }

    /// What is read.
    #[must_use]
    pub fn manifest(&self) -> &WeightsManifest {
        &self.manifest
    }

    /// Where tensor `index` starts in the data, in bytes.
    #[must_use]
    pub fn tensor_start(&self, index: usize) -> Option<u64> {
        self.starts.get(index).copied()
    }

    /// `len` bytes of the data from `start` on. A range within one chunk is not copied.
    ///
    /// # Errors
    /// Where the range ends beyond the data, or a chunk is missing or damaged.
    pub fn read_bytes(&self, start: u64, len: u64) -> Result<Bytes, StoreError> {
        let size_bytes = self.manifest.data.size_bytes;
        let end = start.checked_add(len).filter(|end| *end <= size_bytes);
        let end = end.ok_or(StoreError::Range { start, len, size_bytes })?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let (first, offset) = position(start);
        let (last, last_offset) = position(end - 1);
        if first == last {
            return Ok(self.chunk(first)?.slice(offset..=last_offset));
        }
        let mut content =
            BytesMut::with_capacity(usize::try_from(len).map_err(|_| StoreError::Range { start, len, size_bytes })?);
        for index in first..=last {
            let chunk = self.chunk(index)?;
            let from = if index == first { offset } else { 0 };
            let to = if index == last { last_offset + 1 } else { chunk.len() };
            content.extend_from_slice(&chunk[from..to]);
        }
        Ok(content.freeze())
    }

    /// Fills `buffer` with the bytes of a tensor from `start` on. Many threads at once, each in constant memory: a chunk that
    /// is a file is checked against its digest when this reader first touches it, and from then on read in place.
    ///
    /// # Errors
    /// As [`Self::read_bytes`].
    pub fn read_into(&self, tensor: usize, start: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let size_bytes = self.manifest.data.size_bytes;
        let len = buffer.len() as u64;
        let from = self.starts.get(tensor).and_then(|tensor_start| tensor_start.checked_add(start));
        let from = from.filter(|from| from.checked_add(len).is_some_and(|end| end <= size_bytes));
        let mut at = from.ok_or(StoreError::Range { start, len, size_bytes })?;
        let mut buffer = buffer;
        while !buffer.is_empty() {
            let (index, offset) = position(at);
            let (now, later) = buffer.split_at_mut(buffer.len().min(CHUNK_LEN - offset));
            let (digest, size) = (self.manifest.data.chunks[index], self.manifest.data.chunk_size(index));
            self.store.fetch_blocking(digest)?;
            if self.store.is_in_files() {
                self.verified.read(&self.store, index, digest, size, offset as u64, now)?;
            } else {
                now.copy_from_slice(&self.chunk(index)?[offset..offset + now.len()]);
            }
            at += now.len() as u64;
            buffer = later;
        }
        Ok(())
    }

    pub(crate) const fn store(&self) -> &BlobStore {
        &self.store
    }

    pub(crate) const fn verified(&self) -> &VerifiedChunks {
        &self.verified
    }

    pub(crate) fn chunk(&self, index: usize) -> Result<Bytes, StoreError> {
        // A panic elsewhere cannot leave the cache wrong: each entry is complete when it is pushed.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = cache.iter().position(|(cached, _)| *cached == index) {
            let entry = cache.remove(at);
            let content = entry.1.clone();
            cache.push(entry);
            return Ok(content);
        }
        if cache.len() == NUM_CACHED {
            cache.remove(0);
        }
        let (store, manifest) = (self.store.clone(), Arc::clone(&self.manifest));
        let content = wait(async move { store.chunk(&manifest.data, index).await })?;
        cache.push((index, content.clone()));
        Ok(content)
    }
}

impl WeightSource for WeightsReader {
    fn tensors(&self) -> &[TensorSpec] {
        &self.manifest.tensors
    }

    fn read_f32(&self, tensor: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError> {
        let spec = self.manifest.tensors.get(tensor);
        let spec = spec.ok_or_else(|| WeightsError::Missing { name: format!("number {tensor}") })?;
        let num_elements = spec.num_elements().unwrap_or(0);
        let range = || WeightsError::Range { name: spec.name.clone(), first, count, num_elements };
        let end = first.checked_add(count).filter(|end| *end <= num_elements).ok_or_else(range)?;
        let size = spec.dtype.size_bytes();
        let failed = |e: StoreError| WeightsError::Source(e.to_string());
        let count = usize::try_from(end - first).map_err(|_| range())?;
        if cfg!(target_endian = "little") && spec.dtype == Dtype::F32 {
            // Straight into place: these bytes are the values.
            let mut values = vec![0_f32; count];
            self.read_into(tensor, first * size, bytemuck::cast_slice_mut(&mut values)).map_err(failed)?;
            return Ok(values);
        }
        let mut values = Vec::with_capacity(count);
        // Piece by piece, so that a large tensor is in memory once and not twice.
        let mut piece = vec![0; PIECE_LEN];
        let mut at = first;
        while at < end {
            let stop = end.min(at + PIECE_LEN as u64 / size);
            let len = usize::try_from((stop - at) * size).map_err(|_| range())?;
            self.read_into(tensor, at * size, &mut piece[..len]).map_err(failed)?;
            values.extend(bytes_to_f32(spec.dtype, &piece[..len]));
            at = stop;
        }
        Ok(values)
    }
}

/// A part of one tensor: whole elements, at most [`CHUNK_BYTES`], within one chunk or reaching over one border.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's place in the manifest.
    pub tensor: usize,
    /// Where the piece starts in the data, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// All of the data in order, cut into pieces that arithmetic can work on one at a time.
///
/// Cuts are made at the borders of chunks where these are borders of elements too; a tensor of 4-byte elements behind one
/// of 2-byte elements may lie across. The manifest has passed its `check`.
pub fn pieces(manifest: &WeightsManifest) -> impl Iterator<Item = Piece> {
    manifest.offsets().enumerate().flat_map(|(tensor, (spec, start))| {
        let end = start.saturating_add(spec.size_bytes().unwrap_or(0));
        let size = spec.dtype.size_bytes();
        let mut at = start;
        std::iter::from_fn(move || {
            let border = (at / CHUNK_BYTES + 1) * CHUNK_BYTES;
            let whole = border + (size - (border - start) % size) % size;
            let piece = Piece { tensor, start: at, len: whole.min(end) - at };
            at += piece.len;
            (piece.len > 0).then_some(piece)
        })
    })
}

/// Chunk and place in it of a byte of the data.
fn position(at: u64) -> (usize, usize) {
    let chunk = usize::try_from(at / CHUNK_BYTES).expect("a checked manifest lists every chunk in memory");
    let offset = usize::try_from(at % CHUNK_BYTES).expect("a remainder of 8 MiB fits");
    debug_assert!(offset < CHUNK_LEN);
    (chunk, offset)
}

/// Writes weights into a blob store, from ordinary synchronous code: the tensors' bytes in order, in pieces of any size.
///
/// Chunks are durable as they fill. A writer that is dropped before [`Self::finish`] leaves whole chunks behind, which
/// cost space and nothing else.
#[derive(Debug)]
pub struct WeightsWriter {
    store: BlobStore,
    tensors: Vec<TensorSpec>,
    expected: u64,
    writer: BlobWriter,
}

impl WeightsWriter {
    /// A writer of the tensors `tensors`, which are sorted by name.
    ///
    /// # Errors
    /// Where they are not sorted, or one of them is not possible.
    pub fn new(store: BlobStore, tensors: Vec<TensorSpec>) -> Result<Self, StoreError> {
        let expected = tensors.iter().filter_map(TensorSpec::size_bytes).fold(0u64, u64::saturating_add);
        check_tensors(&tensors, expected)?;
        Ok(Self { writer: BlobWriter::new(store.clone()), store, tensors, expected })
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// Where they are more than the tensors have, or the store fails.
    pub fn write(&mut self, content: &[u8]) -> Result<(), StoreError> {
        let found = self.writer.size_bytes().saturating_add(content.len() as u64);
        if found > self.expected {
            return Err(StoreError::WrittenSize { expected: self.expected, found });
        }
        self.writer.write(content)
    }

    /// Stores the manifest too, as canonical JSON, and gives its digest.
    ///
    /// # Errors
    /// Where bytes are missing, or the store fails.
    pub fn finish(self) -> Result<(Digest, WeightsManifest), StoreError> {
        let found = self.writer.size_bytes();
        if found != self.expected {
            return Err(StoreError::WrittenSize { expected: self.expected, found });
        }
        let manifest = WeightsManifest { tensors: self.tensors, data: self.writer.finish()? };
        let (store, stored) = (self.store, manifest.clone());
        let digest = wait(async move { store.put_json(&stored).await })?;
        Ok((digest, manifest))
    }
}

/// Checks a list of tensors before there is any content.
pub(crate) fn check_tensors(tensors: &[TensorSpec], size_bytes: u64) -> Result<(), StoreError> {
    let num_chunks = usize::try_from(size_bytes.div_ceil(CHUNK_BYTES)).unwrap_or(usize::MAX);
    // 2^21 chunks are 16 TiB: more tensors than fit there have overflowed.
    let num_chunks = num_chunks.min(1 << 21);
    let chunks = vec![Digest::of(b""); num_chunks];
    let possible = WeightsManifest { tensors: tensors.to_vec(), data: tapestry_core::Blob { size_bytes, chunks } };
    Ok(possible.check()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapestry_core::Dtype;

    #[test]
    fn a_reader_keeps_two_chunks_however_much_is_read() {
        let shape = vec![5 * CHUNK_BYTES / 4];
        let tensors = vec![TensorSpec { name: "a".into(), dtype: Dtype::F32, shape }];
        let mut writer = WeightsWriter::new(BlobStore::in_memory(), tensors).expect("possible");
        let store = writer.store.clone();
        (0..5u8).for_each(|fill| writer.write(&vec![fill; CHUNK_LEN]).expect("room"));
        let (_, manifest) = writer.finish().expect("complete");
        let reader = WeightsReader::open(store, manifest).expect("possible");
        for index in [0, 1, 2, 3, 4, 3, 0] {
            let found = reader.read_bytes(index * CHUNK_BYTES, 1).expect("there");
            assert_eq!(u64::from(found[0]), index);
            let cached =
                reader.cache.lock().expect("no panic").iter().map(|(index, _)| *index as u64).collect::<Vec<_>>();
            assert!(cached.len() <= NUM_CACHED && cached.last() == Some(&index), "{cached:?}");
        }
    }
}
