//! Bytes of a checkpoint, hashes, freezing.

use super::*;
use crate::arena::codec::{DecodeError, PieceReader};
use crate::meta::request::SetTime;
use proptest::prelude::*;

pub fn bytes_of(space: &Namespace) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written: Result<(), DecodeError> = space.encode(&mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    assert_eq!(written, Ok(()));
    bytes
}

pub fn reread(bytes: &[u8], piece: usize) -> Result<Namespace, DecodeError> {
    let mut pieces = bytes.chunks(piece);
    let mut source = || Ok(pieces.next().map(<[u8]>::to_vec));
    let mut reader = PieceReader::new(&mut source);
    let space = Namespace::decode(&mut reader)?;
    if reader.at_end()? { Ok(space) } else { Err(DecodeError::Malformed("rest")) }
}

/// Some of everything.
fn varied() -> World {
    let mut world = World::new();
    let directory = world.directory(ROOT, "d");
    for number in 0..300 {
        let file = world.file(directory, &format!("file {number}"));
        if number % 7 == 0 {
            world.set_xattr(&kernel(), file, "user.number", &[number as u8; 40]).expect("set");
        }
        if number % 11 == 0 {
            world.unlink(&kernel(), directory, &format!("file {number}")).expect("unlinked");
        }
        world.space.set_size(file, number * 1000).expect("sized");
    }
    world.make(&kernel(), ROOT, "l", &NodeKind::Symlink(b"d/file 1".to_vec()), 0).expect("made");
    world.make(&kernel(), ROOT, "n", &NodeKind::CharDevice(259), 0o600).expect("made");
    let early = AttributeChanges { mtime: Some(SetTime::At(Timestamp(i64::MIN))), ..Default::default() };
    world.change(&kernel(), directory, early).expect("changed");
    world.space.set_generation(Generation(2));
    world.file(ROOT, "second generation");
    world
}

#[test]
fn everything_comes_back_from_a_checkpoint_however_it_is_cut() {
    let world = varied();
    let bytes = bytes_of(&world.space);
    for piece in [1, 13, 4096, bytes.len()] {
        let again = reread(&bytes, piece).expect("its own bytes");
        assert_eq!(again.hash(), world.space.hash());
        assert_eq!(again.counts(), world.space.counts());
        assert_eq!(again.verify(9), []);
        let all =
            |space: &Namespace| (space.inodes(InodeId(0)).collect::<Vec<_>>(), space.entries().collect::<Vec<_>>());
        assert_eq!(all(&again), all(&world.space));
        assert_eq!(bytes_of(&again), bytes);
        let mut continued = World { space: again, clock: 1 };
        assert_eq!(continued.file(ROOT, "next").0, world.find(ROOT, "second generation").expect("there").0 + 1);
    }
}

#[test]
fn a_cut_checkpoint_and_a_newer_version_are_refused() {
    let bytes = bytes_of(&varied().space);
    for length in (0..bytes.len()).step_by(97) {
        assert!(reread(&bytes[..length], 64).is_err(), "cut to {length}");
    }
    let mut newer = bytes.clone();
    newer[4] = 2;
    assert_eq!(reread(&newer, 64).err(), Some(DecodeError::Version { what: "namespace", found: 2, known: 1 }));
    let mut alien = bytes;
    alien[0] = b'X';
    assert_eq!(reread(&alien, 64).err(), Some(DecodeError::Malformed("namespace magic")));
}

#[test]
fn the_head_and_an_empty_namespace_are_golden() {
    let bytes = bytes_of(&World::new().space);
    let mut golden = b"GFSN\x01\x34\x12".to_vec();
    golden.extend_from_slice(&[0; 14]);
    // Generation 0, next inode 2; a leaf of 23 bytes with one inode of 20 under (1, 0); three empty tables; no orphans.
    golden.extend_from_slice(&[0, 2, 1, 23, 1, 0, 20, 0, 0xff, 0x41, 3, 2, 0, 0]);
    golden.extend_from_slice(&[0; 11]);
    golden.extend_from_slice(&[1, 0, 0]);
    golden.extend_from_slice(&[0; 8]);
    assert_eq!(bytes, golden);
}

#[test]
fn a_frozen_copy_does_not_see_later_changes() {
    let mut world = varied();
    let frozen = world.space.clone();
    let (hash, bytes) = (frozen.hash(), bytes_of(&frozen));
    let directory = world.find(ROOT, "d").expect("there");
    for number in 0..300 {
        let name = format!("file {number}");
        if world.find(directory, &name).is_some() {
            world.unlink(&kernel(), directory, &name).expect("unlinked");
        }
        world.file(directory, &format!("new {number}"));
    }
    assert_ne!(world.space.hash(), hash);
    assert_eq!((frozen.hash(), bytes_of(&frozen)), (hash, bytes));
    assert_eq!(frozen.verify(9), []);
    world.consistent();
}

#[test]
fn the_hash_does_not_depend_on_the_way_there() {
    let make = |names: &[&str]| {
        let mut world = World::new();
        for name in names {
            let now = Timestamp(5);
            let args = CreateArgs {
                parent: ROOT,
                name: name.as_bytes(),
                kind: &NodeKind::Directory,
                mode: 0o755,
                umask: 0,
                exclusive: true,
            };
            world.space.create(&kernel(), args, now).expect("made");
        }
        world
    };
    let (mut left, mut right) = (make(&["a", "b"]), make(&["b", "a"]));
    assert_ne!(left.space.hash(), right.space.hash(), "the numbers differ");
    left.clock = 10;
    right.clock = 10;
    left.rename(&kernel(), (ROOT, "a"), (ROOT, "b"), RenameMode::Exchange).expect("swapped");
    right.rename(&kernel(), (ROOT, "a"), (ROOT, "a"), RenameMode::Replace).expect("nothing");
    right.change(&kernel(), ROOT, AttributeChanges { mode: Some(0o777), ..Default::default() }).expect("changed");
    assert_ne!(left.space.hash(), right.space.hash(), "the times differ");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_damaged_checkpoint_never_panics(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = bytes_of(&varied().space);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(space) = reread(&bytes, 512) {
            // Reading it in all ways is safe, too; `verify` may have much to say.
            space.verify(10);
            space.hash();
            for inode in space.inodes(InodeId(0)) {
                let _ = space.read_directory(&kernel(), inode.inode, 0, 10);
                let _ = space.list_xattrs(&kernel(), inode.inode);
            }
        }
    }
}
