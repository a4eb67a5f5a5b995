//! The frame: a fixed 32-byte prefix, a prost header, a raw payload. `docs/formats/frame.md` has the picture.
//!
//! ```text
//!  0  4  magic "GFSD"
//!  4  1  version (1)
//!  5  1  kind: 0 request, 1 reply, 2 notice
//!  6  2  flags, 0
//!  8  4  length of the header
//! 12  4  length of the payload
//! 16  8  tag: names the call on this connection
//! 24  4  crc32c of the header
//! 28  4  crc32c of bytes 0..28
//! ```
//! Integers are little-endian. The payload's checksum is in the header, since who stores it keeps it.

use crate::crc32c;

/// Bytes of the prefix.
pub const PREFIX: usize = 32;
/// Longest header.
pub const MAX_HEADER: usize = 256 * 1024;
/// Longest payload.
pub const MAX_PAYLOAD: usize = 4 * 1024 * 1024;

const MAGIC: [u8; 4] = *b"GFSD";
const VERSION: u8 = 1;

/// Direction of a frame, and whether it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// From the side that opened the connection.
    Request,
    /// Back.
    Reply,
    /// As a request, and nobody answers it.
    Notice,
}

/// The decoded prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// Direction.
    pub kind: Kind,
    /// Bytes of the header.
    pub header: usize,
    /// Bytes of the payload.
    pub payload: usize,
    /// Names the call.
    pub tag: u64,
    /// Checksum of the header.
    pub header_crc: u32,
}

/// What is wrong with received bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol at all.
    #[error("not a gfs data frame")]
    Magic,
    /// A version that this build does not speak.
    #[error("frame version {0} is not supported by this build (1)")]
    Version(u8),
    /// A kind that does not exist.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A reply where requests come, or the other way round.
    #[error("a frame of the wrong direction")]
    Direction,
    /// The prefix or header was damaged.
    #[error("frame checksum mismatch")]
    Checksum,
    /// Longer than allowed.
    #[error("frame of {header}+{payload} bytes exceeds the limit")]
    Length {
        /// Header bytes.
        header: usize,
        /// Payload bytes.
        payload: usize,
    },
    /// The header is not the expected message.
    #[error("frame header cannot be decoded")]
    Header,
}

/// Encodes a prefix.
pub fn encode_prefix(prefix: &Prefix) -> [u8; PREFIX] {
    let mut out = [0u8; PREFIX];
    out[0..4].copy_from_slice(&MAGIC);
    out[4] = VERSION;
    out[5] = match prefix.kind {
        Kind::Request => 0,
        Kind::Reply => 1,
        Kind::Notice => 2,
    };
    out[8..12].copy_from_slice(&(prefix.header as u32).to_le_bytes());
    out[12..16].copy_from_slice(&(prefix.payload as u32).to_le_bytes());
    out[16..24].copy_from_slice(&prefix.tag.to_le_bytes());
    out[24..28].copy_from_slice(&prefix.header_crc.to_le_bytes());
    let crc = crc32c(&out[..28]);
    out[28..32].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Decodes and checks a prefix.
pub fn decode_prefix(bytes: &[u8; PREFIX]) -> Result<Prefix, FrameError> {
    if bytes[0..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    if bytes[4] != VERSION {
        return Err(FrameError::Version(bytes[4]));
    }
    if crc32c(&bytes[..28]) != word(bytes, 28) {
        return Err(FrameError::Checksum);
    }
    let kind = match bytes[5] {
        0 => Kind::Request,
        1 => Kind::Reply,
        2 => Kind::Notice,
        other => return Err(FrameError::Kind(other)),
    };
    let (header, payload) = (word(bytes, 8) as usize, word(bytes, 12) as usize);
    if header > MAX_HEADER || payload > MAX_PAYLOAD {
        return Err(FrameError::Length { header, payload });
    }
    let tag = u64::from(word(bytes, 16)) | u64::from(word(bytes, 20)) << 32;
    Ok(Prefix { kind, header, payload, tag, header_crc: word(bytes, 24) })
}

fn word(bytes: &[u8; PREFIX], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Prefix {
        Prefix { kind: Kind::Reply, header: 5, payload: 4096, tag: 0x0102_0304_0506_0708, header_crc: 0xdead_beef }
    }

    #[test]
    fn prefix_has_its_golden_bytes() {
        let bytes = encode_prefix(&sample());
        let golden = "474653440101000005000000001000000807060504030201efbeadde";
        let hex: String = bytes[..28].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden);
        assert_eq!(word(&bytes, 28), crc32c(&bytes[..28]));
    }

    #[test]
    fn crc32c_has_its_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_longer_payload_than_allowed_is_refused() {
        let bytes = encode_prefix(&Prefix { payload: MAX_PAYLOAD + 1, ..sample() });
        assert_eq!(decode_prefix(&bytes), Err(FrameError::Length { header: 5, payload: MAX_PAYLOAD + 1 }));
    }

    proptest! {
        #[test]
        fn any_prefix_round_trips(header in 0..=MAX_HEADER, payload in 0..=MAX_PAYLOAD, tag: u64, header_crc: u32, kind in 0..3_usize) {
            let kind = [Kind::Request, Kind::Reply, Kind::Notice][kind];
            let prefix = Prefix { kind, header, payload, tag, header_crc };
            prop_assert_eq!(decode_prefix(&encode_prefix(&prefix)), Ok(prefix));
        }

        #[test]
        fn any_flipped_bit_is_refused(bit in 0..PREFIX * 8) {
            let mut bytes = encode_prefix(&sample());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_prefix(&bytes).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes: [u8; PREFIX]) {
            let _ = decode_prefix(&bytes);
        }
    }
}
