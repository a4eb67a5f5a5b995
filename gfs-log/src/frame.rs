//! One frame: a record with its header.
//!
//! ```text
//! 0   4  length of the payload, little endian like everything here
//! 4   4  CRC32C of the log's random number, bytes 0..4, 8..24 and the payload
//! 8   7  position of this frame in the whole log's life
//! 15  1  kind: 0 is a mark of the log itself, 1..=255 belong to the user
//! 16  8  everything before this position was on stable storage when the frame was written
//! 24  -  payload, padded with zeros to a multiple of 8
//! ```
//!
//! Position and random number make a frame valid in one place only: what an earlier life of a recycled segment left
//! behind, or a copy of a log inside a payload, is never taken for a record. The durable position tells a torn tail from damage: whatever lies before it was promised.

use crate::MAX_POSITION;
use crc_fast::{CrcAlgorithm, Digest};

/// Bytes of a frame's header.
pub(crate) const HEADER: usize = 24;
/// Kind of the log's own marks: no payload, never shown to the user.
pub(crate) const MARK: u8 = 0;

/// A decoded header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    pub length: u32,
    pub position: u64,
    pub kind: u8,
    pub durable: u64,
}

/// Bytes that a payload of `length` takes, with header and padding.
pub(crate) fn size(length: u64) -> u64 {
    HEADER as u64 + length.next_multiple_of(8)
}

/// Builds the header for a payload given in parts.
pub(crate) fn encode(log: u64, kind: u8, position: u64, durable: u64, parts: &[&[u8]]) -> [u8; HEADER] {
    debug_assert!(position <= MAX_POSITION);
    let length = parts.iter().map(|p| p.len()).sum::<usize>() as u32;
    let mut header = [0u8; HEADER];
    header[0..4].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&(position | (u64::from(kind) << 56)).to_le_bytes());
    header[16..24].copy_from_slice(&durable.to_le_bytes());
    let crc = checksum(log, &header, parts);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Reads a header; `None` if the bytes cannot be the frame of this position.
pub(crate) fn decode(bytes: &[u8], position: u64) -> Option<FrameHeader> {
    let header: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let tagged = word(8);
    let decoded = FrameHeader {
        length: word(0) as u32,
        position: tagged & MAX_POSITION,
        kind: (tagged >> 56) as u8,
        durable: word(16),
    };
    (decoded.position == position && decoded.durable <= position).then_some(decoded)
}

/// Whether header and payload belong together.
pub(crate) fn verify(log: u64, header: &[u8; HEADER], payload: &[u8]) -> bool {
    let stored = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    checksum(log, header, &[payload]) == stored
}

fn checksum(log: u64, header: &[u8; HEADER], parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut covered = [0u8; HEADER + 4];
    covered[..8].copy_from_slice(&log.to_le_bytes());
    covered[8..12].copy_from_slice(&header[..4]);
    covered[12..].copy_from_slice(&header[8..]);
    digest.update(&covered);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_frame() {
        let header = encode(0xabcd, 7, 0x0102_0304, 0x10, &[b"he", b"llo"]);
        assert_eq!(
            header,
            [5, 0, 0, 0, header[4], header[5], header[6], header[7], 4, 3, 2, 1, 0, 0, 0, 7, 0x10, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(u32::from_le_bytes([header[4], header[5], header[6], header[7]]), GOLDEN_CRC);
        assert!(verify(0xabcd, &header, b"hello"));
        assert!(!verify(0xabce, &header, b"hello"));
        assert_eq!(
            decode(&header, 0x0102_0304),
            Some(FrameHeader { length: 5, position: 0x0102_0304, kind: 7, durable: 0x10 })
        );
    }

    const GOLDEN_CRC: u32 = 1_835_098_880;

    #[test]
    fn a_frame_is_valid_in_its_own_place_only() {
        let header = encode(1, 7, 800, 0, &[]);
        assert!(decode(&header, 800).is_some());
        assert_eq!(decode(&header, 808), None);
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let payload = b"some payload";
        let good = encode(1, 3, 64, 32, &[payload]);
        for bit in 0..HEADER * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(1, &bad, payload), "bit {bit} of the header");
        }
        for bit in 0..payload.len() * 8 {
            let mut bad = *payload;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(1, &good, &bad), "bit {bit} of the payload");
        }
    }
}
