//! Small integers in few bytes, and reading a stream that arrives in pieces.
//!
//! Decoding here never panics: what comes from a disk is answered with an error.

/// What is wrong with encoded bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The stream ends inside a value.
    #[error("the stream ends too early while reading {0}")]
    Truncated(&'static str),
    /// A value that its writer never makes.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// Written by a newer version.
    #[error("{what} has version {found}, this program knows up to {known}")]
    Version {
        /// What.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
}

/// Longest byte string that `PieceReader::bytes` accepts; guards memory against a broken length.
pub const MAX_BYTES: u64 = 1 << 28;

/// Appends an unsigned integer, seven bits a byte, lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed integer whose small magnitudes are short.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads values from the front of a slice; `None` when they are not there or not canonical.
#[derive(Clone, Copy, Debug)]
pub struct SliceReader<'a>(pub &'a [u8]);

impl<'a> SliceReader<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    /// An unsigned integer. Longer forms of a value than its shortest are refused, so that equal states have
    /// equal bytes.
    #[inline]
    pub fn varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        let mut shift = 7;
        loop {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return (byte != 0).then_some(value);
            }
            shift += 7;
        }
    }

    /// A signed integer.
    pub fn signed(&mut self) -> Option<i64> {
        let raw = self.varint()?;
        Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A varint that fits 32 bits.
    pub fn varint32(&mut self) -> Option<u32> {
        u32::try_from(self.varint()?).ok()
    }

    /// A length and that many bytes.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.take(length)
    }
}

/// Where a `PieceReader` gets its bytes: the next piece, or `None` at the end.
pub type PieceSource<'a, E> = dyn FnMut() -> Result<Option<Vec<u8>>, E> + 'a;

/// Reads values from a stream that arrives in pieces of any size.
pub struct PieceReader<'a, E> {
    source: &'a mut PieceSource<'a, E>,
    piece: Vec<u8>,
    at: usize,
}

impl<'a, E: From<DecodeError>> PieceReader<'a, E> {
    /// Reads from `source`.
    pub fn new(source: &'a mut PieceSource<'a, E>) -> Self {
        Self { source, piece: Vec::new(), at: 0 }
    }

    /// Makes sure that an unread byte is there; false at the end of the stream.
    fn fill(&mut self) -> Result<bool, E> {
        while self.at == self.piece.len() {
            match (self.source)()? {
                Some(piece) => (self.piece, self.at) = (piece, 0),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether everything has been read.
    pub fn at_end(&mut self) -> Result<bool, E> {
        Ok(!self.fill()?)
    }

    /// The next byte of `what`.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, E> {
        if !self.fill()? {
            return Err(DecodeError::Truncated(what).into());
        }
        self.at += 1;
        Ok(self.piece[self.at - 1])
    }

    /// Exactly `count` bytes.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<Vec<u8>, E> {
        if count as u64 > MAX_BYTES {
            return Err(DecodeError::Malformed(what).into());
        }
        let mut out = Vec::with_capacity(count.min(1 << 20));
        while out.len() < count {
            if !self.fill()? {
                return Err(DecodeError::Truncated(what).into());
            }
            let part = (count - out.len()).min(self.piece.len() - self.at);
            out.extend_from_slice(&self.piece[self.at..self.at + part]);
            self.at += part;
        }
        Ok(out)
    }

    /// An unsigned integer written by `put_varint`.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, E> {
        let mut bytes = [0; 10];
        for length in 0..bytes.len() {
            bytes[length] = self.byte(what)?;
            if bytes[length] < 0x80 {
                let value = SliceReader(&bytes[..=length]).varint();
                return value.ok_or_else(|| DecodeError::Malformed(what).into());
            }
        }
        Err(DecodeError::Malformed(what).into())
    }

    /// A length and that many bytes, written by `put_bytes`.
    pub fn bytes(&mut self, what: &'static str) -> Result<Vec<u8>, E> {
        let length = self.varint(what)?;
        let length = usize::try_from(length).map_err(|_| DecodeError::Malformed(what))?;
        self.take(length, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_back_as_they_were_written() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = SliceReader(&out);
            assert_eq!(reader.varint(), Some(value));
            assert!(reader.0.is_empty());
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX, -1_000_000_007] {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            assert_eq!(SliceReader(&out).signed(), Some(value));
        }
    }

    #[test]
    fn overlong_and_oversized_integers_are_refused() {
        assert_eq!(SliceReader(&[0x80, 0]).varint(), None);
        assert_eq!(SliceReader(&[0xff; 10]).varint(), None);
        assert_eq!(SliceReader(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).varint(), None);
        assert_eq!(SliceReader(&[0x80]).varint(), None);
    }

    #[test]
    fn a_stream_reads_the_same_whatever_its_pieces() {
        let mut stream = Vec::new();
        put_varint(&mut stream, 300);
        put_bytes(&mut stream, b"hello, pieces");
        stream.push(7);
        for size in 1..=stream.len() {
            let mut pieces = stream.chunks(size).map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter();
            let mut source = || Ok::<_, DecodeError>(pieces.next());
            let mut reader = PieceReader::new(&mut source);
            assert_eq!(reader.varint("n"), Ok(300));
            assert_eq!(reader.bytes("b").as_deref(), Ok(&b"hello, pieces"[..]));
            assert_eq!(reader.byte("c"), Ok(7));
            assert_eq!(reader.at_end(), Ok(true));
            assert_eq!(reader.byte("d"), Err(DecodeError::Truncated("d")));
        }
    }
}
