//! Loans of replicas to clients of this machine: which stand, and in which places of the ledger (`gfs_local`).
//!
//! A loan is made under the replica's lock, when nothing is prepared and all that is committed lies in place, and is taken back under the same
//! lock before anything happens to the replica. The lease, and who is a member, end it too. This room decides nothing about bytes.

use super::Driver;
use super::slot::Slot;
use crate::control::lease::Term;
use gfs_core::ids::ChunkHandle;
use gfs_core::replica::{ReadPlan, Status};
use gfs_local::ledger::PLACES;
use gfs_local::words::Terms;
use gfs_local::{Ledger, Loan};
use parking_lot::Mutex;
use std::fs::File;
use std::sync::{Arc, OnceLock, Weak};

/// Places that are tried when all are taken.
const TRIES: u32 = 64;

/// Which loans stand.
///
/// Lock order: the replica's lock, the places', a slot's loan.
#[derive(Default)]
pub struct Loans {
    book: OnceLock<Book>,
    places: Mutex<Places>,
}

struct Book {
    ledger: Arc<Ledger>,
    /// As the ledger has it.
    incarnation: u64,
    /// The server's random id, by which the ledger is found.
    server: u128,
}

#[derive(Default)]
struct Places {
    /// Who had each place last that was used yet.
    owners: Vec<Weak<Slot>>,
    free: Vec<u32>,
    /// The place that is freed next when none is.
    hand: u32,
}

impl Loans {
    /// Replicas may be lent from now on.
    pub fn open(&self, ledger: Arc<Ledger>, incarnation: u64, server: u128) {
        // A second ledger of one process has no loans.
        let _ = self.book.set(Book { ledger, incarnation, server });
    }

    /// The loan of a replica, a new one if none stands. The caller holds the replica's lock and has seen that it may be lent in this term.
    fn lend(&self, slot: &Arc<Slot>, term: Term) -> Option<Loan> {
        let book = self.book.get()?;
        let mut places = self.places.lock();
        let standing = *slot.loan.lock();
        match standing {
            Some(loan) if loan.term == term.0 => return Some(loan),
            Some(_) => places.free.extend(self.end(slot)),
            None => {}
        }
        let place = self.free_place(&mut places)?;
        let loan = book.ledger.lend(place, term.0);
        places.owners[place as usize] = Arc::downgrade(slot);
        *slot.loan.lock() = Some(loan);
        Some(loan)
    }

    fn free_place(&self, places: &mut Places) -> Option<u32> {
        if let Some(place) = places.free.pop() {
            return Some(place);
        }
        let used = places.owners.len() as u32;
        if used < PLACES {
            places.owners.push(Weak::new());
            return Some(used);
        }
        // One whose owner is just giving it up, or was deleted, comes back by itself.
        for _ in 0..TRIES {
            places.hand = (places.hand + 1) % PLACES;
            let owner = places.owners[places.hand as usize].upgrade();
            if let Some(place) = owner.and_then(|owner| self.end(&owner)) {
                return Some(place);
            }
        }
        None
    }

    /// Ends the loan of a replica and answers its place, which is nobody's then. Who finds no loan here knows that it has ended in the ledger.
    fn end(&self, slot: &Slot) -> Option<u32> {
        let mut loan = slot.loan.lock();
        let place = loan.as_ref()?.place;
        if let Some(book) = self.book.get() {
            book.ledger.take_back(place);
        }
        *loan = None;
        Some(place)
    }

    /// Ends the loan of a replica, if one stands. What changes the replica comes after this.
    pub fn take_back(&self, slot: &Slot) {
        if let Some(place) = self.end(slot) {
            self.places.lock().free.push(place);
        }
    }

    /// Ends all loans: a disk has failed, and what its files say may change by itself.
    pub fn take_all_back(&self) {
        let mut places = self.places.lock();
        let ended: Vec<u32> =
            places.owners.iter().filter_map(Weak::upgrade).filter_map(|owner| self.end(&owner)).collect();
        places.free.extend(ended);
    }
}

