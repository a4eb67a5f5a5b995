//! The vocabulary of replication: what happens to a replica, and what it wants done.
//!
//! This room owns the types between the state machine and its driver. It decides nothing.

use crate::ids::{BlockVersion, Epoch, OperationId, Sequence, ServerId};
use crate::meta::request::{Configuration, Stored};

/// Names a request that waits for its answer; opaque to the state machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Names a flush that was started; given by the state machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// What a write does to the bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum WriteKind {
    /// Puts the payload at the offset.
    Data = 0,
    /// Makes the range read as zeros; the replica's length stays.
    Zero = 1,
    /// Makes the range read as zeros, and the replica's length becomes at most the offset.
    Truncate = 2,
}

impl WriteKind {
    /// The kind with this number on the wire or on disk.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Data),
            1 => Some(Self::Zero),
            2 => Some(Self::Truncate),
            _ => None,
        }
    }
}

/// A write with its place in the chunk's history.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PreparedWrite {
    /// The epoch in which it was first ordered, and its place.
    pub version: BlockVersion,
    /// Who asked for it; session 0 is the master.
    pub operation: OperationId,
    /// What it does.
    pub kind: WriteKind,
    /// First byte in the chunk.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// The primary chose the offset: it is the operation's answer.
    pub append: bool,
}

impl PreparedWrite {
    /// The byte after the last.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Its place in the history.
    pub fn sequence(&self) -> Sequence {
        self.version.sequence
    }

    /// Whether it touches any byte of `[offset, offset + length)`.
    pub fn overlaps(&self, offset: u64, length: u64) -> bool {
        self.offset < offset.saturating_add(length) && offset < self.end()
    }
}

/// What a replica remembers of an operation, so that a repeat is answered and not applied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OperationRecord {
    /// Whose.
    pub operation: OperationId,
    /// The write's place in the history.
    pub sequence: Sequence,
    /// Where it landed.
    pub offset: u64,
}

/// How a request ended; the closed set of `DataReply.Status`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum Status {
    Ok,
    StaleEpoch,
    NotPrimary,
    NotMember,
    NoChunk,
    NoLease,
    Busy,
    Corrupt,
    IoError,
    NoSpace,
    NoRoom,
    Malformed,
    TimedOut,
    OutOfOrder,
    Fenced,
}

/// The answer to a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// Where the write landed; for `NoRoom` the tail.
    pub offset: u64,
    /// The write's place; for a prepare what is prepared here; for a query and a flush what is committed.
    pub sequence: Sequence,
    /// Of a settle only.
    pub settled: Option<SettledAs>,
    /// Of a write: the last cut of the chunk that it came after; 0 is none.
    pub cut: Epoch,
    /// Of a mutation: how much of the chunk is stored now. The driver's to fill in, which knows the blocks.
    pub stored: Option<Stored>,
}

impl Outcome {
    /// An answer that says nothing but how it ended.
    pub fn of(status: Status) -> Self {
        Self { status, offset: 0, sequence: Sequence(0), settled: None, cut: Epoch(0), stored: None }
    }

    /// An answer with a place in the history.
    pub fn at(status: Status, sequence: Sequence) -> Self {
        Self { sequence, ..Self::of(status) }
    }
}

/// What a member says of itself when it settles.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SettledAs {
    /// Prepared without a gap up to here.
    pub prepared: Sequence,
    /// It may lack something after a power loss.
    pub suspect: bool,
    /// Syncing: its blocks up to `base` were whole before, so that equal versions mean equal bytes.
    pub trusted: bool,
    /// Syncing: writes above this arrive as prepares.
    pub base: Sequence,
}

/// A mutation as a client asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// Writes, zeroes or truncates at a given place.
    At {
        /// What.
        kind: WriteKind,
        /// First byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Writes at max(tail, `min_offset`).
    Append {
        /// Not before this.
        min_offset: u64,
        /// Not past this.
        limit: u64,
        /// How many bytes.
        length: u64,
    },
}

/// What happens to a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The server got or lost its membership lease.
    Lease(bool),
    /// A configuration became known through another server.
    Configuration(Configuration),
    /// The master said, to a question asked in this term of the lease, that this configuration is in
    /// force. Nothing is served before it did: the server may have been dropped while it had no lease.
    InForce(Configuration),
    /// A client or the master asks for a mutation. Its payload stays with the driver.
    Mutate {
        /// To answer.
        token: Token,
        /// The sender's configuration.
        epoch: Epoch,
        /// Names the mutation.
        operation: OperationId,
        /// Answers of that session up to here have arrived.
        confirmed: u64,
        /// What.
        mutation: Mutation,
        /// The session is over (`Fences`): it may hear of what it did, and does no more.
        fenced: bool,
    },
    /// A client asks for everything committed to be on stable storage of all members.
    Sync {
        /// To answer.
        token: Token,
        /// The sender's configuration.
        epoch: Epoch,
    },
    /// The local store ended the last `Action::Store`. Fed before any other event.
    Stored(Result<(), Status>),
    /// The local store ended `Action::Flush`.
    Flushed {
        /// Which.
        ticket: Ticket,
        /// Whether everything committed before it began is on stable storage.
        ok: bool,
    },
    /// The local replica can't be used any more: its disk failed, or it is corrupt.
    Broken,
    /// The primary's message.
    Peer {
        /// To answer; `None` for a notice.
        token: Option<Token>,
        /// The sender's configuration.
        epoch: Epoch,
        /// What it says.
        message: Message,
    },
    /// A member's answer to this primary.
    Answer {
        /// Who.
        from: ServerId,
        /// The epoch of the message that is answered.
        epoch: Epoch,
        /// Which kind of message it was, and the answer.
        answer: Answer,
    },
    /// A message could not be delivered or was not answered in time.
    Unreachable {
        /// To whom.
        server: ServerId,
        /// The epoch of the message.
        epoch: Epoch,
    },
    /// The delay after `Action::RetryLater` is over.
    Retry(ServerId),
    /// A secondary or a reader asks what is committed. `unsettled` names a member that waits for a settle.
    CommittedQuery {
        /// To answer.
        token: Token,
        /// The sender's configuration.
        epoch: Epoch,
        /// A member that has not settled since it started.
        unsettled: Option<ServerId>,
    },
    /// The primary's answer to this secondary's query.
    CommittedLearned {
        /// The epoch of the query.
        epoch: Epoch,
        /// What is committed.
        committed: Sequence,
    },
    /// All blocks have been copied to a syncing member, in the epoch.
    Filled {
        /// Who.
        server: ServerId,
        /// In which epoch the copy was made.
        epoch: Epoch,
    },
}

