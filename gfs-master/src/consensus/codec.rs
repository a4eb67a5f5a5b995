//! Bytes of the raft records in the master's log and of the header of a checkpoint.
//!
//! Layout, little endian:
//!
//! - log id: term u64, node u64, index u64
//! - entry (kind 1): version u8, log id, payload kind u8 (0 blank, 1 batch, 2 membership), payload
//! - vote (kind 2): version u8, term u64, node u64, committed u8
//! - truncate (kind 3): version u8, first removed index u64
//! - purge (kind 4): version u8, log id of the last removed entry
//! - committed (kind 5): version u8, present u8, log id
//!
//! A batch is what `gfs_proto::convert::encode_entry` writes. It never reads a file.

use super::types::{Batch, LogId, NodeId, RaftEntry, StoredMembership};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload, Membership, Vote};
use std::collections::{BTreeMap, BTreeSet};

/// Version of all records of this room.
const VERSION: u8 = 1;
/// More voters and learners than this are not believed.
const MAX_NODES: u32 = 1024;

/// Kind of an entry's record.
pub const KIND_ENTRY: u8 = 1;
/// Kind of a vote's record.
pub const KIND_VOTE: u8 = 2;
/// Kind of a record that removes the end of the log.
pub const KIND_TRUNCATE: u8 = 3;
/// Kind of a record that removes the start of the log.
pub const KIND_PURGE: u8 = 4;
/// Kind of a record that remembers what is known to be committed.
pub const KIND_COMMITTED: u8 = 5;

/// A record that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// It ends too early.
    #[error("record is cut short")]
    Short,
    /// It has bytes that nobody reads.
    #[error("record has {0} bytes too many")]
    Trailing(usize),
    /// Written by a newer program, or damaged.
    #[error("record version {0} is not known")]
    Version(u8),
    /// A field has a value that it cannot have.
    #[error("record field {field} has the impossible value {value}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// The batch in it.
    #[error("batch in a log entry: {0}")]
    Batch(#[from] gfs_proto::convert::ConvertError),
}

/// What one record of the log says.
pub enum LogRecord {
    /// An entry.
    Entry(RaftEntry),
    /// A vote.
    Vote(Vote<NodeId>),
    /// Entries from here on are gone.
    Truncate(u64),
    /// Entries up to here are gone.
    Purge(LogId),
    /// What is known to be committed.
    Committed(Option<LogId>),
}

/// Bytes of an entry.
pub fn encode_entry(entry: &RaftEntry) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_log_id(&mut out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => out.push(0),
        EntryPayload::Normal(batch) => {
            out.push(1);
            out.extend_from_slice(&gfs_proto::convert::encode_entry(&batch.entry));
        }
        EntryPayload::Membership(membership) => {
            out.push(2);
            put_membership(&mut out, membership);
        }
    }
    out
}

/// Bytes of a vote.
pub fn encode_vote(vote: &Vote<NodeId>) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.node_id.to_le_bytes());
    out.push(u8::from(vote.committed));
    out
}

/// Bytes of a truncation.
pub fn encode_truncate(from: u64) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&from.to_le_bytes());
    out
}

/// Bytes of a purge.
pub fn encode_purge(upto: &LogId) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_log_id(&mut out, upto);
    out
}

/// Bytes of what is committed.
pub fn encode_committed(committed: &Option<LogId>) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_optional_log_id(&mut out, committed);
    out
}

/// Reads a record of any kind.
///
/// # Errors
/// What does not have exactly this layout.
pub fn decode(kind: u8, payload: &[u8]) -> Result<LogRecord, CodecError> {
    let mut reader = Reader(payload);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let record = match kind {
        KIND_ENTRY => return decode_entry(reader),
        KIND_VOTE => {
            let (term, node) = (reader.u64()?, reader.u64()?);
            let mut vote = Vote::new(term, node);
            vote.committed = reader.bool()?;
            LogRecord::Vote(vote)
        }
        KIND_TRUNCATE => LogRecord::Truncate(reader.u64()?),
        KIND_PURGE => LogRecord::Purge(reader.log_id()?),
        KIND_COMMITTED => LogRecord::Committed(reader.optional_log_id()?),
        other => return Err(CodecError::Value { field: "kind", value: other.into() }),
    };
    reader.end()?;
    Ok(record)
}

fn decode_entry(mut reader: Reader<'_>) -> Result<LogRecord, CodecError> {
    let log_id = reader.log_id()?;
    let payload = match reader.u8()? {
        0 => {
            reader.end()?;
            EntryPayload::Blank
        }
        1 => EntryPayload::Normal(Batch::recovered(gfs_proto::convert::decode_entry(reader.0)?)),
        2 => {
            let membership = reader.membership()?;
            reader.end()?;
            EntryPayload::Membership(membership)
        }
        other => return Err(CodecError::Value { field: "payload", value: other.into() }),
    };
    Ok(LogRecord::Entry(RaftEntry { log_id, payload }))
}

/// Reads only where an entry belongs: its log id.
///
/// # Errors
/// A record that is no entry of this version.
pub fn peek_log_id(payload: &[u8]) -> Result<LogId, CodecError> {
    let mut reader = Reader(payload);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    reader.log_id()
}

