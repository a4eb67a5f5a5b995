//! SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012), written out because the order
//! of directories and the hash of a state must be the same in every build and for ever.

struct Sip([u64; 4]);

impl Sip {
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.0 = [a, b, c, d];
    }

    fn word(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.0[0] ^= word;
    }
}

/// Keyed hash of a byte string.
pub fn siphash(key: u128, bytes: &[u8]) -> u64 {
    let (k0, k1) = (key as u64, (key >> 64) as u64);
    let mut sip = Sip([
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ]);
    let words = bytes.chunks_exact(8);
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    last[7] = bytes.len() as u8;
    for word in words {
        let mut raw = [0; 8];
        raw.copy_from_slice(word);
        sip.word(u64::from_le_bytes(raw));
    }
    sip.word(u64::from_le_bytes(last));
    sip.0[2] ^= 0xff;
    for _ in 0..3 {
        sip.round();
    }
    sip.0.iter().fold(0, |sum, lane| sum ^ lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(deprecated)]
    fn it_is_siphash_1_3() {
        // The standard library's default hasher is SipHash-1-3 with a zero key.
        use std::hash::Hasher;
        for length in 0..40_u8 {
            let bytes: Vec<u8> = (0..length).collect();
            let mut hasher = std::collections::hash_map::DefaultHasher::new();
            hasher.write(&bytes);
            assert_eq!(siphash(0, &bytes), hasher.finish());
        }
        assert_ne!(siphash(1, b"a"), siphash(0, b"a"));
        assert_ne!(siphash(1 << 64, b"a"), siphash(0, b"a"));
    }
}