impl Driver {
    /// Lends a replica, if it is what is committed and nothing is about to change it. Blocks.
    pub fn lend(self: &Arc<Self>, handle: ChunkHandle) -> Option<(Terms, File)> {
        let book = self.loans.book.get()?;
        let slot = self.slot(handle)?;
        let may_be_lent = || slot.term().filter(|_| self.is_in_force(&slot));
        if may_be_lent().is_none() {
            // As a read would have the master asked.
            self.lookup.note(handle);
            return None;
        }
        // What lies in the journal goes to its place first; not under the lock, for it may take a while.
        self.store.settle(handle).ok()?;
        let state = slot.state.lock();
        let replica = &state.replica;
        let epoch = replica.epoch();
        let plan = replica.plan_read(epoch, 0, self.chunk_size());
        let quiet = replica.committed() == replica.prepared() && plan == ReadPlan::Local;
        if plan == ReadPlan::Refuse(Status::Busy) {
            drop(state);
            // As a read would have the primary asked to settle it.
            self.ask_for_settle(&slot);
            return None;
        }
        let term = may_be_lent().filter(|_| quiet && state.stored && !state.gone)?;
        let (file, length) = self.store.lend(handle).ok()??;
        let loan = self.loans.lend(&slot, term)?;
        if may_be_lent() != Some(term) {
            // This server was asked to leave meanwhile, which does not wait for the lock.
            self.loans.take_back(&slot);
            return None;
        }
        let terms = Terms {
            epoch,
            length,
            chunk_size: self.chunk_size(),
            loan,
            incarnation: book.incarnation,
            server: book.server,
        };
        Some((terms, file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::State;
    use crate::store::ChunkHeader;
    use gfs_core::ids::ServerId;
    use gfs_core::replica::{Loaded, Replica};
    use gfs_local::LedgerView;
    use std::time::Duration;

    fn slot(handle: u64) -> Arc<Slot> {
        let replica = Replica::new(ServerId(1), Loaded::default());
        Arc::new(Slot::new(ChunkHandle(handle), State::new(replica, ChunkHeader::default(), false)))
    }

    fn book() -> (Loans, LedgerView, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        let ledger = Arc::new(Ledger::create(&path, 5).unwrap());
        ledger.renew(1, gfs_local::ledger::now() + Duration::from_secs(3600));
        let loans = Loans::default();
        loans.open(ledger, 5, 9);
        (loans, LedgerView::open(&path, 5).unwrap(), dir)
    }

    #[test]
    fn all_who_ask_for_a_replica_get_the_same_loan_until_it_is_taken_back() {
        let (loans, view, _dir) = book();
        let (one, two) = (slot(1), slot(2));
        let loan = loans.lend(&one, Term(1)).unwrap();
        assert_eq!(loans.lend(&one, Term(1)), Some(loan));
        let other = loans.lend(&two, Term(1)).unwrap();
        assert_ne!(loan.place, other.place);
        loans.take_back(&one);
        loans.take_back(&one);
        assert!(!view.stands(&loan) && view.stands(&other));
        let again = loans.lend(&one, Term(1)).unwrap();
        assert!(view.stands(&again) && !view.stands(&loan));
        loans.take_all_back();
        assert!(!view.stands(&again) && !view.stands(&other));
    }

    #[test]
    fn a_loan_of_an_earlier_term_is_not_given_out_in_the_next() {
        let (loans, view, _dir) = book();
        let one = slot(1);
        let old = loans.lend(&one, Term(1)).unwrap();
        let new = loans.lend(&one, Term(2)).unwrap();
        assert_eq!((old.term, new.term), (1, 2));
        assert!(!view.stands(&old));
    }

    #[test]
    fn when_all_places_are_taken_another_loan_ends_for_a_new_one() {
        let (loans, view, _dir) = book();
        let slots: Vec<Arc<Slot>> = (1..=u64::from(PLACES)).map(slot).collect();
        let lent: Vec<Loan> = slots.iter().map(|slot| loans.lend(slot, Term(1)).unwrap()).collect();
        assert!(lent.iter().all(|loan| view.stands(loan)));
        let late = loans.lend(&slot(1 << 40), Term(1)).unwrap();
        assert!(view.stands(&late));
        assert_eq!(lent.iter().filter(|loan| !view.stands(loan)).count(), 1);
    }
}
