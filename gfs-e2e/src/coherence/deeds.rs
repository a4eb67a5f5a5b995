//! What each kind of object allows: the sequential meaning of every call that the workers make.
//!
//! A call that changes several objects at one moment (a rename has two names) is one deed on the whole; one that is answered from several
//! moments (a `stat` finds the name and then asks for attributes) is several deeds with the same times.

use super::history::Deed;
use std::collections::{BTreeMap, BTreeSet};

/// What is in a place where no whole value is: bytes of two, or a part of one. No state explains it.
pub const TORN: u64 = u64::MAX;

/// A block of a file, a mode, a time, an extended attribute: 0 is what was never written.
#[derive(Clone, Debug)]
pub enum Register {
    /// Became this.
    Write(u64),
    /// Was this.
    Read(u64),
}

impl Deed for Register {
    type State = u64;

    fn done(&self, before: &u64) -> Option<u64> {
        match self {
            Self::Write(value) => Some(*value),
            Self::Read(value) => (value == before).then_some(*before),
        }
    }

    fn asks(&self) -> bool {
        matches!(self, Self::Read(_))
    }
}

/// A file of records of equal length that grows and is cut; one that was not written is 0.
#[derive(Clone, Debug)]
pub enum Shape {
    /// A record was written, wherever the end was.
    Put {
        /// Which.
        at: usize,
        /// What it became.
        value: u64,
    },
    /// A record was written at the end.
    Append(u64),
    /// The file got this length.
    Cut(usize),
    /// What a record was; nothing beyond the end.
    Got {
        /// Which.
        at: usize,
        /// What it was.
        value: Option<u64>,
    },
    /// How long the file was; nothing that is no number of records can be explained.
    Long(Option<usize>),
}

impl Deed for Shape {
    type State = Vec<u64>;

    fn done(&self, before: &Vec<u64>) -> Option<Vec<u64>> {
        let mut after = before.clone();
        let legal = match self {
            Self::Put { at, value } => {
                after.resize(after.len().max(at + 1), 0);
                after[*at] = *value;
                true
            }
            Self::Append(value) => {
                after.push(*value);
                true
            }
            Self::Cut(length) => {
                after.resize(*length, 0);
                true
            }
            Self::Got { at, value } => before.get(*at) == value.as_ref(),
            Self::Long(length) => Some(before.len()) == *length,
        };
        legal.then_some(after)
    }

    fn asks(&self) -> bool {
        matches!(self, Self::Got { .. } | Self::Long(_))
    }
}

/// A log: whoever appends gets the next place, and it only grows.
#[derive(Clone, Debug)]
pub enum Log {
    /// The record that has this place in the end was appended.
    Append(usize),
    /// So many records were there.
    Long(usize),
}

impl Deed for Log {
    type State = usize;

    fn done(&self, before: &usize) -> Option<usize> {
        match self {
            Self::Append(place) => (place == before).then_some(before + 1),
            Self::Long(length) => (length == before).then_some(*before),
        }
    }

    fn asks(&self) -> bool {
        matches!(self, Self::Long(_))
    }
}

/// Names of one directory, and the inodes that they stand for.
#[derive(Clone, Debug)]
pub enum Naming {
    /// A file was made that had not been there. One whose making failed has a number of its own, see [`unknown`].
    Make(u8, u64),
    /// An inode that had a name was given one more.
    Link(u64, u8),
    /// A name was changed, over another if there was one.
    Rename(u8, u8),
    /// As `Rename`, and there was no other.
    RenameToNew(u8, u8),
    /// Two names changed their files.
    Exchange(u8, u8),
    /// A name was taken away.
    Unlink(u8),
    /// A name was not there.
    Absent(u8),
    /// One of two names was not there.
    OneAbsent(u8, u8),
    /// A name was there.
    Present(u8),
    /// A name stood for this inode.
    Is(u8, u64),
    /// An inode had so many names.
    Links(u64, u64),
}

/// An inode whose number nobody was told, by the number of its making.
pub fn unknown(making: u64) -> u64 {
    1 << 63 | making
}

impl Deed for Naming {
    type State = BTreeMap<u8, u64>;

