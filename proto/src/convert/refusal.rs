//! The closed list of refusal codes. Codes are never renumbered.

use gfs_core::meta::request::Refusal;

const TABLE: [(u32, Refusal); 23] = [
    (1, Refusal::NotFound),
    (2, Refusal::Exists),
    (3, Refusal::NotDirectory),
    (4, Refusal::IsDirectory),
    (5, Refusal::NotEmpty),
    (6, Refusal::Access),
    (7, Refusal::NotPermitted),
    (8, Refusal::Invalid),
    (9, Refusal::NameTooLong),
    (10, Refusal::TooManyLinks),
    (11, Refusal::TooLarge),
    (12, Refusal::NoSpace),
    (13, Refusal::Quota),
    (14, Refusal::NoData),
    (15, Refusal::XattrTooLarge),
    (16, Refusal::NotSupported),
    (17, Refusal::WouldBlock),
    (18, Refusal::Deadlock),
    (19, Refusal::NoLocks),
    (20, Refusal::Interrupted),
    (21, Refusal::Stale),
    (22, Refusal::SessionExpired),
    (23, Refusal::ReadOnly),
];

/// The wire code of a refusal; never 0.
pub fn refusal_code(refusal: Refusal) -> u32 {
    // The match keeps the list exhaustive: a new refusal does not compile until it has a code.
    match refusal {
        Refusal::NotFound => 1,
        Refusal::Exists => 2,
        Refusal::NotDirectory => 3,
        Refusal::IsDirectory => 4,
        Refusal::NotEmpty => 5,
        Refusal::Access => 6,
        Refusal::NotPermitted => 7,
        Refusal::Invalid => 8,
        Refusal::NameTooLong => 9,
        Refusal::TooManyLinks => 10,
        Refusal::TooLarge => 11,
        Refusal::NoSpace => 12,
        Refusal::Quota => 13,
        Refusal::NoData => 14,
        Refusal::XattrTooLarge => 15,
        Refusal::NotSupported => 16,
        Refusal::WouldBlock => 17,
        Refusal::Deadlock => 18,
        Refusal::NoLocks => 19,
        Refusal::Interrupted => 20,
        Refusal::Stale => 21,
        Refusal::SessionExpired => 22,
        Refusal::ReadOnly => 23,
    }
}

/// The refusal with this code; `None` when unknown (0 is no refusal).
pub fn refusal_from_code(code: u32) -> Option<Refusal> {
    TABLE.iter().find(|(known, _)| *known == code).map(|(_, refusal)| *refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_comes_back_from_its_code() {
        for (code, refusal) in TABLE {
            assert_eq!(refusal_code(refusal), code);
            assert_eq!(refusal_from_code(code), Some(refusal));
        }
        assert_eq!(refusal_from_code(0), None);
    }
}
