//! The operation table: which mutations a chunk has seen, so that a repeat is answered, never applied again.

use super::types::OperationRecord;
use crate::ids::{Epoch, OperationId, Sequence, SessionId};
use std::collections::BTreeMap;

/// Records kept for one chunk. Sessions confirm their answers, so that a table holds a few for each that
/// is active; beyond this the records of the oldest writes go, but never that of the last cut.
pub const CAPACITY: usize = 8192;

/// The master's own operations: cuts (rule 13), numbered by the epochs that they begin.
const MASTER: SessionId = SessionId(0);

/// What a table knows of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Never seen.
    New,
    /// Stored with this record.
    Known(OperationRecord),
    /// The session has said that it has the answer: a late duplicate that nobody waits for.
    Confirmed,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct SessionRecords {
    confirmed: u64,
    records: BTreeMap<u64, OperationRecord>,
}

/// Records of operations by session, and by place in the history.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct OperationTable {
    sessions: BTreeMap<SessionId, SessionRecords>,
    by_sequence: BTreeMap<Sequence, OperationId>,
}

impl OperationTable {
    /// Builds a table from stored records.
    pub fn from_records(records: &[OperationRecord]) -> Self {
        let mut table = Self::default();
        for record in records {
            table.insert(*record);
        }
        table
    }

    /// The table of a replica that was filled up to `committed` with these records: what was prepared beyond that stays.
    pub fn filled(&self, committed: Sequence, records: &[OperationRecord]) -> Self {
        let mut table = Self::from_records(records);
        for record in self.records().into_iter().filter(|record| record.sequence > committed) {
            table.insert(record);
        }
        table
    }

    /// All records, by session and operation.
    pub fn records(&self) -> Vec<OperationRecord> {
        self.sessions.values().flat_map(|session| session.records.values().copied()).collect()
    }

    /// Where the write at this place landed; 0 when it is no longer known.
    pub fn offset_of(&self, sequence: Sequence) -> u64 {
        let record =
            self.by_sequence.get(&sequence).and_then(|id| self.sessions.get(&id.session)?.records.get(&id.operation));
        record.map_or(0, |record| record.offset)
    }

    /// The last cut that came before a place in the history, by the epoch that it began; 0 is none. Cuts are the
    /// master's own operations.
    pub fn cut_before(&self, sequence: Sequence) -> Epoch {
        let cuts = self.sessions.get(&MASTER).into_iter().flat_map(|master| master.records.iter().rev());
        let last = cuts.into_iter().find(|(_, record)| record.sequence < sequence);
        last.map_or(Epoch(0), |(cut, _)| Epoch(u32::try_from(*cut).unwrap_or(u32::MAX)))
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.by_sequence.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_sequence.is_empty()
    }

    /// What is known of an operation. The master's own operations (session 0) carry the epoch that they
    /// belong to as their number: one at or below the newest is a repeat.
    pub fn seen(&self, id: OperationId) -> Seen {
        let Some(session) = self.sessions.get(&id.session) else {
            return Seen::New;
        };
        if let Some(record) = session.records.get(&id.operation) {
            return Seen::Known(*record);
        }
        if id.session == MASTER {
            return match session.records.last_key_value() {
                Some((newest, record)) if id.operation <= *newest => Seen::Known(*record),
                _ => Seen::New,
            };
        }
        if id.operation <= session.confirmed { Seen::Confirmed } else { Seen::New }
    }

    /// Remembers an operation.
    pub fn insert(&mut self, record: OperationRecord) {
        let id = record.operation;
        let session = self.sessions.entry(id.session).or_default();
        if let Some(old) = session.records.insert(id.operation, record) {
            self.by_sequence.remove(&old.sequence);
        }
        self.by_sequence.insert(record.sequence, id);
        if self.sessions.len() > 2 * CAPACITY {
            self.sessions.retain(|_, session| !session.records.is_empty());
        }
        while self.by_sequence.len() > CAPACITY {
            let last_cut = self.last_cut();
            let oldest = self.by_sequence.iter().find(|(_, id)| Some(**id) != last_cut).map(|(sequence, _)| *sequence);
            if let Some(oldest) = oldest.and_then(|sequence| self.by_sequence.remove(&sequence)) {
                self.drop_record(oldest);
            }
        }
    }

