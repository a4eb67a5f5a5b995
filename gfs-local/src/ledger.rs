//! The page in which a chunk server says which loans stand.
//!
//! ```text
//! 0     magic
//! 8     incarnation of the process that writes it
//! 16    until when its membership lease is held, in ns of CLOCK_BOOTTIME; 0: it is not
//! 24    term of the lease: another one after each gap
//! 4096  16384 places of 8 bytes: the stamp of the loan in that place
//! ```
//!
//! It is a file in `/dev/shm`, by the server's id, so that whoever comes after a process that was killed can end its loans before it serves:
//! those who still read there would not notice else. A reader looks, after it has read, at the place, then at the end of the lease, then at
//! the term, in this order: what it read was then committed at the moment in which it looked at the place. The server changes a place before
//! it does what changes the replica, and the term before it prolongs a lease that had ended.

use crate::mapping::Mapping;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open, unlink};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

/// Loans that can stand at a time.
pub const PLACES: u32 = 16_384;
const MAGIC: u64 = u64::from_le_bytes(*b"GFSLENT1");
const INCARNATION: usize = 8;
const UNTIL: usize = 16;
const TERM: usize = 24;
const FIRST: usize = 4096;
const LENGTH: usize = FIRST + PLACES as usize * 8;
/// Where shared memory has names.
const SHARED_MEMORY: &str = "/dev/shm";

/// The ledger of a chunk server, by the random id that it has registered with.
pub fn path_of(server: u128) -> PathBuf {
    Path::new(SHARED_MEMORY).join(format!("gfs-lent-{server:032x}"))
}

/// A loan as a reader checks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loan {
    /// Where in the page.
    pub place: u32,
    /// What stands there as long as the loan does. Never 0, and never used again.
    pub stamp: u64,
    /// The term of the lease in which it was made.
    pub term: u64,
}

/// The page, as its chunk server writes it.
#[derive(Debug)]
pub struct Ledger {
    map: Mapping,
    path: PathBuf,
    stamps: AtomicU64,
    ended: AtomicBool,
}

