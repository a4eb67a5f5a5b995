//! The namespace as bytes of a checkpoint, and as one number.
//!
//! Layout, version 1: `GFSN`, version (varint), hash key (16 bytes, little endian), generation (varint), next
//! counter (varint), then the tables of inodes, dentries, extended attributes, targets and orphans, each as
//! `Table::encode` writes it. Counts are made again from the inodes. Checksums are the writer's.

use super::inode::Inode;
use super::names::{Dentry, Names};
use super::xattr::Xattr;
use super::{Namespace, SIZE_MAX, SYMLINK_MAX};
use crate::arena::Table;
use crate::arena::codec::{DecodeError, PieceReader, put_varint};
use crate::arena::hash::siphash;
use crate::ids::{COUNTER_BITS, Generation, ROOT};
use crate::meta::request::FileType;

const MAGIC: &[u8; 4] = b"GFSN";
const VERSION: u32 = 1;

impl Namespace {
    fn head(&self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        put_varint(&mut head, u64::from(VERSION));
        head.extend_from_slice(&self.dentries.key.to_le_bytes());
        put_varint(&mut head, u64::from(self.generation.0));
        put_varint(&mut head, self.next);
        head
    }

    /// Writes everything to `sink`, piece by piece.
    pub fn encode<E>(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        sink(&self.head())?;
        self.inodes.encode(sink)?;
        self.dentries.table.encode(sink)?;
        self.xattrs.table.encode(sink)?;
        self.targets.encode(sink)?;
        self.orphans.encode(sink)
    }

    /// Reads what `encode` wrote. Every record is checked by itself; `verify` checks how they fit together.
    pub fn decode<E: From<DecodeError>>(source: &mut PieceReader<'_, E>) -> Result<Self, E> {
        let mut namespace = Self::decode_head(source)?;
        let newest = namespace.newest();
        let (mut files, mut directories, mut bytes) = (0, 0, 0);
        namespace.inodes = Table::decode(source, "inode table", &mut |(id, zero), inode: &Inode| {
            files += u64::from(inode.file_type == FileType::File);
            directories += u64::from(inode.is_directory());
            bytes += if inode.file_type == FileType::File { u128::from(inode.size) } else { 0 };
            zero == 0 && id != 0 && id <= newest && inode.size <= SIZE_MAX
        })?;
        (namespace.files, namespace.directories, namespace.logical_bytes) = (files, directories, bytes);
        // Each table is read against an empty twin: its records are not there yet.
        let dentries = Names::<Dentry>::new(namespace.dentries.key);
        namespace.dentries.table = Table::decode(source, "dentry table", &mut |(_, cookie), dentry: &Dentry| {
            dentries.belongs(cookie, &dentry.name) && !super::is_dot(&dentry.name)
        })?;
        let xattrs = Names::<Xattr>::new(namespace.xattrs.key);
        namespace.xattrs.table = Table::decode(source, "attribute table", &mut |(_, cookie), xattr: &Xattr| {
            xattrs.belongs(cookie, &xattr.name)
        })?;
        namespace.targets =
            Table::decode(source, "link table", &mut |_, target: &Vec<u8>| (1..=SYMLINK_MAX).contains(&target.len()))?;
        let inodes = namespace.inodes.clone();
        namespace.orphans = Table::decode(source, "orphan table", &mut |key, ()| inodes.contains(key))?;
        let root = namespace.inodes.get((ROOT.0, 0));
        if root.is_some_and(|root| root.is_directory()) {
            Ok(namespace)
        } else {
            Err(DecodeError::Malformed("inode table").into())
        }
    }

    /// The highest inode number that can have been handed out.
    fn newest(&self) -> u64 {
        u64::from(self.generation.0) << COUNTER_BITS | self.next.saturating_sub(1)
    }

    fn decode_head<E: From<DecodeError>>(source: &mut PieceReader<'_, E>) -> Result<Self, E> {
        if source.take(MAGIC.len(), "namespace magic")? != MAGIC {
            return Err(DecodeError::Malformed("namespace magic").into());
        }
        let found = source.varint("namespace version")?;
        if found != u64::from(VERSION) {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(DecodeError::Version { what: "namespace", found, known: VERSION }.into());
        }
        let mut key = [0; 16];
        key.copy_from_slice(&source.take(16, "namespace key")?);
        let key = u128::from_le_bytes(key);
        let generation = source.varint("generation")?;
        let generation = u16::try_from(generation).map_err(|_| DecodeError::Malformed("generation"))?;
        let next = source.varint("next inode")?;
        if next >> COUNTER_BITS != 0 || next <= ROOT.0 {
            return Err(DecodeError::Malformed("next inode").into());
        }
        Ok(Self {
            inodes: Table::new(),
            dentries: Names::new(key),
            xattrs: Names::new(key),
            targets: Table::new(),
            orphans: Table::new(),
            generation: Generation(generation),
            next,
            files: 0,
            directories: 0,
            logical_bytes: 0,
        })
    }

    /// Equal namespaces have equal hashes, however they came about. Walks everything.
    pub fn hash(&self) -> u64 {
        let mut parts = self.head();
        let hashes = [
            self.inodes.hash(),
            self.dentries.table.hash(),
            self.xattrs.table.hash(),
            self.targets.hash(),
            self.orphans.hash(),
        ];
        for hash in hashes {
            parts.extend_from_slice(&hash.to_le_bytes());
        }
        siphash(0, &parts)
    }
}
