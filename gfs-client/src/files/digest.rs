//! SHA-256 of a file, computed by the chunk servers: the hash goes from chunk to chunk, the bytes stay where they are.

use super::OpenFile;
use super::split::spans;
use crate::data::{DataFailure, Piece};
use crate::error::ClientError;
use crate::limit::CallContext;
use bytes::Bytes;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};

/// Bytes hashed with one question.
const PIECE: u64 = 16 << 20;
/// Zeros hashed at a time where nothing is stored.
const ZEROS: usize = 64 << 10;
/// Tries at a file that changes.
const TRIES: u32 = 5;

impl OpenFile {
    /// SHA-256 of the whole file. `progress` is told how many bytes were done.
    ///
    /// # Errors
    /// `Changing` when the file is written again and again meanwhile; as `read`.
    pub async fn sha256(
        &self,
        context: impl Fn() -> CallContext,
        mut progress: impl FnMut(u64),
    ) -> Result<[u8; 32], ClientError> {
        self.client().settle(self.inner.inode, &context()).await?;
        for _ in 0..TRIES {
            let before = self.fresh_view(&context(), 0, 0).await?.attributes;
            let hash = self.hash(&context, before.size, &mut progress).await?;
            let after = self.fresh_view(&context(), 0, 0).await?.attributes;
            if let Some(hash) = hash
                && (before.size, before.mtime, before.ctime) == (after.size, after.mtime, after.ctime)
            {
                return Ok(hash.finalize().into());
            }
        }
        Err(ClientError::Changing { inode: self.inode() })
    }

    /// `None` when the layout has changed meanwhile.
    async fn hash(
        &self,
        context: &impl Fn() -> CallContext,
        size: u64,
        progress: &mut impl FnMut(u64),
    ) -> Result<Option<Sha256>, ClientError> {
        let client = self.client();
        let chunk_size = client.inner.chunk_size;
        let mut hash = Sha256::new();
        for part in spans(0, size, chunk_size) {
            let view = self.fresh_view(&context(), part.index, part.index).await?;
            let Some(handle) = view.chunks.get(&part.index).copied() else {
                add_zeros(&mut hash, part.length);
                progress(part.length);
                continue;
            };
            let mut done = 0;
            while done < part.length {
                let length = (part.length - done).min(PIECE);
                let state = Bytes::copy_from_slice(&hash.serialize());
                let piece = Piece::new(self.inode(), handle);
                match client.inner.data.digest(piece, part.offset + done, length, state, &context().limit).await {
                    Ok(state) => hash = restore(&state)?,
                    Err(DataFailure::Gone | DataFailure::NoSpace) => return Ok(None),
                    Err(DataFailure::Client(error)) => return Err(error),
                }
                done += length;
                progress(length);
            }
        }
        Ok(Some(hash))
    }
}

fn add_zeros(hash: &mut Sha256, mut length: u64) {
    let zeros = [0; ZEROS];
    while length > 0 {
        let now = length.min(ZEROS as u64);
        hash.update(&zeros[..now as usize]);
        length -= now;
    }
}

/// The hash that a chunk server has answered.
fn restore(state: &[u8]) -> Result<Sha256, ClientError> {
    let state = SerializedState::<Sha256>::try_from(state).map_err(|_| ClientError::malformed("state of a hash"))?;
    Sha256::deserialize(&state).map_err(|_| ClientError::malformed("state of a hash"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_any_length_are_hashed_as_if_they_were_there() {
        for length in [0, 1, ZEROS - 1, ZEROS, 3 * ZEROS + 5] {
            let mut hash = Sha256::new();
            add_zeros(&mut hash, length as u64);
            assert_eq!(hash.finalize(), Sha256::digest(vec![0; length]));
        }
    }

    #[test]
    fn an_answer_that_is_no_hash_is_an_error() {
        assert!(restore(b"").is_err());
        assert!(restore(&Sha256::new().serialize()).is_ok());
    }
}