    fn done(&self, before: &BTreeMap<u8, u64>) -> Option<BTreeMap<u8, u64>> {
        let mut after = before.clone();
        let is = |name: &u8| before.contains_key(name);
        let legal = match self {
            Self::Make(name, inode) => after.insert(*name, *inode).is_none(),
            Self::Link(inode, to) => before.values().any(|found| found == inode) && after.insert(*to, *inode).is_none(),
            Self::Rename(from, to) => is(from) && rename(&mut after, *from, *to),
            Self::RenameToNew(from, to) => is(from) && !is(to) && rename(&mut after, *from, *to),
            Self::Exchange(one, other) => {
                let both = is(one) && is(other);
                if both {
                    after.extend([(*one, before[other]), (*other, before[one])]);
                }
                both
            }
            Self::Unlink(name) => after.remove(name).is_some(),
            Self::Absent(name) => !is(name),
            Self::OneAbsent(one, other) => !is(one) || !is(other),
            Self::Present(name) => is(name),
            Self::Is(name, inode) => return known(before, *name, *inode),
            Self::Links(inode, count) => before.values().filter(|found| *found == inode).count() as u64 == *count,
        };
        legal.then_some(after)
    }

    // `Is` may tell the number of an inode.
    fn asks(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::OneAbsent(..) | Self::Present(_) | Self::Links(..))
    }
}

/// Two names of one file stay as they are (POSIX).
fn rename(names: &mut BTreeMap<u8, u64>, from: u8, to: u8) -> bool {
    if names.get(&from) != names.get(&to) {
        let inode = names.remove(&from).expect("the name is there");
        names.insert(to, inode);
    }
    true
}

/// The number of an inode whose making failed becomes known when it is seen.
fn known(names: &BTreeMap<u8, u64>, name: u8, inode: u64) -> Option<BTreeMap<u8, u64>> {
    let found = *names.get(&name)?;
    if found == inode {
        return Some(names.clone());
    }
    let new = found >= unknown(0) && !names.values().any(|other| *other == inode);
    let learn = |(name, other): (&u8, &u64)| (*name, if *other == found { inode } else { *other });
    new.then(|| names.iter().map(learn).collect())
}

/// A lock; each attempt to get it has a number.
#[derive(Clone, Debug)]
pub enum Lock {
    /// Was granted to one alone.
    Exclusive(u64),
    /// Was granted to one of several.
    Shared(u64),
    /// Was refused to one who wanted it alone.
    ExclusiveRefused,
    /// Was refused to one who would have shared it.
    SharedRefused,
    /// Was given back.
    Unlock(u64),
}

/// Who has a lock.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Holders {
    exclusive: Option<u64>,
    shared: BTreeSet<u64>,
}

impl Deed for Lock {
    type State = Holders;

    fn done(&self, before: &Holders) -> Option<Holders> {
        let mut after = before.clone();
        let legal = match self {
            Self::Exclusive(who) => {
                after.exclusive = Some(*who);
                *before == Holders::default()
            }
            Self::Shared(who) => after.shared.insert(*who) && before.exclusive.is_none(),
            Self::ExclusiveRefused => *before != Holders::default(),
            Self::SharedRefused => before.exclusive.is_some(),
            Self::Unlock(who) if before.exclusive == Some(*who) => {
                after.exclusive = None;
                true
            }
            Self::Unlock(who) => after.shared.remove(who),
        };
        legal.then_some(after)
    }

    fn asks(&self) -> bool {
        matches!(self, Self::ExclusiveRefused | Self::SharedRefused)
    }
}

/// A number that is raised under a lock only: read, and written one higher.
#[derive(Clone, Debug)]
pub enum Counter {
    /// Was this, and became one more.
    Raise(u64),
    /// Was this.
    Read(u64),
}

impl Deed for Counter {
    type State = u64;

    fn done(&self, before: &u64) -> Option<u64> {
        match self {
            Self::Raise(found) => (found == before).then_some(before + 1),
            Self::Read(found) => (found == before).then_some(*before),
        }
    }