/// What a primary says to the other servers of its configuration.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    /// Agree with my prefix: forget what was ordered in older epochs beyond `prepared`.
    Settle {
        /// Committed at the primary.
        committed: Sequence,
        /// Prepared at the primary.
        prepared: Sequence,
    },
    /// Store this write. Its payload is found by its sequence.
    Prepare {
        /// The write.
        write: PreparedWrite,
        /// The session's confirmed answers.
        confirmed: u64,
        /// Everything up to here is committed.
        committed: Sequence,
    },
    /// Everything up to here is committed.
    Committed(Sequence),
    /// Bring everything up to `committed` to stable storage.
    Flush {
        /// The primary's name for it.
        ticket: Ticket,
        /// Everything up to here is committed.
        committed: Sequence,
    },
}

/// A member's answer to a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// To a prepare.
    Prepare(Outcome),
    /// To a settle.
    Settle(Outcome),
    /// To a flush.
    Flush(Ticket, Outcome),
}

/// What a replica wants done. The driver carries actions out in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Record the configuration so that it survives a kill of the process; one with a single member has to survive a power cut
    /// too. That member loses its doubts about what it holds when it learns that it is alone, so after a power cut it must not
    /// learn so a second time.
    Persist(Configuration),
    /// Store the write with its payload, in files of the operating system, and answer with
    /// `Event::Stored` before any other event. Always the last action of its batch.
    Store {
        /// The write.
        write: PreparedWrite,
        /// The session's confirmed answers: older records may go.
        confirmed: u64,
    },
    /// Prepared writes up to here take effect.
    Commit(Sequence),
    /// Forget prepared writes above this.
    RollBack(Sequence),
    /// Begin to be filled: forget prepared writes; committed and prepared become `base`.
    StartFill {
        /// Writes above this arrive as prepares.
        base: Sequence,
    },
    /// Note durably that the replica lacks something, or that it is known to be whole again.
    Suspect(bool),
    /// Send it, in order with everything else for this chunk and server.
    Send {
        /// To whom.
        to: ServerId,
        /// What.
        message: Message,
    },
    /// Answer a request.
    Reply {
        /// Which.
        token: Token,
        /// With what.
        outcome: Outcome,
    },
    /// Bring everything committed to stable storage, answered with `Event::Flushed`.
    Flush(Ticket),
    /// `wanted_change()` became something: ask the master until it is nothing.
    AskMaster,
    /// Feed `Event::Retry` after a short delay.
    RetryLater(ServerId),
    /// Copy all blocks to a syncing member, then feed `Event::Filled`.
    Fill {
        /// To whom.
        to: ServerId,
        /// In which epoch; the copy ends with it.
        epoch: Epoch,
        /// Writes above this reach it as prepares.
        base: Sequence,
        /// Blocks with equal versions at or below `base` need no copy.
        trusted: bool,
    },
}

/// A change of the configuration that a primary asks the master for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedChange {
    /// The configuration that it is based on.
    pub epoch: Epoch,
    /// Servers to leave out.
    pub failed: Vec<ServerId>,
    /// Syncing servers whose copy is on stable storage.
    pub ready: Vec<ServerId>,
}

/// What a replica is in its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Not named by it, or none is known.
    Outside,
    /// Orders the writes.
    Primary,
    /// Follows, and serves reads.
    Secondary,
    /// Is being filled.
    Syncing,
}

/// How a read is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadPlan {
    /// The local committed bytes are the latest.
    Local,
    /// Ask this primary what is committed, feed `CommittedLearned`, then read locally.
    AskPrimary(ServerId),
    /// Refuse.
    Refuse(Status),
}

/// What the store knows of a replica when the server starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// The newest configuration that was recorded.
    pub configuration: Option<Configuration>,
    /// Committed up to here.
    pub committed: Sequence,
    /// Prepared and not committed, in order, without a gap above `committed`.
    pub prepared: Vec<PreparedWrite>,
    /// Length of the committed bytes.
    pub length: u64,
    /// Operations that may be repeated.
    pub operations: Vec<OperationRecord>,
    /// It may lack something after a power loss.
    pub suspect: bool,
    /// Being filled had begun and not ended.
    pub filling: bool,
}
