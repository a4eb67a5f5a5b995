//! The raft log on the segment log: votes, entries, truncations, purges and what is committed are records
//! of one log, so that one fsync covers them all.
//!
//! This room owns the table from index to position and a bounded cache of the newest entries. It never
//! applies an entry.

use super::codec::{self, CodecError, LogRecord};
use super::types::{LogId, NodeId, RaftEntry, StorageError, TypeConfig};
use gfs_log::{Log, LogError, LogOptions, Position};
use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, Vote};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Entries up to this many bytes in total are kept in memory behind the end of the log.
const CACHE_BYTES: usize = 32 << 20;
/// How long an entry stays off stable storage when nobody waits for that.
const FLUSH_WITHIN: Duration = Duration::from_millis(5);

/// Why the raft log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogStoreError {
    /// The segment log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record is whole but says nothing that makes sense.
    #[error("log record at position {position}: {source}")]
    Record {
        /// Where.
        position: u64,
        /// What is wrong.
        source: CodecError,
    },
    /// Entries do not follow each other.
    #[error("log entry {found} at position {position} where {expected} should be")]
    Hole {
        /// Where.
        position: u64,
        /// The index that must follow.
        expected: u64,
        /// The index that does.
        found: u64,
    },
}

/// The raft log; clones share it.
#[derive(Clone)]
pub struct LogStore {
    log: Arc<Log>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    vote: Option<Vote<NodeId>>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    cached: usize,
    /// Slots before this offset are not cached.
    evicted: usize,
    /// Whether an entry was seen since the log was opened: before that its start is not known.
    anchored: bool,
}

struct Slot {
    id: LogId,
    position: Position,
    bytes: usize,
    entry: Option<RaftEntry>,
}

