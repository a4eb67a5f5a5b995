//! Tables ordered by a hash of names: directories, and the extended attributes of an inode.
//!
//! The position of a name in its list, its *cookie*, is a 40-bit keyed hash above an 8-bit number that tells
//! names of equal hash apart. A name keeps its cookie as long as it exists, whatever comes and goes around it,
//! which is what a listing that is read in pages needs; and no second index is needed. Cookies lie between 256
//! and 2^48.

use crate::arena::codec::{SliceReader, put_varint};
use crate::arena::hash::siphash;
use crate::arena::{Record, Table};
use crate::ids::InodeId;
use crate::meta::request::Refusal;

/// Names whose hashes are equal, at most.
const SAME: u64 = 256;

/// A record that has a name.
pub trait Named: Record {
    /// The name in the bytes of a record.
    fn name_of(bytes: &[u8]) -> Option<&[u8]>;
}

/// What a directory says: a name, and the inode that it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dentry {
    pub inode: InodeId,
    pub name: Vec<u8>,
}

impl Record for Dentry {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.inode.0);
        out.extend_from_slice(&self.name);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = SliceReader(bytes);
        let inode = InodeId(reader.varint()?);
        super::check_name(reader.0).ok()?;
        Some(Self { inode, name: reader.0.to_vec() })
    }
}

impl Named for Dentry {
    fn name_of(bytes: &[u8]) -> Option<&[u8]> {
        let mut reader = SliceReader(bytes);
        reader.varint()?;
        Some(reader.0)
    }
}

/// Lists of named records, each list under a number.
#[derive(Clone, Debug)]
pub struct Names<V> {
    /// (list, cookie) -> record.
    pub table: Table<V>,
    /// Key of the hash.
    pub key: u128,
}

impl<V: Named> Names<V> {
    pub fn new(key: u128) -> Self {
        Self { table: Table::new(), key }
    }

    /// The lowest cookie that `name` can have.
    fn base(&self, name: &[u8]) -> u64 {
        (siphash(self.key, name) >> 24).max(1) * SAME
    }

    /// Whether `name` may stand at `cookie`.
    pub fn belongs(&self, cookie: u64, name: &[u8]) -> bool {
        cookie / SAME * SAME == self.base(name)
    }

    /// The cookie and the record of a name.
    pub fn find(&self, list: u64, name: &[u8]) -> Option<(u64, V)> {
        let base = self.base(name);
        let same = self.table.range_bytes((list, base)).take_while(|(key, _)| key.0 == list && key.1 < base + SAME);
        for ((_, cookie), bytes) in same {
            if V::name_of(bytes) == Some(name) {
                return V::decode(bytes).map(|record| (cookie, record));
            }
        }
        None
    }

    /// A free cookie for a name that is not there. Refused with `NoSpace` when 256 names of the list have the
    /// same hash, which only somebody who looks for it will see.
    pub fn vacancy(&self, list: u64, name: &[u8]) -> Result<u64, Refusal> {
        let base = self.base(name);
        let mut free = base;
        for ((high, cookie), _) in self.table.range_bytes((list, base)) {
            if high != list || cookie != free {
                break;
            }
            free += 1;
        }
        if free < base + SAME { Ok(free) } else { Err(Refusal::NoSpace) }
    }

    /// Whether the list has no record.
    pub fn is_empty(&self, list: u64) -> bool {
        self.table.range_bytes((list, 0)).next().is_none_or(|(key, _)| key.0 != list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_equal_hash_are_told_apart_and_keep_their_places() {
        let mut names = Names::<Dentry>::new(7);
        let base = names.base(b"a");
        let dentry = |number: u64| Dentry { inode: InodeId(number), name: format!("n{number}").into_bytes() };
        for number in 0..SAME {
            assert_eq!(names.vacancy(5, b"a"), Ok(base + number));
            names.table.insert((5, base + number), &dentry(number));
        }
        assert_eq!(names.vacancy(5, b"a"), Err(Refusal::NoSpace));
        assert_eq!(names.vacancy(6, b"a"), Ok(base));
        names.table.remove((5, base + 9));
        assert_eq!(names.vacancy(5, b"a"), Ok(base + 9));
        names.table.insert((5, base + 9), &Dentry { inode: InodeId(99), name: b"a".to_vec() });
        assert_eq!(names.find(5, b"a").map(|(cookie, found)| (cookie, found.inode)), Some((base + 9, InodeId(99))));
        assert_eq!(names.find(6, b"a"), None);
    }

    #[test]
    fn cookies_leave_room_for_dot_and_dot_dot() {
        let names = Names::<Dentry>::new(0);
        for number in 0..10_000 {
            let base = names.base(format!("{number}").as_bytes());
            assert!((256..1 << 48).contains(&base), "{base}");
        }
    }
}
