//! A table with typed records: what the rest of the core uses.

use super::codec::{DecodeError, PieceReader, put_bytes, put_varint};
use super::hash::siphash;
use super::leaf::Leaf;
use super::node::{self, Entries, Node};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

pub use super::leaf::Key;

/// A value of a table. Equal records must have equal bytes.
pub trait Record: Sized {
    /// Appends the bytes of the record.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads it back; `None` for bytes that `encode` never makes. Must use all of `bytes` and never panic.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl Record for () {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

impl Record for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

/// An ordered map from [`Key`] to `V`. Finding, inserting and removing are O(log n); `Clone` is O(1), and
/// neither copy sees later changes of the other.
pub struct Table<V> {
    root: Arc<Node>,
    length: u64,
    value: PhantomData<fn() -> V>,
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), length: self.length, value: PhantomData }
    }
}

impl<V> fmt::Debug for Table<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} entries)", self.length)
    }
}

impl<V: Record> Default for Table<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Record> Table<V> {
    /// An empty table.
    pub fn new() -> Self {
        Self { root: Arc::new(Node::Leaf(Leaf::default())), length: 0, value: PhantomData }
    }

    /// How many entries there are.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether there is an entry at `key`.
    pub fn contains(&self, key: Key) -> bool {
        node::get(&self.root, key).is_some()
    }

    /// The record at `key`.
    pub fn get(&self, key: Key) -> Option<V> {
        node::get(&self.root, key).map(|bytes| record(key, bytes))
    }

    /// Sets the record at `key`; says whether there was one.
    pub fn insert(&mut self, key: Key, value: &V) -> bool {
        let mut bytes = Vec::with_capacity(64);
        value.encode(&mut bytes);
        let inserted = node::insert(&mut self.root, key, &bytes);
        if let Some(right) = inserted.split {
            let left = node::Child { low: (0, 0), node: Arc::clone(&self.root) };
            self.root = Arc::new(Node::Branch(vec![left, right]));
        }
        self.length += u64::from(!inserted.replaced);
        inserted.replaced
    }

    /// Removes the entry at `key`; says whether there was one.
    pub fn remove(&mut self, key: Key) -> bool {
        // Looked up first, so that nothing shared is copied for nothing.
        if !self.contains(key) {
            return false;
        }
        node::remove(&mut self.root, key);
        self.length -= 1;
        while let Node::Branch(children) = &*self.root {
            match children.as_slice() {
                [] => self.root = Arc::new(Node::Leaf(Leaf::default())),
                [only] => self.root = Arc::clone(&only.node),
                _ => break,
            }
        }
        true
    }

    /// Removes and returns the record at `key`.
    pub fn take(&mut self, key: Key) -> Option<V> {
        let value = self.get(key)?;
        self.remove(key);
        Some(value)
    }

    /// Entries in order, from the first one not below `from`.
    pub fn range(&self, from: Key) -> impl Iterator<Item = (Key, V)> + Clone + '_ {
        self.range_bytes(from).map(|(key, bytes)| (key, record(key, bytes)))
    }

    /// Entries whose key begins with `high`, in order of the second half, from `low` on.
    pub fn range_of(&self, high: u64, low: u64) -> impl Iterator<Item = (u64, V)> + Clone + '_ {
        let same = self.range_bytes((high, low)).take_while(move |(key, _)| key.0 == high);
        same.map(|(key, bytes)| (key.1, record(key, bytes)))
    }

    /// As `range`, records still encoded.
    pub fn range_bytes(&self, from: Key) -> Entries<'_> {
        Entries::from(&self.root, from)
    }

    /// Heap bytes, counted by walking the table: O(n / 50).
    pub fn memory_bytes(&self) -> u64 {
        node::memory(&self.root)
    }

    /// Equal tables have equal hashes, however they came about.
    pub fn hash(&self) -> u64 {
        self.range_bytes((0, 0)).fold(self.length, |sum, (key, bytes)| {
            let place = (u128::from(key.0) << 64 | u128::from(key.1)) ^ u128::from(sum);
            sum.rotate_left(9).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ siphash(place, bytes)
        })
    }

    /// Writes the table: the number of entries, then each leaf's length and bytes, then a zero.
    pub fn encode<E>(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut head = Vec::new();
        put_varint(&mut head, self.length);
        sink(&head)?;
        let mut buffer = Vec::new();
        node::leaves(&self.root, &mut |leaf| {
            if leaf.len() > 0 {
                put_bytes(&mut buffer, leaf.as_bytes());
            }
            if buffer.len() >= 1 << 16 {
                sink(&buffer)?;
                buffer.clear();
            }
            Ok(())
        })?;
        buffer.push(0);
        sink(&buffer)
    }

    /// Reads what `encode` wrote, checking every entry: its order, its record, and what `accept` says of it.
    pub fn decode<E: From<DecodeError>>(
        source: &mut PieceReader<'_, E>,
        what: &'static str,
        accept: &mut dyn FnMut(Key, &V) -> bool,
    ) -> Result<Self, E> {
        let length = source.varint(what)?;
        let (mut leaves, mut last, mut count) = (Vec::new(), None, 0_u64);
        loop {
            let bytes = source.bytes(what)?;
            if bytes.is_empty() {
                break;
            }
            let after = last;
            let leaf = Leaf::from_bytes(bytes, after, &mut |key, bytes| {
                (last, count) = (Some(key), count + 1);
                V::decode(bytes).is_some_and(|value| accept(key, &value))
            });
            leaves.push(leaf.ok_or(DecodeError::Malformed(what))?);
        }
        if count != length {
            return Err(DecodeError::Malformed(what).into());
        }
        Ok(Self { root: node::build(leaves), length, value: PhantomData })
    }
}