impl Table {
    fn next(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn push(&mut self, slot: Slot) {
        if slot.entry.is_some() {
            self.cached += slot.bytes;
        }
        self.slots.push_back(slot);
        while self.cached > CACHE_BYTES && self.evicted < self.slots.len() {
            let old = &mut self.slots[self.evicted];
            if old.entry.take().is_some() {
                self.cached -= old.bytes;
            }
            self.evicted += 1;
        }
    }

    fn truncate(&mut self, from: u64) {
        while self.next() > from && !self.slots.is_empty() {
            if let Some(slot) = self.slots.pop_back()
                && slot.entry.is_some()
            {
                self.cached -= slot.bytes;
            }
        }
        self.evicted = self.evicted.min(self.slots.len());
    }

    fn purge(&mut self, upto: LogId) {
        while self.first <= upto.index {
            let Some(slot) = self.slots.pop_front() else {
                self.first = upto.index + 1;
                break;
            };
            if slot.entry.is_some() {
                self.cached -= slot.bytes;
            }
            self.first += 1;
            self.evicted = self.evicted.saturating_sub(1);
        }
        if self.purged.is_none_or(|old| old.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    fn range(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => at.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => at.saturating_add(1),
            Bound::Excluded(at) => *at,
            Bound::Unbounded => u64::MAX,
        };
        (start.max(self.first), end.min(self.next()))
    }

    fn replay(&mut self, position: Position, kind: u8, payload: &[u8]) -> Result<(), LogStoreError> {
        let wrap = |source| LogStoreError::Record { position: position.0, source };
        if kind == codec::KIND_ENTRY {
            let id = codec::peek_log_id(payload).map_err(wrap)?;
            return self.replay_entry(position, id, payload.len());
        }
        match codec::decode(kind, payload).map_err(wrap)? {
            LogRecord::Entry(_) => unreachable!("entries are handled above"),
            LogRecord::Vote(vote) => self.vote = Some(vote),
            LogRecord::Truncate(from) => self.truncate(from),
            LogRecord::Purge(upto) => self.purge(upto),
            LogRecord::Committed(id) => self.committed = id,
        }
        Ok(())
    }

    fn replay_entry(&mut self, position: Position, id: LogId, bytes: usize) -> Result<(), LogStoreError> {
        if !self.anchored {
            // The first segment that is left may start anywhere; a later purge record says where.
            self.first = id.index;
            self.anchored = true;
        }
        if id.index != self.next() {
            return Err(LogStoreError::Hole { position: position.0, expected: self.next(), found: id.index });
        }
        self.push(Slot { id, position, bytes, entry: None });
        Ok(())
    }
}

impl LogStore {
    /// Opens the log in `dir` and reads where everything is.
    ///
    /// # Errors
    /// Damage before the end of the log, records that make no sense, and the file system's.
    pub fn open(dir: &Path, options: LogOptions) -> Result<Self, LogStoreError> {
        let mut table = Table::default();
        let mut failed = None;
        let log = Log::open(dir, options, |record| {
            if failed.is_none() {
                failed = table.replay(record.position, record.kind, &record.payload).err();
            }
            Ok(())
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok(Self { log: Arc::new(log), table: Arc::new(Mutex::new(table)) }),
        }
    }

    /// Index of the last entry that is purged; 0 when none is.
    pub fn purged_index(&self) -> u64 {
        self.table.lock().purged.map_or(0, |id| id.index)
    }

    /// Whether entries from index 0 on have ever been purged or the log starts later.
    pub fn reaches(&self, index: u64) -> bool {
        let table = self.table.lock();
        table.first <= index
    }

    /// Id of the last entry, purged ones included.
    pub fn last_log_id(&self) -> Option<LogId> {
        let table = self.table.lock();
        table.slots.back().map(|slot| slot.id).or(table.purged)
    }

    /// Bytes of the log on disk.
    pub fn bytes(&self) -> u64 {
        self.log.bytes()
    }

    /// Where the log ends: grows for life, so that differences tell how much was written.
    pub fn end(&self) -> u64 {
        self.log.end().0
    }

    /// Makes sure that entries of so many bytes in all can be appended: raft does not go on after one that could not.
    ///
    /// # Errors
    /// The log's: its disk is full.
    pub fn ensure_room(&self, bytes: u64) -> Result<(), LogError> {
        self.log.ensure_room(bytes)
    }

    /// Takes the disk for full, for tests of what happens then.
    #[cfg(test)]
    pub(super) fn take_disk_for_full(&self, full: bool) {
        self.log.take_disk_for_full(full);
    }

    /// Returns when everything that was appended before the call is on stable storage.
    ///
    /// # Errors
    /// The log's: it takes nothing any more.
    pub async fn all_durable(&self) -> Result<(), LogError> {
        let end = self.log.end();
        if self.log.durable() >= end {
            return Ok(());
        }
        self.durable(end).await
    }

    async fn durable(&self, upto: Position) -> Result<(), LogError> {
        let (done, waiting) = oneshot::channel();
        self.log.when_durable(
            upto,
            Box::new(move |result| {
                let _ = done.send(result);
            }),
        );
        match waiting.await {
            Ok(result) => result,
            // The log's thread is gone: ask again in this thread for the reason.
            Err(_) => self.log.sync(upto),
        }
    }

    // The error is the one that openraft's trait prescribes.
    #[allow(clippy::result_large_err)]
    fn read_range(&self, range: &impl RangeBounds<u64>) -> Result<Vec<RaftEntry>, StorageError> {
        let mut found = Vec::new();
        let mut missing = Vec::new();
        {
            let table = self.table.lock();
            let (start, end) = table.range(range);
            for index in start..end {
                let slot = &table.slots[(index - table.first) as usize];
                if slot.entry.is_none() {
                    missing.push((found.len(), slot.position, slot.id));
                }
                found.push(slot.entry.clone());
            }
        }
        for (at, position, id) in missing {
            let record = self.log.read(position).map_err(|error| read_error(id, error))?;
            match codec::decode(record.kind, &record.payload) {
                Ok(LogRecord::Entry(entry)) if entry.log_id == id => found[at] = Some(entry),
                Ok(_) => return Err(read_error(id, CodecError::Value { field: "log id", value: id.index })),
                Err(error) => return Err(read_error(id, error)),
            }
        }
        Ok(found.into_iter().flatten().collect())
    }
}

fn read_error(id: LogId, error: impl std::error::Error + Send + Sync + 'static) -> StorageError {
    StorageError::from_io_error(ErrorSubject::Log(id), ErrorVerb::Read, std::io::Error::other(error))
}

fn write_error(subject: ErrorSubject<NodeId>, error: LogError) -> StorageError {
    StorageError::from_io_error(subject, ErrorVerb::Write, std::io::Error::other(error))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, StorageError> {
        self.read_range(&range)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let last_log_id = self.last_log_id();
        Ok(LogState { last_purged_log_id: self.table.lock().purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError> {
        let wrap = |error| write_error(ErrorSubject::Vote, error);
        let appended = self.log.append(codec::KIND_VOTE, &[&codec::encode_vote(vote)]).map_err(wrap)?;
        self.durable(appended.end).await.map_err(wrap)?;
        self.table.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError> {
        Ok(self.table.lock().vote)
    }

    /// Only remembered: the record goes out with the next purge. A restart commits what the log holds anew.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.table.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let table = self.table.lock();
        let last = table.slots.back().map(|slot| slot.id).or(table.purged);
        // Committed is remembered lazily, so it can lag; it must not lead over what a truncation left.
        Ok(table.committed.min(last))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        for entry in entries {
            let bytes = codec::encode_entry(&entry);
            let id = entry.log_id;
            let appended = self
                .log
                .append(codec::KIND_ENTRY, &[&bytes])
                .map_err(|error| write_error(ErrorSubject::Log(id), error))?;
            let mut table = self.table.lock();
            if table.slots.is_empty() {
                table.first = id.index;
                table.anchored = true;
            }
            table.push(Slot { id, position: appended.start, bytes: bytes.len(), entry: Some(entry) });
        }
        // In a file of the operating system: with one voter that is where an entry counts as accepted. What must not
        // go back after a power cut waits for `all_durable` (docs/decisions/0008).
        self.log.flush_within(FLUSH_WITHIN);
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let wrap = |error| write_error(ErrorSubject::Log(log_id), error);
        let bytes = codec::encode_truncate(log_id.index);
        let appended = self.log.append(codec::KIND_TRUNCATE, &[&bytes]).map_err(wrap)?;
        self.durable(appended.end).await.map_err(wrap)?;
        self.table.lock().truncate(log_id.index);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let wrap = |error| write_error(ErrorSubject::Log(log_id), error);
        let (vote, committed) = {
            let mut table = self.table.lock();
            table.purge(log_id);
            (table.vote, table.committed)
        };
        // Votes are written anew, so that no segment has to stay for one.
        if let Some(vote) = vote {
            self.log.append(codec::KIND_VOTE, &[&codec::encode_vote(&vote)]).map_err(wrap)?;
        }
        let committed = codec::encode_committed(&committed);
        self.log.append(codec::KIND_COMMITTED, &[&committed]).map_err(wrap)?;
        let appended = self.log.append(codec::KIND_PURGE, &[&codec::encode_purge(&log_id)]).map_err(wrap)?;
        self.durable(appended.end).await.map_err(wrap)?;
        let keep = self.table.lock().slots.front().map_or(appended.start, |slot| slot.position);
        self.log.trim(keep).map_err(wrap)
    }
}
