//! Random bits from the operating system.
//!
//! This room owns the only randomness of the master: ids of clusters and processes, and seeds for stamps.

use gfs_core::splitmix::SplitMix64;
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

/// A quick sequence of well mixed numbers from a random start.
pub fn sequence() -> SplitMix64 {
    SplitMix64::new(bits64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        assert_ne!(bits128(), bits128());
        let mut mixer = sequence();
        assert_ne!(mixer.draw(), mixer.draw());
    }
}