fn record<V: Record>(key: Key, bytes: &[u8]) -> V {
    V::decode(bytes).unwrap_or_else(|| panic!("record {key:?} does not decode: {bytes:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<Key, Vec<u8>>;

    fn listing(table: &Table<Vec<u8>>) -> Vec<(Key, Vec<u8>)> {
        table.range((0, 0)).collect()
    }

    fn reread(table: &Table<Vec<u8>>) -> Result<Table<Vec<u8>>, DecodeError> {
        let mut bytes = Vec::new();
        table.encode::<DecodeError>(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        decode(bytes)
    }

    fn decode(bytes: Vec<u8>) -> Result<Table<Vec<u8>>, DecodeError> {
        let mut pieces = Some(bytes);
        let mut source = || Ok(pieces.take());
        Table::decode(&mut PieceReader::new(&mut source), "table", &mut |_, _| true)
    }

    fn check(table: &Table<Vec<u8>>, model: &Model) {
        let expected: Vec<_> = model.iter().map(|(key, value)| (*key, value.clone())).collect();
        assert_eq!(listing(table), expected);
        assert_eq!(table.len(), model.len() as u64);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_table_is_an_ordered_map_and_a_clone_is_frozen(
            steps in prop::collection::vec((any::<u8>(), 0..40_u64, 0..60_u64, 0..90_usize), 1..1500),
            spread in prop::sample::select(vec![1_u64, 1 << 40]),
        ) {
            let (mut table, mut model) = (Table::new(), Model::new());
            let mut frozen = None;
            for (index, (action, high, low, length)) in steps.into_iter().enumerate() {
                let key = (high * spread, low * spread);
                if action < 150 {
                    let value = vec![action; length];
                    prop_assert_eq!(table.insert(key, &value), model.insert(key, value).is_some());
                } else if action < 230 {
                    prop_assert_eq!(table.take(key), model.remove(&key));
                } else {
                    prop_assert_eq!(table.get(key), model.get(&key).cloned());
                    let next = table.range(key).next();
                    prop_assert_eq!(next, model.range(key..).next().map(|(key, value)| (*key, value.clone())));
                }
                if index == 400 {
                    frozen = Some((table.clone(), model.clone()));
                }
            }
            check(&table, &model);
            if let Some((table, model)) = frozen {
                check(&table, &model);
            }
            let mut fresh = Table::new();
            for (key, value) in model.iter().rev() {
                fresh.insert(*key, value);
            }
            prop_assert_eq!(fresh.hash(), table.hash());
            let again = reread(&table);
            prop_assert!(again.is_ok());
            if let Ok(again) = again {
                prop_assert_eq!(again.hash(), table.hash());
                check(&again, &model);
            }
        }

        #[test]
        fn decoding_noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(table) = decode(bytes) {
                prop_assert_eq!(listing(&table).len() as u64, table.len());
            }
        }
    }

    #[test]
    fn a_table_emptied_in_any_order_is_empty_and_small() {
        let count = 20_000_u64;
        for stride in [1, 7_919, count - 1] {
            let mut table = Table::new();
            for number in 0..count {
                table.insert((number * 37 % count, number), &vec![1; 20]);
            }
            for step in 0..count {
                let number = step * stride % count;
                assert!(table.remove((number * 37 % count, number)));
            }
            assert_eq!((table.len(), table.range((0, 0)).next()), (0, None));
            assert!(table.memory_bytes() < 4096, "{} bytes left", table.memory_bytes());
        }
    }

    #[test]
    fn half_removed_at_random_keeps_memory_near_its_content() {
        let mut table = Table::new();
        let key = |number: u64| (1, number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for number in 0..50_000 {
            table.insert(key(number), &vec![7; 20]);
        }
        let full = table.memory_bytes();
        for number in (0..50_000).filter(|number| number % 5 != 0) {
            table.remove(key(number));
        }
        assert!(table.memory_bytes() * 3 < full, "{} of {full}", table.memory_bytes());
    }

    #[test]
    fn large_and_small_values_live_in_one_leaf_order() {
        let mut table = Table::new();
        for number in 0..200 {
            table.insert((number, 0), &vec![number as u8; if number % 10 == 0 { 65_536 } else { 5 }]);
        }
        for number in 0..200 {
            assert_eq!(
                table.get((number, 0)).map(|value| value.len()),
                Some(if number % 10 == 0 { 65_536 } else { 5 })
            );
        }
    }

    #[test]
    fn a_wrong_count_or_order_is_refused() {
        let mut table = Table::new();
        table.insert((1, 2), &vec![3]);
        table.insert((1, 3), &vec![4]);
        // 2 entries; a leaf of 8 bytes: (+1, 2) [3], (+0, +1) [4]; the end.
        let golden = vec![2, 8, 1, 2, 1, 3, 0, 1, 1, 4, 0];
        let mut bytes = Vec::new();
        let sink: Result<(), DecodeError> = table.encode(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!((sink, &bytes), (Ok(()), &golden));
        let with = |at: usize, byte: u8| {
            let mut bytes = golden.clone();
            bytes[at] = byte;
            decode(bytes).map(|table| table.len())
        };
        assert_eq!(with(0, 2), Ok(2));
        assert_eq!(with(0, 3), Err(DecodeError::Malformed("table")));
        assert_eq!(with(7, 0), Err(DecodeError::Malformed("table")), "the same key twice");
        assert_eq!(with(10, 5), Err(DecodeError::Truncated("table")));
    }
}
