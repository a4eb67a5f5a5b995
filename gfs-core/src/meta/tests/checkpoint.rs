//! Facts about the bytes of a checkpoint.

use super::*;
use crate::ids::Epoch;
use crate::meta::request::{Lock, LockFamily, LockMode, LockOwner, LockRange};
use crate::meta::state::DecodeError;
use std::convert::Infallible;

pub(super) fn bytes_of(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = state.encode_checkpoint(&mut |piece| {
        bytes.extend_from_slice(piece);
        Ok::<(), Infallible>(())
    });
    assert_eq!(written, Ok(()));
    bytes
}

pub(super) fn state_of(bytes: &[u8], piece: usize) -> Result<State, DecodeError<Infallible>> {
    let mut pieces = bytes.chunks(piece);
    State::decode_checkpoint(&mut || Ok(pieces.next().map(<[u8]>::to_vec)))
}

/// A state with something in every section.
fn full() -> Bench {
    let mut bench = Bench::new();
    let (session, other) = (bench.session(), bench.session());
    let (inode, _) = bench.file(session, "f", 3 * CHUNK);
    let (_, handles) = bench.file(other, "g", CHUNK);
    bench.run(session, resize(inode, CHUNK + 5));
    bench.reserve(other);
    let mut next = bench.state.chunk(handles[0]).unwrap().configuration;
    next.syncing = vec![ServerId(4)];
    next.members = vec![ServerId(2), ServerId(3)];
    bench.apply(Command::Reconfigure { handle: handles[0], expected: Epoch(1), next });
    bench.run(other, unlink("g"));
    let lock = Lock {
        family: LockFamily::Flock,
        owner: LockOwner { session: other, owner: 9 },
        pid: 4,
        mode: LockMode::Read,
        range: LockRange { start: 0, end: u64::MAX },
    };
    assert_eq!(bench.run(other, Request::SetLock { inode, lock }), Reply::Done);
    bench
}

#[test]
fn a_state_comes_back_equal_from_pieces_of_any_size() {
    let mut bench = full();
    let bytes = bytes_of(&bench.state);
    for piece in [1, 7, 4_096, bytes.len()] {
        let mut again = state_of(&bytes, piece).unwrap();
        assert_eq!(again.hash(), bench.state.hash());
        assert_eq!(again.counts(), bench.state.counts());
        assert_eq!(bytes_of(&again), bytes);
        for server in 1..=4 {
            let server = ServerId(server);
            assert_eq!(again.servers().replicas_on(server), bench.state.servers().replicas_on(server));
        }
        // What is derived works too: both go on alike.
        let ended = Command::EndSession { session: SessionId(2) };
        let mut original = bench.state.clone();
        assert_eq!(again.apply(Stamp::default(), &ended), original.apply(Stamp::default(), &ended));
        assert_eq!(again.hash(), original.hash());
    }
    let frozen = bench.state.clone();
    let session = bench.session();
    bench.file(session, "later", CHUNK);
    assert_eq!(bytes_of(&frozen), bytes);
    assert_ne!(bench.state.hash(), frozen.hash());
}

#[test]
fn the_head_has_the_bytes_it_always_had() {
    let state = State::format(ClusterId(0x0102), CHUNK, 3, 0o755, Timestamp(1));
    let bytes = bytes_of(&state);
    let mut expected = b"gfs-meta\x03".to_vec();
    expected.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Chunk size, replicas, generation, watermark, last server, last session.
    expected.extend_from_slice(&[0x80, 0x20, 3, 1, 1, 0, 0]);
    // Nine empty tables: tag, no entries, no more leaves.
    (0..9).for_each(|tag| expected.extend_from_slice(&[tag, 0, 0]));
    expected.push(9);
    assert_eq!(bytes[..expected.len()], expected);
}

#[test]
fn a_cut_stream_names_its_section() {
    let bytes = bytes_of(&full().state);
    for length in 0..bytes.len() {
        let error = state_of(&bytes[..length], 64).err().unwrap_or_else(|| panic!("{length} bytes were enough"));
        assert!(matches!(error, DecodeError::Corrupt { section, .. } if !section.is_empty()), "{error}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(state_of(&longer, 64).is_err());
}

#[test]
fn a_flipped_byte_never_panics_and_never_gives_a_state_that_writes_other_bytes() {
    let bytes = bytes_of(&full().state);
    let mut refused = 0;
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut broken = bytes.clone();
            broken[at] ^= flip;
            match state_of(&broken, 512) {
                Ok(state) => assert_eq!(bytes_of(&state), broken, "byte {at} ^ {flip:#x}"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > bytes.len());
}

#[test]
fn a_newer_version_and_a_foreign_file_are_told_apart() {
    let mut bytes = bytes_of(&full().state);
    bytes[8] = 9;
    assert_eq!(state_of(&bytes, 64).unwrap_err(), DecodeError::Version { found: 9 });
    bytes[0] = b'x';
    assert!(matches!(state_of(&bytes, 64).unwrap_err(), DecodeError::Corrupt { section: "head", .. }));
}
