//! A leaf of a table: entries in order of key, encoded one after the other in one allocation.
//!
//! Layout of an entry: the key as a difference to the one before it (the first one to (0, 0)), the length of
//! the value as a varint, the value. The difference is the varint of the first halves' difference, then the
//! varint of the second half: less the previous one's when the first halves are equal, else as it is.

use super::codec::{SliceReader, put_varint};

/// A key: ordered by its first half, then its second.
pub type Key = (u64, u64);

/// Allocations are multiples of this, so that not every insertion moves the leaf.
const STEP: usize = 64;

/// Encoded entries.
#[derive(Debug, Default)]
pub struct Leaf {
    bytes: Vec<u8>,
}

impl Clone for Leaf {
    fn clone(&self) -> Self {
        // A copy is made in order to be changed: leave it room.
        let mut bytes = Vec::with_capacity(rounded(self.bytes.len() + STEP));
        bytes.extend_from_slice(&self.bytes);
        Self { bytes }
    }
}

/// One entry, by offsets into the leaf.
#[derive(Clone, Copy, Debug)]
struct Place {
    key: Key,
    /// Where its key begins.
    start: usize,
    /// Where the length of its value begins.
    body: usize,
    /// Where its value begins.
    value: usize,
    /// Where the next entry begins.
    end: usize,
}

fn rounded(length: usize) -> usize {
    length.next_multiple_of(STEP)
}

fn put_key(out: &mut Vec<u8>, key: Key, previous: Key) {
    debug_assert!(key > previous || previous == (0, 0), "{key:?} after {previous:?}");
    put_varint(out, key.0 - previous.0);
    put_varint(out, if key.0 == previous.0 { key.1 - previous.1 } else { key.1 });
}

