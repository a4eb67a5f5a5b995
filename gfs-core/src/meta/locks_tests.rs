//! Facts about locks, and a byte-by-byte model of record locks.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const FILE: InodeId = InodeId(10);

fn owner(session: u64, owner: u64) -> LockOwner {
    LockOwner { session: SessionId(session), owner }
}

fn lock(who: LockOwner, mode: LockMode, start: u64, end: u64) -> Lock {
    Lock { family: LockFamily::Record, owner: who, pid: 1, mode, range: LockRange { start, end } }
}

fn flock(who: LockOwner, mode: LockMode) -> Lock {
    Lock { family: LockFamily::Flock, ..lock(who, mode, 5, 6) }
}

fn ranges(table: &LockTable) -> Vec<(u64, u64, LockMode)> {
    table.iter().map(|(_, lock)| (lock.range.start, lock.range.end, lock.mode)).collect()
}

#[test]
fn unlocking_the_middle_splits_a_lock() {
    let mut table = LockTable::default();
    table.set(FILE, &lock(owner(1, 1), LockMode::Write, 0, 99)).unwrap();
    table.set(FILE, &lock(owner(1, 1), LockMode::Unlock, 40, 59)).unwrap();
    assert_eq!(ranges(&table), vec![(0, 39, LockMode::Write), (60, 99, LockMode::Write)]);
}

#[test]
fn neighbours_of_one_mode_merge_and_a_downgrade_splits() {
    let mut table = LockTable::default();
    table.set(FILE, &lock(owner(1, 1), LockMode::Read, 0, 9)).unwrap();
    table.set(FILE, &lock(owner(1, 1), LockMode::Read, 20, u64::MAX)).unwrap();
    table.set(FILE, &lock(owner(1, 1), LockMode::Read, 10, 19)).unwrap();
    assert_eq!(ranges(&table), vec![(0, u64::MAX, LockMode::Read)]);
    table.set(FILE, &lock(owner(1, 1), LockMode::Write, 5, 6)).unwrap();
    assert_eq!(ranges(&table), vec![(0, 4, LockMode::Read), (5, 6, LockMode::Write), (7, u64::MAX, LockMode::Read)]);
}

#[test]
fn readers_share_and_a_writer_excludes() {
    let mut table = LockTable::default();
    table.set(FILE, &lock(owner(1, 1), LockMode::Read, 0, 9)).unwrap();
    table.set(FILE, &lock(owner(2, 1), LockMode::Read, 5, 15)).unwrap();
    assert_eq!(table.set(FILE, &lock(owner(1, 1), LockMode::Write, 5, 5)), Err(Refusal::WouldBlock));
    assert_eq!(table.set(FILE, &lock(owner(1, 1), LockMode::Write, 0, 4)), Ok(()));
    let found = table.conflicting(FILE, &lock(owner(3, 1), LockMode::Write, 0, 99)).unwrap();
    assert_eq!((found.owner, found.range), (owner(1, 1), LockRange { start: 0, end: 4 }));
}

#[test]
fn the_families_do_not_see_each_other_and_flock_ignores_ranges() {
    let mut table = LockTable::default();
    table.set(FILE, &flock(owner(1, 1), LockMode::Write)).unwrap();
    table.set(FILE, &lock(owner(2, 1), LockMode::Write, 0, u64::MAX)).unwrap();
    let elsewhere = Lock { range: LockRange { start: 1000, end: 1001 }, ..flock(owner(2, 1), LockMode::Read) };
    assert_eq!(table.set(FILE, &elsewhere), Err(Refusal::WouldBlock));
    table.set(FILE, &flock(owner(1, 1), LockMode::Read)).unwrap();
    table.set(FILE, &elsewhere).unwrap();
    assert!(table.release_owner(FILE, owner(1, 1), Some(LockFamily::Flock)));
    table.set(FILE, &flock(owner(2, 1), LockMode::Write)).unwrap();
}

#[test]
fn a_refused_lock_changes_nothing() {
    let mut table = LockTable::default();
    table.set(FILE, &lock(owner(1, 1), LockMode::Write, 0, 9)).unwrap();
    table.set(FILE, &lock(owner(2, 1), LockMode::Read, 20, 29)).unwrap();
    assert_eq!(table.set(FILE, &lock(owner(2, 1), LockMode::Write, 5, 25)), Err(Refusal::WouldBlock));
    assert_eq!(ranges(&table), vec![(0, 9, LockMode::Write), (20, 29, LockMode::Read)]);
    assert_eq!(table.set(FILE, &lock(owner(2, 1), LockMode::Read, 9, 5)), Err(Refusal::Invalid));
}

#[test]
fn a_session_that_ends_leaves_no_trace() {
    let mut table = LockTable::default();
    table.set(FILE, &lock(owner(1, 1), LockMode::Write, 0, 9)).unwrap();
    table.set(InodeId(11), &flock(owner(1, 2), LockMode::Write)).unwrap();
    table.set(FILE, &lock(owner(2, 1), LockMode::Write, 10, 19)).unwrap();
    assert_eq!(table.files_of(SessionId(1)), 2);
    assert_eq!(table.release_session(SessionId(1)), vec![FILE, InodeId(11)]);
    assert_eq!(ranges(&table), vec![(10, 19, LockMode::Write)]);
    assert_eq!((table.files(), table.files_of(SessionId(1))), (1, 0));
    table.release_inode(FILE);
    assert_eq!((table.files(), table.files_of(SessionId(2))), (0, 0));
}

proptest! {
    #[test]
    fn record_locks_are_what_each_byte_says(
        steps in prop::collection::vec((1u64..4, 0u8..3, 0u64..24, 0u64..8), 1..80),
    ) {
        let mut table = LockTable::default();
        let mut bytes: Vec<BTreeMap<u64, LockMode>> = vec![BTreeMap::new(); 40];
        for (who, mode, start, length) in steps {
            let mode = [LockMode::Read, LockMode::Write, LockMode::Unlock][usize::from(mode)];
            let end = start + length;
            let blocked = mode != LockMode::Unlock && (start..=end).any(|at| {
                bytes[at as usize].iter().any(|(other, held)| {
                    *other != who && (mode == LockMode::Write || *held == LockMode::Write)
                })
            });
            let expected = if blocked { Err(Refusal::WouldBlock) } else { Ok(()) };
            prop_assert_eq!(table.set(FILE, &lock(owner(who, 0), mode, start, end)), expected);
            if !blocked {
                for at in start..=end {
                    if mode == LockMode::Unlock {
                        bytes[at as usize].remove(&who);
                    } else {
                        bytes[at as usize].insert(who, mode);
                    }
                }
            }
        }
        let mut seen: Vec<BTreeMap<u64, LockMode>> = vec![BTreeMap::new(); 40];
        for (_, lock) in table.iter() {
            for at in lock.range.start..=lock.range.end {
                prop_assert!(seen[at as usize].insert(lock.owner.session.0, lock.mode).is_none(), "locks overlap");
            }
        }
        prop_assert_eq!(&seen, &bytes);
        let locks: Vec<Lock> = table.iter().map(|(_, lock)| lock).collect();
        for pair in locks.windows(2) {
            let joined = pair[0].owner == pair[1].owner && pair[0].mode == pair[1].mode
                && pair[0].range.end + 1 == pair[1].range.start;
            prop_assert!(!joined, "neighbours of one mode are not merged");
        }
    }
}