    fn asks(&self) -> bool {
        matches!(self, Self::Read(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::history::{Call, check};

    /// Calls one after the other.
    fn in_turn<D: Deed>(deeds: &[D]) -> Vec<Call<D>> {
        let call = |(deed, at): (&D, u64)| Call {
            who: 0,
            how: String::new(),
            deed: deed.clone(),
            begin: 2 * at,
            end: Some(2 * at + 1),
        };
        deeds.iter().zip(1..).map(call).collect()
    }

    /// Calls beside each other.
    fn at_once<D: Deed>(deeds: &[D]) -> Vec<Call<D>> {
        deeds
            .iter()
            .map(|deed| Call { who: 0, how: String::new(), deed: deed.clone(), begin: 1, end: Some(9) })
            .collect()
    }

    #[track_caller]
    fn legal<D: Deed>(start: D::State, deeds: &[D]) {
        check(start, &in_turn(deeds)).unwrap();
    }

    #[track_caller]
    fn illegal<D: Deed>(start: D::State, deeds: &[D]) {
        check(start.clone(), &in_turn(&deeds[..deeds.len() - 1])).expect("up to the last");
        check(start, &in_turn(deeds)).expect_err("with the last");
    }

    #[test]
    fn a_block_is_what_was_written_last_and_whole() {
        use Register::{Read, Write};
        legal(0, &[Read(0), Write(1), Read(1), Write(2), Read(2)]);
        illegal(0, &[Write(1), Write(2), Read(1)]);
        illegal(0, &[Write(1), Write(2), Read(TORN)]);
    }

    #[test]
    fn a_file_grows_with_zeros_and_what_was_cut_does_not_come_back() {
        use Shape::{Append, Cut, Got, Long, Put};
        let got = |at, value| Got { at, value };
        let filled = [Put { at: 2, value: 7 }, Append(8)];
        let after = |deed: Shape| [filled[0].clone(), filled[1].clone(), Cut(1), Cut(3), deed];
        legal(vec![], &[filled[0].clone(), Long(Some(3)), got(0, Some(0)), got(2, Some(7)), got(3, None)]);
        legal(vec![], &after(got(2, Some(0))));
        illegal(vec![], &after(got(2, Some(7))));
        illegal(vec![], &after(got(3, Some(8))));
        illegal(vec![], &after(Long(Some(4))));
        illegal(vec![], &after(Long(None)));
        illegal(vec![], &after(got(2, None)));
        illegal(vec![], &after(got(1, Some(TORN))));
    }

    #[test]
    fn appends_beside_each_other_both_last() {
        use Shape::{Append, Long};
        let mut calls = at_once(&[Append(1), Append(2)]);
        let look = |length| Call { who: 1, how: String::new(), deed: Long(Some(length)), begin: 10, end: Some(11) };
        calls.push(look(2));
        check(vec![], &calls).unwrap();
        calls[2] = look(1);
        check(vec![], &calls).unwrap_err();
    }

    #[test]
    fn a_log_is_in_the_order_of_its_appends_and_does_not_shrink() {
        use Log::{Append, Long};
        legal(0, &[Append(0), Long(1), Append(1), Long(2)]);
        illegal(0, &[Append(0), Append(1), Long(1)]);
        illegal(0, &[Append(1)]);
        check(0, &at_once(&[Append(1), Append(0), Long(1), Long(2)])).unwrap();
    }

    #[test]
    fn a_name_is_made_once_and_stands_for_one_inode() {
        use Naming::{Absent, Is, Make, Present};
        let start = BTreeMap::new;
        legal(start(), &[Absent(1), Make(1, 10), Present(1), Is(1, 10), Absent(2)]);
        illegal(start(), &[Make(1, 10), Make(1, 11)]);
        illegal(start(), &[Make(1, 10), Is(1, 11)]);
        illegal(start(), &[Make(1, 10), Absent(1)]);
        illegal(start(), &[Present(1)]);
        check(start(), &at_once(&[Make(1, 10), Make(1, 11)])).expect_err("both made it");
    }

    #[test]
    fn a_rename_takes_one_name_away_as_it_gives_the_other() {
        use Naming::{Absent, Is, Make, Rename, RenameToNew, Unlink};
        let start = BTreeMap::new;
        let made = [Make(1, 10), Make(2, 20)];
        let after = |more: &[Naming]| made.iter().chain(more).cloned().collect::<Vec<_>>();
        legal(start(), &after(&[Rename(1, 2), Absent(1), Is(2, 10)]));
        illegal(start(), &after(&[Rename(1, 2), Is(1, 10)]));
        illegal(start(), &after(&[Rename(1, 2), Is(2, 20)]));
        illegal(start(), &after(&[Rename(3, 2)]));
        illegal(start(), &after(&[RenameToNew(1, 2)]));
        illegal(start(), &after(&[Unlink(1), Unlink(1)]));
        // Seen under the new name, it is not under the old one any more, though the rename has not returned.
        let mut calls = in_turn(&after(&[Is(2, 10), Is(1, 10)]));
        calls.push(Call { who: 1, how: String::new(), deed: Rename(1, 2), begin: 5, end: Some(20) });
        check(start(), &calls).unwrap_err();
    }

    #[test]
    fn links_are_counted_and_exchanged() {
        use Naming::{Exchange, Is, Link, Links, Make, OneAbsent, Rename, Unlink};
        let start = BTreeMap::new;
        let made = [Make(1, 10), Link(10, 2), Make(3, 30)];
        let after = |more: &[Naming]| made.iter().chain(more).cloned().collect::<Vec<_>>();
        legal(start(), &after(&[Links(10, 2), Exchange(2, 3), Is(3, 10), Is(2, 30), Links(10, 2), Links(99, 0)]));
        illegal(start(), &after(&[Links(10, 1)]));
        illegal(start(), &after(&[Exchange(1, 4)]));
        illegal(start(), &after(&[Link(30, 1)]));
        illegal(start(), &after(&[Unlink(3), Link(30, 4)]));
        illegal(start(), &after(&[OneAbsent(1, 3)]));
        legal(start(), &after(&[Rename(1, 2), Is(1, 10), Is(2, 10)]));
    }

    #[test]
    fn a_file_whose_making_failed_is_one_file_wherever_it_is_seen() {
        use Naming::{Is, Make, Rename};
        let look =
            |name, inode, at| Call { who: 1, how: String::new(), deed: Is(name, inode), begin: at, end: Some(at + 1) };
        let make = Call { who: 0, how: String::new(), deed: Make(1, unknown(5)), begin: 1, end: None };
        let rename = Call { who: 0, how: String::new(), deed: Rename(1, 2), begin: 4, end: Some(5) };
        let calls = |second| [make.clone(), look(1, 77, 2), rename.clone(), look(2, second, 6)];
        check(BTreeMap::new(), &calls(77)).unwrap();
        check(BTreeMap::new(), &calls(78)).unwrap_err();
    }

    #[test]
    fn a_lock_has_one_holder_or_some_who_share_it() {
        use Lock::{Exclusive, ExclusiveRefused, Shared, SharedRefused, Unlock};
        let free = Holders::default;
        legal(free(), &[Exclusive(1), ExclusiveRefused, SharedRefused, Unlock(1), Exclusive(2), Unlock(2)]);
        legal(free(), &[Shared(1), Shared(2), ExclusiveRefused, Unlock(1), Unlock(2), Exclusive(3)]);
        illegal(free(), &[Exclusive(1), Exclusive(2)]);
        illegal(free(), &[Exclusive(1), Shared(2)]);
        illegal(free(), &[Shared(1), Shared(2), Unlock(1), Exclusive(3)]);
        illegal(free(), &[Exclusive(1), Unlock(1), ExclusiveRefused]);
        illegal(free(), &[Shared(1), SharedRefused]);
        illegal(free(), &[Exclusive(1), Unlock(2)]);
        // Given back by a close, which nobody is told the end of.
        let close = Call { who: 0, how: String::new(), deed: Unlock(1), begin: 4, end: None };
        let mut calls = in_turn(&[Exclusive(1)]);
        calls.push(close);
        calls.extend(in_turn(&[Exclusive(1), Exclusive(2), ExclusiveRefused]).drain(1..).map(|mut call| {
            (call.begin, call.end) = (call.begin + 10, call.end.map(|end| end + 10));
            call
        }));
        check(free(), &calls).unwrap();
        calls.remove(1);
        check(free(), &calls).unwrap_err();
    }

    #[test]
    fn no_raise_of_a_counter_is_lost() {
        use Counter::{Raise, Read};
        legal(0, &[Raise(0), Read(1), Raise(1), Read(2)]);
        illegal(0, &[Raise(0), Raise(0)]);
        illegal(0, &[Raise(0), Raise(1), Read(1)]);
        check(0, &at_once(&[Raise(0), Raise(0)])).expect_err("two had the lock");
    }
}
