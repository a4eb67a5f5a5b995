//! Reading a replica in place: what a chunk server and a client on the same machine share.
//!
//! A chunk server *lends* a replica that nobody is writing: it passes an open file, and promises in a page of shared memory (`ledger`) that
//! what lies in the file is what it would answer itself. It takes the loan back there before anything about the replica changes, and the
//! page ends with its lease, so that a reader who finds the loan standing after it has read has read what is committed (rule 5 of the
//! replication rules). Nobody waits for a reader, and a reader who finds the loan over asks the server as ever.
//!
//! Owned here: where blocks and checksums lie in a chunk file, the page, the words spoken over the socket, and the read itself. Not here: who
//! lends what (the chunk server's driver), and when to ask for a loan (the client).

pub mod file;
pub mod layout;
pub mod ledger;
mod mapping;
pub mod replica;
pub mod words;

pub use ledger::{Ledger, LedgerView, Loan};
pub use replica::{LentReplica, Unread};