fn put_value(out: &mut Vec<u8>, value: &[u8]) {
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A varint of our own memory: its encoding was checked when it came in.
#[inline]
fn varint_at(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0;
    let mut shift = 0;
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

impl Leaf {
    /// Takes bytes from outside after checking them wholly: order, lengths, canonical integers. Calls `visit`
    /// with each entry; `None` when something is wrong or `visit` says false.
    pub fn from_bytes(bytes: Vec<u8>, after: Option<Key>, visit: &mut dyn FnMut(Key, &[u8]) -> bool) -> Option<Self> {
        let mut reader = SliceReader(&bytes);
        let (mut previous, mut first) = ((0_u64, 0_u64), true);
        while !reader.0.is_empty() {
            let (high, low) = (reader.varint()?, reader.varint()?);
            let key = match high {
                0 => (previous.0, previous.1.checked_add(low)?),
                _ => (previous.0.checked_add(high)?, low),
            };
            let ordered = if first { after.is_none_or(|after| key > after) } else { key > previous };
            if !ordered || !visit(key, reader.bytes()?) {
                return None;
            }
            (previous, first) = (key, false);
        }
        (!first).then_some(Self { bytes })
    }

    /// The encoded entries.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Length of the encoded entries.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes allocated.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    fn place(&self, start: usize, previous: Key) -> Option<Place> {
        if start >= self.bytes.len() {
            return None;
        }
        let mut at = start;
        let high = varint_at(&self.bytes, &mut at);
        let low = varint_at(&self.bytes, &mut at);
        let key = if high == 0 { (previous.0, previous.1 + low) } else { (previous.0 + high, low) };
        let body = at;
        let length = varint_at(&self.bytes, &mut at) as usize;
        Some(Place { key, start, body, value: at, end: at + length })
    }

    /// The first entry not below `key`, and the key before it ((0, 0) when there is none).
    fn seek(&self, key: Key) -> (Key, Option<Place>) {
        let (mut previous, mut at) = ((0, 0), 0);
        while let Some(place) = self.place(at, previous) {
            if place.key >= key {
                return (previous, Some(place));
            }
            (previous, at) = (place.key, place.end);
        }
        (previous, None)
    }

    /// The value at `key`.
    pub fn get(&self, key: Key) -> Option<&[u8]> {
        let place = self.seek(key).1.filter(|place| place.key == key)?;
        Some(&self.bytes[place.value..place.end])
    }

    /// Key of the first entry.
    pub fn first(&self) -> Option<Key> {
        Some(self.place(0, (0, 0))?.key)
    }

    /// Reads on from the first entry not below `key`.
    pub fn cursor(&self, key: Key) -> Cursor<'_> {
        let (previous, place) = self.seek(key);
        Cursor { leaf: self, previous, at: place.map_or(self.bytes.len(), |place| place.start) }
    }

    /// Sets the value at `key`; says whether there was one, and whether the entry is now the last.
    pub fn put(&mut self, key: Key, value: &[u8]) -> Put {
        let mut new = Vec::with_capacity(value.len() + 40);
        let (previous, place) = self.seek(key);
        let (from, to, replaced) = match place {
            Some(place) if place.key == key => {
                put_value(&mut new, value);
                (place.body, place.end, true)
            }
            Some(place) => {
                put_key(&mut new, key, previous);
                put_value(&mut new, value);
                put_key(&mut new, place.key, key);
                (place.start, place.body, false)
            }
            None => {
                put_key(&mut new, key, previous);
                put_value(&mut new, value);
                (self.bytes.len(), self.bytes.len(), false)
            }
        };
        let last = to == self.bytes.len();
        self.splice(from, to, &new);
        Put { replaced, last }
    }

    /// Removes the entry at `key`, which must be there.
    pub fn remove(&mut self, key: Key) {
        let (previous, place) = self.seek(key);
        let place = place.filter(|place| place.key == key).expect("the caller found the key in this leaf");
        let mut new = Vec::new();
        let to = match self.place(place.end, key) {
            Some(next) => {
                put_key(&mut new, next.key, previous);
                next.body
            }
            None => place.end,
        };
        self.splice(place.start, to, &new);
    }

    fn splice(&mut self, from: usize, to: usize, new: &[u8]) {
        let length = self.bytes.len();
        let wanted = length - (to - from) + new.len();
        if wanted > self.bytes.capacity() {
            self.bytes.reserve_exact(rounded(wanted) - length);
        }
        if wanted > length {
            self.bytes.resize(wanted, 0);
        }
        self.bytes.copy_within(to..length, from + new.len());
        self.bytes[from..from + new.len()].copy_from_slice(new);
        self.bytes.truncate(wanted);
        if self.bytes.capacity() > rounded(wanted) + 4 * STEP {
            self.bytes.shrink_to(rounded(wanted));
        }
    }

    /// Cuts off the upper part as a leaf of its own: the last entry alone when `append`, since keys that rise
    /// would leave half-empty leaves behind, else about half. `None` when there is only one entry.
    pub fn split(&mut self, append: bool) -> Option<(Key, Leaf)> {
        let half = self.bytes.len() / 2;
        let (mut previous, mut at, mut cut) = ((0, 0), 0, None);
        while let Some(place) = self.place(at, previous) {
            if at > 0 {
                cut = Some(place);
                if !append && place.start >= half {
                    break;
                }
            }
            (previous, at) = (place.key, place.end);
        }
        let cut = cut?;
        let mut upper = Vec::with_capacity(rounded(self.bytes.len() - cut.start + 16));
        put_key(&mut upper, cut.key, (0, 0));
        upper.extend_from_slice(&self.bytes[cut.body..]);
        self.bytes.truncate(cut.start);
        self.bytes.shrink_to(rounded(cut.start));
        Some((cut.key, Leaf { bytes: upper }))
    }

    /// Takes the entries of a leaf whose keys are all above the ones here.
    pub fn append(&mut self, upper: &Leaf) {
        let Some(first) = upper.place(0, (0, 0)) else { return };
        let (mut previous, mut at) = ((0, 0), 0);
        while let Some(place) = self.place(at, previous) {
            (previous, at) = (place.key, place.end);
        }
        let mut new = Vec::with_capacity(upper.len() + 20);
        put_key(&mut new, first.key, previous);
        new.extend_from_slice(&upper.bytes[first.body..]);
        self.splice(at, at, &new);
    }
}

/// Outcome of `Leaf::put`.
#[derive(Clone, Copy, Debug)]
pub struct Put {
    /// There was a value before.
    pub replaced: bool,
    /// No entry comes after it.
    pub last: bool,
}

/// Reads the entries of a leaf in order.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    leaf: &'a Leaf,
    previous: Key,
    at: usize,
}

impl<'a> Iterator for Cursor<'a> {
    type Item = (Key, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let place = self.leaf.place(self.at, self.previous)?;
        (self.previous, self.at) = (place.key, place.end);
        Some((place.key, &self.leaf.bytes[place.value..place.end]))
    }
}