    /// Forgets a session's operations up to `upto`, whose answers have arrived.
    pub fn confirm(&mut self, session: SessionId, upto: u64) {
        if session == MASTER {
            return;
        }
        let Some(known) = self.sessions.get_mut(&session) else {
            return;
        };
        if upto <= known.confirmed {
            return;
        }
        known.confirmed = upto;
        let kept = known.records.split_off(&upto.saturating_add(1));
        for record in std::mem::replace(&mut known.records, kept).values() {
            self.by_sequence.remove(&record.sequence);
        }
    }

    /// Forgets operations of writes above `above`: they were rolled back.
    pub fn roll_back(&mut self, above: Sequence) {
        for (_, id) in self.by_sequence.split_off(&above.next()) {
            self.drop_record(id);
        }
    }

    fn last_cut(&self) -> Option<OperationId> {
        let (operation, _) = self.sessions.get(&MASTER)?.records.last_key_value()?;
        Some(OperationId { session: MASTER, operation: *operation })
    }

    fn drop_record(&mut self, id: OperationId) {
        if let Some(session) = self.sessions.get_mut(&id.session) {
            session.records.remove(&id.operation);
            if session.records.is_empty() {
                self.sessions.remove(&id.session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(session: u64, operation: u64, sequence: u64) -> OperationRecord {
        OperationRecord {
            operation: OperationId { session: SessionId(session), operation },
            sequence: Sequence(sequence),
            offset: sequence * 10,
        }
    }

    fn id(session: u64, operation: u64) -> OperationId {
        OperationId { session: SessionId(session), operation }
    }

    #[test]
    fn a_stored_operation_is_known_until_confirmed() {
        let mut table = OperationTable::from_records(&[record(7, 1, 1), record(7, 2, 2), record(8, 1, 3)]);
        assert_eq!(table.seen(id(7, 2)), Seen::Known(record(7, 2, 2)));
        assert_eq!(table.seen(id(7, 3)), Seen::New);
        table.confirm(SessionId(7), 1);
        assert_eq!(table.seen(id(7, 1)), Seen::Confirmed);
        assert_eq!(table.seen(id(7, 2)), Seen::Known(record(7, 2, 2)));
        assert_eq!(table.records(), vec![record(7, 2, 2), record(8, 1, 3)]);
    }

    #[test]
    fn a_rolled_back_operation_is_new_again() {
        let mut table = OperationTable::from_records(&[record(7, 1, 1), record(7, 2, 2)]);
        table.roll_back(Sequence(1));
        assert_eq!(table.seen(id(7, 2)), Seen::New);
        assert_eq!(table.seen(id(7, 1)), Seen::Known(record(7, 1, 1)));
    }

    #[test]
    fn an_older_order_of_the_master_is_a_repeat() {
        let table = OperationTable::from_records(&[record(0, 9, 4)]);
        assert_eq!(table.seen(id(0, 8)), Seen::Known(record(0, 9, 4)));
        assert_eq!(table.seen(id(0, 10)), Seen::New);
    }

    #[test]
    fn a_write_knows_the_cut_that_it_came_after_and_a_full_table_keeps_the_last_one() {
        let mut table = OperationTable::from_records(&[record(0, 3, 5), record(7, 1, 6), record(0, 9, 8)]);
        let cuts = [4, 5, 6, 8, 9].map(|sequence| table.cut_before(Sequence(sequence)).0);
        assert_eq!(cuts, [0, 0, 3, 3, 9]);
        for n in 10..=(CAPACITY as u64 + 20) {
            table.insert(record(n, 1, n));
        }
        assert_eq!(table.len(), CAPACITY);
        assert_eq!(table.cut_before(Sequence(u64::MAX)).0, 9);
        assert_eq!(table.seen(id(0, 3)), Seen::Known(record(0, 9, 8)));
        table.roll_back(Sequence(7));
        assert_eq!((table.len(), table.cut_before(Sequence(u64::MAX)).0), (0, 0));
    }

    #[test]
    fn a_full_table_forgets_the_oldest_writes() {
        let mut table = OperationTable::default();
        for n in 1..=(CAPACITY as u64 + 5) {
            table.insert(record(n, 1, n));
        }
        assert_eq!(table.len(), CAPACITY);
        assert_eq!(table.seen(id(5, 1)), Seen::New);
        assert_eq!(table.seen(id(6, 1)), Seen::Known(record(6, 1, 6)));
    }
}
