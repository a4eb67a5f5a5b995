//! Random bits from the operating system.
//!
//! This room owns the only randomness of the master: ids of clusters and processes, and seeds for stamps.

use std::io::Read;

/// 128 random bits. Without a source of randomness the process cannot do its work and stops.
pub fn bits128() -> u128 {
    let mut bytes = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if let Err(error) = read {
        panic!("/dev/urandom cannot be read: {error}");
    }
    u128::from_le_bytes(bytes)
}

/// 64 random bits.
pub fn bits64() -> u64 {
    bits128() as u64
}

/// A quick sequence of well mixed numbers from a random start (splitmix64, Steele et al., OOPSLA 2014).
pub struct Mixer(u64);

impl Default for Mixer {
    fn default() -> Self {
        Self(bits64())
    }
}

impl Mixer {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        assert_ne!(bits128(), bits128());
        let mut mixer = Mixer::default();
        assert_ne!(mixer.draw(), mixer.draw());
    }
}
