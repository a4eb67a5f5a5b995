//! One thread on one mount: it draws what to do next, does it, and keeps what it saw.

use super::evidence::Evidence;
use super::history::Call;
use super::place::{Object, Place};
use super::{attributes, data, locks, names};
use gfs_core::splitmix::SplitMix64;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// For reading, through the page cache where the mount allows it.
    Cached,
    /// For reading past the page cache of the kernel.
    Direct,
    /// For both.
    Both,
    /// For both, with `O_DIRECT`.
    BothDirect,
    /// For both, with `O_SYNC`.
    BothSync,
    /// For both, with `O_APPEND`.
    Append,
}

/// What a call returned, and when.
pub struct Timed<T> {
    begin: u64,
    end: u64,
    /// What it returned.
    pub result: io::Result<T>,
}

/// A worker in one round.
pub struct Worker<'a> {
    /// What it draws from.
    pub numbers: SplitMix64,
    /// What it saw.
    pub seen: Evidence,
    place: &'a Place,
    mount: usize,
    number: u16,
    clock: Instant,
    stamps: u64,
    open: BTreeMap<(Object, Way), Rc<File>>,
    focus: [u64; 2],
    /// By what means it does what it does.
    how: RefCell<String>,
}

/// One of `KEPT` times a file is opened anew and not used as it was left open.
const KEPT: u64 = 5;

impl<'a> Worker<'a> {
    /// The worker `number` on a mount.
    pub fn new(place: &'a Place, mount: usize, number: u16, seed: u64, clock: Instant) -> Self {
        // All workers of a round have the same focus, so that they meet.
        let mut round = SplitMix64::new(seed);
        let focus = [(); 2].map(|()| round.below(KINDS.len() as u64));
        let who = (mount as u64) << 8 | u64::from(number);
        let numbers = SplitMix64::new(round.draw() ^ who.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (seen, open) = (Evidence::default(), BTreeMap::new());
        Self { numbers, seen, place, mount, number, clock, stamps: 0, open, focus, how: RefCell::default() }
    }

    /// Does one thing.
    pub fn step(&mut self) {
        let any = self.numbers.below(KINDS.len() as u64);
        let kind = self.numbers.below(3).checked_sub(1).map_or(any, |focus| self.focus[focus as usize]);
        KINDS[kind as usize](self);
    }

    /// Looks at everything once.
    pub fn look(&mut self) {
        data::look(self);
        attributes::look(self);
        names::look(self);
    }

    /// Which mount and which of its workers.
    pub fn who(&self) -> u16 {
        (self.mount as u16) << 8 | self.number
    }

    /// Whether it is the one of its mount that may do what only one may.
    pub fn is_first(&self) -> bool {
        self.number == 0
    }

    /// A value that no other call of the round has.
    pub fn stamp(&mut self) -> u64 {
        self.stamps += 1;
        (u64::from(self.who()) + 1) << 32 | self.stamps
    }

    /// A number of the round that fits in less than 32 bits.
    pub fn small_stamp(&mut self) -> u32 {
        self.stamps += 1;
        (u32::from(self.who()) + 1) << 16 | self.stamps as u32
    }

    /// One time in so many.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.numbers.below(times) == 0
    }

    /// Where an object is, through this worker's mount.
    pub fn path(&self, object: Object) -> PathBuf {
        "by its path".clone_into(&mut self.how.borrow_mut());
        self.place.path(self.mount, object)
    }

    /// Makes a call, and takes the time before and after it.
    pub fn timed<T>(&self, work: impl FnOnce() -> io::Result<T>) -> Timed<T> {
        let now = || self.clock.elapsed().as_nanos() as u64;
        let begin = now();
        let result = work();
        Timed { begin, end: now(), result }
    }

    /// An open file, often one that was opened before.
    pub fn file(&mut self, object: Object, way: Way) -> io::Result<Rc<File>> {
        if self.one_in(KEPT) {
            self.open.remove(&(object, way));
        }
        if let Some(file) = self.open.get(&(object, way)) {
            *self.how.borrow_mut() = format!("{way:?}, open before");
            return Ok(Rc::clone(file));
        }
        let begin = self.clock.elapsed().as_secs_f64();
        let file = Rc::new(open(self.path(object), way)?);
        *self.how.borrow_mut() = format!("{way:?}, opened from {begin:.6} on");
        self.open.insert((object, way), Rc::clone(&file));
        Ok(file)
    }

    /// A change: one that failed may have happened.
    pub fn changed<T, D>(&mut self, timed: &Timed<T>, deed: D) -> Call<D>
    where
        D: std::fmt::Debug,
    {
        if let Err(error) = &timed.result {
            self.failed(&format!("{deed:?}"), error);
        }
        let end = timed.result.is_ok().then_some(timed.end);
        Call { who: self.who(), how: self.how.borrow().clone(), deed, begin: timed.begin, end }
    }

    /// An answer, at one moment of the call.
    pub fn answer<T, D>(&self, timed: &Timed<T>, deed: D) -> Call<D> {
        Call { who: self.who(), how: self.how.borrow().clone(), deed, begin: timed.begin, end: Some(timed.end) }
    }

    /// All from the begin of one call to the end of another.
    pub fn spanning<A, B, D>(&self, first: &Timed<A>, last: &Timed<B>, deed: D) -> Call<D> {
        Call {
            who: self.who(),
            how: self.how.borrow().clone(),
            deed,
            begin: first.begin,
            end: last.result.is_ok().then_some(last.end),
        }
    }

    /// A call that failed, and told nothing by that.
    pub fn failed(&mut self, what: &str, error: &io::Error) {
        let at = self.clock.elapsed().as_secs_f64();
        self.seen.failed.push(format!("{:04x} {at:.6} {what}: {error}", self.who()));
    }

    /// The value of a call that should not fail.
    pub fn value<T>(&mut self, what: &str, result: io::Result<T>) -> Option<T> {
        result.map_err(|error| self.failed(what, &error)).ok()
    }
}

type Kind = fn(&mut Worker<'_>);

const KINDS: [Kind; 7] = [
    data::work_on_blocks,
    data::work_on_shape,
    data::work_on_log,
    data::work_on_mapped,
    attributes::work,
    names::work,
    locks::work,
];

/// Opens a file that is there.
pub fn open(path: PathBuf, way: Way) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    match way {
        Way::Cached => {}
        Way::Direct => _ = options.custom_flags(libc::O_DIRECT),
        Way::Both => _ = options.write(true),
        Way::BothDirect => _ = options.write(true).custom_flags(libc::O_DIRECT),
        Way::BothSync => _ = options.write(true).custom_flags(libc::O_SYNC),
        Way::Append => _ = options.append(true),
    }
    options.open(path)
}