/// Bytes of a position and the membership in force there, for a checkpoint.
pub fn encode_position(last: &Option<LogId>, membership: &StoredMembership) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_optional_log_id(&mut out, last);
    put_optional_log_id(&mut out, membership.log_id());
    put_membership(&mut out, membership.membership());
    out
}

/// Reads what [`encode_position`] wrote.
///
/// # Errors
/// Anything else.
pub fn decode_position(bytes: &[u8]) -> Result<(Option<LogId>, StoredMembership), CodecError> {
    let mut reader = Reader(bytes);
    let version = reader.u8()?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let last = reader.optional_log_id()?;
    let log_id = reader.optional_log_id()?;
    let membership = reader.membership()?;
    reader.end()?;
    Ok((last, StoredMembership::new(log_id, membership)))
}

fn put_log_id(out: &mut Vec<u8>, id: &LogId) {
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
}

fn put_optional_log_id(out: &mut Vec<u8>, id: &Option<LogId>) {
    out.push(u8::from(id.is_some()));
    if let Some(id) = id {
        put_log_id(out, id);
    }
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership<NodeId, BasicNode>) {
    let configs = membership.get_joint_config();
    out.extend_from_slice(&(configs.len() as u32).to_le_bytes());
    for voters in configs {
        out.extend_from_slice(&(voters.len() as u32).to_le_bytes());
        for voter in voters {
            out.extend_from_slice(&voter.to_le_bytes());
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.extend_from_slice(&(nodes.len() as u32).to_le_bytes());
    for (id, node) in nodes {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&(node.addr.len() as u32).to_le_bytes());
        out.extend_from_slice(node.addr.as_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], CodecError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(CodecError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.take(1)?[0])
    }

    fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(CodecError::Value { field: "flag", value: other.into() }),
        }
    }

    fn u32(&mut self) -> Result<u32, CodecError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        let low = u64::from(self.u32()?);
        Ok(low | u64::from(self.u32()?) << 32)
    }

    fn log_id(&mut self) -> Result<LogId, CodecError> {
        let (term, node, index) = (self.u64()?, self.u64()?, self.u64()?);
        Ok(LogId::new(CommittedLeaderId::new(term, node), index))
    }

    fn optional_log_id(&mut self) -> Result<Option<LogId>, CodecError> {
        Ok(if self.bool()? { Some(self.log_id()?) } else { None })
    }

    fn count(&mut self) -> Result<u32, CodecError> {
        let count = self.u32()?;
        if count > MAX_NODES {
            return Err(CodecError::Value { field: "count", value: count.into() });
        }
        Ok(count)
    }

    fn membership(&mut self) -> Result<Membership<NodeId, BasicNode>, CodecError> {
        let mut configs = Vec::new();
        for _ in 0..self.count()? {
            let mut voters = BTreeSet::new();
            for _ in 0..self.count()? {
                voters.insert(self.u64()?);
            }
            configs.push(voters);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..self.count()? {
            let id = self.u64()?;
            let length = self.u32()? as usize;
            let addr = String::from_utf8_lossy(self.take(length)?).into_owned();
            nodes.insert(id, BasicNode { addr });
        }
        Ok(Membership::new(configs, nodes))
    }

    fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Trailing(self.0.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_reads_back_and_damage_is_refused() {
        let id = LogId::new(CommittedLeaderId::new(3, 1), 42);
        let membership = Membership::new(
            vec![BTreeSet::from([1, 2])],
            BTreeMap::from([(1, BasicNode { addr: "a:1".into() }), (2, BasicNode { addr: "b:2".into() })]),
        );
        let entry = RaftEntry { log_id: id, payload: EntryPayload::Membership(membership.clone()) };
        let bytes = encode_entry(&entry);
        assert!(matches!(decode(KIND_ENTRY, &bytes), Ok(LogRecord::Entry(read)) if read == entry));
        for cut in 0..bytes.len() {
            assert!(decode(KIND_ENTRY, &bytes[..cut]).is_err(), "cut at {cut} was believed");
        }
        let vote = Vote::new_committed(7, 1);
        assert!(matches!(decode(KIND_VOTE, &encode_vote(&vote)), Ok(LogRecord::Vote(read)) if read == vote));
        assert!(matches!(decode(KIND_PURGE, &encode_purge(&id)), Ok(LogRecord::Purge(read)) if read == id));
        assert!(matches!(decode(KIND_TRUNCATE, &encode_truncate(9)), Ok(LogRecord::Truncate(9))));
        assert!(matches!(decode(KIND_COMMITTED, &encode_committed(&None)), Ok(LogRecord::Committed(None))));
        assert!(decode(99, &encode_truncate(9)).is_err());
        let stored = StoredMembership::new(Some(id), membership);
        let (last, read) = decode_position(&encode_position(&Some(id), &stored)).unwrap();
        assert_eq!((last, read), (Some(id), stored));
    }

    #[test]
    fn vote_record_has_these_bytes() {
        let mut golden = vec![1, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(encode_vote(&Vote::new(5, 2)), golden);
        golden[17] = 1;
        assert_eq!(encode_vote(&Vote::new_committed(5, 2)), golden);
    }
}
