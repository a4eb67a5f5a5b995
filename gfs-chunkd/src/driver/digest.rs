//! SHA-256 over a replica's bytes where they lie, so that a file is hashed, and copies are compared, without moving it.
//!
//! The hash of a file goes from chunk to chunk: each answer carries where it stands, and the next chunk goes on from there.

use super::wire;
use crate::store::{Store, StoreError};
use bytes::Bytes;
use gfs_core::ids::ChunkHandle;
use gfs_core::replica::Status;
use gfs_proto::v1;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;

/// Goes on with a hash over `[offset, offset + length)`, if `held` only as far as the replica goes. `Busy` when the replica changed
/// meanwhile: then nobody can say of what it is.
pub fn run(
    store: &Store,
    handle: ChunkHandle,
    (offset, length, held): (u64, u64, bool),
    state: &[u8],
) -> Result<v1::DataReply, StoreError> {
    let Some(mut hash) = restore(state) else { return Ok(wire::reply(Status::Malformed)) };
    let before = store.state(handle)?;
    let (mut at, mut end) = (offset, offset.saturating_add(length));
    if held {
        end = end.min(before.length);
    }
    while at < end {
        let piece = store.read(handle, at, (end - at).min(PIECE))?;
        if piece.data.is_empty() {
            return Ok(wire::reply(Status::Malformed));
        }
        hash.update(&piece.data);
        at += piece.data.len() as u64;
    }
    let after = store.state(handle)?;
    if after.committed != before.committed {
        return Ok(wire::reply(Status::Busy));
    }
    Ok(v1::DataReply {
        digest: Bytes::copy_from_slice(&hash.serialize()),
        sequence: before.committed.0,
        length: after.length,
        ..wire::reply(Status::Ok)
    })
}

fn restore(state: &[u8]) -> Option<Sha256> {
    if state.is_empty() {
        return Some(Sha256::new());
    }
    Sha256::deserialize(&SerializedState::<Sha256>::try_from(state).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{create, open, put};

    #[test]
    fn a_hash_goes_on_where_it_stood_and_garbage_is_no_state() {
        let mut half = restore(&[]).unwrap();
        half.update(b"first ");
        let mut rest = restore(&half.serialize()).unwrap();
        rest.update(b"second");
        assert_eq!(rest.finalize(), Sha256::digest(b"first second"));
        assert!(restore(b"short").is_none());
    }

    #[test]
    fn zeros_behind_a_replica_are_hashed_when_a_file_has_them_and_not_when_copies_are_compared() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let chunk = create(&store, 1);
        put(&store, chunk, 0, b"held");
        let hashed = |held| {
            let reply = run(&store, chunk, (0, 4096, held), &[]).unwrap();
            restore(&reply.digest).unwrap().finalize()
        };
        assert_eq!(hashed(true), Sha256::digest(b"held"));
        assert_eq!(hashed(false), Sha256::digest([b"held".as_slice(), &[0; 4092]].concat()));
    }
}
