//! Memory for a chunk on its way between a socket and a disk.
//!
//! Memory that is new costs more than what is done with it: the system clears each page when it is first touched. So buffers of whole
//! chunks are kept for the next one, a few of them. They begin at a page, which is what writing past the page cache asks for.

use crate::stream::CHUNK_LEN;
use bytes::Bytes;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Where a buffer for direct reading and writing must begin, in memory, and what its length must be a multiple of.
pub(crate) const ALIGNMENT: usize = 4096;
/// Shorter content gets memory of its own length, which nobody keeps.
const SMALL_BYTES: usize = 64 << 10;
/// The sizes of the buffers that are kept while nobody uses them: pieces of chunks, and whole chunks.
const KEPT_BYTES: [usize; 2] = [PIECE_BYTES, CHUNK_LEN];
/// How many of each are kept: 16 and 32 MiB.
const NUM_SPARE: [usize; 2] = [32, 4];

/// How much of a chunk on its way is written and hashed at a time.
pub const PIECE_BYTES: usize = 512 << 10;

static SPARE: [Mutex<Vec<Vec<u8>>>; 2] = [const { Mutex::new(vec![]) }; 2];

/// Room for the content of one blob, filled from the front. Becomes [`Bytes`] without being copied.
pub struct ChunkBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    limit: usize,
}

impl fmt::Debug for ChunkBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkBuffer").field("len", &self.len).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl ChunkBuffer {
    /// Room for `limit` bytes, of which there are none yet.
    ///
    /// # Panics
    /// Where `limit` is more than [`CHUNK_BYTES`](tapestry_core::CHUNK_BYTES).
    #[must_use]
    pub fn new(limit: usize) -> Self {
        assert!(limit <= CHUNK_LEN, "a blob has at most {CHUNK_LEN} bytes");
        let class = KEPT_BYTES.iter().position(|size| limit <= *size).filter(|_| limit > SMALL_BYTES);
        let kept = class.and_then(|class| SPARE[class].lock().unwrap_or_else(PoisonError::into_inner).pop());
        let room = class.map_or(limit.next_multiple_of(ALIGNMENT), |class| KEPT_BYTES[class]);
        let memory = kept.unwrap_or_else(|| vec![0; room + ALIGNMENT]);
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len: 0, limit }
    }

    /// Adds as much of `content` as there is room for, and says how much that is.
    pub fn fill_from(&mut self, content: &[u8]) -> usize {
        let len = content.len().min(self.limit - self.len);
        let at = self.start + self.len;
        self.memory[at..at + len].copy_from_slice(&content[..len]);
        self.len += len;
        len
    }

    /// Whether there is no room left.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.len == self.limit
    }

    /// The content.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// Bytes of content.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no content.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the content out as bytes; the memory is kept for the next chunk when the last of them is dropped.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The content and what follows it up to a multiple of [`ALIGNMENT`], for direct writing.
    pub(crate) fn padded(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len.next_multiple_of(ALIGNMENT)]
    }

    /// All of the room up to a multiple of [`ALIGNMENT`], for direct reading; say with [`Self::filled`] how much was read.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.limit.next_multiple_of(ALIGNMENT)]
    }

    /// All of the room, which becomes content: overwrite it from end to end, or it holds what was there before.
    pub fn room_for_all(&mut self) -> &mut [u8] {
        self.len = self.limit;
        &mut self.memory[self.start..self.start + self.len]
    }

    /// The first `len` bytes of the room are content now.
    pub(crate) fn filled(&mut self, len: usize) {
        self.len = len.min(self.limit);
    }
}

impl AsRef<[u8]> for ChunkBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for ChunkBuffer {
    fn drop(&mut self) {
        let Some(class) = KEPT_BYTES.iter().position(|size| self.memory.len() == size + ALIGNMENT) else { return };
        let mut spare = SPARE[class].lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < NUM_SPARE[class] {
            spare.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_takes_what_fits_and_shows_nothing_of_what_was_in_it_before() {
        for limit in [0, 1, 5000, SMALL_BYTES + 1, PIECE_BYTES, PIECE_BYTES + 1, CHUNK_LEN] {
            let mut buffer = ChunkBuffer::new(limit);
            assert!(buffer.is_empty() && buffer.as_slice().as_ptr().align_offset(ALIGNMENT) == 0);
            assert_eq!(buffer.fill_from(&vec![7; limit + 1]), limit);
            assert!(buffer.is_full() && buffer.fill_from(&[8]) == 0);
            assert_eq!((buffer.len(), buffer.room().len() % ALIGNMENT), (limit, 0));
            assert!(buffer.into_bytes().iter().all(|byte| *byte == 7));
            assert!(ChunkBuffer::new(limit).as_slice().is_empty());
        }
    }
}