impl Ledger {
    /// Makes the page at `path`, after it has ended every loan of one that is there. The caller must be the only one that serves the replicas.
    ///
    /// # Errors
    /// The system's. An older page that cannot be ended is one: its loans may then stand for as long as its lease.
    pub fn create(path: &Path, incarnation: u64) -> io::Result<Self> {
        end_all(path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = open(path, flags, Mode::RUSR | Mode::WUSR)?;
        // Room for all of it now: a store into a page that cannot be had would kill the process.
        fallocate(&file, FallocateFlags::empty(), 0, LENGTH as u64)?;
        let map = Mapping::new(&file, LENGTH, true)?;
        map.cell(INCARNATION).store(incarnation, Ordering::SeqCst);
        map.cell(0).store(MAGIC, Ordering::SeqCst);
        Ok(Self { map, path: path.to_owned(), stamps: AtomicU64::new(1), ended: AtomicBool::new(false) })
    }

    /// The lease is held until then, on CLOCK_BOOTTIME. `term` is another one than before if it had ended in between.
    pub fn renew(&self, term: u64, until: Duration) {
        self.map.cell(TERM).store(term, Ordering::SeqCst);
        self.map.cell(UNTIL).store(u64::try_from(until.as_nanos()).unwrap_or(0), Ordering::SeqCst);
    }

    /// Makes a loan in a place of which the last one was taken back.
    pub fn lend(&self, place: u32, term: u64) -> Loan {
        // Odd ones are loans, even ones are not.
        let stamp = self.stamps.fetch_add(2, Ordering::SeqCst);
        self.map.cell(offset(place)).store(stamp, Ordering::SeqCst);
        Loan { place, stamp, term }
    }

    /// Ends the loan in a place. Whoever reads from now on knows it.
    pub fn take_back(&self, place: u32) {
        self.map.cell(offset(place)).store(0, Ordering::SeqCst);
        // Nothing that is done to the replica after this is seen before it.
        fence(Ordering::SeqCst);
    }

    /// Ends all loans for good, and removes the page's name.
    pub fn end(&self) {
        self.map.cell(UNTIL).store(0, Ordering::SeqCst);
        self.map.cell(INCARNATION).store(0, Ordering::SeqCst);
        // Once: later the name may be that of another process's page.
        if !self.ended.swap(true, Ordering::SeqCst) {
            // One that stays takes 132 KiB until the server starts again.
            let _ = unlink(&self.path);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ends the loans of the process that was here before, and removes its page.
fn end_all(path: &Path) -> io::Result<()> {
    let file = match open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // One that is shorter was never finished, and nothing was lent in it.
    if rustix::fs::fstat(&file)?.st_size >= LENGTH as i64 {
        let map = Mapping::new(&file, LENGTH, true)?;
        map.cell(UNTIL).store(0, Ordering::SeqCst);
        map.cell(INCARNATION).store(0, Ordering::SeqCst);
    }
    Ok(unlink(path)?)
}

fn offset(place: u32) -> usize {
    assert!(place < PLACES, "place {place} of {PLACES}");
    FIRST + place as usize * 8
}

/// The page, as a reader sees it.
#[derive(Debug)]
pub struct LedgerView {
    map: Mapping,
    incarnation: u64,
}

impl LedgerView {
    /// Opens the page at `path` of the process that has told its `incarnation`.
    ///
    /// # Errors
    /// The system's, and `InvalidData` when it is not that process's.
    pub fn open(path: &Path, incarnation: u64) -> io::Result<Self> {
        let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
        let foreign = || io::Error::new(io::ErrorKind::InvalidData, "not the page of this chunk server");
        if rustix::fs::fstat(&file)?.st_size < LENGTH as i64 {
            return Err(foreign());
        }
        let map = Mapping::new(&file, LENGTH, false)?;
        let fits = incarnation != 0
            && map.cell(0).load(Ordering::SeqCst) == MAGIC
            && map.cell(INCARNATION).load(Ordering::SeqCst) == incarnation;
        if fits { Ok(Self { map, incarnation }) } else { Err(foreign()) }
    }

    /// Whether a loan stands. What was read from the replica before this call is then what was committed at some moment of the call.
    pub fn stands(&self, loan: &Loan) -> bool {
        self.stands_at(loan, now)
    }

    fn stands_at(&self, loan: &Loan, now: impl Fn() -> Duration) -> bool {
        // What was read was read before this.
        fence(Ordering::SeqCst);
        if loan.place >= PLACES || self.map.cell(offset(loan.place)).load(Ordering::SeqCst) != loan.stamp {
            return false;
        }
        let until = Duration::from_nanos(self.map.cell(UNTIL).load(Ordering::SeqCst));
        now() < until
            && self.map.cell(TERM).load(Ordering::SeqCst) == loan.term
            && self.map.cell(INCARNATION).load(Ordering::SeqCst) == self.incarnation
    }
}

/// The clock of leases: it goes on while the machine sleeps, and all processes of it have the same one.
pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    struct Page {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    fn page() -> Page {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        Page { _dir: dir, path }
    }

    #[test]
    fn a_loan_stands_until_it_is_taken_back() {
        let page = page();
        let ledger = Ledger::create(&page.path, 7).unwrap();
        ledger.renew(1, at(1000));
        let view = LedgerView::open(&page.path, 7).unwrap();
        let loan = ledger.lend(5, 1);
        let other = ledger.lend(6, 1);
        assert!(view.stands_at(&loan, || at(999)) && view.stands_at(&other, || at(999)));
        ledger.take_back(5);
        assert!(!view.stands_at(&loan, || at(999)) && view.stands_at(&other, || at(999)));
        let again = ledger.lend(5, 1);
        assert!(!view.stands_at(&loan, || at(999)) && view.stands_at(&again, || at(999)));
    }

    #[test]
    fn loans_end_with_the_lease_and_do_not_come_back_with_the_next_one() {
        let page = page();
        let ledger = Ledger::create(&page.path, 7).unwrap();
        let view = LedgerView::open(&page.path, 7).unwrap();
        let early = ledger.lend(0, 1);
        assert!(!view.stands_at(&early, || at(1)), "no lease was ever held");
        ledger.renew(1, at(1000));
        assert!(view.stands_at(&early, || at(999)));
        assert!(!view.stands_at(&early, || at(1000)));
        ledger.renew(1, at(2000));
        assert!(view.stands_at(&early, || at(1500)), "prolonged without a gap");
        ledger.renew(2, at(5000));
        assert!(!view.stands_at(&early, || at(3000)), "a gap");
        assert!(view.stands_at(&ledger.lend(0, 2), || at(3000)));
    }

    #[test]
    fn whoever_comes_after_a_killed_process_ends_its_loans() {
        let page = page();
        let killed = std::mem::ManuallyDrop::new(Ledger::create(&page.path, 7).unwrap());
        killed.renew(1, at(1000));
        let (view, loan) = (LedgerView::open(&page.path, 7).unwrap(), killed.lend(3, 1));
        assert!(view.stands_at(&loan, || at(10)));
        let next = Ledger::create(&page.path, 8).unwrap();
        next.renew(1, at(1000));
        assert!(!view.stands_at(&loan, || at(10)));
        assert!(LedgerView::open(&page.path, 7).is_err(), "the page of another process");
        let (view, loan) = (LedgerView::open(&page.path, 8).unwrap(), next.lend(3, 1));
        assert!(view.stands_at(&loan, || at(10)));
        drop(next);
        assert!(!view.stands_at(&loan, || at(10)));
        assert!(!page.path.exists());
    }

    #[test]
    fn a_page_that_is_not_whole_is_no_page() {
        let page = page();
        std::fs::write(&page.path, b"short").unwrap();
        assert!(LedgerView::open(&page.path, 7).is_err());
        assert!(Ledger::create(&page.path, 7).is_ok(), "and is replaced");
    }
}
