//! What blocks hold, and what a reader may find in them.
//!
//! Every block has one writer. It numbers what it writes, so that a reader knows from the numbers before and after its read which contents
//! are right: never one older than what was acknowledged before the read began, never one that was not written yet.

use gfs_core::splitmix::SplitMix64;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a block.
pub const BLOCK: usize = 16 << 10;

/// The bytes of a version of a block; version 0 is a block that was never written.
pub fn content(file: u64, block: u64, version: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    if version > 0 {
        bytes[..8].copy_from_slice(&version.to_le_bytes());
        let mut random = SplitMix64::new(file << 48 ^ block << 24 ^ version);
        for word in bytes[8..].chunks_exact_mut(8) {
            word.copy_from_slice(&random.draw().to_le_bytes());
        }
    }
    bytes
}

/// The versions of the blocks of one file.
#[derive(Debug)]
pub struct Book {
    file: u64,
    blocks: Vec<Versions>,
}

#[derive(Debug, Default)]
struct Versions {
    issued: AtomicU64,
    acknowledged: AtomicU64,
}

/// Why what was read is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Wrong {
    /// Bytes that nobody wrote.
    #[error("bytes that were never written")]
    Foreign,
    /// An older version than one that was acknowledged before.
    #[error("version {found}, though {acknowledged} was acknowledged before the read began")]
    Lost {
        /// What was there.
        found: u64,
        /// What had to be there at least.
        acknowledged: u64,
    },
    /// A version that is yet to come.
    #[error("version {found}, though only {issued} were written")]
    Early {
        /// What was there.
        found: u64,
        /// How many there are.
        issued: u64,
    },
}

impl Book {
    /// A file of zeros.
    pub fn new(file: u64, blocks: u64) -> Self {
        Self { file, blocks: (0..blocks).map(|_| Versions::default()).collect() }
    }

    /// How many blocks.
    pub fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn versions(&self, block: u64) -> &Versions {
        &self.blocks[usize::try_from(block).unwrap_or(usize::MAX) % self.blocks.len()]
    }

    /// Begins to write a block: its next version and the bytes of that.
    pub fn begin(&self, block: u64) -> (u64, Vec<u8>) {
        let version = self.versions(block).issued.fetch_add(1, Ordering::SeqCst) + 1;
        (version, content(self.file, block, version))
    }

    /// The write has been acknowledged.
    pub fn acknowledged(&self, block: u64, version: u64) {
        self.versions(block).acknowledged.store(version, Ordering::SeqCst);
    }

    /// Reads a block by `read` and judges what it finds; of a read that fails, its error.
    pub fn check<E>(&self, block: u64, read: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Result<(), Wrong>, E> {
        let versions = self.versions(block);
        let least = versions.acknowledged.load(Ordering::SeqCst);
        let bytes = read()?;
        let most = versions.issued.load(Ordering::SeqCst);
        Ok(self.judge(block, &bytes, least, most))
    }

    fn judge(&self, block: u64, bytes: &[u8], least: u64, most: u64) -> Result<(), Wrong> {
        let found = bytes.first_chunk().map_or(0, |head| u64::from_le_bytes(*head));
        if bytes != content(self.file, block, found) {
            return Err(Wrong::Foreign);
        }
        match found {
            found if found < least => Err(Wrong::Lost { found, acknowledged: least }),
            found if found > most => Err(Wrong::Early { found, issued: most }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(book: &Book, bytes: Vec<u8>) -> Result<(), Wrong> {
        book.check(3, || Ok::<_, ()>(bytes)).unwrap()
    }

    #[test]
    fn what_was_acknowledged_must_be_there_and_what_was_issued_may() {
        let book = Book::new(7, 8);
        assert_eq!(read(&book, content(7, 3, 0)), Ok(()));
        let (first, bytes) = book.begin(3);
        assert_eq!((read(&book, vec![0; BLOCK]), read(&book, bytes)), (Ok(()), Ok(())));
        book.acknowledged(3, first);
        assert_eq!(read(&book, vec![0; BLOCK]), Err(Wrong::Lost { found: 0, acknowledged: 1 }));
        assert_eq!(read(&book, content(7, 3, 2)), Err(Wrong::Early { found: 2, issued: 1 }));
        let (second, _) = book.begin(3);
        book.acknowledged(3, second);
        assert_eq!(read(&book, content(7, 3, 1)), Err(Wrong::Lost { found: 1, acknowledged: 2 }));
    }

    #[test]
    fn halves_of_two_versions_and_other_blocks_are_foreign() {
        let book = Book::new(7, 8);
        for _ in 0..2 {
            let (version, _) = book.begin(3);
            book.acknowledged(3, version);
        }
        let mut mixed = content(7, 3, 2);
        mixed[BLOCK / 2..].copy_from_slice(&content(7, 3, 1)[BLOCK / 2..]);
        assert_eq!(read(&book, mixed), Err(Wrong::Foreign));
        assert_eq!(read(&book, content(7, 4, 2)), Err(Wrong::Foreign));
        assert_eq!(read(&book, content(7, 3, 2)[..100].to_vec()), Err(Wrong::Foreign));
    }
}
